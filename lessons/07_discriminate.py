# %% [markdown]
# # 07 · Discriminate
# **The question:** can a model learn from its own bad answers, without anybody calling them bad?
#
# SFT only ever says “more of this”. DFT (discriminative fine-tuning, arXiv 2502.18679) also says
# “less of that”, and takes the “that” from the model itself: what it would have answered. We begin
# with a model so small that every sum over *all answers* can be done. So you will see what DFT
# estimates, how wrong it is, that the error is what makes it work, and what else would have worked.
#
# You need the weights of lesson 03. Forty minutes, half a minute of computing. Keep
# `minialign/methods/dft.py` open beside it.
#
# **Guess first.** Asked “9.11 or 9.9?”, a model says “9.11>9.9” (62 %), “9.9>9.11” (33 %), or one
# of 18 other things. It is trained for long on the answers of a hundred people, of whom 30 are
# wrong. What will be its chance of “9.9>9.11” after SFT? And if, for every answer that it is
# shown, two answers that it would have given at first are pushed down? Write two numbers down.

# %%
import copy
import math

import torch

from lessons import check, own
from lessons.pictures import methods as pictures
from minialign.data import Batch
from minialign.generate import answers
from minialign.lab import arena
from minialign.logps import add_reference, batch_logps, logit_gradient
from minialign.methods import METHODS
from minialign.train import Recipe, fit

# %% [markdown]
# The model is one row of logits, one for each of 20 answers. An answer is one token here.
# %%
args = check.options()
mine = check.mine(args)
torch.manual_seed(0)
labels = torch.tensor([0] * 70 + [1] * 30)      # answer 0 is “9.9>9.11”, answer 1 is “9.11>9.9”
B, V, K = len(labels), 20, 2                    # labels, answers, negatives per label


def policy(right, wrong):
    """Log-probs (V,): these two chances, and 18 other answers with equal shares of the rest."""
    rest = (1 - right - wrong) / (V - 2)
    return torch.tensor([right, wrong] + [rest] * (V - 2), dtype=torch.float64).log()


base = policy(0.33, 0.62)

# %%
def weigh(method, log_p, y, ref_logps=None):
    """What a method makes of answers y (A, B) of one token: loss, weights (A, B), info."""
    batch = Batch(mask=torch.ones(*y.shape, 1, dtype=torch.bool), ref_logps=ref_logps)
    loss, weights, info = method.weigh(log_p[y][..., None], batch)
    return loss, weights[..., 0], info


def gradient(log_p, y, weights):
    """And what these weights are at the logits: (V,)."""
    rows = log_p.expand(y.numel(), -1).clone()
    return logit_gradient(rows, y.flatten(), weights.flatten()).sum(0)

# %% [markdown]
# ## Step 1: from a likelihood to pushes
# Give every answer y a score s_y, and let the wanted answer y₀ win against *all* answers
# (eqs. 2 and 3), with a temperature τ:
#
#     P_d(y₀)  =  exp(s_y₀/τ) / u            u  =  Σ_y exp(s_y/τ)
#     F        =  −τ log P_d(y₀)  =  −s_y₀ + τ log u
#     ∂F/∂s_y  =  −[y = y₀] + τ · (1/u) · ∂u/∂s_y                  (the slope of log u is 1/u)
#              =  −[y = y₀] + τ · (1/u) · exp(s_y/τ) · (1/τ)       (only one term of u contains s_y)
#              =  −[y = y₀] + P_d(y)                               (τ and 1/τ cancel)
#
# One push up, for the wanted answer. And pushes down on all answers, each by its share P_d(y)
# (d for discriminative), which add up to one push down.

# %%
s = torch.randn(V, dtype=torch.float64).requires_grad_()
F = -s[0] + 0.8 * (s / 0.8).logsumexp(0)
F.backward()
by_hand = (s.detach() / 0.8).softmax(0) - torch.eye(V)[0]
print(f"largest difference to autograd {(by_hand - s.grad).abs().max():.0e}; "
      f"all pushes sum to {by_hand.sum().abs():.0e}")

