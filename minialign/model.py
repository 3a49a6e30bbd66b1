"""One decoder-only Transformer. GPT-2, Llama, Qwen and others are values of `Config`, not classes.

It maps tokens (or embeddings) to hidden states and stops there: the vocabulary head, the expensive
part of alignment, is in logps.py, generation is in generate.py, and the angles of rotary positions
are in rope.py. There is no dropout here, no training loop, no loss, and nothing that reads files.

Shapes in the comments: R rows of L tokens, C the width, H heads of D numbers each, G heads that
keep keys and values, F the width inside the MLP, V the vocabulary. Where several answers share the
tokens of their prompt, X texts of M tokens each are gathered from the rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minialign import generate as generation
from minialign.generate import Cache
from minialign.rope import rope_frequencies, rope_rotation, rotate


@dataclass(frozen=True)
class Config:
    """Every number and every switch in which the supported families differ."""

    vocab_size: int                    # V
    n_layer: int
    n_head: int                        # H
    d_model: int                       # C, the width
    d_mlp: int                         # F, the width inside the MLP
    n_kv_head: int | None = None       # G: heads that keep keys and values; None = n_head
    d_head: int | None = None          # D; None = d_model / n_head
    max_len: int = 1024                # positions the model was built for
    norm: str = "rms"                  # "rms" | "layer"
    norm_eps: float = 1e-5
    norm_after: bool = False           # what attention and MLP add is normalised, and not what they
                                       # read (OLMo-2)
    qk_norm: str | None = None         # RMS norm of queries and keys: "head" by head (Qwen3), or
                                       # "all" heads of a token together (OLMo-2)
    pos: str = "rope"                  # "rope" | "learned"
    rope_theta: float = 10_000.0
    rope_scaling: tuple | None = None  # ("linear", factor), or ("llama3", factor, low_freq_factor,
                                       # high_freq_factor, old_max_len), or ("yarn", factor,
                                       # beta_fast, beta_slow, old_max_len, attention_factor)
    no_rope: tuple[int, ...] = ()      # layers, from 0, without rotary positions (SmolLM3)
    mlp: str = "swiglu"                # "swiglu" | "gelu" (the tanh form of GPT-2)
    bias: bool = False                 # in every linear layer of the blocks
    qkv_bias: bool = False             # in q, k and v (Qwen2); implied by bias
    o_bias: bool = False               # in attention's last layer; implied by bias
    tie: bool = False                  # the head is the embedding table
    window: int | None = None          # a query sees the last `window` positions, itself included
                                       # (Mistral v0.1); None = all of them

    def __post_init__(self):
        # Each switch has a few positions.
        switches = {"norm": ("rms", "layer"), "pos": ("rope", "learned"),
                    "mlp": ("swiglu", "gelu"), "qk_norm": (None, "head", "all")}
        for name, allowed in switches.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(map(str, allowed))
                raise ValueError(f"Config.{name} is {value!r}; choose one of {known}")

        # Numbers left out follow from the others. The dataclass is frozen, hence __setattr__.
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.d_head is None:
            if self.d_model % self.n_head:
                numbers = f"d_model {self.d_model} is not a multiple of n_head {self.n_head}"
                raise ValueError(f"{numbers}; give d_head")
            object.__setattr__(self, "d_head", self.d_model // self.n_head)

        # Query heads share the key and value heads evenly; rotary positions need pairs of numbers.
        G, D = self.n_kv_head, self.d_head
        if self.n_head % G:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {G}")
        if self.pos == "rope" and D % 2:
            raise ValueError(f"rotary positions turn pairs of numbers: d_head {D} must be even")


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider, whatever the model's dtype: log-probs and sums are computed in it."""
    return x if x.dtype == torch.float64 else x.float()


