"""What "balanced" means: the gradients of DPO and ASFT on a pair, exactly, in two coordinates, and what training then does.

For answers of one token with probabilities p_w (chosen) and p_l (rejected): how much larger is the gradient on the rejected
answer than on the chosen one? With respect to probabilities (the ASFT paper's x₁, x₂) and to log-probs the answers differ, by
∂L/∂p = (∂L/∂log p) / p.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from minialign.data import Batch
from minialign.lab.arena import Run
from minialign.lab.plot import COLOR
from minialign.lab.studies import plots
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, Difference, Findings, Lab, sft_and_control
from minialign.methods import METHODS
from minialign.stats import show

PAIRS = {"asft": {"lam": 0.1}, "orpo": {}, "dpo": {}}
SHOWN = {"right": ("right", 3), "wrong": ("known wrong", 3), "garbage": ("garbage", 3), "skill": ("reversing", 3),
         "agree": ("agreed", 3), "good_logp_change": ("Δ log-prob good", 2), "bad_logp_change": ("Δ log-prob bad", 1),
         "p_start": ("∂p at the start", 2), "p_halfway": ("halfway", 2), "log_start": ("∂log p at the start", 2),
         "log_halfway": ("halfway", 2)}         # gradient on the rejected answer ÷ gradient on the chosen one


def gradient_ratios(name: str, p_w: float, p_l: float, **hyper) -> tuple[float, float]:
    """|gradient on the rejected answer| / |gradient on the chosen one|, with respect to probabilities and to log-probs."""
    method = METHODS[name](**hyper)
    logps = torch.tensor([p_w, p_l], dtype=torch.float64).log().view(2, 1, 1)       # (A, B, T), and the reference is the policy
    batch = Batch(mask=torch.ones(2, 1, 1, dtype=torch.bool), ref_logps=logps[..., 0])
    _, weights, _ = method.weigh(logps, batch)
    up, down = weights.flatten().abs().tolist()
    return down / p_l / (up / p_w), down / up


def balance(lab: Lab) -> Findings:
    data = lab.run(sft_and_control() | {name: Run(name, hyper, persona=None) for name, hyper in PAIRS.items()})
    base = data["base"]
    for name, hyper in PAIRS.items():   # at the start, and halfway, where right and wrong have changed places
        for place, (w, l) in {"start": ("right", "wrong"), "halfway": ("wrong", "right")}.items():
            ratios = [gradient_ratios(name, p_w, p_l, **hyper) for p_w, p_l in zip(base[w], base[l], strict=True)]
            for i, space in enumerate(("p", "log")):
                data[name][f"{space}_{place}"] = [ratio[i] for ratio in ratios]
    even = {mark: [1.0] * len(lab.seeds) for mark in ("p_halfway", "log_halfway")}
    dpo_p, dpo_log = (Difference(data["dpo"], even, f"{space}_halfway") for space in ("p", "log"))
    off = {name: abs(math.log(plots.average(data[name]["p_halfway"]))) for name in ("dpo", "asft")}
    limits = ["for DPO"] * (off["asft"] > off["dpo"]) + ["for gradients with respect to probabilities"] * (not dpo_log.above())
    if dpo_p.above():
        verdict = "holds only " + " and only ".join(limits) if limits else HOLDS
    else:
        verdict = NOT if dpo_p.below() else OPEN
    moved = ", ".join(f"{name} {plots.average(data[name]['good_logp_change']):+.1f} and "
                      f"{plots.average(data[name]['bad_logp_change']):+.1f}" for name in ("sft", "asft", "dpo"))
    p, at_start, log = ({name: show(data[name][mark], 2) for name in ("dpo", "asft")}
                        for mark in ("p_halfway", "p_start", "log_halfway"))
    sentence = ("Gradient on the rejected answer ÷ gradient on the chosen one (1 is balance), where training has made right and "
                f"wrong change places: in probabilities DPO {p['dpo']} ({at_start['dpo']} at the start), ASFT {p['asft']}; in "
                f"log-probs DPO {log['dpo']}, ASFT {log['asft']}. Training moved log-probs of chosen and rejected by {moved}.")
    return Findings(data, verdict, sentence, lambda out: picture(data, out), SHOWN)


def picture(data: dict, out: Path) -> Path:
    figure, axes = plt.subplots(1, 3, figsize=(14.5, 4.4), width_ratios=[1, 1, 0.9], layout="constrained")
    ps = [i / 60 for i in range(1, 60)]
    titles = {"gradients in probabilities": "rejected ÷ chosen", "gradients in log-probs": ""}
    for i, (title, ylabel) in enumerate(titles.items()):
        ends = []
        for name, hyper in PAIRS.items():
            ys = [gradient_ratios(name, p, 1 - p, **hyper)[i] for p in ps]
            axes[i].plot(ps, ys, color=COLOR[name], linewidth=2.2)
            ends.append([(p, y, name, COLOR[name]) for p, y in zip(ps, ys, strict=True) if 2.2e-3 < y < 60][-1])
        axes[i].axhline(1, color="#999999", linewidth=0.9, linestyle=(0, (4, 3)))
        axes[i].text(0.98, 1.12, "balanced", ha="right", fontsize=8.5, color="#555555")
        axes[i].set(yscale="log", ylim=(2e-3, 60), xlim=(0, 1), xlabel="p(chosen) = 1 − p(rejected)", ylabel=ylabel, title=title)
        plots.clean(axes[i])
        for x, y, name, color in ends:
            axes[i].annotate(name, (x, y), xytext=(-5, 0) if y < 3e-3 else (9, 0), textcoords="offset points", color=color,
                             ha="right" if y < 3e-3 else "left", va="bottom" if y < 3e-3 else "center", fontsize=9,
                             annotation_clip=False)
    names = [name for name in ("dpo", "orpo", "asft", "sft") if name in data]
    for y, name in enumerate(names):
        for offset, mark, sign in ((0.2, "good_logp_change", 1), (-0.2, "bad_logp_change", 1)):
            value = sign * plots.average(data[name][mark])
            axes[2].barh(y + offset, value, height=0.36, color=COLOR[name], alpha=1.0 if mark[0] == "g" else 0.45)
            axes[2].plot(data[name][mark], [y + offset] * len(data[name][mark]), "o", color="white", markeredgecolor="black",
                         markersize=3.5)
    axes[2].axvline(0, color="#555555", linewidth=0.9)
    axes[2].set_yticks(range(len(names)), names)
    axes[2].set(title="what training moved", xlabel="change of log-prob: chosen (dark), rejected (pale)")
    axes[2].spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle("Is the push on the rejected answer as strong as that on the chosen one?", fontsize=13)
    return plots.save(figure, out, "study_balance")
