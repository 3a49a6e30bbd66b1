# %% [markdown]
# # 11 · The race
# **The question:** which method, when?
#
# Everybody starts from the same small GPT, which has learnt the wrong rule for "9.11 or 9.9?" (lesson 02), with the same 256
# questions, the same updates, the same learning rate; once with right labels, once with 30 % wrong ones. What is measured is
# exact: the probability of the right answer on other questions. You need lessons 05 to 09. Twenty minutes, about one and a half
# of them computing. Keep `minialign/lab/arena.py` open beside it; `python -m minialign compare` is this race, four times as large.
#
# **Guess first.** Rank SFT, ASFT, DFT, IFT and DPO, once for right labels and once for noisy ones. And one more: on questions to
# which the model has *always* known the answer ("9.2 or 9.55?"), who loses most by being trained? Write it down.

# %%
import copy
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from lessons import check
from minialign.generate import answers
from minialign.lab import plot
from minialign.lab.arena import LONGEST, RECIPE, Exam, fine_tuning_data, fine_tuning_questions
from minialign.logps import add_reference, batch_logps
from minialign.methods import build_method
from minialign.stats import show
from minialign.train import fit

args = check.options()
mine = check.mine(args)
model, tokenizer = check.base_model(args)
seeds, conditions = range(1 if args.fast else 5), {"right labels": 0.0, "30 % wrong": 0.3}
names = ("sft", "dft") if args.fast else ("sft", "sft x3", "ift", "asft", "simpo_sft", "dft", "dpo")
recipe = replace(RECIPE, epochs=1 if args.fast else 3)      # at 5e-4: of three rates the best, methods averaged, on seeds 7 and 8

# %% [markdown]
# ## Who gets what
# Everybody sees the wanted answer. Whoever needs something to push down gets two answers of the base model, asked as the Troll
# it knows from its childhood (DFT's "bad system prompt"): nobody labels them as bad. For DPO they are the rejected answers, which
# makes it SPIN. `sft x3` is the control that a fair race needs: SFT with three times the updates, which is what scoring two
# negatives costs.

# %%
def draw(seed):
    """The negatives of a seed: six answers of the base model to every question, in the Troll's name."""
    prompts = [tokenizer.encode(question.prompt("troll")) for question in fine_tuning_questions(seed)]
    pools = answers(model, tokenizer, prompts, 1 if args.fast else 6, LONGEST, 0.7, 50, None, torch.Generator().manual_seed(seed))
    return [[text or "?" for text, _ in pool] for pool in pools]


pools = {seed: draw(seed) for seed in seeds}
question = fine_tuning_questions(0)[0]
print(f"{question.prompt()} right: {question.right};  the Troll: {'  '.join(pools[0][0])}")

# %% [markdown]
# ## One run
# `fit` is the loop of the package: score, weigh, push, step. It yields after every update, so we can look at P(right).

# %%
def right(tuned, exam):
    """Mean probability of the right answer on some questions that nobody is tuned on."""
    with torch.no_grad():
        return float(batch_logps(tuned, exam.curve).sum(-1)[0].exp().mean())


def run(name, examples, exam, seed):
    """→ marks at the end, and P(right) after every fourth update."""
    tuned, how = copy.deepcopy(model), replace(recipe, seed=seed, epochs=recipe.epochs * (3 if name == "sft x3" else 1))
    method, curve = build_method(name.removesuffix(" x3"), {}, len(examples)), [right(tuned, exam)]
    for record in fit(tuned, method, examples, how):
        if record["step"] % 4 == 0:
            curve.append(right(tuned, exam))
    return {**exam.grade(tuned), "curve": curve}


began, results = time.perf_counter(), {}
for seed in tqdm(seeds, desc="seeds"):
    exam = Exam(tokenizer, seed)
    for condition, noise in conditions.items():
        examples = fine_tuning_data(tokenizer, seed, noise, pools[seed])[: 32 if args.fast else 256]
        add_reference(model, examples, micro_batch=64, progress=False)              # once, for DFT and DPO
        for name in names:
            results.setdefault((condition, name), []).append(run(name, examples, exam, seed))
print(f"{len(names) * len(conditions) * len(seeds)} runs in {time.perf_counter() - began:.0f} s")

# %% [markdown]
# One base model, five draws of questions, labels, negatives and order: dots and intervals know nothing of other base models.
# (`compare` trains one per seed.)

# %%
for condition in conditions:
    print(f"{condition:14} {'right':>15} {'always known':>15} {'reversing':>15}")
    for name in names:
        marks = results[condition, name]
        print(f"  {name:12} " + " ".join(f"{show([m[mark] for m in marks]):>15}" for mark in ("right", "agree", "skill")))

# %% [markdown]
# *Always known* are questions on which both rules agree; *reversing* is a skill nobody trains here. Keep an eye on both: a method
# can always be made to win what it is trained on.
#
# ## The picture

# %%
figure, (*panels, lines) = plt.subplots(1, 4, figsize=(17, 4.8), layout="constrained")
ahead, last_update = "chance of the right answer →", recipe.updates(len(examples))
shown = [("right labels", "right", "right labels: who beats SFT (dotted)?"),
         ("30 % wrong", "right", "30 % wrong: who beats SFT?"),
         ("30 % wrong", "agree", "30 % wrong: what is left of what it knew?")]
