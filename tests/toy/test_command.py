"""What `python -m toy` says, writes and refuses."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch

from toy import compare, labels, lake, world
from toy.__main__ import main, plain
from toy.measure import METRICS, measure
from toy.rows import CONTROLS, find_row, train_row


@pytest.fixture
def hasty(monkeypatch):
    """Initial and optimal policies that are hardly trained: these tests are about form."""
    monkeypatch.setattr(world, "TEACHING", dict.fromkeys(world.TEACHING, 2))


QUICK = ["--seeds", "2", "--steps", "3", "--methods", "sft,ift_eq21,dpo"]


def test_the_json_has_one_value_per_seed_and_does_not_change(hasty, tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        if name == "b":
            for draw in ("draw_maps", "draw_seeds"):        # drawn once is enough
                monkeypatch.setattr(compare, draw, lambda *_: "not drawn")
        where = ["--json", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name)]
        assert main([*QUICK, *where, "--first-seed", "7"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == json.loads((tmp_path / "b.json").read_text())
    assert list(found) == ["base", "sft", "ift_eq21", "dpo", *CONTROLS]
    for measured in found.values():
        assert set(METRICS) <= set(measured)
        assert all(len(values) == 2 for values in measured.values())
    pictures = {path.name for path in (tmp_path / "a").iterdir()}
    assert pictures == {"lake_maps.png", "lake_dots.png"}
    assert "Surely closer: " in capsys.readouterr().out


def test_a_path_without_neighbours_is_null(monkeypatch):
    monkeypatch.setitem(lake.OURS, "two-path", ("SHG", "FFF"))
    narrow = world.prepare("two-path", [0, 1], slippery=True)
    found = plain(measure(narrow, narrow.base))
    assert found["neighbour_accuracy"] == [None, None] and None not in found["success"]


@pytest.mark.parametrize("argv, said", [
    (["--methods", "sft,ppo"], "'ppo' is no method; choose from sft"),
    (["--methods", "kto"], "mismatched"),
    (["--methods", ","], "--methods is empty"),
    (["--study", "labels", "--map", "8x8"], "--map belongs to the comparison"),
    (["--json", "."], "is a folder; name a file"),
])
def test_bad_requests_say_what_to_type_instead(capsys, argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_run_that_diverges_says_so():
    maze = world.prepare("maze", [1], base="noisy")
    said = "SFT diverged at learning rate 1e.308; give a smaller --lr"
    with pytest.raises(FloatingPointError, match=said):
        train_row(maze, find_row("sft", 0.5), steps=3, lr=1e308, optimizer="sgd")


@pytest.mark.parametrize("argv", [
    "--seeds 0", "--lam 1.5", "--lr nan", "--lr 0", "--seeds x", "--frobnicate", "--study none",
    "--first-seed -1", "--map 9x9",
])
def test_bad_usage_exits_with_two(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = ("import atexit, sys, toy.__main__ as t; "
            "atexit.register(lambda: print('torch' in sys.modules)); t.main(['-h'])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
    assert done.returncode == 0 and "--first-seed" in done.stdout


def test_an_interrupt_exits_with_130(tmp_path):
    """Sent once the first row is done: what torch imports at its first step can swallow an earlier
    one (press Ctrl-C again)."""
    command = [sys.executable, "-u", "-m", "toy", "--seeds", "4", "--steps", "300"]
    command += ["--out", str(tmp_path)]
    # A shell lets what it starts in the background ignore Ctrl-C; the tests may run there.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    seen = b""
    while not re.search(rb" [1-9]\d*/", seen) and process.poll() is None:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)      # a shell calls both 130
    assert b"Traceback" not in error


def test_the_study_of_labels_runs_and_returns_plain_numbers(hasty, tmp_path, capsys, monkeypatch):
    few = ("sft", "ift_simple", "ift", "neighbour noise", "oracle labels")
    monkeypatch.setattr(labels, "ROWS", few)
    quick = ["--study", "labels", "--seeds", "2", "--steps", "2"]
    assert main([*quick, "--out", str(tmp_path), "--json", str(tmp_path / "j.json")]) == 0
    found = json.loads((tmp_path / "j.json").read_text())
    assert list(found) == ["maze", "corridor"] and list(found["maze"]) == list(few)
    assert found["maze"]["ift"]["off_path_first"][0] > 0
    assert capsys.readouterr().out.count("picture: ") == 1
    assert (tmp_path / "lake_labels.png").exists()
    assert plain({"x": torch.tensor([1.0, float("nan")])}) == {"x": [1.0, None]}
