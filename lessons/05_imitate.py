# %% [markdown]
# # 05 · Imitate
# **The question:** what does supervised fine-tuning (SFT) fix, and what does it never see?
#
# SFT shows a model good answers and nothing else. Yet the bad answers move, some of them up. You find out which and why, and
# what SFT does when the good answers are not all good. You need lessons 02 and 03. Twenty minutes, one of computing (half of it
# once, for the small GPT). Files: `minialign/methods/sft.py`, `minialign/train.py`.

# %%
import copy
import random

import matplotlib.pyplot as plt
import torch

from lessons import check, pictures
from minialign.data import Batch, collate
from minialign.lab import plot, tasks
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.train import Recipe, fit

args = check.options()
mine = check.mine(args)

# %% [markdown]
# ## What SFT minimises
# For N prompts, answers of n tokens and their log-probs l = Σ_t l_t (DFT paper, 2502.18679, eq. 1):
#
#     L = −1/N Σ_i l_i                 weights = −∂L/∂l_t = 1/N on every answer token: up, all alike, forever
#
# Two more reductions are in use, and "SFT" in a paper may be any of them: the mean over an answer's tokens first, weights
# 1/(N n), is what IFT's code has; the mean over all tokens of the batch, 1/Σn, what DFT's and TRL's have. Two answers, 2 and 4
# tokens long:

# %%
mask = torch.tensor([[[True, True, False, False], [True, True, True, True]]])           # (A, B, T): one answer, two prompts
for reduction in "seq_sum", "seq_mean", "token_mean":
    _, weights, _ = METHODS["sft"](reduction).weigh(-torch.rand(mask.shape), Batch(mask=mask))
    short, long = weights[0, :, 0].tolist()
    print(f"{reduction:10}  each token of the short answer {short:.4f}, of the long one {long:.4f}")

# %% [markdown]
# With `seq_sum` and `token_mean` every token counts the same and long answers more; with `seq_mean` answers count the same.
#
# ## Where it stops
# A weight of 1 "forever" does not mean that everything becomes certain. Let a share q_v of the people answer token v. Lesson 03,
# averaged over them:
#
#     ∂L/∂z = Σ_v q_v (softmax − onehot_v) = softmax − q            which is 0 where softmax = q
#
# SFT ends at the mixture it was shown. If 30 % of the labels are wrong, the best it can do is to be wrong in 30 %:

# %%
q, z = torch.tensor([0.7, 0.3, 0.0]), torch.zeros(3)
for _ in range(200):
    z -= z.softmax(0) - q
print("after 200 steps:", [round(p, 3) for p in z.softmax(0).tolist()])

# %% [markdown]
# ## What it does to answers it never sees
# The small GPT answers "9.11 or 9.9?" with "9.11" or "9.9". It shall learn to restate the question, and to be right:
# "9.11 or 9.9? 9.9". That is the example of the DFT paper, section 4: good and bad answer share a long opening.
#
# **Guess first.** Three bad answers, none of which SFT sees: the wrong number after restating, `9.11 or 9.9? 9.11`; a slip at
# the very end, `9.11 or 9.9? 9.95`; and the bare `9.11`, the model's favourite so far. Which of them will be more probable
# after training than before, which less?

# %%
KINDS = ["{first} or {second}? {right}", "{first} or {second}? {right}5", "{first} or {second}? {wrong}", "{wrong}"]
NAMES = [kind.format(first="9.11", second="9.9", right="9.9", wrong="9.11") for kind in KINDS]
SHARED = [13, 12, 11, 4]                                                # opening tokens in common with the good answer


def answers(q):
    return [kind.format(first=q.first, second=q.second, right=q.second, wrong=q.first) for kind in KINDS]


base, tokenizer = check.base_model(args)
train, held_out = ([q for q in part if q.disputed and q.right.startswith(q.second)] for part in tasks.all_questions(random.Random(0)))
asked = collate([tasks.as_example(tokenizer, i, q.prompt(), answers(q)) for i, q in enumerate(held_out[:64])])
curves = []
for seed in [0] if args.fast else [0, 1, 2]:
    questions = random.Random(seed).sample(train, 128 if args.fast else 512)
    examples = [tasks.as_example(tokenizer, i, q.prompt(), answers(q)[:1]) for i, q in enumerate(questions)]
    model, recipe = copy.deepcopy(base), Recipe(epochs=1 if args.fast else 4, micro_batch=32, lr=2e-3, seed=seed)
    with torch.no_grad():
        curve = [(0, batch_logps(model, asked).mean(1))]                # (A, T): mean over held-out questions
    for record in fit(model, METHODS["sft"](), examples, recipe):
        if record["step"] % 4 == 0:
            with torch.no_grad():
                curve.append((record["step"], batch_logps(model, asked).mean(1)))
    curves.append(curve)
    first, last = (curve[i][1].sum(-1).tolist() for i in (0, -1))
    print(f"seed {seed}: " + "   ".join(f"{name}: {a:.1f} → {b:.1f}" for name, a, b in zip(NAMES, first, last, strict=True)))

