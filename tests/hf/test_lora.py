"""Adapters: nothing at first, all that learns, gone after merging, and in PEFT's format on disk."""

import json

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from minialign import METHODS
from minialign.hf.folders import save_model
from minialign.hf.lora import (
    PREFIX,
    TARGETS,
    adapted_layers,
    add_adapters,
    load_adapters,
    merge,
    save_adapters,
)
from minialign.train import Recipe, fit

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


def trained(examples, shape="llama", **adapters):
    model = tiny_model(shape).float()
    add_adapters(model, **{"rank": 4, "alpha": 8.0} | adapters)
    for _ in fit(model, METHODS["asft"](), examples, Recipe(epochs=5, batch=3, lr=1e-2)):
        pass
    return model


@pytest.mark.parametrize("shape", ["llama", "mistral", "qwen2", "llama3", "qwen3", "olmo2"])
def test_an_adapter_changes_nothing_until_it_learns_and_then_nothing_else_does(shape, examples):
    before = tiny_model(shape).float()
    model = tiny_model(shape).float()
    add_adapters(model, 4, 8.0)
    assert torch.equal(model.logits(TOKENS), before.logits(TOKENS))
    model = trained(examples, shape)
    assert (model.logits(TOKENS) - before.logits(TOKENS)).abs().max() > 0.01
    after = dict(model.named_parameters())
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, after[name]) and after[name].grad is None
    assert {name.rpartition(".")[2] for name in adapted_layers(model)} == set(TARGETS)


def test_the_adapter_is_a_difference_of_low_rank_and_merging_adds_it(examples):
    model = trained(examples)
    logits, weight = model.logits(TOKENS), model.model["layers"][0].mlp.up_proj.weight.clone()
    difference = model.model["layers"][0].mlp.up_proj.difference()
    assert torch.linalg.matrix_rank(difference) == 4
    merge(model)
    torch.testing.assert_close(model.logits(TOKENS), logits)
    torch.testing.assert_close(model.model["layers"][0].mlp.up_proj.weight, weight + difference)
    assert not adapted_layers(model)
    assert dict(model.named_parameters()).keys() == dict(tiny_model().named_parameters()).keys()
    assert all(p.requires_grad for p in model.parameters())


def test_the_gradient_of_an_adapter_is_the_full_gradient_projected():
    """W' = W + s B A, so ∂L/∂B = s G Aᵀ and ∂L/∂A = s Bᵀ G with G = ∂L/∂W'."""
    model = tiny_model()
    add_adapters(model, 4, 8.0)
    layer = model.model["layers"][1].self_attn.v_proj
    with torch.no_grad():
        layer.lora_B.normal_()
    layer.weight.requires_grad_(True)
    model.logits(TOKENS).square().sum().backward()
    G, s = layer.weight.grad, layer.scale
    torch.testing.assert_close(layer.lora_B.grad.double(), s * G @ layer.lora_A.double().T,
                               rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(layer.lora_A.grad.double(), s * layer.lora_B.double().T @ G,
                               rtol=1e-5, atol=1e-3)


def test_a_peft_folder_survives_the_round_trip(examples, tmp_path):
    model = trained(examples, targets=("q_proj", "down_proj"))
    save_adapters(tmp_path, model, "some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config | {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0,
                     "target_modules": ["down_proj", "q_proj"]} == config
    again = tiny_model().float()
    load_adapters(tmp_path, again)
    assert torch.equal(again.logits(TOKENS), model.logits(TOKENS))


def test_what_does_not_fit_is_refused(examples, tmp_path):
    unknown = {"targets": ("k_proj", "qkv")}, "no layer is called 'qkv'"
    for wrong, words in [unknown, ({"rank": 0}, "rank"), ({"alpha": 0.0}, "alpha")]:
        with pytest.raises(ValueError, match=words):
            add_adapters(tiny_model(), **{"rank": 4, "alpha": 8.0} | wrong)
    with pytest.raises(ValueError, match="GPT-2"):
        add_adapters(tiny_model("gpt2"), 4, 8.0)
    model = trained(examples)
    with pytest.raises(ValueError, match="merge adapters"):
        save_model(tmp_path / "model", model, None)
    with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"):
        load_adapters(tmp_path / "nothing", tiny_model())
    save_adapters(tmp_path, model, "some/base")
    with pytest.raises(ValueError, match="does not fit this model"):
        load_adapters(tmp_path, tiny_model("qwen2"))
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    save_file(load_file(weights) | {f"{PREFIX}lm_head.weight": torch.ones(2)}, weights)
    with pytest.raises(ValueError, match="lm_head.weight is not supported; only plain LoRA is"):
        load_adapters(tmp_path, tiny_model())
    weights.write_bytes(whole)
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no LoRA adapter that can be read"):
        load_adapters(tmp_path, tiny_model())
