# %% [markdown]
# # 04 · Backward
# **The question:** how does the gradient get from the logits into the weights?
#
# Lesson 03 ended at the logits: a method says how hard to push each token of an answer, and
# weights · (softmax − onehot) is the gradient there. From the logits on, minialign leaves the chain
# rule to autograd. In this lesson you do it yourself, through every layer of the model that you
# opened in lesson 01, hold all 47 gradients against autograd's, and then take the step of the
# optimizer. At the end every weight of the model is where `fit`, the training loop of this
# package, would have put it, up to rounding.
#
# You need lessons 01 and 03. Thirty minutes, seconds of computing. Keep `minialign/train.py` open
# beside it (`fused_pass`, `fit`), and at the end `minialign/optim.py`.
#
# **Guess first.** The loss looks at the log-probs of an *answer's* tokens, and at nothing else. In
# the stream, every token has a vector of its own, in every layer. Which tokens' vectors does the
# loss want to change: at the top of the network, after the last layer? And at the bottom, before
# the first? Answer for the tokens of the prompt and for those of the answer.

# %%
import copy
import math

import torch

from lessons import check
from lessons.pictures import ground as pictures
from minialign import METHODS, Example, Recipe, fit, load_model
from minialign.data import collate
from minialign.train import fused_pass

args = check.options()
mine, ours = check.mine(args), check.OURS
rotate, causal_mask, push = ours.rotate, ours.causal_mask, ours.push    # of lessons 01 and 03
model, tokenizer = load_model("stories260K")
W = {name: p.detach() for name, p in model.named_parameters()}

# %% [markdown]
# ## Step 1: one rule for every matrix
# Most of a network is products of a matrix of inputs x (L, C) and a weight matrix M (F, C),
# y = x Mᵀ. Suppose we know the slope of the loss in every number of y, and call it d_y; in this
# lesson d_anything is always the slope of the loss in anything, and has the same shape. What are
# d_x and d_M? Written out, y_tf = Σ_c x_tc M_fc. A number x_tc occurs in all y_tf of its row t,
# each time with the factor M_fc; and M_fc occurs in all y_tf of its column f, with the factor x_tc.
# The chain rule adds up all ways in which a number has an influence:
#
#     d_x[t, c]  =  Σ_f d_y[t, f] · M[f, c]              so   d_x = d_y M
#     d_M[f, c]  =  Σ_t d_y[t, f] · x[t, c]              so   d_M = d_yᵀ x
#
# So each factor's gradient goes through the other factor. Autograd as a witness:

# %%
torch.manual_seed(0)
x, M = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
d_y = torch.randn(5, 4)                                     # whatever the rest of the network says
(x @ M.T).backward(d_y)
print(f"d_x off by {(d_y @ M - x.grad).abs().max():.0e}, "
      f"d_M off by {(d_y.T @ x - M.grad).abs().max():.0e}")

# %% [markdown]
# ## Step 2: forward once more, keeping what the way back needs
# This is the forward pass of lesson 01, with every intermediate result kept under a name. (This is
# what takes the memory in training: the way back needs what the way there has computed.)
#
# The text is a prompt and an answer. The answer's last token is predicted and never read, and what
# predicts its first token is the last token of the prompt.

# %%
c = model.config
H, G, D, deep = c.n_head, c.n_kv_head, c.d_head, c.n_layer
prompt = tokenizer.encode("Tom had a red ball. He said,")
answer = tokenizer.encode(' "Catch, Sue!"', add_special_tokens=False)
ids, y = torch.tensor(prompt + answer[:-1]), torch.tensor(answer)
L, source = len(ids), torch.arange(len(prompt) - 1, len(ids))           # source[t] predicts y[t]
angles = torch.arange(L)[:, None] * c.rope_theta ** (-torch.arange(0, D, 2) / D)
pieces = [tokenizer.decode([int(token)]).strip() or "‹begin›" for token in ids]
print(" ".join(pieces[: len(prompt)]), "|", " ".join(pieces[len(prompt):]))


