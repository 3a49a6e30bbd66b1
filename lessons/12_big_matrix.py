# %% [markdown]
# # 12 · The big matrix
# **The question:** why not just call cross-entropy?
#
# All methods of this course end in the same place: the logits, where weights · (softmax − onehot)
# is the gradient. Until now the vocabulary was small, and you could have called
# `torch.nn.functional.cross_entropy` or `log_softmax` instead. The vocabulary of Llama 3 has
# 128,256 tokens, and then the logits are the largest thing in the whole computation: larger than
# all activations of the network together. But a loss only wants one number from each row. In this
# lesson you write the two passes, forward and backward, that never hold the whole matrix.
#
# You need lesson 03. Twenty minutes, half a minute of computing. Keep `minialign/logps.py` open
# beside it.
#
# **Guess first.** Two answers of 4,096 tokens each, in float32. How many gigabytes are their
# logits? And how many blocks of that size are alive at the same time when autograd goes back
# through `log_softmax`? Write both numbers down.

# %%
import torch

from lessons import check
from lessons.pictures import ground as pictures
from minialign.bench.sheet import memory_line
from minialign.logps import linear_logps

args = check.options()
mine, ours = check.mine(args), check.OURS
torch.manual_seed(0)

# %% [markdown]
# The last step of a language model multiplies the hidden states h (N, C) by the vocabulary head
# W (V, C) and gets the logits z = h Wᵀ (N, V), for N tokens that are to be predicted. Here are
# sizes that a laptop can hold, with Llama 3's vocabulary; only the width C is small. The weights
# stand for what a method says: some tokens are pushed up and some down.

# %%
N, C, V = (64, 16, 4_000) if args.fast else (256, 64, 128_256)
h, W, y = torch.randn(N, C), 0.1 * torch.randn(V, C), torch.randint(V, (N,))
weights = torch.rand(N) - 0.3
logits_mb = N * V * 4 / 1e6
print(f"two answers of 4,096 tokens, V = 128,256: {8192 * 128_256 * 4 / 1e9:.1f} GB of logits")
print(f"here {N} tokens, V = {V:,}: {logits_mb:.0f} MB of logits; "
      f"h takes {h.nbytes / 1e6:.2f} MB, W {W.nbytes / 1e6:.0f} MB")

# %% [markdown]
# ## The way there, a few rows at a time
# A log-prob is one logit minus one logsumexp,
#
#     l_n  =  z_n[y_n] − lse_n,          lse_n = log Σ_v exp z_n[v]
#
# Rows do not meet in this formula. So they can go through a few at a time, a *chunk*: compute the
# logits of these rows, take two numbers from each row, and forget the logits. The memory of one
# chunk is used again for the next.
#
# ## Exercise 1 ●○○ (5 minutes): `head_forward`
# `head_forward(h, W, targets, chunk)` in `lessons/mine.py` returns the log-probs (N,) of the target
# tokens and the logsumexps (N,). It may hold the logits of `chunk` rows at a time, and the check
# measures that. The last chunk may be short.
#
# <details><summary>Hint</summary>
#
# `part = slice(i, i + chunk)` cuts a tensor as well as h: `targets[part]` has as many entries as
# `h[part]` has rows. In the blank, z has the shape (rows of this part, V).
# </details>

# %%
verdict = check.head_forward(mine.head_forward)
print(verdict)
forward = (mine if check.is_right(verdict) else ours).head_forward

# %% [markdown]
# ## The way back, a few rows at a time
# Lesson 03 gives the gradient at the logits, d_z = weights · (softmax − onehot). For the softmax we
# need the logits, which are forgotten. But they can be computed again, chunk by chunk, and the
# logsumexp has been kept, so softmax = exp(z − lse) at once. That is the whole trick: one number
# per row is kept instead of V, and paid for with one more product of matrices.
#
# From d_z it goes on as in lesson 04, each factor through the other one:
#
#     z[n, v]    =  Σ_c h[n, c] W[v, c]
#     d_h[n, c]  =  Σ_v d_z[n, v] W[v, c]              d_h = d_z W            row by row
#     d_W[v, c]  =  Σ_n d_z[n, v] h[n, c]              d_W = d_zᵀ h           a sum over all rows
#
# In d_h every row is by itself, so a chunk fills its own rows. d_W is a sum over the rows, so a
# chunk *adds* its part. Nothing is approximated.
#
# ## Exercise 2 ●●○ (15 minutes): `head_backward`
# `head_backward(h, W, targets, lse, weights, chunk)` returns d_h (N, C) and d_W (V, C). Again the
# check measures how much memory was alive at the peak, so autograd through all logits does not
# pass, although its numbers are right.
#
# <details><summary>Hint</summary>
#
# First d_z of this part: its logits, less its `lse`, through exp; subtract 1 at the targets; times
# the weights as a column. All of h, targets, lse and weights are cut by the same `part`.
# </details>

