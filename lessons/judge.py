"""How an answer to an exercise is judged: against the truth, then against plausible mistakes.

The reader's function runs only to be judged, on copies of the inputs. Whatever it does, the lesson
goes on.
"""

import copy
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

BLANK, WRONG, RIGHT = "STILL BLANK", "NOT YET", "RIGHT"


def grade(
    function: Callable,
    cases: list[tuple],
    truth: Callable,
    mistakes: dict[str, dict[str, Callable]],
    praise: str,
    rtol: float = 1e-4,
    overflow: str = "",
) -> str:
    """Judge the reader's function: one sentence that begins with STILL BLANK, NOT YET or RIGHT.

    cases     the inputs of every test
    truth     inputs → {name: number or tensor}; the reader's function returns these values, in
              this order
    mistakes  {name: {what to say: inputs → the value that this mistake would give}}, the likeliest
              mistake first
    praise    what to say when all is right
    overflow  where to look for an inf or a nan, if this exercise has such a place
    """
    # Ask the reader's function for its answer to every test.
    returned = []
    for inputs in cases:
        try:
            returned.append(function(*copy.deepcopy(inputs)))
        except Exception as error:              # whatever the reader wrote, the lesson goes on
            if "ellipsis" in str(error).lower():
                return blank(function)
            return f"{WRONG}: your function stopped{place_of(error, function)}: {described(error)}"
        if any(value is None or value is ... for value in as_tuple(returned[-1], 2)):
            return blank(function)

    # It should have returned as many values as there are names, and numbers all of them.
    wanted = [truth(*copy.deepcopy(inputs)) for inputs in cases]
    names = list(wanted[0])
    answers = []
    for values in returned:
        values = as_tuple(values, len(names))
        if len(values) != len(names):
            several = f"your function returns {len(values)} value(s)"
            return f"{WRONG}: {several}; it should return {', '.join(names)}."
        try:
            answers.append([number(value) for value in values])
        except (TypeError, ValueError, RuntimeError):
            kinds = ", ".join(type(value).__name__ for value in values)
            return f"{WRONG}: your function should return numbers or tensors, not {kinds}."

    # Compare value by value, so that the reader hears which of several is right already.
    good = []
    for i, name in enumerate(names):
        got = [answer[i] for answer in answers]
        want = [number(values[name]) for values in wanted]
        problem = what_is_wrong(got, want, cases, mistakes.get(name, {}), rtol, overflow)
        if problem is None:
            good.append(name)
            continue
        right = ""
        if good:
            right = f"{' and '.join(good)} {'is' if len(good) == 1 else 'are'} right. "
        which = f"{name}: " if len(names) > 1 else ""
        return f"{WRONG}: {right}{which}{problem}"
    return f"{RIGHT}: {praise}"


def what_is_wrong(
    got: list[Tensor],
    want: list[Tensor],
    cases: list[tuple],
    mistakes: dict[str, Callable],
    rtol: float,
    overflow: str,
) -> str | None:
    """The mistake that explains all answers, in words; None if there is nothing to explain."""
    for mine, true in zip(got, want, strict=True):
        if not fits(mine, true):
            return f"its shape is {tuple(mine.shape)} where {tuple(true.shape)} is wanted."
    got = [mine.broadcast_to(true.shape) for mine, true in zip(got, want, strict=True)]
    if alike(got, want, rtol):
        return None

    # What somebody would get who made one of the mistakes that this exercise expects.
    for sentence, mistaken in mistakes.items():
        values = [number(mistaken(*copy.deepcopy(inputs))) for inputs in cases]
        if all(map(fits, values, want)) and alike(got, values, rtol):
            return sentence

    # Mistakes that every exercise knows.
    if not all(mine.isfinite().all() for mine in got):
        return f"there is an inf or a nan in it. {overflow}".rstrip()
    if alike([-mine for mine in got], want, rtol):
        return "right up to the sign."
    factor = common_factor(got, want)
    if factor is not None and alike(got, [factor * true for true in want], rtol):
        return f"right up to a factor: yours is {factor:.4g} times what it should be."
    return first_difference(got, want, rtol)


def common_factor(got: list[Tensor], want: list[Tensor]) -> float | None:
    """The one number by which the answers to all tests may be too large; None if there is none.

    A constant answer, 0 for instance, is no answer up to a factor, whatever the truth is.
    """
    mine = torch.cat([x.flatten() for x in got])
    true = torch.cat([x.flatten() for x in want])
    constant = bool((mine == mine[0]).all())
    if constant or not true.any():
        return None
    factor = float((mine @ true) / (true @ true))
    return factor if factor != 0 else None


def first_difference(got: list[Tensor], want: list[Tensor], rtol: float) -> str:
    """Which numbers are off, if nothing better is known about them."""
    for case, (mine, true) in enumerate(zip(got, want, strict=True), start=1):
        off = ~torch.isclose(mine, true, rtol=rtol, atol=1e-6)
        if off.any():
            at = off.nonzero()[0].tolist()
            where = f" at {at}" if at else ""
            count = f"in test {case} of {len(want)}, {int(off.sum())} of {true.numel()} numbers"
            yours, should = float(mine[tuple(at)]), float(true[tuple(at)])
            return f"{count} are off; the first{where} is {yours:.5g} and should be {should:.5g}."
    raise AssertionError("nothing is off")


def alike(a: list[Tensor], b: list[Tensor], rtol: float) -> bool:
    """Whether all numbers agree; a number in b may stand for as many as a has."""
    return all(torch.allclose(x, y, rtol=rtol, atol=1e-6) for x, y in zip(a, b, strict=True))


def fits(mine: Tensor, true: Tensor) -> bool:
    """Whether an answer has the wanted shape, or would be repeated to it by torch's own rules."""
    try:
        return torch.broadcast_shapes(mine.shape, true.shape) == true.shape
    except RuntimeError:
        return False


def number(value) -> Tensor:
    """A number, a tensor, or lists of them, as float64."""
    if isinstance(value, list | tuple):
        return torch.stack([number(one) for one in value])
    return torch.as_tensor(value).detach().double()


def as_tuple(values, several: int) -> tuple:
    """What a function returned as a tuple of values. A list counts as one where several are due."""
    if isinstance(values, tuple) or (several > 1 and isinstance(values, list)):
        return tuple(values)
    return (values,)


def blank(function: Callable) -> str:
    name = getattr(function, "__name__", "it")
    return f"{BLANK}: fill in the “...” of `{name}` and run this again."


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def place_of(error: Exception, function: Callable) -> str:
    """The line of the reader's own code in which an exception arose."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno} of {Path(error.filename).name}"
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == code.co_filename]
    return f" in line {own[-1]} of {Path(code.co_filename).name}" if own else ""
