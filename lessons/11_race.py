# %% [markdown]
# # 11 · The race
# **The question:** which method, when?
#
# Everybody starts from the same small GPT, which has learnt the wrong rule for “9.11 or 9.9?”, with
# the same 256 questions, the same number of updates (two controls aside) and the same learning
# rate; once with right labels, once with 30 % wrong ones. What is measured is exact: the
# probability of the right answer to other questions. The five methods, and the two controls, run on
# the functions that you wrote, where they are right.
#
# You need lessons 05, 06, 07 and 10. Forty minutes, a minute and a half of computing. Keep
# `minialign/lab/arena.py` open beside it; `python -m minialign compare` is this race, larger.
#
# **Guess first.** Rank SFT, ASFT, DFT, IFT and DPO, once for right labels and once for noisy ones.
# And one more: on *agreed* questions, where both rules say the same and the model has always known
# the answer (“9.2 or 9.55?”), who loses most by being trained on noisy labels? Write it down.

# %%
import copy
import random
from dataclasses import replace

import torch

from lessons import check, own
from lessons.pictures import guesses as pictures
from minialign.generate import answers
from minialign.lab import arena, tasks
from minialign.logps import add_reference, batch_logps
from minialign.stats import show
from minialign.train import fit

args = check.options()
mine = check.mine(args)
model, tokenizer = check.base_model(args)

# %% [markdown]
# ## Who runs
# Everybody sees the wanted answer. Whoever needs something to push down gets answers of the base
# model, asked as the Troll (lesson 07): nobody labels them as bad. Six are drawn for each question,
# and every epoch takes two of them. For DPO and ASFT they are the rejected answers. Two controls
# run along, without which a race says little: *SFT x3*, with three times the updates, which is what
# it costs to read two negatives beside each answer; and *SFT filtered*, which drops the examples
# whose label the Troll repeats (so it has fewer). Here is what the graders say of your functions:

# %%
seeds = range(1 if args.fast else 4)
conditions = {"right labels": 0.0, "30 % wrong": 0.3}
everyone = ("sft", "sft x3", "sft filtered", "ift", "asft", "dft", "dpo")
names = ("sft", "dft") if args.fast else everyone
n, recipe = 32 if args.fast else 256, replace(arena.RECIPE, epochs=1 if args.fast else 3)
verdicts = {}
for name in "sft", "ift", "asft", "dft", "dpo":
    verdicts[name] = getattr(check, name)(getattr(mine, name))
    print(f"{name:5} {verdicts[name]}")


# %%
def draw(seed):
    """The negatives of a seed: answers of the base model to every question, in the Troll's name."""
    prompts = [tokenizer.encode(q.prompt("troll")) for q in arena.fine_tuning_questions(seed)[:n]]
    k, generator = 2 if args.fast else 6, torch.Generator().manual_seed(seed)
    pools = answers(model, tokenizer, prompts, k, arena.LONGEST, 0.7, 50, None, generator)
    texts = [[text or "?" for text, _ in pool] for pool in pools]
    return texts + [["?"]] * (arena.N_TRAIN - n)                # nobody is trained on the others


pools = {seed: draw(seed) for seed in seeds}
for disputed in True, False:
    i, q = next((i, q) for i, q in enumerate(arena.fine_tuning_questions(0))
                if q.disputed == disputed)
    print(f"{'disputed' if disputed else 'agreed':8}  {q.prompt()} right: {q.right}   "
          f"the Troll: {'  '.join(pools[0][i])}")


# %% [markdown]
# ## One run
# `fit` is the loop of the package: score, weigh, push, step. It yields after every update, so we
# can look at the probability of the right answer on the way.

# %%
def right(tuned, exam):
    """Mean probability of the right answer to some questions that nobody is tuned on."""
    with torch.no_grad():
        return float(batch_logps(tuned, exam.curve).sum(-1)[0].exp().mean())


# %%
def run(name, examples, exam, seed):
    """→ the tuned model, its marks, and P(right) after every fourth update."""
    epochs = recipe.epochs * (3 if name == "sft x3" else 1)
    if name == "sft filtered":
        examples = arena.filtered(examples)
    kind = name.split()[0]
    method = own.method(kind, getattr(mine, kind), verdicts[kind], n)
    tuned, curve = copy.deepcopy(model), [right(model, exam)]
    for record in fit(tuned, method, examples, replace(recipe, seed=seed, epochs=epochs)):
        if record["step"] % 4 == 0:
            curve.append(right(tuned, exam))
    return tuned, {**exam.grade(tuned), "curve": curve}


