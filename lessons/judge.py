"""How an answer to an exercise is judged: against the truth, then against what plausible mistakes would have given.

The reader's function runs only to be judged, on copies of the inputs; whatever it does, the lesson goes on.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

BLANK, WRONG, RIGHT = "STILL BLANK", "NOT YET", "RIGHT"


def grade(function: Callable, cases: list[tuple], truth: Callable, mistakes: dict[str, dict[str, Callable]], praise: str,
          rtol: float = 1e-4) -> str:
    """Judge the reader's function; one sentence that begins with STILL BLANK, NOT YET or RIGHT.

    cases     the inputs of every call
    truth     inputs → {name: number or tensor}; the reader's function returns these values, in this order
    mistakes  {name: {what to say: inputs → the value that this mistake would give}}, the likeliest first
    praise    what to say when all is right
    """
    wanted = [truth(*copy.deepcopy(inputs)) for inputs in cases]
    names = list(wanted[0])
    answers = []
    for inputs in cases:
        try:
            values = function(*copy.deepcopy(inputs))
        except Exception as error:              # whatever the reader wrote, the lesson goes on
            if "ellipsis" in str(error).lower():
                return f"{BLANK}: fill in the “...” and run this cell again."
            return f"{WRONG}: your function stopped with {type(error).__name__}: {error}"
        values = values if isinstance(values, tuple) else (values,)
        if any(value is None or value is ... for value in values):
            return f"{BLANK}: fill in the “...” and run this cell again."
        if len(values) != len(names):
            return f"{WRONG}: your function returns {len(values)} value(s); it should return {', '.join(names)}."
        try:
            answers.append({name: number(value) for name, value in zip(names, values, strict=True)})
        except (TypeError, ValueError, RuntimeError):
            return f"{WRONG}: your function should return numbers or tensors, not {', '.join(type(v).__name__ for v in values)}."
    good = []
    for name in names:
        got, want = [answer[name] for answer in answers], [number(values[name]) for values in wanted]
        if problem := what_is_wrong(got, want, cases, mistakes.get(name, {}), rtol):
            right = f"{' and '.join(good)} {'is' if len(good) == 1 else 'are'} right. " * bool(good)
            return f"{WRONG}: {right}{name + ': ' if len(names) > 1 else ''}{problem}"
        good.append(name)
    return f"{RIGHT}: {praise}"


def what_is_wrong(got: list[Tensor], want: list[Tensor], cases: list[tuple], mistakes: dict[str, Callable],
                  rtol: float) -> str | None:
    """The mistake that explains all answers, in words; None if there is none to explain."""
    for mine, true in zip(got, want, strict=True):
        if mine.shape != true.shape:
            return f"its shape is {tuple(mine.shape)} where {tuple(true.shape)} is wanted."
    if alike(got, want, rtol):
        return None
    for sentence, mistaken in mistakes.items():
        if alike(got, [number(mistaken(*copy.deepcopy(inputs))) for inputs in cases], rtol):
            return sentence
    if not all(mine.isfinite().all() for mine in got):
        return "there is an inf or a nan in it. Do the logits or log-probs overflow somewhere on the way?"
    if alike([-mine for mine in got], want, rtol):
        return "right up to the sign."
    factors = [float((mine * true).sum() / (true * true).sum()) for mine, true in zip(got, want, strict=True)]
    if alike(got, [factor * true for factor, true in zip(factors, want, strict=True)], rtol):
        several = sorted({f"{factor:.4g}" for factor in factors})
        return f"right up to a factor: yours is {' or '.join(several)} times what it should be."
    for case, (mine, true) in enumerate(zip(got, want, strict=True), start=1):
        off = ~torch.isclose(mine, true, rtol=rtol, atol=1e-6)
        if off.any():
            at = off.nonzero()[0].tolist()
            where = f" at {at}" if at else ""
            return (f"in test {case} of {len(cases)}, {int(off.sum())} of {true.numel()} numbers are off; the first{where} is "
                    f"{float(mine[tuple(at)]):.5g} and should be {float(true[tuple(at)]):.5g}.")


def alike(a: list[Tensor], b: list[Tensor], rtol: float) -> bool:
    return all(x.shape == y.shape and torch.allclose(x, y, rtol=rtol, atol=1e-6) for x, y in zip(a, b, strict=True))


def number(value) -> Tensor:
    return torch.as_tensor(value).detach().double()