# %% [markdown]
# ## Step 2: with the paper's score, all that is SFT
# The paper's score (eq. 4) is the log-prob, s_y = log P(y). At τ = 1, its value for UltraFeedback,
# u = Σ_y P(y) = 1. So log u = 0, and F = −log P(y₀): that is SFT's loss. The package can do the sum
# if we give it all V answers as negatives. (It takes them for samples, steps 3 and 4 say why: so it
# must hear that all were equally likely to be drawn, and γ = 1 makes it forget earlier draws.)

# %%
log_p = policy(0.90, 0.08)                                              # it has learnt something
every = torch.cat([labels[None], torch.arange(V)[:, None].expand(V, B)])        # (1+V, B)
uniform = torch.full((1 + V, B), -math.log(V), dtype=torch.float64)
exact = weigh(METHODS["dft"](tau=1.0, gamma=1.0, n_examples=B), log_p, every, uniform)
sft = weigh(METHODS["sft"]("seq_sum"), log_p, labels[None])
apart = gradient(log_p, every, exact[1]) - gradient(log_p, labels[None], sft[1])
print(f"loss: DFT over all answers {exact[0]:.12f}, SFT {sft[0]:.12f}")
print(f"largest difference of the gradients at the logits {apart.abs().max():.0e}")

# %% [markdown]
# There are V pushes down and they do nothing: pushing every answer down by its probability cancels
# in the softmax, Σ_y P(y) (onehot_y − P) = P − P = 0. So whatever DFT does better than SFT at τ = 1
# must come from *not* doing the sum.
#
# ## Step 3: two answers in place of all
# Nobody can sum over all texts. But a sum can be written as a mean over answers that are drawn.
# Draw them from the model before training, the reference P_ref, and divide by it (eq. 6):
#
#     u  =  Σ_y exp(s_y/τ)
#        =  Σ_y P_ref(y) · exp(s_y/τ) / P_ref(y)                  (multiply and divide by P_ref)
#        =  E_{y ~ P_ref} [ exp(s_y/τ) / P_ref(y) ]               (E: the mean over such draws)
#
# and K drawn answers y_1 … y_K estimate it:
#
#     û  =  (1/K) Σ_j exp(d_j)               d_j  :=  s_j/τ − log P_ref(y_j)
#
# û is right on average. But F needs log u, and by *Jensen's inequality* the mean of a logarithm is
# at most the logarithm of the mean, E log X ≤ log E X, because a logarithm is bent downwards. So
# log û is too small on average. Here all pairs of answers can be gone through, each with its chance
# of being drawn:

# %%
d = log_p - base                                                        # τ = 1
chance = (base[:, None] + base[None, :]).exp()                          # of each pair, (V, V)
u_hat = (d.exp()[:, None] + d.exp()[None, :]) / 2
print("truth         u = 1          log u = 0")
means = (chance * u_hat).sum(), (chance * u_hat.log()).sum()
print(f"mean of û       {means[0]:.4f}   of log û  {means[1]:+.4f}")

# %% [markdown]
# ## Step 4: remember, and what the gradient is then
# So the paper remembers: one running average u for every training example (eqs. 7 and 10),
#
#     u  ←  (1 − γ) u + γ û              γ is the share of the newest estimate; u starts at 1
#
# What is the push on a negative? Minus the slope of τ log u in its score, τ (∂u/∂s_j) / u: a
# *numerator*, how u changes with the parameters as they are now, over a *denominator*, how large u
# is. For each, take the best estimate at hand. The averaged u, after the update, is the better
# denominator: beside the fresh û it has seen earlier draws. But what was remembered belongs to old
# parameters and has no slope any more: the only slope that can be taken now is that of the fresh
# û. Like û itself, it is right on average. So (eq. 8)
#
#     τ (∂u/∂s_j) / u  ≈  τ (∂û/∂s_j) / u                            (fresh slope, averaged u)
#     ∂û/∂s_j  =  (1/K) exp(d_j) · ∂d_j/∂s_j  =  exp(d_j) / (τ K)    (d_j contains s_j/τ)
#     push on y_j  =  −ω_j          ω_j  =  exp(d_j) / (K u)         (τ and 1/τ cancel)
#     push on y₀  =  1                                               (F contains −s₀)
#
# The u below the fraction is treated as if it did not depend on the parameters, a *stop-gradient*
# (`.detach()` in PyTorch). And if autograd goes through the line that updates u? Try both. Hold the
# policy still, let u settle (with a long memory, γ = 0.1), and average the pushes over many draws.
# They should add up to nearly P_d(y), the exact pushes of step 1:

