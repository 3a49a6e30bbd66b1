"""What "balanced" means: how much larger the gradient is on a pair's rejected answer.

For answers of one token with probabilities p_w (chosen) and p_l (rejected) that depends on what the
gradient is taken with respect to: probabilities, as in the ASFT paper, log-probs, or the logits,
where it enters the network. It also depends on whether ASFT's likelihood term counts. All of it is
exact; nothing is trained here. What training moves is the study `fall`.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

from minialign.data import Batch
from minialign.lab import plot
from minialign.lab.plot import COLOR
from minialign.lab.race import Difference
from minialign.lab.studies.lab import SMALL, Findings, Lab, verdict
from minialign.methods import METHODS
from minialign.stats import show


@dataclass
class AlignmentAlone(METHODS["asft"]):
    """ASFT without its likelihood term: λ · [ −log σ(log O_w) − log σ(−log O_l) ] alone."""

    def weigh(self, logps, batch):
        loss, weights, info = super().weigh(logps, batch)
        likelihood, push, _ = METHODS["sft"]().weigh(logps, batch)
        del info["loss_per_example"]
        return loss - likelihood, weights - push, info


ALONE = "asft, alignment alone"
KINDS = {"dpo": METHODS["dpo"], ALONE: AlignmentAlone, "asft": METHODS["asft"]}
COLORS = {ALONE: COLOR["asft"], "asft": "#f0b184"}
WHERE = {"dpo": 48, ALONE: 30, "asft": 45}      # of 59: a line's name in the picture
COORDINATES = {         # names of the ratios below: how they are spoken of
    "p": "in probabilities",
    "log_p": "in log-probs",
    "logits": "at the logits of two contexts",
    "one_context": "at the logits of one context",
}


class Ratios(NamedTuple):
    """|gradient on the rejected answer| / |gradient on the chosen one|, in four coordinates.

    With the pushes up = −∂L/∂log p_w and down = ∂L/∂log p_l:
        p             ∂L/∂p = (∂L/∂log p) / p, so (down / p_l) / (up / p_w)
        log_p         down / up
    Three logits have the probabilities p_w, p_l and r = 1 − p_w − p_l. The gradients of the loss by
    them are, by ∂log p_y/∂z = onehot(y) − softmax,
        up · (p_w − 1, p_l, r)  for the chosen answer,  down · (−p_w, 1 − p_l, −r)  for the rejected
        logits        the ratio of the lengths of these two vectors, each answer in a context of its
                      own; where r = 0 it is the ratio in probabilities again
        one_context   both answers in one context, as here: the vectors add up first, and what is
                      compared is the sum on l, up p_l + down (1 − p_l), and on w,
                      −up (1 − p_w) − down p_w. For up = down that is +up and −up: the softmax parts
                      have cancelled
    """

    p: float
    log_p: float
    logits: float
    one_context: float


def gradient_ratios(name: str, p_w: float, p_l: float, **hyper) -> Ratios:
    """How much larger a method's gradient is on the rejected answer than on the chosen one.

    Answers of one token with probabilities p_w + p_l ≤ 1; the reference is the policy itself.

    name    a name in METHODS, or ALONE
    hyper   settings of the method
    """
    method = {**METHODS, **KINDS}[name](**hyper)
    logps = torch.tensor([p_w, p_l], dtype=torch.float64).log().view(2, 1, 1)       # (A, B, T)
    batch = Batch(mask=torch.ones(2, 1, 1, dtype=torch.bool), ref_logps=logps[..., 0])
    _, weights, _ = method.weigh(logps, batch)
    up, down = weights.flatten().abs().tolist()

    r = 1 - p_w - p_l
    length_w, length_l = math.hypot(1 - p_w, p_l, r), math.hypot(p_w, 1 - p_l, r)
    return Ratios(
        p=down / p_l / (up / p_w),
        log_p=down / up,
        logits=down * length_l / (up * length_w),
        one_context=(up * p_l + down * (1 - p_l)) / (up * (1 - p_w) + down * p_w),
    )


def balance(lab: Lab) -> Findings:
    """The rule: in a coordinate the claim holds if DPO's ratio is clearly above 1 and that of ASFT,
    its alignment term alone, is nearer to 1.
    """
    base = lab.run({})["base"]

    # Taken where a run passes halfway: right and wrong have the base model's probabilities swapped.
    data = {"base": base}
    for name in KINDS:
        data[name] = {coordinate: [] for coordinate in COORDINATES}
        for right, wrong in zip(base["right"], base["wrong"], strict=True):
            both = gradient_ratios(name, wrong, right)
            for coordinate in COORDINATES:
                data[name][coordinate].append(getattr(both, coordinate))

    even = {coordinate: [1.0] * len(lab.seeds) for coordinate in COORDINATES}
    found, tests, against, ratios = [], {}, [], {}
    for coordinate, words in COORDINATES.items():
        larger = ratios[coordinate] = Difference(data["dpo"], even, coordinate)
        if larger.above() and off(data[ALONE], coordinate) < off(data["dpo"], coordinate):
            found.append(words)
            tests[f"DPO's ratio {words} over 1"] = larger
            if off(data["asft"], coordinate) > off(data["dpo"], coordinate):
                against.append(words)
    even_or_less = all(d.below() or d.within(SMALL) for d in ratios.values())
    limits = []
    if len(found) < len(COORDINATES):
        limits.append(" and ".join(found))
    if against:
        limits.append("for the alignment term without the likelihood term")
    told = []
    for coordinate, words in COORDINATES.items():
        told.append(f"{words} " + ", ".join(show(data[line][coordinate], 2) for line in KINDS))
    sentence = (
        "Gradient on the rejected answer ÷ gradient on the chosen one (1 is balance), halfway, "
        f"where right and wrong have changed places: {'; '.join(KINDS)}: {'; '.join(told)}."
    )
    shown = {coordinate: (words, 2) for coordinate, words in COORDINATES.items()}
    return Findings(data, verdict(bool(found), even_or_less, ", ".join(limits)), sentence,
                    partial(picture, base), shown, tests=tests)


def off(marks: dict[str, list], coordinate: str) -> float:
    """How far a ratio is from 1, in factors: the mean of |log ratio| over the seeds."""
    return plot.average([abs(math.log(ratio)) for ratio in marks[coordinate]])


def picture(base: dict, *, folder, name: str) -> Path:
    """The four ratios over p(chosen), the rejected answer having nearly all the rest."""
    figure, panels = plt.subplots(
        1, len(COORDINATES), figsize=(15.5, 4.2), sharey=True, layout="constrained"
    )
    # What neither answer has is the base model's share of other answers.
    rest = plot.average([1 - x - y for x, y in zip(base["right"], base["wrong"], strict=True)])
    ps = [(1 - rest) * i / 60 for i in range(1, 60)]
    for i, (axes, words) in enumerate(zip(panels, COORDINATES.values(), strict=True)):
        axes.axhline(1, **plot.DASHES)
        axes.set(yscale="log", ylim=(2e-3, 60), xlim=(0, 1), xlabel="p(chosen)", title=words)
        plot.clean(axes)
        for line in KINDS:
            ys = [gradient_ratios(line, p, 1 - rest - p)[i] for p in ps]
            color = plot.color_of(line, COLORS)
            axes.plot(ps, ys, color=color, linewidth=2.2)
            if i == 0:
                axes.annotate(line, (ps[WHERE[line]], ys[WHERE[line]]), xytext=(0, 6), color=color,
                              textcoords="offset points", ha="right", fontsize=9)
    panels[0].set_ylabel("gradient on rejected ÷ on chosen")
    panels[-1].text(0.5, 1.2, "balanced", ha="center", fontsize=8.5, color="#555555")
    figure.suptitle("Is a pair's rejected answer pushed harder than its chosen one?", fontsize=13)
    return plot.save(figure, folder, name)
