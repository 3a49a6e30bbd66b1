"""The grader of lesson 14: a method of the reader's own, judged by the laws that ours keep.

There is no truth to compare with, for nobody knows what the reader had in mind. But whatever a
method wants, its weights must be minus the slope of its loss, padding must not count, and so on.
Every law is asked for separately and answers in plain words.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from lessons.judge import BLANK, RIGHT, WRONG, described, place_of
from minialign.data import Batch, Example, collate


def method(made: Callable | object) -> str:
    """Judge a method: its class, or one of its objects.

    →   STILL BLANK, NOT YET or RIGHT, then a line for every law.
    """
    lines, broken = [], 0
    try:
        one = made() if callable(made) else made
        if blank(one):
            return f"{BLANK}: fill in the “...” of `Mine.weigh` and run this again."
        if not hasattr(one, "weigh"):
            return (f"{WRONG}: {one!r} is no method. A method is a class with "
                    "`weigh(logps, batch)`; it should return loss, weights, info.")
        for law, problem_with in LAWS.items():
            problem = problem_with(fresh(one))
            if problem is None:
                lines.append(f"  kept    {law}")
                continue
            broken += 1
            lines.append(f"  BROKEN  {law}:\n          {problem}")
            if problem_with is shapes:          # what has another shape cannot be judged further
                break
    except Exception as error:                  # whatever the reader wrote, the lesson goes on
        if "ellipsis" in str(error).lower():
            return f"{BLANK}: fill in the “...” of `Mine.weigh` and run this again."
        where = place_of(error, getattr(made, "weigh", made))
        return f"{WRONG}: your method stopped{where}: {described(error)}"

    verdict = f"{RIGHT}: your method keeps all {len(LAWS)} laws."
    if broken:
        verdict = f"{WRONG}: {broken} of the {len(LAWS)} laws broken."
    return "\n".join([verdict, *lines])


def fresh(one) -> Callable:
    """`weigh` of a copy of this method, so that no law sees what it remembers of another one."""
    return lambda logps, batch: copy.deepcopy(one).weigh(logps, batch)


def blank(one) -> bool:
    """Whether the reader has written nothing yet."""
    if one is None or one is ...:
        return True
    if not hasattr(one, "weigh"):
        return False
    values = fresh(one)(*ragged())
    if not isinstance(values, tuple):
        return values is None or values is ...
    return any(value is None or value is ... for value in values)


# ----------------------------------------------------------------------------- what it is judged on


def ragged(order: tuple = (0, 1, 2, 3), fill: float = -0.7) -> tuple[Tensor, Batch]:
    """Log-probs (4, 3, 6) of a wanted answer and three negatives, 1 to 6 tokens, and their batch.

    order   which answer stands where
    fill    what stands outside of the answers
    """
    draw = torch.Generator().manual_seed(14)
    n = torch.tensor([[6, 3, 2], [2, 5, 4], [4, 1, 6], [5, 2, 3]])      # (A, B)
    mask = torch.arange(6) < n[..., None]                               # (A, B, T)
    drawn = -0.1 - 1.5 * torch.rand(mask.shape, generator=draw, dtype=torch.float64)
    tokens = torch.randint(5, mask.shape, generator=draw)
    reference = torch.where(mask, drawn, 0).sum(-1)                     # (A, B)
    reference += torch.randn(n.shape, generator=draw, dtype=torch.float64)

    examples = []
    for b in range(3):
        said = [tokens[a, b, : n[a, b]].tolist() for a in order]
        rewards = [float(a == 0) for a in order]
        examples.append(Example(b, [1, 2], said, reference[list(order), b].tolist(), rewards))
    return torch.where(mask, drawn, fill)[list(order)], collate(examples)


def near(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------------------------------- the laws


def shapes(weigh: Callable) -> str | None:
    logps, batch = ragged()
    values = weigh(logps, batch)
    if not isinstance(values, tuple) or len(values) != 3:
        return "`weigh` returns three things: the loss, the weights, and a dict of numbers to log."
    loss, weights, info = values
    for name, value, shape in ("loss", loss, ()), ("weights", weights, tuple(logps.shape)):
        if not isinstance(value, Tensor):
            return f"the {name} should be a tensor, not {type(value).__name__}."
        if tuple(value.shape) != shape:
            return f"the {name} has the shape {tuple(value.shape)} where {shape} is wanted."
    if not isinstance(info, dict):
        return f"the third thing is a dict (empty will do), not {type(info).__name__}."
    return None


def padding(weigh: Callable) -> str | None:
    logps, batch = ragged()
    loss, weights, _ = weigh(logps, batch)
    if (weights * ~batch.mask).any():
        return "there are pushes on places where no answer is. Multiply the weights by batch.mask."
    other, _, _ = weigh(*ragged(fill=-3.0))
    if not near(loss, other):
        return ("the loss changes with what stands outside of the answers. Sum with "
                "`sums_and_lengths`, or torch.where(batch.mask, logps, 0).")
    return None


def slope(weigh: Callable) -> str | None:
    logps, batch = ragged()
    weights, expected, h = weigh(logps, batch)[1], torch.zeros_like(logps), 1e-5
    for place in batch.mask.nonzero().tolist():
        nudge = torch.zeros_like(logps)
        nudge[tuple(place)] = h
        rise = weigh(logps + nudge, batch)[0] - weigh(logps - nudge, batch)[0]
        expected[tuple(place)] = -rise / (2 * h)
    weights = torch.where(batch.mask, weights, 0)       # padding has a law of its own
    if near(weights, expected):
        return None
    if near(weights, -expected):
        return ("right up to the sign. A weight is *minus* the slope: above 0 where training "
                "pushes up.")

    # Which part is wrong: one common factor, or one kind of answer.
    good = [name for name, part in (("wanted answers", slice(0, 1)), ("negatives", slice(1, None)))
            if near(weights[part], expected[part])]
    if good:
        other = "negatives" if good == ["wanted answers"] else "wanted answers"
        return f"the pushes on the {good[0]} are right, those on the {other} are not."
    factor = float((weights * expected).sum() / (expected * expected).sum().clamp(min=1e-30))
    if factor and near(weights, factor * expected):
        return f"right up to a factor: your weights are {factor:.4g} times what they should be."
    worst = torch.unravel_index((weights - expected).abs().argmax(), weights.shape)
    a, b, t = (int(i) for i in worst)
    return (f"token {t} of answer {a} to example {b}: your weight is {weights[a, b, t]:.4g}, and "
            f"central differences of your loss say {expected[a, b, t]:.4g}.")


def order(weigh: Callable) -> str | None:
    logps, batch = ragged()
    loss, weights, _ = weigh(logps, batch)
    new = (0, 3, 1, 2)
    other, pushed, _ = weigh(*ragged(order=new))
    if not near(loss, other):
        return ("the loss is another one when the negatives change places. None of them is the "
                "first.")
    if not near(weights[list(new)], pushed):
        return "the negatives changed places, and their weights did not go with them."
    return None


def finite(weigh: Callable) -> str | None:
    logps, batch = ragged()
    for who, where in (("a token of the wanted answers", (0, slice(None), 0)),
                       ("a token of a negative", (1, slice(None), 0)), ("all tokens", ...)):
        hard = logps.clone()
        hard[where] = -1e4
        loss, weights, _ = weigh(hard, batch)
        for name, x in ("loss", loss), ("weights", weights[batch.mask]):
            if not x.isfinite().all():
                return (f"with a log-prob of −10,000 for {who} there is an inf or a nan in the "
                        f"{name}. Stay with logarithms: logsumexp, logsigmoid, expm1.")
    return None


def parts(weigh: Callable) -> str | None:
    logps, batch = ragged()
    loss, weights, _ = weigh(logps, batch)
    first, second = (weigh(logps[:, i:j], batch.part(i, j)) for i, j in ((0, 1), (1, 3)))
    if not near(first[0] + second[0], loss):
        return ("the losses of two parts do not add up to the loss of the whole. Divide by "
                "batch.counts.examples, which is the same for both, and not by what is in a part.")
    if not near(torch.cat([first[1], second[1]], 1), weights):
        return "the weights of an example depend on what else is in the batch."
    return None


FIRST = "shapes: a loss (), weights (A, B, T), a dict"
LAWS = {
    FIRST: shapes,
    "padding: no push on it, and nothing read from it": padding,
    "slope: the weights are minus the slope of the loss": slope,
    "order: the negatives may stand in any order": order,
    "finite: log-probs of −10,000 do no harm": finite,
    "parts: an update in two parts is the same update": parts,
}
