# %% [markdown]
# # 08 · Live with your guesses
# **The question:** what changes if the model must continue from what it would have said?
#
# SFT reads the right prefix, always; once it speaks for itself, it reads its own. IFT (arXiv 2405.11870) mixes the two during
# training, and makes early tokens answer for late ones. No negatives, no reference: the data of SFT. You derive its gradient,
# find the place where paper and code disagree, and see on the lake of lesson 07 when it helps. Twenty-five minutes, about one of
# them computing. Keep `minialign/methods/ift.py` open beside it.
#
# **Guess first.** An answer of eight tokens; the model is surprised by the first (loss 3) and sure of the rest (0.1 each). SFT
# pushes all eight up equally. IFT lets a token answer for the losses after it. Which tokens will it push hardest? And could it
# push one of them *down*, in an answer that is right? Write it down.

# %%
import copy
from dataclasses import replace

import check
import matplotlib.pyplot as plt
import torch

from minialign.data import Batch, collate
from minialign.lab import plot
from minialign.lab.arena import RECIPE, Exam, fine_tuning_data
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.train import fit
from toy import lake as lakes
from toy.measure import measure
from toy.rows import find_row, train_row
from toy.world import prepare

args = check.options()
model, tokenizer = check.base_model(args)

# %% [markdown]
# ## Step 1: the residual
# Ask the policy for its likeliest token g_t at every place of the answer, without a graph. Then read (eq. 17)
#
#     e_t = (1−λ) E[y_t] + λ E[g_t]           (E embeds; prompt tokens stay as they are; the *targets* stay the true tokens)
#
# In the paper the guess is an action, a = π(s): one token, not a soft average over all; Algorithm 1 and the code agree. (The code
# reads E from a frozen copy. Ours learns as in SFT, so that λ = 0 is SFT.)

# %%
examples = fine_tuning_data(tokenizer, 0, 0.0, None)[: 64 if args.fast else 512]
ift = METHODS["ift"](lam=0.5)
wanted = collate([replace(e, answers=e.answers[:1], rewards=None) for e in examples])
(batch,) = ift.prepare(model, [wanted])
rows = batch.rows
differ = ((rows.guesses != rows.y) & rows.mask)[0]                      # (B, T): where the guess is not the label
i = int(differ.sum(-1).argmax())
for name, ids in ("label", rows.y[0, i]), ("guess", rows.guesses[0, i]):
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in ids[rows.mask[0, i]].tolist()]
    print(f"{tokenizer.decode(examples[i].prompt)}  {name}: {'  '.join(tokens)}")
with torch.no_grad():
    mixed = (ift.inputs(model, batch) != model.embed(rows.tokens)).any(-1)
print(f"of all answer tokens the model guesses {1 - float(differ.sum() / rows.mask.sum()):.0%} right already; "
      f"what it reads changes at {int(mixed.sum())} of {mixed.numel()} places")

# %% [markdown]
# Where the guess is the label, nothing is mixed: there IFT *is* SFT. A good model's guesses are mostly right, so the residual is
# a small change, and smaller the better the model.
#
# ## Step 2: propagation, and a gradient worth deriving
# With token losses c_t = −log-prob of y_t, Algorithm 1 multiplies each by the losses that follow. As the code has it (on paper
# the decay is α^(N−t), outside the sum, and nothing is normalised):
#
#     S_t = Σ_{i≥t} γ^(i−t) c_i        Z = Σ_t S_t        L = Σ_t c_t S_t / Z =: A/Z
#
# c_j stands in A twice: as the factor of S_j, and inside every S_t with t ≤ j. In Z only the latter. So
#
#     ∂A/∂c_j = S_j + P_j,   P_j = Σ_{t≤j} γ^(j−t) c_t         ∂Z/∂c_j = C_j = Σ_{t≤j} γ^(j−t)
#     ∂L/∂c_j = (∂A/∂c_j − (A/Z) ∂Z/∂c_j) / Z = (S_j + P_j − L C_j) / Z
#
# and ∂L/∂c_j = −∂L/∂logp_j is the weight. Autograd as witness; the sum over i is a triangular matrix:

# %%
c = torch.tensor([3.0] + [0.1] * 7, dtype=torch.float64)
t = torch.arange(8)
discount = torch.where(t[None] >= t[:, None], 0.95 ** (t[None] - t[:, None]).double(), 0.0)            # row t, column i
leaf = c.clone().requires_grad_()
S = discount @ leaf
L = (leaf * S).sum() / S.sum()
one = Batch(mask=torch.ones(1, 1, 8, dtype=torch.bool))
_, weights, _ = METHODS["ift"](gamma=0.95).weigh(-c[None, None], one)
print(f"weigh against autograd: {float((weights[0, 0] - torch.autograd.grad(L, leaf)[0]).abs().max()):.0e} apart")
print("8 × weights:", (8 * weights[0, 0]).numpy().round(2))

