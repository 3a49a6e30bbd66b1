"""What the DFT paper (arXiv 2502.18679) claims against SFT and preference methods, tables 2 to 4.

And what it says of DFT's cost beside DFT2's. In tables 2 to 4 every method runs at the setting that
was chosen for it (tuned.py); `minialign compare` shows them all at one learning rate.
"""

import json
from functools import partial

from minialign.lab import plot
from minialign.lab.arena import Run
from minialign.lab.plot import COLOR
from minialign.lab.race import CONDITIONS, CONTROL, TITLES, Difference, tripled
from minialign.lab.studies import cost, tuned
from minialign.lab.studies.lab import (
    HOLDS,
    SMALL,
    TRAINED_FOR,
    Better,
    Findings,
    Lab,
    by_condition,
    in_parts,
    less,
    verdict,
)
from minialign.lab.studies.tuned import at_best, in_words

# The rivals of the paper's table 2, every one of them.
RIVALS = ("spin", "simpo", "simpo_sft", "kto", "orpo", "dpop")
LIKELY = 0.1            # a probability at which we still call the bad answer likely
DEFAULTS = "dft, defaults"


def motivation(lab: Lab) -> Findings:
    data = lab.run({"sft": Run("sft"), "dft": Run("dft")})
    never = {"wrong": [0.0] * len(lab.seeds)}
    left = Difference(data["sft"], never, "wrong")
    fell = Difference(data["sft"], data["base"], "wrong")
    against_sft = Difference(data["dft"], data["sft"], "wrong")
    found = in_parts({
        "SFT leaves the bad answer likely": verdict(
            left.above(LIKELY), left.below(LIKELY) and fell.below()),
        "DFT makes it less likely": verdict(against_sft.below(), against_sft.above()),
    })
    sentence = (
        f"SFT on the good answers alone changes the probability of the bad one by {fell}, to "
        f"{left} (likely: above {LIKELY}); DFT's is {against_sft} against that. Where two answers "
        "part, one softmax stands over both: to push one up pushes the other down."
    )
    question = "SFT reads good answers only. What becomes of the bad one?"
    tests = {"bad answer, sft over base": fell, "bad answer, dft over sft": against_sft}
    return Findings(data, found, sentence,
                    partial(plot.answer_bars, {"": data}, question), tests=tests)


def methods(lab: Lab) -> Findings:
    """Table 2, with clean and with wrong labels; with `lab.tune` the choice of the settings."""
    if lab.tune:
        return tune(lab)
    rivals = [name for name in lab.methods or RIVALS if name not in ("sft", "dft", "dft2")]
    runs = {}
    for c in CONDITIONS:
        runs[f"{c} sft"] = at_best(c, "sft")
        runs[f"{c} {CONTROL}"] = tripled(runs[f"{c} sft"])
        runs |= {f"{c} {name}": at_best(c, name) for name in (*rivals, "dft", "dft2")}
        runs[f"{c} {DEFAULTS}"] = Run("dft", noise=CONDITIONS[c])
    data = lab.run(runs)

    parts, told, tests = {}, [], {}
    for c, labels in TITLES.items():
        vs = {name: Better(data[f"{c} dft"], data[f"{c} {name}"])
              for name in ("sft", CONTROL, *rivals)}
        sft, control = vs["sft"], vs.pop(CONTROL)
        parts[f"over SFT, {labels}"] = verdict(
            sft.right.above() and control.right.above(),
            sft.right.below() or sft.right.within(SMALL) or control.right.below(),
            limit=TRAINED_FOR if sft.costly else "",
        )
        over = [vs[name].right for name in rivals]
        if over:
            parts[f"over every preference method, {labels}"] = verdict(
                all(d.above() for d in over), any(d.below() or d.within(SMALL) for d in over))
        tests |= sft.tests(f"dft over sft, {labels}")
        tests[f"dft over {CONTROL}, {labels}"] = control.right
        tests |= {f"dft over {name}, {labels}": vs[name].right for name in rivals}
        others = ", ".join(f"{name} {vs[name].right}" for name in rivals)
        plain = Better(data[f"{c} {DEFAULTS}"], data[f"{c} dft"])
        settings = [in_words(name, at_best(c, name)) for name in ("sft", "dft", *rivals)]
        told.append(
            f"With {labels} DFT against SFT: {sft}; against SFT with three times the compute: "
            f"{control.right} right; against {others}. DFT at its defaults against that: {plain}. "
            f"Settings: {', '.join(settings)}."
        )
    question = "The same self-play data for all, each method at its own best setting"
    return Findings(data, in_parts(parts), " ".join(told),
                    partial(plot.answer_bars, by_condition(data), question,
                            {DEFAULTS: COLOR["dft"]}), tests=tests)


