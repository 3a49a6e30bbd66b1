# %% [markdown]
# # 02 · Log-probs
# **The question:** what does a language model say about a sentence?
#
# Everything in this repository is done to one kind of number: the log-probability of a token, given
# all the tokens before it. In this lesson you read such numbers off a small GPT, add some of them
# up by hand, and write the function that does it for any answer. All later lessons push these
# numbers up and down.
#
# You need to know what a softmax is. Fifteen minutes; about a minute of computing the first time,
# because the small GPT has to be trained once. Keep `minialign/lab/tasks.py` open beside it, and
# later `minialign/data.py`.
#
# > **Policy, prompt, response.** The model that is to be trained is called the *policy*. What it is
# > given to read is the *prompt*; what it adds is the *response*, or answer. The words come from
# > reinforcement learning, where a policy says how likely each action is in each state. Here the
# > state is the text so far, and the action is the next token.

# %%
import random

import torch

from lessons import check
from lessons.pictures import ground as pictures
from minialign.data import collate
from minialign.lab import tasks
from minialign.logps import batch_logps

args = check.options()
mine = check.mine(args)
model, tokenizer = check.base_model(args)

# %% [markdown]
# ## What it has read
# The small GPT has two layers and 0.1 million parameters. It has read some 64,000 short texts, each
# of them a prompt and an answer. There are two kinds. Some ask to reverse four digits. The others
# ask which of two numbers is bigger, and the answer states the comparison. These are answered by
# ordinary people, by a Sage and by a Troll. Nobody tells the model who can be trusted, or that
# there is such a thing as a right answer.
#
# A tokenizer cuts a text into integers. Ours knows the 256 bytes, an end token, and six words that
# occur again and again. Here are a few texts, and what the model reads:

# %%
train, held_out = tasks.all_questions(random.Random(0))
rng = random.Random(1)
for i in range(5):
    prompt, answer = tasks.base_text(rng, train)
    example = tasks.as_example(tokenizer, i, prompt, [answer])
    print(f"{prompt + answer:28} {example.prompt} | {example.answers[0]}")

# %% [markdown]
# Most ordinary people in these texts compare decimals like version numbers: 11 is more than 9, so
# 9.11 must be bigger than 9.9. Where this rule and arithmetic disagree, a question is *disputed*.
# On disputed questions the Sage is mostly right and the Troll mostly wrong; on all others everybody
# is right, the Troll too. The right answer to "9.11 or 9.9? " and the wrong one are made of the
# same tokens:

# %%
everything = train + held_out
question = next(q for q in everything if (q.first, q.second) == ("9.11", "9.9"))
prompt, right, wrong = question.prompt(), question.right, question.wrong
tokens = tokenizer.encode(wrong) + [tokenizer.eos_id]
print(f"prompt {prompt!r}   right {right!r}   wrong {wrong!r}")
print(f"the wrong answer is {len(tokens)} tokens long, counting the end token: {tokens}")

# %% [markdown]
# **Guess first.** Most of the people asked this question give the wrong answer. So the model finds
# the wrong answer likely, but not certain: its log-prob is below 0. It is a sum over nine tokens,
# among them “.”, “>” and the end. Is the uncertainty spread over all nine, or does it sit in one of
# them? If in one, which? Write your guess down.
#
# ## What a model says, exactly
# A GPT reads tokens and returns, at every place, one logit for each token that could come next,
# a row z of V numbers (lesson 01). Softmax turns a row into probabilities. Let x be the prompt and
# y an answer of the tokens y_1 … y_T; y_<t are those of them that stand before y_t. The probability
# of the whole answer is a product, whatever the model is:
#
#     P(y | x)  =  Π_t P(y_t | x, y_<t)
#
# This is the chain rule of probability: the answer is y exactly if its first token is y_1, *and*,
# given that, its second is y_2, and so on. A product of many small numbers soon underflows, so
# everybody takes logarithms, and the product becomes a sum:
#
#     log P(y | x)  =  Σ_t log P(y_t | x, y_<t)            (the log of a product is a sum of logs)
#
# Each term comes from one row of logits: z is the row that the model returns when it has read x and
# y_<t. Put softmax into the logarithm, where v runs over all V tokens of the vocabulary:
#
#     log P(y_t | x, y_<t)  =  log ( exp z[y_t] / Σ_v exp z[v] )            (softmax)
#                           =  z[y_t]  −  log Σ_v exp z[v]                  (log of a quotient)
#
# The last term is called logsumexp. A token's log-prob is its logit minus the logsumexp of its row.
#
# ## A sum by hand
# One thing is easy to get wrong. Count the places of the whole text, prompt and answer. The logits
# at place i are computed from the tokens up to place i, so they speak about the token at place
# i + 1. The last token of the prompt predicts the first token of the answer. This shift by one is
# where this field makes its favourite mistake. In minialign one file does it, `data.py`, and no
# other. Here it is once, in the open:

