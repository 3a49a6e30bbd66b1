"""The pictures of lessons 08, 09, 13 and 14."""

import matplotlib.pyplot as plt

from minialign.lab import plot
from toy import lake as lakes
from toy.plot import STEP, WRONG, color_of, ground, policy_map, square

SFT, TEACHER = plot.COLOR["sft"], "#d9a400"
FRAME = {"fill": False, "edgecolor": "#7b3294", "linewidth": 2}

# ------------------------------------------------------------------------------------- 08: The lake


def the_lake(lake, maps, across, chances, best, by):
    """Policies on the map, and how students get across, over the number of walks they saw.

    maps     (title, policy (S, 4), which cells were shown (S,) or None) of every panel
    across   policy → chance to get across
    chances  {walks shown: a chance per student}
    best     the teacher's chance
    by       who computed what: a few words, or none
    """
    figure, (*panels, curve) = plt.subplots(
        1, len(maps) + 1, figsize=(15, 4.4), width_ratios=[1] * len(maps) + [0.95],
        layout="constrained")
    for axes, (title, policy, shown) in zip(panels, maps, strict=True):
        color = TEACHER if shown is None else SFT
        policy_map(axes, lake.rows, policy, lake.optimal, lakes.seen(lake, policy), color)
        if shown is not None:
            for s in shown.nonzero()[:, 0].tolist():
                square(axes, s, len(lake.rows[0]), **FRAME)
        axes.set_title(f"{title}:\n{across(policy):.0%} get across", fontweight="bold")
    panels[0].set_xlabel(by, color=SFT)

    # Every dot is a student, the line goes through the medians.
    curve.axhline(best, color=TEACHER, linewidth=2)
    curve.text(min(chances), best + 0.01, "teacher", color="#a07a00", va="bottom")
    medians = [sorted(values)[len(values) // 2] for values in chances.values()]
    curve.plot(list(chances), medians, color=SFT, linewidth=2.4)
    for walks, values in chances.items():
        curve.plot([walks] * len(values), values, "o", color=SFT, alpha=0.4, markersize=5,
                   markeredgewidth=0)
    curve.set(xscale="log", ylim=(0, 1), xlabel="walks shown",
              ylabel="chance to get across ↑", title="every dot a student, the line their median")
    curve.set_xticks(list(chances), [str(walks) for walks in chances], minor=False)
    curve.minorticks_off()
    plot.clean(curve)
    return figure


# ------------------------------------------------------------- 09: Live with your guesses: the lake


def guesses_on_the_lake(maps, shares, points, gain, lines):
    """What is read beside the path, with which label, for how long, and what it is worth.

    maps     (place, lake, what is read off the path (T, S), the path's actions (T,)) of two panels
    shares   {place: {row: (training steps,)}}: share of what is read off the path
    points   {place: {training step: share}}, as the reader's own functions have it
    gain     (place, row) → mean and half-width of the difference to SFT
    lines    {row: how the picture calls it}
    """
    figure, (*panels, exposure, worth) = plt.subplots(
        1, 4, figsize=(16, 4.3), width_ratios=[1, 1, 1.1, 1.2], layout="constrained")
    for axes, (place, lake, off, actions) in zip(panels, maps, strict=True):
        labels_on_map(axes, lake, off, actions)
        axes.set_title(f"{place}: what IFT reads\nbeside the path, and its label")

    for name in "ift_simple", "soft mix", "neighbour noise":
        for place, style in zip(shares, ("-", ":"), strict=True):
            share = shares[place][name]
            exposure.plot(range(1, len(share) + 1), share, style, color=color_of(name),
                          linewidth=2.2, label=lines[name] if style == "-" else None)
    label = "by your functions"
    for place in points:
        if points[place]:
            exposure.plot(points[place].keys(), points[place].values(), "o", color="white",
                          markeredgecolor=color_of("ift_simple"), markersize=8, label=label)
            label = None
    exposure.set(xscale="log", ylim=(0, 0.58), xlabel="training step", ylabel="share off the path",
                 title="how much is read\n(solid: mazes, dotted: corridor)")
    exposure.set_xticks([1, 10, len(share)], ["1", "10", str(len(share))])
    exposure.minorticks_off()
    exposure.legend(frameon=False, fontsize=9, loc="upper right")
    plot.clean(exposure)

    worth.axvline(0, color=SFT, linewidth=1, linestyle=":")
    rows = [name for name in lines if name != "sft"]
    for y, name in enumerate(rows):
        for place, marker, shift in zip(shares, "so", (-0.13, 0.13), strict=True):
            mean, half = gain(place, name)
            face = color_of(name) if marker == "s" else "white"
            worth.errorbar(mean, y + shift, xerr=half, fmt=marker, color=color_of(name),
                           linewidth=2.2, markersize=7, markerfacecolor=face)
    worth.set_yticks(range(len(rows)), [lines[name] for name in rows], fontsize=9)
    worth.set(ylim=(len(rows) - 0.5, -0.6), xlabel="right actions beside the path, minus SFT's →",
              title="what it is worth\n(squares: mazes, circles: corridor)")
    plot.clean_rows(worth)
    return figure


def labels_on_map(axes, lake, off, actions):
    """A map with its demonstration, what is read off the path, off (T, S), and the labels there."""
    ground(axes, lake.rows)
    columns, total = len(lake.rows[0]), off.sum(0)
    cells = [s for s, _ in lake.best] + ["".join(lake.rows).index("G")]
    axes.plot([s % columns for s in cells], [s // columns for s in cells], color="black",
              linewidth=2.2)
    for s in (total > 1e-9).nonzero()[:, 0].tolist():
        square(axes, s, columns, facecolor=color_of("ift_simple"), linewidth=0,
               alpha=0.2 + 0.6 * float(total[s] / total.max()))
        a = int(actions[int(off[:, s].argmax())])
        if lake.optimal[s].any():                   # no label is right or wrong in a hole
            dx, dy = (STEP[a] * 0.32).tolist()
            x, y = s % columns, s // columns
            axes.annotate("", (x + dx, y + dy), (x - dx, y - dy), arrowprops={
                "arrowstyle": "-|>,head_width=0.22,head_length=0.35", "linewidth": 1.8,
                "color": "black" if lake.optimal[s, a] else WRONG, "shrinkA": 0, "shrinkB": 0})


# ------------------------------------------------------------------------------------- 13: For real

PARTS = {"weights": "#4477aa", "gradients": "#ee6677", "optimizer": "#ccbb44",
         "activations": "#66ccee", "head": "#aa3377"}
CARDS = {24: "24 GB", 80: "80 GB", 140: "141 GB"}       # GiB, and as they are sold


def memory_bars(plans, marks, title):
    """What a training step holds, a bar per plan.

    plans   {row: {part: bytes}}
    marks   bytes that the reader predicts for the first rows
    title   which model, which load
    """
    gib = 2**30
    figure, axes = plt.subplots(figsize=(11, 4.4), layout="constrained")
    for size, card in CARDS.items():
        axes.plot([size, size], [-0.4, len(plans) - 0.5], ":", color="black", linewidth=1)
        axes.text(size, len(plans) - 0.45, f"{card} card", ha="center", va="top", fontsize=9.5)
    left = [0.0] * len(plans)
    for part, color in PARTS.items():
        sizes = [parts[part] / gib for parts in plans.values()]
        axes.barh(range(len(plans)), sizes, left=left, color=color, height=0.7)
        axes.text(left[0] + sizes[0] / 2, -0.42, part, color=color, ha="center", va="bottom",
                  fontsize=11, fontweight="bold")
        left = [a + b for a, b in zip(left, sizes, strict=True)]

    # The number of a row stands behind its bar, on white where it meets a card's line.
    for y, total in enumerate(left):
        axes.text(total + 3, y, f"{total:.0f}", va="center", fontsize=11, zorder=4,
                  bbox={"facecolor": "white", "linewidth": 0, "pad": 1})
    for y, mark in enumerate(marks):
        axes.plot([mark / gib] * 2, [y - 0.42, y + 0.42], color="black", linewidth=3, zorder=5)
        axes.text(mark / gib, y + 0.42, "yours", ha="center", va="top", fontsize=8)
    axes.set_yticks(range(len(plans)), list(plans))
    axes.set(ylim=(len(plans) - 0.1, -0.75), title=title,
             xlabel="GiB at the fullest moment of a training step")
    plot.clean(axes)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.grid(False, axis="y")
    return figure


# ---------------------------------------------------------------------------------------- 14: Yours

MINE = "#d62728"


def yours(results, goal):
    """What is won on disputed questions, and what is left on agreed ones.

    results   {method: [marks of every draw]}
    goal      right on disputed questions and on agreed ones, as the task wants it at least
    """
    figure, axes = plt.subplots(figsize=(7.5, 5.6), layout="constrained")
    axes.axvspan(goal[0], 1, ymin=goal[1], color="#e3f2e1", linewidth=0)
    axes.text(0.995, 0.975, "task", color="#3a7d34", ha="right", va="top", fontsize=11)
    for name, draws in results.items():
        color = MINE if name == "mine" else plot.color_of(name)
        won = [marks["right"] for marks in draws]
        left = [marks["agree"] for marks in draws]
        axes.plot(won, left, "o", color=color, alpha=0.45, markersize=6, markeredgewidth=0)
        middle = plot.average(won), plot.average(left)
        axes.plot(*middle, "o", color=color, markersize=12)
        words = {"base": "before training", "mine": "yours"}.get(name, name)
        axes.annotate(words, middle, xytext=(-14, 0), textcoords="offset points", color=color,
                      ha="right", va="center", fontsize=11, fontweight="bold")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="right on disputed questions →",
             ylabel="right on agreed questions ↑", title="30 % of the labels wrong")
    plot.clean(axes)
    return figure