def matrix(n, name):
    """A weight matrix of layer n, by the end of its name."""
    return W[f"model.layers.{n}.{name}.weight"]


# %%
def forward_attention(read, n):
    """What attention of layer n adds to the stream, and what it keeps for the way back."""
    q, k, v = ((read @ matrix(n, f"self_attn.{one}_proj").T).view(L, -1, D) for one in "qkv")
    q, k = rotate(q, angles), rotate(k, angles)
    k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)   # (L, H, D)
    products = torch.einsum("thd,shd->hts", q, k) / D**0.5
    seen = products.masked_fill(~causal_mask(L), -torch.inf).softmax(-1)       # (H, L, L)
    found = torch.einsum("hts,shd->thd", seen, v).flatten(1)                        # (L, H·D)
    kept = {"read": read, "q": q, "k": k, "v": v, "seen": seen, "found": found}
    return found @ matrix(n, "self_attn.o_proj").T, kept


# %%
def forward_mlp(read, n):
    """The same for the MLP."""
    gate, up = read @ matrix(n, "mlp.gate_proj").T, read @ matrix(n, "mlp.up_proj").T
    inner = torch.nn.functional.silu(gate) * up
    return inner @ matrix(n, "mlp.down_proj").T, {
        "read": read, "gate": gate, "up": up, "inner": inner}


# %%
def norm(x, w):
    return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * w


E = W["model.embed_tokens.weight"]                                      # (V, C), and the head
stream, kept = [E[ids]], []         # the stream before layer 0, 1, …, and what each layer keeps
for n in range(deep):
    x = stream[-1]
    added, of_attention = forward_attention(norm(x, matrix(n, "input_layernorm")), n)
    between = x + added
    added, of_mlp = forward_mlp(norm(between, matrix(n, "post_attention_layernorm")), n)
    kept.append({"between": between, "attention": of_attention, "mlp": of_mlp})
    stream.append(between + added)
h = norm(stream[-1], W["model.norm.weight"])                            # (L, C)

# %% [markdown]
# ## Step 3: from the push to the last hidden states
# Let us train SFT, the simplest method: raise the mean log-prob of the answer's n tokens. The loss
# is minus that mean, so each token has the weight 1/n (lesson 03). The logits of place t are
# z = h_t Eᵀ, one product more, so step 1 says how to go on. Where no token of the answer is
# predicted, there is no logit in the loss, and d_h is 0.
#
# The table E is used twice in this model: it embeds the tokens, and it is the head. It will get a
# gradient from both uses, and the two are added, because the chain rule adds up all ways in which
# a number has an influence.

# %%
z = h[source] @ E.T                                                     # (n, V)
weights = torch.full((len(y),), 1 / len(y))
loss = -(weights * z.log_softmax(-1).gather(1, y[:, None])[:, 0]).sum()
d_z = push(z, y, weights)                                          # (n, V): lesson 03
d_h = torch.zeros_like(h).index_add_(0, source, d_z @ E)                # (L, C)
gradient = {"model.embed_tokens.weight": d_z.T @ h[source]}             # its part as the head
print(f"loss {loss:.4f}")

batch = collate([Example(0, prompt, [answer])])
theirs, _, _ = fused_pass(model, METHODS["sft"](reduction="seq_mean"), batch)
autograd = {name: p.grad.clone() for name, p in model.named_parameters()}
print(f"by the package {theirs:.4f}; its gradients now wait in {len(autograd)} tensors")

