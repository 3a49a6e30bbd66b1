"""Hundreds of bad inputs: each must end in one sentence and status 2, soon, without a traceback.

The cases stand in bad_models.py, bad_tokenizers.py, bad_data.py and bad_runs.py. A few change
nothing that matters and may also succeed; all others must be refused. Run with
`pytest -m corpus -s tests/corpus/test_bad_inputs.py`, which prints the counts.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import traceback
from collections import Counter
from pathlib import Path

import bad_data
import bad_models
import bad_runs
import bad_tokenizers
import pytest
from cases import Place
from conftest import ROWS, write

from minialign import load_model
from minialign.__main__ import main
from minialign.hf import vocabulary

pytestmark = pytest.mark.corpus
CASES = [*bad_models.CASES, *bad_tokenizers.CASES, *bad_data.CASES, *bad_runs.CASES]
LIMIT = 60                  # seconds, after which a case counts as hanging on a slow machine
ROOM = 8 * 2**30            # bytes that a case may allocate more than there were, about


class Hang(BaseException):
    """A case took longer than LIMIT."""


def stop(*_):
    raise Hang


def outcome(words) -> str:
    """refused, accepted, traceback or hang."""
    said, errors = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                status = main([str(word) for word in words])
            except SystemExit as exit:              # argparse
                status = exit.code
    except Hang:
        return "hang"
    except BaseException:
        return "traceback: " + traceback.format_exc()[-600:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if "Traceback" in errors.getvalue():
        return "traceback: " + errors.getvalue()[-600:]
    if status == 0:
        return "accepted"
    sentence = errors.getvalue().strip().split("\n")[-1]
    return "refused" if sentence else "traceback: no words"


@pytest.fixture(scope="module")
def little_memory():
    """What wants gigabytes fails, instead of taking the machine with it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def source(tmp_path_factory, folder):
    """What every case begins with: a model, data, a pool, a finished run."""
    place = tmp_path_factory.mktemp("source")
    shutil.copytree(folder, place / "model")
    write(place / "data.jsonl", ROWS)
    here = os.getcwd()
    os.chdir(place)
    try:
        assert main(["sample", "--model", "model", "--data", "data.jsonl", "--out", "pool.jsonl",
                     "--max-new-tokens", "4"]) == 0
        assert main(["train", "--model", "model", "--data", "data.jsonl", "--method", "dpo",
                     "--batch", "4", "--out", "run"]) == 0
    finally:
        os.chdir(here)
    return place


def test_every_bad_input_is_refused_in_a_sentence(
    source, tmp_path, capfd, monkeypatch, little_memory
):
    family = vocabulary.BARE[50256]
    for n in 255, 256, 257:
        monkeypatch.setitem(vocabulary.BARE, n, family)
    counts, wrong = Counter(), []
    for number, (area, name, make, lenient) in enumerate(CASES):
        path = tmp_path / str(number)
        path.mkdir()
        place = Place(path, source)
        monkeypatch.chdir(path)
        # The run was begun with this model, wherever it lies now.
        record = path / "run" / "config.json"
        raw = json.loads(record.read_text())
        raw["model"] = str(place.model)
        record.write_text(json.dumps(raw))
        found = outcome(make(place))
        kind = found.partition(":")[0]
        if kind == "accepted" and lenient:
            kind = "accepted, as it may be"
        counts[area, kind] += 1
        if kind in ("accepted", "traceback", "hang"):
            wrong.append(f"{area}: {name}: {found}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(path)
    with capfd.disabled():
        print("\n" + report(counts))
        print("\n".join(wrong[:60]))
    assert not wrong and len(CASES) >= 500


def report(counts: Counter) -> str:
    """A table of the counts, an area in each line."""
    kinds = ("refused", "accepted, as it may be", "traceback", "hang", "accepted")
    titles = ("refused", "may pass", "traceback", "hang", "silently")
    lines = [f"{'area':<14}{'cases':>8}" + "".join(f"{title:>11}" for title in titles)]
    areas = list(dict.fromkeys(area for area, _ in counts))
    for area in (*areas, "all"):
        these = [sum(n for (a, k), n in counts.items() if k == kind and area in (a, "all"))
                 for kind in kinds]
        lines.append(f"{area:<14}{sum(these):>8}" + "".join(f"{n:>11}" for n in these))
    return "\n".join(lines)


def test_the_undamaged_place_works(source, tmp_path):
    """Else every refusal above would prove nothing."""
    place = Place(tmp_path, source)
    raw = json.loads((tmp_path / "run" / "config.json").read_text())
    raw["model"] = str(place.model)
    (tmp_path / "run" / "config.json").write_text(json.dumps(raw))
    for words in (place.evaluate(), place.resume(), place.pooled(), place.sample()):
        assert outcome(words) == "accepted", words
    assert load_model(place.model) and Path(tmp_path, "run", "model").is_dir()