# %%
still, still_p = METHODS["dft"](tau=0.8, gamma=0.1, n_examples=B), policy(0.60, 0.25)


def by_autograd(y, u_before):
    """Slopes of mean F in the negatives' scores (K, B), also through the update of u."""
    s = still_p[y].requires_grad_()                                         # (1+K, B)
    d = s[1:] / 0.8 - base[y[1:]]
    u = 0.9 * u_before + 0.1 * d.exp().mean(0)
    F = -s[0] + 0.8 * u.log()
    return torch.autograd.grad(F.mean(), s)[0][1:]

# %%
down = {"eq. 8": torch.zeros(V).double(), "autograd": torch.zeros(V).double()}
visits, settled = (40, 20) if args.fast else (400, 100)
for visit in range(visits):
    y = torch.cat([labels[None], torch.multinomial(base.exp(), K * B, True).view(K, B)])
    pushes = {"autograd": by_autograd(y, still.log_u.exp())}
    pushes["eq. 8"] = -weigh(still, still_p, y, base[y])[1][1:]             # this updates u
    if visit >= settled:
        for name, push in pushes.items():
            down[name].index_add_(0, y[1:].flatten(), push.flatten() / (visits - settled))
print("push down on   “9.9>9.11”   “9.11>9.9”   all others       sum")
for name, x in {"exact, P_d": (still_p / 0.8).softmax(0), **down}.items():
    print(f"{name:12} {x[0]:10.3f}   {x[1]:10.3f}   {x[2:].sum():10.3f}   {x.sum():10.3f}")

# %% [markdown]
# Equation 8 comes close. Not closer, because u contains the fresh û: a draw that makes û large is
# divided by a larger u. All pushes down of a visit add up to û/u. From u = (1 − γ) u_before + γ û,
# 1 = (1 − γ) u_before/u + γ û/u. Once u has settled, log(u_before/u) is 0 on average, so by Jensen
# the mean of u_before/u is at least 1, and that of û/u at most 1. Autograd finds a tenth: exercise
# 2 asks why. The loss is the same, nothing crashes, and the pushes down are all but gone.
#
# ## Exercise 1 ●●○ (15 minutes): `dft`
# One visit in six lines, in `lessons/mine.py`: from the log-probs of the answers under policy and
# reference, and the log u of before, the log u of after and the push on every answer. Exponentials
# of log-probs of long texts underflow, so stay in logs. If it is right, it does the training below.
#
# <details><summary>Hint</summary>
#
# log û is `d.logsumexp(0) - math.log(K)`; `torch.logaddexp(a, b)` is log(eᵃ + eᵇ), and log (1 − γ)u
# is log(1 − γ) + log u. At γ = 1 that is −∞, and `torch.tensor(0.0).log()` knows it.
# </details>

# %%
verdict = check.dft(mine.dft)
print(verdict)

# %% [markdown]
# ## Exercise 2 ●●○ (10 minutes): `silent_bug`
# Somebody writes `by_autograd`: the loss is right, the push up is right, and nothing crashes. By
# which factor is every push down wrong? Pencil and paper: ∂F/∂s_j, divided by ω_j.
#
# <details><summary>Hint</summary>
#
# Follow one s_j through d_j, the mean, u, and the logarithm.
# </details>

# %%
print(check.silent_bug(mine.silent_bug))

# %% [markdown]
# ## Step 5: train
# The same labels and draws for everyone. An update is score, weigh, push. The true log u stays 0.

# %%
def learn(method, seed, start=base, kept=None, updates=10 if args.fast else 120):
    """→ after every update: the chance of “9.9>9.11”, and the mean of log u."""
    z, draw = start, torch.Generator().manual_seed(seed)
    right, log_u = [float(start[0].exp())], [0.0]
    label = labels if kept is None else labels[kept]
    for _ in range(updates):
        log_p = z.log_softmax(0)
        drawn = torch.multinomial(start.exp(), K * len(label), True, generator=draw)
        drawn = drawn.view(K, len(label))
        y = torch.cat([label[None], drawn])                             # (1+K, labels)
        _, weights, info = weigh(method, log_p, y, start[y])
        z = z - 0.3 * gradient(log_p, y, weights)
        right.append(float(z.softmax(0)[0]))
        log_u.append(float(info["log_u"].mean()) if "log_u" in info else 0.0)
    return right, log_u

