# %% [markdown]
# # 03 · Push
# **The question:** where does every gradient in this repository come from?
#
# Eighteen training methods live in `minialign/methods`, and not one of them calls autograd. Each
# of them looks at the log-probabilities of some tokens and hands back one number per token: how
# hard to push this token up, or down. One function, `logit_gradient` in `minialign/logps.py`,
# turns these numbers into a gradient, for all methods alike. In this lesson you derive that
# function with pencil and paper, check every step of the derivation by running it, and write the
# function yourself.
#
# You need the chain rule, and the log-probs of lesson 02. Fifteen minutes, seconds of computing.
# Keep `minialign/logps.py` open beside it.
#
# **Guess first.** A model is about to write the next token. It gives the token “1” a probability
# of 0.6, and the token “7” a probability of 0.001. Now a training method pushes “7” *down*, and
# says nothing about “1”. What happens to the probability of “1”: does it rise, fall or stay? By
# much or by little? Write your guess down, then go on.

# %%
import torch

from lessons import check
from lessons.pictures import ground as pictures
from minialign.logps import logit_gradient

args = check.options()
mine = check.mine(args)
torch.manual_seed(0)

# %% [markdown]
# Before we trust a formula for a slope, we want to measure the slope. *Central differences* do
# that: nudge one number up a little, then down a little, and see by how much the result changes.
# This is slow, and it knows nothing of calculus, so it cannot repeat a mistake of ours.

# %%
def differences(f, x, step=1e-5):
    """∂f/∂x, measured for one number of x at a time."""
    slope = torch.empty_like(x)
    for i in range(x.numel()):
        nudge = torch.zeros_like(x)
        nudge.view(-1)[i] = step
        slope.view(-1)[i] = (f(x + nudge) - f(x - nudge)) / (2 * step)
    return slope


# %% [markdown]
# ## Step 1: the slope of logsumexp is softmax
# The model's output at one place is a row of logits z, one for every token of the vocabulary.
# Softmax turns them into probabilities, p_v = exp z_v / Σ_j exp z_j. The logarithm of the
# denominator has a name of its own, logsumexp. What is its slope in one of the logits, z_v?
#
#     ∂/∂z_v  log Σ_j exp z_j
#       =  1 / (Σ_j exp z_j)  ·  ∂/∂z_v Σ_j exp z_j      (chain rule: the slope of log x is 1/x)
#       =  1 / (Σ_j exp z_j)  ·  exp z_v                 (only the term with j = v contains z_v)
#       =  p_v                                           (that is how softmax was defined)
#
# So logsumexp grows fastest in the logit of the likeliest token. Measured, at odd values, so that
# nothing comes out right by accident:

# %%
z = torch.tensor([0.7, -1.3, 2.1, 0.4, -0.2], dtype=torch.float64)
print("softmax      ", z.softmax(0).numpy().round(6))
print("differences  ", differences(lambda z: z.logsumexp(0), z).numpy().round(6))

# %% [markdown]
# ## Step 2: the slope of one log-prob
# The log-prob of a token y is its own logit minus logsumexp (lesson 02), l = z_y − logsumexp z.
# The first part, z_y, has slope 1 in the logit of y itself and slope 0 in all others. Written as a
# row, that is a *one-hot* row: a 1 at the place of y, and 0 everywhere else. The second part was
# step 1. Together,
#
#     ∂l/∂z_v  =  [v = y] − p_v           that is, for the whole row,   onehot − softmax
#
# where [v = y] is 1 if v is y, and 0 otherwise: the one-hot row, number by number.
# The row sums to 1 − 1 = 0. It has to: adding the same number to all logits changes no
# probability, so no gradient may point in that direction.

# %%
y = 3
onehot = torch.eye(5, dtype=torch.float64)[y]
slope = differences(lambda z: z.log_softmax(0)[y], z)
print("onehot − softmax", (onehot - z.softmax(0)).numpy().round(6))
print("differences     ", slope.numpy().round(6), f"  sum {slope.sum().abs():.0e}")

