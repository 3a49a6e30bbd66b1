# %% [markdown]
# # 10 · Live with your guesses: the GPT
# **The question:** which tokens does IFT's loss favour?
#
# SFT always reads the right beginning. Once the model speaks for itself, it reads its own. IFT
# (arXiv 2405.11870; not instruction fine-tuning) needs no more data than SFT, and changes two
# things: what is *read* during training, the subject of lesson 09; and how the losses of an
# answer's tokens are *added up*. In this lesson you derive the gradient of that sum, find the
# place where paper and code disagree, look at what is left of it at the logits, and test the
# argument with which the paper begins.
#
# You need lessons 03 and 05; 09 helps. Forty minutes, one minute of computing. Keep
# `minialign/methods/ift.py` open beside it.
#
# **Guess first.** An answer of eight tokens; the model is surprised by the first (its loss is 3)
# and sure of the rest (0.1 each). SFT gives all eight the same weight. IFT lets a token answer for
# the losses behind it. Which token gets the largest weight? And could IFT push a token *down*, in
# an answer that is right? Write it down.

# %%
import copy
from dataclasses import replace

import torch

from lessons import check, own
from lessons.pictures import guesses as pictures
from minialign.data import Batch, collate
from minialign.lab.arena import RECIPE, Exam, fine_tuning_data
from minialign.lab.places import PLACES, split
from minialign.lab.studies.estimate import estimates, small_examples
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.train import fit

args = check.options()
mine = check.mine(args)
model, tokenizer = check.base_model(args)

# %% [markdown]
# ## Step 1: what is read
# Before every update IFT asks the policy, without a graph, for its likeliest token g_t at every
# place of the answer. Then the network reads, in the place of the token y_t (eq. 17),
#
#     e_t  =  (1 − λ) E[y_t]  +  λ E[g_t]
#
# where E is the embedding. The prompt is read as it is, and the *targets* stay the true tokens. So
# token t + 1 is predicted partly from what the policy itself would have said at t. With λ = 0 it is
# SFT.

# %%
examples = fine_tuning_data(tokenizer, 0, 0.0, None)[: 64 if args.fast else 256]
wanted = collate([replace(e, answers=e.answers[:1], rewards=None) for e in examples])
(batch,) = METHODS["ift"](lam=0.5).prepare(model, [wanted])
rows = batch.rows
differ = ((rows.guesses != rows.y) & rows.mask)[0]                      # (B, T)
i = int(differ.sum(-1).argmax())
for name, ids in ("label", rows.y[0, i]), ("guess", rows.guesses[0, i]):
    ids = ids[rows.mask[0, i]].tolist()
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    print(f"{tokenizer.decode(examples[i].prompt)}  {name}:  {'  '.join(tokens)}")
print(f"of all answer tokens the policy guesses {1 - differ.sum() / rows.mask.sum():.0%} right")

# %% [markdown]
# Each guess stands behind the *label's* beginning, so the second line is no answer: it is nine
# guesses side by side. Where the guess is the label, nothing is mixed. What IFT reads differs only
# where the policy's guess is wrong, and only the tokens *behind* such a place can notice.
#
# ## Step 2: IFT's argument, tested
# Why read one's own guesses? The paper says: SFT *overestimates the policy's preference*. It asks
# for the probability of the expert's next token behind the expert's words. But the policy, when it
# writes, stands behind its own words, where that token may have another probability. And IFT at λ
# = 1 is said to look at the second one. Both can be computed as they stand: the probabilities of
# the right answer's tokens behind the expert's words, behind IFT's mixtures, and behind the
# policy's own (likeliest) words. Where the policy is the small GPT:

# %%
found = estimates(model, small_examples(0, tokenizer)[: 16 if args.fast else 200])
slipped = found.pop("slips").float().mean(0)
READ = {"sft": "the expert's words", "ift 0.2": "IFT's, λ = 0.2", "ift 1": "IFT's, λ = 1",
        "own": "its own words"}
print("p of the right answer's token number", *(f"{t:5}" for t in range(1, len(slipped) + 1)))
for read, words in READ.items():
    print(f"behind {words:29}", *(f"{p:5.2f}" for p in found[read].mean(0).tolist()))
print("share that has left the answer by then", *(f"{p:5.2f}" for p in slipped.tolist()))

