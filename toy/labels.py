"""When is IFT's label right? Mazes against a corridor, from the same kind of initial policy.

IFT gives a deviated state the demonstration's next action as its label. Where that is the right
action, reading the state should help; where it is wrong, it should harm.
"""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import tqdm

from minialign.lab.plot import save
from toy import plot
from toy.flags import Flags
from toy.lake import Lake
from toy.measure import ends, interval, measure, results_table, shown, spelled
from toy.rows import CONTROLS, IFTS, find_rows, train_row
from toy.world import prepare

SEEDS = 100
PLACES = (("maze", "noisy"), ("corridor", "random"))        # map and initial policy
ROWS = ("sft", *IFTS, *CONTROLS, "asft", "dpo", "orpo")
MEASURED = ("neighbour_accuracy", "mse_nearest", "success_noise_0.1", "mse", "success")


def run(flags: Flags) -> dict:
    flags = replace(flags, seeds=flags.seeds or SEEDS)
    found, gains, correct = {}, {}, {}
    for place, base in PLACES:
        found[place], correct[place] = one_place(flags, place, base)
        sft = found[place]["sft"]["neighbour_accuracy"]
        gains[place] = {}
        for name, measured in found[place].items():
            if name != "sft":
                gains[place][name] = measured["neighbour_accuracy"] - sft

    right = {place: f"{interval(share)[0]:.0%}" for place, share in correct.items()}
    maze, corridor = gains["maze"], gains["corridor"]
    print(f"In mazes IFT's open-loop label is right for {right['maze']} of the deviated states, "
          "and IFT (formula) changes the share of right actions beside the path by "
          f"{spelled(maze['ift_eq21'])}, right labels in the same place by "
          f"{spelled(maze['oracle labels'])}; in the corridor it is right for {right['corridor']}, "
          f"and IFT changes it by {spelled(corridor['ift_eq21'])}, noise knowing nothing of the "
          f"policy by {spelled(corridor['neighbour noise'])}.")
    print(f"picture: {draw(gains, right, flags.out)}")
    return found


def one_place(flags: Flags, place: str, base: str) -> tuple[dict, Tensor]:
    """One kind of lake: prints its table → every number, and label correctness per seed."""
    world = prepare(place, flags.all_seeds(), base=base)
    correct = label_correctness(world.singles)
    found, names = {}, {}
    for row in tqdm(find_rows(flags, *ROWS), place, leave=False):
        policy, off_path = train_row(world, row, **flags.training())
        found[row.name] = measure(world, policy, *MEASURED) | ends(off_path)
        names[row.name] = row.words
    print(f"{place}, {base} start, {flags.seeds} seeds from {flags.first_seed}, λ {flags.lam:g}; "
          f"IFT's label is right for {shown(correct)}of the deviated states")
    print(results_table(found, [*MEASURED, "off_path_first", "off_path_last"], names), "", sep="\n")
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


def draw(gains: dict[str, dict[str, Tensor]], right: dict[str, str], folder) -> Path:
    """What every row gains over SFT beside the path, in both places."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (place, gain) in zip(panels, gains.items(), strict=True):
        plot.seeds(axes, gain, line=0)
        axes.set_xlabel("gain over SFT in right actions beside the path →")
        axes.set_title(f"{place}: labels right {right[place]}", **plot.TITLE)
    return save(figure, folder, "lake_labels")
