"""The comparison: every method from the same initial policies on the same lakes for as many steps, measured exactly.

Who gets what (as IFT section 5.3): SFT, IFT and the controls read the optimal trajectory. ASFT, DPO, ORPO and the other
pairwise methods get the sub-optimal one as rejected answer. DFT gets trajectories sampled from the initial policy, with their
exact log-probs.
"""

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from minialign import METHODS
from toy import lake as lakes_
from toy.lake import Lake
from toy.maps import BadRequest, find
from toy.policy import Data, Network, Table, coordinates, dice, log_prob, train, trajectories

DEFAULT = ("sft", "asft", "dft", "ift_eq21", "ift_simple", "ift", "dpo", "orpo")
CONTROLS = ("sft x3", "neighbour noise", "oracle labels")
METRICS = {                 # name in the JSON → head of the table's column
    "mse": "MSE",
    "mse_nearest": "MSE nearest",
    "mse_parameters": "MSE param.",
    "success": "success",
    "success_off_path": "from beside",
    "success_noise_0.1": "10 % noise",
    "neighbour_accuracy": "right beside",
    "states_visited": "cells seen",
}
TUNING = (0.3, 1.0, 3.0, 10.0)       # times --lr: the learning rates that each row may choose from, on other seeds
TUNING_SEEDS = 1_000_000    # added to the first seed: learning rates are chosen on seeds that no result is reported for
NOISY_LABELS, NOISE = 16, 0.75      # what the "noisy" initial policy has learnt from
TEACHING = {"noisy": 100, "suboptimal": 300, "optimum": 500}         # SFT steps that make these policies
NEGATIVES = 2               # trajectories that DFT reads per step, as in its paper's main runs


# ---------------------------------------------------------------------------------------------------- a row of the table

@dataclass(frozen=True)
class Recipe:
    """A row of the table: a method, what its policy reads, what data it gets, and how many times the steps."""

    name: str
    method: str                                     # in METHODS
    words: str                                      # how the table calls it
    hyper: dict = field(default_factory=dict)
    reads: str = "path"
    effort: int = 1

    def build(self, examples: int):
        """The method itself; the DFT family keeps a number per training example."""
        needs_table = "negatives" in METHODS[self.method].needs and hasattr(METHODS[self.method], "n_examples")
        return METHODS[self.method](**self.hyper, **({"n_examples": examples} if needs_table else {}))


def recipe(name: str, lam: float, gamma: float = 0.95, guess: str = "expected") -> Recipe:
    """The row called `name`: a method of METHODS, a variant of IFT, or a control."""
    special = {
        "ift": Recipe(name, "ift", "IFT, released weights", {"lam": lam, "gamma": gamma}, guess),
        "ift_simple": Recipe(name, "ift", "IFT, simple sum", {"lam": lam, "gamma": 0.0}, guess),
        "ift_eq21": Recipe(name, "ift_eq21", "IFT, formula", {"lam": lam}, guess),
        "sft x3": Recipe(name, "sft", "SFT, 3 × the steps", effort=3),
        "neighbour noise": Recipe(name, "sft", "neighbour noise", reads="uniform"),
        "oracle labels": Recipe(name, "sft", "oracle labels", {"reduction": "seq_sum"}, "oracle"),
    }
    return special.get(name) or Recipe(name, name, name.upper())


def choose(names: str) -> list[str]:
    """ "a,b,…" or "all" → names in the order of the table. BadRequest on a name that the lake cannot run."""
    able = {name: "kl" not in METHODS[name].needs for name in METHODS} | {"ift_simple": True}
    if names == "all":
        return [*DEFAULT, *(name for name in able if able[name] and name not in DEFAULT)]
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name in CONTROLS:
            raise BadRequest(f"--methods: {name} is a control and always runs; name methods only")
        if not able.get(name, False):
            why = "needs mismatched answers, which trajectories do not have" if name in able else "is no method"
            raise BadRequest(f"--methods: {name!r} {why}; choose from {', '.join(n for n in able if able[n])}, or all")
    if not chosen:
        raise BadRequest(f"--methods is empty; write names separated by commas, such as {','.join(DEFAULT)}, or all")
    return chosen


# ---------------------------------------------------------------------------------------------------- where everybody starts