# %% [markdown]
# Log-probs of answers to questions the training did not contain, before → after. Three seeds: other training questions, in
# another order; the base model is the same.
#
# ## Why: three parts of a bad answer
# 1. **Until it parts from the good answer** it is the same text after the same text: the same log-probs. SFT raises them.
# 2. **At the token where it parts**, the context is the good answer's, and another token is the target. Lesson 03: the push up on
#    the target pulls every other logit down, each by its probability. What the model wrongly prefers falls furthest.
# 3. **Behind it** the context is one that SFT never produces; what happens there is whatever generalises.

# %%
before, after = (torch.stack([curve[i][1] for curve in curves]).mean(0) for i in (0, -1))      # (A, T): mean over the seeds
change = after - before
parts = {name: [float(change[a, :k].sum()), float(change[a, k]), float(change[a, k + 1 :].sum())]
         for a, (name, k) in enumerate(zip(NAMES, SHARED, strict=True)) if a > 0}
for name, (up, down, rest) in parts.items():
    print(f"{name:18} changed by {up + down + rest:+6.1f} = {up:+6.1f} shared {down:+6.1f} where it parts {rest:+6.1f} behind")
print(f"the wrong digit where right and wrong part: log-prob {float(before[2, 11]):.1f} → {float(after[2, 11]):.1f}")

# %% [markdown]
# The DFT paper argues that after such training "11" might still be likely. Here it is not, as the last line says: where right
# and wrong part, SFT pushes the wrong token down without ever seeing it, through the softmax. With right labels there is little
# left to win (README, "The main job"); with wrong ones, as much as `softmax − q` says. That is the case for pushing down.
#
# *How does that differ from "likelihood of preferred answers up, of dispreferred ones down"?* SFT's weights are constants, on
# wanted tokens only, and its loss cannot go below the entropy of the data. A weight below 0 acts on texts the data does not
# contain, and log P, unlike −log P, has no lower end: something must make the push fade. Lesson 06 is about that something.
#
# ## The picture

# %%
figure, (lines, bars) = plt.subplots(1, 2, figsize=(12, 4.3), width_ratios=[1.25, 1], layout="constrained")
steps, ends = [step for step, _ in curves[0]], []
for a, (name, color) in enumerate(zip(NAMES, [plot.COLOR["sft"], "#f4a582", "#d6604d", "#8b1a1a"], strict=True)):
    mean = pictures.lines(lines, steps, [[float(logps[a].sum()) for _, logps in curve] for curve in curves], color)
    ends.append((steps[-1], mean[-1], name, color))
lines.set(xlabel="updates of SFT on “9.11 or 9.9? 9.9”", ylabel="log-prob of the answer ↑", xlim=(0, steps[-1]))
lines.set_title("SFT carries up bad answers it never saw", loc="left")
plot.clean(lines)
plot.label_ends(lines, ends, size=9)
for y, values in enumerate(reversed(parts.values())):
    left = {True: 0.0, False: 0.0}
    for value, color in zip(values, ("#4393c3", "#b2182b", "#c9c9c9"), strict=True):
        bars.barh(y, value, left=left[value > 0], color=color, height=0.55)
        left[value > 0] += value
bars.set_yticks(range(len(parts)), reversed(parts))
bars.axvline(0, color="black", linewidth=0.8)
for x, word, color in (0.15, "shared opening", "#4393c3"), (0.55, "where it parts", "#b2182b"), (0.9, "behind", "#8c8c8c"):
    bars.text(x, 1.03, word, color=color, transform=bars.transAxes, ha="center", fontsize=11)
bars.set(xlabel="change of log-prob")
bars.spines[["top", "right", "left"]].set_visible(False)
check.show(figure, "05")
rose = [name for name, values in parts.items() if sum(values) > 0]
print(f"Your guess? SFT, which saw none of them, raised {' and '.join(f'“{name}”' for name in rose) or 'none'}, "
      f"and lowered {' and '.join(f'“{name}”' for name in parts if name not in rose) or 'none'}.")

# %% [markdown]
# ## Exercise ●○○ (5 minutes)
# How far does a bad answer ride along? Count the tokens whose log-probs are the good answer's own, whatever the model.
#
# <details><summary>Hint</summary>A log-prob depends on its token and on *all* tokens before it.</details>

# %%
print(check.prefix(mine.prefix))

# %% [markdown]
# ## Try
# * Label 30 % of the questions wrong (swap right and wrong in `answers(q)[:1]`). Where does the wrong digit's log-prob end?
# * Train on questions in both orders. Which share of "9.11" is then the opening?
# * Take `METHODS["ift"]()` instead of "sft". It too sees only good answers; lesson 09 says what it does with them.
#
# **Next:** 06 pushes down on purpose.

# %%
# region Solution: unfold when you have tried
def prefix(good, bad):
    n = 0
    while n < min(len(good), len(bad)) and good[n] == bad[n]:
        n += 1
    return n
# endregion
