# %% [markdown]
# # 05 · Imitate
# **The question:** what does supervised fine-tuning fix, and what does it never see?
#
# Supervised fine-tuning (SFT) shows a model good answers and nothing else: imitate these. Yet the
# bad answers move as well, some of them up. In this lesson you find out which and why, and what SFT
# does when the good answers are not all good. It is the ground on which the other methods stand:
# each of them claims to see something that SFT does not.
#
# You need lessons 02 and 03. Thirty minutes, half a minute of computing (and half a minute once, to
# train the small GPT). Keep `minialign/methods/sft.py` and `minialign/train.py` open beside it.
#
# > **Policy.** The model that is being trained, seen as something that acts: given what stands
# > there, it gives each next token a probability. The *prompt* is given; what the policy adds to it
# > is the *response*, or answer.
#
# **Guess first.** A small GPT answers “9.11 or 9.9?” with “9.11>9.9”, mostly, which is wrong. We
# want it to repeat the question and then to be right: “9.11 or 9.9? 9.9>9.11”. It is trained on
# such answers alone. What happens to the log-prob of “9.11 or 9.9? 9.11>9.9”, a wrong answer in the
# new form, which it is never shown? Does it rise, stay or fall? Write it down, and why.

# %%
import copy
import random

import torch

from lessons import check, own
from lessons.pictures import methods as pictures
from minialign.data import Batch, collate
from minialign.lab import tasks
from minialign.lab.places import PLACES, by_place, places
from minialign.methods import METHODS
from minialign.train import Recipe, fit

args = check.options()
mine = check.mine(args)

# %% [markdown]
# ## Step 1: what SFT minimises
# Take N prompts, for each an answer of n tokens, and its log-prob l = Σ_t l_t. The loss is minus
# the mean log-prob (DFT's paper, 2502.18679, eq. 1):
#
#     L  =  −(1/N) Σ_i l_i
#     weights  =  −∂L/∂l_t  =  1/N                    (each l_t stands in one l_i, with factor 1)
#
# on every token of every answer: up, all alike, for ever. Two other ways to average are in use, and
# “SFT” in a paper may mean any of the three. The mean over an answer's tokens first, L = −(1/N) Σ_i
# l_i/n_i, has weights 1/(N n_i): answers count the same, and so the tokens of a long one count less
# (IFT's code). The mean over all tokens of the batch has weights 1/Σn: tokens count the same (TRL,
# and DFT's code). Two answers of two and four tokens:

# %%
mask = torch.tensor([[[True, True, False, False], [True, True, True, True]]])    # (A, B, T)
for reduction in "seq_sum", "seq_mean", "token_mean":
    _, weights, _ = METHODS["sft"](reduction).weigh(-torch.rand(mask.shape), Batch(mask=mask))
    short, long = weights[0, :, 0].tolist()
    print(f"{reduction:10}  a token of the short answer {short:.4f}, of the long one {long:.4f}")

# %% [markdown]
# ## Exercise 1 ●○○ (5 minutes): `sft`
# The weights of the second kind, `seq_mean`, in `lessons/mine.py`: of a mask (B, T) that says where
# the tokens of B answers are. If it is right, it does the training below.
#
# <details><summary>Hint</summary>
#
# `mask.sum(-1, keepdim=True)` counts each answer's tokens as a column. A mask times a number is
# that number on the tokens and 0 on the padding.
# </details>

# %%
verdict = check.sft(mine.sft)
print(verdict)

# %% [markdown]
# ## Step 2: where it stops
# “For ever” does not mean that everything becomes certain. Let a share q_v of the people answer
# token v. By lesson 03 each answer has the gradient softmax − onehot_v at the logits. Their mean
# is
#
#     ∂L/∂z  =  Σ_v q_v (softmax − onehot_v)
#            =  softmax − q                  (the shares add up to 1; Σ_v q_v onehot_v is the row q)
#
# which is 0 where softmax = q. SFT stops at the mixture it was shown. If 30 % of the labels are
# wrong, then the best that it can do is to be wrong in 30 %:

# %%
q, z = torch.tensor([0.7, 0.3, 0.0]), torch.zeros(3)
for _ in range(200):
    z -= z.softmax(0) - q
print("after 200 steps:", [round(p, 3) for p in z.softmax(0).tolist()])

# %% [markdown]
# ## Step 3: answers it never sees
# The example is that of the DFT paper's section 4: a good and a bad answer with a long common
# opening. We follow the good answer and three bad ones. They part from it at different places.

# %%
KINDS = {"right": "{first} or {second}? {right}", "wrong": "{first} or {second}? {wrong}",
         "half": "{first}? {right}", "bare": "{wrong}"}


def spoken(q, kind):
    """An answer to the question q, of one of four kinds."""
    return KINDS[kind].format(first=q.first, second=q.second, right=q.right, wrong=q.wrong)


