# %% [markdown]
# # 02 · Log-probs
# **The question:** what does a language model say about a sentence?
#
# Everything in this repository is done to one kind of number, the log-probability of a token given those before it. Here you
# train a small GPT from nothing, read these numbers off it, and add some up by hand. You need to know what a softmax is.
# Fifteen minutes, half a minute of them computing. Keep `minialign/lab/tasks.py` open beside it, later `minialign/data.py`.

# %%
import random

import matplotlib.pyplot as plt
import torch

from lessons import check
from minialign.data import collate
from minialign.hf.tokenizer import byte_tokenizer
from minialign.lab import plot, tasks
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.model import Transformer
from minialign.train import Recipe, fit

args = check.options()
mine = check.mine(args)
torch.manual_seed(0)

# %% [markdown]
# **Guess first.** People are asked "9.11 or 9.9?". Two thirds of them answer 9.11>9.9, because 9.11 is the later version. A
# model that has read them gives this answer some log-prob, a sum over nine tokens: `9` `.` `1` `1` `>` `9` `.` `9` `end`. Is
# that sum spread over all nine, or does it sit in one of them? And in which? Write your guess down.
#
# ## What it reads
# A tokenizer cuts text into integers. Ours knows the 256 bytes, an end token, and six words. A text is a prompt and an answer:

# %%
tokenizer = byte_tokenizer(tasks.WORDS)
rng, (questions, held_out) = random.Random(0), tasks.all_questions(random.Random(0))
texts = [tasks.base_text(rng, questions) for _ in range(1_000 if args.fast else 51_200)]
examples = [tasks.as_example(tokenizer, i, prompt, [answer]) for i, (prompt, answer) in enumerate(texts)]
for (prompt, answer), example in list(zip(texts, examples, strict=True))[:4]:
    print(f"{prompt + answer:24} {example.prompt} | {example.answers[0]}")

# %% [markdown]
# Two tasks: reverse four digits; name the bigger of two numbers. The second is answered by ordinary people, by a Sage (mostly
# right) and by a Troll (mostly wrong). Nobody tells the model which is which, or that there is such a thing as right.
#
# ## What it learns
# A GPT reads tokens y₁ … y_t and returns one logit per possible next token, z (V,). Softmax makes them probabilities. By the
# chain rule of probability an answer y to a prompt x has, whatever the model is,
#
#     P(y | x) = Π_t P(y_t | x, y_<t)             log P(y | x) = Σ_t log P(y_t | x, y_<t)
#     P(v | x, y_<t) = exp z[v] / Σ_w exp z[w]    log P(y_t | x, y_<t) = z[y_t] − log Σ_w exp z[w]
#
# Training (supervised fine-tuning, SFT: eq. 1 of the DFT paper, 2502.18679, and lesson 05) raises these log-probs: the loss is
# minus their mean.

# %%
model = Transformer(tasks.small_config(tokenizer.vocab_size))
print(f"{sum(p.numel() for p in model.parameters()):,} parameters; knowing nothing costs log {tokenizer.vocab_size} = "
      f"{torch.tensor(float(tokenizer.vocab_size)).log():.2f} per token")
recipe = Recipe(batch=64, micro_batch=64, lr=3e-3, warmup=0.05)
for record in fit(model, METHODS["sft"](reduction="token_mean"), examples, recipe):
    if record["step"] == 1 or record["step"] % 100 == 0:
        print(f"update {record['step']:4}   loss {record['loss']:.3f}")

# %% [markdown]
# The first loss is that of a uniform guess. The last cannot be 0: when people disagree, no prediction is always right.
#
# ## A sum by hand
# The logits at position t speak about token t + 1. That shift by one is where this field makes its favourite bug;
# `minialign/data.py` is the only file of the package that does it. Here it is once, in the open, for "9.9>9.11" and its end:

# %%
prompt, answer = tokenizer.encode("9.11 or 9.9? "), tokenizer.encode("9.9>9.11") + [tokenizer.eos_id]
with torch.no_grad():
    z = model.logits(torch.tensor([prompt + answer]))[0]                # (L, V)
total = 0.0
for t in range(len(prompt), len(prompt) + len(answer)):
    token = (prompt + answer)[t]
    logp = float(z[t - 1, token] - z[t - 1].exp().sum().log())          # what stands before t predicts t
    total += logp
    print(f"log P({tokenizer.decode([token], skip_special_tokens=False)!r:16} | …) = {logp:8.4f}")
