"""What the ASFT paper claims (arXiv 2409.10571) about training on labelled pairs.

Gradients are in balance.py, costs in cost.py.
"""

from dataclasses import replace
from functools import partial

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
    less,
    more,
    sft_and_control,
    verdict,
)
from minialign.lab.studies.tuned import at_best, in_words
from minialign.stats import show


def asft_vs_dpo(lab: Lab) -> Findings:
    fixed = {name: Run(name, persona=None) for name in ("asft", "orpo", "dpo")}
    best = {f"{name} tuned": at_best("pairs", name) for name in ("asft", "dpo")}
    data = lab.run(sft_and_control() | fixed | best)
    for marks in data.values():
        # The excess: how many nats more the rejected answer lost than the chosen one gained.
        if "good_logp_change" in marks:
            changes = zip(marks["good_logp_change"], marks["bad_logp_change"], strict=True)
            marks["excess"] = [-bad - good for good, bad in changes]
    at_one_rate = Difference(data["asft"], data["dpo"], "excess")
    at_own_rates = Difference(data["asft tuned"], data["dpo tuned"], "excess")
    against_sft = Difference(data["asft"], data["sft"], "excess")
    kept = Difference(data["asft"], data["dpo"], "good_logp_change")
    fell = Difference(data["dpo"], data["asft"], "peak_lost")
    limit = ""
    if not at_own_rates.below():
        limit = "at one learning rate for all"
    elif against_sft.above():
        limit = "against DPO: under SFT, which sees no rejected answer, it falls less"
    found = verdict(at_one_rate.below(), at_one_rate.above(), limit)

    names = ("dpo", "asft", "orpo", "sft")
    told = ", ".join(f"{name} {average(data[name]['excess']):.1f}" for name in names)
    told_best = ", ".join(in_words(name, run) for name, run in best.items())
    sentence = (
        f"Nats the rejected answer loses beyond what the chosen one gains: {told}; asft against "
        f"dpo {at_one_rate}, against sft {against_sft}; asft against dpo, each at its best "
        f"setting ({told_best}), {at_own_rates}. The chosen answer ends {kept} nats above "
        f"DPO's, which falls {fell} further from its peak."
    )
    shown = {name: data[name] for name in ("sft", "orpo", "asft", "dpo", "dpo tuned")}
    row = [
        ("", "log-prob of the chosen answer (held out) ↑", of_training(shown, 1)),
        ("", "log-prob of the rejected answer (held out)", of_training(shown, 2)),
    ]
    question = (
        "Labelled pairs: does the chosen answer stay up while the rejected one falls?  "
        f"(learning rate {RECIPE.lr:g}, {in_words('dpo tuned', best['dpo tuned'])})"
    )
    draw = partial(plot.curves, [row], question, {"dpo tuned": "#e7a6cb"}, start=True)
    marks = MARKS | {"peak_lost": ("lost from its peak", 2), "excess": ("excess", 1)}
    return Findings(data, found, sentence, draw, marks)


def beta(lab: Lab) -> Findings:
    runs = {f"β {b:g}": Run("asft", {"lam": b}, persona=None) for b in (0.1, 0.2, 0.5, 1.0)}
    data = lab.both(runs)
    told = []
    for c in CONDITIONS:
        change = Better(data[f"{c} β 1"], data[f"{c} β 0.1"])
        skill = Difference(data[f"{c} β 1"], data[f"{c} β 0.1"], "skill")
        told.append(f"{c} labels {change}, unrelated skill {skill}")

    # The verdict is about the paper's case; wrong labels are ours.
    clean = Better(data["clean β 1"], data["clean β 0.1"])
    no_difference = abs(clean.right.mean) <= SMALL and clean.right.half <= SMALL
    found = verdict(no_difference, less(clean.right) or more(clean.right),
                    limit=TRAINED_FOR if clean.costly else "")
    sentence = (
        f"β = 1 against β = 0.1: {'; '.join(told)}. β = 0.1 against SFT: "
        f"{Better(data['clean β 0.1'], data['clean sft'])} with right labels."
    )
    question = "ASFT on labelled pairs: how strong should the alignment term be (β)?"
    colors = dict.fromkeys(runs, COLOR["asft"])
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors))


def init(lab: Lab) -> Findings:
    # The untrained model needs three times the updates, and a learning rate for training from
    # scratch; every method gets both.
    recipes = {
        "untrained": replace(RECIPE, epochs=9, lr=3e-3), "base": RECIPE, "sft-ed": RECIPE,
    }
    names = ("sft", "asft", "orpo", "dpo")
    runs, colors = {"base, sft x3": sft_and_control()[CONTROL]}, {"base, sft x3": COLOR[CONTROL]}
    for start, recipe in recipes.items():
        for name in names:
            label, begin = f"{start}, {name}", start.removesuffix("-ed")
            runs[label] = Run(name, persona=None, recipe=recipe, init=begin)
            colors[label] = COLOR[name]
    data = lab.run(runs)

    # Right answers as a share of SFT's from the same start, and how far that varies over starts.
    spread, told = {}, []
    for name in names[1:]:
        shares = []
        for start in recipes:
            pairs = zip(data[f"{start}, {name}"]["right"], data[f"{start}, sft"]["right"],
                        strict=True)
            shares.append([x / y for x, y in pairs])
        spread[name] = {"spread": [max(xs) - min(xs) for xs in zip(*shares, strict=True)]}
        told.append(f"{name} " + ", ".join(show(values, 2) for values in shares))
    dpo, orpo = (Difference(spread["asft"], spread[rival], "spread") for rival in ("dpo", "orpo"))
    ahead = [name for name, d in (("DPO", dpo), ("ORPO", orpo)) if d.below()]
    found = verdict(
        bool(ahead), dpo.above() or (dpo.within(SMALL) and orpo.within(SMALL)),
        limit=f"against {ahead[0]}" if len(ahead) == 1 else "",
    )
    sentence = (
        f"Right answers, as a share of SFT's from the same start ({', '.join(recipes)}): "
        f"{'; '.join(told)}. How far that share varies over the starts, ASFT's minus DPO's: {dpo}, "
        f"minus ORPO's: {orpo}."
    )
    question = "Labelled pairs: how much does the initial model matter?"
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, {"": data}, question, colors))