# %% [markdown]
# Compare the first and the last line of the four: from the place on where the policy leaves the
# right answer, the expert's words make its tokens look likelier than they are. In this sense the
# argument is right. But compare the third and the fourth as well. λ = 1 reads the policy's
# guesses, each made behind the *expert's* words; the policy itself reads guesses made behind its
# own. They are one up to the first slip, and after it two different texts.
#
# ## Step 3: how the losses are added up
# With token losses c_t = −log-prob of y_t, Algorithm 1 multiplies each by the losses that follow
# it; the paper calls this *relation propagation*. As the released code has it, with γ = 0.95 (on
# paper the decay is another, and nothing is normalised):
#
#     S_t = Σ_{i≥t} γ^(i−t) c_i          Z = Σ_t S_t          L = Σ_t c_t S_t / Z  =: A/Z
#
# In this lesson S, Z, A, P, C, γ and λ are what is written here, whatever they were in others.
# How does L change with one loss, c_j? It stands in A twice: as the factor of S_j, and inside of
# every S_t with t ≤ j, where it has the factor γ^(j−t).
#
#     ∂A/∂c_j  =  S_j + P_j          P_j = Σ_{t≤j} γ^(j−t) c_t           (product rule)
#     ∂Z/∂c_j  =  C_j                C_j = Σ_{t≤j} γ^(j−t)               (Z has no factor c_t)
#     ∂L/∂c_j  =  (∂A/∂c_j − (A/Z) ∂Z/∂c_j) / Z                          (quotient rule)
#              =  (S_j + P_j − L C_j) / Z                                (L = A/Z)
#
# and since c_j = −logp_j, this is −∂L/∂logp_j: the weight. Whoever treats S_t/Z as constants (a
# stop-gradient; our `detach_weights`) is left with S_j/Z. The release does not.
#
# ## Exercise 1 ●●● (15 minutes): `ift`
# The weights of one answer from its losses c and γ > 0, in `lessons/mine.py`. If it is right, it
# does the training below. (By the formula γ = 0 would leave Σc² / Σc, which is no method anybody
# wants; so the package takes γ = 0 for “no propagation”, SFT's weights.)
#
# <details><summary>Hint</summary>
#
# The matrix D with D[t, i] = γ^(i−t) for i ≥ t, else 0: `torch.tril` of its transpose is one way.
# Then S = D c, P = Dᵀ c, and C is the sum down each column of D.
# </details>

# %%
verdict = check.ift(mine.ift)
print(verdict)

# %% [markdown]
# ## Step 4: where the paper disagrees with itself
# Equation 21 prints a double sum. Count how often c_i occurs in it: once for every start n ≤ i.
#
#     L  =  Σ_n Σ_{i≥n} c_i  =  Σ_i (i + 1) c_i                          (i = 0, 1, …)
#
# That favours **late** tokens. Algorithm 1 multiplies c_t by what *follows*: there a token counts
# for more if much is still to come, and less if it was easy itself. They are two methods, and both
# are here: `ift_eq21` and `ift`. The answer of your guess:

# %%
c = torch.tensor([3.0] + [0.1] * 7, dtype=torch.float64)
one = Batch(mask=torch.ones(1, 1, 8, dtype=torch.bool))
forms = {"SFT": METHODS["sft"](), "γ = 0.5": METHODS["ift"](gamma=0.5),
         "γ = 0.95": METHODS["ift"](gamma=0.95), "eq. 21": METHODS["ift_eq21"](),
         "γ = 0.95, detached": METHODS["ift"](gamma=0.95, detach_weights=True)}
weight = {}
for name, method in forms.items():
    weight[name] = method.weigh(-c[None, None], one)[1][0, 0]
    if name == "eq. 21":                                # a sum: brought to the scale of the others
        weight[name] /= weight[name].sum()
    print(f"{name:18} 8 × weights", (8 * weight[name]).numpy().round(2))

# %% [markdown]
# Algorithm 1 pushes the surprising token up hardest. And unless its weights are detached, it pushes
# easy tokens **down**, in an answer that is right: from the second on at γ = 0.5, from the third on
# at γ = 0.95, which is the released form. Why? P_j − L C_j = Σ_{t≤j} γ^(j−t) (c_t − L): it counts
# how far the losses up to j lie below L; and L, a mean with weights S_t / Z, is mostly the
# surprise. Raising an easy loss moves weight onto easy tokens, and the mean falls. Nobody means
# that, and with detached weights it is gone.
#
# ## Step 5: a weight is not yet a push
# Before you judge a method by its weights, remember where they go. At the logits, weight w becomes
# w · (onehot − softmax) (lesson 03), and the token's own logit moves by
#
#     w · (1 − p)                    p = e^{−c}, the token's probability
#
# ## Exercise 2 ●○○ (3 minutes): `pull`
# That, for the tokens of an answer: from weights and log-probs.

