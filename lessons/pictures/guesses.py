"""The pictures of lessons 10 and 11."""

import matplotlib.pyplot as plt
import torch

from minialign.lab import plot

# -------------------------------------------------------------- 10: Live with your guesses: the GPT

OF_FORMS = {"SFT": (plot.COLOR["sft"], "-"), "γ = 0.5": ("#7bccb0", "-"),
            "γ = 0.95": (plot.COLOR["ift"], "-"), "eq. 21": (plot.COLOR["ift_eq21"], "--"),
            "γ = 0.95, detached": (plot.COLOR["ift"], ":")}
OF_GAMMAS = {0.0: plot.COLOR["sft"], 0.5: "#7bccb0", 0.95: plot.COLOR["ift"]}
OF_READS = (plot.COLOR["sft"], plot.COLOR["ift_eq21"], plot.COLOR["ift"], plot.COLOR["dft"])


def on_the_gpt(c, weight, pull, means, chances, whose):
    """Weights and pulls of one answer, IFT's argument, and what the doses do.

    c        (T,) the answer's losses; weight, {form: (T,)}
    pull     weights, log-probs → (T,)
    means    {what is read: mean probability of each token of the right answer}
    chances  {(γ, λ): one chance of the right answer per seed}
    whose    who computed the weights that trained
    """
    figure, grid = plt.subplots(2, 2, figsize=(13, 8.6), layout="constrained")
    tokens_of_an_answer(grid[0, 0], c, weight, "8 × weight",
                        "A surprise, then easy tokens: the weights")
    pulls = {name: pull(w, -c) for name, w in weight.items()}
    tokens_of_an_answer(grid[0, 1], c, pulls, "8 × weight · (1 − p)",
                        "… and what reaches the logits")
    argument(grid[1, 0], means)
    the_doses(grid[1, 1], chances, whose)
    return figure


def tokens_of_an_answer(axes, c, values, label, title):
    """One number per token and form."""
    last = len(c) - 1
    axes.axhline(0, color="#999999", linewidth=0.9)
    ends = []
    for name, xs in values.items():
        color, style = OF_FORMS[name]
        axes.plot(range(len(c)), 8 * xs, style, marker="o", markersize=4, color=color, linewidth=2)
        ends.append((last, 8 * float(xs[-1]), name, color))
    axes.set(xlim=(-0.3, last), xlabel="each token's loss", ylabel=label, title=title)
    axes.set_xticks(range(len(c)), [f"{x:g}" for x in c.tolist()])
    plot.clean(axes)
    plot.label_ends(axes, ends, size=9)


def argument(axes, means):
    """How likely the right answer's tokens are, behind whose words."""
    ends = []
    for (words, ps), color in zip(means.items(), OF_READS, strict=True):
        style = "--" if words == "its own words" else "-"
        axes.plot(range(1, len(ps) + 1), ps, style, color=color, linewidth=2.2)
        ends.append((len(ps), ps[-1], words, color))
    axes.set(xlim=(1, len(ps)), ylim=(0, 1.03), xlabel="token of the right answer",
             ylabel="its probability, mean", title="How likely is it, behind whose words?")
    plot.clean(axes)
    plot.label_ends(axes, ends, size=9.5)


def the_doses(axes, chances, whose):
    """The chance of the right answer over λ, a line per γ, a dot per seed."""
    doses = sorted({lam for _, lam in chances})
    ends = []
    for gamma in sorted({gamma for gamma, _ in chances}):
        ys = torch.tensor([chances[gamma, lam] for lam in doses])           # (doses, seeds)
        color = OF_GAMMAS[gamma]
        axes.plot(doses, ys, "o", color=color, alpha=0.5, markersize=4.5, markeredgewidth=0)
        axes.plot(doses, ys.mean(1), color=color, linewidth=2.4)
        ends.append((doses[-1], float(ys[-1].mean()), f"γ = {gamma:g}", color))
    sft = sum(chances[0.0, 0.0]) / len(chances[0.0, 0.0])
    axes.axhline(sft, color=OF_GAMMAS[0.0], linewidth=1, linestyle=":")
    axes.set(xlim=(-0.02, doses[-1]), xlabel="λ: how much of its own guess the policy reads",
             ylabel="chance of the right answer ↑",
             title="30 % of the labels wrong (dotted: SFT; dots: seeds)")
    axes.text(0.02, 0.03, f"trained with {whose}", transform=axes.transAxes, fontsize=9,
              color="#555555")
    plot.clean(axes)
    plot.label_ends(axes, ends, size=10)