class Linear(nn.Linear):
    """torch's linear layer, except that its weights are left as the memory happened to be.

    torch would draw them here. Either Transformer.initialise or a file overwrites them a moment
    later, and the wasted draw would take a third of the time of loading a model.
    """

    def reset_parameters(self) -> None:
        """torch's constructor calls this to draw the weights. Deliberately does nothing."""


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding table (rows, width), not yet initialised, for the reason given at Linear."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class RMSNorm(nn.Module):
    """x / rms(x) in float32, times a learned weight: LayerNorm without its mean and its bias."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def norm_layer(config: Config) -> nn.Module:
    """The normalisation of this model: Llama's RMSNorm or GPT-2's LayerNorm."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, config.norm_eps)


def window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Who may look at whom in a text of `length` tokens: bool (1, 1, length, length), True = may.

    None stands for plain causal attention, for which torch has a fast path of its own.
    """
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place                                   # (query, key): how far back
    visible = (distance >= 0) & (distance < window)
    return visible[None, None]


def gather_tokens(x: Tensor, numbers: Tensor) -> Tensor:
    """Tokens of x (R, L, …) picked by `numbers` (a, b), which count through all rows: (a, b, …)."""
    return x.flatten(0, 1).index_select(0, numbers.flatten()).unflatten(0, numbers.shape)


def first_places(texts: Tensor, rows: int, length: int) -> Tensor:
    """The way back from texts to rows: where in `texts` (X, M) each token occurs, (rows, length).

    A prompt's tokens occur in several texts. All of them compute the same, so the first will do.
    What pads `texts` on the right comes after a real occurrence of the same token, and every token
    of a row is in some text.
    """
    places = torch.arange(texts.numel(), device=texts.device)
    nowhere = places.new_full((rows * length,), texts.numel())
    return nowhere.scatter_reduce(0, texts.flatten(), places, "amin").view(rows, length)


class Attention(nn.Module):
    """Every token gathers what it needs from the tokens before it and from itself.

    Three linear layers make a query, a key and a value per head from each token. The products of a
    query with the keys say, after a softmax, with what weight it takes their values. With fewer key
    and value heads than query heads (grouped-query attention), the cache of generation is smaller.
    """

    def __init__(self, config: Config):
        super().__init__()
        C, D = config.d_model, config.d_head
        qkv_bias = config.bias or config.qkv_bias
        self.config = config
        self.q_proj = Linear(C, config.n_head * D, bias=qkv_bias)
        self.k_proj = Linear(C, config.n_kv_head * D, bias=qkv_bias)
        self.v_proj = Linear(C, config.n_kv_head * D, bias=qkv_bias)
        self.o_proj = Linear(config.n_head * D, C, bias=config.bias or config.o_bias)
        if config.qk_norm:
            together = config.qk_norm == "all"
            self.q_norm = RMSNorm(config.n_head * D if together else D, config.norm_eps)
            self.k_norm = RMSNorm(config.n_kv_head * D if together else D, config.norm_eps)

    def forward(self, x: Tensor, rotation, mask: Tensor | None, regroup, cache_entry) -> Tensor:
        """(R, L, C) → (R, L, C).

        rotation     (cos, sin) of all tokens' angles, (R, L, 1, D) each; None: no rotation
        mask         who may look at whom, True = may; None: plain causal attention
        regroup      (texts, first places), from rows to texts and back; None: every row is a text
        cache_entry  (cache, number of this layer, positions); None outside generation
        """
        # One query, key and value per head from each token.
        R, L, _ = x.shape
        D = self.config.d_head
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)        # (R, L, H·D or G·D)
        if self.config.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(R, L, -1, D)                                         # (R, L, H, D)
        k = k.view(R, L, -1, D)                                         # (R, L, G, D)
        v = v.view(R, L, -1, D)                                         # (R, L, G, D)
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)

        # Rotary positions turn queries and keys, together and not one by one, but not values.
        if rotation is not None:
            H, G = self.config.n_head, self.config.n_kv_head
            q, k = rotate(torch.cat([q, k], 2), *rotation).split([H, G], 2)

        # Answers to one prompt stand behind it on one row. Here, and nowhere else in the network,
        # each of them gets a row to itself, with the prompt's queries, keys and values before it.
        if regroup is not None:
            texts, places = regroup
            q = gather_tokens(q, texts)                                 # (X, M, H, D)
            k = gather_tokens(k, texts)                                 # (X, M, G, D)
            v = gather_tokens(v, texts)                                 # (X, M, G, D)

        # Attention wants the heads in front. With texts, read X and M for R and L from here on.
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)   # (R, H or G, L, D)

        # In generation, the keys and values of earlier tokens come from the cache.
        if cache_entry is not None:
            cache, layer, positions = cache_entry
            k, v = cache.store(layer, positions, k, v)                  # (R, G, used, D) each

        # Weigh the values. The heads of a single query that share keys and values stand for as many
        # queries of one head: with a mask, torch might copy keys and values for each of them.
        single = q.shape[2] == 1                                        # sees all that is there
        if single:
            q = q.unflatten(1, (k.shape[1], -1)).squeeze(3)             # (R, G, H/G, D)
        causal, grouped = mask is None and not single, q.shape[1] != k.shape[1]
        h = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
        h = h.flatten(1)[:, None] if single else h.transpose(1, 2).flatten(2)       # (R, L, H·D)

        # Back from texts to rows; then one vector per token from what all heads have found.
        if regroup is not None:
            h = gather_tokens(h, places)                                # (R, L, H·D)
        return self.o_proj(h)                                           # (R, L, C)


class MLP(nn.Module):
    """What each token computes by itself: widen to F numbers, apply a curve, narrow to C again.

    GPT-2's curve is GELU. In the Llama family the curve is SiLU of a second widened copy, and opens
    or closes the first like a gate (SwiGLU).
    """

    def __init__(self, config: Config):
        super().__init__()
        C, inner = config.d_model, config.d_mlp
        self.gated = config.mlp == "swiglu"
        if self.gated:
            self.gate_proj = Linear(C, inner, bias=config.bias)
        self.up_proj = Linear(C, inner, bias=config.bias)
        self.down_proj = Linear(inner, C, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)                                            # (R, L, F)
        if self.gated:
            inner = F.silu(self.gate_proj(x)) * up                      # (R, L, F)
        else:
            inner = F.gelu(up, approximate="tanh")                      # (R, L, F)
        return self.down_proj(inner)                                    # (R, L, C)


class Block(nn.Module):
    """One layer: attention, then the MLP. Each reads the stream normalised, and adds to it.

    With `norm_after` they read the stream as it is, and what they add is normalised.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.norm_after = config.norm_after
        if not self.norm_after:
            self.input_layernorm = norm_layer(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = norm_layer(config)
        self.mlp = MLP(config)
        if self.norm_after:
            self.post_feedforward_layernorm = norm_layer(config)

    def forward(self, x: Tensor, rotation, mask: Tensor | None, regroup, cache_entry) -> Tensor:
        if self.norm_after:
            found = self.self_attn(x, rotation, mask, regroup, cache_entry)
            x = x + self.post_attention_layernorm(found)
            return x + self.post_feedforward_layernorm(self.mlp(x))     # (R, L, C)
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, regroup, cache_entry)
        return x + self.mlp(self.post_attention_layernorm(x))           # (R, L, C)


