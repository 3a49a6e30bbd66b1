"""Does SFT fall into the sub-optimal path where IFT finds the optimal one?

On a lake with a short road and a long one: both shown, in several shares; then the long one taught
first, and only the short one shown.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from minialign.lab.plot import clean, save
from minialign.stats import table
from toy import plot
from toy.flags import Flags
from toy.lake import Lake
from toy.policy import Table, trajectories
from toy.report import progress, shown, spelled
from toy.rows import IFTS, Row, find_rows, train_row, words
from toy.world import prepare

SEEDS = 40
SHARES = {"1:1": (1, 1), "1:2": (1, 2), "2:1": (2, 1)}      # optimal to sub-optimal demonstrations
CHECKPOINTS = (10, 20, 80)
DRAWN_STEPS = 31                                            # everything happens early


def run(flags: Flags) -> dict:
    shares, lake = mixed_demonstrations(flags)
    switch = unlearning(flags)
    sft, ift = (shown(shares[name]["1:1"]) for name in ("sft", "ift_eq21"))
    step = min(20, flags.steps)
    ahead = spelled(switch["ift_eq21"][step] - switch["sft"][step])
    print(f"Shown both paths equally often, SFT takes the optimal one with chance {sft}and IFT "
          f"(formula) with {ift}(data: 0.500). Unlearning the sub-optimal path, IFT (formula) is "
          f"{ahead} ahead of SFT after {step} steps (negative: behind).")
    print(f"picture: {draw(shares, switch, lake, flags.out)}")
    return {"shares": shares, "switch": {name: curve.T for name, curve in switch.items()}}


def mixed_demonstrations(flags: Flags) -> tuple[dict, Lake]:
    """Both roads shown: chance of the optimal first action, {row: {share: (N,)}}, and the lake."""
    world = prepare("two-path", flags.all_seeds())
    lake = world.singles[0]
    start, best = lake.best[0]
    steps = 4 * flags.steps
    rows = [Row("sft", "sft", "SFT, sum over the path", {"reduction": "seq_sum"}),
            Row("sft_mean", "sft", "SFT, mean over the path"), *find_rows(flags, *IFTS)]
    chance, lines = {}, []
    for row in progress(rows, "demonstrations"):
        chance[row.name] = {}
        for share, (good, bad) in SHARES.items():
            data = trajectories([[lake.best] * good + [lake.worse] * bad] * flags.seeds)
            policy, _ = train_row(world, row, data=data, **flags.training() | {"steps": steps})
            chance[row.name][share] = policy.probabilities()[:, start, best]
        lines.append([row.words, *map(shown, chance[row.name].values())])

    # What a policy that copies its data would do: by paths, and if each counts 1/length.
    copied, shortened = ["share of the demonstrations"], ["… each counted 1/length"]
    for good, bad in SHARES.values():
        copied.append(f"{good / (good + bad):.3f} ")
        good, bad = good / len(lake.best), bad / len(lake.worse)
        shortened.append(f"{good / (good + bad):.3f} ")
    print("optimal and sub-optimal demonstrations mixed: chance of the optimal first action after "
          f"{steps} steps, {flags.seeds} seeds from {flags.first_seed}")
    print(table(["optimal : sub-optimal", *SHARES], [*lines, copied, shortened]), "", sep="\n")
    return chance, lake


def unlearning(flags: Flags) -> dict[str, Tensor]:
    """The long road taught first: chance of the optimal first action, {row: (steps + 1, N)}."""
    world = prepare("two-path", flags.all_seeds(), base="suboptimal")
    start, best = world.singles[0].best[0]
    at = [step for step in CHECKPOINTS if step <= flags.steps]
    curves, lines = {}, []
    for row in progress(find_rows(flags, "sft", *IFTS), "switching"):
        chance: list[Tensor] = []

        def watch(_, policy: Table, chance=chance):
            chance.append(policy.probabilities()[:, start, best])

        train_row(world, row, watch=watch, **flags.training())
        curves[row.name] = torch.stack(chance)
        line = [row.words]
        for step in at:
            reference = None if row.name == "sft" else curves["sft"][step]
            line.append(shown(chance[step], reference, 1))
        lines.append(line)
    print("taught the sub-optimal path first, then shown only the optimal one: chance of the "
          "optimal first action")
    print(table(["steps", *map(str, at)], lines), "", sep="\n")
    return curves


def draw(shares: dict, switch: dict, lake: Lake, folder) -> Path:
    """The lake, what is made of mixed demonstrations, and how fast a wrong habit is unlearned."""
    figure, (first, middle, last) = plt.subplots(
        1, 3, figsize=(13.5, 3.9), width_ratios=(0.8, 1, 1.2), layout="constrained")
    plot.demonstrations(first, lake)

    for i, name in enumerate(("sft", "ift_eq21")):
        x = torch.arange(len(SHARES)) + 0.4 * (i - 0.5)
        chance = [shares[name][share].mean().item() for share in SHARES]
        middle.bar(x, chance, 0.36, color=plot.color_of(name), label=words(name))
    for k, (good, bad) in enumerate(SHARES.values()):
        share = good / (good + bad)
        middle.plot([k - 0.42, k + 0.42], [share, share], color="black", linewidth=1.5, zorder=3)
    middle.set_xticks(range(len(SHARES)), list(SHARES))
    middle.set(xlabel="optimal : sub-optimal demonstrations (line: their share)", ylim=(0, 1),
               ylabel="chance of the optimal first action")
    middle.legend(frameon=False, fontsize=9, loc="upper left")
    middle.set_title("Two paths shown", **plot.TITLE)
    clean(middle)

    early = {name: curve[:DRAWN_STEPS] for name, curve in switch.items()}
    plot.curves(last, torch.arange(len(early["sft"])), early)
    last.set(xlabel="training step", ylabel="chance of the optimal first action", ylim=(0, 1.02))
    last.set_title("A sub-optimal habit, then the optimal path", **plot.TITLE)
    return save(figure, folder, "lake_paths")
