"""Every lesson runs, blank and solved, and is built like all the others.

A new lesson is found by its name.
"""

import inspect
import re
import runpy
import sys

import pytest
import torch

from lessons import check
from lessons.check import HERE
from minialign.lab import arena

EVERY = sorted(HERE.glob("[01][0-9]_*.py"))
ORDER = (
    "**The question:**",
    "**Guess first.**",
    "## Exercise",
    "## The picture",
    "check.show(",
    "## Try",
    "**Next:**",
    "# region Solution",
)
FEW = {"N_TEST": 80, "N_SKILL": 40, "N_CURVE": 24}      # questions of an exam: a shorter one


@pytest.fixture(autouse=True)
def same_threads():
    """Lessons compute on one thread; what runs after them should not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("flags", [["--fast"], ["--fast", "--solution"]], ids=["blank", "solved"])
@pytest.mark.parametrize("lesson", EVERY, ids=lambda path: path.stem)
def test_lesson(lesson, flags, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [str(lesson), *flags])
    monkeypatch.setattr(check, "OUT", tmp_path)
    for name, n in FEW.items():
        monkeypatch.setattr(arena, name, n)
    runpy.run_path(str(lesson), run_name="__main__")
    printed = capsys.readouterr().out
    assert (tmp_path / f"{lesson.stem[:2]}.png").stat().st_size > 10_000
    solved = "--solution" in flags
    assert check.WRONG not in printed
    assert (f"{check.BLANK}: " in printed) != solved
    assert (f"{check.RIGHT}: " in printed) == solved


@pytest.mark.parametrize("lesson", EVERY, ids=lambda path: path.stem)
def test_every_lesson_keeps_the_same_order_and_is_on_the_path(lesson):
    text = lesson.read_text(encoding="utf-8")
    places = [text.find(mark) for mark in ORDER]
    assert -1 not in places and places == sorted(places), dict(zip(ORDER, places, strict=True))
    assert text.startswith(f"# %% [markdown]\n# # {lesson.name[:2]} · ")
    assert f"]({lesson.name})" in (HERE / "README.md").read_text(encoding="utf-8")


def code_cells(lesson):
    """(number of the first line, lines that are not empty) of every code cell but the solution."""
    text = lesson.read_text(encoding="utf-8")
    text = text[: text.index("# region Solution")]
    for cell in re.finditer(r"^# %%\n(.*?)(?=^# %%|\Z)", text, re.DOTALL | re.MULTILINE):
        begins = text[: cell.start()].count("\n") + 1
        yield begins, [line for line in cell[1].split("\n") if line.strip()]


@pytest.mark.parametrize("lesson", EVERY, ids=lambda path: path.stem)
def test_cells_are_short_and_lines_are_of_ordinary_width(lesson):
    for begins, lines in code_cells(lesson):
        assert len(lines) <= 15, f"the cell at line {begins} has {len(lines)} lines"
    for number, line in enumerate(lesson.read_text(encoding="utf-8").split("\n"), start=1):
        assert len(line) <= 100, f"line {number} has {len(line)} characters"


# ----------------------------------------------------------------------------------- the blanks


def own_functions(functions):
    """Those functions and classes that were defined where these names come from."""
    return {name: value for name, value in functions.items()
            if callable(value) and value.__module__ == "<run_path>"}


def test_every_blank_has_one_solution_and_no_solution_lacks_its_blank(monkeypatch):
    blanks = own_functions(runpy.run_path(str(HERE / "mine.py")))
    solved = {}
    for lesson in EVERY:
        if check.solution_of(lesson).strip():
            functions = {**runpy.run_path(str(HERE / "mine.py")), "__name__": "<run_path>"}
            before = dict(functions)
            exec(check.solution_of(lesson), functions)
            new = {name for name in functions if functions[name] is not before.get(name)}
            for name in new - {"__builtins__"}:
                assert name not in solved, f"{lesson.name} and {solved[name]} both solve {name}"
                assert name in blanks, f"{lesson.name} solves {name}, which mine.py lacks"
                want, have = inspect.signature(blanks[name]), inspect.signature(functions[name])
                assert str(want) == str(have), name
                solved[name] = lesson.name
    assert set(solved) == set(blanks)


def test_the_readers_functions_are_read_again_whenever_they_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "HERE", tmp_path)
    mine, path = check.Mine(), tmp_path / "mine.py"
    path.write_text("def f(): return 1\n")
    assert mine.f() == 1
    path.write_text("def f(): return 2\n")
    assert mine.f() == 2


@pytest.mark.parametrize("wrong, words", [("def f(:", "line 1 of mine.py: SyntaxError"),
                                          ("import nowhere_at_all", "No module named")])
def test_a_damaged_mine_does_not_stop_the_lesson(wrong, words, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "HERE", tmp_path)
    (tmp_path / "mine.py").write_text(wrong)
    verdict = check.push(check.Mine().push)
    assert verdict.startswith(check.WRONG) and words in verdict


def test_without_a_command_line_the_arguments_count(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(check, "in_notebook", lambda: True)
    args = check.options(fast=True, model="stories260K")
    assert args.fast and not args.solution and args.model == "stories260K"
