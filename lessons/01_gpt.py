# %% [markdown]
# # 01 · A GPT, opened
# **The question:** how does text become a distribution over the next token?
#
# A language model is a function. In goes a text, out comes a probability for every token that could
# come next. In this lesson you take a real one apart: `stories260K`, a Llama with a quarter of a
# million weights, which was trained on children's stories and ships with minialign. You compute its
# forward pass by hand, one step per cell, with its own weights, and hold every step against
# `minialign/model.py`, until the last line gives the same probabilities as the model.
#
# You need to know what a matrix product and a softmax are. Twenty-five minutes, seconds of
# computing. Keep `minialign/model.py` open beside it, later `minialign/rope.py`.
#
# **Guess first.** The model reads “Once upon a time, there was a little girl named”. It has five
# layers. Somewhere between the first and the last of them it finds out that “Lily” should come
# next. Where? And how sure is it in the end? Write down a layer, from 1 to 5, and a probability.

# %%
import torch

from lessons import check
from lessons.pictures import ground as pictures
from minialign import load_model

args = check.options()
mine, ours = check.mine(args), check.OURS
model, tokenizer = load_model("stories260K")
config = model.config
W = {name.removeprefix("model."): p.detach() for name, p in model.named_parameters()}
print(f"{sum(w.numel() for w in W.values()):,} weights in {len(W)} tensors, "
      f"{config.n_layer} layers")

# %% [markdown]
# ## Step 1: text becomes tokens, and tokens become vectors
# A network computes with numbers, so the text is cut into pieces from a list of V = 512, and each
# piece is replaced by its number in the list. The pieces are called tokens. Common words are one
# token, rare ones several. A special token marks the beginning of a text.
#
# The number itself means nothing: token 300 is not twice token 150. So the first thing a model
# does is to look up a vector of C = 64 numbers for each token, a row of the *embedding table*
# E (V, C). From here on, L tokens are a matrix x of shape (L, C). This matrix is called the
# *stream*: all that follows reads from it and adds to it.
#
# “Off by”, here and below, is the largest difference between any of our numbers and the model's.
# Differences around 10⁻⁶ are rounding: a float32 has about seven digits.

# %%
text = "Once upon a time, there was a little girl named"
ids = tokenizer.encode(text)
pieces = [tokenizer.decode([token]).strip() or "‹begin›" for token in ids]
print(" | ".join(pieces))
L, C = len(ids), config.d_model
E = W["embed_tokens.weight"]                                            # (V, C)
x = E[ids]                                                              # (L, C)
batch = torch.tensor([ids])                                             # the model wants rows
with torch.no_grad():
    print(f"stream {tuple(x.shape)}, off by {(x - model.embed(batch)[0]).abs().max():.0e}")

# %% [markdown]
# ## Step 2: everybody reads the stream normalised
# Each layer adds something to the stream, so its numbers grow from layer to layer. Whoever reads it
# would meet inputs of another size in every layer. Therefore each reader first divides a token's
# vector by its *root mean square*, the usual size of its numbers, and then scales each of the C
# places by a weight that was learnt. This is RMSNorm:
#
#     rms(x)  =  √( (1/C) Σ_c x_c²  +  ε )             (ε = 10⁻⁵ avoids a division by zero)
#     norm(x) =  x / rms(x) · w