# %%
def method_of(name):
    """“SFT”, or DFT with the γ that the name tells."""
    if name == "SFT":
        return METHODS["sft"]("seq_sum")
    return own.method("dft", mine.dft, verdict, B, tau=1.0, gamma=float(name.split()[-1]))


runs = {}
for name in "SFT", "γ = 0.5", "γ = 0.9", "γ = 1":
    runs[name] = torch.tensor([learn(method_of(name), seed) for seed in range(3)])
    right, log_u = runs[name][:, :, -1].mean(0)                         # runs: (seeds, 2, updates)
    print(f"{name:8} chance of “9.9>9.11” {right:.3f}    log u {log_u:+.2f}   (truth 0)")

# %% [markdown]
# u follows the draw. An answer that has become unlikely, P < P_ref, makes a small û; u follows it
# and is too small as well; and ω_j = exp(d_j)/(K u) is too large. So DFT pushes down what the
# model *used to* say, harder than its objective asks. Where the label is wrong, that is mostly the
# label itself: push up and pushes down fall on the same answer, and cancel. What is left is the
# vote of the right labels.
#
# ## Step 6: whoever has such negatives knows the rule
# If the negatives are nearly always wrong, they say which labels are wrong. To use that needs no
# method: drop every example whose label is among its own negatives, and do SFT on the rest.
#
# ## Exercise 3 ●○○ (5 minutes): `keep`
# The filter: which examples are kept, from their labels and their negatives.
#
# <details><summary>Hint</summary>
#
# `negatives != label` compares every column with its own label. `.all(0)` asks down a column.
# </details>

# %%
keep_verdict = check.keep(mine.keep)
print(keep_verdict)

# %%
def filtered(seed, start=base):
    """SFT on the examples that pass the filter: the chance of “9.9>9.11” after every update."""
    draw = torch.Generator().manual_seed(1000 + seed)
    negatives = torch.multinomial(start.exp(), K * B, True, generator=draw).view(K, B)
    kept = (mine if check.is_right(keep_verdict) else check.OURS).keep(labels, negatives)
    if not kept.any():
        return [float(start[0].exp())]
    return learn(METHODS["sft"]("seq_sum"), seed, start, kept)[0]


ends = [filtered(seed)[-1] for seed in range(3)]
print("SFT, filtered: chance of “9.9>9.11”", *(f"{x:.3f}" for x in ends))

# %% [markdown]
# Neither has an idea of what is right. So what will both do to a model that knew better before?

# %%
starts = torch.linspace(0.1, 0.95, 3 if args.fast else 9).tolist()
after = {}
for name in runs:
    after[name] = [learn(method_of(name), 0, policy(p, 0.97 - p))[0][-1] for p in starts]
after["SFT, filtered"] = [filtered(0, policy(p, 0.97 - p))[-1] for p in starts]
print("chance before        ", *(f"{p:5.2f}" for p in starts))
for name, chances in after.items():
    print(f"after {name:15}", *(f"{chance:5.2f}" for chance in chances))

# %% [markdown]
# ## The picture

# %%
whose = "your function" if check.is_right(verdict) else "minialign's"
check.show(pictures.discriminate(runs, starts, after, whose), "07")
print(f"Your guess? SFT {runs['SFT'][:, 0, -1].mean():.2f}: it copies its labels. With two "
      f"negatives and γ = 0.9, {runs['γ = 0.9'][:, 0, -1].mean():.2f};\n"
      f"but a model that says “9.9>9.11” in {starts[-1]:.0%} before says it in "
      f"{after['γ = 0.9'][-1]:.0%} after.")

# %% [markdown]
# So: yes, without labels for the bad answers, and for a price. DFT learns what the labels say *more
# often than the model did*: where that was less than their 0.70 it ends above SFT, else below. γ
# sets how much: a small γ keeps u near its start, at τ = 1 the truth, and that is SFT with noise.
# The filter turns sooner. It keeps what the model says seldom, so right labels gain by it only
# where the model said the right answer less often than the wrong one (a chance below 0.485).
#
# ## Step 7: on the small GPT
# Real answers now, of several tokens, and 30 % of the labels wrong. The negatives are two answers
# of the model before training, asked as itself, wrong in two thirds of the disputed questions, or
# as the Troll, a person in what it has read who was *made to be wrong* in 95 % of them.

