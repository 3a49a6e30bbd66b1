"""Damage of a model folder, and what we do not compute, are refused in words that name them."""

import json
import random

import pytest
import torch
from fixture_folders import FIXTURES, YARN, edit_config, edit_weights, fixture

from minialign.hf.families import config_from_hf
from minialign.hf.folders import load_model

Q = "model.layers.1.self_attn.q_proj.weight"
V = "model.layers.1.self_attn.v_proj.weight"
EXTRA = "model.layers.2.self_attn.q_proj.weight"


@pytest.mark.parametrize("name, change, words", [
    ("llama_tied_llama3_rope", lambda t: t.pop(Q), f"lack {Q}"),
    ("llama_tied_llama3_rope", lambda t: [t.pop(Q), t.pop(V)], "lack .* and 1 more"),
    ("llama_tied_llama3_rope", lambda t: t.update({EXTRA: torch.ones(2)}),
     f"{EXTRA} has no place in this 2-layer"),
    ("llama_tied_llama3_rope", lambda t: t.update({Q: t[Q].T.contiguous()}),
     rf"{Q} has shape \[24, 40\].*\[40, 24\]"),
    ("llama_tied_llama3_rope", lambda t: t.update({Q: t[Q].to(torch.int8)}), "quantised"),
    ("llama_tied_llama3_rope", lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)}), "quantised"),
    ("llama_tied_llama3_rope",
     lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "ties"),
    ("llama_bias_linear_rope", lambda t: t.pop("lm_head.weight"),
     "lm_head.weight, and config.json does not tie"),
    ("llama_bias_linear_rope", lambda t: t.pop("model.layers.0.mlp.up_proj.bias"), "lack"),
    ("qwen2_window", lambda t: t.pop("model.layers.0.self_attn.k_proj.bias"), "lack"),
    ("gpt2", lambda t: t.pop("transformer.wpe.weight"), "lack wpe.weight"),
    ("gpt2", lambda t: t.update({"transformer.h.0.attn.c_attn.weight": torch.ones(24, 71)}),
     r"c_attn.weight has shape"),
])
def test_tensors_must_be_there_fit_and_belong(tmp_path, name, change, words):
    with pytest.raises(ValueError, match=words) as raised:
        load_model(edit_weights(fixture(name, tmp_path / "m"), change))
    assert str(tmp_path) in str(raised.value)


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    folder = fixture("qwen2_window", tmp_path / "m")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in [0, 1, 7, 8, 9, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 40)]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="model.safetensors cannot be read"):
            load_model(folder)