# %% [markdown]
# ## Step 4: back through the norm
# RMSNorm divides a token's vector by its own size: y_c = w_c · x_c / r with r = √(mean of x² + ε).
# Write u = x/r for the vector without the weights. The weight w_c occurs once per token, with the
# factor u_c, so
#
#     d_w[c]  =  Σ_t d_y[t, c] · u[t, c]
#
# A number x_c has two ways to the loss: directly through its own u_c, and through r, which divides
# all of them. With d_u[c] = d_y[c] · w_c,
#
#     ∂r/∂x_c  =  (1/2r) · 2 x_c / C  =  x_c / (C r)  =  u_c / C      (the slope of √x is 1/(2√x))
#     d_x[c]   =  d_u[c] / r  −  Σ_i d_u[i] · (x_i / r²) · ∂r/∂x_c    (the slope of 1/r is −1/r²)
#              =  ( d_u[c]  −  u_c · (1/C) Σ_i d_u[i] u_i ) / r       (x_i / r = u_i)
#
# The last term takes out the part of d_u that points along u. It has to: making a vector longer
# does not change its norm (nearly, because of ε), so no gradient may point in that direction. It is
# the same story as with softmax, where adding a number to all logits changes nothing.
#
# ## Exercise 1 ●●● (15 minutes): `norm_backward`
# `norm_backward(d_y, x, w, eps)` in `lessons/mine.py`: for one norm, from d_y (L, C), its input x
# (L, C) and its weights w (C,), the gradients d_x (L, C) and d_w (C,).
#
# <details><summary>Hint</summary>
#
# First r as a column (L, 1), `keepdim=True`, and u = x / r. The mean over i is per token; the sum
# in d_w runs over the tokens.
# </details>

# %%
verdict = check.norm_backward(mine.norm_backward)
print(verdict)
norm_backward = (mine if check.is_right(verdict) else ours).norm_backward
d_x, gradient["model.norm.weight"] = norm_backward(d_h, stream[-1], W["model.norm.weight"],
                                                   c.norm_eps)

# %% [markdown]
# ## Step 5: back through the MLP
# The MLP is y = (silu(gate) · up) Mᵀ with gate and up from two more matrices. All of it is step 1,
# apart from the curve, silu(x) = x σ(x). Its slope is
#
#     σ(x) + x σ'(x)  =  σ(x) + x σ(x) (1 − σ(x))          (product rule; σ' = σ (1 − σ))

# %%
def matrix_backward(d_y, x, n, name):
    """Step 1: stores d_M of a matrix, and returns d_x."""
    gradient[f"model.layers.{n}.{name}.weight"] = d_y.T @ x
    return d_y @ matrix(n, name)


def mlp_backward(d_y, kept, n):
    """The gradient at what the MLP of layer n has read, (L, C)."""
    d_inner = matrix_backward(d_y, kept["inner"], n, "mlp.down_proj")
    sigma = kept["gate"].sigmoid()
    d_up = d_inner * kept["gate"] * sigma
    d_gate = d_inner * kept["up"] * (sigma + kept["gate"] * sigma * (1 - sigma))
    return (matrix_backward(d_up, kept["read"], n, "mlp.up_proj")
            + matrix_backward(d_gate, kept["read"], n, "mlp.gate_proj"))


# %% [markdown]
# ## Step 6: back through the softmax of attention
# A row of attention is p = softmax(s), and the rest of the network has told us d_p. Lesson 03 knows
# the slope of log p_i in s_j, [i = j] − p_j. As p_i = exp(log p_i), the slope of p_i itself is p_i
# times that. Adding up all ways from s_j to the loss,
#
#     d_s[j]  =  Σ_i d_p[i] · p_i · ([i = j] − p_j)          (chain rule)
#             =  p_j · ( d_p[j]  −  Σ_i d_p[i] p_i )         (the bracket is 1 only for i = j)
#
# In words: a place is to be looked at more if it is better than what is seen on average.
#
# ## Exercise 2 ●●○ (10 minutes): `softmax_backward`
# `softmax_backward(d_p, p)`: the formula above for many rows at a time, (…, L) each.

# %%
verdict = check.softmax_backward(mine.softmax_backward)
print(verdict)
through_softmax = (mine if check.is_right(verdict) else ours).softmax_backward

# %% [markdown]
# ## Step 7: back through the rest of attention
# What is left are products again, and two steps that turn back what the way there has done.
#
# * Each head of keys and values served H/G heads of queries. Their gradients are added.
# * Queries and keys were turned by the angles of their positions. A rotation keeps all lengths and
#   products, so its way back is the rotation by the opposite angles.