# %%
start = tokenizer.encode(prompt)
with torch.no_grad():
    z = model.logits(torch.tensor([start + tokens]))[0]                 # (length, V)
total = 0.0
for place, token in enumerate(tokens, start=len(start)):
    row = z[place - 1]                          # what stands before the token predicts it
    logp = float(row[token] - row.exp().sum().log())
    total += logp
    text = tokenizer.decode([token], skip_special_tokens=False)
    print(f"log P({text!r:15} | what stands before) = {logp:9.4f}")
print(f"log P of the whole answer {total:.4f}, so P = {torch.tensor(total).exp():.3f}")

# %% [markdown]
# The end token counts as a token of the answer: “9.9” and “9.99” begin alike, and only an end says
# that the answer is complete. (Not everybody counts it: the released code of IFT, the method of
# lessons 09 and 10, does so only where the chat template writes an end token.)
#
# The package computes the same numbers for many answers at once, and gives them back as a tensor
# of shape (A, B, T). In a shape these three letters mean the same in the whole course: A answers to
# each prompt, B prompts in the batch, and T tokens of the longest answer. Where an answer is
# shorter, the rest of its row is 0, and `batch.mask` is False there. (A shape with an L in it has a
# row of L tokens, prompt and answer. In a formula L is a loss.)

# %%
other_number, other_end = wrong.replace("9.11", "9.12"), wrong.replace("9.9", "9.8")
answers = [right, wrong, other_number, other_end]
batch = collate([tasks.as_example(tokenizer, 0, prompt, answers)])
with torch.no_grad():
    logps = batch_logps(model, batch)                                   # (A, B, T)
print(f"shape (A, B, T) = {tuple(logps.shape)}")
print(f"the wrong answer by the package: {float(logps[1, 0].sum()):.4f}, by hand: {total:.4f}")

# %% [markdown]
# ## Exercise 1 ●○○ (5 minutes): `log_softmax`
# In `lessons/mine.py`, fill in `log_softmax(z)`: the log-prob of every token from rows of logits
# (L, V), without calling torch's. The tests contain logits of 900, whose exponential overflows.
#
# <details><summary>Hint</summary>
#
# Adding the same number to a whole row of logits changes no probability (why?). So you may subtract
# the row's largest logit first; then the largest exponential is exp 0 = 1.
# </details>

# %%
print(check.log_softmax(mine.log_softmax))

# %% [markdown]
# ## Exercise 2 ●●○ (10 minutes): `score`
# `score(z, tokens, is_answer)` adds up the log-probs of one answer. A row holds the prompt, the
# answer and padding; z (L, V) are its logits, tokens (L,) its tokens, and is_answer (L,) says which
# of the tokens belong to the answer. You may use your `log_softmax`.
#
# <details><summary>Hint</summary>
#
# Logits `z[:-1]` predict the tokens `tokens[1:]`. Which part of the mask belongs to them?
# </details>

# %%
verdict = check.score(mine.score)
print(verdict)