# %% [markdown]
# The first token is pushed hardest, and late, well-predicted tokens are pushed **down**: their C_j is large, so raising c_j
# raises Z, the common denominator, so much that L falls. Nobody means that. Treat S_t/Z as constants (`detach_weights`) and it
# is gone; the release does not (its author: the coefficient must take part in the graph).
#
# ## Step 3: where the paper disagrees with itself
# Eq. 21 prints a double sum. Count how often c_i occurs in it: once for every n ≤ i.
#
#     L = Σ_n Σ_{i≥n} c_i = Σ_i (i + 1) c_i           (i = 0, 1, …)
#
# That favours **late** tokens; Algorithm 1, which multiplies c_t by what follows, **early** ones. Not the same method. Both are
# here: `ift_eq21` and `ift`. (γ = 0 is a special case of the release: plain SFT, and not the limit γ → 0.)

# %%
forms = {"γ = 0: SFT": METHODS["ift"](gamma=0.0), "γ = 0.5": METHODS["ift"](gamma=0.5), "γ = 0.95": METHODS["ift"](gamma=0.95),
         "γ = 0.95, detached": METHODS["ift"](gamma=0.95, detach_weights=True), "eq. 21": METHODS["ift_eq21"]()}
weight = {name: method.weigh(-c[None, None], one)[1][0, 0] for name, method in forms.items()}
weight["eq. 21"] = weight["eq. 21"] / weight["eq. 21"].sum()            # a sum, not a mean: brought to the scale of the others
for name, w in weight.items():
    print(f"{name:20}", (8 * w).numpy().round(2))

# %% [markdown]
# ## Step 4: on the lake, where truth is known
# A guess there is the cell where the policy's own action leads. The *label* of that cell stays the demonstration's next action:
# "go right at step 3, wherever you are". It is right in a wide corridor, mostly, and often wrong in a maze. Two controls at
# λ = 0.5: the cell where a *random* action leads, and the policy's own cells with the *right* labels ("oracle").

# %%
N, lams = 3 if args.fast else 16, (0.0, 1.0) if args.fast else (0.0, 0.2, 0.5, 0.8, 1.0)
places = {"a corridor": prepare("corridor", range(N)), "mazes": prepare("maze", range(N), base="noisy")}
ice = {}
for place, setting in places.items():
    for name, lam in [("ift_simple", lam) for lam in lams] + [("neighbour noise", 0.5), ("oracle labels", 0.5)]:
        policy, _ = train_row(setting, find_row(name, lam), steps=20 if args.fast else 100, lr=0.01)
        ice[place, name, lam] = measure(setting, policy, "neighbour_accuracy")["neighbour_accuracy"]
        value = lakes.success(setting.lakes, policy.probabilities(), noise=0.1).mean()
        print(f"{place:10} {name:15} λ {lam:3}: right action beside the path {ice[place, name, lam].nanmean():.2f}, "
              f"reaches the goal with 10 % slips {value:.3f}")

# %% [markdown]
# (λ = 0 is SFT. That λ = 0.2 does as much as 1 is Adam: it rescales each parameter's gradient, so any dose is a full dose.)
#
# ## Step 5: on the small GPT
# "9.11 or 9.9?" with 30 % wrong labels, right answers on questions it was not tuned on; one base model, three draws of the data.

# %%
def tune(method, seed):
    """Fine-tune a copy of the small GPT → chance of the right answer, exactly, on 400 other questions."""
    copied, few = copy.deepcopy(model), 32 if args.fast else 512
    for _ in fit(copied, method, fine_tuning_data(tokenizer, seed, 0.3, None)[:few], replace(RECIPE, seed=seed)):
        pass
    with torch.no_grad():
        return float(batch_logps(copied, Exam(tokenizer, seed).disputed).sum(-1)[0].exp().mean())


gammas, doses = ((0.0, 0.95), (0.0, 1.0)) if args.fast else ((0.0, 0.5, 0.95), (0.0, 0.2, 0.5, 1.0))
gpt = {}
for gamma in gammas:
    for lam in doses:
        gpt[gamma, lam] = [tune(METHODS["ift"](lam=lam, gamma=gamma), seed) for seed in range(1 if args.fast else 3)]
    print(f"γ = {gamma:4}: " + ",  ".join(f"λ {lam} {sum(gpt[gamma, lam]) / len(gpt[gamma, lam]):.3f}" for lam in doses))

# %% [markdown]
# ## The picture

# %%
ink = {0.0: plot.COLOR["sft"], 0.5: "#7bccb0", 0.95: plot.COLOR["ift"]}
figure, (first, *on_ice, last) = plt.subplots(1, 4, figsize=(17, 4.4), width_ratios=[1.3, 0.8, 0.8, 1.1], layout="constrained")
colors = [*ink.values(), plot.COLOR["ift"], plot.COLOR["ift_eq21"]]
styles = {"γ = 0.95, detached": ":", "eq. 21": "--"}
first.axhspan(-20, 0, color="#fbe3df")
for (name, w), color in zip(weight.items(), colors, strict=True):
    first.plot(range(8), 8 * w, styles.get(name, "-"), marker="o", markersize=4, color=color, linewidth=2.2)
