"""Pictures.

A colour belongs to a method in every picture of the project; lines and bars carry their names, so there are no legends.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke

from minialign.files import replacing

# Colour-blind safe (after Okabe and Ito, and Tol); relatives share a hue.
COLOR = {
    "base": "#8c8c8c", "sft": "#4d4d4d", "sft x3": "#a6a6a6",
    "asft": "#d55e00", "dft": "#0072b2", "dft2": "#56b4e9", "ift": "#009e73", "ift_eq21": "#66c2a5",
    "dpo": "#cc79a7", "dpop": "#aa4499", "spin": "#882255", "ipo": "#dda0c8", "kto": "#b07aa1", "rdpo": "#e377c2",
    "orpo": "#e69f00", "cpo": "#c49c00", "simpo": "#8c6d31", "simpo_sft": "#bd9e39", "rrhf": "#7f6000", "slic": "#9c755f",
}


WRONG, GARBAGE = "#f3c9c4", "#e4e4e4"
TITLES = {"clean": "every label right", "noisy": "30 % of the labels wrong"}
MARKS = ("right", "wrong", "garbage", "skill", "agree")


def save(figure, folder, name: str) -> Path:
    """Write FOLDER/NAME.png (whole or not at all) and close the figure."""
    path = Path(folder) / f"{name}.png"
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def clean(axes) -> None:
    """No box around the data: left and bottom lines only, faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def label_ends(axes, ends: list[tuple[float, float, str, str]], size: float = 8) -> None:
    """Write each line's name at its right end (x, y, text, colour), moved apart where they would overlap,
    but not above the axes.
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
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 0}
        axes.annotate(text, (x, y), xytext=(x * 1.04, placed), color=color, fontsize=size, va="center", annotation_clip=False,
                      arrowprops=leader)


def average(values) -> float:
    return sum(values) / len(values)


def color_of(setting: str, colors: dict[str, str]) -> str:
    return colors.get(setting) or COLOR.get(setting) or COLOR["dft"]


def answer_bars(panels: dict[str, dict], question: str, folder, name: str, colors: dict[str, str] | None = None) -> Path:
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
        repeated = i > 0 and list(settings) == list(list(panels.values())[i - 1])
        answers.set_yticks(range(len(settings)), [] if repeated else list(reversed(settings)))
        kept.set(title="what is kept", xlim=(-0.05, 1.05), ylim=(-0.6, rows - 0.2), yticks=[],
                 xlabel="● reversing digits\n◇ “9.2 or 9.55?”")
        for axes in answers, kept:
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        kept.grid(axis="x", color="#ececec", linewidth=0.8)
        kept.set_axisbelow(True)
    if question:
        figure.suptitle(question, fontsize=13)
    return save(figure, folder, name)


def stack(answers, kept, y: float, marks: dict, color: str) -> None:
    """One row of `answer_bars`."""
    right, wrong, garbage = (average(marks[m]) for m in ("right", "wrong", "garbage"))
    answers.barh(y, right, color=color, height=0.72)
    answers.barh(y, wrong, left=right, color=WRONG, height=0.72, hatch="///", edgecolor="#b5483a", linewidth=0)
    answers.barh(y, garbage, left=right + wrong, color=GARBAGE, height=0.72)
    answers.plot(marks["right"], [y] * len(marks["right"]), "o", color="white", markeredgecolor="black", markersize=3.5,
                 clip_on=False)
    x = 0.012
    for dot in sorted(marks["right"]):                                  # the number stands in the first gap between the dots
        x = dot + 0.02 if dot < x + 0.1 else x
    inside = x + 0.09 < right
    answers.text(x, y, f"{right:.2f}", va="center", color="white" if inside else "black", fontsize=8.5, fontweight="bold",
                 path_effects=None if inside else [withStroke(linewidth=3, foreground="white")])
    kept.plot(marks["skill"], [y + 0.14] * len(marks["skill"]), "o", color=color, markersize=4.5)
    kept.plot(marks["agree"], [y - 0.14] * len(marks["agree"]), "D", color="white", markeredgecolor=color, markersize=4.5)


def outcomes(results: dict, folder) -> Path:
    """What the models answer and what they keep, per method: `results` as compare.race returns them. Saves outcomes.png."""
    panels = {TITLES[condition]: {name: {mark: [marks[mark] for marks in per_seed] for mark in MARKS}
                                  for name, per_seed in by_method.items()} for condition, by_method in results.items()}
    return answer_bars(panels, "", folder, "outcomes")


def curves(results: dict, folder) -> Path:
    """Log-prob of good and of bad answers over the updates: mean line per method, every seed faint behind it.

    Saves curves.png.
    """
    figure, grid = plt.subplots(2, len(results), figsize=(5.4 * len(results), 7.2), squeeze=False, sharex=True, sharey="row",
                                layout="constrained")
    for column, (condition, by_method) in enumerate(results.items()):
        lines = {name: [x["curve"] for x in marks] for name, marks in by_method.items() if "curve" in marks[0]}
        steps = min(runs[0][-1][0] for runs in lines.values())
        lines = {name: runs for name, runs in lines.items() if runs[0][-1][0] == steps}     # not the control, which trains longer
        for row, what in enumerate(("good", "bad")):
            axes, ends = grid[row][column], []
            for name, runs in lines.items():
                xs = [point[0] for point in runs[0]]
                ys = [[point[1 + row] for point in run] for run in runs]
                mean = [sum(values) / len(values) for values in zip(*ys, strict=True)]
                for y in ys:
                    axes.plot(xs, y, color=COLOR[name], linewidth=0.7, alpha=0.3)
                axes.plot(xs, mean, color=COLOR[name], linewidth=2)
                ends.append((xs[-1], mean[-1], name, COLOR[name]))
            axes.set_ylabel(f"log-prob of the {what} answer {'↑' if row == 0 else '↓'}")
            axes.set_xlim(0, steps)
            clean(axes)
            if row == 0:
                axes.set_title(TITLES[condition])
            else:
                axes.set_xlabel("updates")
            axes.ends = ends
    for axes in grid.flat:
        label_ends(axes, axes.ends)
    return save(figure, folder, "curves")
