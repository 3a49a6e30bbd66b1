# %% [markdown]
# # 07 · Discriminate
# **The question:** can a model learn from its own bad answers, without anybody calling them bad?
#
# SFT only ever says "more of this". DFT (arXiv 2502.18679) also says "less of that", and takes the "that" from the model: what
# it would have answered. Here answers are so few that every sum over *all answers* can be done, so you see what DFT estimates,
# how wrong its estimate is, and that the error is what makes it work. You need lesson 03's weights. Twenty minutes, seconds of
# computing. Keep `minialign/methods/dft.py` open beside it.
#
# **Guess first.** A model answers "9.11 or 9.9?" with 9.11 (62 %), 9.9 (33 %), or one of 18 other things. It is trained for
# long on the answers of a hundred people, of whom 30 are wrong and say 9.11. What will its chance of 9.9 be after SFT? And
# if, for every answer it is shown, two answers that it would have given at first are pushed down? Write two numbers down.

# %%
import math

import matplotlib.pyplot as plt
import torch

from lessons import check
from minialign.data import Batch
from minialign.lab import plot
from minialign.logps import logit_gradient
from minialign.methods import METHODS

args = check.options()
mine = check.mine(args)
torch.manual_seed(0)
labels = torch.tensor([0] * 70 + [1] * 30)          # what a hundred people said: answer 0 is 9.9, answer 1 is 9.11
n, V = len(labels), 20


def policy(right, wrong):
    """Log-probs (V,) of a model that says 9.9 and 9.11 with these chances, and 18 other things with what is left."""
    return torch.tensor([right, wrong] + [(1 - right - wrong) / (V - 2)] * (V - 2), dtype=torch.float64).log()


base = policy(0.33, 0.62)


def one_weigh(method, log_p, y, ref_logps):
    """What a method makes of answers y (A, n) of one token each: loss, weights (A, n), info."""
    batch = Batch(mask=torch.ones(*y.shape, 1, dtype=torch.bool), ref_logps=ref_logps)
    loss, weights, info = method.weigh(log_p[y][..., None], batch)
    return loss, weights[..., 0], info


# %% [markdown]
# ## Step 1: from a likelihood to pushes
# Give every answer y a score s_y, and let the wanted one, y₀, win against *all* answers (eqs. 2 and 3):
#
#     P_d(y₀) = exp(s_y₀/τ) / Σ_y exp(s_y/τ)          F = −τ log P_d(y₀) = −s_y₀ + τ log u,      u = Σ_y exp(s_y/τ)
#     ∂F/∂s_y = −[y = y₀] + τ · (1/u) · exp(s_y/τ) · (1/τ) = −[y = y₀] + P_d(y)
#
# One push up for the wanted answer; pushes down on all, each by its share P_d(y), one push down in total.

# %%
s = torch.randn(V, dtype=torch.float64).requires_grad_()
F = -s[0] + 0.8 * (s / 0.8).logsumexp(0)
F.backward()
by_hand = (s.detach() / 0.8).softmax(0) - torch.eye(V)[0]
print(f"largest difference to autograd {float((by_hand - s.grad).abs().max()):.0e}; all pushes sum to {float(by_hand.sum()):.0e}")

# %% [markdown]
# ## Step 2: with the paper's score, all that is SFT
# Setting 1 (eq. 4) takes the log-prob as score, s_y = log P(y). At τ = 1 (UltraFeedback's value) u = Σ_y P(y) = 1, so log u = 0
# and F = −log P(y₀): SFT's loss. A pool of *all* answers, drawn as if by a uniform reference, makes the package do the sum:

# %%
log_p = policy(0.90, 0.08)                                              # a policy that has learnt something
every = torch.cat([labels[None], torch.arange(V)[:, None].expand(V, n)])                        # (1+V, n): the wanted, then all
uniform = torch.full((1 + V, n), -math.log(V), dtype=torch.float64)
exact = one_weigh(METHODS["dft"](tau=1.0, gamma=1.0, n_examples=n), log_p, every, uniform)
sft = one_weigh(METHODS["sft"](reduction="seq_sum"), log_p, labels[None], None)
gradient = [logit_gradient(log_p.expand(y.numel(), -1).clone(), y.flatten(), w.flatten()).sum(0)
            for y, w in ((every, exact[1]), (labels[None], sft[1]))]
print(f"loss: DFT over all answers {exact[0]:.12f}, SFT {sft[0]:.12f}")
print(f"largest difference of the gradients at the logits {float((gradient[0] - gradient[1]).abs().max()):.0e}")

