"""The rows of the table: which method, what its policy reads, how often. And their training.

Who gets what follows IFT section 5.3. SFT, IFT and the controls read the optimal trajectory; ASFT,
DPO, ORPO and the other pairwise methods get the sub-optimal one as the rejected answer; DFT gets
trajectories sampled from the initial policy, with their exact log-probs.
"""

from dataclasses import dataclass, field

from torch import Tensor

from minialign.methods import METHODS, Method, build_method
from toy.flags import Flags
from toy.policy import Table, train
from toy.world import World

DEFAULT = tuple(Flags.methods.split(","))
CONTROLS = ("soft mix", "sft x3", "neighbour noise", "oracle labels", "oracle soft")
IFTS = ("ift_eq21", "ift_simple", "ift")


@dataclass(frozen=True)
class Row:
    """A method of METHODS, or a variant of one, or a control."""

    name: str
    method: str                                     # in METHODS
    words: str                                      # how tables and pictures call it
    hyper: dict = field(default_factory=dict)
    reads: str = "path"                             # see policy.step
    lam: float = 0.0                                # the share of what it reads off the path
    oracle: bool = False                            # what it reads has the right labels
    effort: int = 1                                 # so many times the steps


def find_row(name: str, lam: float) -> Row:
    """The row called `name`. IFT reads the greedy guess, and "oracle labels" follows it.

    "soft mix" and "oracle soft" are the same pair with more exposure.
    """
    if name == "base":
        return Row(name, "sft", "initial policy", effort=0)
    if name == "ift":
        return Row(name, "ift", "IFT, released weights", {"lam": lam}, "greedy", lam)
    if name == "ift_simple":
        return Row(name, "ift", "IFT, simple sum", {"lam": lam, "gamma": 0.0}, "greedy", lam)
    if name == "ift_eq21":
        return Row(name, "ift_eq21", "IFT, formula", {"lam": lam}, "greedy", lam)
    if name == "soft mix":
        hyper = {"lam": lam, "gamma": 0.0}
        return Row(name, "ift", "simple sum, soft mix (ours)", hyper, "soft", lam)
    if name == "sft x3":
        return Row(name, "sft", "SFT, 3 × the steps", effort=3)
    if name == "neighbour noise":
        return Row(name, "sft", "neighbour noise", {}, "uniform", lam)
    if name == "oracle labels":
        return Row(name, "sft", "oracle labels", {"reduction": "seq_sum"}, "greedy", lam, True)
    if name == "oracle soft":
        hyper = {"reduction": "seq_sum"}
        return Row(name, "sft", "oracle labels, soft mix", hyper, "soft", lam, True)
    return Row(name, name, name.upper())


def words(name: str) -> str:
    return find_row(name, 0.0).words


def choose(names: str) -> list[str]:
    """ "a,b,…" or "all" → names in the order of the table."""
    # The lake has references at hand; a method that wants more prepared asks a language model.
    able = {name: METHODS[name].prepare_data is Method.prepare_data for name in METHODS}
    able["ift_simple"] = True
    if names == "all":
        others = [name for name in able if able[name] and name not in DEFAULT]
        return [*DEFAULT, *others]
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name in CONTROLS:
            raise ValueError(f"--methods: {name} is a control and always runs; name methods only")
        if not able.get(name, False):
            why = "is no method"
            if name in able:
                why = "needs mismatched answers, which trajectories do not have"
            choices = ", ".join(name for name in able if able[name])
            raise ValueError(f"--methods: {name!r} {why}; choose from {choices}, or all")
    if not chosen:
        raise ValueError("--methods is empty; write names separated by commas, "
                         f"such as {','.join(DEFAULT)}, or all")
    return chosen


def train_row(
    world: World, row: Row, *, steps: int, lr: float, optimizer: str = "adam"
) -> tuple[Table, Tensor]:
    """Train a row for all seeds at once, on what its method may see.

    → its policies, and what was `judged` of all that they read, (steps, 3, N).
    """
    steps = steps * row.effort
    data = world.data(METHODS[row.method].needs, steps)
    n_examples = data.states.shape[1] * data.states.shape[2]
    method = build_method(row.method, row.hyper, n_examples)
    policy, off_path = train(world.base, world.lakes, data, method, steps=steps, lr=lr,
                             optimizer=optimizer, reads=row.reads, lam=row.lam, oracle=row.oracle)
    if not all(p.isfinite().all() for p in policy.parameters):
        raise FloatingPointError(f"{row.words} diverged at learning rate {lr:g}; "
                                 "give a smaller --lr")
    return policy, off_path
