"""The comparison: every method from the same policies on the same lakes for as many steps.

`run` is what `python -m toy` does: train every row of the table, measure it exactly, print, draw.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from minialign.lab.plot import save
from minialign.stats import table
from toy import lake, plot
from toy.flags import Flags
from toy.metrics import METRICS, measure
from toy.policy import Network, Table, dice
from toy.report import interval, progress, shown, spelled
from toy.rows import CONTROLS, Row, choose, find_rows, train_row
from toy.world import World, prepare

SEEDS = 40
TUNING = (0.3, 1.0, 3.0, 10.0)      # times --lr: the learning rates that each row may choose from
TUNING_SEEDS = 1_000_000    # added to the first seed: no result is reported for the seeds tuned on
JUDGE = "success_noise_0.1"         # the metric that chooses among them
TUNED = ("mse", "mse_nearest", "success_noise_0.1", "neighbour_accuracy")   # the second table's
COLUMNS = """\
MSE           mean squared difference of action probabilities to the optimal policy,
              a network trained on the optimal actions
MSE nearest   the same to the nearest optimal policy, where several actions are equally good
MSE param.    mean squared difference of the parameters to those of that network
success       exact chance to reach the goal from the start; "from beside": from a random
              neighbour of the path; "10 % noise": with every tenth action, on average,
              replaced by a random one
right beside  share of the path's neighbours where the likeliest action is optimal
cells seen    expected number of different cells in one walk"""


@dataclass
class Result:
    """What one row of the table came to. `measured` holds one number per seed."""

    row: Row
    policy: Table
    measured: dict[str, Tensor]
    off_path: Tensor            # (steps, N)
    tuned_lr: float = math.nan
    tuned: dict[str, Tensor] = field(default_factory=dict)


def run(flags: Flags) -> dict:
    """Tables, sentences, pictures; returns what goes into the JSON file."""
    names = choose(flags.methods)
    flags = replace(flags, seeds=flags.seeds or SEEDS)
    kind = Network if flags.policy == "network" else Table
    world = prepare(flags.map, flags.all_seeds(), flags.slippery, flags.base, kind=kind)
    print(f"{flags.map}{' slippery' if flags.slippery else ''}, initial policy {flags.base}, "
          f"{flags.policy}, λ {flags.lam:g}")
    results = train_all(world, names, flags)
    print(tables(results, flags), "", paper(results), sep="\n")
    if flags.episodes:
        print(played(world, results, flags.episodes))

    for path in pictures(world, results, flags):
        print(f"picture: {path}")
    found = {}
    for name, result in results.items():
        tuned = {f"tuned_{metric}": x for metric, x in result.tuned.items()}
        found[name] = result.measured | tuned
    return found


def train_all(world: World, names: list[str], flags: Flags) -> dict[str, Result]:
    """The initial policy, every method and the controls: at one learning rate, and at their own."""
    others = [TUNING_SEEDS + seed for seed in world.seeds[:20]]
    tuning = prepare(flags.map, others, flags.slippery, flags.base, kind=type(world.base))
    rates = [factor * flags.lr for factor in TUNING]
    start = Row("base", "sft", f"initial policy ({flags.base})", effort=0)
    nothing = torch.zeros(0, len(world.seeds))
    results = {"base": Result(start, world.base, measure(world, world.base), nothing)}
    for row in progress(find_rows(flags, *names, *CONTROLS), "methods"):
        policy, off_path = train_row(world, row, **flags.training())
        best = tune(tuning, row, rates, flags)
        tuned, _ = train_row(world, row, **flags.training() | {"lr": best})
        results[row.name] = Result(row, policy, measure(world, policy), off_path, best,
                                   measure(world, tuned))
    return results


def tune(world: World, row: Row, rates: list[float], flags: Flags) -> float:
    """The learning rate with the best success at 10 % noise; one that diverges is out."""
    success = {}
    for lr in rates:
        try:
            policy, _ = train_row(world, row, **flags.training() | {"lr": lr})
        except FloatingPointError:
            continue
        success[lr] = measure(world, policy, JUDGE)[JUDGE].mean().item()
    return max(success, key=success.get, default=rates[0])


# ------------------------------------------------------------------------------ words

def tables(results: dict[str, Result], flags: Flags) -> str:
    """The results as text: the fixed learning rate, then each row's own."""
    fixed, tuned = [], []
    for name, result in results.items():
        sft = results["sft"] if "sft" in results and name != "sft" else None
        line = cells(result.measured, sft.measured if sft else None, METRICS)
        fixed.append([result.row.words, *line])
        if result.tuned:
            line = cells(result.tuned, sft.tuned if sft else None, TUNED)
            tuned.append([result.row.words, f"{result.tuned_lr:g}", *line])
    heads = [f"{metric.head} " for metric in METRICS.values()]
    tuned_heads = [f"{METRICS[name].head} " for name in TUNED]
    return "\n".join([
        f"lr {flags.lr:g} for all, {flags.steps} {flags.optimizer} steps, {flags.seeds} seeds from "
        f"{flags.first_seed}",
        "mean ± 95 % interval; ▲ ▼ better or worse than SFT, paired by seed (≠ different)",
        table(["", *heads], fixed), "",
        "each row at its own learning rate: the best success at 10 % noise on 20 other seeds",
        table(["", "lr", *tuned_heads], tuned), "", COLUMNS])