# %%
verdict = check.head_backward(mine.head_backward)
print(verdict)
backward = (mine if check.is_right(verdict) else ours).head_backward
whose = "yours" if check.is_right(verdict) else "the solution"

# %% [markdown]
# ## What it costs
# A meter notes all bytes that are alive, at every moment. Three ways to the same gradients:
#
# * *all at once* is what you would have typed: `log_softmax` of all logits, then gather, then
#   `backward()`;
# * `linear_logps` is minialign's function, the same two passes as a node that autograd can call;
# * and your two functions, called one after the other.

# %%
def whole():
    hidden, head = h.clone().requires_grad_(), W.clone().requires_grad_()
    logps = (hidden @ head.T).log_softmax(-1).gather(1, y[:, None])[:, 0]
    (-(weights * logps).sum()).backward()
    return hidden.grad


def package(chunk):
    hidden, head = h.clone().requires_grad_(), W.clone().requires_grad_()
    (-(weights * linear_logps(hidden, head, y, chunk)).sum()).backward()
    return hidden.grad


def by_hand(chunk):
    hidden, head = h.clone(), W.clone()
    _, lse = forward(hidden, head, y, chunk)
    return backward(hidden, head, y, lse, weights, chunk)[0]


# %%
def measure(way, *chunk):
    """Megabytes alive over time, their peak, the seconds, and the gradient of h."""
    result = []
    line = memory_line(lambda: result.append(way(*chunk)))
    line = [(moment, size / 1e6) for moment, size in line]
    return line, max(size for _, size in line), line[-1][0], result[0]


measure(package, 64)                                                    # the first run warms up
everything = measure(whole)
print(f"all at once   peak {everything[1]:5.0f} MB   {everything[2]:5.2f} s")

# %%
chunks = [8, 64] if args.fast else [4, 16, 64, 256]
runs = {chunk: measure(by_hand, chunk) for chunk in chunks}
for chunk, (_, peak, seconds, d_h) in runs.items():
    print(f"{whose}, chunk {chunk:3}   peak {peak:5.0f} MB   {seconds:5.2f} s   "
          f"largest difference in d_h {(d_h - everything[3]).abs().max():.0e}")
_, peak, seconds, _ = measure(package, chunks[1])
print(f"linear_logps, chunk {chunks[1]}   peak {peak:5.0f} MB   {seconds:5.2f} s")

# %% [markdown]
# At its peak, *all at once* holds three blocks of the size of the logits: the log-probs, the
# gradient that arrives at them, and the one that leaves for the logits. With small chunks there
# remain W, its gradient, and one product on its way there. (W is counted in all of them, since a
# model holds it.) But with each chunk, all of W and of d_W passes through the processor. So very
# small chunks are slow, and beyond a few dozen rows little is gained.
#
# In training minialign goes one step further. Chunks compute z twice, because in general a loss may
# tie all log-probs together, and then the weights are known only when the last log-prob is. But no
# method of this course mixes prompts: when the answers to *one* prompt are scored, their weights
# are known. So `head_pass` in `minialign/train.py` goes back at once, while these few logits still
# exist. And the usual code keeps logits for the prompt and for padding, too: the label −100 masks
# them out of the loss, but not out of the memory. `head_pass` never computes them.
#
# ## The picture

# %%
best = chunks[1]
figure = pictures.big_matrix(everything, runs, best, whose, 2 * W.nbytes / 1e6)
check.show(figure, "12")
print(f"Your guess? The logits are {logits_mb:.0f} MB here, and at the peak "
      f"{everything[1] / logits_mb:.1f} times that is alive;\nwith {best} rows at a time it is "
      f"{runs[best][1] / logits_mb:.2f} times.")

# %% [markdown]
# ## Try
# * Give both a W and an h in bfloat16. What should still be float32 inside, and why?
# * Set C to 1024. Which of the ways gets slower faster, and why?
# * Make all weights 0 but those of ten tokens. Which rows could be left out from the start?
#
# **Next:** 13, the same code on a model that other people trained.

# %%
# region Solution: unfold when you have tried
def head_forward(h, W, targets, chunk):
    logps, lse = torch.empty_like(h[:, 0]), torch.empty_like(h[:, 0])
    for i in range(0, len(h), chunk):
        part = slice(i, i + chunk)
        z = h[part] @ W.T                                               # (chunk, V)
        lse[part] = z.logsumexp(-1)
        logps[part] = z.gather(1, targets[part, None])[:, 0] - lse[part]
    return logps, lse


def head_backward(h, W, targets, lse, weights, chunk):
    d_h, d_W = torch.zeros_like(h), torch.zeros_like(W)
    for i in range(0, len(h), chunk):
        part = slice(i, i + chunk)
        d_z = (h[part] @ W.T - lse[part, None]).exp_()                  # softmax
        d_z[torch.arange(len(d_z)), targets[part]] -= 1                 # − onehot
        d_z *= weights[part, None]
        d_h[part] = d_z @ W
        d_W += d_z.T @ h[part]
    return d_h, d_W
# endregion
