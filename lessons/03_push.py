# %% [markdown]
# # 03 · Push
# **The question:** where does every gradient in this repository come from?
#
# No method in `minialign/methods` calls autograd. Each hands back one number per token, and a single line, `logit_gradient` in
# `minialign/logps.py`, turns these numbers into a gradient. You derive that line here with pencil and paper and check every
# step. You need the chain rule and lesson 02's log-probs. Ten minutes, seconds of computing.
#
# **Guess first.** A model gives token A probability 0.6 and token Z 0.001. A method pushes Z *down*, with strength 1. What
# happens to A, which nobody mentioned? Write down: rises, falls or stays; a lot or a little.

# %%
import check
import matplotlib.pyplot as plt
import torch

from minialign.data import Batch
from minialign.logps import logit_gradient
from minialign.methods import METHODS

args = check.options()
torch.manual_seed(0)


def differences(f, x, step=1e-5):
    """∂f/∂x by central differences, one number of x at a time: slow, and it knows nothing of calculus."""
    slope = torch.empty_like(x)
    for i in range(x.numel()):
        nudge = torch.zeros_like(x).view(-1).index_fill_(0, torch.tensor(i), step).view_as(x)
        slope.view(-1)[i] = (f(x + nudge) - f(x - nudge)) / (2 * step)
    return slope


# %% [markdown]
# ## Step 1: the slope of logsumexp is softmax
#     ∂/∂z_v  log Σ_w exp z_w  =  exp z_v / Σ_w exp z_w  =  p_v
# The outer derivative is 1/Σ, the inner one exp z_v. Odd values, so that nothing is right by accident:

# %%
z = torch.tensor([0.7, -1.3, 2.1, 0.4, -0.2], dtype=torch.float64)
print("softmax      ", z.softmax(0).numpy().round(6))
print("differences  ", differences(lambda z: z.logsumexp(0), z).numpy().round(6))

# %% [markdown]
# ## Step 2: one log-prob
# The log-prob of token y is `z_y − logsumexp z`. The first part has slope 1 at y and 0 elsewhere, a one-hot row; so
#
#     ∂ log p_y / ∂z_v  =  [v = y] − p_v         that is  onehot − softmax
#
# It sums to 1 − 1 = 0: adding the same number to all logits changes no probability, so no gradient may point there.

# %%
y = 3
onehot = torch.eye(5, dtype=torch.float64)[y]
slope = differences(lambda z: z.log_softmax(0)[y], z)
print("onehot − softmax", (onehot - z.softmax(0)).numpy().round(6))
print("differences     ", slope.numpy().round(6), f"  sum {slope.sum().abs():.0e}")

# %% [markdown]
# ## Step 3: any loss at all
# Let a loss L see the model only through the log-probs l₁ … l_T of tokens that are in the batch. Whatever L does with them, the
# chain rule goes through each l_t, and logits at place t touch no log-prob but l_t:
#
#     weights_t := −∂L/∂l_t
#     ∂L/∂z_t = ∂L/∂l_t · ∂l_t/∂z_t = −weights_t · (onehot_t − softmax_t) = weights_t · (softmax_t − onehot_t)
#
# A method has only to say what its weights are. Here is ASFT (arXiv 2409.10571) typed as a paper has it, odds and all, and left
# to autograd; and minialign's, where `weigh` knows no model and `logit_gradient` no method. Lesson 06 derives these weights.

# %%
z = torch.randn(2, 4, 6, dtype=torch.float64).requires_grad_()         # (answers, tokens, vocabulary)
y = torch.randint(6, (2, 4))
mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
logps = z.log_softmax(-1).gather(2, y[..., None])[..., 0]
p_w, p_l = ((logps * mask).sum(-1) / mask.sum(-1)).exp()                # chosen and rejected: probability of an average token
loss = -p_w.log() - 0.1 * ((p_w / (1 - p_w)).log().sigmoid().log() + (-(p_l / (1 - p_l)).log()).sigmoid().log())
loss.backward()

same_loss, weights, _ = METHODS["asft"](lam=0.1).weigh(logps.detach()[:, None], Batch(mask=mask[:, None]))
by_hand = logit_gradient(z.detach().log_softmax(-1).view(8, 6), y.view(8), weights.reshape(8)).view(2, 4, 6)
print(f"loss {float(loss.detach()):.6f} and {float(same_loss):.6f}")
print("weights, chosen  ", weights[0, 0].numpy().round(4))
print("weights, rejected", weights[1, 0].numpy().round(4), "  the last two are padding")
print(f"largest difference to autograd, all {z.numel()} numbers: {float((by_hand - z.grad).abs().max()):.0e}")