first.text(0, -11.5, "pushed down,\nthough right", color="#b5483a", fontsize=11)
first.set(ylim=(-13, 9), xlim=(-0.3, 7.2), title="A surprise, then easy tokens: who is pushed?",
          xlabel="each token's loss", ylabel="8 × weight (SFT: 1)")
first.set_xticks(range(8), [f"{x:g}" for x in c.tolist()])
ends = [(7.2, 8 * float(w[-1]), name, color) for (name, w), color in zip(weight.items(), colors, strict=True)]
plot.label_ends(first, ends, size=9)
for axes, place in zip(on_ice, places, strict=True):
    ys = torch.stack([ice[place, "ift_simple", lam] for lam in lams])                       # (doses, N)
    axes.plot(lams, ys, "o", color=plot.COLOR["ift"], alpha=0.25, markersize=4, markeredgewidth=0)
    axes.plot(lams, ys.nanmean(1), color=plot.COLOR["ift"], linewidth=2.4)
    for name, marker, word in (("oracle labels", "*", "right labels, same cells"), ("neighbour noise", "X", "a random guess")):
        y = float(ice[place, name, 0.5].nanmean())
        axes.plot(0.5, y, marker, color="black", markersize=11 if marker == "*" else 8, label=word)
    axes.set(ylim=(0, 1.06), xlabel="λ, share of the guess (0: SFT)", title=f"IFT in {place}")
    plot.clean(axes)
on_ice[0].set_ylabel("right actions beside the path ↑")
on_ice[1].legend(frameon=False, fontsize=9, loc="lower right", title="controls, λ = 0.5")
sft = sum(gpt[0.0, 0.0]) / len(gpt[0.0, 0.0])
for gamma in gammas:
    ys = torch.tensor([gpt[gamma, lam] for lam in doses])
    last.plot(doses, ys, "o", color=ink[gamma], alpha=0.5, markersize=4, markeredgewidth=0)
    last.plot(doses, ys.mean(1), color=ink[gamma], linewidth=2.4)
last.axhline(sft, color=ink[0.0], linewidth=1, linestyle=":")
last.text(0.02, sft, "SFT", color=ink[0.0], va="bottom")
last.set(xlim=(0, 1), ylim=(0.4, 0.8) if not args.fast else (0, 1), xlabel="λ", ylabel="chance of the right answer ↑",
         title="IFT on the small GPT")
plot.label_ends(last, [(1.0, sum(gpt[g, 1.0]) / len(gpt[g, 1.0]), f"γ = {g:g}", ink[g]) for g in gammas], size=10)
plot.clean(last)
check.show(figure, "08")
down = sum(w < 0 for w in weight["γ = 0.95"].tolist())
print(f"Your guess? Hardest: token {int(weight['γ = 0.95'].argmax()) + 1}; pushed down: {down} of 8, in an answer that is right.")
chance = {key: sum(values) / len(values) for key, values in gpt.items()}
paper, best = (gammas[-1], doses[1]), max(chance, key=chance.get)
print(f"On the GPT: SFT {sft:.3f}; γ = {paper[0]:g}, λ = {paper[1]:g} (the paper's) {chance[paper]:.3f}; "
      f"the best of all, chosen after looking, γ = {best[0]:g}, λ = {best[1]:g}: {chance[best]:.3f}.")

# %% [markdown]
# Exposure is not what imitation lacks: labels are. Beside the path, IFT repeats the demonstration's next action. Where that is
# right, it helps (and so does a random guess); where it is wrong, it unlearns what the policy knew; and right labels in the very
# same cells help in both. `python -m toy --study labels` has 100 mazes and the intervals.
#
# ## Exercise ●●○ (15 minutes)
# From losses c and γ > 0: the weights if S_t/Z are constants, the weights if they carry gradient, and which one is the release.
#
# <details><summary>Hint</summary>Build the triangular matrix of step 2. Its rows give S, its columns P, its column sums
# C.</details>

# %%
def your_weights(c, gamma):
    """c (T,) token losses → (T,) detached weights, (T,) full weights −∂L/∂logp, and 0 or 1: which of them the release uses."""
    return ..., ..., ...


print(check.propagation(your_weights))

# %% [markdown]
# ## Try
# * `c = [0.1] * 7 + [3.0]`: the surprise comes last. Who answers for it now?
# * `prepare("maze", range(N))` without `base="noisy"`: an untrained policy has nothing to unlearn. Does the harm vanish?
# * `optimizer="sgd", lr=2.0` in `train_row`: now the dose counts.
#
# **Next:** 09, everybody at once.

# %%
# region Solution: unfold when you have tried
def our_weights(c, gamma):
    t = torch.arange(len(c))
    discount = torch.where(t[None] >= t[:, None], gamma ** (t[None] - t[:, None]).to(c), 0.0)
    S, P, C = discount @ c, c @ discount, discount.sum(0)
    Z = S.sum()
    return S / Z, (S + P - (c * S).sum() / Z * C) / Z, 1


if args.solution:
    print(check.propagation(our_weights))
# endregion
