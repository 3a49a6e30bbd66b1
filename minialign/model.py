"""One decoder-only Transformer. GPT-2, Llama, Mistral and Qwen2 are values of `Config`, not classes of their own.

It maps tokens (or embeddings) to hidden states and stops there: the vocabulary head, the expensive part of alignment, is in
logps.py. Generation is in generate.py. No dropout, no training loop, no loss, no reading of files.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minialign.generate import Cache, generate, stream


@dataclass(frozen=True)
class Config:
    """Every number and every switch in which the supported families differ."""

    vocab_size: int
    n_layer: int
    n_head: int
    d_model: int                       # C, the width
    d_mlp: int                         # F, the width inside the MLP
    n_kv_head: int | None = None       # G: heads that keep keys and values; None = n_head (no grouping)
    d_head: int | None = None          # D; None = d_model / n_head
    max_len: int = 1024                # positions the model was built for
    norm: str = "rms"                  # "rms" | "layer"
    norm_eps: float = 1e-5
    pos: str = "rope"                  # "rope" | "learned"
    rope_theta: float = 10_000.0
    rope_scaling: tuple | None = None  # ("linear", factor) | ("llama3", factor, low_freq_factor, high_freq_factor, old_max_len)
    mlp: str = "swiglu"                # "swiglu" | "gelu" (the tanh form of GPT-2)
    bias: bool = False                 # in every linear layer of the blocks
    qkv_bias: bool = False             # in q, k, v only (Qwen2); implied by bias
    tie: bool = False                  # the head is the embedding table
    window: int | None = None          # a query sees the last `window` positions, itself included (Mistral v0.1)

    def __post_init__(self):
        for name, allowed in {"norm": ("rms", "layer"), "pos": ("rope", "learned"), "mlp": ("swiglu", "gelu")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Config.{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.d_head is None:
            if self.d_model % self.n_head:
                raise ValueError(f"d_model {self.d_model} is not a multiple of n_head {self.n_head}; give d_head")
            object.__setattr__(self, "d_head", self.d_model // self.n_head)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.pos == "rope" and self.d_head % 2:
            raise ValueError(f"rotary positions turn pairs of numbers, so d_head must be even, not {self.d_head}")


def wide(x: Tensor) -> Tensor:
    """float32 or wider, whatever the model's dtype."""
    return x if x.dtype == torch.float64 else x.float()


def norm_layer(config: Config) -> nn.Module:
    return RMSNorm(config.d_model, config.norm_eps) if config.norm == "rms" else nn.LayerNorm(config.d_model, config.norm_eps)


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding table not yet initialised; nn.Embedding's own start would be overwritten, and is slow on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Linear(nn.Linear):
    """As torch's, not yet initialised either: its own start would be overwritten, and takes a third of loading a model."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """x / rms(x) in float32, whatever the model's dtype, then times a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x, x.shape[-1:], None, self.eps)


