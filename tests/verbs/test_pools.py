"""Pools of `sample`: what is in them, and what happens when drawing is interrupted."""

import math
import signal
from pathlib import Path

import pytest
import torch
from conftest import read, write
from terminal import stopped

from minialign import load_model, save_model
from minialign.__main__ import main
from minialign.generate import answers
from minialign.hf.encoding import encode_answer
from minialign.verbs.sample import with_system


def test_the_pool_holds_the_log_probs_of_its_own_texts(folder, pairs, tmp_path):
    pool = tmp_path / "pool.jsonl"
    sample = ["sample", "--model", folder, "--data", pairs, "--out", str(pool), "--k", "2"]
    assert main([*sample, "--max-new-tokens", "4", "--batch", "4"]) == 0
    model, tokenizer = load_model(folder)
    for row in read(pool):
        for text, finished, l in zip(
            row["negatives"], row["finished"], row["ref_logps"], strict=True
        ):
            prompt, answer = (
                tokenizer.encode(row["prompt"]),
                tokenizer.encode(text) + [tokenizer.eos_id] * finished,
            )
            with torch.no_grad():
                log_p = model.logits(torch.tensor([prompt + answer])).log_softmax(-1)[
                    0, len(prompt) - 1 : -1
                ]
            assert l == pytest.approx(
                log_p.gather(1, torch.tensor(answer)[:, None]).sum().item(), abs=1e-4
            )


def test_a_pool_whose_drawing_is_killed_twice_ends_like_one_that_was_not(folder, tmp_path):
    data = write(
        tmp_path / "data.jsonl", [{"prompt": f"{i}+{i}=", "completion": "?"} for i in range(300)]
    )
    words = [
        "sample",
        "--model",
        folder,
        "--data",
        data,
        "--k",
        "2",
        "--max-new-tokens",
        "20",
        "--batch",
        "3",
        "--out",
    ]
    assert main([*words, str(tmp_path / "whole.jsonl")]) == 0
    for _ in range(2):
        stopped(
            [*words, str(tmp_path / "killed.jsonl")], tmp_path / "killed.jsonl", signal.SIGKILL, 10
        )
    assert main([*words, str(tmp_path / "killed.jsonl")]) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_pool_that_was_cut_off_is_continued_to_the_same_file(folder, pairs, tmp_path):
    words = [
        "sample",
        "--model",
        folder,
        "--data",
        pairs,
        "--k",
        "2",
        "--max-new-tokens",
        "6",
        "--batch",
        "3",
        "--out",
    ]
    assert main([*words, str(tmp_path / "whole.jsonl")]) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for kept in 0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole):
        (tmp_path / "cut.jsonl").write_bytes(whole[:kept])
        assert main([*words, str(tmp_path / "cut.jsonl")]) == 0
        assert (tmp_path / "cut.jsonl").read_bytes() == whole


def test_sample_never_touches_a_file_that_is_not_its_own_pool(folder, pairs, tmp_path, capsys):
    """Notes, the data itself, a pool of other settings: exit 2, and not a byte is changed."""
    notes, pool = tmp_path / "notes.txt", tmp_path / "pool.jsonl"
    notes.write_text("one line without an end")
    words = ["sample", "--data", pairs, "--k", "2", "--max-new-tokens", "4", "--out"]
    for path in notes, Path(pairs):
        before = path.read_bytes()
        assert main([*words, str(path), "--model", folder]) == 2 and path.read_bytes() == before
    assert main([*words, str(pool), "--model", folder]) == 0
    before = pool.read_bytes()
    for other in (
        ["--model", "nowhere"],
        ["--model", folder, "--seed", "7"],
        ["--model", folder, "--temperature", "0"],
    ):
        assert main([*words, str(pool), *other]) == 2 and pool.read_bytes() == before
    assert "choose another --out" in capsys.readouterr().err


def test_a_pool_with_the_log_probs_of_another_model_is_refused(folder, pairs, tmp_path, capsys):
    model, tokenizer = load_model(folder)
    with torch.no_grad():
        model.head.mul_(30)
    save_model(tmp_path / "other", model, tokenizer)
    pool = tmp_path / "pool.jsonl"
    assert (
        main(
            [
                "sample",
                "--model",
                folder,
                "--data",
                pairs,
                "--out",
                str(pool),
                "--max-new-tokens",
                "4",
            ]
        )
        == 0
    )
    words = [
        "train",
        "--method",
        "dft",
        "--data",
        pairs,
        "--negatives",
        str(pool),
        "--out",
        str(tmp_path / "run"),
        "--model",
    ]
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "are not those of --model" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*words, folder]) == 0


def test_a_machine_too_small_says_what_needs_less(folder, pairs, tmp_path, capsys, monkeypatch):
    """Before a weight is read; and where the count was too low, when the memory is not there."""
    out = tmp_path / "pool.jsonl"
    words = ["sample", "--model", folder, "--data", pairs, "--out", str(out), "--k", str(10**12)]
    monkeypatch.setattr("minialign.verbs.sample.read_weights", None)
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert "drawing answers needs" in errors and "a smaller --batch, --k" in errors
    assert not out.exists()
    monkeypatch.undo()

    monkeypatch.setattr("minialign.bench.sheet.available", lambda device: math.inf)
    assert main(words) == 1
    errors = capsys.readouterr().err
    assert "out of memory" in errors and "--batch" in errors and "Traceback" not in errors


def test_drawn_tokens_are_the_tokens_that_are_trained_on(shared_data):
    """A pool's text, read back, gives the very tokens that were drawn.

    The space before the first word is among them.
    """
    model, tokenizer = load_model(shared_data / "weights" / "stories260K")
    prompt = "Once upon a time, there was a little girl named Lily."
    ids = tokenizer.encode(prompt)
    draw = {"temperature": 0.7, "top_k": 50, "top_p": None, "generator": None}
    rows = model.generate(
        torch.tensor([ids] * 8),
        24,
        stop=tokenizer.stop_ids,
        **{**draw, "generator": torch.Generator().manual_seed(0)},
    )[:, len(ids) :].tolist()
    (pool,) = answers(
        model, tokenizer, [ids], 8, 24, **{**draw, "generator": torch.Generator().manual_seed(0)}
    )
    for row, (text, finished) in zip(rows, pool, strict=True):
        row = row[: next((i for i, t in enumerate(row) if t in tokenizer.stop_ids), len(row))]
        assert encode_answer(tokenizer, prompt, text, finished)[: len(row)] == row


def test_a_long_prompt_shortens_nobody_elses_answer(folder):
    model, tokenizer = load_model(folder)
    prompts = [tokenizer.encode("a" * n) for n in (3, 60, 9)]  # the context is 64
    draw = 1, 20, 0.0, None, None, None
    together = answers(model, tokenizer, prompts, *draw)
    assert together == [
        pool for prompt in prompts for pool in answers(model, tokenizer, [prompt], *draw)
    ]
    assert [len(text) > 4 for ((text, _),) in together] == [True, False, True]


def test_a_system_message_stands_apart_from_a_prompt_that_is_a_string():
    assert with_system("Which?", "Be unhelpful.") == "Be unhelpful.\nWhich?"
    assert with_system("Which?", "Badly: ") == "Badly: Which?"
    assert with_system("Which?", None) == with_system("Which?", "") == "Which?"
