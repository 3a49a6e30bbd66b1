"""Pictures: what models answer, how log-probs move, and one number per setting.

A colour belongs to a method in every picture of the project. Lines and bars carry their names, so
there are no legends.
"""

import zlib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke

from minialign.files import replacing

# Safe for the colour-blind (after Okabe and Ito, and Tol); relatives share a hue.
COLOR = {
    "base": "#8c8c8c", "sft": "#4d4d4d", "sft x3": "#a6a6a6", "sft sum": "#7a7a7a",
    "sft filtered": "#9467bd", "sft → dpo": "#d4a5c4", "dft, plain negatives": "#8fbbe0",
    "asft": "#d55e00", "dft": "#0072b2", "dft2": "#56b4e9", "ift": "#009e73", "ift_eq21": "#66c2a5",
    "dpo": "#cc79a7", "dpop": "#aa4499", "spin": "#882255", "ipo": "#dda0c8", "kto": "#b07aa1",
    "rdpo": "#e377c2", "orpo": "#e69f00", "cpo": "#c49c00", "simpo": "#8c6d31",
    "simpo_sft": "#bd9e39", "rrhf": "#7f6000", "slic": "#9c755f",
}
OTHERS = ("#332288", "#117733", "#88ccee", "#999933", "#44aa99", "#661100", "#6699cc", "#ddcc77")

WRONG, GARBAGE = "#f3c9c4", "#e4e4e4"       # the two kinds of answers that are not right
DASHES = {"color": "#999999", "linewidth": 0.9, "linestyle": (0, (4, 3))}
DOT = {"color": "white", "markeredgecolor": "black", "clip_on": False}     # one seed


def color_of(name: str, colors: dict[str, str] | None = None) -> str:
    """The colour of a method or a setting: as `colors` says, else its own, else one of OTHERS.

    The last is chosen by the name, so that a new method looks the same in every picture.
    """
    if colors and name in colors:
        return colors[name]
    if name in COLOR:
        return COLOR[name]
    return OTHERS[zlib.crc32(name.encode()) % len(OTHERS)]


def average(values) -> float:
    return sum(values) / len(values)


