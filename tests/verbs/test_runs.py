"""Runs of `train` as a user meets them: from folder to folder, with adapters, and refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROWS, read, write
from terminal import TEMPLATE

from minialign import Example, load_model, save_model
from minialign.__main__ import main
from minialign.hf.lora import load_adapters, merge
from minialign.verbs.checks import check_data


def test_from_a_folder_and_a_file_to_a_trained_folder(folder, pairs, tmp_path, capsys):
    """sample → train with the negatives → evaluate → generate, all as a user does it."""
    pool, out = str(tmp_path / "pool.jsonl"), str(tmp_path / "run")
    sample = [
        "sample", "--model", folder, "--data", pairs, "--out", pool, "--k", "3",
        "--max-new-tokens", "5"]
    assert main([*sample, "--system", "Badly: "]) == 0
    rows = read(pool)
    assert [r["prompt"] for r in rows] == [r["prompt"] for r in ROWS]
    assert all(
        len(r[key]) == 3
        for r in rows
        for key in ("negatives", "finished", "ref_logps", "augmented_ref_logps")
    )
    train = [
        "train", "--model", folder, "--method", "dft", "--data", pairs, "--negatives", pool,
        "--k", "1", "--out", out]
    assert main([*train, "--epochs", "3", "--batch", "5", "--lr", "1e-2", "--tau", "0.9"]) == 0
    log = read(f"{out}/log.jsonl")
    assert [r["step"] for r in log] == list(range(1, 10)) and "log_u" in log[0]
    assert json.loads(Path(out, "config.json").read_text())["tau"] == 0.9
    capsys.readouterr()
    evaluate = ["evaluate", "--model", f"{out}/model", "--data", pairs, "--json"]
    assert main([*evaluate, "--generate", "2", "--max-new-tokens", "4"]) == 0
    marks = json.loads(capsys.readouterr().out)
    assert (
        marks["examples"] == 12
        and 0 <= marks["pair_accuracy"] <= 1
        and marks["exact_match"] is not None
    )
    assert (
        main(
            [
                "generate",
                "--model",
                f"{out}/model",
                "--prompt",
                "1+1=",
                "--greedy",
                "--max-new-tokens",
                "3",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith("1+1=")


def test_conversations_go_the_same_way(folder, tmp_path, capsys):
    """Messages go through the chat template.

    At the first update the policy still is the reference, and each negative weighs 1/K.
    """
    shutil.copytree(folder, tmp_path / "chat")
    template = TEMPLATE.replace("\n", "<|end|>")
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    data = write(
        tmp_path / "data.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["chosen"]},
                ]
            }
            for row in ROWS
        ],
    )
    pool, out, chat = str(tmp_path / "pool.jsonl"), str(tmp_path / "run"), str(tmp_path / "chat")
    assert (
        main(
            [
                "sample", "--model", chat, "--data", data, "--out", pool, "--max-new-tokens", "5",
                "--system", "Be bad."]
        )
        == 0
    )
    assert (
        main(
            [
                "train", "--model", chat, "--method", "dft", "--data", data, "--negatives", pool,
                "--out", out]
        )
        == 0
    )
    assert read(f"{out}/log.jsonl")[0]["push_down"] == pytest.approx(1, abs=1e-5)
    capsys.readouterr()
    assert (
        main(["generate", "--model", f"{out}/model", "--prompt", "1+1=", "--max-new-tokens", "3"])
        == 0
    )
    assert not capsys.readouterr().out.startswith("1+1="), (
        "an answer, and not the rest of the question"
    )


def test_adapters_are_trained_resumed_merged_and_kept_as_peft_does(folder, pairs, tmp_path):
    words = [
        "train", "--model", folder, "--method", "dpo", "--data", pairs, "--lora-rank", "2",
        "--lora-targets", "q_proj,up_proj", "--dtype", "bfloat16", "--lr", "1e-2", "--out",
        str(tmp_path / "run")]
    assert main([*words, "--checkpoint-every", "1"]) == 0 and main([*words, "--resume"]) == 0
    model, _ = load_model(folder, "bfloat16")
    load_adapters(tmp_path / "run" / "adapter", model)
    merge(model)
    merged, _ = load_model(tmp_path / "run" / "model", "bfloat16")
    torch.testing.assert_close(
        dict(model.named_parameters()), dict(merged.named_parameters()), rtol=0, atol=0
    )
    assert (tmp_path / "run" / "checkpoint.safetensors").stat().st_size < Path(
        folder, "model.safetensors"
    ).stat().st_size


def test_a_disk_too_full_for_the_run_is_refused_before_it_starts(
    folder, pairs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    words = [
        "train", "--model", folder, "--method", "sft", "--data", pairs, "--out",
        str(tmp_path / "run")]
    assert main(words) == 2 and not (tmp_path / "run").exists()
    assert "GiB of disk" in capsys.readouterr().err
    assert (
        main([*words, "--checkpoint-every", "0"]) == 0
        and not (tmp_path / "run" / "checkpoint.safetensors").exists()
    )


def test_weights_that_are_not_numbers_are_a_failed_run(folder, pairs, tmp_path, capsys):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        model.head.fill_(float("nan"))
    save_model(tmp_path / "nan", model, tokenizer)
    bad = ["--model", str(tmp_path / "nan")]
    for words in (
        ["evaluate", "--data", pairs],
        ["generate", "--prompt", "a"],
        ["sample", "--data", pairs, "--out", str(tmp_path / "p.jsonl")],
        ["train", "--method", "sft", "--data", pairs, "--out", str(tmp_path / "r")],
    ):
        assert main([words[0], *bad, *words[1:]]) == 1
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, sentence",
    [("asft", "asft needs pairs"), ("dft", "minialign sample"), ("rrhf", "rewards")],
)
def test_data_that_lacks_what_the_method_compares_is_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        plain = [Example(0, [1, 2], [[3, 4, 5]]), Example(1, [6], [[7]])]
        check_data(name, plain, "plain.jsonl", None)


def test_what_a_method_refuses_by_itself_leaves_nothing_behind(folder, tmp_path, capsys):
    """KTO compares prompts with each other; a single one shows when it prepares its data."""
    one = write(tmp_path / "one.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    words = ["train", "--model", folder, "--method", "kto", "--data", one]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "it needs at least two examples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_chat_template_from_a_file_is_learnt_with_and_kept(folder, tmp_path, capsys):
    """A base model without a template, and messages: every verb takes the same file."""
    template = tmp_path / "mine.jinja"
    template.write_text(TEMPLATE)
    ask, say = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    data, out = write(tmp_path / "chats.jsonl", [{"messages": [ask, say]}]), tmp_path / "run"
    given = ["--model", folder, "--chat-template", str(template)]
    pool = str(tmp_path / "pool.jsonl")
    train = ["train", *given, "--data", data, "--method", "sft", "--out", str(out)]
    assert main(train) == 0
    assert main(["sample", *given, "--data", data, "--out", pool, "--max-new-tokens", "3"]) == 0
    assert main(["evaluate", *given, "--data", data]) == 0
    assert main(["generate", *given, "--prompt", "a", "--max-new-tokens", "3"]) == 0
    assert (out / "model" / "chat_template.jinja").read_text() == TEMPLATE
    assert main(["evaluate", "--model", str(out / "model"), "--data", data]) == 0
    assert main([*train, "--chat-template", "other.jinja", "--resume"]) == 2
    assert "--chat-template was" in capsys.readouterr().err


def test_an_adapter_of_a_run_is_a_model_to_every_verb(folder, pairs, tmp_path, capsys):
    """What is said of it is said of the merged model."""
    run = str(tmp_path / "run")
    train = ["train", "--method", "dpo", "--data", pairs, "--lr", "1e-2"]
    assert main([*train, "--model", folder, "--lora-rank", "2", "--out", run]) == 0
    marks = []
    for model in f"{run}/model", f"{run}/adapter":
        capsys.readouterr()
        assert main(["evaluate", "--model", model, "--data", pairs, "--json"]) == 0
        marks.append(capsys.readouterr().out)
    assert marks[0] == marks[1]
    again = str(tmp_path / "again")
    assert main([*train, "--model", f"{run}/adapter", "--out", again]) == 0
