"""What llama, mistral, qwen2 and gpt2 folders call things: config.json ⇄ Config, and GPT-2's tensors ⇄ ours.

Every number is read, none is assumed, and what we do not compute is refused by name. No files, no models: dictionaries only.
"""

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from minialign.model import Config


def config_from_hf(raw: dict) -> Config:
    """The Config that a config.json describes.

    Raises ValueError for what we do not compute, and for a key that is absent though it changes the mathematics. Absent may be
    only what a wrong guess could not carry past the tensors' names and shapes: head_dim, num_key_value_heads, n_inner, biases
    and ties.
    """
    one_of(raw, "model_type", "llama", "mistral", "qwen2", "gpt2")
    one_of(raw, "tie_word_embeddings", True, False, None)
    for key in ("quantization_config", "attn_logit_softcapping", "final_logit_softcapping"):
        if raw.get(key) is not None:
            raise ValueError(f"{key} is not supported")
    kind, tie = raw["model_type"], raw.get("tie_word_embeddings")
    if kind == "gpt2":
        one_of(raw, "activation_function", "gelu_new", "gelu_pytorch_tanh")
        one_of(raw, "scale_attn_weights", True, None)
        one_of(raw, "scale_attn_by_inverse_layer_idx", False, None)
        width = number(raw, "n_embd", int)
        return Config(
            vocab_size=number(raw, "vocab_size", int), n_layer=number(raw, "n_layer", int), n_head=number(raw, "n_head", int),
            d_model=width, d_mlp=maybe(raw, "n_inner") or 4 * width, max_len=number(raw, "n_positions", int), norm="layer",
            norm_eps=number(raw, "layer_norm_epsilon"), pos="learned", mlp="gelu", bias=True, tie=tie is not False)
    one_of(raw, "hidden_act", "silu", "swish")
    bias = kind == "llama" and bool(raw.get("mlp_bias"))
    if kind == "llama" and bool(raw.get("attention_bias")) != bias:
        raise ValueError("attention_bias and mlp_bias differ, which is not supported: biases are everywhere or nowhere")
    theta, scaling = rope(raw)
    return Config(
        vocab_size=number(raw, "vocab_size", int), n_layer=number(raw, "num_hidden_layers", int),
        n_head=number(raw, "num_attention_heads", int), n_kv_head=maybe(raw, "num_key_value_heads"),
        d_head=maybe(raw, "head_dim"), d_model=number(raw, "hidden_size", int), d_mlp=number(raw, "intermediate_size", int),
        max_len=number(raw, "max_position_embeddings", int), norm_eps=number(raw, "rms_norm_eps"),
        rope_theta=theta, rope_scaling=scaling, bias=bias, qkv_bias=kind == "qwen2", tie=bool(tie), window=window(raw))


def rope(raw: dict) -> tuple[float, tuple | None]:
    """(θ, Config.rope_scaling), from rope_theta and rope_scaling, or from rope_parameters, which holds both (transformers 5)."""
    both, given = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(both, dict) or not isinstance(given, dict):
        raise ValueError("rope_scaling or rope_parameters is not an object")
    merged = {**raw, **both, **given}
    one_of(merged, "partial_rotary_factor", 1, None)
    if "rope_theta" not in merged and not given and re.match(r"4\.([12]?\d|3[0-2])\.", str(raw.get("transformers_version"))):
        merged["rope_theta"] = 10_000.0                                 # Llama 1 and 2 were published before there was such a key
    kind = merged["rope type"] = given.get("rope_type", given.get("type", "default"))
    one_of(merged, "rope type", "default", "linear", "llama3")
    scaling = None
    if kind == "linear":
        scaling = kind, number(given, "factor")
    if kind == "llama3":
        scaling = (kind, number(given, "factor"), number(given, "low_freq_factor"), number(given, "high_freq_factor"),
                   number(given, "original_max_position_embeddings", int))
    return number(merged, "rope_theta"), scaling


def window(raw: dict) -> int | None:
    """How far attention looks back. Mistral's window is on every layer or on none; Qwen2 may mix layers, which we do not."""
    kind = raw["model_type"]
    if kind == "qwen2":
        one_of(raw, "use_sliding_window", True, False)
    if kind == "llama" or raw.get("sliding_window", 0) is None or kind == "qwen2" and not raw["use_sliding_window"]:
        return None
    if kind == "qwen2":
        layers, full = number(raw, "num_hidden_layers", int), number(raw, "max_window_layers", int, least=0)
        types = raw.get("layer_types") or [("full_attention", "sliding_attention")[i >= full] for i in range(layers)]
        if types == ["full_attention"] * layers:
            return None
        if types != ["sliding_attention"] * layers:
            raise ValueError("some layers attend to a window and some to everything, which is not supported")
    return number(raw, "sliding_window", int)


