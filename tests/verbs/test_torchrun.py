"""train, sample and evaluate in several processes, as torchrun starts them, on the CPU."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROWS, read, write
from safetensors.torch import load_file
from terminal import wait_for

from minialign import parallel
from minialign.__main__ import VERBS, main
from minialign.verbs.flags import say

HERE = Path(__file__).parent
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(n, *words):
    """torchrun, started."""
    knows = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(
        [*LAUNCH, str(n), *words], env=knows, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


def close(folder, other):
    """Do two model folders hold the same parameters, but for rounding?"""
    a, b = (load_file(Path(path, "model.safetensors")) for path in (folder, other))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"train", "sample", "evaluate"}))
def test_a_verb_that_several_processes_cannot_share_is_refused(verb, folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    needed = {"study": ["gamma"], "generate": ["--model", folder, "--prompt", "a"],
              "bench": ["head"]}
    assert main([verb, *needed.get(verb, [])]) == 2
    assert f"start it without torchrun: python -m minialign {verb}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def files(tmp_path_factory, folder):
    """The commands that all tests here give; OUT stands for a folder."""
    place = tmp_path_factory.mktemp("torchrun")
    data = write(place / "pairs.jsonl", [{**row, "prompt": row["prompt"] * 2} for row in ROWS])
    held_out = ["--eval-data", data, "--eval-every", "2", "--keep-best", "--lora-rank", "4"]
    return {
        "sample": ["sample", "--model", folder, "--data", data, "--batch", "5", "--k", "3",
                   "--max-new-tokens", "6", "--out", "OUT/pool.jsonl"],
        "adapters": ["train", "--model", folder, "--method", "dpo", "--data", data, "--batch", "5",
                     "--lr", "1e-2", *held_out, "--out", "OUT/adapters"],
        "inside": ["train", "--model", folder, "--method", "sft", "--data", data, "--batch", "5",
                   "--inside-backward", "--out", "OUT/inside"],
        "evaluate": ["evaluate", "--model", folder, "--data", data, "--batch", "5", "--json",
                     "--generate", "7", "--max-new-tokens", "5"],
        "long": ["train", "--model", folder, "--method", "dft2", "--data", data, "--batch", "5",
                 "--negatives", "OUT/pool.jsonl", "--epochs", "20", "--lr", "1e-3",
                 "--checkpoint-every", "10", "--out", "OUT/long"],
    }


def into(out, words):
    return [word.replace("OUT", str(out)) for word in words]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder for what one process writes."""
    return tmp_path_factory.mktemp("one")


@pytest.fixture(scope="module")
def interrupted(files, one, tmp_path_factory):
    """All commands in two processes, and meanwhile here. The last ends with Ctrl-C to torchrun.

    →   where the two wrote, what one and what two printed, and what two said on standard error
    """
    def alone(name):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main(into(one, files[name])) == 0
        return said.getvalue()

    two = tmp_path_factory.mktemp("two")
    commands = [into(two, words) for words in files.values()]
    process = torchrun(2, str(HERE / "several.py"), json.dumps(commands))
    printed_here = {name: alone(name) for name in ("sample", "adapters", "evaluate")}
    wait_for(two / "long" / "log.jsonl", 3, process)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    return two, printed_here | {"long": alone("long")}, printed, errors


def test_two_processes_write_what_one_writes(one, interrupted):
    two, printed_here, printed, errors = interrupted

    # The same pool, and the same marks; all is printed once. What follows is the run's beginning.
    assert (two / "pool.jsonl").read_text() == (one / "pool.jsonl").read_text()
    _, marks, rest = printed.partition(f"\n{printed_here['evaluate']}")
    assert marks and printed_here["long"].startswith(rest) and rest.count("\n") > 1, errors
    assert printed.count("12 prompts with 3 answers each") == 1

    # The same run: its log but for rounding, its files, and no second copy of anything.
    logs = [read(out / "adapters" / "log.jsonl") for out in (one, two)]
    for ours, theirs in zip(*logs, strict=True):
        assert list(ours) == list(theirs)
        both = {key: theirs[key] for key in ours if key not in ("seconds", "wins", "margin")}
        assert both == pytest.approx({key: ours[key] for key in both}, rel=1e-4)
    listed = [sorted(file.name for file in (out / "adapters").rglob("*")) for out in (one, two)]
    assert listed[0] == listed[1] and close(one / "adapters/model", two / "adapters/model")
    assert "--inside-backward is for a single process; leave it out" in printed
    assert not (two / "inside").exists()                # made for the run, and not used


def test_a_run_goes_from_two_processes_to_three_and_to_one(files, one, interrupted):
    """Ctrl-C to torchrun ends all and keeps a checkpoint; a dead process ends the others."""
    out, _, _, errors = interrupted
    words, log = into(out, files["long"]), out / "long" / "log.jsonl"
    assert errors.count("the same command with --resume goes on from there") == 1, errors
    done = len(read(log))
    assert 3 <= done < 60

    process = torchrun(3, "-m", "minialign", *words, "--resume")
    wait_for(log, done + 12, process)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert "another process of this run has ended" in errors and "FAILED" in errors, errors

    assert main([*words, "--resume"]) == 0
    assert [record["step"] for record in read(log)] == list(range(1, 61))
    assert close(one / "long/model", out / "long/model")


def test_what_all_processes_have_to_say_is_said_once(monkeypatch, capsys):
    """The first speaks at once. Any other waits, and by then torchrun has ended it."""
    for rank, slept in (0, []), (1, [3]):
        naps = []
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(time, "sleep", naps.append)
        say("no such file")
        say("interrupted", by_all=False)
        assert naps == slept
    assert capsys.readouterr().err == "no such file\ninterrupted\nno such file\n"
