"""The studies: one question each, answered by a table, one sentence with its intervals, and a picture.

The claims are IFT's (arXiv 2405.11870). No study decides beforehand how its sentence ends: the numbers fill it in.
"""

import math
import sys

import torch
from torch import Tensor
from tqdm import tqdm

from minialign.stats import table
from toy import plot
from toy.compare import Recipe, Setting, fit, join, measure, prepare, recipe
from toy.lake import Lake
from toy.policy import Table, train, trajectories
from toy.report import interval, shown, spelled

IFTS = ("ift_eq21", "ift_simple", "ift")
SEEDS = {"labels": 100, "paths": 40, "lambda": 40, "designs": 20}       # enough for the sentence, short enough to wait for


def seeds_of(args) -> list[int]:
    return list(range(args.first_seed, args.first_seed + args.seeds))


def bar(things, what: str):
    return tqdm(list(things), desc=what, file=sys.stderr, leave=False)


def recipes(args, *names: str) -> list[Recipe]:
    return [recipe(name, args.lam, args.gamma, args.guess) for name in names]


# ---------------------------------------------------------------------------------------------------- labels

LABEL_ROWS = ("sft", "sft x3", *IFTS, "neighbour noise", "oracle labels", "asft", "dpo", "orpo")
GAINS = {"neighbour_accuracy": "right beside", "mse_nearest": "MSE nearest", "success_noise_0.1": "10 % noise"}
DENSITIES = (0.9, 0.8, 0.7)     # share of frozen cells


def label_correctness(lake: Lake) -> float:
    """How often is the label right that IFT gives to a deviated state? The share of right ones; nan if nothing deviates.

    Counted over the states beside each demonstrated one to which an action in its predecessor could lead, if the goal can be
    reached from there: right where the demonstration's next action is optimal too.
    """
    right = count = 0.0
    for (before, _), (here, action) in zip(lake.best, lake.best[1:], strict=False):
        chance = lake.P[before].sum(0) * lake.solvable                  # (S,): each action once
        chance[here] = 0
        right += (chance * lake.optimal[:, action]).sum().item()
        count += chance.sum().item()
    return right / count if count else math.nan


def labels(args) -> dict:
    """When is the open-loop label right? Mazes against a corridor with every control, then a sweep over mazes."""
    found, gains, correct = {}, {}, {}
    for place, base in (("maze", "noisy"), ("corridor", "random")):
        found[place], gains[place], correct[place] = label_place(args, place, base)
    dots = {f"{frozen:g}": label_dots(args, frozen) for frozen in bar(DENSITIES, "mazes")}
    x, y = (torch.cat(both) for both in zip(*dots.values(), strict=True))
    r = correlation(x, y)
    beside = {place: {name: spelled(gain["neighbour_accuracy"]) for name, gain in by.items()} for place, by in gains.items()}
    maze, corridor = beside["maze"], beside["corridor"]
    right = {place: f"{interval(share)[0]:.0%}" for place, share in correct.items()}
    print(f"In mazes IFT's open-loop label is right for {right['maze']} of the deviated states, and IFT (formula) changes the "
          f"share of right actions beside the path by {maze['ift_eq21']}, right labels in the same place by "
          f"{maze['oracle labels']}; in the corridor it is right for {right['corridor']}, and IFT changes it by "
          f"{corridor['ift_eq21']}, noise knowing nothing of the policy by {corridor['neighbour noise']}. Over {len(x)} mazes, "
          f"gain and label correctness correlate with r = {r[0]:.2f} [{r[1]:.2f}, {r[2]:.2f}].")
    words = {name: recipe(name, args.lam).words for name in LABEL_ROWS}
    print(f"picture: {plot.labels(dots, r, gains, words, right, args.out)}")
    return found | {"sweep": {density: {"label_correctness": x, "gain": y} for density, (x, y) in dots.items()}}