# %%
def attention_backward(d_y, kept, n):
    """The gradient at what the attention of layer n has read, (L, C)."""
    q, k, v, seen, read = (kept[one] for one in ("q", "k", "v", "seen", "read"))
    d_found = matrix_backward(d_y, kept["found"], n, "self_attn.o_proj").view(L, H, D)
    d_seen = torch.einsum("thd,shd->hts", d_found, v)
    d_v = torch.einsum("hts,thd->shd", seen, d_found)
    d_products = through_softmax(d_seen, seen) / D**0.5                # (H, L, L)
    d_q = torch.einsum("hts,shd->thd", d_products, k)
    d_k = torch.einsum("hts,thd->shd", d_products, q)
    d_k, d_v = (d.view(L, G, H // G, D).sum(2) for d in (d_k, d_v))     # (L, G, D)
    d_q, d_k = rotate(d_q, -angles), rotate(d_k, -angles)
    parts = zip("qkv", (d_q, d_k, d_v), strict=True)
    return sum(matrix_backward(d.flatten(1), read, n, f"self_attn.{one}_proj")
               for one, d in parts)


# %% [markdown]
# ## Step 8: down through all layers
# A layer *adds* to the stream: x + attention(norm(x)). So the gradient of the stream goes past each
# of them unchanged, and what comes back through attention or MLP is added. This is why deep
# networks can be trained at all: there is a way from the loss to the first layer on which nothing
# is lost.
#
# At the bottom, d_x of a token belongs to its row of the embedding table.

# %%
def through_norm(d_y, x, n, name):
    d_x, gradient[f"model.layers.{n}.{name}.weight"] = norm_backward(
        d_y, x, matrix(n, name), c.norm_eps)
    return d_x


d_streams = [d_x]                                                       # from the top down
for n in reversed(range(deep)):
    d_read = mlp_backward(d_x, kept[n]["mlp"], n)
    d_x = d_x + through_norm(d_read, kept[n]["between"], n, "post_attention_layernorm")
    d_read = attention_backward(d_x, kept[n]["attention"], n)
    d_x = d_x + through_norm(d_read, stream[n], n, "input_layernorm")
    d_streams.append(d_x)
gradient["model.embed_tokens.weight"].index_add_(0, ids, d_x)

# %%
worst = {}
for name, true in autograd.items():
    off = float((gradient[name] - true).norm() / true.norm())
    kind = name.replace("model.", "").split(".")[-2]
    worst[kind] = max(worst.get(kind, 0.0), off)
for kind, off in worst.items():
    print(f"{kind:24} off by {off:.0e} of its length, in the worst layer")
assert gradient.keys() == autograd.keys()

# %% [markdown]
# Rounding, in every tensor: float32 has about seven digits. That is all that
# `hidden.backward(d_states)` does in `fused_pass`.
#
# ## Step 9: the update
# The gradient says where the loss grows. AdamW walks against it, but not by the length of the
# gradient. It keeps two running means for each weight, of its gradients (m) and of their squares
# (v), and divides one by the root of the other:
#
#     m  ←  β₁ m + (1 − β₁) g                    both start at 0 …
#     v  ←  β₂ v + (1 − β₂) g²
#     m̂  =  m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)   … and are too small at first: this makes it good
#     w  ←  w − lr · ( m̂ / (√v̂ + ε) + decay · w )
#
# In the first update, t = 1, this gives m̂ = g and v̂ = g². So g / (|g| + ε) is left: every weight
# moves by lr, whatever the size of its gradient. Only the sign counts.
#
# ## Exercise 3 ●●○ (10 minutes): `adamw`
# `adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay)` returns the new w, m and v after update
# number t = 1, 2, …; do not change the tensors you are given.

# %%
verdict = check.adamw(mine.adamw)
print(verdict)
adamw = (mine if check.is_right(verdict) else ours).adamw
recipe = Recipe(batch=1, lr=1e-3, warmup=0.0, clip=math.inf)
updated = {}
for name, w in W.items():
    nothing = torch.zeros_like(w)
    updated[name], _, _ = adamw(w, gradient[name], nothing, nothing, 1, recipe.lr,
                                recipe.beta1, recipe.beta2, 1e-8, recipe.weight_decay)

trained = copy.deepcopy(model)
trained.zero_grad()
list(fit(trained, METHODS["sft"](reduction="seq_mean"), [Example(0, prompt, [answer])], recipe))

# %% [markdown]
# Now we put all weights, ours and `fit`'s, in two long rows and compare how far each has moved.

# %%
names = list(W)
flat_gradient = torch.cat([gradient[name].flatten() for name in names])
ours_moved = torch.cat([(updated[name] - W[name]).flatten() for name in names])
after = dict(trained.named_parameters())
fit_moved = torch.cat([(after[name].detach() - W[name]).flatten() for name in names])
apart = (ours_moved - fit_moved).abs()
print(f"{len(apart):,} weights moved by {fit_moved.abs().mean():.1e} on average; "
      f"ours and fit's are at most {apart.max():.0e} apart")
large = flat_gradient.abs() > 1e-6
print(f"where the gradient is larger than 1e-6, in {int(large.sum()):,} of them, "
      f"they are at most {apart[large].max():.0e} apart")

# %% [markdown]
# Only where a gradient is itself no more than rounding can the two disagree, because the first
# update keeps its sign and forgets its size.
#
# ## The picture
# On the left the length of the gradient at every token's vector in the stream, from the top of the
# network down to the embeddings. A white cell is exactly 0. On the right what AdamW makes of the
# gradients: each dot is a weight.

# %%
lengths = torch.stack([d.norm(dim=-1) for d in d_streams])              # (layers + 1, L)
chosen = torch.randperm(len(flat_gradient))[:4000]
figure = pictures.backward(pieces, len(prompt), lengths, flat_gradient[chosen].abs(),
                           ours_moved[chosen].abs(), recipe.lr)
check.show(figure, "04")

# %%
top, below = (int((lengths[i] > 0).sum()) for i in (0, 1))
of_prompt = int((lengths[0, : len(prompt)] > 0).sum())
print(f"Your guess? At the top {top} of {L} vectors have a gradient, {of_prompt} of them in the "
      f"prompt;\none layer further down {below} have one, and so it stays down to the embeddings.")

# %% [markdown]
# At the top, only those places count that predict a token of the answer: the last token of the
# prompt, and all tokens of the answer that were read. One layer down, attention has passed the
# gradient on to whatever these places had looked at, and that is everything before them. So
# training on answers changes how prompts are read, although no token of a prompt is in the loss.
#
# And in the first update every weight with a gradient worth the name moves by the learning rate.
# That is why a learning rate for AdamW means a distance: 10⁻³ is a lot for a weight of 0.02.
#
# ## Try
# * Leave `recipe.clip` at its default of 1.0 (`Recipe(batch=1, lr=1e-3, warmup=0.0)`). The whole
#   gradient is longer than 1, so `fit` shortens it. By how much do the weights of `fit` and ours
#   differ now, and why by so little?
# * Set the weights of all tokens but the last to 0 in step 3 (and leave out the comparison with
#   autograd). Which cells of the picture stay white now?
# * Take the second term out of `norm_backward`. Which of the tensors still agree with autograd's?
#
# **Next:** 05 gives all tokens of all good answers the same weight, and looks at what else moves.

# %%
# region Solution: unfold when you have tried
def norm_backward(d_y, x, w, eps):
    r = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()                  # (L, 1)
    u, d_u = x / r, d_y * w                                             # (L, C)
    d_x = (d_u - u * (d_u * u).mean(-1, keepdim=True)) / r
    return d_x, (d_y * u).sum(0)


def softmax_backward(d_p, p):
    return p * (d_p - (d_p * p).sum(-1, keepdim=True))


def adamw(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return w - lr * (m_hat / (v_hat.sqrt() + eps) + decay * w), m, v
# endregion
