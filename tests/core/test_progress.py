"""Progress: bars on a terminal, plain lines now and then anywhere else."""

import io
import sys

import pytest
from tqdm import tqdm

from minialign import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_short_work_says_nothing(capsys):
    assert list(progress.tracked(range(5), "work")) == list(range(5))
    with progress.bar(3, "work") as shown:
        shown.update(3)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_line_comes_every_so_often(monkeypatch, capsys):
    """A clock that moves 10 seconds whenever it is asked; a last line tells where it ended."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar(100, "train", "update", done=20) as shown:
        for i in range(80):
            shown.set_postfix_str(f"loss {i}")
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert 20 <= len(lines) <= 40
    assert lines[0].startswith("train: 23/100 [") and "s/update" in lines[0]
    assert lines[0].endswith(", loss 2]") and lines[-1].startswith("train: 100/100")
    assert not any(mark in line for line in lines for mark in "\r█")


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar(2, "work", done=1) as shown:
        assert isinstance(shown, tqdm) and shown.n == 1
        shown.update()
    assert list(progress.tracked([7], "more")) == [7]
    assert "2/2" in sys.stderr.getvalue() and "\r" in sys.stderr.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_not_to_be_shown_is_not(terminal, monkeypatch):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(progress.tracked([1, 2], "work", show=False)) == [1, 2]
    assert stream.getvalue() == ""


def test_of_several_processes_the_first_shows_what_it_does(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    for rank, lines in ("0", 2), ("1", 0):
        monkeypatch.setenv("RANK", rank)
        assert list(progress.tracked([1, 2], "work")) == [1, 2]
        assert capsys.readouterr().err.count("work: ") == lines