def label_place(args, place: str, base: str) -> tuple[dict, dict, Tensor]:
    """One kind of lake: prints its table → every number, gains over SFT, label correctness per seed."""
    setting = prepare(place, seeds_of(args), base=base)
    correct = torch.tensor([label_correctness(lake) for lake in setting.singles], dtype=torch.float64)
    found, lines = {}, []
    metrics = (*GAINS, "mse", "success")
    for row in bar(recipes(args, *LABEL_ROWS), place):
        policy, off = fit(setting, row, steps=args.steps, lr=args.lr, lam=args.lam, optimizer=args.optimizer)
        found[row.name] = mine = measure(setting, policy, *metrics) | {"off_path_start": off[0], "off_path_end": off[-1]}
        reference = {} if row.name == "sft" else found["sft"]
        cells = [shown(mine[m], reference.get(m), -1 if m.startswith("mse") else 1) for m in GAINS]
        lines.append([row.words, *cells, *(f"{interval(mine[m])[0]:.4f}" for m in ("off_path_start", "off_path_end"))])
    print(f"{place}, {base} start, {args.seeds} seeds from {args.first_seed}, λ {args.lam:g}; IFT's label is right for "
          f"{shown(correct)}of the deviated states", table(["", *GAINS.values(), "off path: first", "last step"], lines), "",
          sep="\n")
    return found, {name: {m: x[m] - found["sft"][m] for m in GAINS} for name, x in found.items()}, correct


def label_dots(args, frozen: float) -> tuple[Tensor, Tensor]:
    """Mazes with this share of frozen cells → label correctness and IFT's gain over SFT beside the path, one per maze."""
    setting = prepare("maze", seeds_of(args), base="noisy", frozen=frozen)
    how = {"steps": args.steps, "lr": args.lr, "lam": args.lam, "optimizer": args.optimizer}
    metric = "neighbour_accuracy"
    sft, ift = (measure(setting, fit(setting, row, **how)[0], metric)[metric] for row in recipes(args, "sft", "ift_eq21"))
    correct = torch.tensor([label_correctness(lake) for lake in setting.singles], dtype=torch.float64)
    known = ~(correct + ift).isnan()
    return correct[known], (ift - sft)[known]


def correlation(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Pearson's r and its 95 % interval (Fisher's transform); nan if there is nothing to correlate."""
    if len(x) < 4 or x.std() == 0 or y.std() == 0:
        return math.nan, math.nan, math.nan
    r = torch.corrcoef(torch.stack([x, y]))[0, 1].clamp(-1 + 1e-12, 1 - 1e-12).item()
    half = 1.96 / math.sqrt(len(x) - 3)
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


# ---------------------------------------------------------------------------------------------------- paths

SHARES = {"1:1": (1, 1), "1:2": (1, 2), "2:1": (2, 1)}      # optimal to sub-optimal demonstrations
CHECKPOINTS = (10, 20, 80)


def paths(args) -> dict:
    """Does SFT fall into the sub-optimal path where IFT finds the optimal one? Mixed demonstrations, then a habit to unlearn."""
    shares, lake = mixed_demonstrations(args)
    switch = unlearning(args)
    half = [shown(shares[name]["1:1"]) for name in ("sft", "ift_eq21")]
    i = min(20, args.steps)
    ahead = spelled(switch["ift_eq21"][i] - switch["sft"][i])
    print(f"Shown both paths equally often, SFT takes the optimal one with chance {half[0]}and IFT (formula) with "
          f"{half[1]}(data: 0.500). Unlearning the sub-optimal path, IFT (formula) is {ahead} ahead of SFT after {i} steps "
          "(negative: behind).")
    words = {name: recipe(name, args.lam).words for name in switch}
    print(f"picture: {plot.paths(shares, switch, words, SHARES, lake, args.out)}")
    return {"shares": shares, "switch": {name: curve.T for name, curve in switch.items()}}


def mixed_demonstrations(args) -> tuple[dict, Lake]:
    """Chance of the optimal first action after training on both paths, {method: {ratio: (N,)}}, and the lake."""
    setting = prepare("two-path", seeds_of(args))
    lake = setting.singles[0]
    start, best = lake.best[0]
    rows = [Recipe("sft", "sft", "SFT, sum over the path", {"reduction": "seq_sum"}),
            Recipe("sft_mean", "sft", "SFT, mean over the path"), *recipes(args, *IFTS)]
    chance, lines, steps = {}, [], 4 * args.steps
    for row in bar(rows, "demonstrations"):
        chance[row.name] = {}
        for ratio, (good, bad) in SHARES.items():
            data = trajectories([[lake.best] * good + [lake.worse] * bad] * args.seeds)
            policy, _ = train(setting.base, setting.lakes, data, row.build(0), steps=steps, lr=args.lr, optimizer=args.optimizer,
                              reads=row.reads, lam=args.lam)
            chance[row.name][ratio] = policy.probabilities()[:, start, best]
        lines.append([row.words, *map(shown, chance[row.name].values())])
    short, long = len(lake.best), len(lake.worse)
    lines.append(["share of the demonstrations", *(f"{g / (g + b):.3f} " for g, b in SHARES.values())])
    lines.append(["… each counted 1/length", *(f"{g / short / (g / short + b / long):.3f} " for g, b in SHARES.values())])
    print(f"optimal and sub-optimal demonstrations mixed: chance of the optimal first action after {steps} steps, {args.seeds} "
          f"seeds from {args.first_seed}", table(["optimal : sub-optimal", *SHARES], lines), "", sep="\n")
    return chance, lake


def unlearning(args) -> dict[str, Tensor]:
    """Taught the sub-optimal path, then shown only the optimal one: chance of the optimal first action, (steps + 1, N)."""
    setting = prepare("two-path", seeds_of(args), base="suboptimal")
    start, best = setting.singles[0].best[0]
    curves, rows = {}, recipes(args, "sft", *IFTS)
    for row in bar(rows, "switching"):
        seen: list[Tensor] = []

        def watch(_, policy: Table, seen=seen):
            seen.append(policy.probabilities()[:, start, best])

        fit(setting, row, steps=args.steps, lr=args.lr, lam=args.lam, optimizer=args.optimizer, watch=watch)
        curves[row.name] = torch.stack(seen)
    at = [step for step in CHECKPOINTS if step <= args.steps]
    lines = []
    for row in rows:
        reference = None if row.name == "sft" else curves["sft"]
        lines.append([row.words, *(shown(curves[row.name][i], None if reference is None else reference[i], 1) for i in at)])
    print("taught the sub-optimal path first, then shown only the optimal one: chance of the optimal first action",
          table(["steps", *map(str, at)], lines), "", sep="\n")
    return curves


# ---------------------------------------------------------------------------------------------------- lambda

DOSES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
PLACES = (("maze", "noisy"), ("corridor", "random"))
RATES = {"adam": 0.01, "sgd": 2.0}


def rate(setting: Setting, row: Recipe, optimizer: str) -> float:
    """The studies' learning rate. Equation 21 sums T(T+1)/2 terms where the others take a mean: plain SGD must divide by that."""
    T = len(setting.singles[0].best)
    return RATES[optimizer] / (T * (T + 1) / 2 if optimizer == "sgd" and row.name == "ift_eq21" else 1)


