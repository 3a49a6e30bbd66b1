"""The studies' pictures: one question in the title, one glance for the answer. Colours and helpers are plot.py's."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke

from minialign.plot import COLOR, clean, label_ends, save

WRONG, GARBAGE = "#f3c9c4", "#e4e4e4"


def average(values) -> float:
    return sum(values) / len(values)


def color_of(setting: str, colors: dict[str, str]) -> str:
    return colors.get(setting) or COLOR.get(setting) or COLOR["dft"]


def of_training(data: dict, column: int) -> dict[str, list]:
    """A column of arena's curves for every setting that has as many updates as the first."""
    lines = {setting: marks["curve"] for setting, marks in data.items() if "curve" in marks}
    steps = min(runs[0][-1][0] for runs in lines.values())
    return {setting: [[(point[0], point[column]) for point in run] for run in runs]
            for setting, runs in lines.items() if runs[0][-1][0] == steps}


def bars(panels: dict[str, dict], question: str, out: Path, name: str, colors: dict[str, str] | None = None) -> Path:
    """What the models answer and what they keep, a row per setting: {panel title: {setting: {mark: [per seed]}}}."""
    colors, rows = colors or {}, max(map(len, panels.values()))
    figure, grid = plt.subplots(1, 2 * len(panels), figsize=(6.6 * len(panels) + 1, 1.7 + 0.34 * rows), squeeze=False,
                                width_ratios=[3, 1.2] * len(panels), layout="constrained")
    for i, (title, settings) in enumerate(panels.items()):
        answers, kept = grid[0][2 * i], grid[0][2 * i + 1]
        for y, (setting, marks) in enumerate(reversed(settings.items())):
            stack(answers, kept, y, marks, color_of(setting, colors))
        top, left = next(iter(settings.values())), 0.0
        for mark, word in (("right", "right"), ("wrong", "known wrong"), ("garbage", "garbage")):
            share = average(top[mark])
            answers.text(left + share / 2, len(settings) - 0.5, word, ha="center", fontsize=8.5, color="#555555")
            left += share
        answers.set(xlim=(0, 1.03), ylim=(-0.6, rows - 0.2), xlabel="share of the answers to “9.11 or 9.9?”", title=title)
        answers.set_yticks(range(len(settings)), list(reversed(settings)))
        kept.set(title="what is kept", xlim=(-0.05, 1.05), ylim=(-0.6, rows - 0.2), yticks=[],
                 xlabel="● reversing digits\n◇ “9.2 or 9.55?”")
        for axes in answers, kept:
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        kept.grid(axis="x", color="#ececec", linewidth=0.8)
        kept.set_axisbelow(True)
    figure.suptitle(question, fontsize=13)
    return save(figure, out, f"study_{name}")


def stack(answers, kept, y: float, marks: dict, color: str) -> None:
    """One row of `bars`."""
    right, wrong, garbage = (average(marks[m]) for m in ("right", "wrong", "garbage"))
    answers.barh(y, right, color=color, height=0.72)
    answers.barh(y, wrong, left=right, color=WRONG, height=0.72, hatch="///", edgecolor="#b5483a", linewidth=0)
    answers.barh(y, garbage, left=right + wrong, color=GARBAGE, height=0.72)
    answers.plot(marks["right"], [y] * len(marks["right"]), "o", color="white", markeredgecolor="black", markersize=3.5)
    x = 0.012
    for dot in sorted(marks["right"]):                                  # the number stands in the first gap between the dots
        x = dot + 0.02 if dot < x + 0.1 else x
    inside = x + 0.09 < right
    answers.text(x, y, f"{right:.2f}", va="center", color="white" if inside else "black", fontsize=8.5, fontweight="bold",
                 path_effects=None if inside else [withStroke(linewidth=3, foreground="white")])
    kept.plot(marks["skill"], [y + 0.14] * len(marks["skill"]), "o", color=color, markersize=4.5)
    kept.plot(marks["agree"], [y - 0.14] * len(marks["agree"]), "D", color="white", markeredgecolor=color, markersize=4.5)


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
            axes.plot(numbers, [y] * len(numbers), "o", color="white", markeredgecolor="black", markersize=4)
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
