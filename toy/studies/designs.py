"""The multiverse: what the paper leaves open, in every combination.

How often is a method better or worse than SFT, and how often does the paper's own ordering appear?
"""

import itertools
import math
from pathlib import Path

import matplotlib.pyplot as plt

from minialign.lab.plot import save
from minialign.stats import table
from toy import plot
from toy.flags import Flags
from toy.metrics import METRICS, measure
from toy.report import interval, progress
from toy.rows import IFTS, find_rows, train_row, words
from toy.studies.dose import RATES, rate
from toy.world import join, prepare

SEEDS = 20
MAPS = ("4x4", "two-path", "corridor")
BASES = ("random", "noisy", "suboptimal")
SEES = ("cells", "coordinates")
STEPS = (25, 75, 150)
COMPARED = (*IFTS, "asft", "dpo", "orpo")
JUDGED = ("mse", "mse_parameters", "success_noise_0.1", "neighbour_accuracy")
ORDERED = ("mse", "mse_parameters")         # the metrics in which the paper's ordering is sought


def run(flags: Flags) -> dict:
    found = []
    for world in progress(itertools.product(MAPS, (False, True), SEES, RATES), "designs"):
        found += one_world(flags, *world)

    shares = {name: {metric: tally(found, name, metric) for metric in JUDGED} for name in COMPARED}
    lines = []
    for name, by_metric in shares.items():
        cells = [f"{better:.0%} / {worse:.0%}" for better, worse in by_metric.values()]
        lines.append([words(name), *cells])
    print(f"{len(found)} designs (map × ice × features × initial policy × optimizer × steps), "
          f"{flags.seeds} seeds each from {flags.first_seed}: share in which a method is "
          "better / worse than SFT")
    print(table(["", *(METRICS[metric].words for metric in JUDGED)], lines), "", sep="\n")

    said = {}
    for metric in ORDERED:
        count = sum(design["ordered"][metric] for design in found)
        said[metric] = count, wilson(count, len(found))
    print("The paper's result (in MSE: DPO first, IFT next, SFT and ORPO behind), by the means "
          f"alone, appears in {said['mse'][0]} of {len(found)} designs ({said['mse'][1]}); for the "
          f"MSE of the parameters in {said['mse_parameters'][0]} ({said['mse_parameters'][1]}).")
    print(f"picture: {draw(shares, len(found), flags.out)}")
    return {"designs": found}


def one_world(
    flags: Flags, map_name: str, slippery: bool, sees: str, optimizer: str
) -> list[dict]:
    """The designs of one lake, features and optimizer.

    The initial policies train side by side; the numbers of steps are stops on the way.
    """
    seeds = flags.all_seeds()
    world = join([prepare(map_name, seeds, slippery, base, sees=sees) for base in BASES])
    runs = {}
    for row in find_rows(flags, "sft", *COMPARED):
        runs[row.name] = stops = {}

        def watch(step, policy, stops=stops):
            if step in STEPS:
                stops[step] = measure(world, policy, *JUDGED)

        train_row(world, row, steps=max(STEPS), lr=rate(world, row, optimizer),
                  optimizer=optimizer, watch=watch)

    found = []
    for (b, base), steps in itertools.product(enumerate(BASES), STEPS):
        mine = slice(b * len(seeds), (b + 1) * len(seeds))
        now, gain = {}, {}
        for name, stops in runs.items():
            now[name] = {metric: x[mine] for metric, x in stops[steps].items()}
        for name in COMPARED:
            gain[name] = {}
            for metric in JUDGED:
                gain[name][metric] = interval(now[name][metric] - now["sft"][metric])
        right_order = {}
        for metric in ORDERED:
            means = {name: measured[metric].mean().item() for name, measured in now.items()}
            right_order[metric] = ordered(means)
        found.append({"map": map_name, "slippery": slippery, "sees": sees, "optimizer": optimizer,
                      "base": base, "steps": steps, "gain": gain, "ordered": right_order})
    return found


def ordered(mse: dict[str, float]) -> bool:
    """The paper's result: DPO < IFT (formula) < SFT, and IFT < ORPO."""
    return mse["dpo"] < mse["ift_eq21"] < min(mse["sft"], mse["orpo"])


def tally(found: list[dict], name: str, metric: str) -> tuple[float, float]:
    """Shares of the designs whose interval says that this method is better, and worse, than SFT."""
    good = METRICS[metric].good
    better = worse = 0
    for design in found:
        mean, half = design["gain"][name][metric]
        better += good * mean > half
        worse += -good * mean > half
    return better / len(found), worse / len(found)


def wilson(k: int, n: int) -> str:
    """95 % interval of a share, as text.

    Designs that share a lake are not independent: take it as a lower bound on the doubt.
    """
    p, z = k / n, 1.96
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return f"{max(middle - half, 0):.1%} to {min(middle + half, 1):.1%}"


def draw(shares: dict[str, dict], n_designs: int, folder) -> Path:
    """Per metric and method: in which share better (blue, right) or worse (red, left) than SFT."""
    blue, red = "#2166ac", "#d6604d"
    size = (3.2 * len(JUDGED) + 1, 3.3)
    figure, panels = plt.subplots(1, len(JUDGED), figsize=size, sharey=True, layout="constrained")
    for axes, metric in zip(panels, JUDGED, strict=True):
        for y, by_metric in enumerate(shares.values()):
            better, worse = by_metric[metric]
            axes.barh(y, better, color=blue)
            axes.barh(y, -worse, color=red)
            axes.text(better + 0.02, y, f"{better:.0%}", va="center", fontsize=8, color=blue)
            axes.text(-worse - 0.02, y, f"{worse:.0%}", va="center", ha="right", fontsize=8,
                      color=red)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlim=(-1.2, 1.2), xticks=[])
        plot.name_lines(axes, [words(name) for name in shares])
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(METRICS[metric].words, fontsize=10)
    figure.suptitle(f"Worse than SFT (red) or better (blue), share of {n_designs} designs",
                    x=0.01, ha="left", **plot.BOLD)
    return save(figure, folder, "lake_designs")
