# %% [markdown]
# # 14 · Yours
# **The question:** what would you do better?
#
# There are eighteen methods in `minialign/methods`, and none of them is the last word. In this
# lesson you write your own: one class with one function, `weigh`. A grader checks it against the
# laws that ours keep, without knowing what you have in mind. Then it races against SFT, ASFT and
# DFT.
#
# Here is a task that is worth it. When 30 % of the labels are wrong, DFT answers many more of the
# disputed questions right than SFT (lessons 07 and 11). But look at questions like “9.2 or 9.55?”,
# where both rules give the same answer: the base model answers nearly all of them right before
# training, and loses most of that by being trained with DFT. **Keep DFT's gain on the disputed
# questions, and lose half as much on the agreed ones.**
#
# You need lessons 03, 05 and 07. An hour or a week; the computing takes about a minute. Keep
# `minialign/methods/method.py` open beside it, and `minialign/methods/dft.py`.
#
# **Guess first.** The negatives come from the Troll, who is wrong on nearly all disputed questions,
# and right on the agreed ones, like everybody in the base model's childhood. Some labels are wrong,
# on both kinds of questions. Which examples teach the model to fail on agreed questions: those with
# right labels or those with wrong ones? And through which push, the one up or the ones down? Write
# your guess down.

# %%
import copy
import math
from dataclasses import replace

import torch

from lessons import check
from lessons.judge import described, place_of
from lessons.pictures import worlds as pictures
from minialign.generate import answers
from minialign.lab.arena import LONGEST, RECIPE, Exam, fine_tuning_data, fine_tuning_questions
from minialign.logps import add_reference
from minialign.methods import build_method
from minialign.methods.method import Method, spread, sums_and_lengths
from minialign.stats import show
from minialign.train import fit

# %%
args = check.options()
mine = check.mine(args)
model, tokenizer = check.base_model(args)
NOISE, N = 0.3, 48 if args.fast else 512                # share of wrong labels, questions


def examples_of(seed):
    """Questions with labels, a share NOISE of them wrong, and the Troll's answers as negatives."""
    prompts = [tokenizer.encode(q.prompt("troll")) for q in fine_tuning_questions(seed)[:N]]
    draw, k = torch.Generator().manual_seed(seed), 1 if args.fast else 6
    drawn = answers(model, tokenizer, prompts, k, LONGEST, 0.7, 50, generator=draw)
    pools = [[text or "?" for text, _ in pool] for pool in drawn]
    pools += [["?"]] * (len(fine_tuning_questions(seed)) - N)           # not trained on
    examples = fine_tuning_data(tokenizer, seed, NOISE, pools)[:N]
    add_reference(model, examples, micro_batch=64, progress=False)
    return examples


# %% [markdown]
# ## Step 1: where is it lost?
# DFT pushes the label up and the negatives down. If a negative says the same as the label, the two
# pushes fall on the same tokens and cancel, all the more the nearer the push down comes to 1. So
# let us count for each kind of question, and for right and wrong labels: how often do the negatives
# say what the label says, and how often the opposite?

# %%
examples = examples_of(0)
counts = {}
for question, example in zip(fine_tuning_questions(0), examples, strict=False):
    label, *negatives = [tokenizer.decode(answer) for answer in example.answers]
    kind = "disputed" if question.disputed else "agreed", label == question.right
    other = question.wrong if label == question.right else question.right
    same, opposite, total = counts.get(kind, (0, 0, 0))
    counts[kind] = (same + negatives.count(label), opposite + negatives.count(other),
                    total + len(negatives))
for (kind, good), (same, opposite, total) in sorted(counts.items(), reverse=True):
    print(f"{kind:8} question, {'right' if good else 'wrong'} label: the negatives say the same "
          f"{same / total:4.0%}, the opposite {opposite / total:4.0%}")

# %% [markdown]
# Read the four lines one by one, and ask for each of them what DFT will push up, what it will push
# down, and what cancels. On disputed questions wrong labels cancel, because the Troll says the
# same: that is DFT's gain. On agreed questions it is the *right* labels that cancel. What is left
# of the agreed questions are those with wrong labels, and there everything goes the wrong way: the
# wrong answer up, and the right one, which the Troll gives, down.
#
# What does a method see that could tell it so? No text and no rule, only log-probs: of the label,
# of the negatives, under the policy and under the reference. Is that enough? Something must be
# different about a label that contradicts what the model has always known.
#
# ## Step 2: what a method is
# `weigh(logps, batch)` gets the log-probs of all tokens of all answers, (A, B, T): answer 0 is the
# label, answers 1 to K are the negatives, B is the number of prompts. `batch` has
#
#     batch.mask              (A, B, T)   which places are tokens of an answer
#     batch.ref_logps         (A, B)      the log-prob of each answer under the reference
#     batch.rows.y            (A, B, T)   the tokens themselves
#     batch.counts.examples               what a mean over prompts divides by
#
# and it returns the loss, the weights (A, B, T) and a dict of numbers to log, which may be empty.
# This is SFT, by sums:

