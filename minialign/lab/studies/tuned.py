"""The settings at which methods compete in the studies: what they may choose from, and the choice.

Each method has a grid of hyper-parameters, its own paper's where that paper or the DFT paper (§A.2)
gives one, and the learning rates in RATES. The choice is made once, for all studies and all seeds
that they are judged on, by the share of right answers on development seeds of its own:

    python -m minialign study methods --tune            # prints CHOSEN anew
"""

from dataclasses import replace
from itertools import product

from minialign.lab.arena import RECIPE, Run
from minialign.lab.race import CONDITIONS

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
SEEDS = (900, 901)          # no study is judged on these
FINALISTS = 2               # settings that run on all of SEEDS; the others are out after the first

# The kinds of data on which methods compete. With "pairs" the rejected answer is the one that is
# not the label; otherwise the negatives are the base model's own, drawn from its bad persona.
DATA = {
    "clean": Run("sft"),
    "noisy": Run("sft", noise=CONDITIONS["noisy"]),
    "pairs": Run("sft", persona=None),
    "noisy pairs": Run("sft", persona=None, noise=CONDITIONS["noisy"]),
}

# Of each grid the first setting is the one at which the learning rate is chosen.
# SimPO's margin is half its β in the DFT paper. KTO is balanced as that paper does it: one good
# answer counts as much as the bad ones together. DFT has fewer settings here than in its paper, so
# that it has no more to choose from than its rivals. ORPO's three weights are those of TRL, of the
# IFT paper and of ORPO's authors; of DPO-p the DFT paper says nothing.
SIMPO = [{"beta": float(beta), "gamma": beta / 2} for beta in (10, 6, 8, 12)]
DPO = [{"beta": beta} for beta in (0.1, 0.05, 0.01)]
BALANCED = {"lambda_d": float(RECIPE.negatives)}
GRIDS = {
    "sft": [{}],
    "dft": [{"tau": 1.0, "gamma": gamma} for gamma in (0.85, 0.8, 0.9, 0.95)],
    "dft2": [{"tau": tau, "gamma": 0.9} for tau in (0.3, 0.1, 0.2, 0.4)],
    "ift": [{"lam": 0.2}, {"lam": 0.5}, {"lam": 0.2, "gamma": 0.0}],
    "asft": [{"lam": lam} for lam in (0.1, 0.2, 0.5)],
    "dpo": DPO,
    "spin": DPO,
    "simpo": SIMPO,
    "simpo_sft": [{**hyper, "sft_weight": 1.0} for hyper in SIMPO],
    "kto": [{**hyper, **BALANCED} for hyper in DPO],
    "orpo": [{"lam": lam} for lam in (0.1, 0.25, 1.0)],
    "dpop": [{"beta": beta, "lam": lam} for beta, lam in product((0.3, 0.1), (50.0, 5.0))],
    "sft → dpo": DPO,
    "sft → simpo": SIMPO,
    "sft → kto": DPO,
}

ALONE = ("sft", "dft", "dft2", "ift", "simpo", "simpo_sft", "spin", "kto", "orpo", "dpop")
FIELDS = {              # who competes on which data
    "clean": (*ALONE, "sft → dpo", "sft → simpo"),
    "noisy": (*ALONE, "sft → dpo", "sft → simpo"),
    "pairs": ("asft", "dpo", "orpo", "sft → dpo", "sft → simpo", "sft → kto"),
    "noisy pairs": ("sft → dpo", "sft → simpo", "sft → kto"),
}