# %%
pull_verdict = check.pull(mine.pull)
print(pull_verdict)

# %%
def pull(weights, logps):
    if check.is_right(pull_verdict):
        return mine.pull(weights, logps)
    return weights * (1 - logps.exp())


for name, w in weight.items():
    pulls = pull(w, -c)
    print(f"{name:18} 8 × pulls", (8 * pulls).numpy().round(2),
          f" the first has {pulls[0] / pulls.abs().sum():.0%}")

# %% [markdown]
# At the logits SFT itself favours the surprising token, ten to one per token, for there is little
# to move where p is almost 1. The pushes down on the easy tokens shrink by that factor too. Of all
# pulls, counted without their signs, the surprising token has the same share under SFT and under
# the released form (γ = 0.95), but the rest pulls up under SFT and down under the other. So the
# question of this lesson must be asked of the pulls, on answers that a model really gives.
#
# ## Step 6: the small GPT's answers
# For 96 held-out questions, the right answers under the model before training, by place (lesson
# 06): the opening, the fork at which a right answer parts from a wrong one, and what is behind. In
# shares of everything that is pushed:

# %%
exam = Exam(tokenizer, 0)
with torch.no_grad():
    logps = batch_logps(model, exam.curve)                              # (2, B, T)
losses = split(-logps, exam.curve)[:, 0].mean(-1).tolist()              # (3,)
print("losses, nats             ", "  ".join(
    f"{place} {x:5.2f}" for place, x in zip(PLACES, losses, strict=True)))
for name, method in forms.items():
    _, weights, _ = method.weigh(logps, exam.curve)
    for what, pushed in ("weight", weights), ("pull", pull(weights, logps)):
        x = split(pushed, exam.curve)[:, 0].sum(-1)                     # (3,)
        shares = (x / x.abs().sum()).tolist()
        told = "  ".join(f"{place} {y:+5.0%}" for place, y in zip(PLACES, shares, strict=True))
        print(f"{name:18} {what:6} {told}")

# %% [markdown]
# The weights differ, the pulls hardly do: whatever the form, nearly all of the pull is at the
# fork, because that is where the model is wrong. In such answers, short and with one uncertain
# token, there is little room for propagation to show what it can do.
#
# ## Step 7: train
# We train on labels of which 30 % are wrong, and measure the chance of the right answer to other
# questions; one base model, three draws of the data. λ says how much of its guesses the policy
# reads, γ how far a token answers for later ones, where 0 stands for SFT's weights (exercise 1). So
# λ = 0 and γ = 0 is SFT.

# %%
def tune(lam, gamma, seed):
    """Fine-tune a copy of the small GPT → the model."""
    method = METHODS["ift"](lam=lam, gamma=gamma)
    if gamma > 0:
        method = own.method("ift", mine.ift, verdict, lam=lam, gamma=gamma)
    tuned = copy.deepcopy(model)
    data = fine_tuning_data(tokenizer, seed, 0.3, None)[: len(examples)]
    for _ in fit(tuned, method, data, replace(RECIPE, seed=seed)):
        pass
    return tuned


# %%
@torch.no_grad()
def right(tuned, seed):
    """Chance of the right answer, exactly, mean of held-out questions."""
    return float(batch_logps(tuned, exams[seed].disputed).sum(-1)[0].exp().mean())


@torch.no_grad()
def by_place(tuned, seed):
    """Losses of right answers at the three places, mean of held-out questions: (3,)."""
    losses = split(-batch_logps(tuned, exams[seed].curve), exams[seed].curve)
    return losses[:, 0].mean(-1)


