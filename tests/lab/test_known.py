"""What a study remembers of its runs: each is measured once, and an interrupted command goes on."""

import pytest

from minialign.lab.arena import Run
from minialign.lab.studies import dft, lab
from minialign.lab.studies.lab import Lab


def pretended(asked):
    """A stand-in for run_all: it notes what it is asked for, and invents the marks."""
    def run_all(runs, seeds, cache, found):
        curve = [[0, -1.0, -1.0, -2.0, -1.0], [4, -3.0, -1.0, -1.5, -4.0]]
        marks = {"right": 0.6, "agree": 0.9, "skill": 0.6, "curve": curve, "info": {"log_u": -1.0}}
        for seed in seeds:
            found(None, seed, {"right": 0.3, "agree": 0.9, "skill": 0.6})
            for label in runs:
                asked.append((label, seed))
                found(label, seed, marks)
    return run_all


def test_a_run_is_measured_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lab, "run_all", pretended(asked))
    known = lab.Known(tmp_path)
    for _ in range(2):
        data = Lab([0, 1], tmp_path, known).run({"a": Run("sft"), "b": Run("dft")})
    Lab([0, 1], tmp_path, known).run({"c": Run("dft"), "d": Run("ift")})
    Lab([1, 2], tmp_path, known).run({"a": Run("sft")})
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("d", 0), ("d", 1), ("a", 2)]
    expected = {"log_u": -1.0, "wanted_change": 0.5, "negatives_change": -3.0, "peak_lost": 2.0}
    for mark, value in expected.items():
        assert data["b"][mark] == [value, value]
    assert data["a"]["average"] == pytest.approx([0.7, 0.7]) and data["base"]["right"] == [0.3, 0.3]


def test_an_interrupted_command_goes_on_with_the_runs_that_are_missing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lab, "run_all", pretended(asked))
    runs = {"a": Run("sft"), "b": Run("dft", {"tau": 0.3}), "own": Run(dft.FloorOnly)}
    before = Lab([0, 1], tmp_path).run(runs)

    # The last line, b of seed 1, was being written when the process was killed.
    path = lab.Known(tmp_path / "cache").path
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    asked.clear()
    assert Lab([0, 1], tmp_path).run(runs) == before
    assert asked == [("own", 0), ("b", 1), ("own", 1)], "a study's own class is in no known file"

    # Of a file whose last line was cut off nothing is lost by writing on.
    asked.clear()
    Lab([0, 1], tmp_path).run({"a": Run("sft"), "b": Run("dft", {"tau": 0.3})})
    assert asked == []
