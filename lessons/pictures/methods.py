"""The pictures of lessons 05 to 07."""

import matplotlib.pyplot as plt
import torch

from lessons.pictures import lines
from minialign.lab import plot

SHADES = (0.35, 1.0, 0.6)       # of the three places: opening, fork, behind


# -------------------------------------------------------------------------------------- 05: Imitate

OF_KINDS = {"right": plot.COLOR["sft"], "wrong": "#b2182b", "half": "#ef8a62", "bare": "#8073ac"}


def imitate(runs, change, names, places, whose):
    """Log-probs of a good answer and three bad ones while SFT reads the good one alone.

    runs    {title: one list per seed of (update, {kind: log-prob by place (3,)})}
    change  points → {kind: change by place}
    names   {kind: an answer of that kind}
    whose   who computed SFT's weights
    """
    figure, grid = plt.subplots(2, len(runs), figsize=(13, 7.4), height_ratios=[1.7, 1],
                                layout="constrained")
    for column, (title, run) in zip(grid.T, runs.items(), strict=True):
        curves, bars = column
        steps, ends = [step for step, _ in run[0]], []
        for kind, name in names.items():
            values = [[float(logps[kind].sum()) for _, logps in points] for points in run]
            mean = lines(curves, steps, values, OF_KINDS[kind])
            ends.append((steps[-1], mean[-1], name, OF_KINDS[kind]))
        curves.set(xlim=(0, steps[-1]), xlabel="updates", title=title,
                   ylabel="log-prob of the answer, nats ↑")
        plot.clean(curves)
        plot.label_ends(curves, ends, size=9.5)
        bad_by_place(bars, [change(points) for points in run], names, places)
    grid[0, 0].text(0.97, 0.04, f"SFT's weights: {whose}", transform=grid[0, 0].transAxes,
                    fontsize=9, color="#555555", ha="right")
    return figure


def bad_by_place(axes, changes, names, places):
    """What three bad answers have won or lost at each place."""
    bad = [kind for kind in names if kind != "right"]
    for y, kind in enumerate(bad):
        mean = torch.stack([one[kind] for one in changes]).mean(0)          # (3,)
        ends = {True: 0.0, False: 0.0}              # where the bar has got to, right and left
        for place, shade, value in zip(places, SHADES, mean.tolist(), strict=True):
            axes.barh(y, value, left=ends[value > 0], height=0.55, alpha=shade,
                      color=OF_KINDS[kind], edgecolor="white", label=place if y == 0 else None)
            ends[value > 0] += value
    axes.axvline(0, color="#555555", linewidth=0.9)
    axes.set_yticks(range(len(bad)), bad)
    axes.invert_yaxis()
    axes.set_xlabel("change by place, nats (light: opening, dark: fork, middle: behind)")
    plot.clean_rows(axes)


# ----------------------------------------------------------------------------------- 06: Absolutely


def absolutely(runs, change, places, whose):
    """Log-probs of chosen and rejected answers with their pushes, and the change by place.

    runs    {method: one list per seed of (update, log-probs (3, 2), pushes (2,), P(3,))}
    change  points → (3,), of the chosen answer
    whose   the methods whose pushes are the reader's
    """
    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, len(runs), height_ratios=[2, 1])
    panels = [figure.add_subplot(grid[0, i]) for i in range(len(runs))]
    lowest = min(float(points[-1][1].sum(0).min()) for run in runs.values() for points in run)
    longest = max(float(point[2].abs().max()) for run in runs.values() for point in run[0])
    titles = {"sft": "SFT: up, for ever", "dpo": "DPO: down as hard as up, always",
              "asft": "ASFT: up for ever, down by the odds"}
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        absolutely_lines(axes, name, run, 0.2 * lowest / longest)
        axes.set(xlabel="updates", ylim=(1.12 * lowest, -0.2 * lowest))
        axes.set_title(titles[name], color=plot.COLOR[name])
        if name.upper() in whose:
            axes.text(0.03, 0.03, "trained with your function", transform=axes.transAxes,
                      color="#555555", fontsize=9)
    panels[0].set_ylabel("log-prob of the answer, nats ↑")
    change_by_place(figure.add_subplot(grid[1, :]), runs, change, places)
    return figure