# %% [markdown]
# ## Step 3: any loss of log-probs
# Now take any loss L that sees the model only through the log-probs l_1 … l_T of tokens that are
# in the batch. What L does with them is its own business. From here on, z_t is the row of logits
# that *predicts* token t; the model returns it one place earlier (lesson 02). The chain rule goes
# through each l_t, and z_t touches no log-prob but l_t, so there is only one term:
#
#     ∂L/∂z_t  =  ∂L/∂l_t · ∂l_t/∂z_t                          (chain rule)
#              =  ∂L/∂l_t · (onehot_t − softmax_t)             (step 2)
#              =  weights_t · (softmax_t − onehot_t)           (with weights_t := −∂L/∂l_t)
#
# The two minus signs cancel. We call weights_t the **push** on token t: if it is above 0, training
# raises this token's log-prob, because the optimizer walks *against* the gradient. A method has
# only to say what its weights are, and this line does the rest.
#
# An example. You have tokens that you want and tokens that you do not want, and you would like the
# former to be likely and the latter to be unlikely. *Unlikelihood* (Welleck et al., 2019) asks for
# just that: with l the log-prob of a token and p = eˡ its probability,
#
#     L  =  − Σ_wanted l_t  −  Σ_unwanted log(1 − p_t)
#
# For a wanted token the slope is −1, so its weight is 1. For an unwanted one,
#
#     ∂L/∂l_t  =  − 1/(1 − p_t) · ∂(1 − p_t)/∂l_t             (the slope of log x is 1/x)
#              =  p_t / (1 − p_t)                              (the slope of eˡ is eˡ itself, p_t)
#
# and its weight is minus that, −p_t/(1 − p_t). Here is the same loss left to autograd, for two
# answers of four and two tokens. The second answer is padded to the length of the first, and a
# weight of 0 is all that it takes to keep padding out of a gradient.

# %%
z = torch.randn(2, 4, 6, dtype=torch.float64).requires_grad_()      # (answers, tokens, vocabulary)
y = torch.randint(6, (2, 4))
logps = z.log_softmax(-1).gather(2, y[..., None])[..., 0]               # (2, 4)
loss = -logps[0].sum() - (1 - logps[1, :2].exp()).log().sum()
loss.backward()

p = logps.detach().exp()
weights = torch.stack([torch.ones(4), -p[1] / (1 - p[1])])              # (2, 4): wanted, unwanted
weights[1, 2:] = 0                                                      # padding
log_p = z.detach().log_softmax(-1).view(8, 6)
by_hand = logit_gradient(log_p, y.view(8), weights.view(8)).view(2, 4, 6)
print("weights of the wanted answer  ", weights[0].numpy().round(3))
print("weights of the unwanted answer", weights[1].numpy().round(3), "  the last two are padding")
print(f"largest difference to autograd, {z.numel()} numbers: {(by_hand - z.grad).abs().max():.0e}")

# %% [markdown]
# The difference is rounding. But the two ways need different amounts of memory. Autograd keeps
# blocks of shape (answers, tokens, vocabulary) from the loss to the backward pass, and makes new
# ones there. `logit_gradient` turns log-probs into the gradient in the memory that they stand in.
# And a row of it needs nothing but this row, a token and a weight, so the rows can be done a few at
# a time, and the whole block need never exist. Lesson 12 measures what that saves.
#
# Three things to know.
#
# * *Released code* of the papers in this course lets autograd do it: the same numbers, more memory.
# * *DFT* (lesson 07) uses weights that are the gradient of no loss. The line above does not mind.
# * *Not everything fits.* A loss that looks at probabilities of tokens that are not in the batch,
#   such as label smoothing over the whole vocabulary, has no such weights.
#
# ## Exercise 1 ●○○ (5 minutes): `push`
# Open `lessons/mine.py` and fill in `push(z, y, weights)`: step 3 in code, for one answer of T
# tokens. From the logits z (T, V), the tokens y (T,) and their weights (T,) it returns ∂loss/∂z
# (T, V). (`logit_gradient` gets log-probs in place of logits, because the package has them at hand;
# the softmax of both is the same.) Then run the next cell.
#
# <details><summary>Hint</summary>
#
# `torch.zeros_like(z).scatter(1, y[:, None], 1.0)` is the matrix of one-hot rows. A weight belongs
# to a whole row, so it must be a column to be multiplied with the matrix.
# </details>

