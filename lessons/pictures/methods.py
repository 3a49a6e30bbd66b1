"""The pictures of lessons 05 to 07."""

import matplotlib.pyplot as plt
import torch

from lessons.pictures import lines
from minialign.lab import plot

SHADES = (0.35, 1.0, 0.6)       # of the three places: opening, fork, behind


# ----------------------------------------------------------------------------------- 06: Absolutely


def absolutely(runs, change, places, whose):
    """Log-probs of chosen and rejected answers with their pushes, and the change by place.

    runs    {method: one list per seed of (update, log-probs (3, 2), pushes (2,), P(neither))}
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
    axes.set(xlabel="change of the chosen answer's log-prob by place, nats (dots: in all, per seed)")
    plot.clean_rows(axes)