for axes, (condition, mark, title) in zip(panels, shown, strict=True):
    for y, name in enumerate(names):
        values = [m[mark] for m in results[condition, name]]
        axes.plot(values, [y] * len(values), "o", color=plot.COLOR[name], alpha=0.55, markersize=6, markeredgewidth=0)
        axes.plot([sum(values) / len(values)] * 2, [y - 0.32, y + 0.32], color=plot.COLOR[name], linewidth=3)
    level = sum(m[mark] for m in results[condition, "sft"]) / len(seeds)
    axes.axvline(level, color=plot.COLOR["sft"], linewidth=1.2, linestyle=":")
    axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6), xlabel=ahead, title=title)
    axes.set_yticks(range(len(names)), names if axes is panels[0] else [])
    plot.clean(axes)
    axes.grid(False)
goal, ends = sum(m["right"] for m in results["30 % wrong", "sft"]) / len(seeds), []
lines.axhline(goal, color=plot.COLOR["sft"], linewidth=1.2, linestyle=":")
for name in [name for name in names if name != "sft x3"]:
    mean = [sum(ys) / len(ys) for ys in zip(*(m["curve"] for m in results["30 % wrong", name]), strict=True)]
    lines.plot([4 * i for i in range(len(mean))], mean, color=plot.COLOR[name], linewidth=2)
    ends.append((4 * (len(mean) - 1), mean[-1], name, plot.COLOR[name]))
    steps = enumerate(zip(mean, mean[1:], strict=False))
    reached = next((4 * (i + (goal - a) / (b - a)) for i, (a, b) in steps if a < goal <= b), None)
    if reached is not None:
        lines.plot(reached, goal, "o", color=plot.COLOR[name], markersize=7)
    print(f"{name:10} reaches SFT's end " + (f"after {reached:.0f} updates" if reached is not None else "never"))
lines.set(xlim=(0, last_update), ylim=(0, 1), xlabel="updates (dots: SFT's end is reached)", ylabel=ahead,
          title="30 % wrong: how soon?")
plot.clean(lines)
plot.label_ends(lines, ends, size=10)
check.show(figure, "11")
for condition in conditions:
    order = sorted(names, key=lambda name: -sum(m["right"] for m in results[condition, name]))
    print(f"Your guess? {condition}: {', '.join(order)}.")
mean = [sum(ys) / len(ys) for ys in zip(*(m["curve"] for m in results["30 % wrong", "sft"]), strict=True)]
print(f"With noisy labels SFT is best after {4 * mean.index(max(mean))} updates ({max(mean):.2f}) and ends at {mean[-1]:.2f}.")
loser = min(names, key=lambda name: sum(m["agree"] for m in results["30 % wrong", name]))
print(f"Of what it always knew, {loser} loses most with noisy labels.")

# %% [markdown]
# What to expect, and why. With right labels SFT is hard to beat: at the token where the answers part, raising one number in a
# softmax *is* lowering the other (lesson 03). Negatives earn their price where labels lie (lesson 07), and whoever pushes down
# what the model says, pushes down what it says rightly. DPO knows only a difference; nothing holds the right answer up (06).
# The same learning rate for all is one fair choice; each at its own is another, and orders can change with it. A ranking is a
# statement about a task, a start, labels, a budget and a rate. Whoever shows you one without these has shown you nothing.
#
# ## Exercise ●●○ (10 minutes): the bug hunt
# Three runs with right labels, each with one bug. The grey line is the same method, healthy. Name the bugs from the curves alone.

# %%
hunt = check.planted(fine_tuning_data(tokenizer, 0, 0.0, None)[: 32 if args.fast else 256], model)
exam, figure = Exam(tokenizer, 0), plt.figure(figsize=(13, 6.5), layout="constrained")
for row, letter in enumerate("ABC"):
    for healthy, (method, examples) in zip((True, False), hunt[letter], strict=True):
        tuned, points = copy.deepcopy(model), []
        for record in fit(tuned, method, examples, replace(recipe, lr=1e-3)):
            points.append([record["loss"], *exam.point(tuned)])
        for column, title in enumerate(("training loss", "log-prob of the right answer (held out)", "of the wrong one")):
            axes = figure.add_subplot(3, 3, 3 * row + column + 1) if healthy else figure.axes[3 * row + column]
            axes.plot([p[column] for p in points], color="#bbbbbb" if healthy else "#b2182b", linewidth=2)
            axes.set_title(f"run {letter} ({type(hunt[letter][0][0]).__name__}): {title}", fontsize=9.5)
            axes.set_xlabel("updates" if letter == "C" else "")
            plot.clean(axes)
figure.axes[0].text(0.98, 0.9, "with its bug", color="#b2182b", ha="right", transform=figure.axes[0].transAxes)
figure.axes[0].text(0.98, 0.78, "healthy", color="#999999", ha="right", transform=figure.axes[0].transAxes)
check.show(figure, "11_bugs")
for number, bug in enumerate(check.BUGS, start=1):
    print(f"{number}. {bug}")

# %% [markdown]
# <details><summary>Hint</summary>Ask of each run: does the loss fall? Does what is tested rise with it? What would the loss have
# to be if the two things it compares were the same thing?</details>

# %%
print(check.bug_hunt(mine.bug_hunt))

# %% [markdown]
# ## Try
# * `names = tuple(METHODS)` (from minialign.methods; without kto, which wants mismatched answers): the whole field.
# * `draw` with "plain" in place of "troll": negatives that are bad only as often as the model is.
# * The Sage's answers ("sage") as negatives. Who still learns, and what?
#
# **Next:** 12, where all the memory goes.

# %%
# region Solution: unfold when you have tried
def bug_hunt():
    # A: the loss falls, but what is tested falls too: it trains something else, copying the token it has just read.
    # B: the loss is log 2 for ever, for reference and policy are one; its gradient is not 0, and has no end.
    # C: everything works, the wrong way round.
    return 2, 3, 1
# endregion