def absolutely_lines(axes, name, run, scale):
    """One method's lines; an arrow is as long as the push, by one scale for all methods."""
    steps = [point[0] for point in run[0]]
    some = range(0, len(steps) - 1, max(1, len(steps) // 4))[:3]
    for a, (style, word) in enumerate((("-", "chosen"), ("--", "rejected"))):
        curves = [[float(point[1].sum(0)[a]) for point in points] for points in run]
        mean = lines(axes, steps, curves, plot.COLOR[name], style)
        axes.annotate(word, (steps[-1], mean[-1]), xytext=(-3, 7), ha="right", fontsize=11,
                      textcoords="offset points", color=plot.COLOR[name])
        for i in some:
            push = float(run[0][i][2][a])
            length = -scale * push
            if abs(push) > 0.004:
                axes.annotate("", (steps[i], mean[i] + length), (steps[i], mean[i]), arrowprops={
                    "arrowstyle": "-|>", "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0})
                axes.annotate(f"{push:+.2f}".replace("-", "−"), (steps[i], mean[i] + length),
                              xytext=(6, -6 if a else 6), textcoords="offset points",
                              fontsize=8.5, va="center")
    axes.set_xlim(-1, steps[-1])
    plot.clean(axes)


def change_by_place(axes, runs, change, places):
    """What the chosen answer has won or lost at each place: a bar per method, a dot per seed."""
    for y, (name, run) in enumerate(runs.items()):
        changes = torch.stack([change(points) for points in run])           # (seeds, 3)
        ends = {True: 0.0, False: 0.0}              # where the bar has got to, right and left
        for i, (place, shade) in enumerate(zip(places, SHADES, strict=True)):
            value = float(changes[:, i].mean())
            axes.barh(y, value, left=ends[value > 0], height=0.6, edgecolor="white",
                      color=plot.COLOR[name], alpha=shade)
            if abs(value) > 0.12:
                axes.text(ends[value > 0] + value / 2, y, place, ha="center", va="center",
                          fontsize=9, color="white" if shade == 1 else "black")
            ends[value > 0] += value
        axes.plot(changes.sum(1), [y] * len(run), "o", markersize=4.5, **plot.DOT)
    axes.axvline(0, color="#555555", linewidth=0.9)
    axes.set_yticks(range(len(runs)), [name.upper() for name in runs])
    axes.invert_yaxis()
    axes.set(xlabel="change of the chosen answer's log-prob by place, nats "
                    "(dots: in all, per seed)")
    plot.clean_rows(axes)


# --------------------------------------------------------------------------------- 07: Discriminate

SHADES_OF_DFT = {"SFT": plot.COLOR["sft"], "SFT, filtered": plot.COLOR["sft x3"],
                 "γ = 0.5": "#7fb8d9", "γ = 0.9": plot.COLOR["dft"], "γ = 1": "#00365a"}


def discriminate(runs, starts, after, whose):
    """log u and the chance of the right answer over the updates, and after many starts.

    runs    {name: (seeds, 2, updates)}: chance of the right answer, log u
    starts  chances of the right answer before, and after: {name: chances behind}
    whose   who computed DFT's pushes
    """
    figure, (left, middle, last) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for axes, part in ((left, 1), (middle, 0)):
        ends = []
        for name, run in runs.items():
            truth = part == 1 and name == "SFT"
            color = "black" if truth else SHADES_OF_DFT[name]
            curves = run[:, part].tolist()
            mean = lines(axes, list(range(run.shape[-1])), curves, color)
            ends.append((run.shape[-1] - 1, mean[-1], "truth" if truth else name, color))
        axes.set(xlim=(0, run.shape[-1] - 1), xlabel="updates")
        plot.label_ends(axes, ends, size=10)
    for name, chances in after.items():
        style = "o--" if name == "SFT, filtered" else "o-"
        last.plot(starts, chances, style, color=SHADES_OF_DFT[name], linewidth=2.4, markersize=4)
    plot.label_ends(last, [(starts[-1], chances[-1], name, SHADES_OF_DFT[name])
                           for name, chances in after.items()], size=10)

    left.set(title="Two answers are too few to know u …", ylabel="log u, mean of the examples")
    middle.set(title="… too small, so pushes down are too hard …",
               ylabel="chance of the right answer ↑")
    last.set(title="… good or bad, whatever the model said before", ylim=(-0.02, 1.04),
             ylabel="chance of the right answer after training ↑",
             xlabel="chance of the right answer before training")
    for axes in middle, last:
        axes.axhline(0.7, color="#b5483a", linewidth=1.2, linestyle=":")
    middle.text(0.98, 0.66, "share of right labels (dotted)", color="#b5483a", fontsize=9,
                ha="right", va="top", transform=middle.get_yaxis_transform())
    left.text(0.03, 0.04, f"DFT's pushes: {whose}", transform=left.transAxes, fontsize=9,
              color="#555555")
    for axes in left, middle, last:
        plot.clean(axes)
    return figure