@dataclass
class Setting:
    """N lakes, the initial policy of every seed, the optimal parameters, and the data. What all methods share."""

    seeds: list[int]
    singles: list[Lake]
    lakes: Lake                     # the same, stacked
    base: Table
    path: Data                      # the optimal trajectory
    pairs: Data                     # with the sub-optimal one as answer 1
    _kept: dict = field(default_factory=dict)

    def data(self, method: str, steps: int) -> Data:
        """What this method may see."""
        needs = METHODS[method].needs
        if "negatives" in needs:
            if ("pool", steps) not in self._kept:
                self._kept["pool", steps] = pool(self, NEGATIVES * steps)
            return self._kept["pool", steps]
        return self.pairs if set(needs) & {"rejected", "rewards"} else self.path

    def optimum(self) -> Table:
        """The same network from the same start, trained on the optimal action of every state: the paper's "optimal
        parameterised policy".
        """
        if "optimum" not in self._kept:
            self._kept["optimum"] = imitate(self.base, self.lakes, self.lakes.expert[:, None], TEACHING["optimum"])
        return self._kept["optimum"]


def prepare(map_name: str, seeds: list[int], slippery: bool = False, base: str = "random", frozen: float = 0.8,
            sees: str = "cells", kind=Network) -> Setting:
    """Lakes, initial policies and demonstrations of these seeds. Mazes: one per seed; any other map is the same for all."""
    if map_name == "maze":
        singles = [lakes_.make(find(map_name, seed, frozen), slippery) for seed in seeds]
    else:
        singles = [lakes_.make(find(map_name), slippery)] * len(seeds)
    lakes = lakes_.stack(singles)
    best, worse = [[lake.best] for lake in singles], [[lake.worse] for lake in singles]
    untrained = kind.fresh(seeds, coordinates(lakes) if sees == "coordinates" else None, lakes.ends.shape[-1])
    policy = initial(base, untrained, lakes, seeds, trajectories(worse))
    pairs = trajectories(best, worse)
    reached = torch.tensor([[[1.0]], [[0.0]]], dtype=torch.float64).expand(2, len(seeds), 1)
    pairs = Data(pairs.states, pairs.actions, pairs.mask, log_prob(policy, pairs), reached)
    return Setting(seeds, singles, lakes, policy, trajectories(best), pairs)


def join(settings: list[Setting]) -> Setting:
    """Settings on the same map side by side as one, so that they train as one tensor program."""
    def cat(parts: list[Data]) -> Data:
        return Data(*(None if getattr(parts[0], f.name) is None else torch.cat([getattr(x, f.name) for x in parts], 1)
                      for f in fields(Data) if f.name != "fresh"))

    bases = [setting.base for setting in settings]
    seen = None if bases[0].features is None else torch.cat([base.features for base in bases])
    base = type(bases[0])(seen, [torch.cat(same) for same in zip(*(base.parameters for base in bases), strict=True)])
    singles = [lake for setting in settings for lake in setting.singles]
    return Setting([seed for setting in settings for seed in setting.seeds], singles, lakes_.stack(singles), base,
                   cat([setting.path for setting in settings]), cat([setting.pairs for setting in settings]))


def initial(base: str, policy: Table, lakes: Lake, seeds: list[int], worse: Data) -> Table:
    """The policy before alignment.

    random: untrained. suboptimal: has learnt the sub-optimal trajectory. noisy: has learnt NOISY_LABELS labels for every state
    from an expert who picks a random action with chance NOISE; mostly right, never sure.
    """
    if base == "random":
        return policy
    if base == "suboptimal":
        return train(policy, lakes, worse, METHODS["sft"](), steps=TEACHING["suboptimal"], lr=0.01)[0]
    chance = dice(seeds, "labels", NOISY_LABELS, lakes.ends.shape[-1], 2)           # (N, labels, S, 2)
    labels = torch.where(chance[..., 0] < NOISE, (4 * chance[..., 1]).long(), lakes.expert[:, None])
    return imitate(policy, lakes, labels, TEACHING["noisy"])


def imitate(policy: Table, lakes: Lake, labels: Tensor, steps: int) -> Table:
    """SFT on some labels for every state (N, labels, S), wherever the goal can still be reached."""
    N, D, S = labels.shape
    every = torch.arange(S).expand(1, N, D, S)
    data = Data(every, labels[None], lakes.solvable[None, :, None].expand(1, N, D, S))
    return train(policy, lakes, data, METHODS["sft"](), steps=steps, lr=0.01)[0]


def pool(setting: Setting, size: int) -> Data:
    """DFT's negatives: `size` trajectories per seed, sampled from the initial policy before training starts and cut off at four
    times the length of the demonstration; NEGATIVES of them are read at each step, and none twice.
    """
    best = setting.path
    T = 4 * best.mask.shape[-1]
    walks = lakes_.sample(setting.lakes, setting.base.probabilities(), dice(setting.seeds, "negatives", size, T, 2))
    wanted = [torch.nn.functional.pad(x, (0, T - x.shape[-1])) for x in (best.states, best.actions, best.mask)]
    sampled = [x.transpose(0, 1)[:, :, None] for x in walks]            # (size, N, 1, T)
    data = Data(*(torch.cat(pair) for pair in zip(wanted, sampled, strict=True)))
    return Data(data.states, data.actions, data.mask, log_prob(setting.base, data), fresh=NEGATIVES)