# %%
verdict = check.push(mine.push)
print(verdict)

# %% [markdown]
# ## Exercise 2 ●●○ (10 minutes): `unlikelihood`
# The weights of the loss above, as a method would compute them: `unlikelihood(logps, wanted)` gets
# the log-probs l (T,) of tokens and which of them are wanted (T,), and returns a weight for each.
# Take care of tokens that are almost certain, where 1 − eˡ has lost all its digits.
#
# <details><summary>Hint</summary>
#
# p/(1 − p) = 1/(1/p − 1) = 1/(e⁻ˡ − 1), and `torch.expm1(x)` computes eˣ − 1 without losing digits.
# </details>

# %%
print(check.unlikelihood(mine.unlikelihood))

# %% [markdown]
# ## The picture: what a push does to the neighbours
# A model has written “9.”, and these are the probabilities it gives to what comes next. Every row
# of the lower panel pushes one token, which is framed. Training moves the logits against the
# gradient, so the cells show −∂loss/∂z: how far each logit moves.

# %%
names = ["1", "9", "2", "8", "5", "7"]
p = torch.tensor([0.6, 0.35, 0.03, 0.012, 0.007, 0.001], dtype=torch.float64)
rows = [("1", 1.0), ("9", 1.0), ("9", 0.0), ("1", -1.0), ("7", -1.0)]   # token, weight
targets = torch.tensor([names.index(token) for token, _ in rows])
weights = torch.tensor([weight for _, weight in rows], dtype=torch.float64)
logits = p.log().repeat(len(rows), 1)
if check.is_right(verdict):
    moves = -mine.push(logits, targets, weights)
else:
    moves = -logit_gradient(logits.clone(), targets, weights)
whose = "your push" if check.is_right(verdict) else "minialign's push"
check.show(pictures.push(names, p, rows, moves, whose), "03")

# %%
after = (p.log() + moves[-1]).softmax(0)
print("Your guess? One step that pushes “7” down, in probabilities:")
print("token ", *(f"{name:>8}" for name in names))
print("before", *(f"{x:8.4f}" for x in p))
print("after ", *(f"{x:8.4f}" for x in after))
print("change", *(f"{x:+8.4f}" for x in after - p))

# %% [markdown]
# Read the rows one by one.
#
# * A push up on a token that is already likely moves little (first row: 0.40, against 0.65 in the
#   second). At probability 1 the softmax *is* the one-hot row, and nothing moves at all.
# * A weight of 0 moves nothing, whatever the token.
# * What the pushed token's *logit* gains, the other logits lose, each in proportion to its token's
#   probability; and the other way round. Every row sums to 0.
# * In the last row an *unlikely* token is pushed down. It has almost no probability to give, but
#   its logit still falls by a full unit, and nearly all of the opposite goes to the logits of the
#   two likeliest tokens, right or wrong.
# * In *probability* the likeliest token alone gains, and the other likely one pays most of it. The
#   logit of “9” has risen, by 0.35, but a softmax only sees who rises more than the average,
#   Σ_v p_v · move_v, here 0.48. “1” does, with 0.60; “9” does not.
#
# So a method that pushes down for ever strengthens the one token that the model prefers anyway.
# Unlikelihood's weight p/(1 − p) fades as the token becomes unlikely. Not every method's does, as
# you will see in lesson 06.
#
# ## Try
# * Set all probabilities of the picture to 1/6. Who pays for a push now?
# * Call `differences` with `step=1e-12`. Why is smaller not better?
# * Give the second answer of step 3 the weights of DPO (`METHODS["dpo"]` in `minialign.methods`).
#   What are its weights while the policy still is the reference?
#
# **Next:** 04 follows the gradient from the logits down into the weights of the network.

# %%
# region Solution: unfold when you have tried
def push(z, y, weights):
    onehot = torch.zeros_like(z).scatter(1, y[:, None], 1.0)
    return weights[:, None] * (z.softmax(-1) - onehot)


def unlikelihood(logps, wanted):
    down = -1 / torch.expm1(-logps)                                     # −p / (1 − p)
    return torch.where(wanted, torch.ones_like(logps), down)
# endregion
