# %% [markdown]
# # 12 · The big matrix
# **The question:** why not just call cross-entropy?
#
# The last step of a language model multiplies hidden states h (N, C) by a vocabulary matrix W (V, C) and gets logits z (N, V).
# V is 128,256 for Llama 3, and z is the largest thing in the whole computation. But a loss only wants N numbers from it. You
# write the pass that never holds z. You need lesson 03. Fifteen minutes, half a minute of computing; file: `minialign/logps.py`.
#
# **Guess first.** Two answers of 4,096 tokens each, float32. How many gigabytes are their logits? And how many copies of that
# size are alive when autograd goes back through log_softmax? Write both down.

# %%
import matplotlib.pyplot as plt
import torch

from lessons import check
from minialign.bench.sheet import memory_line
from minialign.lab import plot
from minialign.logps import linear_logps, logit_gradient

args = check.options()
mine = check.mine(args)
torch.manual_seed(0)
N, C, V = (64, 16, 4_000) if args.fast else (256, 64, 128_256)
h, W, y = torch.randn(N, C), 0.1 * torch.randn(V, C), torch.randint(V, (N,))
weights = torch.rand(N) - 0.3                                           # some up, some down, as a method gives them
logits_mb = N * V * 4 / 1e6
print(f"two answers of 4,096 tokens, V = 128,256: {8192 * 128_256 * 4 / 1e9:.1f} GB of logits")
print(f"here {N} tokens, V = {V:,}: {logits_mb:.0f} MB of logits; h takes {h.nbytes / 1e6:.2f} MB, W {W.nbytes / 1e6:.0f} MB")

# %% [markdown]
# ## What the way back needs
# Forward, a log-prob is one logit and one logsumexp: `l_n = z_n[y_n] − lse_n`. Rows do not meet, so they can go through a few at
# a time (a chunk), and of each row only `lse_n` need be kept.
#
# Backward, lesson 03 gives d_z = weights · (softmax − onehot) with softmax = exp(z − lse): z computed again, one chunk at a
# time. From there, z_nv = Σ_c h_nc W_vc makes two sums, written out in indices:
#
#     ∂L/∂h_nc = Σ_v ∂L/∂z_nv · ∂z_nv/∂h_nc = Σ_v d_z[n, v] W_vc          d_h = d_z W
#     ∂L/∂W_vc = Σ_n ∂L/∂z_nv · ∂z_nv/∂W_vc = Σ_n d_z[n, v] h_nc          d_W = d_zᵀ h
#
# The first is separate for every n; the second is a sum over n, which chunks add to. Nothing is approximated. Step by step, on
# sizes small enough for autograd in float64, in chunks of 3 rows, the last one of 1:

# %%
small_h, small_W = torch.randn(7, 4, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
small_y, small_w = torch.randint(11, (7,)), torch.randn(7, dtype=torch.float64)
lse = torch.cat([(part @ small_W.T).logsumexp(-1) for part in small_h.split(3)])
d_h, d_W = [], 0
for part, targets, kept, w in zip(small_h.split(3), small_y.split(3), lse.split(3), small_w.split(3), strict=True):
    log_p = part @ small_W.T - kept[:, None]                            # (3, V): z again, minus the one number kept
    d_z = logit_gradient(log_p, targets, w)
    d_h, d_W = [*d_h, d_z @ small_W], d_W + d_z.T @ part
leaf_h, leaf_W = small_h.clone().requires_grad_(), small_W.clone().requires_grad_()
(-(small_w * (leaf_h @ leaf_W.T).log_softmax(-1).gather(1, small_y[:, None])[:, 0]).sum()).backward()
print(f"difference to autograd: d_h {float((torch.cat(d_h) - leaf_h.grad).abs().max()):.0e}, "
      f"d_W {float((d_W - leaf_W.grad).abs().max()):.0e}")


# %% [markdown]
# ## What it costs
# `linear_logps(h, W, y, chunk)` is this, as a function that autograd can call. A meter notes all bytes alive, at every moment of
# forward and backward. "Whole" is what you would have typed: `log_softmax` of all logits, then gather.

# %%
def measure(chunk):
    """Forward and backward, whole (None) or in chunks: bytes alive over time, their peak, the seconds; the gradient of h."""
    hidden, head = h.clone().requires_grad_(), W.clone().requires_grad_()

    def work():
        if chunk is None:
            logps = (hidden @ head.T).log_softmax(-1).gather(1, y[:, None])[:, 0]
        else:
            logps = linear_logps(hidden, head, y, chunk)
        (-(weights * logps).sum()).backward()

    kept = (h.nbytes + W.nbytes) / 1e6                                  # hidden and head are there from the beginning
    line = [(moment, kept + size / 1e6) for moment, size in memory_line(work)]
    return line, max(level for _, level in line), line[-1][0], hidden.grad


# %%
chunks = [8, 64] if args.fast else [4, 16, 64, 256]
measure(chunks[-1])                                                     # the first run warms up
whole, peak, seconds, expected = measure(None)
print(f"whole        peak {peak:5.0f} MB   {seconds:5.2f} s")
lines, peaks, times = {}, {}, {}
for chunk in chunks:
    lines[chunk], peaks[chunk], times[chunk], d_h = measure(chunk)
    print(f"chunk {chunk:4}   peak {peaks[chunk]:5.0f} MB   {times[chunk]:5.2f} s   "
          f"largest difference in d_h {float((d_h - expected).abs().max()):.0e}")

# %% [markdown]
# At the peak, "whole" holds three blocks of the logits' size: log-probs, the gradient that arrives at them, and the one that
# leaves for the logits. With small chunks there remain W, its gradient, and one product on its way there. But for each chunk all
# of W and d_W passes through the processor, so very small ones are slow, and beyond a few dozen rows little is gained.
#
# Chunks need four products with W or h where the whole needs three: z is computed twice, because a loss may tie all log-probs
# together and its weights are known only when the last one is. In training they are known earlier, after the answers of *one*
# prompt (no method here mixes prompts), and `fused_pass` goes back at once: three products, one prompt's logits alive.
# The usual code keeps logits for prompt and padding, too: the label −100 masks them out of the loss, not out of the memory.
#
# ## The picture

# %%
best, blue, grey = chunks[1], "#0b3c5d", "#a6a6a6"
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.2), width_ratios=[1.7, 1], sharey=True, layout="constrained")
for line, color, name in (whole, grey, "all logits at once"), (lines[best], blue, f"{best} rows at a time"):
    moments, levels = zip(*line, strict=True)
    left.fill_between(moments, levels, step="post", color=color, linewidth=0)
    left.text(line[-1][0], max(levels) + 0.01 * peak, name, color=color, fontsize=12, fontweight="bold", ha="right")
left.set(xlabel="seconds: forward, then backward", ylabel="megabytes alive ↓", xlim=(0, None), ylim=(0, 1.1 * peak))
left.set_title("The same gradient, with and without the big matrix", loc="left")
right.plot(chunks, list(peaks.values()), "o-", color=blue, linewidth=2)
for level, color, name in (peak, grey, f"all at once, {seconds:.2g} s"), (2 * W.nbytes / 1e6, blue, "W and its gradient"):
    right.axhline(level, color=color, linewidth=1.5, linestyle="--")
    right.text(chunks[0], level + 0.01 * peak, name, color=color)
for chunk in chunks:
    right.annotate(f"{times[chunk]:.2g} s", (chunk, peaks[chunk]), xytext=(0, 8), textcoords="offset points", ha="center")
right.set(xscale="log", xlabel="rows at a time", title="peak")
right.set_xticks(chunks, chunks)
right.minorticks_off()
for axes in left, right:
    plot.clean(axes)
check.show(figure, "12")
print(f"Your guess? The logits are {logits_mb:.0f} MB; at the peak {peak / logits_mb:.1f} times that is alive, "
      f"with {best} rows at a time {peaks[best] / logits_mb:.2f} times.")

# %% [markdown]
# ## Exercise ●●○ (15 minutes)
# Write the backward pass for yourself. `weights` is −∂L/∂logps, a number per row; the last chunk may be short.
#
# <details><summary>Hint</summary>First d_z of this part, from its logits, its `lse` and lesson 03. All four slices agree. `d_h`
# is filled, `d_W` is added to.</details>

# %%
print(check.backward(mine.backward))

# %% [markdown]
# ## Try
# * Give `measure` a W in bfloat16. What is still float32, and why must it be?
# * Set C to 1024. Which of "whole" and "chunk" gets slower faster, and why?
# * Make all `weights` but ten zero. Which rows could be left out from the start? (`fused_pass` does.)
#
# **Next:** 13, the same code on a model that other people trained.

# %%
# region Solution: unfold when you have tried
def backward(h, W, targets, lse, weights, chunk):
    d_h, d_W = torch.zeros_like(h), torch.zeros_like(W)
    for i in range(0, len(h), chunk):
        part = slice(i, i + chunk)
        d_z = (h[part] @ W.T - lse[part, None]).exp()                   # softmax
        d_z[torch.arange(len(d_z)), targets[part]] -= 1                 # − onehot
        d_z *= weights[part, None]
        d_h[part] = d_z @ W
        d_W += d_z.T @ h[part]
    return d_h, d_W
# endregion