train, held_out = ([q for q in part if q.disputed and q.wrong.startswith(q.first + ">")]
                   for part in tasks.all_questions(random.Random(0)))
question = next(q for q in held_out if q.first == "9.11" or args.fast)
for kind in KINDS:
    print(f"{kind:6} {spoken(question, kind)}")

# %% [markdown]
# ## Exercise 2 ●○○ (5 minutes): `prefix`
# How far does a bad answer ride along? Count the tokens whose log-probs are the good answer's own,
# whatever the model.
#
# <details><summary>Hint</summary>
#
# A log-prob depends on its token and on *all* tokens before it.
# </details>

# %%
print(check.prefix(mine.prefix))

# %% [markdown]
# So a bad answer has three places. The **opening**, which is the good answer's own. The **fork**,
# the one token at which it parts: the context is still the good answer's, the token is another.
# And what comes **behind**, in a context that SFT never shows. `lab/places.py` adds up log-probs
# by place; here they are before any training, mean of 64 questions that no training asks.

# %%
base, tokenizer = check.base_model(args)
asked, few = {}, held_out[: 8 if args.fast else 64]
for kind in KINDS:
    pairs = [[spoken(q, "right"), spoken(q, kind)] for q in few]
    asked[kind] = collate([tasks.as_example(tokenizer, i, few[i].prompt(), pair)
                           for i, pair in enumerate(pairs)])


@torch.no_grad()
def look(model):
    """{kind: its log-prob by place (3,)}"""
    return {kind: by_place(model, batch)[:, 1].mean(-1) for kind, batch in asked.items()}


for kind, parts in look(base).items():
    print(f"{kind:6} {parts.sum():7.1f} nats  =  " + "  ".join(
        f"{x:6.1f} {place}" for place, x in zip(PLACES, parts.tolist(), strict=True)))

# %% [markdown]
# (The good answer has no fork of its own: all of it is opening. The bare one begins with the number
# that is asked about first, as the good one does.) Answers that repeat the question begin many tens
# of nats down: this model has never seen the *form*. That will matter.
#
# ## Step 4: train, and look at the wrong answer

# %%
method = own.method("sft", mine.sft, verdict)


def imitate(start, kind_of, seed, n=512, epochs=4, lr=2e-3):
    """SFT of a copy of `start` → the model, and (update, look) as it goes."""
    questions = random.Random(seed).sample(train, 32 if args.fast else n)
    examples = [tasks.as_example(tokenizer, i, q.prompt(), [spoken(q, kind_of(q))])
                for i, q in enumerate(questions)]
    model, points = copy.deepcopy(start), [(0, look(start))]
    recipe = Recipe(epochs=1 if args.fast else epochs, micro_batch=32, lr=lr, seed=seed)
    for record in fit(model, method, examples, recipe):
        if record["step"] % 8 == 0 or args.fast:
            points.append((record["step"], look(model)))
    return model, points


# %%
seeds = [0] if args.fast else [0, 1, 2]
at_once, models = [], {"before": base}
for seed in seeds:
    models["right answers, at once"], points = imitate(base, lambda q: "right", seed)
    at_once.append(points)
    first, last = (points[i][1] for i in (0, -1))
    print(f"seed {seed}: " + "   ".join(
        f"{kind} {first[kind].sum():.0f} → {last[kind].sum():.1f}" for kind in KINDS))

# %% [markdown]
# Each seed has other training questions. The wrong answer *rises* by dozens of nats, and SFT was
# never shown it. That it shares its opening with the good answer explains a part. But look at the
# places:

# %%
def change(points):
    """{kind: the change of its log-prob by place (3,)}, from first to last."""
    return {kind: points[-1][1][kind] - points[0][1][kind] for kind in KINDS}


changes = [change(points) for points in at_once]
for kind in ("wrong", "half", "bare"):
    mean = torch.stack([one[kind] for one in changes]).mean(0)
    print(f"{kind:6} {mean.sum():+6.1f}  =  " + "  ".join(
        f"{x:+6.1f} {place}" for place, x in zip(PLACES, mean.tolist(), strict=True)))

# %% [markdown]
# ## Step 5: why it may rise even where it parts
# The wrong answer parts from the good one at a digit, and there it falls. That is lesson 03: the
# push up on the right digit pulls every other logit of that row down, each by its probability. But
# the *half* answer, which repeats half of the question, rises even where it parts, at its “? ” in
# the place of “ or ”. How can a token rise whose rival is pushed up?
#
# Split its log-prob in two. With P(family) the probability that any token of some family comes
# next,
#
#     log P(token)  =  log P(family)  +  log P(token | family)          (a product of probabilities)
#
# The second part is the competition between the two. The first is the *form*: what kind of thing
# belongs in this place? For “? ” the family are the words that no answer had before (“ or ”, “? ”,
# …), for the wrong digit it is the digits.