# %%
class Imitate(Method):
    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)           # (A, B): log-probs and numbers of tokens
        push = torch.zeros_like(l)
        push[0] = 1.0                                   # −∂loss/∂l of every answer
        N = batch.counts.examples
        return -l[0].sum() / N, spread(push, batch) / N, {}         # spread: to all its tokens


# %% [markdown]
# ## The laws
# Whatever a method wants, these six hold for it. The grader tests each of them by itself.
#
# * *Shapes:* the loss is one number, the weights are (A, B, T).
# * *Padding:* it gets no push, and what stands there is not read.
# * *Slope:* weights = −∂loss/∂logps, by central differences of your own loss (lesson 03). DFT
#   breaks this law on purpose, because of its memory; yours should keep it unless you know why.
# * *Order:* the negatives may stand in any order.
# * *Finite:* a log-prob of −10,000 does no harm.
# * *Parts:* an update is often computed in parts, to save memory. So an example must not depend on
#   its company, and a mean divides by `batch.counts.examples`.
#
# ## Exercise ●●● (an hour or a week): `Mine`
# Write `Mine` in `lessons/mine.py`. Begin with something that you know, SFT or DFT without its
# memory, until all laws are kept; then change one thing at a time, and race it.
#
# <details><summary>Hint: DFT without a memory</summary>
#
# With d_j = l_j − l_ref,j the loss of an example is −l_0 + log û, û = mean_j exp(d_j), and the
# slope of log û in l_j is exp(d_j)/(K û). But without a memory these pushes down always add up to
# 1, however unlikely the negatives have become, and tear the model apart. What if a small number
# were added to û?
# </details>
#
# <details><summary>Hint: agreed questions</summary>
#
# Look at the log-prob of the label under the *reference*, for the four kinds of step 1. A loss may
# be multiplied by a number that depends on it; the slope is then multiplied by the same number,
# because the reference does not move.
# </details>

# %%
verdict = check.method(mine.Mine)
print(verdict)
names = ["sft", "asft", "dft"] + (["mine"] if check.is_right(verdict) else [])

# %% [markdown]
# ## Step 3: the race
# Three draws of questions, labels and negatives; one base model, the same updates and the same
# learning rate for all. Measured are exact probabilities on questions that nobody is trained on.

# %%
def tuned_by(name, examples, seed):
    """A copy of the base model after training with a method."""
    method = mine.Mine() if name == "mine" else build_method(name, {}, len(examples))
    tuned = copy.deepcopy(model)
    recipe = replace(RECIPE, seed=seed, epochs=1 if args.fast else RECIPE.epochs)
    for _ in fit(tuned, method, examples, recipe):
        pass
    return tuned


# %%
results, models = {name: [] for name in names}, {}
for seed in range(1 if args.fast else 3):
    exam, examples = Exam(tokenizer, seed), examples_of(seed)
    results.setdefault("base", []).append(exam.grade(model))
    for name in list(names):
        try:
            models[name] = tuned_by(name, examples, seed)
        except Exception as error:                      # yours may stop where no law has looked
            if name != "mine":
                raise
            where = place_of(error, mine.Mine.weigh)
            print(f"your method stopped{where}: {described(error)}")
            names.remove(name)
            continue
        results[name].append(exam.grade(models[name]))

# %%
print(f"{'':5} {'right, disputed':>16} {'right, agreed':>16} {'neither answer':>16}")
for name in ["base", *names]:
    cells = [show([m[mark] for m in results[name]]) for mark in ("right", "agree", "garbage")]
    print(f"{name:5} " + " ".join(f"{cell:>16}" for cell in cells))

# %% [markdown]
# “Neither answer” is the share of answers to disputed questions that are neither the right nor the
# known wrong one: whatever a method wins, keep an eye on that column. And this is what the models
# of the last draw say, first to a disputed question, then to an agreed one:

# %%
for name in names:
    print(name)
    check.talk(models[name], tokenizer, ["9.11 or 9.9? ", "9.2 or 9.55? "])

# %% [markdown]
# ## Step 4: was it the labels?
# Step 1 has blamed the wrong labels on agreed questions. That can be tested: correct those, leave
# all others as they are, and train with DFT again (on the first draw).

