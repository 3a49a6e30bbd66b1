"""What the DFT paper claims (arXiv 2502.18679), with the controls it lacks. Its Table 2 is in shootout.py, its u in exact.py."""

import math
from dataclasses import dataclass

import torch

from minialign.lab.arena import RECIPE, Run
from minialign.lab.studies import plots
from minialign.lab.studies.lab import (
    HOLDS,
    NOISY,
    NOT,
    OPEN,
    SMALL,
    Better,
    Difference,
    Findings,
    Lab,
    quick,
    rates,
    sft_and_control,
    tuned,
)
from minialign.lab.tasks import RIGHT_SHARE
from minialign.methods import METHODS


@dataclass
class FloorOnly(METHODS["dft"]):
    """DFT with u = (1−γ) · 1 + γ û at every visit: the floor that the first visit has, and no memory of other visits."""

    def update(self, index, log_mean):
        log_mean = log_mean.cpu()
        return torch.logaddexp(torch.full_like(log_mean, math.log1p(-self.gamma)), math.log(self.gamma) + log_mean)


@dataclass
class MemoryOnly(METHODS["dft"]):
    """DFT whose running average starts at u₀ = e⁻¹⁰ instead of 1: a memory without the floor."""

    def __post_init__(self):
        super().__post_init__()
        self.log_u.fill_(-10.0)


def likelihoods(lab: Lab) -> Findings:
    fixed = {name: Run(name) for name in ("dft", "dft2", "simpo", "spin")}
    best = tuned(lab, {name: fixed[name] for name in ("simpo", "spin")})
    data = lab.run(sft_and_control() | fixed | {f"{name} tuned": run for name, run in best.items()})
    still = {mark: [0.0] * len(lab.seeds) for mark in ("wanted_change", "negatives_change")}
    change = {name: Difference(data[name], still, "wanted_change")
              for name in ("dft", "simpo", "simpo tuned", "spin", "spin tuned")}
    short, pushed = (Difference(data["dft"], data["sft"], mark) for mark in ("wanted_change", "negatives_change"))
    falls = [name for name in best if change[name].below() and change[f"{name} tuned"].below()]
    if change["dft"].above() and pushed.below():
        verdict = HOLDS if len(falls) == 2 else "holds only for " + " and ".join(["DFT", *falls])
    else:
        verdict = NOT if change["dft"].below() or pushed.above() else OPEN
    sentence = (f"Under DFT the log-prob of the wanted answers changes by {change['dft']} nats, {short} against SFT, and that of "
                f"the model's own answers by {pushed} against SFT. The wanted ones change by {change['simpo']} under SimPO, by "
                f"{change['spin']} under SPIN; at their best learning rates ({rates(best)}) by {change['simpo tuned']} and "
                f"{change['spin tuned']}.")
    shown = {name: marks for name, marks in data.items() if name != "dft2"}         # it would hide under dft
    return Findings(data, verdict, sentence, lambda out: plots.curves(
        {"log-prob of the wanted answer (training) ↑": plots.of_training(shown, 3),
         "log-prob of the model's own answers ↓": plots.of_training(shown, 4)},
        f"Do the wanted answers stay up while the model's own go down?  (learning rate {RECIPE.lr:g}; tuned: {rates(best)})", out,
        "likelihoods", colors={"simpo tuned": "#cdb98c", "spin tuned": "#cc8fac"}))


def gamma(lab: Lab) -> Findings:
    runs = {f"γ {g:g}": Run("dft", {"gamma": g}, NOISY) for g in (0.5, 0.8, 0.9, 0.95, 1.0)}
    runs |= {"floor, no memory": Run(FloorOnly, {"gamma": 0.9}, NOISY),
             "memory, no floor": Run(MemoryOnly, {"gamma": 0.9}, NOISY)}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    gain, floor, memory = (Better(data[x], data["γ 1"]) for x in ("γ 0.9", "floor, no memory", "memory, no floor"))
    sentence = (f"γ = 0.9 against γ = 1: {gain}. A constant floor of 0.1 under u, without memory of other visits, gives "
                f"{floor.right} right over γ = 1; memory without that floor (u₀ = e⁻¹⁰) {memory.right}.")
    return Findings(data, gain.verdict, sentence, lambda out: plots.bars(
        {"": data}, "DFT, 30 % wrong labels: how much of u is the batch at hand (γ)?", out, "gamma",
        {"floor, no memory": "#56b4e9", "memory, no floor": "#56b4e9"}))