class Transformer(nn.Module):
    """Tokens (R, L) or embeddings (R, L, C) → hidden states (R, L, C); Llama's parameter names."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

        # Activation checkpointing, off unless a recipe asks for it: keep only the input of each
        # layer, and compute the rest again during the backward pass.
        self.recompute = False
        self.frequencies: Tensor | None = None      # rotary, once needed; float32, and in no file

        # The network proper.
        self.model = nn.ModuleDict({
            "embed_tokens": embedding(config.vocab_size, config.d_model),
            "layers": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "norm": norm_layer(config),
        })
        if config.pos == "learned":
            self.model["embed_positions"] = embedding(config.max_len, config.d_model)

        # The vocabulary head: its weight is used through `head`, the layer itself is never called.
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie:
            self.lm_head.weight = self.model["embed_tokens"].weight

        # On the meta device there is nothing to initialise: the weights are about to be loaded.
        if self.head.device.type != "meta":
            self.initialise()

    def initialise(self) -> None:
        """GPT-2's start: weights normal(0, 0.02), biases 0, the norms' weights 1.

        What writes into the residual stream, twice per layer, starts smaller by √(2 · layers), so
        that the stream does not grow with the depth of the model.
        """
        std = 0.02
        std_into_stream = std / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(p, std=std_into_stream)
            elif p.dim() == 2:
                nn.init.normal_(p, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)

    @property
    def head(self) -> Tensor:
        """The vocabulary head's weight, (V, C)."""
        return self.lm_head.weight

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (R, L) → embeddings (R, L, C)."""
        return self.model["embed_tokens"](tokens)

    def forward(self, x: Tensor, positions: Tensor | None = None, texts: Tensor | None = None,
                cache: Cache | None = None) -> Tensor:
        """Hidden states (R, L, C) after the last norm.

        x          tokens (R, L) or embeddings (R, L, C)
        positions  (R, L) position ids; None counts 0, 1, 2, … along the row
        texts      (X, M) for answers that share their prompt's tokens (see data.py): which of the
                   R·L tokens each text consists of, prompt first, right-padded with any of them. A
                   token sees what stands before it in its text; all but attention is computed once
                   per token. None: every row is a text
        cache      filled and read at `positions`; generation only, and not together with `texts`
        """
        # Tokens become embeddings. IFT comes with embeddings, which it has mixed itself.
        if x.dim() == 2 and not x.is_floating_point():
            x = self.embed(x)                                           # (R, L, C)
        R, L, C = x.shape
        if C != self.config.d_model:
            raise ValueError(f"embeddings are {C} wide, this model is {self.config.d_model} wide")

        # Positions: GPT-2 adds a learned vector to every token, the others turn queries and keys.
        rotation = None
        if positions is None:
            positions = torch.arange(L, device=x.device).expand(R, L)   # (R, L)
        if self.config.pos == "learned":
            x = x + self.model["embed_positions"](positions)            # (R, L, C)
        else:
            if self.frequencies is None or self.frequencies.device != x.device:
                self.frequencies = rope_frequencies(self.config).to(x.device)       # (D/2,)
            rotation = rope_rotation(self.config, self.frequencies, positions, x.dtype)

        # Who may look at whom: within each text, or at what the cache holds from earlier calls.
        regroup = None if texts is None else (texts, first_places(texts, R, L))
        mask = window_mask(L if texts is None else texts.shape[1], self.config.window, x.device)
        if cache is not None:
            cache.used += L
            if cache.used > L:
                mask = cache.mask(positions, self.config.window)

        # The layers, one after the other.
        for number, layer in enumerate(self.model["layers"]):
            entry = None if cache is None else (cache, number, positions)
            here = None if number in self.config.no_rope else rotation
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, here, mask, regroup, entry,
                               use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, here, mask, regroup, entry)                # (R, L, C)
        return self.model["norm"](x)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens → (B, T, V) float32 logits, for checks: training never builds them all."""
        return (self(tokens) @ self.head.T).float()

    def stream(self, tokens: Tensor, max_new_tokens: int, *choice, **more) -> Iterator[Tensor]:
        """New tokens as they come, (R,) at a time; the arguments are those of generate.stream."""
        return generation.stream(self, tokens, max_new_tokens, *choice, **more)

    def generate(self, tokens: Tensor, max_new_tokens: int, *choice, **more) -> Tensor:
        """Prompts (R, L) with their continuations; the arguments are those of generate.generate."""
        return generation.generate(self, tokens, max_new_tokens, *choice, **more)
