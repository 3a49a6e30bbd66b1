"""What the DFT paper (arXiv 2502.18679) claims about its own ingredients, and the missing controls.

Its rivals are in rivals.py, its running average u in exact.py, its negatives in pools.py.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from minialign.lab import plot
from minialign.lab.arena import RECIPE, Run
from minialign.lab.plot import COLOR
from minialign.lab.race import Difference, of_training
from minialign.lab.studies.lab import (
    HOLDS,
    SMALL,
    TRAINED_FOR,
    Better,
    Findings,
    Lab,
    in_parts,
    more,
    sft_and_control,
    verdict,
)
from minialign.lab.studies.tuned import at_best, in_words
from minialign.lab.tasks import RIGHT_SHARE
from minialign.methods import METHODS

ALIKE = 0.25        # of SFT's change: two changes that differ by less are alike


@dataclass
class FloorOnly(METHODS["dft"]):
    """DFT with u = (1−γ) · 1 + γ û at every visit.

    It has the floor that the first visit gives to u, and no memory of other visits.
    """

    def update(self, index, log_mean):
        log_mean = log_mean.cpu()
        floor = torch.full_like(log_mean, math.log1p(-self.gamma))
        return torch.logaddexp(floor, math.log(self.gamma) + log_mean)


@dataclass
class MemoryOnly(METHODS["dft"]):
    """DFT whose running average starts at u₀ = e⁻¹⁰ instead of 1: a memory without the floor."""

    def __post_init__(self):
        super().__post_init__()
        self.log_u.fill_(-10.0)


def noisy_bars(data: dict, question: str, pale=()) -> partial:
    """The picture of a study that varies DFT; `pale` are the settings in the paler blue."""
    colors = {label: COLOR["dft"] for label in data if label not in COLOR}
    colors |= dict.fromkeys(pale, COLOR["dft2"])
    return partial(plot.answer_bars, {"": data}, question, colors)


def likelihoods(lab: Lab) -> Findings:
    best = {name: at_best("clean", name) for name in ("simpo", "spin")}
    data = lab.run(sft_and_control() | {"dft": Run("dft")} | best)
    still = {"wanted_change": [0.0] * len(lab.seeds)}
    change = {name: Difference(data[name], still, "wanted_change")
              for name in ("sft", "dft", "simpo", "spin")}
    short = Difference(data["dft"], data["sft"], "wanted_change")
    pushed = Difference(data["dft"], data["sft"], "negatives_change")
    margin = ALIKE * abs(change["sft"].mean)
    found = in_parts({
        "the wanted answers rise under DFT": verdict(change["dft"].above(), change["dft"].below()),
        "as under SFT": verdict(short.within(margin), short.below(-margin) or short.above(margin)),
        "the model's own answers fall, against SFT": verdict(pushed.below(), pushed.above()),
        "under SimPO the wanted ones fall": verdict(change["simpo"].below(),
                                                    change["simpo"].above()),
        "under SPIN too": verdict(change["spin"].below(), change["spin"].above()),
    })
    sentence = (
        f"The log-prob of the wanted answers changes by {change['sft']} nats under SFT and by "
        f"{change['dft']} under DFT ({short} against SFT; alike is what differs by less than "
        f"{ALIKE:.0%}); that of the model's own answers by {pushed} against SFT. The wanted ones "
        f"change by {change['simpo']} under {in_words('simpo', best['simpo'])} and by "
        f"{change['spin']} under {in_words('spin', best['spin'])}."
    )
    row = [
        ("", "log-prob of the wanted answer (training) ↑", of_training(data, 3)),
        ("", "log-prob of the model's own answers ↓", of_training(data, 4)),
    ]
    question = "Do the wanted answers stay up while the model's own go down?"
    tests = {f"wanted answers under {name}": change[name] for name in ("dft", "simpo", "spin")}
    tests |= {"wanted answers, dft over sft": short, "own answers, dft over sft": pushed}
    return Findings(data, found, sentence,
                    partial(plot.curves, [row], question, start=True), tests=tests)


def halfway(a: dict[str, list], b: dict[str, list]) -> dict[str, list]:
    """A setting whose right answers lie in the middle between those of two others."""
    return {"right": [(x + y) / 2 for x, y in zip(a["right"], b["right"], strict=True)]}


def gamma(lab: Lab) -> Findings:
    runs = {f"γ {g:g}": Run("dft", {"gamma": g}) for g in (0.8, 0.9, 0.95, 1.0)}
    controls = {
        "floor, no memory": Run(FloorOnly, {"gamma": 0.9}),
        "memory, no floor": Run(MemoryOnly, {"gamma": 0.9}),
    }
    data = lab.noisy(runs | controls)
    average_u, none = data["γ 0.9"], data["γ 1"]
    gain = Better(average_u, none)
    floor, memory = (Difference(data[name], none, "right") for name in controls)
    remembered = Difference(average_u, data["floor, no memory"], "right")
    most = Difference(data["floor, no memory"], halfway(average_u, none), "right")
    found = verdict(more(gain.right), gain.right.below() or gain.right.within(SMALL),
                    limit=TRAINED_FOR if gain.costly else "")
    if found.startswith(HOLDS) and most.above():
        found += ", and a floor without memory gives most of the gain"
    singles = ", ".join(f"{x:.2f}" for x in sorted(none["right"]))
    sentence = (
        f"γ = 0.9 against γ = 1: {gain}. A constant floor of 0.1 under u, without memory of other "
        f"visits, gives {floor} right over γ = 1, and γ = 0.9 {remembered} over it; memory without "
        f"that floor (u₀ = e⁻¹⁰) gives {memory} over γ = 1. The single seeds at γ = 1: {singles}."
    )
    question = "DFT, 30 % wrong labels: how much of u is the batch at hand (γ)?"
    tests = gain.tests("γ 0.9 over γ 1") | {"floor over half of the gain": most}
    return Findings(data, found, sentence, noisy_bars(data, question, pale=controls), tests=tests)


def negatives(lab: Lab) -> Findings:
    personas = {"bad": ("troll", (1, 2, 4)), "plain": ("plain", (1, 2, 4, 8))}
    runs = {}
    for name, (persona, numbers) in personas.items():
        for b in numbers:
            recipe = replace(RECIPE, negatives=b)
            runs[f"{name} B {b}"] = Run("dft", recipe=recipe, persona=persona)
    data = lab.noisy(runs)
    parts, tests = {}, {}
    for name in personas:
        for b, word in ((1, "one"), (4, "four")):
            d = Difference(data[f"{name} B 2"], data[f"{name} B {b}"], "right")
            fails = d.below() or d.within(SMALL)
            parts[f"two over {word}, {name} persona"] = verdict(d.above(), fails)
            tests[f"two over {word}, {name} persona"] = d
    told = ", ".join(f"{words} {d}" for words, d in tests.items())
    eight = Difference(data["plain B 8"], data["sft"], "right")
    sentence = (
        f"Right answers: {told}; DFT with eight negatives of the plain persona over SFT {eight} "
        "(the exact objective, with all answers as negatives, is SFT's at τ = 1)."
    )
    question = "DFT, 30 % wrong labels: how many negatives per prompt (B)?"
    pale = [label for label in runs if label.startswith("plain")]
    return Findings(data, in_parts(parts), sentence, noisy_bars(data, question, pale), tests=tests)


def temperature(lab: Lab) -> Findings:
    temperatures, personas = (0.0, 0.3, 0.7, 1.0), {"bad": "troll", "plain": "plain"}
    runs = {}
    for name, persona in personas.items():
        for t in temperatures:
            runs[f"{name} T {t:g}"] = Run("dft", persona=persona, temperature=t)
    data = lab.noisy(runs)

    parts, tests = {}, {}
    for name in personas:
        gain = {}
        for t in temperatures:
            if t != 0.7:
                d = Difference(data[f"{name} T 0.7"], data[f"{name} T {t:g}"], "right")
                gain[f"T 0.7 over {t:g}, {name} persona"] = d
        tests |= gain
        fails = all(d.within(SMALL) for d in gain.values()) or any(d.below() for d in gain.values())
        parts[f"{name} persona"] = verdict(all(d.above() for d in gain.values()), fails)
    told = ", ".join(f"{words} {d}" for words, d in tests.items())
    question = "DFT, 30 % wrong labels: at which temperature to draw the negatives?"
    pale = [label for label in runs if label.startswith("plain")]
    return Findings(data, in_parts(parts), f"Right answers: {told}.",
                    noisy_bars(data, question, pale), tests=tests)


def personas(lab: Lab) -> Findings:
    names = {"troll": "bad: troll", "plain": "plain", "sage": "good: sage"}
    data = lab.noisy({name: Run("dft", persona=who) for who, name in names.items()})
    bad, plain, good = (data[name] for name in names.values())
    best, worst = Better(bad, plain), Difference(good, plain, "right")
    against_sft = Better(good, data["sft"])
    found = in_parts({
        "the bad persona's are the best": best.verdict,
        "the good one's the worst": verdict(worst.below(), worst.above() or worst.within(SMALL)),
    })
    shares = ", ".join(f"{name} {RIGHT_SHARE[who]:.0%}" for who, name in names.items())
    sentence = (
        f"Negatives from the bad persona against plain ones: {best}; the good one's against plain "
        f"ones: {worst} right, against SFT: {against_sft}. How often each persona is right was "
        f"built into the base model ({shares}), and so, largely, was this outcome."
    )
    question = "30 % wrong labels: who should give the negatives?"
    tests = best.tests("bad over plain") | {"good over plain, right": worst}
    return Findings(data, found, sentence, noisy_bars(data, question), tests=tests)


def tau(lab: Lab) -> Findings:
    grids = {"dft": (1.0, (0.6, 1.5)), "dft2": (0.3, (0.1, 1.0))}    # the paper's τ, and others
    runs = {}
    for method, (best, others) in grids.items():
        runs |= {f"{method} τ {t:g}": Run(method, {"tau": t}) for t in sorted([best, *others])}
    data = lab.noisy(runs)

    parts, tests = {}, {}
    for method, (best, others) in grids.items():
        gain = {}
        for t in others:
            d = Difference(data[f"{method} τ {best:g}"], data[f"{method} τ {t:g}"], "right")
            gain[f"{method} τ {best:g} over {t:g}"] = d
        tests |= gain
        fails = all(d.within(SMALL) for d in gain.values()) or any(d.below() for d in gain.values())
        parts[f"{method.upper()} near {best:g}"] = verdict(
            all(d.above() for d in gain.values()), fails)
    told = ", ".join(f"{words} {d}" for words, d in tests.items())
    pale = [label for label in runs if label.startswith("dft2")]
    question = "30 % wrong labels: which temperature τ of the scores?"
    return Findings(data, in_parts(parts), f"Right answers: {told}.",
                    noisy_bars(data, question, pale), tests=tests)
