"""What model folders call things: config.json ⇄ Config, and GPT-2's tensors ⇄ ours.

The families are those of FAMILIES. Every number is read, none is assumed, and what we do not
compute is refused by name. This file knows dictionaries only: no files and no models.
"""

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from minialign.model import Config

DEEPEST = 2000              # layers; a slip of the finger would take minutes to be found out
# What model_type says, and how transformers spells it in the names of its classes.
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
            "smollm3": "SmolLM3", "olmo2": "Olmo2", "gpt2": "GPT2"}

# ------------------------------------------------------------------------- config.json → Config


def config_from_hf(raw: dict) -> Config:
    """The Config that the content of a config.json describes.

    Raises ValueError for what we do not compute, and for a key that is absent though it changes the
    mathematics. The only keys that may be absent are those where a wrong guess could not get past
    the names and shapes of the tensors: head_dim, num_key_value_heads, n_inner, biases and ties.
    """
    one_of(raw, "model_type", *FAMILIES)
    one_of(raw, "tie_word_embeddings", True, False, None)
    for key in ("quantization_config", "attn_logit_softcapping", "final_logit_softcapping"):
        if raw.get(key) is not None:
            raise ValueError(f"{key} is not supported")

    if raw["model_type"] == "gpt2":
        return gpt2_config(raw)
    return rotary_config(raw)