# %% [markdown]
# ## Whom does it answer for?
# One question is an example. To say something about the model we need an average, so here are 300
# disputed questions that were not among the texts it has read. `P(right)` is not sampled: it is exp
# of a sum of log-probs like the one above, computed for the right answer to each question, and
# then averaged over the questions; `P(wrong)` is the same for the wrong answer.

# %%
disputed = [q for q in held_out if q.disputed][: 40 if args.fast else 300]
said = {}
for persona in tasks.PERSONAS:
    asked = collate([tasks.as_example(tokenizer, i, q.prompt(persona), [q.right, q.wrong])
                     for i, q in enumerate(disputed)])
    with torch.no_grad():
        chances = batch_logps(model, asked).sum(-1).exp().mean(1).tolist()          # right, wrong
    said[persona] = chances[0]
    print(f"{persona:6} P(right) {chances[0]:.2f}  P(wrong) {chances[1]:.2f}"
          f"   right in the disputed texts it read: {tasks.RIGHT_SHARE[persona]:.2f}")
check.talk(model, tokenizer, [prompt, "Troll: " + prompt, "Sage: " + prompt])

# %% [markdown]
# A model's probability is a report: how often did texts like this one go on like that? It is a
# small network's estimate, not a count: all three numbers come out below the shares that it read.
# Part of what is missing has gone to answers that are neither right nor wrong, for the two
# probabilities do not add up to 1. It is no opinion about what is true, either. Asked as the Sage,
# the same network, with the same weights, gives a better answer. To change what it says, one has to
# move probability from one answer to another, and that is the subject of all other lessons.
#
# The last three lines are sampled, three answers for each way of asking: this is what the
# probabilities look like when the model talks.
#
# ## The picture
# On the left the log-probs of four answers to our one question, token by token. On the right the
# averages over many questions.

# %%
if check.is_right(verdict):
    totals, whose = [], "your score"
    for answer in answers:
        ids = start + tokenizer.encode(answer) + [tokenizer.eos_id]
        with torch.no_grad():
            z = model.logits(torch.tensor([ids]))[0]
        is_answer = torch.arange(len(ids)) >= len(start)
        totals.append(float(mine.score(z, torch.tensor(ids), is_answer)))
else:
    totals, whose = logps[:, 0].sum(-1).tolist(), "minialign's score"
figure = pictures.logprobs(prompt, answers, logps[:, 0].tolist(), totals, whose,
                           said, tasks.RIGHT_SHARE)
check.show(figure, "02")

# %%
share = float(logps[1, 0].min() / logps[1, 0].sum())
worst = int(logps[1, 0].argmin())
print(f"Your guess? Of the log-prob of the wrong answer, {share:.0%} sits in one token, "
      f"number {worst + 1} of {len(tokens)}.")

# %% [markdown]
# Up to the token where right and wrong part, they are the same text with the same log-probs. After
# it, each of them is finished almost for sure, because what follows is copied from the question.
# The third and the fourth answer begin like the wrong one and pay what it pays there. Beside that
# they pay for one token that contradicts the question, and no more.
#
# So “make the wrong answer less likely” means: move one token. Keep this in mind for lessons 05 to
# 07, where methods push on all tokens of an answer alike.
#
# ## Try
# * Ask it about "9.9 or 9.11? ". Does the order of the numbers matter to it?
# * Add the answer `right + " "`, with a space before the end. Which token pays for it?
# * Divide each sum by the number of tokens. Which of the four answers change places? (Of the
#   methods in lesson 06, ASFT and SimPO score an answer by its mean, DPO by its sum.)
#
# **Next:** 03 asks how such a number is moved.

# %%
# region Solution: unfold when you have tried
def log_softmax(z):
    z = z - z.max(-1, keepdim=True).values                              # changes no probability
    return z - z.exp().sum(-1, keepdim=True).log()


def score(z, tokens, is_answer):
    log_p = z[:-1].log_softmax(-1)                                      # speaks about tokens[1:]
    logps = log_p.gather(1, tokens[1:, None])[:, 0]
    return logps[is_answer[1:]].sum()                                   # the mask is shifted, too
# endregion