# %%
base_gpt, tokenizer = check.base_model(args)
questions = arena.fine_tuning_questions(0)[: 32 if args.fast else 384]


def pool(persona):
    """The fine-tuning data, with two answers of the model, asked as a persona, as negatives."""
    prompts = [tokenizer.encode(question.prompt(persona)) for question in questions]
    draw = torch.Generator().manual_seed(0)
    drawn = answers(base_gpt, tokenizer, prompts, K, arena.LONGEST, 0.7, 50, None, draw)
    texts = [[text or "?" for text, _ in answers_of_one] for answers_of_one in drawn]
    texts += [["?"]] * (arena.N_TRAIN - len(texts))
    examples = arena.fine_tuning_data(tokenizer, 0, 0.3, texts)[: len(questions)]
    add_reference(base_gpt, examples, micro_batch=64, progress=False)
    return examples

# %%
pools = {persona: pool(persona) for persona in ("troll", "plain")}
passed = [e for e in pools["troll"] if e.answers[0] not in e.answers[1:]]
rows = {"sft": ("sft", pools["troll"]),
        "sft, filtered by the Troll": ("sft", passed),
        "dft, its own negatives": ("dft", pools["plain"]),
        "dft, the Troll's": ("dft", pools["troll"])}
exam, tuned = arena.Exam(tokenizer, 0), {"before": base_gpt}
for name, (method, examples) in rows.items():
    tuned[name] = copy.deepcopy(base_gpt)
    method = (METHODS["sft"]("seq_sum") if method == "sft" else
              own.method("dft", mine.dft, verdict, len(examples), gamma=0.95))
    for _ in fit(tuned[name], method, examples, Recipe(epochs=3, micro_batch=32, lr=5e-4)):
        pass

# %%
for name, model in tuned.items():
    with torch.no_grad():
        right, wrong = batch_logps(model, exam.disputed).sum(-1).exp().mean(1)
        agreed = batch_logps(model, exam.agreed).sum(-1).exp().mean()
    print(f"{name:28} right {right:.2f}  wrong {wrong:.2f}  agreed questions, right {agreed:.2f}")
    check.talk(model, tokenizer, ["9.11 or 9.9? ", "9.2 or 9.55? "])

# %% [markdown]
# Read it with step 6 in mind. *Agreed* questions (the second one) are those on which the model's
# old rule and the true one agree: there the model was right. SFT loses some of it, because 30 % of
# these labels are wrong, too. DFT loses more: its negatives are right answers there, the Troll's
# too, and are pushed down. The filter loses nearly all: where the Troll repeats a right label it
# drops the example, and the wrong labels remain. How bad the negatives are decides how good DFT
# looks; “the model's own answers” and “answers of a persona that was built to be wrong” are two
# experiments. `python -m minialign study personas` has the whole curve.
#
# *Where the release differs* stands in `methods/dft.py`. DFT2 (eqs. 11 to 13) takes the mean
# log-prob per token as score, and drops P_ref.
#
# ## Try
# * All labels right: `[0] * 100`. What is left of the difference between SFT and DFT?
# * Noise of 0.5 in `pool`: labels say nothing. Who is still right, and from whom does it know?
#
# **Next:** 08 leaves language, to see exactly what imitation cannot know.

# %%
# region Solution: unfold when you have tried
def dft(l, ref, log_u, tau, gamma):
    d, gamma = l[1:] / tau - ref[1:], torch.tensor(gamma, dtype=l.dtype)
    log_K = torch.tensor(float(len(d))).log()
    log_u_hat = d.logsumexp(0) - log_K
    log_u = torch.logaddexp((1 - gamma).log() + log_u, gamma.log() + log_u_hat)
    omega = (d - log_u - log_K).exp()
    return log_u, torch.cat([torch.ones_like(l[:1]), -omega])


def keep(label, negatives):
    return (negatives != label).all(0)


def silent_bug(gamma, tau, K):
    # ∂F/∂s_j = τ · (1/u) · γ · (1/K) · exp(d_j) · (1/τ) = γ ω_j; that is why weigh has no autograd
    return gamma
# endregion
