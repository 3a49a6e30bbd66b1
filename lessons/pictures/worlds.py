"""The pictures of lessons 08, 09, 13 and 14."""

import matplotlib.pyplot as plt

from minialign.lab import plot
from toy import lake as lakes
from toy.plot import policy_map, square

SFT, TEACHER = plot.COLOR["sft"], "#d9a400"
FRAME = {"fill": False, "edgecolor": "#7b3294", "linewidth": 2}

# ------------------------------------------------------------------------------------- 08: The lake


def the_lake(lake, maps, across, chances, best, by):
    """Policies on the map, and how students get across, over the number of walks they saw.

    maps     (title, policy (S, 4), which cells were shown (S,) or None) of every panel
    across   policy → chance to get across
    chances  {walks shown: a chance per student}
    best     the teacher's chance
    by       who computed what: a few words, or none
    """
    figure, (*panels, curve) = plt.subplots(
        1, len(maps) + 1, figsize=(15, 4.4), width_ratios=[1] * len(maps) + [0.95],
        layout="constrained")
    for axes, (title, policy, shown) in zip(panels, maps, strict=True):
        color = TEACHER if shown is None else SFT
        policy_map(axes, lake.rows, policy, lake.optimal, lakes.seen(lake, policy), color)
        if shown is not None:
            for s in shown.nonzero()[:, 0].tolist():
                square(axes, s, len(lake.rows[0]), **FRAME)
        axes.set_title(f"{title}:\n{across(policy):.0%} get across", fontweight="bold")
    panels[0].set_xlabel(by, color=SFT)

    # Every dot is a student, the line goes through the medians.
    curve.axhline(best, color=TEACHER, linewidth=2)
    curve.text(min(chances), best + 0.01, "teacher", color="#a07a00", va="bottom")
    medians = [sorted(values)[len(values) // 2] for values in chances.values()]
    curve.plot(list(chances), medians, color=SFT, linewidth=2.4)
    for walks, values in chances.items():
        curve.plot([walks] * len(values), values, "o", color=SFT, alpha=0.4, markersize=5,
                   markeredgewidth=0)
    curve.set(xscale="log", ylim=(0, 1), xlabel="walks shown",
              ylabel="chance to get across ↑", title="every dot a student, the line their median")
    curve.set_xticks(list(chances), [str(walks) for walks in chances], minor=False)
    curve.minorticks_off()
    plot.clean(curve)
    return figure
