"""What are IFT's labels worth? Mazes against a corridor, from the same kind of initial policy.

IFT gives a deviated state the demonstration's next action as its label. Where that is the right
action, reading the state should help; where it is wrong, it should harm.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor
from tqdm import tqdm

from minialign.lab.plot import save
from toy import plot
from toy.flags import Flags
from toy.measure import interval, measure, read, results_table, spelled
from toy.rows import CONTROLS, IFTS, find_row, train_row, words
from toy.world import prepare

SEEDS = 100
PLACES, BASE = ("maze", "corridor"), "noisy"        # the maps, and the policy before alignment
ROWS = ("sft", *IFTS, *CONTROLS, "asft", "dpo", "orpo")
MEASURED = ("neighbour_accuracy", "mse_nearest", "success_noise_0.1", "mse", "success")
READ = ("off_path_first", "off_path_mean", "off_path_last", "labels_right")


def run(flags: Flags) -> dict:
    """Tables, sentences, a picture; returns what goes into the JSON file."""
    flags = replace(flags, seeds=flags.seeds or SEEDS)
    found, gains, said = {}, {}, []
    for place in PLACES:
        found[place] = one_place(flags, place)
        sft = found[place]["sft"]["neighbour_accuracy"]
        gains[place] = {}
        for name, measured in found[place].items():
            if name != "sft":
                gains[place][name] = measured["neighbour_accuracy"] - sft
        said.append(sentence(place, found[place]["ift_simple"], gains[place]))
    print("\n".join(said))
    print(f"picture: {draw(gains, flags.out)}")
    return found


def one_place(flags: Flags, place: str) -> dict[str, dict]:
    """One kind of lake: prints its table → every number."""
    world = prepare(place, flags.all_seeds(), base=BASE)
    found = {}
    for name in tqdm(ROWS, place, leave=False):
        row = find_row(name, flags.lam)
        policy, judged = train_row(world, row, steps=flags.steps, lr=flags.lr)
        found[name] = measure(world, policy, *MEASURED) | read(judged)
    print(f"{place}, {BASE} start, {flags.seeds} seeds from {flags.first_seed}, λ {flags.lam:g}")
    names = {name: words(name) for name in ROWS}
    print(results_table(found, [*MEASURED, *READ], names), "", sep="\n")
    return found


def sentence(place: str, simple: dict[str, Tensor], gains: dict[str, Tensor]) -> str:
    """What IFT read in this place, and what the rows gain over SFT beside the path."""
    off_path = simple["off_path_first"]
    share, right = interval(off_path)[0], interval(simple["labels_right"])[0]
    left = int((off_path > 0).sum())
    changes = ", ".join(f"{words(name)} {spelled(gain)}" for name, gain in gains.items())
    return (f"{place}: at first {share:.1%} of what IFT (simple sum) reads lies off the path (more "
            f"than nothing in {left} of {len(off_path)} seeds), and its labels there are right for "
            f"{right:.0%}. Right actions beside the path, minus SFT's: {changes}.")


def draw(gains: dict[str, dict[str, Tensor]], folder) -> Path:
    """What every row gains over SFT beside the path, in both places."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (place, gain) in zip(panels, gains.items(), strict=True):
        plot.seeds(axes, gain, line=0)
        axes.set_xlabel("gain over SFT in right actions beside the path →")
        axes.set_title(f"{place}, {BASE} start", **plot.TITLE)
    return save(figure, folder, "lake_labels")
