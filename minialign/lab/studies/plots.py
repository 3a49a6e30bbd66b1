"""The studies' pictures: one question in the title, one glance for the answer. Colours and helpers are plot.py's."""

from pathlib import Path

import matplotlib.pyplot as plt

from minialign.lab.plot import answer_bars, average, clean, color_of, label_ends, save


def of_training(data: dict, column: int) -> dict[str, list]:
    """A column of arena's curves for every setting that has as many updates as the first."""
    lines = {setting: marks["curve"] for setting, marks in data.items() if "curve" in marks}
    steps = min(runs[0][-1][0] for runs in lines.values())
    return {setting: [[(point[0], point[column]) for point in run] for run in runs]
            for setting, runs in lines.items() if runs[0][-1][0] == steps}


def bars(panels: dict[str, dict], question: str, out: Path, name: str, colors: dict[str, str] | None = None) -> Path:
    """What the models answer and what they keep, a row per setting: {panel title: {setting: {mark: [per seed]}}}."""
    return answer_bars(panels, question, out, f"study_{name}", colors)


def curves(panels: dict[str, dict[str, list]], question: str, out: Path, name: str, xlabel: str = "updates",
           colors: dict[str, str] | None = None, start: bool = True, mark: tuple[float, str] | None = None) -> Path:
    """{y label: {line: [one [(x, y), …] per seed]}}: mean line, every seed faint behind it; `start` draws the first value."""
    figure, grid = plt.subplots(1, len(panels), figsize=(6.0 * len(panels), 4.4), squeeze=False, layout="constrained")
    for axes, (ylabel, lines) in zip(grid[0], panels.items(), strict=True):
        ends = []
        for line, runs in lines.items():
            color, xs = color_of(line, colors or {}), [x for x, _ in runs[0]]
            mean = [average(values) for values in zip(*([y for _, y in run] for run in runs), strict=True)]
            for run in runs if len(runs) > 1 else []:
                axes.plot(xs, [y for _, y in run], color=color, linewidth=0.7, alpha=0.25)
            axes.plot(xs, mean, color=color, linewidth=2.2)
            ends.append((xs[-1], mean[-1], line, color))
        if start:
            axes.axhline(average([run[0][1] for run in next(iter(lines.values()))]), color="#999999", linewidth=0.9,
                         linestyle=(0, (4, 3)))
        if mark:
            axes.axvline(mark[0], color="#999999", linewidth=0.9, linestyle=(0, (4, 3)))
            axes.text(mark[0], axes.get_ylim()[1], f" {mark[1]}", va="top", fontsize=8, color="#555555")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_xlim(xs[0], xs[-1])
        clean(axes)
        label_ends(axes, ends)
    figure.suptitle(question, fontsize=13)
    return save(figure, out, f"study_{name}")


def dots(values: dict[str, dict[str, list]], xlabel: str, question: str, out: Path, name: str,
         colors: dict[str, str] | None = None, line: float | None = None) -> Path:
    """{panel title: {setting: [per seed]}}: a row per setting, its mean written behind it, every seed a dot."""
    rows = max(map(len, values.values()))
    figure, grid = plt.subplots(1, len(values), figsize=(5.2 * len(values) + 1, 1.7 + 0.42 * rows), squeeze=False,
                                layout="constrained")
    for axes, (title, settings) in zip(grid[0], values.items(), strict=True):
        for y, (setting, numbers) in enumerate(reversed(settings.items())):
            color, mean = color_of(setting, colors or {}), average(numbers)
            axes.barh(y, mean, color=color, height=0.6, alpha=0.85)
            axes.plot(numbers, [y] * len(numbers), "o", color="white", markeredgecolor="black", markersize=4, clip_on=False)
            axes.annotate(f"{mean:.3g}", (max([mean, *numbers]), y), xytext=(7, 0), textcoords="offset points", va="center",
                          fontsize=9)
        if line is not None:
            axes.axvline(line, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(settings)), list(reversed(settings)))
        axes.set(title=title, xlabel=xlabel)
        axes.margins(x=0.14)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(question, fontsize=13)
    return save(figure, out, f"study_{name}")
