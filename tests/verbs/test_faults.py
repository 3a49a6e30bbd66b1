"""Odd flags and data, dying processes and odd terminals: every test here once failed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write
from terminal import command, refused, train

from minialign.__main__ import main
from minialign.files import UNFINISHED


@pytest.mark.parametrize("more, sentence", [
    (["--device", "hpu"], "cannot be used here"),
    (["--method", "ift", "--lam", "1e300"], "lam"),
    (["--lora-rank", "2", "--lora-targets", ""], "no layer is called ''"),
    (["--lora-targets", ""], "give --lora-rank"),
    (["--data", "/dev/zero"], "a pipe or a device")])
def test_odd_flags_are_a_sentence(folder, pairs, tmp_path, capsys, more, sentence):
    refused(train(folder, pairs, tmp_path / "run", *more), capsys, sentence)
    assert not (tmp_path / "run").exists()


def test_a_pipe_is_no_data_file(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    for verb in ["evaluate"], ["sample", "--out", str(tmp_path / "p")]:
        refused([*verb, "--model", folder, "--data", tmp_path / "fifo"], capsys, "a pipe")


def test_a_text_that_no_model_could_read_is_refused(folder, tmp_path, capsys):
    rows = [{"prompt": "a" * 10_000_001, "completion": "b"}]
    data = write(tmp_path / "d.jsonl", rows)
    refused(["evaluate", "--model", folder, "--data", data], capsys, "10,000,001 characters")


def test_control_characters_of_data_do_not_reach_the_terminal(folder, tmp_path, capsys):
    rows = [{"prompt": "a\x1b]0;title\x07", "completion": "b\x9b31m"}]
    data = write(tmp_path / "d.jsonl", rows)
    assert main(["evaluate", "--model", folder, "--data", data, "--generate", "1"]) == 0
    assert main(["generate", "--model", folder, "--prompt", "a\x1b[2J"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x9b" not in said and "\x07" not in said


# ---------------------------------------------------------------------------- processes, terminals


def children(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_go_when_their_parent_does(tmp_path, how):
    process = subprocess.Popen(
        command("compare", "--seeds", "2", "--out", str(tmp_path / "out")),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cache, workers = tmp_path / "out" / "cache", []
    for _ in range(600):
        workers = children(process.pid)
        # There are a manager, a tracker, and a worker at least, which trains a base model.
        if len(workers) >= 3 and list(cache.glob(f"{UNFINISHED}*")):
            break
        time.sleep(0.1)
    assert list(cache.glob(f"{UNFINISHED}*"))
    process.send_signal(how)
    assert process.wait(timeout=30) == (-9 if how == signal.SIGKILL else 130)
    for _ in range(100):
        if not any(alive(pid) for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError("workers are left")


def test_a_terminal_that_is_not_utf8_loses_nothing():
    code = ("import sys, minialign.lab.race as race\n"
            "race.run = lambda *_: print('Δ log-prob')\n"
            "from minialign.__main__ import main\n"
            "sys.exit(main(['compare']))")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout == b"? log-prob\n"


def test_a_race_writes_its_numbers_before_it_prints(tmp_path, monkeypatch):
    from minialign.lab import race

    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(race, "race", lambda *_: {})
    monkeypatch.setattr(race, "report", broken)
    with pytest.raises(BrokenPipeError):
        race.run([0], ["sft"], str(tmp_path / "n.json"), str(tmp_path))
    assert json.loads((tmp_path / "n.json").read_text()) == {}
