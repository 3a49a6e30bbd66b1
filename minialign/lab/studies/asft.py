"""What the ASFT paper claims (arXiv 2409.10571) about training on labelled pairs.

Gradients are in balance.py, where the chosen answer falls in fall.py, marks on real text in
texts.py, costs in cost.py.
"""

from dataclasses import replace
from functools import partial
from statistics import mean

from minialign.lab import plot
from minialign.lab.arena import RECIPE, Run
from minialign.lab.plot import COLOR, average
from minialign.lab.race import CONDITIONS, CONTROL, Difference, of_training
from minialign.lab.studies.lab import (
    MARKS,
    SMALL,
    TRAINED_FOR,
    Better,
    Findings,
    Lab,
    by_condition,
    in_parts,
    less,
    more,
    sft_and_control,
    verdict,
)
from minialign.lab.studies.tuned import at_best, in_words
from minialign.stats import show

METHODS = ("dpo", "asft", "orpo")
LEARNT = 0.5                    # a start from which SFT gets fewer right answers shows nothing
PICTURED = ("sft", "orpo", "asft", "dpo", "dpo, one rate")
# How much more a rejected answer loses than the chosen one gains: in nats, and in probability,
# where it is what answers other than these two gain.
EXCESS = {"excess": "log-probs", "excess_p": "probabilities"}


def asft_vs_dpo(lab: Lab) -> Findings:
    """Each method at its chosen setting, and all at one learning rate.

    The rule: ASFT mitigates it, in log-probs or in probabilities, if its excess is clearly below
    DPO's at the chosen settings; only at one learning rate if it is there alone.
    """
    own = {name: at_best("pairs", name) for name in METHODS} | {"sft": at_best("clean", "sft")}
    fixed = {f"{name}, one rate": Run(name, persona=None) for name in METHODS}
    data = lab.run(own | fixed | {"sft, one rate": Run("sft", persona=None)})
    rest = average(data["base"]["garbage"])
    for marks in data.values():
        if "good_logp_change" in marks:
            changes = zip(marks["good_logp_change"], marks["bad_logp_change"], strict=True)
            marks["excess"] = [-bad - good for good, bad in changes]
            pairs = zip(marks["garbage"], data["base"]["garbage"], strict=True)
            marks["excess_p"] = [after - before for after, before in pairs]

    parts, tests, told = {}, {}, []
    for mark, words in EXCESS.items():
        at_own = Difference(data["asft"], data["dpo"], mark)
        at_one = Difference(data["asft, one rate"], data["dpo, one rate"], mark)
        control = Difference(data["asft"], data["sft"], mark)
        limits = []
        if not at_own.below():
            limits.append("at one learning rate for all")
        if control.above():
            limits.append("against DPO: under SFT, which sees no rejected answer, it is less")
        parts[f"in {words}"] = verdict(
            at_own.below() or at_one.below(), at_own.above() or at_own.within(SMALL),
            " and ".join(limits))
        tests |= {f"asft over dpo, {words}": at_own,
                  f"asft over dpo, {words}, one rate": at_one,
                  f"asft over sft, {words}": control}
        each = ", ".join(f"{name} {show(data[name][mark], 2)}" for name in (*METHODS, "sft"))
        told.append(f"in {words} {each}; asft against dpo {at_own}, at one learning rate "
                    f"{at_one}; against sft {control}")
    kept = Difference(data["asft"], data["dpo"], "good_logp_change")
    settings = ", ".join(in_words(name, run) for name, run in own.items())
    sentence = (
        f"What the rejected answer loses beyond what the chosen one gains, {'. And '.join(told)}. "
        f"The chosen answer ends {kept} nats above DPO's. The base model gives {rest:.3f} to other "
        f"answers. Settings: {settings}."
    )
    row = []
    for i, title in ((1, "log-prob of the chosen answer (held out) ↑"),
                     (2, "log-prob of the rejected answer (held out)")):
        row.append(("", title, of_training({name: data[name] for name in PICTURED}, i)))
    question = "Labelled pairs: does the chosen answer stay up while the rejected one falls?"
    draw = partial(plot.curves, [row], question, {"dpo, one rate": "#e7a6cb"}, start=True)
    marks = MARKS | {"excess": ("excess, nats", 1), "excess_p": ("excess, p", 3)}
    return Findings(data, in_parts(parts), sentence, draw, marks, tests=tests)


