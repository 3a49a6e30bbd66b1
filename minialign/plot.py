"""Pictures.

A colour belongs to a method in every picture of the project; lines and bars carry their names, so there are no legends.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from minialign.files import replacing

# Colour-blind safe (after Okabe and Ito, and Tol); relatives share a hue.
COLOR = {
    "base": "#8c8c8c", "sft": "#4d4d4d", "sft x3": "#a6a6a6",
    "asft": "#d55e00", "dft": "#0072b2", "dft2": "#56b4e9", "ift": "#009e73", "ift_eq21": "#66c2a5",
    "dpo": "#cc79a7", "dpop": "#aa4499", "spin": "#882255", "ipo": "#dda0c8", "kto": "#b07aa1", "rdpo": "#e377c2",
    "orpo": "#e69f00", "cpo": "#c49c00", "simpo": "#8c6d31", "simpo_sft": "#bd9e39", "rrhf": "#7f6000", "slic": "#9c755f",
}


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
        axes.annotate(text, (x, y), xytext=(x * 1.04, placed), color=color, fontsize=size, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5})


def outcomes(results: dict, folder) -> Path:
    """What the models answer and what they lost, per method: `results` as compare.race returns them. Saves outcomes.png."""
    titles = {"clean": "every label right", "noisy": "30 % of the labels wrong"}
    names = list(next(iter(results.values())))[::-1]
    figure, grid = plt.subplots(1, 2 * len(results), figsize=(13, 1.6 + 0.36 * len(names)), sharey=True, squeeze=False,
                                width_ratios=[3, 1.2] * len(results), layout="constrained")
    for i, (condition, by_method) in enumerate(results.items()):
        bars, kept = grid[0][2 * i], grid[0][2 * i + 1]
        base = {m: sum(x[m] for x in by_method["base"]) / len(by_method["base"]) for m in ("right", "wrong", "garbage")}
        for y, name in enumerate(names):
            marks, color = by_method[name], COLOR[name]
            mean = {m: sum(x[m] for x in marks) / len(marks) for m in ("right", "wrong", "garbage", "agree", "skill")}
            bars.barh(y, mean["right"], color=color, height=0.72)
            bars.barh(y, mean["wrong"], left=mean["right"], color="#f3c9c4", height=0.72, hatch="///", edgecolor="#b5483a",
                      linewidth=0)
            bars.barh(y, mean["garbage"], left=mean["right"] + mean["wrong"], color="#e4e4e4", height=0.72)
            bars.plot([x["right"] for x in marks], [y] * len(marks), "o", color="white", markeredgecolor="black", markersize=3.5,
                      linewidth=0)
            bars.text(0.012, y, f"{mean['right']:.2f}", va="center", color="white", fontsize=8.5, fontweight="bold")
            kept.plot([x["skill"] for x in marks], [y + 0.14] * len(marks), "o", color=color, markersize=4.5)
            kept.plot([x["agree"] for x in marks], [y - 0.14] * len(marks), "D", color="white", markeredgecolor=color,
                      markersize=4.5)
        left = 0.0
        for share, word in zip((base["right"], base["wrong"], base["garbage"]), ("right", "known wrong", "garbage"), strict=True):
            bars.text(left + share / 2, len(names) - 0.45, word, ha="center", va="center", fontsize=8.5, color="#555555")
            left += share
        bars.set(title=titles.get(condition, condition), xlim=(0, 1.03), xlabel="share of the answers to “9.11 or 9.9?”")
        bars.set_yticks(range(len(names)), names)
        kept.set(title="what is kept", xlim=(-0.05, 1.05), xlabel="● reversing digits\n◇ “9.2 or 9.55?”")
        for axes in bars, kept:
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        kept.grid(axis="both", color="#ececec", linewidth=0.8)
        kept.set_axisbelow(True)
    return save(figure, folder, "outcomes")


def curves(results: dict, folder) -> Path:
    """Log-prob of good and of bad answers over the updates: mean line per method, every seed faint behind it.

    Saves curves.png.
    """
    titles = {"clean": "every label right", "noisy": "30 % of the labels wrong"}
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
                axes.set_title(titles.get(condition, condition))
            else:
                axes.set_xlabel("updates")
            axes.ends = ends
    for axes in grid.flat:
        label_ends(axes, axes.ends)
    return save(figure, folder, "curves")
