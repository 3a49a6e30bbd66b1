"""Runs that are stopped and go on: bit for bit where nothing has changed, and otherwise refused."""

import copy
import signal

import pytest
import torch
from conftest import ROWS, read, write
from terminal import stopped

from minialign import METHODS, Example, Recipe, build_method, fit
from minialign.__main__ import main
from minialign.optim import AdamW
from minialign.verbs.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    """A long run that nobody has stopped: the words of its command, and where it is."""
    place = tmp_path_factory.mktemp("straight")
    data = write(place / "pairs.jsonl", ROWS)
    words = [
        "train", "--model", folder, "--method", "ift", "--data", data, "--epochs", "150",
        "--batch", "4", "--checkpoint-every", "7", "--threads", "1", "--out"]
    assert main([*words, str(place / "run")]) == 0
    return words, place / "run"


@pytest.mark.parametrize(
    "stops", [(signal.SIGKILL, signal.SIGKILL), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_run_that_is_stopped_and_resumed_ends_bit_for_bit_like_one_that_was_not(
    straight, tmp_path, stops
):
    words, straight = straight
    run = tmp_path / "run"
    for again, how in enumerate(stops):
        errors = stopped([*words, str(run), *["--resume"] * again], run / "log.jsonl", how, 20)
        assert not (run / "model").exists() and (run / "checkpoint.safetensors").exists()
        assert how == signal.SIGKILL or "--resume" in errors and "Traceback" not in errors
    assert main([*words, str(run), "--resume"]) == 0
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, straight)]
    losses = [[row["loss"] for row in read(folder / "log.jsonl")] for folder in (run, straight)]
    assert weights[0] == weights[1] and losses[0] == losses[1]


def test_resuming_another_run_is_refused(folder, pairs, tmp_path, capsys):
    words = [
        "train", "--model", folder, "--method", "sft", "--data", pairs, "--out",
        str(tmp_path / "run")]
    assert main(words) == 0
    for change, sentence in [
        (["--lr", "1e-2", "--resume"], "--lr was 0.0005 and is now 0.01"),
        ([], "is not empty; add --resume"),
    ]:
        assert main([*words, *change]) == 2
        assert sentence in capsys.readouterr().err
    moved = write(tmp_path / "moved.jsonl", ROWS)
    assert main([moved if word == pairs else word for word in words] + ["--resume"]) == 0, (
        "the same data elsewhere are the same"
    )
    write(tmp_path / "pairs.jsonl", ROWS[:-1])
    assert main([*words, "--resume"]) == 2
    assert "the file given as --data has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda run: (run / "config.json").write_text("[]"), "config.json is damaged"),
        (
            lambda run: (run / "log.jsonl").write_text((run / "log.jsonl").read_text()[:-30]),
            "does not hold the 3 updates",
        ),
        (
            lambda run: (run / "checkpoint.safetensors").write_bytes(b"x" * 50),
            "is not a checkpoint of this run",
        ),
    ],
)
def test_a_damaged_run_is_not_continued(folder, pairs, tmp_path, capsys, damage, sentence):
    words = [
        "train", "--model", folder, "--method", "dpo", "--data", pairs, "--batch", "4", "--out",
        str(tmp_path / "run")]
    assert main(words) == 0
    (tmp_path / "run" / "reference.json").write_text("")  # this one is computed again
    assert main([*words, "--resume"]) == 0
    damage(tmp_path / "run")
    assert main([*words, "--resume"]) == 2 and sentence in capsys.readouterr().err


def token_pairs(n=12, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def ids(k):
        return torch.randint(1, 50, (k,), generator=draw).tolist()

    return [Example(i, ids(2 + i % 3), [ids(3 + i % 2), ids(2), ids(4)]) for i in range(n)]


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["dft2", "ift"])
def test_resuming_continues_bit_for_bit(model, name, tmp_path):
    """Eight updates, against five, a checkpoint, all objects made anew, and three more."""
    model = model.float()
    examples, recipe = token_pairs(), Recipe(epochs=2, batch=3, negatives=1, lr=1e-2)
    whole, start = copy.deepcopy(model), copy.deepcopy(model)
    expected = list(fit(whole, build_method(name, {}, 12), examples, recipe))
    method, optimizer = build_method(name, {}, 12), AdamW(dict(model.named_parameters()))
    for record in fit(model, method, examples, recipe, optimizer):
        if record["step"] == 5:
            save_checkpoint(tmp_path / "c.safetensors", model, optimizer, method, 5)
            break
    method, optimizer = build_method(name, {}, 12), AdamW(dict(start.named_parameters()))
    step = load_checkpoint(tmp_path / "c.safetensors", start, optimizer, method)
    rest = list(fit(start, method, examples, recipe, optimizer, step))
    assert [r["loss"] for r in rest] == [r["loss"] for r in expected[5:]]
    assert all(
        torch.equal(a, b)
        for a, b in zip(parameters(whole).values(), parameters(start).values(), strict=True)
    )


def test_a_damaged_checkpoint_is_named(model, tmp_path):
    path = tmp_path / "c.safetensors"
    method, optimizer = METHODS["sft"](), AdamW(dict(model.named_parameters()))
    save_checkpoint(path, model, optimizer, method, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="c.safetensors is not a checkpoint of this run"):
        load_checkpoint(path, model, optimizer, method)
