"""What "balanced" means: the gradients of DPO and ASFT on a pair, exactly, and what training does.

For answers of one token with probabilities p_w (chosen) and p_l (rejected): how much larger is the
gradient on the rejected answer than on the chosen one? With respect to probabilities, the ASFT
paper's x₁ and x₂, and with respect to log-probs the answers differ, by ∂L/∂p = (∂L/∂log p) / p.
"""

import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from minialign.data import Batch
from minialign.lab import plot
from minialign.lab.arena import Run
from minialign.lab.plot import COLOR, average
from minialign.lab.race import Difference
from minialign.lab.studies.lab import MARKS, Findings, Lab, sft_and_control, verdict
from minialign.methods import METHODS
from minialign.stats import show

PAIRS = {"asft": {"lam": 0.1}, "orpo": {}, "dpo": {}}
SHOWN = {mark: how for mark, how in MARKS.items() if mark not in ("greedy", "average")} | {
    "p_start": ("∂p at the start", 2),          # gradient on the rejected answer ÷ on the chosen
    "p_halfway": ("halfway", 2),
    "log_start": ("∂log p at the start", 2),
    "log_halfway": ("halfway", 2),
}


def gradient_ratios(name: str, p_w: float, p_l: float, **hyper) -> tuple[float, float]:
    """|gradient on the rejected answer| / |gradient on the chosen one|.

    First with respect to probabilities, then to log-probs. The reference is the policy itself.
    """
    method = METHODS[name](**hyper)
    logps = torch.tensor([p_w, p_l], dtype=torch.float64).log().view(2, 1, 1)       # (A, B, T)
    batch = Batch(mask=torch.ones(2, 1, 1, dtype=torch.bool), ref_logps=logps[..., 0])
    _, weights, _ = method.weigh(logps, batch)
    up, down = weights.flatten().abs().tolist()
    return down / p_l / (up / p_w), down / up


def balance(lab: Lab) -> Findings:
    runs = {name: Run(name, hyper, persona=None) for name, hyper in PAIRS.items()}
    data = lab.run(sft_and_control() | runs)
    right, wrong = data["base"]["right"], data["base"]["wrong"]
    for name, hyper in PAIRS.items():
        # Halfway, right and wrong have changed places.
        for place, w, l in (("start", right, wrong), ("halfway", wrong, right)):
            ratios = [gradient_ratios(name, *pair, **hyper) for pair in zip(w, l, strict=True)]
            data[name][f"p_{place}"] = [in_p for in_p, _ in ratios]
            data[name][f"log_{place}"] = [in_log for _, in_log in ratios]

    dpo, asft = data["dpo"], data["asft"]
    even = dict.fromkeys(("p_halfway", "log_halfway"), [1.0] * len(lab.seeds))
    dpo_p, dpo_log = Difference(dpo, even, "p_halfway"), Difference(dpo, even, "log_halfway")
    dpo_off, asft_off = (abs(math.log(average(marks["p_halfway"]))) for marks in (dpo, asft))
    limits = []
    if asft_off > dpo_off:
        limits.append("for DPO")
    if not dpo_log.above():
        limits.append("for gradients with respect to probabilities")
    found = verdict(dpo_p.above(), dpo_p.below(), " and only ".join(limits))

    moved = []
    for name in ("sft", "asft", "dpo"):
        good, bad = data[name]["good_logp_change"], data[name]["bad_logp_change"]
        moved.append(f"{name} {average(good):+.1f} and {average(bad):+.1f}")
    sentence = (
        "Gradient on the rejected answer ÷ gradient on the chosen one (1 is balance), where "
        "training has made right and wrong change places: in probabilities DPO "
        f"{show(dpo['p_halfway'], 2)} ({show(dpo['p_start'], 2)} at the start), ASFT "
        f"{show(asft['p_halfway'], 2)}; in log-probs DPO {show(dpo['log_halfway'], 2)}, ASFT "
        f"{show(asft['log_halfway'], 2)}. Training moved log-probs of chosen and rejected by "
        f"{', '.join(moved)}."
    )
    return Findings(data, found, sentence, partial(picture, data), SHOWN)


def picture(data: dict, *, folder, name: str) -> Path:
    """The two ratios over p(chosen), and beside them what training moved."""
    figure, (*ratios, moved) = plt.subplots(
        1, 3, figsize=(14.5, 4.4), width_ratios=[1, 1, 0.9], layout="constrained"
    )
    ps = [i / 60 for i in range(1, 60)]
    ratios[0].set(title="gradients in probabilities", ylabel="rejected ÷ chosen")
    ratios[1].set(title="gradients in log-probs")
    for i, axes in enumerate(ratios):
        axes.axhline(1, **plot.DASHES)
        axes.text(0.98, 1.12, "balanced", ha="right", fontsize=8.5, color="#555555")
        axes.set(yscale="log", ylim=(2e-3, 60), xlim=(0, 1), xlabel="p(chosen) = 1 − p(rejected)")
        plot.clean(axes)
        for method, hyper in PAIRS.items():
            ys = [gradient_ratios(method, p, 1 - p, **hyper)[i] for p in ps]
            axes.plot(ps, ys, color=COLOR[method], linewidth=2.2)

            # The name stands where the line leaves the picture: at its right end, or at its foot.
            x, y = [(p, y) for p, y in zip(ps, ys, strict=True) if 2.2e-3 < y < 60][-1]
            look = {"xytext": (9, 0), "ha": "left", "va": "center"}
            if y < 3e-3:
                look = {"xytext": (-5, 0), "ha": "right", "va": "bottom"}
            axes.annotate(method, (x, y), textcoords="offset points", color=COLOR[method],
                          fontsize=9, annotation_clip=False, **look)
    rows = ("dpo", "orpo", "asft", "sft")
    for y, method in enumerate(rows):
        marks, color = data[method], COLOR[method]
        plot.bar(moved, y + 0.2, marks["good_logp_change"], color, height=0.36, alpha=1.0)
        plot.bar(moved, y - 0.2, marks["bad_logp_change"], color, height=0.36, alpha=0.45)
    moved.axvline(0, color="#555555", linewidth=0.9)
    moved.set_yticks(range(len(rows)), rows)
    moved.set(title="what training moved",
              xlabel="change of log-prob: chosen (dark), rejected (pale)")
    plot.clean_rows(moved)
    figure.suptitle("Is the push on the rejected answer as strong as that on the chosen one?",
                    fontsize=13)
    return plot.save(figure, folder, name)
