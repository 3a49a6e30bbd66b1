"""DFT against every rival on the same self-play data (DFT paper, Table 2): at one learning rate, and each at its own best."""

from dataclasses import replace

from minialign.lab.arena import RECIPE, Run
from minialign.lab.plot import COLOR
from minialign.lab.studies import plots
from minialign.lab.studies.lab import (
    CONDITIONS,
    CONTROL,
    HOLDS,
    N_TUNING,
    NOT,
    ONLY_TRAINED,
    OPEN,
    RATES,
    SMALL,
    TITLES,
    Better,
    Findings,
    Lab,
    by_condition,
    rates,
    sft_and_control,
    tuned,
)

RACERS = ("ift", "asft", "orpo", "dpop", "kto", "simpo", "simpo_sft", "spin", "dft", "dft2")   # the table's, and ours
HYPER = {"kto": {"lambda_d": float(RECIPE.negatives)}}      # the DFT paper balances KTO's one good answer against B bad ones
TUNED = ("sft", "dft", "simpo_sft", "spin")


def judge(data: dict, rivals: list[str], dft: str = "dft") -> tuple[str, str]:
    """Does DFT beat SFT, and SFT with three times the compute, and the others? Verdict and sentence from both conditions."""
    vs = {c: {rival: Better(data[f"{c} {dft}"], data[f"{c} {rival}"]) for rival in rivals} for c in CONDITIONS}
    wins = {c: vs[c]["sft"].right.above() and vs[c][CONTROL].right.above() for c in CONDITIONS}
    price = {c: vs[c]["sft"].costly for c in CONDITIONS}
    if all(wins.values()):
        verdict = ONLY_TRAINED if any(price.values()) else HOLDS
    elif wins["noisy"]:
        verdict = "holds only if labels are wrong" + (", and nothing counts but the questions trained for" * any(price.values()))
    else:
        verdict = OPEN if any(not b["sft"].right.below() and not b["sft"].right.within(SMALL) for b in vs.values()) else NOT
    parts = []
    for c in CONDITIONS:
        ahead = [rival for rival, b in vs[c].items() if b.right.above()]
        behind = [rival for rival, b in vs[c].items() if b.right.below()]
        parts.append(f"With {TITLES[c]}, DFT against SFT: {vs[c]['sft']}; against SFT with three times the compute: "
                     f"{vs[c][CONTROL].right} right; "
                     f"clearly ahead of {', '.join(ahead) or 'nobody'}, clearly behind {', '.join(behind) or 'nobody'}.")
    return verdict, " ".join(parts)


def methods(lab: Lab) -> Findings:
    names, runs = list(dict.fromkeys([name for name in lab.methods or RACERS if name != "sft"] + ["dft"])), {}
    for condition, noise in CONDITIONS.items():
        runs |= {f"{condition} {name}": run for name, run in sft_and_control(noise=noise).items()}
        runs |= {f"{condition} {name}": Run(name, HYPER.get(name, {}), noise) for name in names}
    data = lab.run(runs)
    rivals = ["sft", CONTROL, *(name for name in names if not name.startswith("dft"))]
    verdict, sentence = judge(data, rivals)
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        by_condition(data), f"The same self-play data for all, learning rate {RECIPE.lr:g}: who learns the right rule?", out,
        "methods"))


def lr(lab: Lab) -> Findings:
    fixed = {f"{c} {name}": Run(name, HYPER.get(name, {}), noise) for c, noise in CONDITIONS.items() for name in TUNED}
    best, runs = tuned(lab, fixed), {}
    for label, run in fixed.items():
        for suffix, choice in (("", run), (" tuned", best[label])):
            runs[label + suffix] = choice
            if run.method == "sft":
                runs[f"{label} x3{suffix}"] = replace(choice, recipe=replace(choice.recipe, epochs=3 * choice.recipe.epochs))
    data = lab.run(runs)
    names = ["sft", CONTROL, *(name for name in TUNED if name not in ("sft", "dft"))]
    verdict, sentence = judge({name.removesuffix(" tuned"): data[name] for name in data if name.endswith("tuned")}, names)
    at_fixed, _ = judge(data, names)
    sentence += (f" At the fixed {RECIPE.lr:g}: {at_fixed}. Best of {', '.join(f'{rate:g}' for rate in RATES)} by right answers "
                 f"on {N_TUNING} other seeds: {rates(best)}.")
    colors = {f"{name} tuned": COLOR[name] for name in (*TUNED, CONTROL)} | {name: COLOR[name] for name in TUNED}
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        by_condition(data), f"Does its own best learning rate change the picture? (fixed: {RECIPE.lr:g})", out, "lr", colors))
