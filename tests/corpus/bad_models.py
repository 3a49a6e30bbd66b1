"""Bad models: a config.json or weights that are damaged, absurd or unfit for each other."""

import json
import random
import struct

import torch
from cases import BAD_JSON, WRONG, Cases, changed, dropped
from safetensors.torch import load_file, save_file

CASES = Cases()
case = CASES.add


def put(name, content):
    def make(p):
        (p.model / name).write_bytes(content)
        return p.evaluate()
    return make


for what, content in BAD_JSON.items():
    for name in "config.json", "tokenizer_config.json", "generation_config.json":
        case("config", f"{name} {what}", put(name, content))
    case("safetensors", f"the file is {what}", put("model.safetensors", content))

    def as_index(p, content=content):
        (p.model / "model.safetensors").rename(p.model / "model-00001-of-00001.safetensors")
        (p.model / "model.safetensors.index.json").write_bytes(content)
        return p.evaluate()
    case("safetensors", f"the index is {what}", as_index)


# -------------------------------------------------------------------------------------- config.json

NUMBERS = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
           "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta"]
MAY = {("max_position_embeddings", ""), ("rope_theta", "1.5"), ("rms_norm_eps", "true")}


def config(**changes):
    def make(p):
        raw = json.loads((p.model / "config.json").read_text())
        for key, value in changes.items():
            if value is ...:
                raw.pop(key, None)
            else:
                raw[key] = value
        (p.model / "config.json").write_text(json.dumps(raw))
        return p.evaluate()
    return make


for key in NUMBERS:
    for what, value in WRONG.items():
        case("config", f"{key} {what}", config(**{key: value}), lenient=(key, what) in MAY)
for what, value in WRONG.items():
    if what not in ("absent", "null"):
        case("config", f"num_key_value_heads {what}", config(num_key_value_heads=value))
        case("config", f"head_dim {what}", config(head_dim=value))
        case("config", f"rope_scaling {what}", config(rope_scaling=value),
             lenient=what in ("0",))
        scaled = {"rope_type": "linear", "factor": value}
        case("config", f"rope factor {what}", config(rope_scaling=scaled), lenient=what == "1.5")
    case("config", f"model_type {what}", config(model_type=value))
    case("config", f"hidden_act {what}", config(hidden_act=value))
for key, value in {
    "model_type": "bert", "hidden_act": "relu", "quantization_config": {"bits": 4},
    "num_hidden_layers": 10_000, "tie_word_embeddings": "yes", "attn_logit_softcapping": 30.0,
    "attention_bias": True, "mlp_bias": True, "hidden_size": 17, "num_attention_heads": 3,
    "vocab_size": 256, "intermediate_size": 17, "rms_norm_eps": 5.0,
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": 5,
}.items():
    case("config", f"{key} {value}", config(**{key: value}))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
for key in LLAMA3:
    for what, value in WRONG.items():
        lenient = what == "1.5" and key in ("factor", "low_freq_factor", "high_freq_factor")
        lenient |= key == "high_freq_factor" and what == "10**12"
        lenient |= key == "factor" and what == "10**12"
        lenient |= key == "rope_type" and what in ("absent",)
        scaled = {k: v for k, v in (LLAMA3 | {key: value}).items() if v is not ...}
        case("config", f"llama3 {key} {what}", config(rope_scaling=scaled), lenient=lenient)


# -------------------------------------------------------------------------------------- safetensors

def tensors(change):
    def make(p):
        file = p.model / "model.safetensors"
        state = load_file(file)
        state = {name: x.clone() for name, x in state.items()}
        change(state)
        save_file(state, file, {"format": "pt"})
        return p.evaluate()
    return make


NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
         "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight",
         "model.layers.0.input_layernorm.weight"]
SHAPES = {
    "one row": lambda x: x[:1].clone(), "longer": lambda x: torch.cat([x, x]),
    "a scalar": lambda x: x.flatten()[0].clone(), "empty": lambda x: x[:0].clone(),
    "one dimension more": lambda x: x[None].clone(), "int8": lambda x: x.to(torch.int8),
    "bool": lambda x: x > 0, "int64": lambda x: x.long(), "float8": lambda x: x.to(
        torch.float8_e4m3fn),
}
for name in NAMES:
    case("safetensors", f"without {name}", tensors(dropped(name)))
    for what, how in SHAPES.items():
        def contiguous(x, how=how):
            return how(x).contiguous()
        case("safetensors", f"{name} {what}", tensors(changed(name, contiguous)))
case("safetensors", "one too many", tensors(lambda s: s.update(extra=torch.ones(3))))
case("safetensors", "a second layer",
     tensors(lambda s: s.update({"model.layers.1.mlp.up_proj.weight": torch.ones(3)})))


def cut(share):
    def make(p):
        file = p.model / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        return p.evaluate()
    return make


def header(change):
    """The safetensors file with another header: a length, or bytes."""
    def make(p):
        file = p.model / "model.safetensors"
        content = file.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        file.write_bytes(change(content, size))
        return p.evaluate()
    return make


for share in 0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999:
    case("safetensors", f"cut to {share}", cut(share))
for size in 0, 1, 7, 10**6, 2**40, 2**63, 2**64 - 1:
    case("safetensors", f"header of {size} bytes",
         header(lambda c, _, size=size: struct.pack("<Q", size) + c[8:]))
for what, content in BAD_JSON.items():
    case("safetensors", f"header {what}", header(
        lambda c, s, new=content: struct.pack("<Q", len(new)) + new + c[8 + s :]))
for seed in range(20):
    def flipped(content, size, seed=seed):
        place = 8 + random.Random(seed).randrange(size)
        return content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :]
    case("safetensors", f"a flipped byte in the header, {seed}", header(flipped), lenient=True)