def beta(lab: Lab) -> Findings:
    """β = 0.5 against 0.1, the ends of the paper's range; 1 lies beyond it.

    The rule: it hardly matters if both are known to give equally many right answers, to SMALL, with
    right labels, which are the paper's case.
    """
    runs = {f"β {b:g}": Run("asft", {"lam": b}, persona=None) for b in (0.1, 0.2, 0.5, 1.0)}
    data = lab.both(runs)
    told = []
    for c in CONDITIONS:
        for b in ("0.5", "1"):
            change = Better(data[f"{c} β {b}"], data[f"{c} β 0.1"])
            skill = Difference(data[f"{c} β {b}"], data[f"{c} β 0.1"], "skill")
            told.append(f"{c} labels, {b} against 0.1: {change}, unrelated skill {skill}")
    clean = Better(data["clean β 0.5"], data["clean β 0.1"])
    found = verdict(clean.right.within(SMALL), less(clean.right) or more(clean.right),
                    limit=TRAINED_FOR if clean.costly else "")
    sentence = (
        f"{'; '.join(told)}. β = 0.1 against SFT: "
        f"{Better(data['clean β 0.1'], data['clean sft'])} with right labels."
    )
    question = "ASFT on labelled pairs: how strong should the alignment term be (β)?"
    colors = dict.fromkeys(runs, COLOR["asft"])
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors),
                    tests=clean.tests("β 0.5 over 0.1"))


def init(lab: Lab) -> Findings:
    """Three starts; each method has the setting that was chosen for it from the base model.

    The rule: ASFT is less sensitive than a rival if the share of SFT's right answers that it
    reaches varies clearly less over the starts. A start from which SFT itself gets fewer than half
    of the answers right does not count: there a share divides noise by noise.
    """
    # The untrained model needs three times the updates, and a learning rate for training from
    # scratch; every method gets both.
    names = ("sft", "asft", "orpo", "dpo")
    runs, colors = {"base, sft x3": sft_and_control()[CONTROL]}, {"base, sft x3": COLOR[CONTROL]}
    starts = ("untrained", "base", "sft-ed")
    for start in starts:
        for name in names:
            label, run = f"{start}, {name}", at_best("clean" if name == "sft" else "pairs", name)
            if start == "untrained":
                run = replace(run, recipe=replace(RECIPE, epochs=9, lr=3e-3))
            runs[label] = replace(run, persona=None, init=start.removesuffix("-ed"))
            colors[label] = COLOR[name]
    data = lab.run(runs)

    # Where fewer than two starts can tell methods apart, nothing is decided.
    learnt = [start for start in starts if mean(data[f"{start}, sft"]["right"]) >= LEARNT]
    enough = len(learnt) > 1
    counted = learnt if enough else starts

    # Right answers as a share of SFT's from the same start, and how far that varies over starts.
    spread, told = {}, []
    for name in names[1:]:
        shares = []
        for start in counted:
            pairs = zip(data[f"{start}, {name}"]["right"], data[f"{start}, sft"]["right"],
                        strict=True)
            shares.append([x / y for x, y in pairs])
        spread[name] = {"spread": [max(xs) - min(xs) for xs in zip(*shares, strict=True)]}
        told.append(f"{name} " + ", ".join(show(values, 2) for values in shares))
    dpo, orpo = (Difference(spread["asft"], spread[rival], "spread") for rival in ("dpo", "orpo"))
    ahead = [name for name, d in (("DPO", dpo), ("ORPO", orpo)) if d.below()]
    found = verdict(
        enough and bool(ahead),
        enough and (dpo.above() or (dpo.within(SMALL) and orpo.within(SMALL))),
        limit=f"against {ahead[0]}" if len(ahead) == 1 else "",
    )
    sentence = (
        f"Right answers, as a share of SFT's from the same start ({', '.join(counted)}): "
        f"{'; '.join(told)}. How far that share varies over the starts, ASFT's minus DPO's: {dpo}, "
        f"minus ORPO's: {orpo}."
    )
    for start in starts:
        if start not in learnt:
            reached = show(data[f"{start}, sft"]["right"], 3)
            sentence += f" From the {start} start SFT itself reaches {reached}: not counted."
    question = "Labelled pairs: how much does the initial model matter?"
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, {"": data}, question, colors),
                    tests={"spread, asft over dpo": dpo, "spread, asft over orpo": orpo})
