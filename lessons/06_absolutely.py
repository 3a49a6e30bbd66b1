# %% [markdown]
# # 06 · Absolutely
# **The question:** why did both lines fall under DPO, and does ASFT prevent it?
#
# Train DPO on pairs of a chosen and a rejected answer, plot both log-probs, and the chosen one may fall as well. ASFT (arXiv
# 2409.10571; Anchored SFT is another method) says: because DPO trains a difference; train each likelihood absolutely. You derive
# both losses' weights, find out what pulls the chosen answer down, and see where ASFT lets go. You need lessons 03 and 05. Half
# an hour, one minute of it computing. Files: `minialign/methods/asft.py`, `minialign/methods/preference.py`.

# %%
import copy
import itertools
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from lessons import check, pictures
from minialign.data import Batch
from minialign.lab import arena, plot
from minialign.lab.studies.balance import gradient_ratios
from minialign.logps import add_reference, batch_logps
from minialign.methods import METHODS
from minialign.train import Recipe, fit

args = check.options()
mine = check.mine(args)

# %% [markdown]
# **Guess first.** Start: P(chosen) 0.3, P(rejected) 0.65. Both methods train to the end on the same right pairs. What are the two
# probabilities then under DPO? Under ASFT? Four numbers on paper, please.
#
# ## DPO by hand
# l = log-prob of an answer, r = l − l_ref its change since the start (w chosen, l rejected). Bradley and Terry: w beats l with
# probability σ(z), z = β (r_w − r_l). The loss is minus its logarithm (DPO paper, 2305.18290, eq. 7). From σ' = σ (1 − σ):
#
#     L = −log σ(z)        ∂L/∂z = −σ'(z)/σ(z) = −(1 − σ(z)) = −σ(−z)
#     −∂L/∂l_w = β σ(−z)                   −∂L/∂l_l = −β σ(−z)                the same push, up and down
#
# L sees nothing but the difference. Lower both log-probs by 50 and it does not notice:

# %%
one = Batch(mask=torch.ones(2, 1, 1, dtype=torch.bool), ref_logps=torch.tensor([[-1.2], [-0.43]]))
for lower in 0.0, 50.0:
    logps = torch.tensor([-0.5, -4.0]).view(2, 1, 1) - lower
    loss, weights, _ = METHODS["dpo"](beta=0.1).weigh(logps, one)
    z = 0.1 * float((logps[0] + 1.2) - (logps[1] + 0.43))
    print(f"log-probs {logps.flatten().tolist()}: loss {loss:.4f}, weights {[round(w, 4) for w in weights.flatten().tolist()]}; "
          f"β σ(−z) = {0.1 * torch.tensor(-z).sigmoid():.4f}")

# %% [markdown]
# ## ASFT by hand
# a = mean log-prob of an answer's tokens, p = eᵃ, odds O = p/(1−p). ASFT adds to SFT what a classifier would say about each
# answer alone: this one yes, that one no.
#
#     L = −a_w + λ [ −log σ(log O_w) − log σ(−log O_l) ]
#
# The sigmoid undoes the logarithm of the odds. With σ(x) = 1/(1 + e⁻ˣ):
#
#     σ(log O)  = 1/(1 + 1/O) = O/(1 + O) = [p/(1−p)] / [1/(1−p)] = p
#     σ(−log O) = 1 − σ(log O) = 1 − p
#     L = −a_w − λ a_w − λ log(1 − p_l) = −(1+λ) a_w − λ log(1 − p_l)
#
# Likelihood up, and for the rejected answer *un*likelihood. No reference. The slopes, with ∂p/∂a = p:
#
#     −∂L/∂a_w = 1 + λ                     −∂L/∂a_l = λ · ∂/∂a_l log(1 − e^{a_l}) = −λ p_l/(1 − p_l)
#
# and each of n tokens gets 1/n of it. In float32, the odds as typed in a paper and autograd, then minialign's short form:

# %%
for a_l in -1.0, -1e-3, -1e-8:
    a = torch.tensor([-0.5, a_l], requires_grad=True)
    log_odds = (a.exp() / (1 - a.exp())).log()
    typed = -a[0] - 0.1 * (log_odds[0].sigmoid().log() + (-log_odds[1]).sigmoid().log())
    slopes = [round(-float(slope), 4) for slope in torch.autograd.grad(typed, a)[0]]
    loss, weights, _ = METHODS["asft"](lam=0.1).weigh(a.detach().view(2, 1, 1), one)
    print(f"a_l = {a_l:6g}: typed {float(typed.detach()):.4f} {slopes}, short {float(loss):.4f} "
          f"{[round(float(w), 4) for w in weights.flatten()]}")