def fit(setting: Setting, row: Recipe, *, steps: int, lr: float, lam: float, optimizer: str = "adam",
        watch=None) -> tuple[Table, Tensor]:
    """Train one row of the table for all seeds at once → its policies and the off-path share of what they read, (steps, N)."""
    steps = steps * row.effort
    data = setting.data(row.method, steps)
    method = row.build(len(setting.seeds) * data.states.shape[2])
    policy, off_path = train(setting.base, setting.lakes, data, method, steps=steps, lr=lr, optimizer=optimizer, reads=row.reads,
                             lam=lam, watch=watch)
    if not all(p.isfinite().all() for p in policy.parameters):
        raise FloatingPointError(f"{row.words} diverged at learning rate {lr:g}; give a smaller --lr")
    return policy, off_path


# ---------------------------------------------------------------------------------------------------- exact measurements

def measure(setting: Setting, policy: Table, *only: str) -> dict[str, Tensor]:
    """Every number of METRICS, or only the named ones, exactly, one per seed (N,)."""
    lakes, p = setting.lakes, policy.probabilities()
    counted = lakes.solvable.double()                                   # (N, S): where the goal can still be reached
    beside = lakes.neighbours.double()
    beside = beside / beside.sum(-1, keepdim=True)                      # 0/0 = nan where the path has no neighbours

    def mean(x: Tensor) -> Tensor:                                      # (N, S, 4) → (N,)
        return (x * counted[..., None]).sum((1, 2)) / (4 * counted.sum(-1))

    def nearest() -> Tensor:            # it spreads what p lacks evenly over the tied optimal actions and takes the rest to zero
        lacking = (p * ~lakes.optimal).sum(-1, keepdim=True)
        return mean(torch.where(lakes.optimal, lacking / lakes.optimal.sum(-1, keepdim=True), p) ** 2)

    def parameters() -> Tensor:
        pairs = zip(policy.parameters, setting.optimum().parameters, strict=True)
        return torch.cat([((x - y) ** 2).flatten(1) for x, y in pairs], -1).mean(-1)

    ways = {
        "mse": lambda: mean((p - setting.optimum().probabilities()) ** 2),
        "mse_nearest": nearest,
        "mse_parameters": parameters,
        "success": lambda: lakes_.success(lakes, p),
        "success_off_path": lambda: lakes_.success(lakes, p, beside),
        "success_noise_0.1": lambda: lakes_.success(lakes, p, noise=0.1),
        "neighbour_accuracy": lambda: (lakes.optimal.gather(-1, p.argmax(-1, keepdim=True))[..., 0] * beside).sum(-1),
        "states_visited": lambda: lakes_.seen(lakes, p).sum(-1),
    }
    return {name: ways[name]() for name in only or METRICS}


# ---------------------------------------------------------------------------------------------------- the comparison

@dataclass
class Result:
    """What one row of the table came to. `measured` holds one number per seed."""

    row: Recipe
    policy: Table
    measured: dict[str, Tensor]
    off_path: Tensor            # (steps, N)
    tuned_lr: float = math.nan
    tuned: dict[str, Tensor] = field(default_factory=dict)


def race(setting: Setting, names: list[str], args, progress=lambda rows: rows) -> dict[str, Result]:
    """The initial policy, every method and the controls, at one learning rate for all and at each one's own."""
    rows = [recipe(name, args.lam, args.gamma, args.guess) for name in [*names, *CONTROLS]]
    others = [TUNING_SEEDS + seed for seed in setting.seeds[:20]]
    tuning = prepare(args.map, others, args.slippery, args.base, kind=type(setting.base))
    how = {"steps": args.steps, "lam": args.lam, "optimizer": args.optimizer}
    start = Recipe("base", "sft", f"initial policy ({args.base})", effort=0)
    results = {"base": Result(start, setting.base, measure(setting, setting.base), torch.zeros(0, len(setting.seeds)))}
    for row in progress(rows):
        policy, off_path = fit(setting, row, lr=args.lr, **how)
        best = tune(tuning, row, [factor * args.lr for factor in TUNING], how)
        tuned = measure(setting, fit(setting, row, lr=best, **how)[0])
        results[row.name] = Result(row, policy, measure(setting, policy), off_path, best, tuned)
    return results


def tune(setting: Setting, row: Recipe, rates: list[float], how: dict) -> float:
    """The learning rate with the best success at 10 % noise; one that diverges is out."""
    metric, success = "success_noise_0.1", {}
    for lr in rates:
        try:
            success[lr] = measure(setting, fit(setting, row, lr=lr, **how)[0], metric)[metric].mean().item()
        except FloatingPointError:
            continue
    return max(success, key=success.get, default=rates[0])
