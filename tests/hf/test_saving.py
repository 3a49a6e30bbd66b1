"""What we save is what was there: models of other libraries and of our own, over old models too,
and whatever interrupts it.
"""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, tiny_model
from fixture_folders import NAMES, assert_same, edit_config, fixture, logits
from safetensors.torch import load_file

from minialign.hf.families import config_from_hf, config_to_hf
from minialign.hf.folders import SAVING, load_model, save_model
from minialign.hf.tokenizer import byte_tokenizer
from minialign.model import Config


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


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
    save_model(tmp_path / "old", old, tokenizer, old_bytes)
    while killed:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
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
