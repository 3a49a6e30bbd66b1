"""What several pictures of the lake share: the map, a policy on it, walkers, seeds.

A colour belongs to a row of the table in every picture.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from torch import Tensor

from minialign.files import replacing
from minialign.lab import plot
from minialign.lab.plot import COLOR
from toy.lake import Lake
from toy.measure import interval
from toy.rows import words

OURS = {"ift_simple": "#8db600", "soft mix": "#b8860b",
        "neighbour noise": "#b2abd2", "oracle labels": "#5e3c99", "oracle soft": "#9970ab"}
HOLE, GOAL, WRONG = "#27496d", "#f4c430", "#d62728"
STEP = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])     # (x, y) of left, down, right, up
BOLD = {"fontsize": 11, "fontweight": "bold"}
TITLE = {"loc": "left", **BOLD}


def color_of(name: str) -> str:
    return plot.color_of(name, OURS)


# ------------------------------------------------------------------------------ on the map

def ground(axes, rows: tuple[str, ...]) -> None:
    """The bare map: holes dark, goal yellow, S and G written. State s lies at x = s % columns."""
    columns = len(rows[0])
    axes.set(xlim=(-0.53, columns - 0.47), ylim=(len(rows) - 0.47, -0.53))
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    for s, letter in enumerate("".join(rows)):
        face = {"H": HOLE, "G": GOAL}.get(letter, "white")
        square(axes, s, columns, facecolor=face, edgecolor="#bbbbbb", linewidth=0.8)
        if letter in "SG":
            axes.text(s % columns - 0.42, s // columns - 0.4, letter, ha="left", va="top",
                      fontsize=7, color="#555555")


def square(axes, s: int, columns: int, **how) -> None:
    corner = s % columns - 0.5, s // columns - 0.5
    axes.add_patch(plt.Rectangle(corner, 1, 1, **how))


def policy_map(axes, rows, probabilities, optimal, shade, color) -> None:
    """One policy: shade = chance to see the cell, arrow = likeliest action, red if not optimal."""
    ground(axes, rows)
    columns = len(rows[0])
    for s, letter in enumerate("".join(rows)):
        square(axes, s, columns, facecolor="black" if letter == "H" else color, linewidth=0,
               alpha=0.75 * min(max(float(shade[s]), 0.0), 1.0))
        if optimal[s].any():
            a = int(probabilities[s].argmax())
            dx, dy = (STEP[a] * 0.36 * float(probabilities[s, a])).tolist()
            x, y = s % columns, s // columns
            axes.annotate("", (x + dx, y + dy), (x - dx, y - dy), arrowprops={
                "arrowstyle": "-|>,head_width=0.22,head_length=0.35", "linewidth": 1.6,
                "color": "black" if optimal[s, a] else WRONG, "shrinkA": 0, "shrinkB": 0})


def demonstrations(axes, lake: Lake) -> None:
    """The bare map with the optimal trajectory and, dotted, the sub-optimal one."""
    ground(axes, lake.rows)
    columns = len(lake.rows[0])
    paths = (lake.worse, 0.07, ":", WRONG), (lake.best, -0.07, "-", "black")
    for path, shift, style, color in paths:
        last = int((lake.P[path[-1]] * ~lake.solvable).argmax())
        states = torch.tensor([s for s, _ in path] + [last])
        axes.plot(states % columns + shift, states // columns + shift, style, color=color,
                  linewidth=2.2)
    axes.set_title("optimal, and sub-optimal (dotted)", fontsize=9.5)


def walk(positions: Tensor, rows: tuple[str, ...], color: str, folder, name: str) -> Path:
    """A GIF of many walkers, one step per frame. `positions` (frames, walkers) are states."""
    columns, letters = len(rows[0]), "".join(rows)
    holes = torch.tensor([letter == "H" for letter in letters])
    goals = torch.tensor([letter == "G" for letter in letters])
    figure, axes = plt.subplots(figsize=(3.5, 3.5 * len(rows) / columns + 0.5))
    ground(axes, rows)
    (crowd,) = axes.plot([], [], "o", color=color, markersize=4, markeredgecolor="white",
                         markeredgewidth=0.4)

    # Every walker keeps to a spot of its own within the cell, so that one sees how many they are.
    generator = torch.Generator().manual_seed(0)
    spot = torch.rand(positions.shape[1], 2, generator=generator) * 0.7 - 0.35

    def draw(frame):
        at = positions[frame]
        crowd.set_data(at % columns + spot[:, 0], at // columns + spot[:, 1])
        axes.set_title(f"{int(goals[at].sum())} at the goal, {int(holes[at].sum())} drowned")

    path = Path(folder) / f"{name}.gif"
    with replacing(path) as unfinished:
        gif = unfinished.with_suffix(".gif")        # the writer knows the format by its ending
        FuncAnimation(figure, draw, len(positions)).save(gif, writer=PillowWriter(fps=4), dpi=80)
        gif.replace(unfinished)
    plt.close(figure)
    return path


# ------------------------------------------------------------------------------ over seeds

def seeds(axes, measured: dict[str, Tensor], line: float | None = None) -> None:
    """A line per row of the table: every dot a seed, the bar its mean and 95 % interval.

    `line`: where a dotted line marks what to compare with.
    """
    if line is not None:
        axes.axvline(line, color=COLOR["sft"], linewidth=0.9, linestyle=":")
    for y, (name, x) in enumerate(measured.items()):
        x = x[~x.isnan()]
        color = color_of(name)
        order = torch.arange(len(x)) * 7919 % max(len(x), 1)        # neighbouring seeds apart
        wiggle = 0.3 * torch.linspace(-1, 1, len(x))[order]
        axes.plot(x, y + wiggle, "o", color=color, alpha=0.25, markersize=3, markeredgewidth=0)
        mean, half = interval(x)
        axes.errorbar(mean, y, xerr=half, fmt="|", color=color, markersize=13,
                      markeredgewidth=2.5, linewidth=2.5)
    axes.set_yticks(range(len(measured)), [words(name) for name in measured], fontsize=9)
    axes.set_ylim(len(measured) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
