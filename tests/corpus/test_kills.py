"""Kill −9 before a chosen file operation, and two processes at one place at the same moment.

`interrupt.py` counts what a command does to files, and kills it before the n-th operation. Then the
same command is given again. Run with `pytest -m corpus -s tests/corpus/test_kills.py`.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROWS, read, write

pytestmark = pytest.mark.corpus
INTERRUPT = Path(__file__).with_name("interrupt.py")
KILLS = {"train": 36, "sample": 2, "cache": 10, "compare": 6}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(words, kill_at=0, cwd=None) -> subprocess.CompletedProcess:
    """The command in a process of its own, killed before its n-th operation on a file (0: never).

    The last line of its standard error is the number of operations, if it came to its end.
    """
    command = [sys.executable, str(INTERRUPT), str(kill_at), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=300)


def operations(done) -> int:
    return int(done.stderr.strip().split("\n")[-1])


def stray(folder: Path) -> list[str]:
    """Files and folders that are no results: all that is hidden or temporary."""
    return [str(path) for path in folder.rglob("*")
            if path.name.startswith(".") or "tmp" in path.name or "unfinished" in path.name]


def result(path: Path) -> dict[str, bytes | list]:
    """The files of a result; of the log, what does not depend on the clock."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    found = {}
    for file in files:
        name = str(file.relative_to(path.parent)).partition("/")[2] or "file"
        if file.name == "log.jsonl":
            found[name] = [row["loss"] for row in read(file)]
        elif file.name == "config.json" and "method" in json.loads(file.read_text()):
            found[name] = file.name
        elif file.suffix == ".png" or file.name == "n.json":
            found[name] = file.name                 # seconds are measured
        else:
            found[name] = file.read_bytes()
    return found


def words_of(verb, folder, data, out):
    if verb == "train":
        return ["train", "--model", folder, "--data", data, "--method", "dpo", "--batch", "3",
                "--checkpoint-every", "2", "--threads", "1", "--lora-rank", "2", "--out", out]
    if verb == "sample":
        return ["sample", "--model", folder, "--data", data, "--batch", "4", "--max-new-tokens",
                "4", "--out", out / "pool.jsonl"]
    if verb == "cache":
        return ["cache", out]
    return ["compare", "--seeds", "1", "--methods", "sft", "--out", out, "--json", out / "n.json"]


@pytest.mark.parametrize("verb", KILLS)
def test_killed_anywhere_the_same_command_ends_as_if_nothing_had_been(
    verb, folder, cache, tmp_path, capfd
):
    data = write(tmp_path / "data.jsonl", ROWS)
    straight = prepared(verb, tmp_path / "straight", cache)
    done = run(words_of(verb, folder, data, straight))
    assert done.returncode == 0, done.stderr
    total, expected = operations(done), result(straight)
    assert not stray(straight)

    rng, counts = random.Random(0), Counter()
    places = sorted(rng.sample(range(1, total + 1), min(KILLS[verb], total)))
    for place in places:
        out = prepared(verb, tmp_path / f"killed{place}", cache)
        words = words_of(verb, folder, data, out)
        killed = run(words, place)
        assert killed.returncode == -9, (place, killed.stderr)
        counts["kills"] += 1
        again = run(words)
        if again.returncode == 2 and "--resume" in again.stderr:
            again = run([*words, "--resume"])
            counts["resumed"] += 1
        if again.returncode != 0:
            counts["dead ends"] += 1
            print(place, again.stderr[-500:])
            continue
        counts["as if undisturbed"] += result(out) == expected
        counts["stray files"] += len(stray(out))
        shutil.rmtree(out)
    survivors = processes(str(tmp_path))
    with capfd.disabled():
        print(f"\n{verb}: {counts['kills']} kills among {total} file operations, "
              f"{counts['as if undisturbed']} ended as if undisturbed, "
              f"{counts['dead ends']} dead ends, {counts['stray files']} stray files, "
              f"{len(survivors)} processes left")
    assert counts["as if undisturbed"] == counts["kills"] == len(places)
    assert not counts["stray files"] and not counts["dead ends"] and not survivors


def prepared(verb: str, out: Path, cache: Path) -> Path:
    """The folder for results. A race finds its base models there, which would take a minute."""
    if verb == "compare":
        shutil.copytree(cache, out / "cache")
    return out


def processes(words: str) -> list[str]:
    """Command lines of living processes that hold these words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line and "pytest" not in line.split(words)[0]:
            found.append(line)
    return found


@pytest.mark.parametrize("verb", KILLS)
def test_two_at_the_same_moment(verb, folder, cache, tmp_path, capfd):
    """Of two into one run folder or one pool, one is refused; others share what they make."""
    data = write(tmp_path / "data.jsonl", ROWS)
    straight = prepared(verb, tmp_path / "straight", cache)
    assert run(words_of(verb, folder, data, straight)).returncode == 0
    expected, refused = result(straight), 0
    for i in range(5 if verb != "compare" else 1):
        out = prepared(verb, tmp_path / f"both{i}", cache)
        words = [str(word) for word in words_of(verb, folder, data, out)]
        command = [sys.executable, str(INTERRUPT), "0", *words]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env=ENVIRONMENT) for _ in range(2)]
        said = [process.communicate(timeout=300)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 2]) and (verb != "train" or codes == [0, 2]), said
        assert not any("Traceback" in errors for errors in said)
        refused += codes == [0, 2]
        assert result(out) == expected and not stray(out)
    with capfd.disabled():
        print(f"\n{verb}: two at the same moment, {i + 1} times; one refused {refused} times, "
              "nothing mixed, no stray file")