def two_stages(lab: Lab) -> Findings:
    """Tables 3 and 4: DFT in one stage against SFT followed by a preference method.

    The rules: as good is what is known to be no more than SMALL below in right answers; the verdict
    says if the same is known of SFT alone. Better is what is clearly above. Both only if nothing
    counts but the questions trained for where DFT is clearly worse in what should be kept.
    """
    stages = {"preference pairs": ("sft → dpo", "sft → simpo", "sft → kto"),
              "own answers": ("sft → dpo", "sft → simpo")}
    runs = {}
    for c in CONDITIONS:
        pairs = "pairs" if c == "clean" else "noisy pairs"
        runs |= {f"{c} {name}": at_best(c, name) for name in ("sft", "dft")}
        for kind, names in stages.items():
            data = pairs if kind == "preference pairs" else c
            runs |= {f"{c} {name}, {kind}": at_best(data, name) for name in names}
    data = lab.run(runs)

    parts, tests, told = {}, {}, []
    for c, labels in TITLES.items():
        over, limit = {}, {}
        for kind, names in stages.items():
            both = {name: Better(data[f"{c} dft"], data[f"{c} {name}, {kind}"]) for name in names}
            over[kind] = [better.right for better in both.values()]
            limit[kind] = TRAINED_FOR if any(better.costly for better in both.values()) else ""
            for name, better in both.items():
                tests |= better.tests(f"dft over {name} ({kind}), {labels}")
            rivals = ", ".join(f"{name} {better}" for name, better in both.items())
            told.append(f"against methods on {kind}, {labels}: {rivals}")
        alone = [Difference(data[f"{c} sft"], data[f"{c} {name}, preference pairs"], "right")
                 for name in stages["preference pairs"]]
        as_good = verdict(all(d.above(-SMALL) for d in over["preference pairs"]),
                          any(less(d) for d in over["preference pairs"]),
                          limit["preference pairs"])
        if as_good.startswith(HOLDS) and all(d.above(-SMALL) for d in alone):
            as_good += ", and SFT alone is as good"
        parts[f"as good as with preference pairs, {labels}"] = as_good
        parts[f"better than with its own answers, {labels}"] = verdict(
            all(d.above() for d in over["own answers"]),
            any(d.below() or d.within(SMALL) for d in over["own answers"]), limit["own answers"])
    sentence = (
        f"DFT's right answers {'; '.join(told)}. Two stages take twice the updates, and the first "
        "is SFT at the common rate."
    )
    colors = {}
    for label in data:
        if " → " in label:
            name = label.removeprefix("clean ").removeprefix("noisy ")
            colors[name] = COLOR[name.split(" → ")[1].split(",")[0]]
    question = "One stage of DFT, or SFT and then a preference method?"
    return Findings(data, in_parts(parts), sentence,
                    partial(plot.answer_bars, by_condition(data), question, colors), tests=tests)


def dft_cost(lab: Lab) -> Findings:
    """A step of DFT and of DFT2, as the study `cost` measures it, with one negative per prompt.

    The rule is that of `cost`: what is saved is clearly more than 5 % of both. More than a quarter
    of the time cannot be saved, the share of the reference's forward pass in four passes.
    """
    live, stored = "dft, reference in memory", "dft, reference stored"
    hyper = {"n_examples": cost.PAIRS}
    data = cost.measure(lab, {
        "sft": ("sft", {}),
        "dft2": ("dft2", hyper),
        stored: ("dft", hyper, "stored"),
        live: ("dft", hyper, "in memory"),
    })
    cost.compare_with(data, live)
    parts, tests, told = {}, {}, []
    for setting in (live, stored):
        less_of = {mark: Difference(data[setting], data["dft2"], f"{mark}_ratio")
                   for mark in ("seconds", "megabytes")}
        parts[setting.removeprefix("dft, ")] = verdict(
            all(d.above(cost.WORTH) for d in less_of.values()),
            any(d.within(cost.WORTH) for d in less_of.values()))
        tests |= {f"{mark}, dft2 under {setting}": d for mark, d in less_of.items()}
        told.append(f"with the {setting.removeprefix('dft, ')} DFT2 saves "
                    f"{less_of['seconds'].percent()} time and "
                    f"{less_of['megabytes'].percent()} memory")
    sentence = (
        f"Of a DFT step with its reference in memory: {'; '.join(told)}. Drawing the negatives is "
        "not counted: both need them."
    )
    question = "What does DFT2 save by having no reference?"
    return Findings(data, in_parts(parts), sentence, cost.picture(data, question), cost.MARKS,
                    tests=tests)


def tune(lab: Lab) -> Findings:
    """Choose every method's setting anew; what is printed belongs into tuned.py."""
    lab.seeds = list(tuned.SEEDS)
    lines, best = [], {}
    for data, settings in tuned.choose(lab).items():
        lines.append(f'    "{data}": {{')
        for name, (hyper, rate) in settings.items():
            lines.append(f'        "{name}": ({json.dumps(hyper)}, {rate:g}),')
            best[f"{data} {name}"] = tuned.setting(data, name, hyper, rate)
        lines.append("    },")
    data = lab.run(best)
    bars = {label: marks["right"] for label, marks in data.items()}
    colors = {label: COLOR["dft"] for label in data}
    draw = partial(plot.bars, {"": bars}, "right answers", "The chosen settings", colors)
    table = "\n".join(["CHOSEN = {", *lines, "}"])
    return Findings(data, "the settings are chosen", f"They belong into tuned.py:\n{table}", draw)