# %% [markdown]
# At −1e-8 the typed form is no longer a number. One release clamps p at 1 − 1e-7 instead: a push of the wrong size. The paper's
# β (0.1) is our λ, a weight; the β of that release tempers the odds and makes another loss (our `beta_odds`). That a is a *mean*
# over tokens follows released code; the paper may mean a sum in its SFT term.
#
# ## In probabilities, or in log-probs?
# *Which property of the Bradley–Terry model makes DPO punish more than it rewards?* The ASFT paper (section 4.1) answers with the
# slopes in probabilities. Log-probs have the slopes above, and ∂log p/∂p = 1/p, so for answers of one token
#
#     ∂L/∂p_w = −β σ(−z)/p_w        ∂L/∂p_l = β σ(−z)/p_l        |∂L/∂p_l| : |∂L/∂p_w| = p_w : p_l
#
# The rejected answer, soon the less likely one, has the larger slope. True; but in log-probs both are equal, always, and it is
# through log-probs that a gradient enters the network (lesson 03). Rejected ÷ chosen:

# %%
for p_w, p_l in (0.3, 0.65), (0.65, 0.3), (0.95, 0.01):
    told = [f"{name} {' and '.join(f'{x:7.3f}' for x in gradient_ratios(name, p_w, p_l)[:2])}" for name in ("dpo", "asft")]
    print(f"p_w {p_w}, p_l {p_l}: ratio in p and in log p   " + "   ".join(told))

# %% [markdown]
# So DPO's rejected push is not too strong *against* the chosen one. But look down the columns: ASFT's fades with p_l, DPO's
# does not. And β σ(−z) as a whole fades only when z = β · (margin) is large: with β = 0.1, after dozens of nats. The chosen
# answer can give what it lacks to log P = 0, about one nat. The rest must come from pushing the rejected one down, on and on.
#
# ## Both, from the same start, on the same pairs

# %%
base, tokenizer = check.base_model(args)
data = {}
for seed in [0] if args.fast else [0, 1, 2]:
    pairs = arena.fine_tuning_data(tokenizer, seed, 0.0, None)[: 128 if args.fast else 512]
    add_reference(base, pairs, micro_batch=64, progress=False)          # once: DPO's l_ref, a number per answer
    asked = arena.Exam(tokenizer, seed).curve                           # pairs that nobody trains on
    with torch.no_grad():
        data[seed] = pairs, replace(asked, ref_logps=batch_logps(base, asked).sum(-1).double())


def train(method, seed):
    """(update, log-probs, pushes per token) of chosen and rejected answers, held out; at the end, the probability of neither."""
    model, (pairs, asked), points = copy.deepcopy(base), data[seed], []
    records = fit(model, method, pairs, Recipe(epochs=1 if args.fast else 4, micro_batch=32, lr=1e-3, seed=seed))
    for step in itertools.chain([0], (record["step"] for record in records)):
        if step % 4 == 0:
            with torch.no_grad():
                logps = batch_logps(model, asked)                       # (A, B, T)
            _, weights, _ = method.weigh(logps, asked)
            l, push = logps.sum(-1), weights.sum((1, 2)) / asked.mask.sum((1, 2))
            points.append((step, l.mean(1).tolist(), push.tolist()))
    return points, float((1 - l.exp().sum(0)).mean())


# %%
runs, names = {}, ("dpo", "asft")
for name in names:
    runs[name] = [train(METHODS[name](), seed) for seed in data]
    for points, rest in runs[name]:
        (w0, l0), (w1, l1) = points[0][1], points[-1][1]
        print(f"{name:4}  chosen {w0:5.1f} → {w1:5.1f}   rejected {l0:5.1f} → {l1:6.1f}   P(neither) at the end {rest:.3f}")

# %% [markdown]
# Each line is a seed: its own questions, the same base model. "Neither" is garbage: an answer that names none of the two numbers.
#
# ## Which half of DPO does it?
# A gradient is a sum; take it apart. Two runs with DPO's own weights, one with the pushes up alone, one with the pushes down
# alone:

# %%
def half(sign):
    class Half(METHODS["dpo"]):
        def weigh(self, logps, batch):
            loss, weights, info = super().weigh(logps, batch)
            return loss, sign * (sign * weights).clamp(min=0), info     # the sum of both halves is DPO
    return Half()


