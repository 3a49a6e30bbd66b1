"""When is IFT's open-loop label right? Mazes against a corridor with every control, then a sweep.

IFT gives a deviated state the demonstration's next action as its label. Where that is the right
action, reading the state should help; where it is wrong, it should harm.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from minialign.lab.plot import clean, save
from minialign.stats import table
from toy import plot
from toy.flags import Flags
from toy.lake import Lake
from toy.metrics import METRICS, measure
from toy.report import interval, progress, shown, spelled
from toy.rows import IFTS, find_rows, train_row
from toy.world import prepare

SEEDS = 100
PLACES = (("maze", "noisy"), ("corridor", "random"))        # map and initial policy
ROWS = ("sft", "sft x3", *IFTS, "neighbour noise", "oracle labels", "asft", "dpo", "orpo")
GAINS = ("neighbour_accuracy", "mse_nearest", "success_noise_0.1")
DENSITIES = (0.9, 0.8, 0.7)         # share of frozen cells in the mazes of the sweep


def run(flags: Flags) -> dict:
    found, gains, correct = {}, {}, {}
    for place, base in PLACES:
        found[place], correct[place] = one_place(flags, place, base)
        sft = found[place]["sft"]["neighbour_accuracy"]
        gains[place] = {}
        for name, measured in found[place].items():
            gains[place][name] = measured["neighbour_accuracy"] - sft

    mazes = {}
    for frozen in progress(DENSITIES, "mazes"):
        mazes[f"{frozen:g}"] = sweep(flags, frozen)
    x = torch.cat([maze["label_correctness"] for maze in mazes.values()])
    y = torch.cat([maze["gain"] for maze in mazes.values()])
    r = correlation(x, y)

    right = {place: f"{interval(share)[0]:.0%}" for place, share in correct.items()}
    maze, corridor = gains["maze"], gains["corridor"]
    print(f"In mazes IFT's open-loop label is right for {right['maze']} of the deviated states, "
          "and IFT (formula) changes the share of right actions beside the path by "
          f"{spelled(maze['ift_eq21'])}, right labels in the same place by "
          f"{spelled(maze['oracle labels'])}; in the corridor it is right for {right['corridor']}, "
          f"and IFT changes it by {spelled(corridor['ift_eq21'])}, noise knowing nothing of the "
          f"policy by {spelled(corridor['neighbour noise'])}. Over {len(x)} mazes, gain and label "
          f"correctness correlate with r = {r[0]:.2f} [{r[1]:.2f}, {r[2]:.2f}].")
    print(f"picture: {draw(x, y, r, gains, right, flags.out)}")
    return found | {"sweep": mazes}


def one_place(flags: Flags, place: str, base: str) -> tuple[dict, Tensor]:
    """One kind of lake: prints its table → every number, and label correctness per seed."""
    world = prepare(place, flags.all_seeds(), base=base)
    correct = label_correctness(world.singles)
    found, lines = {}, []
    for row in progress(find_rows(flags, *ROWS), place):
        policy, off_path = train_row(world, row, **flags.training())
        measured = measure(world, policy, *GAINS, "mse", "success")
        ends = {"off_path_start": off_path[0], "off_path_end": off_path[-1]}
        found[row.name] = measured | ends

        line = [row.words]
        for name in GAINS:
            reference = None if row.name == "sft" else found["sft"][name]
            line.append(shown(measured[name], reference, METRICS[name].good))
        lines.append([*line, *(f"{interval(share)[0]:.4f}" for share in ends.values())])
    heads = ["", *(METRICS[name].head for name in GAINS), "off path: first", "last step"]
    print(f"{place}, {base} start, {flags.seeds} seeds from {flags.first_seed}, λ {flags.lam:g}; "
          f"IFT's label is right for {shown(correct)}of the deviated states")
    print(table(heads, lines), "", sep="\n")
    return found, correct


def label_correctness(lakes: list[Lake]) -> Tensor:
    """The share of deviated states to which IFT gives a right label; nan if nothing deviates.

    Counted over the states beside each demonstrated one to which an action in its predecessor
    could lead, if the goal can be reached from there. The label is right where the demonstration's
    next action is optimal too.
    """
    shares = []
    for lake in lakes:
        right = count = 0.0
        for (before, _), (here, action) in zip(lake.best, lake.best[1:], strict=False):
            chance = lake.P[before].sum(0) * lake.solvable              # (S,): each action once
            chance[here] = 0
            right += (chance * lake.optimal[:, action]).sum().item()
            count += chance.sum().item()
        shares.append(right / count if count else math.nan)
    return torch.tensor(shares, dtype=torch.float64)                    # (N,)


def sweep(flags: Flags, frozen: float) -> dict[str, Tensor]:
    """Label correctness and IFT's gain over SFT beside the path, one of each per maze."""
    world = prepare("maze", flags.all_seeds(), base="noisy", frozen=frozen)
    accuracy = []
    for row in find_rows(flags, "sft", "ift_eq21"):
        policy, _ = train_row(world, row, **flags.training())
        accuracy.append(measure(world, policy, "neighbour_accuracy")["neighbour_accuracy"])
    sft, ift = accuracy
    correct = label_correctness(world.singles)
    known = ~(correct + ift).isnan()
    return {"label_correctness": correct[known], "gain": (ift - sft)[known]}


def correlation(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Pearson's r and its 95 % interval (Fisher's transform); nan if nothing can correlate."""
    if len(x) < 4 or x.std() == 0 or y.std() == 0:
        return math.nan, math.nan, math.nan
    r = torch.corrcoef(torch.stack([x, y]))[0, 1].clamp(-1 + 1e-12, 1 - 1e-12).item()
    half = 1.96 / math.sqrt(len(x) - 3)
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def draw(x: Tensor, y: Tensor, r: tuple, gains: dict, right: dict[str, str], folder) -> Path:
    """Left: IFT's gain in every maze against how often its label is right. Right: all gains."""
    figure, (left, *panels) = plt.subplots(
        1, 3, figsize=(13, 4.2), width_ratios=(1.25, 1, 1), layout="constrained")
    left.axhline(0, color="#999999", linewidth=0.8)

    # A dot per maze; a little noise, as many mazes share a place.
    noise = torch.rand(len(x), 2, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    dx, dy = (0.024 * noise - 0.012).T
    left.plot(x + dx, y + dy, "o", color=plot.color_of("ift_eq21"), alpha=0.35, markersize=4,
              markeredgewidth=0)

    # The mean and its interval for every fifth of the mazes.
    edges = x.quantile(torch.linspace(0, 1, 6, dtype=x.dtype)) if len(x) else x
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (x >= low) & (x <= high)
        if inside.sum() > 2:
            mean, half = interval(y[inside])
            left.errorbar(x[inside].mean(), mean, yerr=half, fmt="o", color="#00694c",
                          markersize=7, linewidth=2)
    left.set(xlabel="share of deviated states whose label is right →",
             ylabel="IFT's gain over SFT beside the path ↑")
    left.set_title(f"a dot per maze: r = {r[0]:.2f} [{r[1]:.2f}, {r[2]:.2f}]", **plot.TITLE)
    clean(left)

    for axes, (place, gain) in zip(panels, gains.items(), strict=True):
        plot.seeds(axes, {name: x for name, x in gain.items() if name != "sft"}, line=0)
        axes.set_xlabel("gain over SFT beside the path →")
        axes.set_title(f"{place}: labels right {right[place]}", **plot.TITLE)
    return save(figure, folder, "lake_labels")