# %% [markdown]
# Autograd kept every intermediate value of the (answers, tokens, vocabulary) block for this; `logit_gradient` needs the softmax and one
# number per token. With 128,000 tokens in the vocabulary that is the difference between fitting on a GPU and not: lesson 12.
#
# Three things to know. *Released code* of these papers lets autograd do it: same numbers, more memory. *DFT*'s running average
# (eq. 8) gives weights that are the gradient of no loss; the line above does not mind (lesson 07). *Not everything* fits: a loss
# that looks at probabilities of tokens not in the batch, such as label smoothing over the vocabulary, has no such weights.
#
# ## The picture: what a push does to the neighbours
# A model has written "9." and has these probabilities for what comes next. Each row pushes one token; training moves the logits
# against the gradient, so the cells show −∂loss/∂z.

# %%
names = ["1", "9", "2", "8", "5", "7"]
p = torch.tensor([0.6, 0.35, 0.03, 0.012, 0.007, 0.001], dtype=torch.float64)
rows = [("1", 1.0), ("9", 1.0), ("9", 0.0), ("1", -1.0), ("7", -1.0)]
targets = torch.tensor([names.index(token) for token, _ in rows])
moves = -logit_gradient(p.log().repeat(len(rows), 1), targets, torch.tensor([w for _, w in rows]))
figure, (bars, heat) = plt.subplots(2, 1, figsize=(8.6, 6), sharex=True, height_ratios=[1, 2.6], layout="constrained")
bars.bar(range(6), p.tolist(), color="#8c8c8c", width=0.6)
bars.set(ylabel="probability", title="A push moves its token; the others share the opposite, each by its probability")
bars.spines[["top", "right"]].set_visible(False)
heat.imshow(moves.numpy(), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
for (r, c), move in [((r, c), float(moves[r, c])) for r in range(len(rows)) for c in range(6)]:
    heat.text(c, r, f"{move:+.2f}" if abs(move) > 0.005 else "0", ha="center", va="center", fontsize=11,
              color="white" if abs(move) > 0.6 else "black")
    heat.add_patch(plt.Rectangle((targets[r] - 0.48, r - 0.46), 0.96, 0.92, fill=False, linewidth=2))
heat.set_yticks(range(len(rows)), [f"weight {w:g} on “{token}”".replace("-", "−") for token, w in rows])
heat.set_xticks(range(6), [f"“{name}”" for name in names])
for r in range(len(rows)):
    heat.text(5.6, r, f"Σ = {abs(float(moves[r].sum())):.0f}", va="center", fontsize=11)
heat.set_xlabel("where each logit goes: blue up, red down")
check.show(figure, "03")
after = (p.log() + moves[4]).softmax(0)
print(f"Your guess? One step that pushes “7” down takes {float(p[5] - after[5]):.4f} of probability from it "
      f"and gives {float(after[0] - p[0]):.4f} to “1”.")

# %% [markdown]
# * A token that is already likely gains little from a push up: at probability 1, softmax is the one-hot row, and nothing moves.
# * An *unlikely* token has nothing to give. Pushing it down all the same takes from everybody for the likeliest token, right or
#   wrong: so methods that push down without end spoil a model. ASFT's weight on an answer fades as the answer becomes unlikely;
#   DPO's only as its margin over the chosen one grows (lesson 06).
#
# ## Exercise ●○○ (5 minutes)
# <details><summary>Hint</summary>`torch.zeros_like(z).scatter(1, y[:, None], 1.0)` is the one-hot matrix. A weight belongs to a
# row.</details>

# %%
def your_push(z, y, weights):
    """z (T, V) logits, y (T,) int, weights (T,) → ∂loss/∂z (T, V). Padding has weight 0."""
    return ...


print(check.push(your_push))

# %% [markdown]
# ## Try
# * Change ASFT to "dpo" in step 3 and type its loss. What are its weights when the policy still is the reference?
# * Set all probabilities of the picture to 1/6. Who pays for a push now?
# * Take `step=1e-12` in `differences`. Why is smaller not better?
#
# **Next:** 05, the simplest weights there are.

# %%
# region Solution: unfold when you have tried
def our_push(z, y, weights):
    onehot = torch.zeros_like(z).scatter(1, y[:, None], 1.0)
    return weights[:, None] * (z.softmax(-1) - onehot)


if args.solution:
    print(check.push(our_push))
# endregion
