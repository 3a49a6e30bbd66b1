"""Runs, base models and pools that are damaged, or belong to others: refused by name, or made anew.
"""

import json
import math
import shutil

import pytest
import torch
from conftest import read, write
from safetensors.torch import load_file, save_file
from terminal import refused, train

from minialign import load_model, save_model
from minialign.__main__ import main
from minialign.lab import small


def test_a_run_is_not_resumed_on_another_base_model(folder, pairs, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    words = train(base, pairs, tmp_path / "run", "--lora-rank", "2")
    assert main(words) == 0
    model, tokenizer = load_model(base)
    with torch.no_grad():
        model.model["layers"][0].mlp.up_proj.weight[3, 3] += 1
    save_model(base, model, tokenizer)
    refused([*words, "--resume"], capsys, "the model given as --model has changed")


def test_a_last_update_that_ends_in_infinity_saves_nothing(folder, pairs, tmp_path, capsys):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        # The one update multiplies what is large already by 10³⁰.
        model.model["layers"][0].self_attn.v_proj.weight.mul_(1e12)
        model.model["layers"][0].self_attn.o_proj.weight.mul_(1e-12)
    save_model(tmp_path / "base", model, tokenizer)
    words = train(tmp_path / "base", pairs, tmp_path / "run", "--lr", "9e14", "--warmup", "0")
    refused([*words, "--weight-decay", "9e14"], capsys, "no longer finite", status=1)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def broadcast(state):
    name = "model.model.norm.weight"
    return state | {name: state[name][:1].clone()}


def whole_numbers(state):
    return {name: x.to(torch.int8) if name.startswith("model.") else x for name, x in state.items()}


def not_finite(state):
    return state | {"model.model.norm.weight": state["model.model.norm.weight"] * math.nan}


@pytest.mark.parametrize("damage", [broadcast, whole_numbers, not_finite])
def test_a_checkpoint_of_other_shapes_or_numbers_is_refused(
    folder, pairs, tmp_path, capsys, damage
):
    words = train(folder, pairs, tmp_path / "run", "--method", "dft2", "--batch", "4")
    words[words.index("sft")] = "sft"
    assert main(train(folder, pairs, tmp_path / "run", "--batch", "4")) == 0
    file = tmp_path / "run" / "checkpoint.safetensors"
    save_file(damage(load_file(file)), file, {"step": "3"})
    refused(train(folder, pairs, tmp_path / "run", "--batch", "4", "--resume"), capsys,
            "is not a checkpoint of this run")


@pytest.mark.parametrize("damage", [
    lambda p: {name: x[:1].clone() for name, x in p.items()},
    lambda p: {name: x * math.nan for name, x in p.items()},
    lambda p: {name: x.half() for name, x in p.items()}])
def test_a_cached_base_model_of_other_shapes_or_numbers_is_made_anew(
    tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(small, "COURSES", (1,))
    first, _ = small.base_model(5, tmp_path)
    path = small.base_path(5, tmp_path)
    good = load_file(path)
    save_file(damage(good), path)
    again, _ = small.base_model(5, tmp_path)
    assert torch.equal(again.head, first.head)
    assert all(torch.equal(x, good[name]) for name, x in load_file(path).items())


@pytest.mark.parametrize("change", [
    lambda stored: stored | {"ref_logps": stored["ref_logps"][1:] + stored["ref_logps"][:1]},
    lambda stored: stored | {"ref_logps": [row[:1] for row in stored["ref_logps"]]},
    lambda stored: "[" * 100_000])
def test_a_damaged_reference_is_computed_again(folder, pairs, tmp_path, change):
    words = train(folder, pairs, tmp_path / "run", "--batch", "4")
    words[words.index("sft")] = "dpo"
    assert main(words) == 0
    file = tmp_path / "run" / "reference.json"
    whole = file.read_text()
    changed = change(json.loads(whole))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert main([*words, "--resume"]) == 0
    assert file.read_text() == whole


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe{", b'{"a": 1, "a": 2}'])
def test_damaged_records_of_a_run_are_named(folder, pairs, tmp_path, capsys, name, content):
    assert main(train(folder, pairs, tmp_path / "run")) == 0
    (tmp_path / "run" / name).write_bytes(content)
    refused(train(folder, pairs, tmp_path / "run", "--resume"), capsys, f"{name} ",
            "start again with another --out")


@pytest.fixture
def pool(folder, tmp_path):
    """Many rows of data, a pool for them, and the command that trains on both."""
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(40)]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "pool.jsonl"
    sample = ["sample", "--model", folder, "--data", data, "--out", str(out), "--k", "1"]
    assert main([*sample, "--max-new-tokens", "6"]) == 0
    words = train(folder, data, tmp_path / "run", "--negatives", str(out))
    words[words.index("sft")] = "dft"
    return out, words


@pytest.mark.parametrize("l", [50.0, 1e299, -1e299, 0.5])
def test_log_probs_that_no_answer_has_are_refused(pool, capsys, l):
    path, words = pool
    rows = read(path)
    rows[-1]["ref_logps"] = [l]
    write(path, rows)
    refused(words, capsys, "line 40", "log-prob")


def test_rows_of_another_model_are_found_wherever_they_stand(pool, capsys):
    path, words = pool
    rows = read(path)
    for row in rows[4:]:
        row["ref_logps"] = [l - 9 for l in row["ref_logps"]]
    write(path, rows)
    refused(words, capsys, "are not those of --model")
    rows = [row | {"ref_logps": [l + 9 for l in row["ref_logps"]]} for row in rows[4:]]
    rows[-1]["draw"] = "0123456789abcdef-0123456789ab"
    write(path, read(path)[:4] + rows)
    refused(words, capsys, "line 40", "are not those of --model")
