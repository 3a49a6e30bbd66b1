"""Where the chosen answer falls under DPO, and what keeps it up.

A pair's answers begin with the same tokens, part at the fork, and go on apart (lab/places.py). Only
at the fork do they compete. In the opening DPO's two pushes meet on the same tokens in the same
contexts and cancel exactly, and behind the fork the chosen answer's tokens are pushed up alone. So
what it loses there spills over from other pushes, through parameters that the answers share.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from minialign.lab import plot
from minialign.lab.arena import Run
from minialign.lab.places import PLACES
from minialign.lab.plot import COLOR, average
from minialign.lab.race import Difference
from minialign.lab.studies.balance import ALONE, AlignmentAlone
from minialign.lab.studies.lab import Findings, Lab, in_parts, verdict
from minialign.lab.studies.tuned import at_best
from minialign.methods import METHODS
from minialign.stats import show

MARKS = {f"good_{place}_change": (f"chosen: {place}", 2) for place in PLACES} | {
    "good_logp_change": ("whole", 2), "bad_logp_change": ("rejected", 1), "right": ("right", 3),
    "garbage": ("neither", 3)}
CHOSEN = "dpo, its own rate"
COLORS = {ALONE: COLOR["orpo"], CHOSEN: COLOR["dpo"]}


@dataclass
class DPOAndSFT(METHODS["dpo"]):
    """DPO plus the likelihood of the chosen answer, with weight 1 and by its mean, as in ASFT."""

    def likelihood(self):
        return 1.0, "seq_mean"


def fall(lab: Lab) -> Findings:
    """All with one recipe, on pairs, and DPO also at the rate that was chosen for it.

    The rules: at that rate, what DPO's chosen answer gains at the fork is clearly above 0, and what
    it gains elsewhere, opening and behind together, clearly below. Likelihood keeps the whole up if
    with it, at the common rate, the chosen answer as a whole clearly rises.
    """
    data = lab.run({
        "dpo": Run("dpo", persona=None),
        CHOSEN: at_best("pairs", "dpo"),
        "dpo + sft": Run(DPOAndSFT, persona=None),
        ALONE: Run(AlignmentAlone, {"lam": 0.1}, persona=None),
        "asft": Run("asft", persona=None),
        "sft": Run("sft", persona=None),
    })
    for marks in data.values():
        if "good_logp_change" in marks:
            pairs = zip(marks["good_opening_change"], marks["good_behind_change"],
                        strict=True)
            marks["good_rest_change"] = [opening + behind for opening, behind in pairs]
    dpo = data[CHOSEN]
    zero = {mark: [0.0] * len(lab.seeds) for mark in dpo}
    fork = Difference(dpo, zero, "good_fork_change")
    elsewhere = Difference(dpo, zero, "good_rest_change")
    held = Difference(data["dpo + sft"], zero, "good_logp_change")
    found = in_parts({
        "it rises at the fork": verdict(fork.above(), fork.below()),
        "and falls elsewhere": verdict(elsewhere.below(), elsewhere.above()),
        "likelihood keeps the whole up": verdict(held.above(), held.below()),
    })

    told = []
    for name in ("dpo", CHOSEN, "dpo + sft", ALONE, "asft", "sft"):
        parts = ", ".join(f"{average(data[name][f'good_{place}_change']):+.2f}" for place in PLACES)
        told.append(f"{name} {parts} ({show(data[name]['good_logp_change'], 2)})")
    each = []
    for values in zip(*(data["dpo"][f"good_{place}_change"] for place in PLACES), strict=True):
        each.append("/".join(f"{value:.1f}" for value in values))
    sentence = (
        f"Change of the chosen answer's log-prob at {', '.join(PLACES)} (and whole), held out: "
        f"{'; '.join(told)}. DPO at the common rate, seed by seed: {', '.join(each)}. There are "
        "other answers than the two where it falls: P(neither) is "
        f"{show(data['dpo']['garbage'])} under DPO, {show(data['asft']['garbage'])} under ASFT, "
        f"{show(data['sft']['garbage'])} under SFT."
    )
    return Findings(data, found, sentence, partial(picture, data), MARKS, tests={
        "DPO's chosen answer at the fork, over 0": fork,
        "DPO's chosen answer elsewhere, over 0": elsewhere,
        "the chosen answer under dpo + sft, over 0": held,
    })


def picture(data: dict, *, folder, name: str) -> Path:
    """One bar per method, made of what the chosen answer loses or wins at each place."""
    rows = [row for row in data if row != "base"]
    figure, axes = plt.subplots(figsize=(8.6, 3.6), layout="constrained")
    for y, row in enumerate(reversed(rows)):
        marks, color = data[row], plot.color_of(row.split(" +")[0], COLORS)
        ends = {True: 0.0, False: 0.0}          # where the bar has got to, up and down
        for place, alpha in zip(PLACES, (1.0, 0.62, 0.3), strict=True):
            change = average(marks[f"good_{place}_change"])
            axes.barh(y, change, left=ends[change > 0], color=color, alpha=alpha, height=0.62,
                      edgecolor="white")
            if y == len(rows) - 1:
                axes.text(ends[change > 0] + change / 2, y + 0.4, place, ha="center", fontsize=9)
            ends[change > 0] += change
        axes.plot(marks["good_logp_change"], [y] * len(marks["good_logp_change"]), "o",
                  markersize=3.8, **plot.DOT)
    axes.axvline(0, color="#555555", linewidth=0.9)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="change of the chosen answer's log-prob, nats (dots: the whole, every seed)",
             title="Where does the chosen answer fall?")
    plot.clean_rows(axes)
    return plot.save(figure, folder, name)