def dose(args) -> dict:
    """How much residual? λ from 0 to 1, cumulative against simple sum, Adam against SGD, where labels are bad and where good."""
    found, curves = {}, {}
    words = {name: recipe(name, args.lam).words for name in IFTS}
    for place, base in PLACES:
        setting = prepare(place, seeds_of(args), base=base)
        for optimizer in bar(RATES, place):
            runs = {}
            for name in IFTS:
                runs[name] = []
                for lam in DOSES:
                    row = recipe(name, lam, args.gamma, args.guess)
                    lr = rate(setting, row, optimizer)
                    policy, _ = fit(setting, row, steps=args.steps, lr=lr, lam=lam, optimizer=optimizer)
                    runs[name].append(measure(setting, policy, "neighbour_accuracy", "success"))
            by = {name: torch.stack([run["neighbour_accuracy"] for run in runs[name]]) for name in IFTS}        # (doses, N)
            sft = by["ift_simple"][0]                               # λ = 0 without propagation is SFT
            lines = [[words[name], *(shown(x, None if x is sft else sft, 1) for x in by[name].unbind()),
                      shown(runs[name][-1]["success"])] for name in IFTS]
            print(f"{place}, {optimizer}, lr {RATES[optimizer]:g}, {args.seeds} seeds from {args.first_seed}: share of right "
                  "actions beside the path, by λ (▲ ▼ against SFT: simple sum at λ = 0)",
                  table(["", *(f"{lam:g} " for lam in DOSES), "success at 1 "], lines), "", sep="\n")
            curves[place, optimizer] = by
            found[f"{place} {optimizer}"] = {name: {"lambda": DOSES, "neighbour_accuracy": by[name], "success": torch.stack(
                [run["success"] for run in runs[name]])} for name in IFTS}
    gain = {where: by["ift_simple"][DOSES.index(0.35)] - by["ift_simple"][0] for where, by in curves.items()}
    print("λ = 0.35 in place of 0 (simple sum) changes the share of right actions beside the path by " + "; ".join(
        f"{spelled(x)} ({place}, {optimizer})" for (place, optimizer), x in gain.items()) + ".")
    print(f"picture: {plot.doses(curves, DOSES, words, args.out)}")
    return found


# ---------------------------------------------------------------------------------------------------- designs