for sign, word in (1, "up"), (-1, "down"):
    points, rest = train(half(sign), 0)
    print(f"only pushes {word:4}: chosen {points[0][1][0]:.1f} → {points[-1][1][0]:.1f}   P(neither) {rest:.3f}")

# %% [markdown]
# The pushes up, left alone, bring the chosen answer to the top and keep it there. It is the push *down* that takes it along: the
# two answers share their words, their context and every parameter, and lesson 03 said who gets what an unlikely token loses.
# So the cure is not to push the chosen answer harder, but to stop pushing the rejected one when it is unlikely enough. That is
# λ p/(1−p). What it costs elsewhere, on questions nobody disputed and on another skill, is in the table of the README.
#
# *What is gained without a reference?* The memory of a second model, or one forward pass over the data before training: that is
# `add_reference` above, one number per answer. The paper reports 13 % of time and 16.7 % of memory; `python -m minialign study
# cost` measures it both ways, and `study init` whether ASFT minds the initial model less. Lost: nothing ties it to the start.
#
# ## The picture

# %%
figure, panels = plt.subplots(1, 2, figsize=(11.5, 4.8), sharey=True, layout="constrained")
lowest = min(points[-1][1][1] for name in names for points, _ in runs[name])
for axes, name in zip(panels, names, strict=True):
    steps = [step for step, _, _ in runs[name][0][0]]
    for a, (style, word) in enumerate((("-", "chosen"), ("--", "rejected"))):
        mean = pictures.lines(axes, steps, [[l[a] for _, l, _ in points] for points, _ in runs[name]], plot.COLOR[name], style)
        axes.text(steps[-1] * 1.02, mean[-1], word, color=plot.COLOR[name], va="center", fontsize=11)
        for i in range(0, len(steps) - 1, max(1, len(steps) // 4)):
            push = runs[name][0][0][i][2]
            length = 0.12 * lowest * push[a] / push[0]                  # that of the chosen answer is one unit
            axes.annotate("", (steps[i], mean[i] - length), (steps[i], mean[i]),
                          arrowprops={"arrowstyle": "-|>", "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0})
            axes.text(steps[i] + 0.7, mean[i] - length + 0.04 * lowest, f"× {-push[a] / push[0]:.1g}" * a, va="center")
    axes.set(xlabel="updates", xlim=(-2, steps[-1] * 1.02), ylim=(1.2 * lowest, -0.17 * lowest))
    axes.set_title({"dpo": "DPO pushes down as hard as up, always", "asft": "ASFT lets go"}[name], color=plot.COLOR[name])
    plot.clean(axes)
panels[0].set_ylabel("log-prob of the answer ↑")
figure.suptitle("arrows: push per token, relative to the push on the chosen answer", fontsize=10, color="#555555")
check.show(figure, "06")
print("Your guess? Typical probabilities (geometric means), chosen and rejected:")
for name in names:
    w, l = (torch.tensor([points[-1][1][a] for points, _ in runs[name]]).mean().exp() for a in (0, 1))
    print(f"  {name:4} {w:.2g} and {l:.2g}")

# %% [markdown]
# How far DPO's chosen answer falls depends on the learning rate and on the seed (try 5e-4). And ASFT is not "balanced" either:
# its rejected answer falls several times further than the chosen one rises, because log P ends at 0.
#
# ## Exercise ●●○ (15 minutes)
# ASFT's two weights, from mean log-probs (float64). Mind what happens at p → 0, ½ and 1.
#
# <details><summary>Hint</summary>p/(1−p) = 1/(1/p − 1) = 1/(e^−a − 1), and `torch.expm1` keeps the digits of eˣ − 1.</details>

# %%
print(check.asft(mine.asft))

# %% [markdown]
# ## Try
# * `METHODS["dpo"](beta=1.0)`: a margin of a few nats is enough. What changes?
# * `lr=5e-4`. When would you have stopped DPO, looking at these curves? And looking only at the share of pairs ranked right?
# * "orpo", "simpo", "ipo" instead of "asft". Where does each let go? (`methods/preference.py` begins with the table.)
#
# **Next:** 07 pushes down what the model itself would say. No pairs needed.

# %%
# region Solution: unfold when you have tried
def asft(a_w, a_l, lam):
    return torch.full_like(a_w, 1 + lam), -lam / torch.expm1(-a_l)
# endregion