# %% [markdown]
# The pushes down are there, V of them, and cancel in the softmax: Σ_y P(y) (onehot_y − P) = 0. So whatever DFT does better than
# SFT at τ = 1 must come from *not* doing the sum.
#
# ## Step 3: two answers in place of all
# No sum over all texts can be done. Draw K answers y_j from the model before training, P_ref, and weigh by 1/P_ref (eq. 6):
#
#     u = Σ_y exp(s_y/τ) = E_{y ~ P_ref} [exp(s_y/τ) / P_ref(y)]        û = (1/K) Σ_j exp(d_j),     d_j = s_j/τ − log P_ref(y_j)
#
# û is right on average. But F needs log u, and a logarithm is bent: E log û ≤ log E û = log u (Jensen). Over all V² pairs:

# %%
d = log_p - base                                                        # τ = 1
chance = (base[:, None] + base[None, :]).exp()                          # of drawing each pair
u_hat = (d.exp()[:, None] + d.exp()[None, :]) / 2
print(f"truth u = 1, log u = 0;   mean of û {float((chance * u_hat).sum()):.6f},   "
      f"mean of log û {float((chance * u_hat.log()).sum()):+.4f}")

# %% [markdown]
# So the paper remembers: one running average per training example, and its gradient holds u fixed once it is updated:
#
#     u ← (1−γ) u + γ û        (eq. 7; eqs. 9, 10 do it in logs, so that nothing overflows; u starts at 1)
#     −∂F/∂s₀ = 1              −∂F/∂s_j = −ω_j,      ω_j = exp(d_j) / (K u)                          (eq. 8: τ and 1/τ cancel)
#
# γ = 1 remembers nothing: Σ_j ω_j = 1, whatever was drawn. DFT2 (eqs. 11 to 13) takes the mean log-prob per token as score and
# drops P_ref. *The release* divides by P_ref under the plain prompt, where the paper writes the prompt that provoked bad answers;
# it prints a surrogate whose value is not F, lets evaluation move u, and of two visits in a batch it keeps the last. We do not.

# %%
dft = METHODS["dft"](tau=1.0, gamma=0.9, n_examples=n)
y = torch.cat([labels[None], torch.multinomial(base.exp(), 2 * n, replacement=True).view(2, n)])
_, weights, _ = one_weigh(dft, log_p, y, base[y])
u = 0.1 * 1 + 0.9 * d[y[1:]].exp().mean(0)
print(f"u by eq. 7 and dft.log_u: {float((u.log() - dft.log_u).abs().max()):.0e} apart;  "
      f"ω by eq. 8 and −weights: {float((d[y[1:]].exp() / (2 * u) + n * weights[1:]).abs().max()):.0e}")

# %% [markdown]
# ## Step 4: train
# The same labels and draws for everyone; an update is score, weigh, push. The true u never moves: log u = 0.

# %%
def learn(method, seed, start=base, updates=10 if args.fast else 120, lr=0.3):
    """→ after every update: the chance of 9.9, and log u as the method has it, mean of the examples."""
    z, draw, right, log_u = start, torch.Generator().manual_seed(seed), [float(start[0].exp())], [0.0]
    for _ in range(updates):
        log_p = z.log_softmax(0)
        y = torch.cat([labels[None], torch.multinomial(start.exp(), 2 * n, replacement=True, generator=draw).view(2, n)])
        _, weights, info = one_weigh(method, log_p, y, start[y])
        z = z - lr * logit_gradient(log_p.expand(y.numel(), -1).clone(), y.flatten(), weights.flatten()).sum(0)
        right.append(float(z.softmax(0)[0]))
        log_u.append(float(info["log_u"].mean()) if "log_u" in info else 0.0)
    return right, log_u


make = {"SFT": lambda: METHODS["sft"](reduction="seq_sum")} | {
    f"γ = {gamma:g}": lambda gamma=gamma: METHODS["dft"](1.0, gamma, n) for gamma in (0.5, 0.9, 1.0)}
runs = {name: torch.tensor([learn(method(), seed) for seed in range(3)]) for name, method in make.items()}     # (3, 2, updates)
for name, run in runs.items():
    print(f"{name:8} chance of 9.9 {run[:, 0, -1].mean():.3f}    log u {run[:, 1, -1].mean():+.2f}   (truth 0)")

# %% [markdown]
# u follows the draw. Two answers that have become unlikely make a small u, and are pushed down as if they were likely: DFT pushes
# down what the model *used to* say, harder than the objective asks. Where the label is wrong, that is the same wrong answer, and
# push up and push down cancel. What is left is the vote of the right labels.
#
# Now the same with models that knew better before. DFT has no idea who is right. What will it do to a model that is?