def cells(measured: dict, reference: dict | None, metrics) -> list[str]:
    """The cells of one line, compared to those of the reference if there is one."""
    written = []
    for name in metrics:
        other = reference[name] if reference else None
        written.append(shown(measured[name], other, METRICS[name].good))
    return written


def paper(results: dict[str, Result]) -> str:
    """The paper's ordering, as measured: one sentence with its intervals."""
    if not {"sft", "dpo", "ift_eq21"} <= results.keys():
        return ("the paper's ordering (DPO and IFT closer to the optimal policy than SFT) needs "
                "the methods sft, dpo and ift_eq21")
    mse = {name: results[name].measured["mse"] for name in ("sft", "dpo", "ift_eq21")}
    ift, dpo = mse["ift_eq21"] - mse["sft"], mse["dpo"] - mse["sft"]
    certain = all(sum(interval(gain)) < 0 for gain in (ift, dpo))       # the upper ends
    return ("The paper reports DPO and IFT much closer to the optimal policy than SFT. "
            f"Here MSE(IFT, formula) − MSE(SFT) = {spelled(ift)} and MSE(DPO) − MSE(SFT) = "
            f"{spelled(dpo)}: it {'comes out' if certain else 'does not come out'}.")


def played(world: World, results: dict[str, Result], episodes: int) -> str:
    """The exact success at 10 % noise of the first seed against episodes in gymnasium."""
    worst = 0.0
    for i, result in enumerate(results.values()):
        exact = result.measured["success_noise_0.1"][0].item()
        policy = lake.with_noise(result.policy.probabilities()[0], 0.1)
        share = lake.play(world.singles[0], policy, episodes, seed=i) / episodes
        # The standard error of the share, with at least one episode of doubt.
        error = max(exact * (1 - exact) / episodes, 1 / episodes**2) ** 0.5
        worst = max(worst, abs(share - exact) / error)
    return (f"checked: {episodes} episodes per row at 10 % noise, seed {world.seeds[0]}, in "
            f"gymnasium's FrozenLake-v1; the largest of {len(results)} deviations from the exact "
            f"success is {worst:.1f} standard errors")


# ------------------------------------------------------------------------------ pictures

def pictures(world: World, results: dict[str, Result], flags: Flags) -> list[Path]:
    made = [draw_maps(world, results, flags), draw_seeds(results, flags),
            draw_exposure(results, flags)]
    return [*made, animate(world, results, flags)] if flags.animate else made


