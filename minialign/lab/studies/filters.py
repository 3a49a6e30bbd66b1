"""DFT's gain over SFT against what its negatives are, beside a filter made of the same negatives.

The negatives are made, so their share of wrong answers is exact: none of them comes from a model.
"""

from functools import partial

from minialign.lab import plot
from minialign.lab.arena import Run
from minialign.lab.race import CONDITIONS, Difference
from minialign.lab.studies.lab import SMALL, Findings, Lab, verdict

NOISE = CONDITIONS["noisy"]                     # share of the labels that are wrong
SHARES = (0.05, 0.35, 0.5, 0.8, 0.95)           # shares of the negatives that are wrong
COLORS = {"dft": plot.COLOR["dft"], "filter": plot.COLOR["sft filtered"],
          "sft": plot.COLOR["sft"]}


def named(method: str, share: float) -> str:
    return f"{method}, {share:.0%} wrong"


def judged(gains: dict[float, Difference]) -> str:
    """The verdict, from DFT's gain over SFT at every share.

    It holds if there is a clear gain somewhere, and none worth the name where the negatives are
    wrong no more often than the labels. It fails if there is one there, or none anywhere. To be
    wrong more often may not be enough: then the verdict says so.
    """
    below = [gain for share, gain in gains.items() if share <= NOISE]
    above = [gain for share, gain in gains.items() if share > NOISE]
    holds = any(gain.above() for gain in above) and all(gain.below(SMALL) for gain in below)
    nowhere = all(gain.below(SMALL) for gain in gains.values())
    found = verdict(holds, nowhere or any(gain.above() for gain in below))
    if holds and any(gain.below() for gain in above):
        found += ", but not everywhere there"
    return found


def line(data: dict, method: str, mark: str) -> list[list[tuple[float, float]]]:
    """One list of (share, mark) per seed, for the picture."""
    runs = []
    for seed in range(len(data["sft"][mark])):
        run = []
        for share in SHARES:
            setting = "sft" if method == "sft" else named(method, share)
            run.append((share, data[setting][mark][seed]))
        runs.append(run)
    return runs


def filters(lab: Lab) -> Findings:
    runs = {"sft": Run("sft", noise=NOISE)}
    for share in SHARES:
        made = {"noise": NOISE, "made_wrong": share}
        runs[named("dft", share)] = Run("dft", **made)
        runs[named("filter", share)] = Run("sft", filtered=True, **made)
    data = lab.run(runs)

    gains, told = {}, []
    for share in SHARES:
        gains[share] = Difference(data[named("dft", share)], data["sft"], "right")
        over = Difference(data[named("dft", share)], data[named("filter", share)], "right")
        price = Difference(data[named("dft", share)], data["sft"], "agree")
        told.append(f"{share:.0%} wrong: {gains[share]} over SFT, {over} over the filter, "
                    f"agreed questions {price}")
    sentence = (
        f"DFT's right answers, by the share of its negatives that are wrong ({NOISE:.0%} of the "
        f"labels are): {'; '.join(told)}. The filter is SFT without the examples whose label a "
        "negative repeats. On agreed questions the negatives are always right."
    )
    panels = []
    for mark, words in (("right", "right answers"), ("agree", "agreed questions answered right")):
        lines = {method: line(data, method, mark) for method in COLORS}
        panels.append(("", f"{words} ↑", lines))
    question = f"{NOISE:.0%} wrong labels: what do the negatives tell?"
    return Findings(data, judged(gains), sentence, partial(
        plot.curves, [panels], question, COLORS, mark=(NOISE, "as wrong as the labels"),
        xlabel="share of the made negatives that are wrong"),
        tests={f"dft over sft, negatives {share:.0%} wrong": gain
               for share, gain in gains.items()})