# %%
gammas, lams = ((0.0, 0.95), (0.0, 0.2)) if args.fast else ((0.0, 0.5, 0.95), (0.0, 0.2, 0.5, 1.0))
exams = {seed: Exam(tokenizer, seed) for seed in ([0] if args.fast else [0, 1, 2])}
chances, lost, kept = {}, {}, {"before": model}
for gamma in gammas:
    for lam in lams:
        tuned = [tune(lam, gamma, seed) for seed in exams]
        chances[gamma, lam] = [right(one, seed) for seed, one in enumerate(tuned)]
        lost[gamma, lam] = sum(by_place(one, seed) for seed, one in enumerate(tuned)) / len(tuned)
        if (gamma, lam) in ((0.0, 0.0), (0.95, 0.2)):
            kept[f"γ {gamma:g}, λ {lam:g}"] = tuned[0]
    means = [sum(chances[gamma, lam]) / len(chances[gamma, lam]) for lam in lams]
    print(f"γ = {gamma:4}: " + "   ".join(
        f"λ {lam:g}: {mean:.3f}" for lam, mean in zip(lams, means, strict=True)))

# %% [markdown]
# Where is it lost? The right answers' losses by place, for γ = 0, means of the same draws:

# %%
for lam in lams:
    print(f"λ {lam:3g}: losses, nats  ", "  ".join(
        f"{place} {x:5.2f}" for place, x in zip(PLACES, lost[0.0, lam].tolist(), strict=True)))

# %%
for name, tuned in kept.items():
    print(name)
    check.talk(tuned, tokenizer, ["9.11 or 9.9? ", "4.25 or 4.7? "])

# %% [markdown]
# ## The picture

# %%
whose = "your function" if check.is_right(verdict) else "minialign's"
means = {words: found[read].mean(0).tolist() for read, words in READ.items()}
check.show(pictures.on_the_gpt(c, weight, pull, means, chances, whose), "10")
down = int((weight["γ = 0.95"] < 0).sum())
print(f"Your guess? The largest weight is on token {int(weight['γ = 0.95'].argmax()) + 1}; "
      f"{down} of 8 are pushed down, in an answer that is right.")

# %%
verdicts = []
for (gamma, lam), values in list(chances.items())[1:]:                  # the first is SFT
    gains = [a - b for a, b in zip(values, chances[0.0, 0.0], strict=True)]
    verdicts.append("now more, now less")
    if min(gains) > 0 or max(gains) < 0:
        verdicts[-1] = "always more" if gains[0] > 0 else "always less"
    print(f"γ {gamma:4}, λ {lam:3}: right minus SFT's {sum(gains) / len(gains):+.3f}, "
          f"over the seeds {verdicts[-1]}")
print(f"Of {len(verdicts)} settings {verdicts.count('always less')} are worse than SFT on every "
      f"seed, {verdicts.count('always more')} better.")

# %% [markdown]
# So which tokens? By its weights the released form favours the badly predicted ones and pushes easy
# ones down; equation 21 favours late ones, easy or not. At the logits both turn to where the model
# is wrong, as SFT does.
#
# **The outcome in one sentence:** on this task IFT wins nothing over SFT in any of these settings,
# loses a few hundredths with a small λ and much with a large one. The losses by place say where the
# residual does it: behind the fork, and hardly at it. There a policy that has guessed wrong reads
# one number's digit, mixed in or alone, and is taught the *other* number's rest. In use it shall go
# on as its own digit says, and for that SFT's reading is right: the rest can be copied from the
# question. As on the lake, the guess is read with a label that does not belong there (lesson 09).
#
# Ahead or behind on three seeds is a hint and no more, for eleven settings were looked at. `python
# -m minialign study lambda` and `study propagation` ask again on more seeds, and allow for how
# much they ask.
#
# ## Try
# * `c = [0.1] * 7 + [3.0]`: the surprise comes last. Who answers for it now? What is left at the
#   logits?
# * `fine_tuning_data(tokenizer, seed, 0.0, None)` in `tune`: right labels only. What is left to be
#   won?
# * `METHODS["ift_eq21"](lam=lam)` in `tune`. It is a sum, so compare it with SFT's `seq_sum`.
#
# **Next:** 11, everybody at once.

# %%
# region Solution: unfold when you have tried
def ift(c, gamma):
    t = torch.arange(len(c))
    D = torch.where(t >= t[:, None], gamma ** (t - t[:, None]).to(c), 0.0)      # row t, column i
    S, P, C = D @ c, c @ D, D.sum(0)
    L = (c * S).sum() / S.sum()
    return (S + P - L * C) / S.sum()


def pull(weights, logps):
    return weights * -torch.expm1(logps)
# endregion
