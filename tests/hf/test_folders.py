"""What transformers computed with a model folder is what we compute, and every number of its
config.json counts.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from fixture_folders import (
    FIXTURES,
    NAMES,
    YARN,
    assert_same,
    edit_config,
    edit_weights,
    fixture,
    logits,
    reference,
)
from safetensors.torch import load_file

from minialign.hf.families import config_from_hf
from minialign.hf.folders import check_device, load_model, save_model


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(tmp_path, name):
    model, _ = load_model(fixture(name, tmp_path / "m"))
    tokens, expected = reference(name)
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=0)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


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
