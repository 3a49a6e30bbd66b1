"""The comparison: every method from the same policies on the same lakes for as many steps.

`run` is what `python -m toy` does: train every row of the table, measure it exactly, print, draw.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from tqdm import tqdm

from minialign.lab.plot import save
from toy import lake, plot
from toy.flags import Flags
from toy.measure import MEANINGS, METRICS, interval, measure, read, results_table, spelled
from toy.policy import Table
from toy.rows import CONTROLS, IFTS, Row, choose, find_row, train_row, words
from toy.world import World, prepare

SEEDS = 40
TUNING = (0.3, 1.0, 3.0, 10.0)      # times --lr: the learning rates that each row may choose from
TUNING_SEEDS = 1_000_000    # added to the first seed: no result is reported for the seeds tuned on
JUDGE = "success_noise_0.1"         # the metric that chooses among them
TUNED = ("mse", "mse_nearest", "success_noise_0.1", "neighbour_accuracy")   # the second table's


@dataclass
class Result:
    """What one row of the table came to. `measured` and `tuned` hold one number per seed."""

    policy: Table
    measured: dict[str, Tensor]
    tuned_lr: float = math.nan
    tuned: dict[str, Tensor] = field(default_factory=dict)


def run(flags: Flags) -> dict:
    """Tables, sentences, pictures; returns what goes into the JSON file."""
    names = choose(flags.methods)
    flags = replace(flags, seeds=flags.seeds or SEEDS)
    world = prepare(flags.map, flags.all_seeds(), flags.slippery, flags.base)
    results = train_all(world, names, flags)
    slippery = " slippery" if flags.slippery else ""
    print(f"{flags.map}{slippery}, initial policy {flags.base}, λ {flags.lam:g}, {flags.steps} "
          f"steps of Adam, {flags.seeds} seeds from {flags.first_seed}")
    print(tables(results, flags.lr), "", paper(results), sep="\n")
    for path in (draw_maps(world, results, flags.out), draw_seeds(results, flags)):
        print(f"picture: {path}")
    found = {}
    for name, result in results.items():
        tuned = {f"tuned_{metric}": x for metric, x in result.tuned.items()}
        found[name] = result.measured | tuned
    return found


def train_all(world: World, names: list[str], flags: Flags) -> dict[str, Result]:
    """The initial policy, every method and the controls: at one learning rate, and at their own."""
    others = [TUNING_SEEDS + seed for seed in world.seeds[:20]]
    tuning = prepare(flags.map, others, flags.slippery, flags.base)
    rates = [factor * flags.lr for factor in TUNING]
    nothing = torch.full((1, 3, len(world.seeds)), math.nan)
    results = {"base": Result(world.base, measure(world, world.base) | read(nothing))}
    for name in tqdm([*names, *CONTROLS], "methods", leave=False):
        row = find_row(name, flags.lam)
        policy, judged = train_row(world, row, steps=flags.steps, lr=flags.lr)
        best = tune(tuning, row, rates, flags)
        tuned, _ = train_row(world, row, steps=flags.steps, lr=best)
        results[name] = Result(policy, measure(world, policy) | read(judged), best,
                               measure(world, tuned))
    return results


def tune(world: World, row: Row, rates: list[float], flags: Flags) -> float:
    """The learning rate with the best success at 10 % noise; one that diverges is out."""
    success = {}
    for lr in rates:
        try:
            policy, _ = train_row(world, row, steps=flags.steps, lr=lr)
        except FloatingPointError:
            continue
        success[lr] = measure(world, policy, JUDGE)[JUDGE].mean().item()
    return max(success, key=success.get, default=rates[0])


# ------------------------------------------------------------------------------ words

def tables(results: dict[str, Result], lr: float) -> str:
    """The results as text: one learning rate for all, then each row's own."""
    fixed, tuned, names, tuned_names = {}, {}, {}, {}
    for name, result in results.items():
        fixed[name], names[name] = result.measured, words(name)
        if result.tuned:
            tuned[name], tuned_names[name] = result.tuned, f"{words(name)}, {result.tuned_lr:g}"
    return "\n".join([
        f"learning rate {lr:g} for all; mean ± 95 % interval; ▲ ▼ better or worse than SFT, paired "
        "by seed (≠ different)",
        results_table(fixed, METRICS, names), "",
        "each row at its own learning rate: the best success at 10 % noise on 20 other seeds",
        results_table(tuned, TUNED, tuned_names), "", MEANINGS])


