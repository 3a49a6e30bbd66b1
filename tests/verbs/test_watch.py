"""A run one can watch: held-out marks, the best model, curves, what config.json tells."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROWS, read, write

from minialign import fit, load_examples, load_model, save_model
from minialign.__main__ import main
from minialign.evaluate import answer_logps, marks
from minialign.hf.folders import check_device, model_digest, pick_device
from minialign.lab import plot
from minialign.verbs import checkpoint, train, watch

EVAL = {"eval_loss", "eval_perplexity", "eval_pair_accuracy", "eval_margin"}


@pytest.fixture
def run(folder, pairs, tmp_path):
    """Ten updates of DPO with a learning rate that is too high to be good, looked at in each."""
    held_out = write(tmp_path / "held_out.jsonl", ROWS[::-1][:7])
    words = ["train", "--model", folder, "--method", "dpo", "--data", pairs, "--batch", "6"]
    words += ["--epochs", "5", "--lr", "3e-2", "--eval-data", held_out, "--eval-every"]

    def start(name, every, *more):
        return main([*words, every, "--out", str(tmp_path / name), *more])

    return start


def marks_of(model_folder, data):
    model, tokenizer = load_model(model_folder)
    examples, _ = load_examples(data, tokenizer, model.config.max_len)
    return marks(*answer_logps(model, examples, 3, progress=False))


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_held_out_marks_stand_where_they_are_due_and_in_the_last_sentence(
    run, folder, tmp_path, capsys
):
    assert run("r", "4") == 0
    log = read(tmp_path / "r" / "log.jsonl")
    assert [record["step"] for record in log] == list(range(11))
    assert [record["step"] for record in log if EVAL <= record.keys()] == [0, 4, 8, 10]
    assert not any(EVAL & record.keys() for record in log if record["step"] not in (0, 4, 8, 10))
    for model, record in (folder, log[0]), (tmp_path / "r" / "model", log[-1]):
        found = marks_of(model, tmp_path / "held_out.jsonl")
        assert record["eval_loss"] == pytest.approx(-found["logp_per_token"], rel=1e-6)
        assert record["eval_perplexity"] == pytest.approx(found["perplexity"], rel=1e-6)
        assert record["eval_pair_accuracy"] == found["pair_accuracy"]
        assert record["eval_margin"] == pytest.approx(found["margin"], rel=1e-5)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{watch.summary(tmp_path / 'r', 10)}, on 7 held-out examples"


def test_the_sentence(tmp_path):
    rows = [{"step": 0, "eval_pair_accuracy": 0.54, "eval_perplexity": 4.31},
            {"step": 9, "eval_pair_accuracy": 1.0, "eval_perplexity": 12345.6}]
    write(tmp_path / "log.jsonl", rows)
    assert watch.summary(tmp_path, 9) == "pairs right .54 → 1.00, perplexity 4.31 → 12,346"
    del rows[0]["eval_pair_accuracy"]
    write(tmp_path / "log.jsonl", rows)
    assert watch.summary(tmp_path, 9) == "perplexity 4.31 → 12,346"


def test_watching_changes_nothing(run, folder, pairs, tmp_path):
    assert run("watched", "1", "--keep-best") == 0
    assert run("seldom", "100") == 0
    plain = ["--model", folder, "--method", "dpo", "--data", pairs, "--batch", "6", "--epochs", "5"]
    assert main(["train", *plain, "--lr", "3e-2", "--out", str(tmp_path / "plain")]) == 0
    assert weights(tmp_path / "plain") == weights(tmp_path / "seldom")
    losses = [[r["loss"] for r in read(tmp_path / name / "log.jsonl") if r["step"]]
              for name in ("plain", "seldom", "watched")]
    assert losses[0] == losses[1] == losses[2]


def test_the_best_model_is_kept(run, tmp_path, capsys):
    assert run("r", "1", "--keep-best") == 0
    log = read(tmp_path / "r" / "log.jsonl")[1:]
    best = max(log, key=lambda record: record["eval_pair_accuracy"])        # the first of them
    assert best["step"] < 10, "or this test tests nothing"
    kept = marks_of(tmp_path / "r" / "model", tmp_path / "held_out.jsonl")
    assert kept["perplexity"] == pytest.approx(best["eval_perplexity"], rel=1e-6)
    *_, done, sentence = capsys.readouterr().out.splitlines()
    assert f"as it was after update {best['step']} of 10" in done
    assert sentence.startswith(watch.summary(tmp_path / "r", best["step"]))


def test_without_pairs_the_best_has_the_lowest_perplexity(run, tmp_path):
    plain = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    file = write(tmp_path / "plain.jsonl", plain)
    assert run("r", "2", "--keep-best", "--eval-data", file) == 0
    log = [r for r in read(tmp_path / "r" / "log.jsonl")[1:] if "eval_loss" in r]
    assert not any("eval_pair_accuracy" in record for record in log)
    kept = marks_of(tmp_path / "r" / "model", file)["perplexity"]
    assert kept == pytest.approx(min(record["eval_perplexity"] for record in log), rel=1e-6)


@pytest.mark.parametrize("every, stop", [("1", 5), ("3", 8), ("6", 3)])
def test_a_watched_run_that_was_killed_ends_bit_for_bit_like_one_that_was_not(
    run, tmp_path, monkeypatch, every, stop
):
    """Killed between a checkpoint and the next, when the best model may be ahead of both."""
    more = ["--keep-best", "--checkpoint-every", "2"]
    assert run("straight", every, *more) == 0

    def killed(*given):
        for record in fit(*given):
            yield record
            if record["step"] == stop:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", killed)
        assert run("killed", every, *more) == 130
    assert run("killed", every, *more, "--resume") == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    logs = [read(tmp_path / name / "log.jsonl") for name in ("killed", "straight")]
    for record in logs[0] + logs[1]:
        record.pop("seconds", None)
    assert logs[0] == logs[1]
    before = weights(tmp_path / "killed")
    assert run("killed", every, *more, "--resume") == 0 and weights(tmp_path / "killed") == before


@pytest.mark.parametrize("words, sentence", [
    (["--keep-best"], "give --eval-data FILE too"),
    (["--eval-every", "3"], "give --eval-data FILE too"),
    (["--eval-data", "none.jsonl"], "no such file: none.jsonl"),
    (["--eval-data", "{unwanted}"], "has a wanted answer to take marks from"),
])
def test_what_cannot_be_watched_is_refused(folder, pairs, tmp_path, capsys, words, sentence):
    row = {"prompt": "a", "completion": "b", "label": False}
    unwanted = write(tmp_path / "unwanted.jsonl", [row])
    words = [word.format(unwanted=unwanted) for word in words]
    out = tmp_path / "r"
    run = ["train", "--model", folder, "--method", "sft", "--data", pairs, "--out", str(out)]
    assert main([*run, *words]) == 2 and sentence in capsys.readouterr().err
    assert not out.exists()


# ------------------------------------------------------------------------------ the picture

def test_the_curves_are_drawn_and_a_failure_to_draw_loses_nothing(
    run, tmp_path, monkeypatch, capsys
):
    assert run("r", "4") == 0
    assert (tmp_path / "r" / "curves.png").read_bytes().startswith(b"\x89PNG")

    def broken(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(plot, "curves", broken)
    capsys.readouterr()
    assert run("s", "4") == 0 and (tmp_path / "s" / "model" / "config.json").exists()
    said = capsys.readouterr()
    assert "the curves could not be drawn (RuntimeError: no font)" in said.err
    assert "held-out examples" in said.out


@pytest.mark.parametrize("method", ["sft", "asft"])
@pytest.mark.parametrize("epochs", ["1", "2"])
def test_every_run_has_curves_if_it_is_long_enough(folder, pairs, tmp_path, method, epochs, capsys):
    out = tmp_path / "r"
    words = ["--model", folder, "--method", method, "--data", pairs, "--epochs", epochs]
    assert main(["train", *words, "--out", str(out)]) == 0
    assert (out / "curves.png").exists() == (epochs == "2")
    assert "curves" not in capsys.readouterr().err


def test_tensorboard_that_is_not_installed_is_said_before_the_work(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run("r", "4", "--tensorboard") == 2 and not (tmp_path / "r").exists()
    assert "pip install tensorboard" in capsys.readouterr().err


def test_tensorboard_gets_every_number(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("r", "4", "--tensorboard") == 0
    board = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    log = read(tmp_path / "r" / "log.jsonl")
    for key in "loss", "eval_perplexity":
        shown = {event.step: event.value for event in board.Scalars(key)}
        logged = {record["step"]: record[key] for record in log if key in record}
        assert shown == pytest.approx(logged, rel=1e-6)


# ------------------------------------------------------------------------- what a run was made of

def test_config_json_has_every_default_and_no_nulls(run, folder, tmp_path):
    assert run("r", "4") == 0
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert None not in config.values()
    assert config["beta"] == 0.1 and config["warmup"] == 0.1 and config["clip"] == 1.0
    assert "tau" not in config and config["model_sha256"] == model_digest(folder)
    made = config["made_with"]
    assert made["torch"] == torch.__version__ and made["command"].startswith("minialign ")
    assert made.get("git") == checkpoint.git_revision()


def test_a_package_outside_of_a_checkout_has_no_revision(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "checkpoint.py"))
    assert checkpoint.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert checkpoint.git_revision() is None


def test_a_run_goes_on_with_a_model_that_was_moved_but_not_with_another(
    folder, pairs, tmp_path, capsys
):
    base = shutil.copytree(folder, tmp_path / "base")
    words = ["--method", "sft", "--data", pairs, "--out", str(tmp_path / "r")]
    assert main(["train", "--model", str(base), *words]) == 0
    moved = base.rename(tmp_path / "moved")
    assert main(["train", "--model", str(moved), *words, "--resume"]) == 0
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        next(iter(model.parameters())).add_(1e-3)
    save_model(moved, model, tokenizer)
    assert main(["train", "--model", str(moved), *words, "--resume"]) == 2
    assert "the model given as --model has changed" in capsys.readouterr().err


def test_the_digest_of_a_model_changes_with_its_files(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert model_digest(copy) == model_digest(folder)
    for name in "config.json", "tokenizer.json", "model.safetensors":
        file = copy / name
        if file.exists():
            before, content = model_digest(copy), file.read_bytes()
            file.write_bytes(content[:-3] + b"~" + content[-2:])
            assert model_digest(copy) != before, name
    before = model_digest(copy)
    (copy / "README.md").write_text("hello")
    assert model_digest(copy) == before


def test_the_digest_of_an_adapter_is_that_of_both_its_folders(folder, pairs, tmp_path):
    base = shutil.copytree(folder, tmp_path / "base")
    words = ["--model", str(base), "--method", "sft", "--data", pairs, "--lora-rank", "2"]
    assert main(["train", *words, "--out", str(tmp_path / "r")]) == 0
    adapter = tmp_path / "r" / "adapter"
    digests = {model_digest(base), model_digest(adapter)}
    for changed in adapter / "adapter_model.safetensors", base / "model.safetensors":
        changed.write_bytes(changed.read_bytes()[:-1] + b"~")
        digests.add(model_digest(adapter))
    assert len(digests) == 4


# ------------------------------------------------------------------------- learning rate, device

@pytest.mark.parametrize("width, more, status", [
    ("wide", [], 2), ("wide", ["--lora-rank", "4"], 2), ("narrow", [], 0)])
def test_a_large_model_must_be_given_its_learning_rate(
    folder, pairs, tmp_path, capsys, width, more, status
):
    base = shutil.copytree(folder, tmp_path / "base")
    if width == "wide":
        config = json.loads((base / "config.json").read_text())
        config |= {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2}
        config.pop("head_dim", None)
        (base / "config.json").write_text(json.dumps(config))
    words = ["--model", str(base), "--method", "sft", "--data", pairs, *more]
    assert main(["train", *words, "--out", str(tmp_path / "r")]) == status
    if status:
        said = capsys.readouterr().err
        assert "million parameters" in said and "5e-7 to 2e-6" in said and "1e-4" in said
        assert not (tmp_path / "r").exists()
    else:
        assert json.loads((tmp_path / "r" / "config.json").read_text())["lr"] == 5e-4


def test_auto_is_the_best_device_there_is(monkeypatch):
    for cuda, mps, expected in [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: bool(mps))
        assert pick_device("auto") == expected and pick_device("cuda:1") == "cuda:1"
    assert check_device("auto") == "cpu"


def test_a_torch_without_cuda_says_where_to_get_one(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match="built without CUDA; install a build for your GPU"):
        check_device("cuda")


def test_the_bar_tells_loss_speed_and_memory(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("minialign.progress.EVERY", 0.0)
    assert run("r", "4") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    assert len(lines) == 10
    for word in "loss ", " answer tokens/s", "at most ", " GiB":
        assert word in lines[-1]
    assert Path(tmp_path / "r" / "model").is_dir()