# %%
starts = torch.linspace(0.1, 0.95, 3 if args.fast else 9).tolist()
after = {name: [learn(method(), 0, policy(p, 0.97 - p))[0][-1] for p in starts] for name, method in make.items()}
print("chance of 9.9 before", *(f"{p:5.2f}" for p in starts))
for name, chances in after.items():
    print(f"after {name:14}", *(f"{chance:5.2f}" for chance in chances))

# %% [markdown]
# ## The picture

# %%
look = {"SFT": plot.COLOR["sft"], "γ = 0.5": "#7fb8d9", "γ = 0.9": plot.COLOR["dft"], "γ = 1": "#00365a"}
figure, (left, middle, last) = plt.subplots(1, 3, figsize=(15, 4.3), layout="constrained")
for axes, part in ((left, 1), (middle, 0)):
    words = {"SFT": "truth", "γ = 1": "one batch\n(γ = 1)"} if part else {}
    ink = look | {"SFT": "black"} if part else look
    for name, run in runs.items():
        axes.plot(run[:, part].T, color=ink[name], linewidth=0.7, alpha=0.35)
        axes.plot(run[:, part].mean(0), color=ink[name], linewidth=2.4)
    end = run.shape[-1] - 1
    axes.set(xlim=(0, end), xlabel="updates")
    ends = [(end, float(run[:, part, -1].mean()), words.get(name, name), ink[name]) for name, run in runs.items()]
    plot.label_ends(axes, ends, size=10)
for name, chances in after.items():
    last.plot(starts, chances, "o-", color=look[name], linewidth=2.4, markersize=4)
last.annotate("the model was wrong:\nDFT mends it", (0.33, 0.95), (0.36, 1.02), fontsize=10, color=plot.COLOR["dft"])
last.annotate("it was right:\nDFT breaks it", (0.9, 0.1), (0.5, 0.04), fontsize=10, color=plot.COLOR["dft"])
left.set(title="Two answers are too few to know u …", ylabel="log u, mean of the examples")
middle.set(title="… too small, so pushes down are too hard …", ylabel="chance of 9.9 ↑")
last.set(title="… good or bad, whatever the model said before", ylim=(-0.02, 1.15), ylabel="chance of 9.9 after training ↑",
         xlabel="chance of 9.9 before training")
for axes in middle, last:
    axes.axhline(0.7, color="#b5483a", linewidth=1.2, linestyle=":")
middle.text(end, 0.66, "share of right labels (dotted)", color="#b5483a", fontsize=9, ha="right", va="top")
for axes in left, middle, last:
    plot.clean(axes)
check.show(figure, "07")
print(f"Your guess? SFT {runs['SFT'][:, 0, -1].mean():.2f}: it copies its labels. With two negatives and γ = 0.9, "
      f"{runs['γ = 0.9'][:, 0, -1].mean():.2f}; but {starts[-1]:.2f} before becomes {after['γ = 0.9'][-1]:.2f}.")

# %% [markdown]
# So: yes, without labels for the bad answers, and for a price. DFT learns what the labels say *more often than the model did*.
# γ sets how much: small γ keeps u near its start, which at τ = 1 is the truth, and that is SFT with noise. Here γ = 1 never
# stops pushing and looks fine; in a network those pushes reach everything else, and the paper's γ < 1 wins (try `python -m
# minialign study gamma`). The GPT of `python -m minialign compare` shows gain and price: its columns "right" and "agreed".
#
# ## Exercise ●●○ (10 minutes)
# A silent bug. Somebody writes eq. 7 in torch, `u = (1 − γ)·u_old + γ·mean(exp(d))`, and calls backward on F = −s₀ + τ·log u.
# The loss is right and nothing crashes, but u is not held fixed. The push up is right too. By which factor is every push down
# too small, or too big? Pencil and paper: ∂F/∂s_j, divided by ω_j.
#
# <details><summary>Hint</summary>d_j contains s_j/τ. Follow one s_j through d_j, the mean, u, and the logarithm.</details>

# %%
print(check.silent_bug(mine.silent_bug))

# %% [markdown]
# ## Try
# * All labels right: `[0] * 100`. What is left of the difference between SFT and DFT?
# * 16 negatives instead of 2 (`2 * n` and `view(2, n)` in `learn`). Which curve do all the others approach?
# * τ = 0.8 in `make`: then the truth is log Σ_y P(y)^(1/τ), and it moves. Draw it.
#
# **Next:** 08 leaves language, to see exactly what imitation cannot know.

# %%
# region Solution: unfold when you have tried
def silent_bug(gamma, tau, K):
    return gamma            # ∂F/∂s_j = τ · (1/u) · γ · (1/K) · exp(d_j) · (1/τ) = γ ω_j; that is why weigh has no autograd
# endregion