def test_a_damaged_header_is_refused_by_name(tmp_path):
    folder = fixture("qwen2_window", tmp_path / "m")
    file = folder / "model.safetensors"
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(40):
        broken = bytearray(whole)
        # Inside the header's names, shapes and offsets.
        broken[rng.randrange(1500)] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        try:
            load_model(folder)
        except ValueError as error:
            # A flip may also hit a blank and do nothing.
            assert str(folder) in str(error)


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def unlist(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    # It is in another shard.
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage, error, words", [
    (drop("config.json"), FileNotFoundError, "no config.json .*a model is a folder"),
    (write("config.json", "[]"), ValueError, "JSON object, not a list"),
    (write("config.json", ""), ValueError, "not JSON"),
    (write("config.json", "{}"), ValueError, "model_type None is not supported; known: llama"),
    (drop("tokenizer.json"), FileNotFoundError, "no tokenizer"),
    (drop("model-00002-of-00004.safetensors"), FileNotFoundError,
     "model-00002-of-00004.safetensors is missing.* holds model"),
    (drop("model.safetensors.index.json"), FileNotFoundError, "no weights"),
    (write("model.safetensors.index.json", "{}"), ValueError, "no weight_map"),
    (write("model.safetensors.index.json", '{"weight_map": {"a": "../other/model.safetensors"}}'),
     ValueError, "no weight_map"),
    (write("model.safetensors.index.json", '{"weight_map": {"a": 1}}'), ValueError,
     "no weight_map"),
    (unlist, ValueError, "lacks model.norm.weight"),
    (lambda f: (f / "model.safetensors.index.json").rename(f / "pytorch_model.bin"), ValueError,
     "pickle.*never read; convert"),
    (lambda f: (f / "model.safetensors").mkdir(), ValueError, "cannot be read"),
])
def test_damaged_folders_say_what_is_wrong(tmp_path, damage, error, words):
    folder = fixture("mistral_window", tmp_path / "m")
    damage(folder)
    with pytest.raises(error, match=words) as raised:
        load_model(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_bad_arguments_say_what_to_type(tmp_path):
    folder = fixture("gpt2", tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="nonexistent does not exist .*config.json"):
        load_model("nonexistent")
    with pytest.raises(FileNotFoundError, match="is a file .*folder"):
        load_model(folder / "model.safetensors")
    for dtype in ("fp32", "int8", None, torch.int32):
        with pytest.raises(ValueError, match="none of float32, bfloat16"):
            load_model(folder, dtype)
    assert load_model(folder, torch.float16)[0].head.dtype == torch.float16


@pytest.mark.parametrize("name, changes, words", [
    ("gpt2", {"model_type": "falcon"},
     "model_type 'falcon' is not supported; known: llama, mistral, qwen2, qwen3, "
     "smollm3, olmo2, gpt2"),
    ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"n_head": 5}, "not a multiple"),
    ("mistral_window", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; known: silu"),
    ("mistral_window", {"quantization_config": {"bits": 4}},
     "quantization_config is not supported"),
    ("mistral_window", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("mistral_window", {"hidden_size": "24"}, "hidden_size is '24', not a positive integer"),
    ("mistral_window", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    ("mistral_window", {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ("mistral_window", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("mistral_window", {"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
    ("mistral_window", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("mistral_window", {"rope_scaling": "linear"}, "not an object"),
    ("mistral_window", {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
     "rope type 'dynamic' .*known: default, linear"),
    ("mistral_window", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
     "original_max_position_embeddings is absent"),
    ("qwen2_yarn", {"rope_parameters": YARN | {"mscale": 0.7}}, "mscale 0.7 is not supported"),
    ("qwen2_yarn", {"rope_parameters": YARN | {"truncate": False}}, "truncate False"),
    ("smollm3", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers .* 0 or a 1 for each of 2 layers"),
    ("smollm3", {"use_sliding_window": True}, "use_sliding_window True is not supported"),
    ("qwen3", {"model_type": "gemma3_text"}, "model_type 'gemma3_text' is not supported"),
    ("mistral_window", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
     "rope type 'longrope'"),
    ("llama_bias_linear_rope", {"attention_bias": False}, "mlp_bias without attention_bias"),
    ("qwen2_window", {"layer_types": ["full_attention", "sliding_attention"]},
     "some layers attend to a window"),
    ("qwen2_window", {"layer_types": None, "max_window_layers": 1},
     "some layers attend to a window"),
    ("qwen2_window", {"max_window_layers": -1}, "max_window_layers is -1"),
])
def test_what_we_do_not_compute_is_refused_by_name(tmp_path, name, changes, words):
    with pytest.raises(ValueError, match=words) as raised:
        load_model(edit_config(fixture(name, tmp_path / "m"), **changes))
    assert "config.json" in str(raised.value)


NUMBERS = {
    "gpt2": ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon",
             "activation_function"],
    "llama_tied_llama3_rope": ["vocab_size", "hidden_size", "intermediate_size",
                               "num_hidden_layers", "num_attention_heads",
                               "max_position_embeddings", "rms_norm_eps", "hidden_act",
                               "rope_parameters"],
    "mistral_window": ["rms_norm_eps", "rope_parameters", "sliding_window"],
    "qwen2_window": ["rms_norm_eps", "rope_parameters", "sliding_window", "use_sliding_window",
                     "max_window_layers"],
}


@pytest.mark.parametrize("name, key",
                         [(name, key) for name, keys in NUMBERS.items() for key in keys])
def test_no_number_that_changes_the_mathematics_is_guessed(name, key):
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    del raw[key]
    raw.pop("layer_types", None)
    with pytest.raises(ValueError, match="absent|not supported"):
        config_from_hf(raw)


def test_rope_theta_may_be_absent_only_where_there_was_no_such_key():
    raw = json.loads((FIXTURES / "llama_bias_linear_rope" / "config.json").read_text())
    del raw["rope_parameters"]
    for version in ("4.28.1", "4.31.0.dev0"):
        assert config_from_hf(raw | {"transformers_version": version}).rope_theta == 10_000
    for version in ("4.33.0", "4.40.1", "5.0.0", None):
        with pytest.raises(ValueError, match="rope_theta is absent"):
            config_from_hf(raw | {"transformers_version": version})