def paper(results: dict[str, Result]) -> str:
    """What the paper says of the distance to the optimal policy, as measured: one sentence."""
    if "sft" not in results:
        return "whether a method comes closer to the optimal policy than SFT needs the method sft"
    gains, closer = [], []
    for name in ("dpo", *IFTS):
        if name in results:
            gain = results[name].measured["mse"] - results["sft"].measured["mse"]
            gains.append(f"{words(name)} {spelled(gain)}")
            if sum(interval(gain)) < 0:         # the upper end
                closer.append(words(name))
    return ("The paper reports DPO and IFT much closer to the optimal policy than SFT. Here the "
            f"MSE differs from SFT's by: {'; '.join(gains)}. Surely closer: "
            f"{', '.join(closer) or 'none'}.")


# ------------------------------------------------------------------------------ pictures

def draw_maps(world: World, results: dict[str, Result], folder: str) -> Path:
    """The demonstrations, then every policy: the mean over seeds, or a maze's first seed."""
    first = world.singles[0]
    same = all(one is first for one in world.singles)
    whose = f"mean of {len(world.seeds)} seeds" if same else f"the maze of seed {world.seeds[0]}"

    def one_of(x: Tensor) -> Tensor:
        return x.mean(0) if same else x[0]

    high = len(first.rows) / len(first.rows[0])
    across, down = 5, -(-(len(results) + 1) // 5)
    size = (2.5 * across, (2.4 * high + 0.7) * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    bare, *panels = axes.flat
    plot.demonstrations(bare, first)
    for empty in panels[len(results) :]:
        empty.axis("off")
    for axes, (name, result) in zip(panels, results.items(), strict=False):
        p = result.policy.probabilities()
        shade = one_of(lake.seen(world.lakes, p))
        rate = one_of(result.measured["success_noise_0.1"])
        plot.policy_map(axes, first.rows, one_of(p), first.optimal, shade, plot.color_of(name))
        axes.set_title(f"{words(name)}\n{rate:.0%} reach G with 10 % noise", fontsize=9.5)
    figure.suptitle("Likeliest action: black is optimal, red is not. Shade: chance to see the cell "
                    f"({whose})", x=0.01, ha="left", **plot.BOLD)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return save(figure, folder, "lake_maps")


def draw_seeds(results: dict[str, Result], flags: Flags) -> Path:
    """One panel per metric, one line per row of the table, one dot per seed."""
    rows = {name: result.measured for name, result in results.items() if name != "base"}
    size = (2.6 * len(TUNED) + 1.6, 0.36 * len(rows) + 1.3)
    figure, panels = plt.subplots(1, len(TUNED), figsize=size, sharey=True)
    for axes, name in zip(panels, TUNED, strict=True):
        line = rows["sft"][name].nanmean() if "sft" in rows else None
        plot.seeds(axes, {row: measured[name] for row, measured in rows.items()}, line)
        metric = METRICS[name]
        axes.set_xlabel(f"{metric.head} →" if metric.good > 0 else f"← {metric.head}", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    figure.suptitle("Every dot a seed; bars: mean and 95 % interval; dotted: SFT "
                    f"({flags.map}, {flags.base} start)", x=0.01, ha="left", **plot.BOLD)
    figure.tight_layout()
    return save(figure, flags.out, "lake_dots")
