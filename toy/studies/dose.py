"""How much residual? λ from 0 to 1, three ways to sum, Adam against SGD, bad and good labels."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from minialign.lab.plot import save
from minialign.stats import table
from toy import plot
from toy.flags import Flags
from toy.metrics import measure
from toy.report import progress, shown, spelled
from toy.rows import IFTS, Row, find_row, train_row, words
from toy.studies.labels import PLACES
from toy.world import World, prepare

SEEDS = 40
DOSES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
RATES = {"adam": 0.01, "sgd": 2.0}


def run(flags: Flags) -> dict:
    found = {}
    for place, base in PLACES:
        world = prepare(place, flags.all_seeds(), base=base)
        for optimizer in progress(RATES, place):
            runs = every_dose(flags, world, optimizer)
            found[f"{place} {optimizer}"] = runs
            print(f"{place}, {optimizer}, lr {RATES[optimizer]:g}, {flags.seeds} seeds from "
                  f"{flags.first_seed}: share of right actions beside the path, by λ "
                  "(▲ ▼ against SFT: simple sum at λ = 0)")
            print(lines(runs), "", sep="\n")

    gains = []
    for where, runs in found.items():
        accuracy = runs["ift_simple"]["neighbour_accuracy"]
        gain = accuracy[DOSES.index(0.35)] - accuracy[0]
        gains.append(f"{spelled(gain)} ({where.replace(' ', ', ')})")
    print("λ = 0.35 in place of 0 (simple sum) changes the share of right actions beside the path "
          f"by {'; '.join(gains)}.")
    print(f"picture: {draw(found, flags.out)}")
    return found


def rate(world: World, row: Row, optimizer: str) -> float:
    """The learning rate of a study that runs both optimizers.

    A sum over the T(T+1)/2 pairs of steps must be divided by their number to be comparable to a
    mean; Adam does that by itself.
    """
    T = len(world.singles[0].best)
    pairs = T * (T + 1) / 2 if row.sums_pairs and optimizer == "sgd" else 1
    return RATES[optimizer] / pairs


def every_dose(flags: Flags, world: World, optimizer: str) -> dict[str, dict]:
    """Each of IFT's variants: right beside the path, and success, both (doses, N)."""
    found = {}
    for name in IFTS:
        accuracy, success = [], []
        for lam in DOSES:
            row = find_row(name, lam, flags.gamma, flags.guess)
            policy, _ = train_row(world, row, steps=flags.steps, lr=rate(world, row, optimizer),
                                  optimizer=optimizer)
            measured = measure(world, policy, "neighbour_accuracy", "success")
            accuracy.append(measured["neighbour_accuracy"])
            success.append(measured["success"])
        found[name] = {"lambda": DOSES, "neighbour_accuracy": torch.stack(accuracy),
                       "success": torch.stack(success)}
    return found


def lines(runs: dict[str, dict]) -> str:
    """The table of one place and optimizer."""
    sft = runs["ift_simple"]["neighbour_accuracy"][0]       # λ = 0 without propagation is SFT
    written = []
    for name, measured in runs.items():
        line = [words(name)]
        for i, x in enumerate(measured["neighbour_accuracy"]):
            is_sft = name == "ift_simple" and i == 0
            line.append(shown(x, None if is_sft else sft, 1))
        written.append([*line, shown(measured["success"][-1])])
    return table(["", *(f"{lam:g} " for lam in DOSES), "success at 1 "], written)


def draw(found: dict[str, dict], folder) -> Path:
    """Right actions beside the path against λ; one panel per place and optimizer."""
    size = (3.9 * len(found), 3.4)
    figure, panels = plt.subplots(1, len(found), figsize=size, sharey=True, layout="constrained")
    for axes, (where, runs) in zip(panels, found.items(), strict=True):
        accuracy: dict[str, Tensor] = {name: x["neighbour_accuracy"] for name, x in runs.items()}
        sft = accuracy["ift_simple"][0].nanmean()
        axes.axhline(sft, color=plot.color_of("sft"), linestyle=":", linewidth=1.2)
        legend = "lower right" if axes is panels[-1] else None
        plot.curves(axes, torch.tensor(DOSES), accuracy, legend)
        axes.set_title(where.replace(" ", ", "), **plot.TITLE)
        axes.set_xlabel("λ, share of the policy's own guess")
    panels[0].set_ylabel("right beside the path ↑   (dotted: SFT)")
    return save(figure, folder, "lake_lambda")