# {data: {method: (hyper-parameters, learning rate)}}
CHOSEN: dict[str, dict[str, tuple[dict, float]]] = {
    "clean": {
        "sft": ({}, 5e-4),
        "dft": ({"tau": 1.0, "gamma": 0.9}, 1e-3),
        "dft2": ({"tau": 0.3, "gamma": 0.9}, 2e-3),
        "ift": ({"lam": 0.2}, 2e-3),
        "simpo": ({"beta": 12.0, "gamma": 6.0}, 1e-4),
        "simpo_sft": ({"beta": 6.0, "gamma": 3.0, "sft_weight": 1.0}, 1e-3),
        "spin": ({"beta": 0.1}, 1e-4),
        "kto": ({"beta": 0.1, "lambda_d": 2.0}, 2e-3),
        "orpo": ({"lam": 1.0}, 5e-4),
        "dpop": ({"beta": 0.1, "lam": 5.0}, 1e-3),
        "sft → dpo": ({"beta": 0.1}, 2e-5),
        "sft → simpo": ({"beta": 12.0, "gamma": 6.0}, 2e-5),
    },
    "noisy": {
        "sft": ({}, 1e-4),
        "dft": ({"tau": 1.0, "gamma": 0.85}, 1e-3),
        "dft2": ({"tau": 0.4, "gamma": 0.9}, 2e-3),
        "ift": ({"lam": 0.2, "gamma": 0.0}, 1e-4),
        "simpo": ({"beta": 12.0, "gamma": 6.0}, 1e-4),
        "simpo_sft": ({"beta": 6.0, "gamma": 3.0, "sft_weight": 1.0}, 1e-4),
        "spin": ({"beta": 0.1}, 1e-4),
        "kto": ({"beta": 0.1, "lambda_d": 2.0}, 1e-3),
        "orpo": ({"lam": 1.0}, 1e-4),
        "dpop": ({"beta": 0.1, "lam": 5.0}, 1e-3),
        "sft → dpo": ({"beta": 0.1}, 5e-5),
        "sft → simpo": ({"beta": 12.0, "gamma": 6.0}, 5e-5),
    },
    "pairs": {
        "asft": ({"lam": 0.1}, 2e-3),
        "dpo": ({"beta": 0.1}, 5e-5),
        "orpo": ({"lam": 0.1}, 5e-4),
        "sft → dpo": ({"beta": 0.01}, 1e-5),
        "sft → simpo": ({"beta": 6.0, "gamma": 3.0}, 1e-5),
        "sft → kto": ({"beta": 0.05}, 1e-5),
    },
    "noisy pairs": {
        "sft → dpo": ({"beta": 0.1}, 5e-5),
        "sft → simpo": ({"beta": 12.0, "gamma": 6.0}, 1e-4),
        "sft → kto": ({"beta": 0.1}, 5e-5),
    },
}


def setting(data: str, name: str, hyper: dict, rate: float) -> Run:
    """A method, or "sft → METHOD" for one that starts where SFT ended, on one kind of data."""
    init, _, method = name.rpartition(" → ")
    recipe = replace(RECIPE, lr=rate)
    return replace(DATA[data], method=method, hyper=hyper, recipe=recipe, init=init or "base")


def at_best(data: str, name: str) -> Run:
    """The method at what was chosen for it; at its defaults if it has no grid."""
    hyper, rate = CHOSEN.get(data, {}).get(name, ({}, RECIPE.lr))
    return setting(data, name, hyper, rate)


def measure(lab, data: str, tries: list[tuple], seeds: tuple[int, ...], right: dict) -> None:
    """Add the right answers of these settings, summed over these seeds, to `right`.

    A setting is (method, place in its grid, learning rate).
    """
    runs = {(name, place, rate): setting(data, name, GRIDS[name][place], rate)
            for name, place, rate in tries}
    measured = lab.run(runs, seeds)
    for key in tries:
        right[key] = right.get(key, 0.0) + sum(measured[key]["right"])


def ranked(name: str, right: dict) -> list[tuple]:
    """The settings of a method that have been tried, the best first."""
    return sorted((key for key in right if key[0] == name), key=right.get, reverse=True)


def choose(lab) -> dict[str, dict[str, tuple[dict, float]]]:
    """CHOSEN, measured anew: for every method the setting that gives most right answers.

    First the learning rate, with the first hyper-parameters of the grid; then the others at that
    rate; at last the finalists on the other seeds, too.
    """
    chosen = {}
    for data, names in FIELDS.items():
        right, others = {}, []
        measure(lab, data, list(product(names, [0], RATES)), SEEDS[:1], right)
        for name in names:
            _, _, rate = ranked(name, right)[0]
            others += [(name, place, rate) for place in range(1, len(GRIDS[name]))]
        measure(lab, data, others, SEEDS[:1], right)

        finalists = {name: ranked(name, right)[:FINALISTS] for name in names}
        measure(lab, data, [key for keys in finalists.values() for key in keys], SEEDS[1:], right)
        chosen[data] = {}
        for name in names:
            _, place, rate = max(finalists[name], key=right.get)
            chosen[data][name] = GRIDS[name][place], rate
    return chosen


def in_words(name: str, run: Run) -> str:
    """A setting in a sentence: "simpo (beta 10, gamma 5, lr 0.0002)"."""
    told = [f"{key} {value:g}" for key, value in run.hyper.items()]
    return f"{name} ({', '.join([*told, f'lr {run.recipe.lr:g}'])})"