# %%
FAMILY = {"wrong": "0123456789", "half": tasks.WORDS}


@torch.no_grad()
def at_the_fork(model, kind):
    """Where a bad answer parts: log P(family) and log P(its token | family), means."""
    rows, fork = asked[kind].rows, places(asked[kind])[PLACES.index("fork"), 1]     # (B, T)
    family = torch.tensor([tokenizer.encode(word)[0] for word in FAMILY[kind]])
    hidden = model(rows.tokens, rows.positions, rows.texts).flatten(0, 1)
    log_p = (hidden[rows.source[1][fork]] @ model.head.T).log_softmax(-1)           # (B, V)
    token = log_p.gather(1, rows.y[1][fork][:, None])[:, 0]
    any_of_them = log_p[:, family].logsumexp(-1)
    return float(any_of_them.mean()), float((token - any_of_them).mean())


# %%
def told(name):
    for kind in FAMILY:
        form, contest = at_the_fork(models[name], kind)
        print(f"{name:25} {kind:5}  log P(token) {form + contest:6.1f}  =  "
              f"{form:6.1f} its family  {contest:+6.1f} it and no other of them")


told("before")
told("right answers, at once")

# %% [markdown]
# The wrong digit has its competition alone, for a digit was due there all along. “? ” loses its
# competition against “ or ” as well. But its whole family was next to impossible, and SFT cannot
# teach that a word is due for the one word without teaching it for the others: the network holds
# tokens of one kind together, and turns to all of them at once. The form lifts more than the
# competition costs.
#
# ## Step 6: the form first
# So two things were mixed: the form, and the choice between answers of that form. To see the
# choice alone, teach the form first: answers that repeat the question and are right or wrong as
# often as the model itself is, a third and two thirds. They teach nothing about who is right. Then
# train on right answers, as before.

# %%
often = random.Random(1)
models["the form alone"], _ = imitate(
    base, lambda q: "right" if often.random() < 0.35 else "wrong", 9, n=1024, epochs=2)
form_first = []
for seed in seeds:
    model, points = imitate(models["the form alone"], lambda q: "right", seed)
    form_first.append(points)
    first, last = (points[i][1] for i in (0, -1))
    print(f"seed {seed}: " + "   ".join(
        f"{kind} {first[kind].sum():.1f} → {last[kind].sum():.1f}" for kind in KINDS))
models["the form, then right ones"] = model
told("the form alone")
told("the form, then right ones")

# %% [markdown]
# In words, three answers of each model to two questions of the test:

# %%
for name, model in models.items():
    print(name)
    check.talk(model, tokenizer, [q.prompt() for q in held_out[:2]], longest=32)

# %% [markdown]
# ## The picture

# %%
whose = "your function" if check.is_right(verdict) else "minialign's"
names = {kind: spoken(question, kind) for kind in KINDS}
runs = {"right answers, at once": at_once, "the form first, then right answers": form_first}
check.show(pictures.imitate(runs, change, names, PLACES, whose), "05")
for words, all_points in runs.items():
    rose = [kind for kind in ("wrong", "half", "bare")
            if sum(float(change(points)[kind].sum()) for points in all_points) > 0]
    print(f"Your guess? {words}: of the three bad answers, "
          f"{' and '.join(rose) if rose else 'none'} rose.")

# %% [markdown]
# What to take with you.
#
# 1. *The opening* of a bad answer is the good one's: SFT cannot raise the one without the other.
# 2. *At the fork* SFT does push the other token down, without ever being shown it, through the
#    softmax. But what it teaches about the form, it teaches for both.
# 3. *Behind* it is a context that SFT never makes. What happens there is whatever generalises.
#
# The DFT paper argues that after such training the wrong number might still be likely. Where
# labels are right, it is not, once the form is learnt: there is little left to win at the fork.
# With wrong labels, as much is left as softmax − q says (step 2). That is the case for pushing
# down on purpose: weights below 0, on answers the data does not contain. But log P, unlike −log P,
# has no lower end, so something must make such a push fade. Lesson 06 is about that something.
#
# ## Try
# * Label 30 % of the answers wrong: `lambda q: "wrong" if often.random() < 0.3 else "right"` in
#   the last training. Where does the competition at the wrong digit end? What does step 2 say?
# * `asked["half"]` in `at_the_fork`. Which part moves there?
# * `METHODS["ift"]()` as `method`. It too sees only good answers; lesson 10 says what it does.
#
# **Next:** 06 pushes down on purpose.

# %%
# region Solution: unfold when you have tried
def sft(mask):
    return mask / (len(mask) * mask.sum(-1, keepdim=True))


def prefix(good, bad):
    n = 0
    while n < min(len(good), len(bad)) and good[n] == bad[n]:
        n += 1
    return n
# endregion