def number(raw: dict, key: str, kind: type = float, least: int = 1):
    """raw[key], a positive number, or for an int one of least … 10⁸. Raises ValueError when it is absent or anything else."""
    value = raw.get(key)
    if value is None:
        raise ValueError(f"{key} is absent, and a wrong guess would change every logit")
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not fits or not (least <= value <= 1e8 if kind is int else 0 < value < math.inf):
        raise ValueError(f"{key} is {value!r}, not a positive {'integer' if kind is int else 'number'} of a sensible size")
    return kind(value)


def maybe(raw: dict, key: str) -> int | None:
    return None if raw.get(key) is None else number(raw, key, int)


def one_of(raw: dict, key: str, *allowed) -> None:
    if raw.get(key) not in allowed:
        known = ", ".join(str(value) for value in allowed if value is not None)
        raise ValueError(f"{key} {raw.get(key)!r} is not supported; known: {known}")


def config_to_hf(config: Config) -> dict:
    """A config.json for `config`, of the family that has its switches. Raises ValueError when none has."""
    if config.pos == "learned":
        raw = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
               "n_embd": config.d_model, "n_head": config.n_head, "n_inner": config.d_mlp, "n_layer": config.n_layer,
               "n_positions": config.max_len, "layer_norm_epsilon": config.norm_eps}
    else:
        family = "Llama" if config.bias else "Qwen2" if config.qkv_bias else "Mistral" if config.window else "Llama"
        raw = {"architectures": [f"{family}ForCausalLM"], "model_type": family.lower(), "hidden_act": "silu",
               "hidden_size": config.d_model, "intermediate_size": config.d_mlp, "num_hidden_layers": config.n_layer,
               "num_attention_heads": config.n_head, "num_key_value_heads": config.n_kv_head, "head_dim": config.d_head,
               "max_position_embeddings": config.max_len, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta}
        keys = "rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        raw["rope_scaling"] = dict(zip(keys, config.rope_scaling, strict=False)) if config.rope_scaling else None
        raw |= {"Llama": {"attention_bias": config.bias, "mlp_bias": config.bias},
                "Mistral": {"sliding_window": config.window},
                "Qwen2": {"use_sliding_window": bool(config.window), "sliding_window": config.window, "max_window_layers": 0},
                }[family]
    raw |= {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie}
    if config_from_hf(raw) != replace(config, qkv_bias=config.qkv_bias and not config.bias):
        raise ValueError(f"llama, mistral, qwen2 and gpt2 folders cannot say this: {config}")
    return raw


# GPT-2 has names of its own, keeps q, k and v in one tensor, and stores the linear layers of its blocks transposed.
GPT2 = {
    "embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f",
    "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
    "self_attn.q_proj": "attn.c_attn", "self_attn.k_proj": "attn.c_attn", "self_attn.v_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
}


def gpt2_name(ours: str) -> str:
    """model.layers.3.self_attn.k_proj.bias → h.3.attn.c_attn.bias"""
    block, module, kind = re.fullmatch(r"(?:model\.)?(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", ours).groups()
    return (f"h.{block}." if block else "") + f"{GPT2.get(module, module)}.{kind}"


def from_gpt2(ours: str, theirs: Tensor) -> Tensor:
    """The part of GPT-2's tensor that is our parameter `ours`; a view."""
    if part := re.search(r"([qkv])_proj", ours):
        theirs = theirs.chunk(3, dim=-1)["qkv".index(part[1])]          # (C, 3C) → (C, C), or (3C,) → (C,)
    return theirs.T if "proj.weight" in ours else theirs                # (in, out) → (out, in)


def to_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """{our name: tensor} → {GPT-2's name: tensor}."""
    theirs = {}
    for ours, tensor in state.items():
        if "q_proj" in ours:                                            # and k and v with it
            tensor = torch.cat([state[ours.replace("q_proj", f"{part}_proj")] for part in "qkv"])      # (3C, C), (3C,)
        name = gpt2_name(ours)
        name = name if name == "lm_head.weight" else f"transformer.{name}"
        theirs.setdefault(name, tensor.T if "proj.weight" in ours else tensor)
    return theirs