def gpt2_config(raw: dict) -> Config:
    """GPT-2: learned positions, layer norm, a bias everywhere, tied unless the file says no."""
    one_of(raw, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    one_of(raw, "scale_attn_weights", True, None)
    one_of(raw, "scale_attn_by_inverse_layer_idx", False, None)
    width = integer(raw, "n_embd")
    return Config(
        vocab_size=integer(raw, "vocab_size"), max_len=integer(raw, "n_positions"),
        n_layer=integer(raw, "n_layer", most=DEEPEST), n_head=integer(raw, "n_head"),
        d_model=width, d_mlp=integer_or_none(raw, "n_inner") or 4 * width,
        norm="layer", norm_eps=number(raw, "layer_norm_epsilon", most=1), pos="learned", mlp="gelu",
        bias=True, tie=raw.get("tie_word_embeddings") is not False,
    )


def rotary_config(raw: dict) -> Config:
    """All others: rotary positions, RMS norm, SwiGLU."""
    family = raw["model_type"]
    one_of(raw, "hidden_act", "silu", "swish")

    # Qwen2 always has a bias in q, k and v, Mistral has none, and the others' files say it.
    attention_bias = bool(raw.get("attention_bias")) and family not in ("mistral", "qwen2")
    bias = bool(raw.get("mlp_bias")) and family in ("llama", "smollm3")
    if bias and not attention_bias:
        raise ValueError("mlp_bias without attention_bias is not supported")
    some_bias = attention_bias and not bias

    rope_theta, rope_scaling = read_rope(raw)
    return Config(
        vocab_size=integer(raw, "vocab_size"), max_len=integer(raw, "max_position_embeddings"),
        n_layer=integer(raw, "num_hidden_layers", most=DEEPEST),
        n_head=integer(raw, "num_attention_heads"),
        n_kv_head=integer_or_none(raw, "num_key_value_heads"),
        d_model=integer(raw, "hidden_size"), d_head=integer_or_none(raw, "head_dim"),
        d_mlp=integer(raw, "intermediate_size"), norm_eps=number(raw, "rms_norm_eps", most=1),
        rope_theta=rope_theta, rope_scaling=rope_scaling, window=read_window(raw),
        bias=bias, qkv_bias=some_bias or family == "qwen2", o_bias=some_bias,
        qk_norm={"qwen3": "head", "olmo2": "all"}.get(family), norm_after=family == "olmo2",
        no_rope=read_no_rope(raw), tie=bool(raw.get("tie_word_embeddings")),
    )


def read_rope(raw: dict) -> tuple[float, tuple | None]:
    """(θ, Config.rope_scaling) of a model with rotary positions.

    transformers 4 writes rope_theta and rope_scaling, transformers 5 writes rope_parameters, which
    holds both. The kind of scaling is called rope_type, or type in older files.
    """
    parameters = raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or parameters
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise ValueError("rope_scaling or rope_parameters is not an object")
    merged = {**raw, **parameters, **scaling}
    one_of(merged, "partial_rotary_factor", 1, None)

    # Llama 1 and 2 were published before there was a key for θ, that is before transformers 4.33.
    version = str(raw.get("transformers_version"))
    if "rope_theta" not in merged and not scaling and re.match(r"4\.([12]?\d|3[0-2])\.", version):
        merged["rope_theta"] = 10_000.0

    kind = scaling.get("rope_type", scaling.get("type", "default"))
    one_of({"rope type": kind}, "rope type", "default", "linear", "llama3", "yarn")
    described = None
    if kind == "linear":
        described = (kind, number(scaling, "factor"))
    if kind == "llama3":
        low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
        if low >= high:
            raise ValueError(f"low_freq_factor {low} must be less than high_freq_factor {high}")
        old_len = integer(scaling, "original_max_position_embeddings")
        described = (kind, number(scaling, "factor"), low, high, old_len)
    if kind == "yarn":
        described = read_yarn(scaling)
    return number(merged, "rope_theta"), described


def read_yarn(scaling: dict) -> tuple:
    """Config.rope_scaling for YaRN; what its file leaves out is what the paper recommends."""
    for key in ("mscale", "mscale_all_dim"):
        one_of(scaling, key, None)
    one_of(scaling, "truncate", True, None)
    paper = {"beta_fast": 32, "beta_slow": 1}
    paper["attention_factor"] = 0.1 * math.log(max(number(scaling, "factor"), 1)) + 1
    given = {key: value for key, value in scaling.items() if value is not None}
    stated_or_paper = paper | given
    fast, slow = number(stated_or_paper, "beta_fast"), number(stated_or_paper, "beta_slow")
    old_len = integer(scaling, "original_max_position_embeddings")
    length = number(stated_or_paper, "attention_factor")
    return "yarn", number(scaling, "factor"), fast, slow, old_len, length


def read_no_rope(raw: dict) -> tuple[int, ...]:
    """The layers of SmolLM3 that know no positions; in its file they are 0 and all others 1."""
    if raw["model_type"] != "smollm3":
        return ()
    layers = integer(raw, "num_hidden_layers")
    marks = raw.get("no_rope_layers")
    if not marks:
        every = integer(raw, "no_rope_layer_interval")
        return tuple(range(every - 1, layers, every))
    if not isinstance(marks, list) or len(marks) != layers or not set(marks) <= {0, 1}:
        raise ValueError(f"no_rope_layers is {marks!r}, not a 0 or a 1 for each of {layers} layers")
    return tuple(i for i, mark in enumerate(marks) if mark == 0)


def read_window(raw: dict) -> int | None:
    """How many positions attention looks back, or None for all of them.

    Mistral's window is on every layer or on none. Qwen may mix layers, which we do not compute.
    """
    family = raw["model_type"]
    if family in ("llama", "olmo2"):
        return None
    if family == "smollm3":
        one_of(raw, "use_sliding_window", False, None)
        return None
    if family in ("qwen2", "qwen3"):
        one_of(raw, "use_sliding_window", True, False)
        if not raw["use_sliding_window"]:
            return None
    # A window of null is a statement; a window that is absent would have to be guessed.
    if "sliding_window" in raw and raw["sliding_window"] is None:
        return None

    if family in ("qwen2", "qwen3"):
        layers = integer(raw, "num_hidden_layers")
        full = min(integer(raw, "max_window_layers", least=0), layers)
        types = raw.get("layer_types")
        if not types:
            # Older files give only the number of layers, from the first on, that see everything.
            types = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
        if types == ["full_attention"] * layers:
            return None
        if types != ["sliding_attention"] * layers:
            raise ValueError("some layers attend to a window and some to everything, "
                             "which is not supported")
    return integer(raw, "sliding_window")


# ------------------------------------------------------------------------ one key of config.json


def one_of(raw: dict, key: str, *allowed) -> None:
    """ValueError if raw[key] is none of the values `allowed`; None allows it to be absent."""
    if raw.get(key) not in allowed:
        known = ", ".join(str(value) for value in allowed if value is not None)
        raise ValueError(f"{key} {raw.get(key)!r} is not supported; known: {known}")


def stated(raw: dict, key: str):
    """raw[key]; ValueError if it is absent."""
    if raw.get(key) is None:
        raise ValueError(f"{key} is absent, and a wrong guess would change every logit")
    return raw[key]


def integer(raw: dict, key: str, least: int = 1, most: float = 1e8) -> int:
    """raw[key], an integer in this range; ValueError if it is absent or anything else."""
    value = stated(raw, key)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ValueError(f"{key} is {value!r}, not a positive integer of a sensible size")
    return value


def integer_or_none(raw: dict, key: str) -> int | None:
    """raw[key] as `integer` gives it, or None if the key is absent or null."""
    return None if raw.get(key) is None else integer(raw, key)


def number(raw: dict, key: str, most: float = 1e11) -> float:
    """raw[key], a number above 0 and up to `most`; ValueError if it is absent or anything else."""
    value = stated(raw, key)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not 0 < value <= most:
        raise ValueError(f"{key} is {value!r}, not a positive number of a sensible size")
    return float(value)


# ------------------------------------------------------------------------- Config → config.json


def config_to_hf(config: Config) -> dict:
    """The content of a config.json for `config`, of the family that has its switches.

    Raises ValueError when no family has them.
    """
    raw = gpt2_keys(config) if config.pos == "learned" else rotary_keys(config)
    raw |= {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie}

    # A bias everywhere includes one in attention, so those switches then say nothing.
    said = config
    if config.bias:
        said = replace(config, qkv_bias=False, o_bias=False)
    if config_from_hf(raw) != said:
        known = ", ".join(FAMILIES)
        raise ValueError(f"folders of the families {known} cannot say this: {config}")
    return raw


def gpt2_keys(config: Config) -> dict:
    """The keys of config.json as GPT-2 calls them."""
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": "gelu_new", "n_embd": config.d_model, "n_head": config.n_head,
        "n_inner": config.d_mlp, "n_layer": config.n_layer, "n_positions": config.max_len,
        "layer_norm_epsilon": config.norm_eps,
    }