def save(figure, folder, name: str) -> Path:
    """Write FOLDER/NAME.png, whole or not at all, and close the figure."""
    path = Path(folder) / f"{name}.png"
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def clean(axes) -> None:
    """No box around the data: left and bottom lines only, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def clean_rows(axes) -> None:
    """The same for axes whose rows are named at the left: the bottom line only."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def label_ends(axes, ends: list[tuple[float, float, str, str]], size: float = 8) -> None:
    """Write the name of each line at its right end, from (x, y, text, colour).

    Names that would overlap are moved apart, but not above the axes.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * size / 150
    ends = sorted(ends, key=lambda end: end[1])
    ys = [y for _, y, _, _ in ends]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + gap)
    for i in reversed(range(len(ys))):
        ys[i] = min(ys[i], ys[i + 1] - gap if i + 1 < len(ys) else high)
    for (x, y, text, color), placed in zip(ends, ys, strict=True):
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5),
                  "shrinkA": 1, "shrinkB": 0}
        axes.annotate(text, (x, y), xytext=(x * 1.04, placed), color=color, fontsize=size,
                      va="center", annotation_clip=False, arrowprops=leader)


# ------------------------------------------------------------------ what is answered, what is kept

def answer_bars(
    panels: dict[str, dict], question: str = "", colors: dict[str, str] | None = None, *,
    folder, name: str,
) -> Path:
    """What the models answer and what they keep, a row per setting.

    panels   {panel title: {setting: {mark: [one value per seed]}}}
    """
    rows = max(map(len, panels.values()))
    figure, grid = plt.subplots(
        1, 2 * len(panels), figsize=(6.6 * len(panels) + 1, 1.7 + 0.34 * rows), squeeze=False,
        width_ratios=[3, 1.2] * len(panels), layout="constrained",
    )
    names_before = None
    for i, (title, settings) in enumerate(panels.items()):
        answers, kept = grid[0][2 * i : 2 * i + 2]
        empty = rows - len(settings)            # below the rows of a panel that has fewer
        for y, (setting, marks) in enumerate(reversed(settings.items()), start=empty):
            answer_row(answers, kept, y, marks, color_of(setting, colors))

        # What the three parts of a bar are is written above the first row.
        left, top = 0.0, next(iter(settings.values()))
        for mark, words in (("right", "right"), ("wrong", "known wrong"), ("garbage", "garbage")):
            share = average(top[mark])
            answers.text(left + share / 2, rows - 0.5, words, ha="center", fontsize=8.5,
                         color="#555555")
            left += share

        # Panels with the same rows name them once.
        names = list(reversed(settings))
        answers.set_yticks(range(empty, rows), [] if names == names_before else names)
        names_before = names
        answers.set(xlim=(0, 1.03), ylim=(-0.6, rows - 0.2), title=title,
                    xlabel="share of the answers to “9.11 or 9.9?”")
        kept.set(title="what is kept", xlim=(-0.05, 1.05), ylim=(-0.6, rows - 0.2), yticks=[],
                 xlabel="● reversing digits\n◇ “9.2 or 9.55?”")
        kept.grid(axis="x", color="#ececec", linewidth=0.8)
        kept.set_axisbelow(True)
        clean_rows(answers)
        clean_rows(kept)
    figure.suptitle(question, fontsize=13)
    return save(figure, folder, name)


def answer_row(answers, kept, y: float, marks: dict[str, list], color: str) -> None:
    """One row of `answer_bars`."""
    right, wrong, garbage = (average(marks[mark]) for mark in ("right", "wrong", "garbage"))
    answers.barh(y, right, color=color, height=0.72)
    answers.barh(y, wrong, left=right, color=WRONG, height=0.72, hatch="///", edgecolor="#b5483a",
                 linewidth=0)
    answers.barh(y, garbage, left=right + wrong, color=GARBAGE, height=0.72)
    answers.plot(marks["right"], [y] * len(marks["right"]), "o", markersize=3.5, **DOT)

    # The number stands in the first gap between the dots; outside its bar it needs an outline.
    x = 0.012
    for dot in sorted(marks["right"]):
        if dot < x + 0.1:
            x = dot + 0.02
    look = {"va": "center", "fontsize": 8.5, "fontweight": "bold", "color": "white"}
    if x + 0.09 >= right:
        look |= {"color": "black", "path_effects": [withStroke(linewidth=3, foreground="white")]}
    answers.text(x, y, f"{right:.2f}", **look)

    seeds = len(marks["skill"])
    kept.plot(marks["skill"], [y + 0.14] * seeds, "o", color=color, markersize=4.5)
    kept.plot(marks["agree"], [y - 0.14] * seeds, "D", color="white", markeredgecolor=color,
              markersize=4.5)


# ------------------------------------------------------------------------------ lines and dots

def curves(
    grid: list[list[tuple[str, str, dict]]], question: str = "",
    colors: dict[str, str] | None = None, *, xlabel: str = "updates", one_scale: bool = False,
    start: bool = False, mark: tuple[float, str] | None = None, folder, name: str,
) -> Path:
    """Lines over something that grows: the mean, with every seed faint behind it.

    grid       rows of panels (title, y label, {line: [one list of (x, y) per seed]})
    one_scale  the panels of a row share their y axis
    start      a dashed line stands where the first line begins
    mark       (x, words): a dashed line stands at x
    """
    figure, all_axes = plt.subplots(
        len(grid), len(grid[0]), figsize=(5.7 * len(grid[0]), 3.6 * len(grid) + 0.6),
        squeeze=False, sharex=True, sharey="row" if one_scale else False, layout="constrained",
    )
    ends = {}
    for row, panels in zip(all_axes, grid, strict=True):
        for axes, (title, ylabel, lines) in zip(row, panels, strict=True):
            ends[axes] = draw_lines(axes, lines, colors)
            if start:
                first = next(iter(lines.values()))
                axes.axhline(average([run[0][1] for run in first]), **DASHES)
            if mark is not None:
                axes.axvline(mark[0], **DASHES)
                axes.text(mark[0], axes.get_ylim()[1], f" {mark[1]}", va="top", fontsize=8,
                          color="#555555")
            axes.set(title=title, ylabel=ylabel)
            clean(axes)
    for axes in all_axes[-1]:
        axes.set_xlabel(xlabel)

    # Names are placed last: only now is it known how far every axis reaches.
    for axes, lines in ends.items():
        label_ends(axes, lines)
    figure.suptitle(question, fontsize=13)
    return save(figure, folder, name)


def draw_lines(axes, lines: dict[str, list], colors: dict[str, str] | None) -> list[tuple]:
    """The lines of one panel; returns where they end, for `label_ends`."""
    ends = []
    for line, runs in lines.items():
        color = color_of(line, colors)
        xs = [x for x, _ in runs[0]]
        ys = [[y for _, y in run] for run in runs]
        mean = [average(values) for values in zip(*ys, strict=True)]
        if len(runs) > 1:
            for one_seed in ys:
                axes.plot(xs, one_seed, color=color, linewidth=0.7, alpha=0.3)
        axes.plot(xs, mean, color=color, linewidth=2.1)
        axes.set_xlim(xs[0], xs[-1])
        ends.append((xs[-1], mean[-1], line, color))
    return ends


def bar(axes, y: float, numbers: list[float], color: str, height: float, alpha: float) -> None:
    """The mean of a setting as a bar, every seed a dot."""
    axes.barh(y, average(numbers), color=color, height=height, alpha=alpha)
    axes.plot(numbers, [y] * len(numbers), "o", markersize=3.8, **DOT)


def bars(
    panels: dict[str, dict[str, list]], xlabel: str, question: str,
    colors: dict[str, str] | None = None, *, line: float | None = None, folder, name: str,
) -> Path:
    """One number per setting: a bar with its mean written behind it, every seed a dot.

    panels   {panel title: {setting: [one value per seed]}}
    line     where a dashed line stands
    """
    rows = max(map(len, panels.values()))
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels) + 1, 1.7 + 0.42 * rows), squeeze=False,
        layout="constrained",
    )
    for axes, (title, settings) in zip(all_axes[0], panels.items(), strict=True):
        for y, (setting, numbers) in enumerate(reversed(settings.items())):
            mean = average(numbers)
            bar(axes, y, numbers, color_of(setting, colors), height=0.6, alpha=0.85)
            axes.annotate(f"{mean:.3g}", (max([mean, *numbers]), y), xytext=(7, 0),
                          textcoords="offset points", va="center", fontsize=9)
        if line is not None:
            axes.axvline(line, **DASHES)
        axes.set_yticks(range(len(settings)), list(reversed(settings)))
        axes.set(title=title, xlabel=xlabel)
        axes.margins(x=0.14)
        clean_rows(axes)
    figure.suptitle(question, fontsize=13)
    return save(figure, folder, name)
