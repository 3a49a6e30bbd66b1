"""Laws of model folders: what transformers computed is what we compute, what we save is what was
there, and damage is told.
"""

import errno
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, tiny_model
from safetensors.torch import load_file, save_file

from minialign.hf.families import config_from_hf, config_to_hf
from minialign.hf.folders import SAVING, check_device, load_model, save_model
from minialign.hf.tokenizer import byte_tokenizer
from minialign.model import Config

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(file.parent.name for file in FIXTURES.glob("*/config.json"))


def fixture(name: str, to: Path) -> Path:
    """A copy of a folder that transformers wrote, with a tokenizer."""
    shutil.copytree(FIXTURES / name, to, ignore=shutil.ignore_patterns("reference*"))
    byte_tokenizer().save(to)
    return to


def reference(name: str):
    """Tokens (2, 24) and the logits (2, 24, 96) that transformers computed for them."""
    stored = load_file(FIXTURES / name / "reference.safetensors")
    return stored["input_ids"], stored["logits"]


def edit_config(folder: Path, **changes) -> Path:
    """Sets keys of config.json; None removes a key."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items()
                                                    if value is not None}))
    return folder


def edit_weights(folder: Path, change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


@torch.no_grad()
def logits(model, tokens):
    return model.logits(tokens)


# ---- reading


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(tmp_path, name):
    model, _ = load_model(fixture(name, tmp_path / "m"))
    tokens, expected = reference(name)
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=0)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.2,
        "original_max_position_embeddings": 64}


@pytest.mark.parametrize("name, changes", [
    ("gpt2", {"layer_norm_epsilon": 1.0}),
    ("llama_tied_llama3_rope", {"rms_norm_eps": 1.0}),
    ("llama_tied_llama3_rope", {"rope_parameters": LLAMA3 | {"rope_theta": 1e4}}),
    ("llama_tied_llama3_rope", {"rope_parameters": LLAMA3 | {"factor": 2.0}}),
    ("llama_tied_llama3_rope",
     {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    ("llama_tied_llama3_rope", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    ("llama_bias_linear_rope", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    ("mistral_window", {"sliding_window": 6}),
    ("qwen2_window", {"use_sliding_window": False}),
    ("qwen2_window", {"sliding_window": 8}),
    ("qwen2_yarn", {"rope_parameters": YARN | {"factor": 2.0}}),
    ("qwen2_yarn", {"rope_parameters": YARN | {"original_max_position_embeddings": 8}}),
    ("qwen2_yarn", {"rope_parameters": YARN | {"beta_slow": 0.02}}),
    ("qwen2_yarn", {"rope_parameters": YARN | {"beta_fast": 0.5}}),
    ("qwen2_yarn", {"rope_parameters": YARN | {"attention_factor": 1.0}}),
    ("qwen3", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    ("qwen3", {"rms_norm_eps": 0.1}),
    ("smollm3", {"no_rope_layers": [0, 1]}),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 1}),
    ("olmo2", {"rms_norm_eps": 0.1}),
])
def test_every_number_of_the_config_shows_in_the_logits(tmp_path, name, changes):
    model, _ = load_model(edit_config(fixture(name, tmp_path / "m"), **changes))
    tokens, expected = reference(name)
    assert (logits(model, tokens) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_the_older_spelling_of_a_config_is_the_same_config(name):
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    old = {key: value for key, value in raw.items()
           if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(raw.get("rope_parameters", {}))
    if rope:
        old["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        old["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    assert config_from_hf(old) == config_from_hf(raw)


def test_a_loaded_model_is_ready_to_train_and_its_file_stays_as_it_is(tmp_path):
    folder = fixture("llama_tied_llama3_rope", tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    model, _ = load_model(folder, "bfloat16")
    assert all(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model.lm_head.weight is model.model["embed_tokens"].weight
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name, change", [
    ("llama_bias_linear_rope",
     lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)})),
    ("llama_tied_llama3_rope",
     lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})),
    ("gpt2",
     lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(2),
                         "transformer.h.1.attn.masked_bias": torch.ones(1)})),
    ("gpt2",
     lambda t: [t.update({name.removeprefix("transformer."): t.pop(name)}) for name in list(t)]),
])
def test_harmless_differences_are_accepted(tmp_path, name, change):
    model, _ = load_model(edit_weights(fixture(name, tmp_path / "m"), change))
    tokens, expected = reference(name)
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=0)


# ---- refusing


def rename(tensors, old, new):
    tensors[new] = tensors.pop(old)


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


# ---- writing


@pytest.mark.parametrize("shard_bytes", [10**9, 9000])
@pytest.mark.parametrize("name", NAMES)
def test_saving_gives_back_the_tensors_transformers_wrote(tmp_path, name, shard_bytes):
    folder = fixture(name, tmp_path / "m")
    save_model(tmp_path / "out", *load_model(folder, "bfloat16"), shard_bytes=shard_bytes)
    assert_same(stored(tmp_path / "out"), stored(folder))
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert ("model.safetensors" in files) == (shard_bytes == 10**9)
    assert ("model.safetensors.index.json" in files) == (shard_bytes != 10**9)
    raw = json.loads((folder / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == raw
    assert_same(load_model(tmp_path / "out")[0].state_dict(), load_model(folder)[0].state_dict())


def test_config_and_generation_keys_we_do_not_use_survive(tmp_path):
    folder = edit_config(fixture("gpt2", tmp_path / "m"), task_specific_params={"a": [1]},
                         torch_dtype="bfloat16", dtype=None)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": 0.6}')
    save_model(tmp_path / "out", *load_model(folder, "float32"))
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["task_specific_params"] == {"a": [1]}
    assert raw["torch_dtype"] == "float32" and "dtype" not in raw
    generation = "generation_config.json"
    assert (tmp_path / "out" / generation).read_bytes() == (folder / generation).read_bytes()
    assert load_model(tmp_path / "out")[1].stop_ids == (1, 2, 256)


FAMILIES = ("llama", "mistral", "qwen2", "gpt2", "llama", "qwen3", "smollm3", "olmo2")


@pytest.mark.parametrize("shape, family", list(zip(SHAPES, FAMILIES, strict=True)))
def test_a_model_of_our_own_becomes_a_folder_of_its_family(tmp_path, shape, family):
    model = tiny_model(shape)
    save_model(tmp_path, model, byte_tokenizer())
    raw = json.loads((tmp_path / "config.json").read_text())
    assert (raw["model_type"], raw["torch_dtype"]) == (family, "float64")
    assert (raw["eos_token_id"], raw["bos_token_id"]) == (256, None)
    again, tokenizer = load_model(tmp_path, "float64")
    assert again.config == model.config and tokenizer.eos_id == 256
    tokens = torch.arange(20).view(2, 10)
    assert torch.equal(logits(again, tokens), logits(model, tokens))


BASE = Config(vocab_size=50, n_layer=2, n_head=4, d_model=24, d_mlp=40)
GPT2 = replace(BASE, norm="layer", pos="learned", mlp="gelu", bias=True)


@pytest.mark.parametrize("config", [
    BASE, replace(BASE, tie=True, n_kv_head=2, d_head=10),
    replace(BASE, bias=True, rope_scaling=("linear", 2.0)),
    replace(BASE, rope_scaling=("llama3", 8.0, 1.0, 4.0, 64)), replace(BASE, window=5),
    replace(BASE, qkv_bias=True),
    replace(BASE, qkv_bias=True, o_bias=True),
    replace(BASE, rope_scaling=("yarn", 4.0, 32.0, 1.0, 64, 1.5)),
    replace(BASE, qk_norm="head", n_kv_head=2, d_head=10),
    replace(BASE, qk_norm="head", window=3, qkv_bias=True, o_bias=True),
    replace(BASE, no_rope=(1,), tie=True), replace(BASE, no_rope=(0,), bias=True),
    replace(BASE, qk_norm="all", norm_after=True),
    replace(BASE, qkv_bias=True, window=7, tie=True), GPT2, replace(GPT2, tie=True, d_mlp=96),
])
def test_a_config_survives_the_trip_through_json(config):
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@pytest.mark.parametrize("config", [
    replace(BASE, norm="layer"), replace(BASE, mlp="gelu"), replace(BASE, pos="learned"),
    replace(BASE, bias=True, window=5), replace(BASE, norm_after=True),
    replace(BASE, qk_norm="all"), replace(BASE, qk_norm="head", no_rope=(0,)),
    replace(BASE, no_rope=(2,)), replace(BASE, o_bias=True), replace(GPT2, qk_norm="head"),
    replace(GPT2, bias=False), replace(GPT2, n_kv_head=2), replace(GPT2, window=5),
    replace(GPT2, d_head=8),
])
def test_switches_of_no_family_are_refused(config):
    with pytest.raises(ValueError, match="cannot say this"):
        config_to_hf(config)


def test_unmerged_adapters_are_refused_before_anything_is_written(tmp_path):
    model = tiny_model()
    model.model["layers"][0].mlp.lora = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="mlp.lora.bias and 1 more does not belong .* merge"):
        save_model(tmp_path / "out", model, byte_tokenizer())
    assert not (tmp_path / "out").exists()


# ---- writing over what is there


def test_saving_over_a_folder_replaces_the_model_and_nothing_else(tmp_path):
    folder = fixture("mistral_window", tmp_path / "m")
    (folder / "chat_template.jinja").write_text("of the old model")
    (folder / "notes").mkdir()
    for name in ("README.md", "notes/mine.txt", "model_backup.safetensors", "training.safetensors"):
        (folder / name).write_text("mine")
    model = tiny_model("gpt2")
    save_model(folder, model, byte_tokenizer())
    there = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert sorted(there) == [
        "README.md", "config.json", "model.safetensors", "model_backup.safetensors",
        "notes/mine.txt", "tokenizer.json",
        "tokenizer_config.json", "training.safetensors"]
    assert_same(load_model(folder, "float64")[0].state_dict(), model.state_dict())


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(tmp_path):
    folder = fixture("gpt2", tmp_path / "m")
    model, tokenizer = load_model(folder, "bfloat16")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    for shard_bytes in (10**9, 9000, 10**9):
        save_model(folder, model, tokenizer, shard_bytes)
        assert_same(load_model(folder, "bfloat16")[0].state_dict(), model.state_dict())


@pytest.mark.parametrize("old_bytes, new_bytes",
                         [(10**9, 70_000), (70_000, 10**9), (70_000, 70_000)])
def test_killed_at_any_step_a_folder_holds_the_old_model_or_the_new_one(
    tmp_path, monkeypatch, old_bytes, new_bytes
):
    """Each step on disk in turn is the last one. Then somebody loads; then somebody saves again,
    and is killed as well.
    """
    folder, tokenizer = tmp_path / "m", byte_tokenizer()
    old, new = tiny_model("llama", seed=1), tiny_model("gpt2", seed=2)
    third = tiny_model("qwen2", seed=3)
    steps = {name: getattr(os, name) for name in ("replace", "link", "unlink", "rmdir")}
    # Flushing takes time, and no name changes by it.
    monkeypatch.setattr(os, "fsync", lambda file: None)

    class Killed(BaseException):
        pass

    def killed_after(n, model, shard_bytes) -> bool:
        left = iter(range(n))

        def or_die(step):
            def run(*args, **kwargs):
                if next(left, None) is None:
                    raise Killed
                return step(*args, **kwargs)
            return run

        with monkeypatch.context() as patch:
            for name, step in steps.items():
                patch.setattr(os, name, or_die(step))
            try:
                save_model(folder, model, tokenizer, shard_bytes)
            except Killed:
                return True
        return False

    def there():
        state = load_model(folder, "float64")[0].state_dict()
        for model in (old, new, third):
            known = model.state_dict()
            if known.keys() == state.keys() and all(torch.equal(known[n], state[n]) for n in known):
                return model
        raise AssertionError("half of one model and half of another")

    seen, killed = [], True
    while killed:
        shutil.rmtree(folder, ignore_errors=True)
        save_model(folder, old, tokenizer, old_bytes)
        killed = killed_after(len(seen), new, new_bytes)
        seen.append(there())
        if len(seen) % 3 == 0:
            killed_after(len(seen) % 11, third, old_bytes)
            assert there() in (seen[-1], new, third)
    first = seen.index(new)
    assert 5 < first and seen == [old] * first + [new] * (len(seen) - first)
    save_model(folder, third, tokenizer)
    assert there() is third and not list(folder.glob(f"{SAVING}*"))


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    folder = fixture("gpt2", tmp_path / "m")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.Tensor, "numpy", full)
    with pytest.raises(OSError, match="No space left on device: .*model.safetensors"):
        save_model(folder, tiny_model(), byte_tokenizer())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_saved_files_can_be_read_by_everyone_the_umask_allows(tmp_path):
    save_model(tmp_path, tiny_model(), byte_tokenizer())
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


# ---- real checkpoints


REFUSED = ["random_tiny_gemma3_text"]           # a family that we do not compute


def weight_folders() -> list:
    root = Path(os.environ.get("MINIALIGN_DATA", "")) / "weights"
    if not os.environ.get("MINIALIGN_DATA"):
        return ["none"]
    return sorted(folder.name for folder in root.iterdir() if folder.name not in REFUSED)


@pytest.mark.parametrize("name", weight_folders())
def test_real_checkpoints_match_their_references_and_survive_saving(shared_data, tmp_path, name):
    folder = shared_data / "weights" / name
    expected = load_file(folder / "reference_logits.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    dtype = raw.get("dtype") or raw["torch_dtype"]
    model, tokenizer = load_model(folder)
    found = logits(model, expected["input_ids"])
    torch.testing.assert_close(found, expected["logits"], atol=2e-4, rtol=0)
    save_model(tmp_path, *load_model(folder, dtype))
    again, again_tokenizer = load_model(tmp_path)
    assert_same(again.state_dict(), model.state_dict())
    assert again_tokenizer.files == tokenizer.files


@pytest.mark.parametrize("device, chosen", [("cpu", []), ("cuda", [False]), ("cuda:1", [False])])
def test_flash_attention_is_chosen_where_cuda_begins(monkeypatch, device, chosen):
    """cuDNN would plan for every new shape. Where there is no GPU, a CPU stands for it."""
    zeros, calls = torch.zeros, []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", calls.append)
    check_device(device)
    assert calls == chosen