def draw_maps(world: World, results: dict[str, Result], flags: Flags) -> Path:
    """The demonstrations, then every policy: the mean over seeds, or a maze's first seed."""
    first = world.singles[0]
    same = all(one is first for one in world.singles)
    whose = f"mean of {len(world.seeds)} seeds" if same else f"the maze of seed {world.seeds[0]}"

    def one_of(x: Tensor) -> Tensor:
        return x.mean(0) if same else x[0]

    high = len(first.rows) / len(first.rows[0])
    figure, (bare, *panels) = plot.grid(len(results) + 1, 2.5, 2.4 * high + 0.7)
    plot.demonstrations(bare, first)
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        p = result.policy.probabilities()
        shade = one_of(lake.seen(world.lakes, p))
        rate = one_of(result.measured["success_noise_0.1"])
        plot.policy_map(axes, first.rows, one_of(p), first.optimal, shade, plot.color_of(name))
        axes.set_title(f"{result.row.words}\n{rate:.0%} reach G with 10 % noise", fontsize=9.5)
    figure.suptitle("Likeliest action: black is optimal, red is not. Shade: chance to see the cell "
                    f"({whose})", x=0.01, ha="left", **plot.BOLD)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return save(figure, flags.out, "lake_maps")


def draw_seeds(results: dict[str, Result], flags: Flags) -> Path:
    """One panel per metric, one line per row of the table, one dot per seed."""
    rows = {name: result.measured for name, result in results.items() if name != "base"}
    size = (2.6 * len(TUNED) + 1.6, 0.36 * len(rows) + 1.3)
    figure, panels = plt.subplots(1, len(TUNED), figsize=size, sharey=True)
    for axes, name in zip(panels, TUNED, strict=True):
        line = rows["sft"][name].nanmean() if "sft" in rows else None
        plot.seeds(axes, {row: measured[name] for row, measured in rows.items()}, line)
        metric = METRICS[name]
        axes.set_xlabel(f"{metric.words} →" if metric.good > 0 else f"← {metric.words}", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    figure.suptitle("Every dot a seed; bars: mean and 95 % interval; dotted: SFT "
                    f"({flags.map}, {flags.base} start)", x=0.01, ha="left", **plot.BOLD)
    figure.tight_layout()
    return save(figure, flags.out, "lake_dots")


def draw_exposure(results: dict[str, Result], flags: Flags) -> Path:
    """How much of what the policy reads lies off the demonstrated path, over training."""
    deviating = {}
    for name, result in results.items():
        if result.row.reads in (flags.guess, "uniform"):
            deviating[name] = result.off_path
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    plot.curves(axes, torch.arange(1, 1 + flags.steps), deviating)
    axes.set(xlabel="training step", ylabel="share of the input off the path", ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    said = ""
    guesses = []
    for name, off_path in deviating.items():
        if results[name].row.reads == flags.guess:
            guesses.append(off_path.mean(-1))
    if guesses:
        first, last = max(x[0] for x in guesses), max(x[-1] for x in guesses)
        said = f": {first:.0%} at first, {100 * last:.1g} % at the end"
    axes.set_title(f"IFT leaves the path{said}", **plot.TITLE)
    return save(figure, flags.out, "lake_exposure")


def animate(world: World, results: dict[str, Result], flags: Flags) -> Path:
    """Thirty walkers per policy on the first seed's lake, one step per frame."""
    first = world.singles[0]
    one, rolls = lake.stack([first]), dice(world.seeds[:1], "rollouts", 30, 5 * len(first.best), 2)
    walks = []
    for name, result in results.items():
        policy = lake.with_noise(result.policy.probabilities()[:1], 0.1)
        states, _, _ = lake.sample(one, policy, rolls)                  # (1, walkers, frames)
        walks.append({"words": result.row.words, "color": plot.color_of(name),
                      "positions": states[0].T})
    return plot.walk(walks, first.rows, flags.out, "lake_walk")