# %%
def norm(x, name):
    """RMSNorm of every token of x (L, C), with the weights of that name."""
    rms = (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()    # (L, 1)
    return x / rms * W[name]


first = model.model["layers"][0]
read = norm(x, "layers.0.input_layernorm.weight")                       # (L, C)
with torch.no_grad():
    print(f"off by {(read - first.input_layernorm(x)).abs().max():.0e}")

# %% [markdown]
# ## Step 3: queries, keys and values
# So far no token knows of any other. *Attention* is where they meet. Each token makes three small
# vectors from what it has read, by three matrices: a **query** (what am I looking for?), a **key**
# (what do I have to offer?) and a **value** (what do I hand over, if somebody asks?). A token will
# take the values of others, weighted by how well its query fits their keys.
#
# There are H = 8 independent *heads*, each with vectors of D = 8 numbers. In this model, as in many
# large ones, two query heads share one head of keys and values, so there are only 4 of these. It
# saves memory when text is generated, because keys and values have to be kept.

# %%
H, G, D = config.n_head, config.n_kv_head, config.d_head


def heads(read, n, name):
    """The queries, keys or values of layer n, from what is read: (L, C) → (L, heads, D)."""
    return (read @ W[f"layers.{n}.self_attn.{name}.weight"].T).view(len(read), -1, D)


q, k, v = (heads(read, 0, name) for name in ("q_proj", "k_proj", "v_proj"))
print(f"queries {tuple(q.shape)}, keys {tuple(k.shape)}, values {tuple(v.shape)}")

# %% [markdown]
# ## Step 4: where does a token stand?
# A query and a key are compared by their dot product, Σ_i q_i k_i. Nothing in it says where the two
# tokens stand, although “dog bites man” is not “man bites dog”. Llama solves this by turning
# vectors (RoPE, Su et al. 2021, arXiv 2104.09864).
#
# Take two numbers of a head as a point (a, b) in the plane, and turn it by an angle φ:
#
#     a'  =  a cos φ − b sin φ
#     b'  =  a sin φ + b cos φ
#
# A token at position t has its queries and keys turned by φ = t · f. Dot products do not change if
# both vectors are turned by the same angle. So turning a query at t and a key at s gives the same
# product as turning the query alone by the *difference* of the angles, (t − s) · f: the comparison
# depends on how far apart the tokens are, and not on where the two of them stand.
#
# One angle would be too coarse or too fine, so each of the D/2 pairs of a head has a speed of its
# own, f_i = 10000^(−2i/D): the first pair turns by one radian per position, the last one slowly. In
# this family of models, number i of a head is paired with number i + D/2.

# %%
speeds = config.rope_theta ** (-torch.arange(0, D, 2) / D)              # (D/2,)
angles = torch.arange(L)[:, None] * speeds                              # (L, D/2): t · f_i
print("speeds", speeds.numpy().round(4), "radians per position")

# %% [markdown]
# ## Exercise 1 ●●○ (10 minutes): `rotate`
# Open `lessons/mine.py` and fill in `rotate(x, angles)`. It turns queries or keys x (L, H, D) by
# angles (L, D/2): in every head, number i and number i + D/2 are the pair that angle i turns.
#
# <details><summary>Hint</summary>
#
# `a, b = x.chunk(2, dim=-1)` are the first and the second halves of all heads, (L, H, D/2). The
# angles have no axis for the heads: `angles[:, None]` makes one.
# </details>

# %%
verdict = check.rotate(mine.rotate)
print(verdict)
turn = mine.rotate if check.is_right(verdict) else ours.rotate          # the lesson goes on
q, k = turn(q, angles), turn(k, angles)
further = 100 * speeds[None]                                            # 100 positions later
later = turn(q, further)[-1, 0] @ turn(k, further)[3, 0]
change = (later - q[-1, 0] @ k[3, 0]).abs()
print(f"if both stood 100 positions later, their product would change by {change:.0e}")

# %% [markdown]
# The last line put both tokens 100 positions further on. Their angles are others now, and their
# product is the same, up to rounding.
#
# ## Step 5: who may look at whom
# When the model is asked for the next token, it must not know it. So a token sees itself and those
# *before* it, and never those behind it. That is what makes training cheap: one pass over a text
# of L tokens asks L questions at once (what comes after token 1, after token 2, …), and no question
# sees its answer.
#
# ## Exercise 2 ●○○ (5 minutes): `causal_mask`
# `causal_mask(length)` says who may look at whom: a table (length, length) of True and False, where
# row t, column s is True if token t may look at token s.
#
# <details><summary>Hint</summary>
#
# Compare `torch.arange(length)` as a column with the same as a row. Or look up `torch.tril`.
# </details>

# %%
verdict = check.causal_mask(mine.causal_mask)
print(verdict)
visible = mine.causal_mask if check.is_right(verdict) else ours.causal_mask

# %% [markdown]
# ## Step 6: attention
# Now a head can be put together. The products of the queries with the keys are divided by √D:
# a sum of D products of numbers around 1 is around √D large, and without this the softmax would
# find one token far ahead of all others. What may not be seen is set to −∞, so that the softmax
# gives it exactly 0. Every row of the result sums to 1 and says what a token looks at; the values
# are averaged with these weights. A last matrix brings the findings of all heads together, as C
# numbers per token that are added to the stream.

# %%
def look(q, k):
    """What each token looks at, in every head: (L, H, D), (L, G, D) → (H, L, L)."""
    k = k.repeat_interleave(H // G, dim=1)                              # (L, H, D)
    products = torch.einsum("thd,shd->hts", q, k) / D**0.5              # (H, L, L)
    return products.masked_fill(~visible(len(q)), -torch.inf).softmax(-1)


def collect(seen, v, n):
    """What they find there: (H, L, L), (L, G, D) → (L, C)."""
    v = v.repeat_interleave(H // G, dim=1)                              # (L, H, D)
    found = torch.einsum("hts,shd->thd", seen, v).flatten(1)            # (L, H·D)
    return found @ W[f"layers.{n}.self_attn.o_proj.weight"].T


x = x + collect(look(q, k), v, 0)                                       # (L, C)

# %% [markdown]
# ## Step 7: each token thinks for itself
# After attention, each token computes something on its own, with no view of the others. A matrix
# widens its vector to F = 172 numbers, a curve bends them, and another matrix narrows them to C
# again, to be added to the stream. Without the curve, two matrices in a row would be one matrix.
# In Llama the curve is SiLU(x) = x · σ(x), and a second widened copy is multiplied with it, like a
# gate that is more or less open (SwiGLU). Most of a model's weights are here.
#
# With this the first layer is complete, and we can compare it with the model's.

# %%
def think(read, n):
    """The MLP of layer n: (L, C) → (L, C)."""
    gate, up, down = (W[f"layers.{n}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (torch.nn.functional.silu(read @ gate.T) * (read @ up.T)) @ down.T


x = x + think(norm(x, "layers.0.post_attention_layernorm.weight"), 0)
outputs = []                                                            # of the model's own layers
for block in model.model["layers"]:
    block.register_forward_hook(lambda block, inputs, output: outputs.append(output[0]))
with torch.no_grad():
    logits = model.logits(batch)[0]                                     # (L, V)
off = (x - outputs[0]).abs().max()
print(f"after layer 1: numbers up to {x.abs().max():.1f}, off by {off:.0e}")

# %% [markdown]
# ## Step 8: the other layers, and the head
# The other four layers do the same with weights of their own. Here is a layer in one piece.
#
# After the last layer the stream is normalised once more, and each token's vector is compared with
# all V rows of a table, the *head*: one dot product per token of the vocabulary, called its logit.
# In this model the head is the embedding table itself. Softmax turns a row of logits into a
# distribution, and that is the answer to the question of this lesson.

# %%
def layer(x, n):
    """Layer n: the stream (L, C) → the stream after it, and what its heads look at (H, L, L)."""
    read = norm(x, f"layers.{n}.input_layernorm.weight")
    q, k, v = (heads(read, n, name) for name in ("q_proj", "k_proj", "v_proj"))
    seen = look(turn(q, angles), turn(k, angles))
    x = x + collect(seen, v, n)
    return x + think(norm(x, f"layers.{n}.post_attention_layernorm.weight"), n), seen


def distribution(x):
    """The stream (L, C) → the probabilities of what comes after each token, (L, V)."""
    return (norm(x, "norm.weight") @ E.T).softmax(-1)


# %%
streams, attention = [E[ids]], []
for n in range(config.n_layer):
    x, seen = layer(streams[-1], n)
    streams.append(x)
    attention.append(seen)
p = distribution(streams[-1])                                           # (L, V)
print(f"all probabilities: off by {(p - logits.softmax(-1)).abs().max():.0e}")
for chance, token in zip(*p[-1].topk(5), strict=True):
    print(f"   {text} {tokenizer.decode([int(token)]).strip() or '‹space›':8} {chance:.3f}")

# %% [markdown]
# Not a single number came from a framework's layer: everything was products of matrices, a
# rotation, two softmaxes and a curve. Text is generated by doing this again and again: draw a token
# from the distribution, write it behind the text, and ask for the next one. Here we always take the
# likeliest token.

# %%
story = list(ids)
for _ in range(4 if args.fast else 24):
    angles = torch.arange(len(story))[:, None] * speeds
    x = E[story]
    for n in range(config.n_layer):
        x, _ = layer(x, n)
    story.append(int(distribution(x)[-1].argmax()))
print(tokenizer.decode(story))

# %% [markdown]
# ## The picture
# On the left you see what one head of the second layer looks at: each row is a token, and the
# brighter a cell, the more of its attention goes there. Above the diagonal all is empty, since
# nobody sees what comes behind. This head mostly looks one token back: it tells each token what
# stands before it. “girl” is three tokens here, and such heads are what puts them together.
#
# On the right we ask every layer too early. The stream after each layer is put through the last
# norm and the head, as if the model ended there. How likely is “Lily”, and what is the first
# choice?

# %%
lily = int(p[-1].argmax())
early = [distribution(x)[-1] for x in streams]                          # (V,) each
chances = [float(row[lily]) for row in early]
favourites = [tokenizer.decode([int(row.argmax())]).strip() for row in early]
name = tokenizer.decode([lily]).strip()
back = attention[1][3].diagonal(-1).mean()
print(f"this head spends {back:.0%} of its attention on the token just before")
check.show(pictures.gpt(pieces, attention[1][3], name, chances, favourites), "01")

# %%
first_at = next(n for n, favourite in enumerate(favourites) if favourite == name)
print(f"Your guess? “{name}” is the first choice from layer {first_at} of {config.n_layer} on, "
      f"with {chances[-1]:.2f} in the end; a layer earlier it had {chances[-2]:.2f}.")

# %% [markdown]
# Until then the first choice is the token that has just been read: a token's vector still looks
# most like its own embedding. Were the first four layers idle, then? Leave one of them out, and see
# (the first thing to try below).
#
# ## Try
# * In step 8, let the loop run over `(0, 1, 3, 4)`: layer 3 is left out. Does the model still know
#   that it is Lily? Which layer can it do without?
# * Behind exercise 2, write `visible = lambda length: torch.ones(length, length).bool()`. Which of
#   the comparisons fail from then on? Why would a training with it teach nothing?
# * Behind exercise 1, write `turn = lambda x, angles: x`. What does the model say now?
# * Draw another head: `attention[n][h]`, for n from 0 to 4 and h from 0 to 7. Which of them look
#   at the first token only, and why might a head want to do nothing?
#
# **Next:** 02 adds up what the model says about whole sentences.

# %%
# region Solution: unfold when you have tried
def rotate(x, angles):
    a, b = x.chunk(2, dim=-1)                                           # (L, H, D/2) each
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]             # (L, 1, D/2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def causal_mask(length):
    place = torch.arange(length)
    return place[:, None] >= place                                      # row t, column s: s ≤ t
# endregion