# %%
corrected = []
for question, example in zip(fine_tuning_questions(0), examples_of(0), strict=False):
    if not question.disputed:
        label = tokenizer.encode(question.right) + [tokenizer.eos_id]
        example = replace(example, answers=[label, *example.answers[1:]])
    corrected.append(replace(example, ref_logps=None))
add_reference(model, corrected, micro_batch=64, progress=False)
agreed = {name: marks[0]["agree"] for name, marks in results.items()}
agreed["corrected"] = Exam(tokenizer, 0).grade(tuned_by("dft", corrected, 0))["agree"]
lost = {name: agreed["base"] - left for name, left in agreed.items()}
print(f"lost on agreed questions: sft {lost['sft']:.2f}, dft {lost['dft']:.2f}, dft with right "
      f"labels on them {lost['corrected']:.2f}")

# %% [markdown]
# What correcting them saves is the share of the wrong labels. It has two parts: SFT has the push up
# on the wrong answer and no other, DFT adds the pushes down on the right one. What DFT loses in
# spite of the correction can only come from the other examples. Both kinds of questions share all
# parameters.
#
# ## The picture
# Every small dot is one draw, every large one the mean. The further to the right, the more disputed
# questions are answered right; the higher, the more is left of what the model knew. The green
# corner is the task: at least DFT's gain over SFT, at most half of its loss.

# %%
def mean(name, mark):
    return sum(marks[mark] for marks in results[name]) / len(results[name])


goal = mean("dft", "right"), (mean("base", "agree") + mean("dft", "agree")) / 2
check.show(pictures.yours({name: results[name] for name in ["base", *names]}, goal), "14")
gain, loss = goal[0] - mean("sft", "right"), mean("base", "agree") - mean("dft", "agree")
print(f"DFT: {gain:.2f} won against SFT on disputed questions, {loss:.2f} lost on agreed ones.")
if "mine" in names:
    won = mean("mine", "right") - mean("sft", "right")
    price = mean("base", "agree") - mean("mine", "agree")
    done = "done" if won >= gain and price <= loss / 2 else "not done"
    print(f"Yours: {won / gain:.0%} of this gain, {price / loss:.0%} of this loss. Task {done}.")
print(f"Your guess? {1 - lost['corrected'] / lost['dft']:.0%} of DFT's loss (first draw) is gone "
      "once the wrong labels on agreed questions are corrected.")

# %% [markdown]
# Before you believe your own result: three draws of one base model are few, and whoever tries ten
# variants and keeps the best has tuned it to these draws. `python -m minialign compare` takes
# another base model for every seed, and adds right labels and other controls.
#
# The solution below is a simple try of ours. It is DFT without a memory, with 0.05 added to û, and
# each example counts by the fourth root of the label's probability under the reference: a label
# that the base model finds absurd counts for little. The two numbers in it, 0.05 and the root, were
# chosen among a few by looking at the first two draws, and it leans on the base model knowing
# the agreed questions already. Where a model knows nothing, it would trust nobody.
#
# ## Try
# * Right labels: `NOISE = 0.0`. Does your method cost anything when no label is wrong?
# * Negatives from somebody else: `q.prompt("plain")` in `examples_of`. What is left of your gain?
# * Plain SFT on the examples whose label is not among their negatives (`filtered` in
#   `minialign/lab/arena.py`): how far does that simple control get?
# * Give your method a name and a place: a class in `minialign/methods`, with `setting` for its
#   hyper-parameters, and one line in `METHODS`. The flags, the races and all laws of
#   `tests/methods` then come by themselves.
#
# **Next:** yours.

# %%
# region Solution: unfold when you have tried
class Mine(Method):
    """DFT without a memory: a small number is added to û, and labels that the reference finds
    absurd count for little."""

    needs = ("negatives", "reference")
    reads_others = True
    small, root = 0.05, 0.25

    def weigh(self, logps, batch):
        l, _ = sums_and_lengths(logps, batch)                           # (A, B)
        ref = batch.ref_logps.to(l)                                     # (A, B)
        K, N = len(l) - 1, batch.counts.examples

        # û of DFT and the small number, in logarithms.
        d = l[1:] - ref[1:] - math.log(K)                               # (K, B)
        log_small = torch.full_like(l[:1], math.log(self.small))        # (1, B)
        log_u = torch.cat([d, log_small]).logsumexp(0)                  # (B,)

        # How far the reference goes along with the label: a constant, so it multiplies both.
        trust = (self.root * ref[0]).exp()                              # (B,)
        loss = trust * (log_u - l[0])                                   # (B,)
        push = trust * torch.cat([torch.ones_like(l[:1]), -(d - log_u).exp()])
        return loss.sum() / N, spread(push, batch) / N, {"trust": trust}
# endregion