MAPS, BASES, SEES = ("4x4", "two-path", "corridor"), ("random", "noisy", "suboptimal"), ("cells", "coordinates")
STEPS = (25, 75, 150)
COMPARED = (*IFTS, "asft", "dpo", "orpo")
JUDGED = {"mse": ("MSE", -1), "mse_parameters": ("MSE of parameters", -1), "success_noise_0.1": ("success at 10 % noise", 1),
          "neighbour_accuracy": ("right beside the path", 1)}


def designs(args) -> dict:
    """The multiverse: what the paper leaves open, in every combination. How often is a method better or worse than SFT?"""
    found = []
    worlds = [(m, slippery, sees, o) for m in MAPS for slippery in (False, True) for sees in SEES for o in RATES]
    for world in bar(worlds, "designs"):
        found += world_designs(args, *world)
    lines = []
    for name in COMPARED:
        shares = [tally(found, name, metric) for metric in JUDGED]
        lines.append([recipe(name, args.lam).words, *(f"{better:.0%} / {worse:.0%}" for better, worse in shares)])
    print(f"{len(found)} designs (map × ice × features × initial policy × optimizer × steps), {args.seeds} seeds each from "
          f"{args.first_seed}: share in which a method is better / worse than SFT",
          table(["", *(words for words, _ in JUDGED.values())], lines), "", sep="\n")
    count = {metric: sum(design["ordered"][metric] for design in found) for metric in ("mse", "mse_parameters")}
    share = {metric: wilson(k, len(found)) for metric, k in count.items()}
    print("The paper's result (in MSE: DPO first, IFT next, SFT and ORPO behind), by the means alone, appears in "
          f"{count['mse']} of {len(found)} designs ({share['mse']}); for the MSE of the parameters in {count['mse_parameters']} "
          f"({share['mse_parameters']}).")
    print(f"picture: {plot.designs(found, {name: recipe(name, args.lam).words for name in COMPARED}, JUDGED, tally, args.out)}")
    return {"designs": found}


def world_designs(args, map_name: str, slippery: bool, sees: str, optimizer: str) -> list[dict]:
    """The designs of one lake, features and optimizer: initial policies train side by side, the steps are stops on the way."""
    setting = join([prepare(map_name, seeds_of(args), slippery, base, sees=sees) for base in BASES])
    runs = {}
    for row in recipes(args, "sft", *COMPARED):
        runs[row.name] = stops = {}

        def watch(step, policy, stops=stops):
            if step in STEPS:
                stops[step] = measure(setting, policy, *JUDGED)

        fit(setting, row, steps=max(STEPS), lr=rate(setting, row, optimizer), lam=args.lam, optimizer=optimizer, watch=watch)
    found = []
    for b, base in enumerate(BASES):
        mine = slice(b * args.seeds, (b + 1) * args.seeds)
        for steps in STEPS:
            now = {name: {metric: stops[steps][metric][mine] for metric in JUDGED} for name, stops in runs.items()}
            gain = {name: {metric: interval(now[name][metric] - now["sft"][metric]) for metric in JUDGED} for name in COMPARED}
            means = {metric: {name: x[metric].mean().item() for name, x in now.items()} for metric in ("mse", "mse_parameters")}
            design = {"map": map_name, "slippery": slippery, "sees": sees, "optimizer": optimizer, "base": base, "steps": steps}
            found.append({**design, "gain": gain, "ordered": {metric: ordered(x) for metric, x in means.items()}})
    return found


def ordered(mse: dict[str, float]) -> bool:
    """The paper's result: DPO < IFT (formula) < SFT, and IFT < ORPO."""
    return mse["dpo"] < mse["ift_eq21"] < min(mse["sft"], mse["orpo"])


def tally(found: list[dict], name: str, metric: str) -> tuple[float, float]:
    """Shares of the designs whose 95 % interval says that this method is better, and worse, than SFT."""
    gains = [design["gain"][name][metric] for design in found]
    good = JUDGED[metric][1]
    return tuple(sum(sign * good * mean > half for mean, half in gains) / len(gains) for sign in (1, -1))


def wilson(k: int, n: int) -> str:
    """95 % interval of a share, as text. Designs that share a lake are not independent: take it as a lower bound on the doubt."""
    p, z = k / n, 1.96
    middle, half = (p + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return f"{max(middle - half, 0):.1%} to {min(middle + half, 1):.1%}"


STUDIES = {"labels": labels, "paths": paths, "lambda": dose, "designs": designs}