def negatives(lab: Lab) -> Findings:
    runs = {f"B {b}": Run("dft", noise=NOISY, persona="plain", **quick(negatives=b)) for b in (1, 2, 4, 8)}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    first, second = Difference(data["B 2"], data["B 1"], "right"), Difference(data["B 4"], data["B 2"], "right")
    rest = [Difference(data[b], data["sft"], "right") for b in ("B 1", "B 8")]
    if second.below():
        verdict = HOLDS if first.above() else "holds only from two negatives on"
    else:
        verdict = NOT if first.below() or (first.within(SMALL) and second.within(SMALL)) else OPEN
    sentence = (f"From one negative to two the right answers change by {first}, from two to four by {second}. DFT against SFT: "
                f"{rest[0]} with one negative, {rest[1]} with eight (the exact objective, with all answers as negatives, "
                "is SFT's at τ = 1).")
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        {"": data}, "DFT, 30 % wrong labels: how many negatives per prompt (B)?", out, "negatives"))


def temperature(lab: Lab) -> Findings:
    temperatures, personas = (0.0, 0.3, 0.7, 1.0), {"bad": "troll", "plain": "plain"}
    data = lab.run(sft_and_control(noise=NOISY) | {f"{name} T {t:g}": Run("dft", noise=NOISY, persona=persona, temperature=t)
                                                   for name, persona in personas.items() for t in temperatures})
    gains = {name: {t: Difference(data[f"{name} T 0.7"], data[f"{name} T {t:g}"], "right") for t in temperatures if t != 0.7}
             for name in personas}
    best = [name for name, gain in gains.items() if all(d.above() for d in gain.values())]
    rest = [d for gain in gains.values() for d in gain.values()]
    verdict = HOLDS if len(best) == 2 else f"holds only for the {best[0]} persona" if best else \
        NOT if all(d.within(SMALL) for d in rest) or any(d.below() for d in rest) else OPEN
    told = "; ".join(f"{name} persona " + ", ".join(f"{d} over T = {t:g}" for t, d in gain.items())
                     for name, gain in gains.items())
    return Findings(data, verdict, f"What T = 0.7 gains in right answers: {told}.", lambda out: plots.bars(
        {"": data}, "DFT, 30 % wrong labels: at which temperature to draw the negatives?", out, "temperature",
        {f"plain T {t:g}": "#56b4e9" for t in temperatures}))


def personas(lab: Lab) -> Findings:
    names = {"troll": "bad: troll", "plain": "plain", "sage": "good: sage"}
    data = lab.run(sft_and_control(noise=NOISY) | {f"{method}, {name}": Run(method, noise=NOISY, persona=persona)
                                                   for method in ("dft", "dft2") for persona, name in names.items()})
    plain, good = (Better(data["dft, bad: troll"], data[f"dft, {rival}"]) for rival in ("plain", "good: sage"))
    sage = Better(data["dft, good: sage"], data["dft, plain"])
    parts = [plain.right.above(), sage.right.below()]
    verdict = HOLDS if all(parts) else "holds only for the good persona's harm" if parts[1] else \
        "holds only against the plain persona" if parts[0] else NOT if plain.right.below() else OPEN
    sentence = (f"Negatives from the bad persona against plain ones: {plain}; against the good persona's: {good}. "
                f"The good persona is made to be right {RIGHT_SHARE['sage']:.0%} of the time; DFT with its answers as negatives "
                f"against SFT: {Better(data['dft, good: sage'], data['sft'])}.")
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        {"": data}, "30 % wrong labels: who should give the negatives?", out, "personas",
        {f"dft2, {name}": "#56b4e9" for name in names.values()}))


def tau(lab: Lab) -> Findings:
    grids = {"dft": (0.6, 0.8, 1.0, 1.2, 1.5), "dft2": (0.1, 0.2, 0.3, 0.5, 1.0)}
    papers = {"dft": (0.8, 1.0), "dft2": (0.1, 0.2, 0.3)}
    data = lab.run(sft_and_control(noise=NOISY) | {f"{method} τ {t:g}": Run(method, {"tau": t}, NOISY)
                                                   for method, taus in grids.items() for t in taus})
    told, beaten, matters = [], False, []
    for method, taus in grids.items():
        def right(t, method=method):
            return sum(data[f"{method} τ {t:g}"]["right"]) / len(lab.seeds)

        inside, outside = max(papers[method], key=right), max(set(taus) - set(papers[method]), key=right)
        gap = Better(data[f"{method} τ {outside:g}"], data[f"{method} τ {inside:g}"])
        beaten |= gap.right.more()
        span = max(map(right, taus)) - min(map(right, taus))
        matters += [method.upper()] * (span > SMALL)
        told.append(f"{method.upper()}, the best τ outside the paper's grid, {outside:g}, against the best in it, "
                    f"{inside:g}: {gap}; from τ {taus[0]:g} to {taus[-1]:g} right varies by {span:.3f}")
    verdict = NOT if beaten or not matters else HOLDS if len(matters) == 2 else \
        f"holds only for {matters[0]}; to the other form τ hardly matters"
    return Findings(data, verdict, ". ".join(told) + ".", lambda out: plots.bars(
        {"": data}, "30 % wrong labels: which temperature τ of the scores?", out, "tau",
        {f"dft2 τ {t:g}": "#56b4e9" for t in grids["dft2"]}))
