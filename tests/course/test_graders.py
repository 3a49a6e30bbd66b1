"""Every grader knows right from wrong, and which wrong.

A new grader needs an entry in WRONG of answers_*.py: what readers might plausibly write, and a
piece of the sentence each of them must hear.
"""

import answers_ground
import answers_methods
import answers_worlds
import pytest
import torch

from lessons import check
from lessons.judge import RIGHT, WRONG, grade
from minialign.methods import METHODS, build_method
from minialign.methods.method import Method

GROUPS = (answers_ground, answers_methods, answers_worlds)
SOLVED, MISTAKEN = {}, {}
for group in GROUPS:
    SOLVED |= group.SOLVED
    MISTAKEN |= group.WRONG
MISTAKES = [(name, *mistake) for name, mistakes in MISTAKEN.items() for mistake in mistakes]


def constant(value, several):
    """An answer that looks at nothing."""
    return lambda *inputs: (value,) * several if several > 1 else value


def how_many(name):
    """How many values the answer to an exercise has: graders complain about a wrong number."""
    complaint = getattr(check, name)(constant(0, 9))
    return complaint.split("it should return ")[1].count(",") + 1


@pytest.mark.parametrize("name", SOLVED)
def test_right_answers_are_right(name):
    assert getattr(check, name)(SOLVED[name]).startswith(check.RIGHT)


@pytest.mark.parametrize("name, function, words", MISTAKES)
def test_wrong_answers_are_told_what_is_wrong(name, function, words):
    verdict = getattr(check, name)(function)
    assert verdict.startswith(check.WRONG) and words in verdict


def test_every_grader_is_tested():
    assert set(SOLVED) == set(MISTAKEN)
    assert all(len(mistakes) >= 3 for mistakes in MISTAKEN.values())


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_blank_is_no_mistake(name):
    for blank in (lambda *inputs: ..., lambda *inputs: None, lambda *inputs: 2 * ...):
        assert getattr(check, name)(blank).startswith(check.BLANK)


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_function_that_stops_does_not_stop_the_lesson(name):
    verdict = getattr(check, name)(lambda *inputs: 1 / 0)
    assert verdict.startswith(check.WRONG)
    assert "line" in verdict and "test_graders.py: ZeroDivisionError" in verdict


@pytest.mark.parametrize("name", MISTAKEN)
def test_no_constant_is_right_up_to_a_factor(name):
    several = how_many(name)
    for value in 0, 1, 42:
        verdict = getattr(check, name)(constant(value, several))
        assert "up to a factor" not in verdict, value


# A method with a memory is the slope of no loss, and one that prepares data needs a model for it.
ABLE = [name for name, kind in METHODS.items()
        if kind.prepare_data is Method.prepare_data and not build_method(name, {}, 3).state_dict()]


@pytest.mark.parametrize("name", ABLE)
def test_our_own_methods_keep_the_laws_that_a_readers_method_is_judged_by(name):
    assert check.method(METHODS[name]).startswith(check.RIGHT)


# -------------------------------------------------------------------------------------- the judge

CASES = [(torch.tensor([1.0, 2.0]),), (torch.tensor([3.0, -1.0, 0.5]),)]


def verdict_on(function, **more):
    """The judge's verdict where the cube of every number is asked for."""
    return grade(function, CASES, lambda x: {"cube": x**3}, {}, "well done.", **more)


def test_a_factor_must_be_the_same_in_all_tests():
    assert "yours is 2 times" in verdict_on(lambda x: 2 * x**3)
    assert "up to a factor" not in verdict_on(lambda x: len(x) * x**3)
    assert "up to a factor" not in verdict_on(lambda x: 0 * x)


def test_lists_and_what_torch_would_repeat_are_accepted():
    assert verdict_on(lambda x: [float(one) ** 3 for one in x]).startswith(RIGHT)
    assert verdict_on(lambda x: [one**3 for one in x]).startswith(RIGHT)
    same = grade(lambda x: 2.0, CASES, lambda x: {"two": torch.full_like(x, 2)}, {}, "yes.")
    assert same.startswith(RIGHT)
    two = grade(lambda x: [x, 2 * x], CASES, lambda x: {"one": x, "two": 2 * x}, {}, "yes.")
    assert two.startswith(RIGHT)
    assert "its shape is (1, 2) where (2,)" in verdict_on(lambda x: x[None] ** 3)


def test_only_some_exercises_have_a_place_that_overflows():
    def spoilt(x):
        return x / 0

    assert verdict_on(spoilt) == f"{WRONG}: there is an inf or a nan in it."
    assert verdict_on(spoilt, overflow="Look there.").endswith("in it. Look there.")


def test_the_line_is_the_readers_own():
    def reader(x):
        y = x + 1
        return y.view(17)

    line = reader.__code__.co_firstlineno + 2
    assert f"stopped in line {line} of test_graders.py: RuntimeError" in verdict_on(reader)
