"""What the ASFT paper claims (arXiv 2409.10571) about training on labelled pairs. Gradients: balance.py; costs: cost.py."""

from minialign.lab.arena import RECIPE, Run
from minialign.lab.plot import COLOR
from minialign.lab.studies import plots
from minialign.lab.studies.lab import (
    CONDITIONS,
    CONTROL,
    HOLDS,
    MARKS,
    NOT,
    ONLY_TRAINED,
    OPEN,
    SMALL,
    Better,
    Difference,
    Findings,
    Lab,
    by_condition,
    quick,
    rates,
    sft_and_control,
    tuned,
)
from minialign.stats import show


def asft_vs_dpo(lab: Lab) -> Findings:
    fixed = {name: Run(name, persona=None) for name in ("asft", "orpo", "dpo")}
    best = tuned(lab, {name: fixed[name] for name in ("asft", "dpo")})
    data = lab.run(sft_and_control() | fixed | {f"{name} tuned": run for name, run in best.items()})
    for marks in data.values():
        if "good_logp_change" in marks:     # how many nats more the rejected answer lost than the chosen one gained
            marks["excess"] = [-bad - good for good, bad in zip(marks["good_logp_change"], marks["bad_logp_change"], strict=True)]
    less, less_tuned, own = (Difference(data[a], data[b], "excess")
                             for a, b in (("asft", "dpo"), ("asft tuned", "dpo tuned"), ("asft", "sft")))
    kept, fell = Difference(data["asft"], data["dpo"], "good_logp_change"), Difference(data["dpo"], data["asft"], "peak_lost")
    if less.below():
        verdict = "holds only at one learning rate for all" if not less_tuned.below() else HOLDS if not own.above() else \
            "holds only against DPO: under SFT, which sees no rejected answer, it falls less"
    else:
        verdict = NOT if less.above() else OPEN
    mean = {name: plots.average(data[name]["excess"]) for name in ("dpo", "asft", "orpo", "sft")}
    sentence = ("Nats the rejected answer loses beyond what the chosen one gains: "
                + ", ".join(f"{name} {value:.1f}" for name, value in mean.items())
                + f"; asft against dpo {less}, against sft {own}; asft against dpo, each at its best learning rate "
                f"({rates(best)}), {less_tuned}. The chosen answer ends {kept} nats above DPO's, which falls {fell} further "
                "from its peak.")
    marks = MARKS | {"peak_lost": ("lost from its peak", 2), "excess": ("excess", 1)}
    shown = {name: data[name] for name in ("sft", "orpo", "asft", "dpo", "dpo tuned")}
    return Findings(data, verdict, sentence, lambda out: plots.curves(
        {"log-prob of the chosen answer (held out) ↑": plots.of_training(shown, 1),
         "log-prob of the rejected answer (held out)": plots.of_training(shown, 2)},
        "Labelled pairs: does the chosen answer stay up while the rejected one falls?  (learning rate "
        f"{RECIPE.lr:g}, dpo tuned {best['dpo'].recipe.lr:g})", out, "asft_vs_dpo", colors={"dpo tuned": "#e7a6cb"}), marks)


def beta(lab: Lab) -> Findings:
    betas, runs = (0.1, 0.2, 0.5, 1.0), {}
    for c, noise in CONDITIONS.items():
        runs |= {f"{c} {name}": run for name, run in sft_and_control(noise=noise).items()}
        runs |= {f"{c} β {b:g}": Run("asft", {"lam": b}, noise, persona=None) for b in betas}
    data = lab.run(runs)
    change = {c: Better(data[f"{c} β 1"], data[f"{c} β 0.1"]) for c in CONDITIONS}
    clean = change["clean"]             # the paper's case; wrong labels are ours
    if clean.right.small():
        verdict = ONLY_TRAINED if clean.costly else HOLDS
    else:
        verdict = NOT if clean.right.less() or clean.right.more() else OPEN
    skill = {c: Difference(data[f"{c} β 1"], data[f"{c} β 0.1"], "skill") for c in CONDITIONS}
    sentence = ("β = 1 against β = 0.1: " + "; ".join(f"{c} labels {change[c]}, unrelated skill {skill[c]}" for c in CONDITIONS)
                + f". β = 0.1 against SFT: {Better(data['clean β 0.1'], data['clean sft'])} with right labels.")
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        by_condition(data), "ASFT on labelled pairs: how strong should the alignment term be (β)?", out, "beta",
        {f"β {b:g}": COLOR["asft"] for b in betas}))


def init(lab: Lab) -> Findings:
    """The untrained model needs three times the updates and a learning rate for training from scratch, for every method."""
    options = {"untrained": quick(epochs=9, lr=3e-3), "base": {}, "sft-ed": {}}
    names = ("sft", "asft", "orpo", "dpo")
    runs = {f"{init}, {name}": Run(name, persona=None, init=init.removesuffix("-ed"), **how)
            for init, how in options.items() for name in names}
    data = lab.run({"base, sft x3": sft_and_control()[CONTROL]} | runs)
    share = {(init, name): [x / y for x, y in zip(data[f"{init}, {name}"]["right"], data[f"{init}, sft"]["right"], strict=True)]
             for init in options for name in names[1:]}
    spread = {name: {"x": [max(xs) - min(xs) for xs in zip(*(share[init, name] for init in options), strict=True)]}
              for name in names[1:]}
    less = {rival: Difference(spread["asft"], spread[rival], "x") for rival in ("dpo", "orpo")}
    ahead = [rival for rival, d in less.items() if d.below()]
    verdict = HOLDS if len(ahead) == 2 else f"holds only against {ahead[0].upper()}" if ahead else \
        NOT if less["dpo"].above() or all(d.within(SMALL) for d in less.values()) else OPEN
    told = "; ".join(f"{name} " + ", ".join(show(share[init, name], 2) for init in options) for name in names[1:])
    sentence = (f"Right answers, as a share of SFT's from the same start ({', '.join(options)}): {told}. How far that share "
                f"varies over the starts, ASFT's minus DPO's: {less['dpo']}, minus ORPO's: {less['orpo']}.")
    colors = {f"{init}, {name}": COLOR[name] for init in options for name in names}
    return Findings(data, verdict, sentence, lambda out: plots.bars(
        {"": data}, "Labelled pairs: how much does the initial model matter?", out, "init",
        colors | {"base, sft x3": COLOR[CONTROL]}))