# %%
results, kept, before = {}, {"before": model}, []
for seed in seeds:
    exam = arena.Exam(tokenizer, seed)
    before.append(exam.grade(model))
    for condition, noise in conditions.items():
        examples = arena.fine_tuning_data(tokenizer, seed, noise, pools[seed])[:n]
        add_reference(model, examples, micro_batch=64, progress=False)      # once, for DFT and DPO
        for name in names:
            tuned, marks = run(name, examples, exam, seed)
            results.setdefault((condition, name), []).append(marks)
            if seed == 0 and noise > 0:
                kept[name] = tuned

# %% [markdown]
# One base model, a few draws of questions, labels, negatives and order. So what follows knows
# nothing of other base models (`compare` trains one per seed). *Disputed* and *agreed* are
# probabilities of the right answer, on questions of these two kinds. *Reversing* is a skill nobody
# trains here. Keep an eye on the last two: a method can always be made to win what it is trained
# on. Behind ± stands the half-width of a 95 % interval over the seeds.

# %%
def row(name, marks):
    """A line of the table."""
    columns = [show([m[mark] for m in marks]) for mark in ("right", "agree", "skill")]
    return f"  {name:12} " + " ".join(f"{column:>15}" for column in columns)


print(f"{'':14} {'disputed':>15} {'agreed':>15} {'reversing':>15}\n{row('before', before)}")
for condition in conditions:
    print(condition)
    for name in names:
        print(row(name, results[condition, name]))

# %% [markdown]
# And in words. Trained with noisy labels, three answers each to two questions of the test, a
# disputed one and an agreed one:

# %%
_, test = tasks.all_questions(random.Random(0))
some = [next(q for q in test if q.disputed), next(q for q in test if not q.disputed)]
print("right would be", " and ".join(q.right for q in some))
for name, tuned in kept.items():
    print(name)
    check.talk(tuned, tokenizer, [q.prompt() for q in some])

# %% [markdown]
# ## Exercise 1 ●●○ (10 minutes): `difference`
# Is a method better than SFT, or was it lucky? Of each seed you know what both reached, on the same
# questions with the same labels: so take the difference seed by seed, and what both owe to a lucky
# draw is gone. Return the mean of the differences, and its standard error: their standard deviation
# (with n − 1 below) divided by √n. If it is right, it draws the bars of the picture.
#
# <details><summary>Hint</summary>
#
# `(ours - theirs).std()` has the n − 1 already.
# </details>

# %%
verdict = check.difference(mine.difference)
print(verdict)


# %%
def against_sft(condition, name, mark):
    """Mean difference to SFT of the same seeds, and its standard error."""
    ours, theirs = (torch.tensor([m[mark] for m in results[condition, who]], dtype=torch.float64)
                    for who in (name, "sft"))
    if check.is_right(verdict) and len(seeds) > 1:
        mean, error = mine.difference(ours, theirs)
        return float(mean), float(error)
    gaps = ours - theirs
    return float(gaps.mean()), float(gaps.std(unbiased=False) / max(1, len(gaps) - 1) ** 0.5)


# %% [markdown]
# ## The picture
# Every dot is a seed, and the upright mark is the method's mean. The pale bar is one standard error
# of its difference to SFT to either side: a method whose pale bar is far from the dotted line
# differs from SFT. Below the picture, “better” and “worse” ask for more than 3.2 standard errors,
# which is what Student's t asks of four seeds for 95 %.

# %%
shown = [("right labels", "right", "right labels: who beats SFT?"),
         ("30 % wrong", "right", "30 % wrong: who beats SFT?"),
         ("30 % wrong", "agree", "30 % wrong: what is left on agreed questions?")]
yours = [name for name, said in verdicts.items() if check.is_right(said)]
check.show(pictures.race(results, names, shown, against_sft, yours), "11")

# %%
for condition in conditions:
    mean = {name: sum(m["right"] for m in results[condition, name]) / len(seeds) for name in names}
    order = sorted(names, key=lambda name: -mean[name])
    print(f"Your guess? {condition}: " + ", ".join(f"{name} {mean[name]:.2f}" for name in order))
    for name in names[1:]:
        gain, error = against_sft(condition, name, "right")
        if abs(gain) > 3.2 * error and len(seeds) > 1:
            word = "better" if gain > 0 else "worse"
            print(f"  {name} is {word} than sft by {abs(gain):.3f} ± {error:.3f}")