def rope_frequencies(config: Config) -> Tensor:
    """Turns per position, (D/2,) float32: θ^(−2i/D), rescaled for models whose context was stretched after training."""
    D = config.d_head
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, dtype=torch.int64).float() / D)
    if config.rope_scaling is None:
        return frequency
    kind, factor, *rest = config.rope_scaling
    if kind == "linear":
        return frequency / factor
    # Llama 3.1: waves longer than the old context are slowed by `factor`, short ones are kept, those between are blended.
    low, high, old_len = rest
    wavelength = 2 * math.pi / frequency
    blend = ((old_len / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequency / factor + blend * frequency


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) in Hugging Face's pairing: number i turns together with number i + D/2."""
    a, b = x.chunk(2, dim=-1)                                           # each (R, L, H, D/2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)    # (R, L, H, D)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, D, qkv_bias = config.d_model, config.d_head, config.bias or config.qkv_bias
        self.config = config
        self.q_proj = Linear(C, config.n_head * D, bias=qkv_bias)
        self.k_proj = Linear(C, config.n_kv_head * D, bias=qkv_bias)
        self.v_proj = Linear(C, config.n_kv_head * D, bias=qkv_bias)
        self.o_proj = Linear(config.n_head * D, C, bias=config.bias)

    def forward(self, x: Tensor, turn, mask: Tensor | None, texts, cache_entry) -> Tensor:
        R, L, _ = x.shape
        D = self.config.d_head
        q, k, v = (project(x).view(R, L, -1, D) for project in (self.q_proj, self.k_proj, self.v_proj))     # (R, L, H or G, D)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        if texts is not None:
            where, back = texts
            q, k, v = (z.flatten(0, 1).index_select(0, where.flatten()).unflatten(0, where.shape) for z in (q, k, v))
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))                # (R, H or G, L, D), or (X, H or G, M, D)
        if cache_entry is not None:
            cache, layer, positions = cache_entry
            k, v = cache.store(layer, positions, k, v)                  # (R, G, used, D)
        causal = mask is None and q.shape[2] > 1                        # a single query comes last and sees everything
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
        h = h.transpose(1, 2).flatten(2)                                # (R, L, H·D), or (X, M, H·D)
        if texts is not None:
            h = h.flatten(0, 1).index_select(0, back).view(R, L, -1)
        return self.o_proj(h)                                           # (R, L, C)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, inner = config.d_model, config.d_mlp
        if config.mlp == "swiglu":
            self.gate_proj = Linear(C, inner, bias=config.bias)
        self.gated = config.mlp == "swiglu"
        self.up_proj = Linear(C, inner, bias=config.bias)
        self.down_proj = Linear(inner, C, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)                                            # (R, L, F)
        inner = F.silu(self.gate_proj(x)) * up if self.gated else F.gelu(up, approximate="tanh")
        return self.down_proj(inner)                                    # (R, L, C)


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = norm_layer(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = norm_layer(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn, mask, texts, cache_entry) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask, texts, cache_entry)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Tokens (R, L) or embeddings (R, L, C) → hidden states (R, L, C). Parameters carry Hugging Face's Llama names."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.recompute = False      # activation checkpointing: keep only each layer's input, compute the rest again going back
        self.model = nn.ModuleDict({
            "embed_tokens": embedding(config.vocab_size, config.d_model),
            "layers": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "norm": norm_layer(config),
        })
        if config.pos == "learned":
            self.model["embed_positions"] = embedding(config.max_len, config.d_model)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie:
            self.lm_head.weight = self.model["embed_tokens"].weight
        if self.head.device.type != "meta":                             # a model about to be loaded has nothing to initialise
            self.initialise()

    def initialise(self, std: float = 0.02) -> None:
        """GPT-2's start: normal(0, 0.02), and what writes into the residual stream smaller by √(2 · layers)."""
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * self.config.n_layer) if into_stream else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)                                        # the norms' weights

    @property
    def head(self) -> Tensor:
        """The vocabulary head's weight, (V, C)."""
        return self.lm_head.weight

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model["embed_tokens"](tokens)

    def forward(self, x: Tensor, positions: Tensor | None = None, texts: Tensor | None = None,
                cache: Cache | None = None) -> Tensor:
        """Hidden states (R, L, C) after the last norm.

        x          tokens (R, L) or embeddings (R, L, C)
        positions  (R, L) position ids; None counts 0, 1, 2, … along the row
        texts      (X, M) for answers that share their prompt's tokens (see data.py): which of the R·L tokens each of X texts
                   consists of, prompt first, right-padded with 0. A token sees what stands before it in its text;
                   all but attention is computed once per token. None: every row is a text
        cache      filled and read at `positions`; generation only, not together with `texts`
        """
        if x.dim() == 2 and not x.is_floating_point():
            x = self.embed(x)                                           # (R, L, C)
        R, L, C = x.shape
        if C != self.config.d_model:
            raise ValueError(f"embeddings are {C} wide, this model is {self.config.d_model} wide")
        if positions is None:
            positions = torch.arange(L, device=x.device).expand(R, L)   # (R, L)
        if self.config.pos == "learned":
            x, turn = x + self.model["embed_positions"](positions), None
        else:
            angle = positions[:, :, None, None].float() * rope_frequencies(self.config).to(x.device)    # (R, L, 1, D/2)
            turn = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        if cache is not None:
            cache.used += L
        mask = attention_mask(positions if texts is None else texts, self.config.window, cache)
        if texts is not None:                                           # and back: a prompt's tokens from the first of its texts
            places = torch.arange(texts.numel(), device=x.device)
            texts = texts, places.new_full((R * L,), texts.numel()).scatter_reduce(0, texts.flatten(), places, "amin")
        for i, layer in enumerate(self.model["layers"]):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, turn, mask, texts, None, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, turn, mask, texts, None if cache is None else (cache, i, positions))
        return self.model["norm"](x)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens → (B, T, V) float32 logits, all of them: for checks and lessons. Training never builds these."""
        return (self(tokens) @ self.head.T).float()

    stream = stream             # both in generate.py
    generate = generate


def attention_mask(rows: Tensor, window: int | None, cache: Cache | None) -> Tensor | None:
    """Who may look at whom: bool (R or 1, 1, L, keys), True = visible; None stands for plain causal attention, the fast case.

    Every one of `rows` (R, L) is a text without gaps. Behind what a cache holds, `rows` are position ids.
    """
    L = rows.shape[1]
    behind = cache is not None and cache.used > L
    if behind and L == 1 and not cache.ragged and (window is None or cache.used <= window):
        return None
    if behind:
        distance = rows[:, :, None] - torch.arange(cache.used, device=rows.device)                      # (R, L, used)
    elif window is None or L <= window:
        return None
    else:
        place = torch.arange(L, device=rows.device)
        distance = (place[:, None] - place)[None]                                                       # (1, L, L)
    visible = distance >= 0
    if window is not None:
        visible = visible & (distance < window)
    return visible[:, None]
