"""What the DFT paper claims (arXiv 2502.18679), with the controls it lacks. Its u: exact.py."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch

from minialign.lab import plot
from minialign.lab.arena import RECIPE, Run
from minialign.lab.plot import COLOR, average
from minialign.lab.race import CONDITIONS, CONTROL, TITLES, Difference, of_training, tripled
from minialign.lab.studies.lab import (
    N_TUNING,
    RATES,
    SMALL,
    TRAINED_FOR,
    Better,
    Findings,
    Lab,
    by_condition,
    more,
    rates,
    sft_and_control,
    tuned,
    under_both,
    verdict,
)
from minialign.lab.tasks import RIGHT_SHARE
from minialign.methods import METHODS

# The methods of the paper's table 2, and ours. KTO is balanced as the paper does it: one good
# answer against as many bad ones as there are negatives.
RACERS = ("ift", "asft", "orpo", "dpop", "kto", "simpo", "simpo_sft", "spin", "dft", "dft2")
HYPER = {"kto": {"lambda_d": float(RECIPE.negatives)}}
TUNED = ("sft", "dft", "simpo_sft", "spin")


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
    fixed = {name: Run(name) for name in ("dft", "dft2", "simpo", "spin")}
    best = tuned(lab, {name: fixed[name] for name in ("simpo", "spin")})
    at_best = {f"{name} tuned": run for name, run in best.items()}
    data = lab.run(sft_and_control() | fixed | at_best)

    still = {"wanted_change": [0.0] * len(lab.seeds)}
    change = {}
    for name in ("dft", "simpo", "simpo tuned", "spin", "spin tuned"):
        change[name] = Difference(data[name], still, "wanted_change")
    short = Difference(data["dft"], data["sft"], "wanted_change")
    pushed = Difference(data["dft"], data["sft"], "negatives_change")
    falls = [name for name in best if change[name].below() and change[f"{name} tuned"].below()]
    found = verdict(
        change["dft"].above() and pushed.below(), change["dft"].below() or pushed.above(),
        limit="" if len(falls) == 2 else "for " + " and ".join(["DFT", *falls]),
    )
    sentence = (
        f"Under DFT the log-prob of the wanted answers changes by {change['dft']} nats, {short} "
        f"against SFT, and that of the model's own answers by {pushed} against SFT. The wanted "
        f"ones change by {change['simpo']} under SimPO, by {change['spin']} under SPIN; at their "
        f"best learning rates ({rates(best)}) by {change['simpo tuned']} and "
        f"{change['spin tuned']}."
    )
    shown = {name: marks for name, marks in data.items() if name != "dft2"}     # hidden by dft
    row = [
        ("", "log-prob of the wanted answer (training) ↑", of_training(shown, 3)),
        ("", "log-prob of the model's own answers ↓", of_training(shown, 4)),
    ]
    question = ("Do the wanted answers stay up while the model's own go down?  "
                f"(learning rate {RECIPE.lr:g}; tuned: {rates(best)})")
    colors = {"simpo tuned": "#cdb98c", "spin tuned": "#cc8fac"}
    return Findings(data, found, sentence,
                    partial(plot.curves, [row], question, colors, start=True))


def gamma(lab: Lab) -> Findings:
    runs = {f"γ {g:g}": Run("dft", {"gamma": g}) for g in (0.5, 0.8, 0.9, 0.95, 1.0)}
    controls = {
        "floor, no memory": Run(FloorOnly, {"gamma": 0.9}),
        "memory, no floor": Run(MemoryOnly, {"gamma": 0.9}),
    }
    data = lab.noisy(runs | controls)
    gain = Better(data["γ 0.9"], data["γ 1"])
    floor, memory = (Difference(data[name], data["γ 1"], "right") for name in controls)
    sentence = (
        f"γ = 0.9 against γ = 1: {gain}. A constant floor of 0.1 under u, without memory of other "
        f"visits, gives {floor} right over γ = 1; memory without that floor (u₀ = e⁻¹⁰) {memory}."
    )
    question = "DFT, 30 % wrong labels: how much of u is the batch at hand (γ)?"
    return Findings(data, gain.verdict, sentence, noisy_bars(data, question, pale=controls))


def negatives(lab: Lab) -> Findings:
    runs = {}
    for b in (1, 2, 4, 8):
        runs[f"B {b}"] = Run("dft", recipe=replace(RECIPE, negatives=b), persona="plain")
    data = lab.noisy(runs)
    first = Difference(data["B 2"], data["B 1"], "right")
    second = Difference(data["B 4"], data["B 2"], "right")
    one, eight = (Difference(data[b], data["sft"], "right") for b in ("B 1", "B 8"))
    found = verdict(
        second.below(), first.below() or (first.within(SMALL) and second.within(SMALL)),
        limit="" if first.above() else "from two negatives on",
    )
    sentence = (
        f"From one negative to two the right answers change by {first}, from two to four by "
        f"{second}. DFT against SFT: {one} with one negative, {eight} with eight (the exact "
        "objective, with all answers as negatives, is SFT's at τ = 1)."
    )
    question = "DFT, 30 % wrong labels: how many negatives per prompt (B)?"
    return Findings(data, found, sentence, noisy_bars(data, question))


def temperature(lab: Lab) -> Findings:
    temperatures, personas = (0.0, 0.3, 0.7, 1.0), {"bad": "troll", "plain": "plain"}
    runs = {}
    for name, persona in personas.items():
        for t in temperatures:
            runs[f"{name} T {t:g}"] = Run("dft", persona=persona, temperature=t)
    data = lab.noisy(runs)

    best, gains, told = [], [], []
    for name in personas:
        moderate = data[f"{name} T 0.7"]
        gain = {t: Difference(moderate, data[f"{name} T {t:g}"], "right")
                for t in temperatures if t != 0.7}
        gains += gain.values()
        if all(d.above() for d in gain.values()):
            best.append(name)
        over = ", ".join(f"{d} over T = {t:g}" for t, d in gain.items())
        told.append(f"{name} persona {over}")
    found = verdict(
        bool(best), all(d.within(SMALL) for d in gains) or any(d.below() for d in gains),
        limit=f"for the {best[0]} persona" if len(best) == 1 else "",
    )
    sentence = f"What T = 0.7 gains in right answers: {'; '.join(told)}."
    question = "DFT, 30 % wrong labels: at which temperature to draw the negatives?"
    pale = [label for label in runs if label.startswith("plain")]
    return Findings(data, found, sentence, noisy_bars(data, question, pale))


def personas(lab: Lab) -> Findings:
    names = {"troll": "bad: troll", "plain": "plain", "sage": "good: sage"}
    runs = {}
    for method in ("dft", "dft2"):
        runs |= {f"{method}, {name}": Run(method, persona=who) for who, name in names.items()}
    data = lab.noisy(runs)
    bad, plain, good = (data[f"dft, {name}"] for name in names.values())
    over_plain, over_good = Better(bad, plain), Better(bad, good)
    against_sft = Better(good, data["sft"])
    gains = over_plain.right.above()
    harms = Difference(good, plain, "right").below()
    limit = ""
    if not gains:
        limit = "for the good persona's harm"
    elif not harms:
        limit = "against the plain persona"
    sentence = (
        f"Negatives from the bad persona against plain ones: {over_plain}; against the good "
        f"persona's: {over_good}. The good persona is made to be right "
        f"{RIGHT_SHARE['sage']:.0%} of the time; DFT with its answers as negatives against SFT: "
        f"{against_sft}."
    )
    found = verdict(gains or harms, over_plain.right.below(), limit)
    pale = [label for label in runs if label.startswith("dft2")]
    question = "30 % wrong labels: who should give the negatives?"
    return Findings(data, found, sentence, noisy_bars(data, question, pale))


def tau(lab: Lab) -> Findings:
    grids = {"dft": (0.6, 0.8, 1.0, 1.2, 1.5), "dft2": (0.1, 0.2, 0.3, 0.5, 1.0)}
    papers = {"dft": (0.8, 1.0), "dft2": (0.1, 0.2, 0.3)}
    runs = {}
    for method, taus in grids.items():
        runs |= {f"{method} τ {t:g}": Run(method, {"tau": t}) for t in taus}
    data = lab.noisy(runs)

    told, matters, beaten = [], [], False
    for method, taus in grids.items():
        right = {t: average(data[f"{method} τ {t:g}"]["right"]) for t in taus}
        inside = max(papers[method], key=right.get)
        outside = max((t for t in taus if t not in papers[method]), key=right.get)
        gap = Better(data[f"{method} τ {outside:g}"], data[f"{method} τ {inside:g}"])
        span = max(right.values()) - min(right.values())
        if more(gap.right):
            beaten = True
        if span > SMALL:
            matters.append(method.upper())
        told.append(
            f"{method.upper()}, the best τ outside the paper's grid, {outside:g}, against the best "
            f"in it, {inside:g}: {gap}; from τ {taus[0]:g} to {taus[-1]:g} right varies by "
            f"{span:.3f}"
        )
    limit = ""
    if len(matters) == 1:
        limit = f"for {matters[0]}; to the other form τ hardly matters"
    found = verdict(bool(matters) and not beaten, True, limit)
    pale = [label for label in runs if label.startswith("dft2")]
    question = "30 % wrong labels: which temperature τ of the scores?"
    return Findings(data, found, ". ".join(told) + ".", noisy_bars(data, question, pale))


# ----------------------------------------------------------------------------- against all rivals

def judge(data: dict, rivals: list[str]) -> tuple[str, str]:
    """Does DFT beat SFT, and SFT with three times the compute? Verdict and sentence.

    The other rivals are told about, and do not count.
    """
    parts, wins, undecided, price = [], {}, False, False
    for c in CONDITIONS:
        vs = {rival: Better(data[f"{c} dft"], data[f"{c} {rival}"]) for rival in rivals}
        sft = vs["sft"]
        wins[c] = sft.right.above() and vs[CONTROL].right.above()
        price |= sft.costly
        undecided |= not sft.right.below() and not sft.right.within(SMALL)
        ahead = ", ".join(rival for rival, better in vs.items() if better.right.above())
        behind = ", ".join(rival for rival, better in vs.items() if better.right.below())
        parts.append(
            f"With {TITLES[c]}, DFT against SFT: {sft}; against SFT with three times the compute: "
            f"{vs[CONTROL].right} right; clearly ahead of {ahead or 'nobody'}, clearly behind "
            f"{behind or 'nobody'}."
        )
    limits = []
    if not wins["clean"]:
        limits.append("if labels are wrong")
    if price:
        limits.append(TRAINED_FOR.removeprefix("if ") if limits else TRAINED_FOR)
    return verdict(wins["noisy"], not undecided, ", and ".join(limits)), " ".join(parts)


def methods(lab: Lab) -> Findings:
    rivals = [name for name in lab.methods or RACERS if name != "sft"]
    names = list(dict.fromkeys([*rivals, "dft"]))       # dft races in any case
    runs = {name: Run(name, HYPER.get(name, {})) for name in names}
    data = lab.both(runs)
    rivals = ["sft", CONTROL, *(name for name in names if not name.startswith("dft"))]
    question = (f"The same self-play data for all, learning rate {RECIPE.lr:g}: "
                "who learns the right rule?")
    return Findings(data, *judge(data, rivals),
                    partial(plot.answer_bars, by_condition(data), question))


def lr(lab: Lab) -> Findings:
    fixed = under_both({name: Run(name, HYPER.get(name, {})) for name in TUNED})
    best, runs = tuned(lab, fixed), {}
    for label, run in fixed.items():
        for suffix, choice in (("", run), (" tuned", best[label])):
            runs[label + suffix] = choice
            if run.method == "sft":
                runs[f"{label} x3{suffix}"] = tripled(choice)
    data = lab.run(runs)
    rivals = ["sft", CONTROL, *(name for name in TUNED if name not in ("sft", "dft"))]
    at_best = {name.removesuffix(" tuned"): data[name] for name in data if name.endswith("tuned")}
    at_fixed, _ = judge(data, rivals)
    found, sentence = judge(at_best, rivals)
    sentence += (
        f" At the fixed {RECIPE.lr:g}: {at_fixed}. Best of "
        f"{', '.join(f'{rate:g}' for rate in RATES)} by right answers on {N_TUNING} other seeds: "
        f"{rates(best)}."
    )
    colors = {f"{name} tuned": COLOR[name] for name in (*TUNED, CONTROL)}
    question = f"Does its own best learning rate change the picture? (fixed: {RECIPE.lr:g})"
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors))