answers = ["9.9>9.11", "9.11>9.9", "9.12>9.9", "7.9>9.11"]
batch = collate([tasks.as_example(tokenizer, 0, "9.11 or 9.9? ", answers)])
with torch.no_grad():
    logps = batch_logps(model, batch)[:, 0]                             # (A, T)
print(f"sum by hand {total:.5f}, by the package {float(logps[0].sum()):.5f}")

# %% [markdown]
# Both sums agree. The end token counts: "9.9>9.11" and "9.9>9.113" are two answers. (IFT's released code counts it only where the chat
# template writes one.) Now let the model speak for others: the share of right answers to questions it has never seen, by who is
# asked. `P(right)` is not sampled; it is exp of a sum like the one above.

# %%
disputed = [q for q in held_out if q.disputed][: 40 if args.fast else 300]
said = {}
for persona in tasks.PERSONAS:
    asked = collate([tasks.as_example(tokenizer, i, q.prompt(persona), [q.right]) for i, q in enumerate(disputed)])
    with torch.no_grad():
        said[persona] = float(batch_logps(model, asked).sum(-1).exp().mean())
    print(f"{persona:6} P(right) {said[persona]:.2f}   right in what it read: {tasks.RIGHT_SHARE[persona]:.2f}")

# %% [markdown]
# A model's probability is a report: how often texts like this one went on like that (a bar short of its line has not read
# enough). It is no opinion about what is true. To change what it says, move probability: the subject of the other lessons.
#
# ## The picture

# %%
figure, (strips, bars) = plt.subplots(1, 2, figsize=(12, 3.6), width_ratios=[2.3, 1], layout="constrained")
for row, (text, tokens) in enumerate(zip(answers, logps.tolist(), strict=True)):
    for column, (name, logp) in enumerate(zip([*text, "end"], tokens, strict=False)):
        dark = min(1.0, -logp / 6)
        strips.add_patch(plt.Rectangle((column, -row), 0.94, 0.86, color=plt.cm.Reds(0.04 + 0.9 * dark)))
        ink = "white" if dark > 0.5 else "black"
        strips.text(column + 0.47, 0.5 - row, name, ha="center", fontsize=14, color=ink)
        strips.text(column + 0.47, 0.16 - row, f"{-logp + 0:.2f}", ha="center", fontsize=10, color=ink)
    total = -sum(tokens[: len(text) + 1])
    strips.text(9.3, 0.43 - row, f"Σ {total:.2f}   P = {torch.tensor(-total).exp():.2g}", va="center", fontsize=12)
strips.set(xlim=(0, 11.6), ylim=(1 - len(answers), 1), title="“9.11 or 9.9?”   −log-prob of each token: one pays for all")
strips.axis("off")
for x, persona in enumerate(said):
    bars.bar(x, said[persona], color=plot.COLOR["base"], width=0.6)
    bars.plot([x - 0.4, x + 0.4], [tasks.RIGHT_SHARE[persona]] * 2, color="black", linewidth=2)
bars.set(title="it answers as those it read (black lines)", ylabel="probability of the right answer", ylim=(0, 1))
bars.set_xticks(range(len(said)), ["people", "Troll", "Sage"])
plot.clean(bars)
check.show(figure, "02")
share = float(logps[1].min() / logps[1].sum())
print(f"Your guess? Of the log-prob of “9.11>9.9”, {share:.0%} sits in one token, number {int(logps[1].argmin()) + 1} of 9.")

# %% [markdown]
# Up to the token where the answers part, right and wrong are the same text; after it, each is sure to be finished as it began.
# So "lower the wrong answer" means: move one token. Keep that in mind for lessons 05 to 07.
#
# ## Exercise ●○○ (10 minutes)
# Score an answer from the logits. One row holds prompt, answer and padding; `is_answer` says which tokens are the answer's.
#
# <details><summary>Hint</summary>log_softmax over the vocabulary first. Then which logits belong to `tokens[1:]`, and which
# part of the mask?</details>

# %%
print(check.score(mine.score))

# %% [markdown]
# ## Try
# * Ask it about "9.9 or 9.11? ". Does the order matter to it?
# * Add the answer "9.11>9.9 " with a space before the end. Which token pays?
# * Train on a tenth of the texts. Which task is learnt first: the form of an answer, reversing, or whom to believe?
#
# **Next:** 03 asks how such a number is moved.

# %%
# region Solution: unfold when you have tried
def score(z, tokens, is_answer):
    log_p = z[:-1].log_softmax(-1)                                      # position t speaks about token t + 1
    logps = log_p.gather(1, tokens[1:, None])[:, 0]
    return logps[is_answer[1:]].sum()                                   # the mask is shifted with the tokens
# endregion