known = {name: sum(m["agree"] for m in results["30 % wrong", name]) for name in names}
loser = min(known, key=known.get)
print(f"On agreed questions, {loser} keeps least with noisy labels: "
      f"{known[loser] / len(seeds):.2f}.")

# %%
curves = [m["curve"] for m in results["30 % wrong", "sft"]]
mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
print(f"30 % wrong, sft on the way: best after {4 * mean.index(max(mean))} updates with "
      f"{max(mean):.2f}, at the end {mean[-1]:.2f}")

# %% [markdown]
# How to read it.
#
# * *Right labels.* Of the five methods none beats SFT on disputed questions; only *SFT x3* does. At
#   the token where the answers part, raising one digit in a softmax *is* lowering the other (lesson
#   03). Whoever wants to beat SFT there must find something that SFT has left.
# * *Wrong labels.* Seven labels in ten are right. SFT passes 0.70 on its way, and ends below: what
#   it learns last is the mixture that it is shown, wrong labels and all (lesson 05). Negatives that
#   are wrong wherever it matters say which labels are: ASFT, DFT and *SFT filtered* are ahead. But
#   DFT and the filter, which takes nothing else from the negatives, reach the same. So the credit
#   for it goes to the negatives, not to the method (lesson 07).
# * *Agreed questions.* Everybody loses here, SFT too. The Troll is right on these questions, like
#   everybody. Whoever pushes down what he says, or drops what he repeats, loses more. With noisy
#   labels the filter is hit hardest of these: it drops the right labels here and keeps the wrong
#   ones; DFT keeps more than twice as much. With right labels the filter keeps more than DFT.
# * *DPO* knows only a difference. On agreed questions wanted and rejected answer are one text while
#   the label is right, and the two pushes cancel. So nothing holds the right answer up, and the
#   pushes of the disputed questions, on the same parameters, carry it off (lesson 06).
#
# **Which method, when?** On this task, with right labels, SFT; with many wrong labels and negatives
# that are wrong where the labels may be, *SFT filtered* or DFT, which win disputed questions and
# pay with agreed ones (DFT less, here); IFT and DPO in neither case.
#
# One learning rate for all is one fair choice; each method at its own is another, and orders can
# change with it. A ranking is a statement about a task, a start, labels, negatives, a budget and a
# rate. Whoever shows you one without these has shown you nothing.
#
# ## Exercise 2 ●●○ (10 minutes): `bug_hunt`
# Three runs with right labels, each with one bug. The grey line is the same method, healthy. Name
# the bugs from the curves alone.

# %%
hunt = check.planted(arena.fine_tuning_data(tokenizer, 0, 0.0, None)[:n], model)
exam, histories = arena.Exam(tokenizer, 0), {}
for letter, pair in hunt.items():
    histories[letter] = []
    for method, examples in pair:                                       # healthy, then with its bug
        tuned, points = copy.deepcopy(model), []
        for record in fit(tuned, method, examples, replace(recipe, lr=1e-3)):
            points.append([record["loss"], *exam.point(tuned)])
        histories[letter].append(points)
methods = {letter: type(pair[0][0]).__name__ for letter, pair in hunt.items()}
check.show(pictures.bugs(histories, methods), "11_bugs")
for number, bug in enumerate(check.BUGS, start=1):
    print(f"{number}. {bug}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Ask of each run: does the loss fall? Does what is tested rise with it? What would the loss have
# to be if the two things it compares were the same thing?
# </details>

# %%
print(check.bug_hunt(mine.bug_hunt))

# %% [markdown]
# ## Try
# * `draw` with "plain" in place of "troll": negatives that are wrong only as often as the model is.
# * A noise of 0.5: labels that say nothing. Who is right all the same, and who told it?
# * The Sage's answers ("sage") as negatives. Who still learns, and what?
#
# **Next:** 12, where all the memory goes.

# %%
# region Solution: unfold when you have tried
def difference(ours, theirs):
    gaps = ours - theirs
    return gaps.mean(), gaps.std() / len(gaps) ** 0.5


def bug_hunt():
    # A: the loss falls, but what is tested falls too: it trains something else, copying the token
    #    it has just read.
    # B: the loss is log 2 for ever, for reference and policy are one; its gradient is not 0, and
    #    has no end.
    # C: everything works, the wrong way round.
    return 2, 3, 1
# endregion