def rotary_keys(config: Config) -> dict:
    """The keys of config.json that all families but GPT-2 share, and those of one of them."""
    family, own = rotary_family(config)
    scaling = None
    if config.rope_scaling:
        kind, *numbers = config.rope_scaling
        scaling = {"rope_type": kind} | dict(zip(SCALING_KEYS[kind], numbers, strict=True))

    return {
        "architectures": [f"{FAMILIES[family]}ForCausalLM"], "model_type": family,
        "hidden_act": "silu", "hidden_size": config.d_model, "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head, "head_dim": config.d_head,
        "max_position_embeddings": config.max_len, "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "rope_scaling": scaling,
    } | own


# How config.json calls the numbers of Config.rope_scaling, in their order.
SCALING_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor",
               "original_max_position_embeddings"),
    "yarn": ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings",
             "attention_factor"),
}


def rotary_family(config: Config) -> tuple[str, dict]:
    """The family that has the switches of `config`, and the keys that only it knows."""
    window = {"sliding_window": config.window}
    qwen_window = {"use_sliding_window": bool(config.window), "max_window_layers": 0} | window
    biases = {"attention_bias": config.bias or config.o_bias}
    if config.qk_norm == "head":
        return "qwen3", biases | qwen_window
    if config.norm_after:
        return "olmo2", biases
    if config.no_rope:
        marks = [int(layer not in config.no_rope) for layer in range(config.n_layer)]
        # Without a pad_token_id transformers takes SmolLM3's own, which small tables do not have.
        own = {"no_rope_layers": marks, "mlp_bias": config.bias, "use_sliding_window": False,
               "pad_token_id": None}
        return "smollm3", biases | own
    if config.qkv_bias and not (config.bias or config.o_bias):
        return "qwen2", qwen_window
    if config.window and not config.bias:
        return "mistral", window
    return "llama", biases | {"mlp_bias": config.bias}


# --------------------------------------------------------------------------- the tensors of GPT-2

# GPT-2 has names of its own, keeps q, k and v in one tensor,
# and stores the linear layers of its blocks transposed.
GPT2_NAMES = {
    "embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f",
    "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
    "self_attn.q_proj": "attn.c_attn", "self_attn.k_proj": "attn.c_attn",
    "self_attn.v_proj": "attn.c_attn", "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
}


def gpt2_name(ours: str) -> str:
    """model.layers.3.self_attn.k_proj.bias → h.3.attn.c_attn.bias"""
    pattern = r"(?:model\.)?(?:layers\.(\d+)\.)?(.+)\.(weight|bias)"
    block, module, kind = re.fullmatch(pattern, ours).groups()
    name = f"{GPT2_NAMES.get(module, module)}.{kind}"
    return f"h.{block}.{name}" if block else name


def from_gpt2(ours: str, theirs: Tensor) -> Tensor:
    """The part of GPT-2's tensor `theirs` that is our parameter `ours`; a view, not a copy."""
    if part := re.search(r"([qkv])_proj", ours):
        thirds = theirs.chunk(3, dim=-1)                # (C, 3C) → three (C, C), or (3C,) → (C,)
        theirs = thirds["qkv".index(part[1])]
    if "proj.weight" in ours:
        theirs = theirs.T                               # (in, out) → (out, in)
    return theirs


def to_gpt2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """{our name: tensor} → {GPT-2's name: tensor}."""
    theirs = {}
    for ours, tensor in state.items():
        name = gpt2_name(ours)
        if name != "lm_head.weight":
            name = f"transformer.{name}"
        # q, k and v have one name there: the first of them that comes takes the others with it.
        if name in theirs:
            continue
        if "q_proj" in ours:
            parts = [state[ours.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensor = torch.cat(parts)                   # (3C, C), or (3C,) for a bias
        if "proj.weight" in ours:
            tensor = tensor.T                           # (out, in) → (in, out)
        theirs[name] = tensor
    return theirs