# ------------------------------------------------------------------------------------- 11: The race


def color_of(name):
    """The filtered SFT looks like SFT with a difference."""
    return "#b8a06a" if name == "sft filtered" else plot.color_of(name)


def race(results, names, shown, against_sft, yours):
    """What every method reached on every seed, and how the chance of the right answer moved.

    results      {(condition, name): marks of every seed}
    shown        (condition, mark, title) of every panel
    against_sft  condition, name, mark → mean difference to SFT and its standard error
    yours        the methods that ran on the reader's functions
    """
    figure, (*panels, curves) = plt.subplots(1, 4, figsize=(17, 5), layout="constrained")
    for axes, (condition, mark, title) in zip(panels, shown, strict=True):
        sft = plot.average([m[mark] for m in results[condition, "sft"]])
        for y, name in enumerate(names):
            values, color = [m[mark] for m in results[condition, name]], color_of(name)
            gain, error = against_sft(condition, name, mark)
            axes.plot([sft + gain - error, sft + gain + error], [y, y], color=color, linewidth=7,
                      alpha=0.35, solid_capstyle="butt")
            axes.plot([sft + gain] * 2, [y - 0.3, y + 0.3], color=color, linewidth=3)
            axes.plot(values, [y] * len(values), "o", color=color, markersize=5.5)
        axes.axvline(sft, color=plot.COLOR["sft"], linewidth=1.2, linestyle=":")
        axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6), title=title,
                 xlabel="chance of the right answer →")
        told = [f"{name} (yours)" if name.split()[0] in yours else name for name in names]
        axes.set_yticks(range(len(names)), told if axes is panels[0] else [])
        plot.clean_rows(axes)
    race_curves(curves, results, names)
    return figure


def race_curves(axes, results, names):
    """The chance of the right answer over the updates, with noisy labels."""
    ends = []
    for name in names:
        if name == "sft x3":                    # three times as long
            continue
        seeds = [m["curve"] for m in results["30 % wrong", name]]
        mean = [plot.average(values) for values in zip(*seeds, strict=False)]
        steps = [4 * i for i in range(len(mean))]
        axes.plot(steps, mean, color=color_of(name), linewidth=2)
        ends.append((steps[-1], mean[-1], name, color_of(name)))
    axes.set(xlim=(0, max(4, *[end[0] for end in ends])), ylim=(0, 1), xlabel="updates",
             title="30 % wrong: how soon?")
    plot.clean(axes)
    plot.label_ends(axes, ends, size=10)


def bugs(histories, methods):
    """The curves of the bug hunt: a row per run, the healthy one in grey.

    histories  {run: points of the healthy run and of the one with a bug}, a point is (loss,
               log-prob of the right answer, of the wrong one)
    methods    {run: the method's name}
    """
    figure, grid = plt.subplots(len(histories), 3, figsize=(13, 6.5), layout="constrained")
    titles = ("training loss", "log-prob of the right answer (held out)", "of the wrong one")
    for row, (letter, both) in zip(grid, histories.items(), strict=True):
        for column, axes in enumerate(row):
            for points, color in zip(both, ("#bbbbbb", "#b2182b"), strict=True):
                axes.plot([p[column] for p in points], color=color, linewidth=2)
            axes.set_title(f"run {letter} ({methods[letter]}): {titles[column]}", fontsize=9.5)
            plot.clean(axes)
    for axes in grid[-1]:
        axes.set_xlabel("updates")
    for y, words, color in ((0.9, "with its bug", "#b2182b"), (0.76, "healthy", "#999999")):
        grid[0, 0].text(0.98, y, words, color=color, ha="right", transform=grid[0, 0].transAxes)
    return figure
