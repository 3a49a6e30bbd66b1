"""Every lesson runs, blank and solved; every grader knows right from wrong, and which wrong.

A new lesson is found by its name. A new grader needs an entry in WRONG: what readers might
plausibly write, and a piece of the sentence each of them must hear.
"""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minialign.model import Transformer

LESSONS = Path(__file__).parent.parent / "lessons"
EVERY = sorted(LESSONS.glob("[01][0-9]_*.py"))
ORDER = (
    "**The question:**",
    "**Guess first.**",
    "## The picture",
    "check.show(",
    "## Exercise",
    "## Try",
    "**Next:**",
    "# region Solution",
)
sys.path.append(str(LESSONS))  # where Python finds `check` when a lesson is run as a script
import check  # noqa: E402


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
    runpy.run_path(str(lesson), run_name="__main__")
    printed = capsys.readouterr().out
    assert (tmp_path / f"{lesson.stem[:2]}.png").stat().st_size > 10_000
    assert f"{check.BLANK}: " in printed and check.WRONG not in printed
    assert (f"{check.RIGHT}: " in printed) == ("--solution" in flags)


@pytest.mark.parametrize("lesson", EVERY, ids=lambda path: path.stem)
def test_every_lesson_keeps_the_same_order_and_is_on_the_path(lesson):
    text = lesson.read_text(encoding="utf-8")
    places = [text.find(mark) for mark in ORDER]
    assert -1 not in places and places == sorted(places), dict(zip(ORDER, places, strict=True))
    assert f"]({lesson.name})" in (LESSONS / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------ graders


def right_score(z, tokens, is_answer, shift=1):
    log_p = z.log_softmax(-1)
    return [
        (log_p[t - shift, tokens[t]], bool(is_answer[t]), bool(is_answer[t - 1]))
        for t in range(1, len(tokens))
    ]


def right_push(z, y, weights):
    z = z.clone().requires_grad_()
    (-(z.log_softmax(1).gather(1, y[:, None])[:, 0] * weights).sum()).backward()
    return z.grad


def right_backward(h, W, y, lse, weights, chunk):
    h, W = h.clone().requires_grad_(), W.clone().requires_grad_()
    (-((h @ W.T).log_softmax(1).gather(1, y[:, None])[:, 0] * weights).sum()).backward()
    return h.grad, W.grad


def chunked_backward(
    h, W, y, lse, weights, chunk, skip_short=False, first_weights=False, overwrite=False
):
    d_h, d_W = torch.zeros_like(h), torch.zeros_like(W)
    for i in range(0, len(h), chunk):
        part = slice(i, i + chunk)
        if skip_short and len(h[part]) < chunk:
            break
        w = weights[: len(h[part])] if first_weights else weights[part]
        d_z = w[:, None] * (
            (h[part] @ W.T - lse[part, None]).exp() - torch.eye(len(W), dtype=W.dtype)[y[part]]
        )
        d_h[part] = d_z @ W
        d_W = d_z.T @ h[part] + (0 if overwrite else d_W)
    return d_h, d_W


def right_values(P, policy, ends, goals, *_):
    moves = (policy[:, :, None] * P).sum(1)
    Q = moves[~ends][:, ~ends]
    return torch.linalg.lstsq(
        torch.eye(len(Q), dtype=Q.dtype) - Q, moves[~ends][:, goals].sum(1)[:, None]
    ).solution[:, 0]


def right_prefix(good, bad):
    return next(
        (i for i, (g, b) in enumerate(zip(good, bad, strict=False)) if g != b),
        min(len(good), len(bad)),
    )


def discounts(c, gamma):
    steps = torch.arange(len(c))[None] - torch.arange(len(c))[:, None]
    return torch.tril(gamma ** steps.abs().to(c)).T


def detached_weights(c, gamma):
    return discounts(c, gamma) @ c / discounts(c, gamma).sum(0).dot(c)


def full_weights(c, gamma, P=1, C=1):
    D = discounts(c, gamma)
    Z = (D @ c).sum()
    return (D @ c + P * D.T @ c - C * (c @ D @ c) / Z * D.sum(0)) / Z


def right_asft(a_w, a_l, lam):
    return (1 + lam) * torch.ones_like(a_w), -lam / (
        torch.exp(-a_l) - 1 if a_l[-1] < -1e-9 else torch.special.expm1(-a_l)
    )


def count(config, **changes):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(replace(config, **changes)).parameters())


# {grader: what solves it}
SOLVED = {
    "asft": right_asft,
    "prefix": right_prefix,
    "backward": right_backward,
    "push": right_push,
    "score": lambda *row: sum(logp for logp, here, _ in right_score(*row) if here),
    "silent_bug": lambda gamma, tau, K: gamma,
    "success": lambda *lake: right_values(*lake) @ lake[4][~lake[2]],
    "propagation": lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma), 1),
    "bug_hunt": lambda: (2, 3, 1),
    "peak": lambda config, weight, moment: count(config) * (2 * weight + 2 * moment),
}

# {grader: [(what a reader might write, a piece of what must be said)]}
WRONG = {
    "score": [
        (
            lambda *row: sum(logp for logp, here, _ in right_score(*row, shift=0) if here),
            "shift by one",
        ),
        (
            lambda *row: sum(logp for logp, _, before in right_score(*row) if before),
            "mask stayed behind",
        ),
        (
            lambda *row: sum(logp for logp, here, before in right_score(*row) if here and before),
            "the first token of the answer",
        ),
        (lambda *row: sum(logp for logp, *_ in right_score(*row)), "prompt and padding are scored"),
        (lambda *row: -sum(logp for logp, here, _ in right_score(*row) if here), "up to the sign"),
        (
            lambda *row: sum(logp for logp, here, _ in right_score(*row) if here) / row[2].sum(),
            "mean over the answer's tokens",
        ),
        (
            lambda *row: sum(logp for logp, here, _ in right_score(*row) if here).exp(),
            "that is the probability",
        ),
        (
            lambda z, y, m: (
                (z[:-1].exp() / z[:-1].exp().sum(-1, True))
                .log()
                .gather(1, y[1:, None])[m[1:]]
                .sum()
            ),
            "overflow",
        ),
        (
            lambda z, y, m: z[:-1].log_softmax(-1).gather(1, y[1:, None])[:, 0][m[1:]],
            "its shape is",
        ),
    ],
    "asft": [
        (lambda *x: tuple(-push for push in right_asft(*x)), "chosen answer: right up to the sign"),
        (
            lambda *x: (right_asft(*x)[0], -right_asft(*x)[1]),
            "answer is right. push on the rejected answer: right up to",
        ),
        (lambda w, l, lam: (torch.ones_like(w), right_asft(w, l, lam)[1]), "the SFT term alone"),
        (
            lambda w, l, lam: (right_asft(w, l, lam)[0] / w.exp(), right_asft(w, l, lam)[1]),
            "factor p more",
        ),
        (
            lambda w, l, lam: (right_asft(w, l, lam)[0], right_asft(w, l, lam)[1] / l.exp()),
            "factor p more",
        ),
        (lambda w, l, lam: (right_asft(w, l, lam)[0], -lam * l.exp()), "1 − p below"),
        (lambda w, l, lam: (right_asft(w, l, lam)[0], right_asft(w, l, 1.0)[1]), "λ is missing"),
        (
            lambda w, l, lam: (right_asft(w, l, lam)[0], -lam * l.exp() / (1 - l.exp())),
            "within rounding of 1",
        ),
        (lambda w, l, lam: (1 + lam, right_asft(w, l, lam)[1]), "its shape is"),
    ],
    "prefix": [
        (
            lambda good, bad: [g == b for g, b in zip(good, bad, strict=False)].count(True),
            "wherever they stand",
        ),
        (lambda good, bad: len([b for b in {*bad} if b in good]), "in whatever order"),
        (lambda good, bad: right_prefix(good, bad) + 1, "one too many"),
        (lambda good, bad: right_prefix(good, bad) - 1, "one too few"),
        (lambda good, bad: right_prefix(good[:-1], bad[:-1]), "the end token is left out"),
        (lambda good, bad: min(len(good), len(bad)), "length of the shorter"),
        (lambda good, bad: "many", "numbers or tensors"),
    ],
    "backward": [
        (lambda *x: tuple(-d for d in right_backward(*x)), "d_h: right up to the sign"),
        (
            lambda *x: (right_backward(*x)[0], -right_backward(*x)[1]),
            "d_h is right. d_W: right up to the sign",
        ),
        (
            lambda *x: chunked_backward(*x, overwrite=True),
            "d_h is right. d_W: only the last chunk is in it",
        ),
        (lambda *x: chunked_backward(*x, skip_short=True), "the last chunk is left out"),
        (
            lambda *x: chunked_backward(*x, first_weights=True),
            "every chunk uses the weights of the first",
        ),
        (
            lambda h, W, y, lse, w, c: right_backward(h, W, y, lse, torch.ones_like(w), c),
            "the weights are missing",
        ),
        (lambda *x: right_backward(*x)[::-1], "its shape is"),
        (lambda *x: right_backward(*x)[0], "it should return d_h, d_W"),
    ],
    "push": [
        (lambda z, y, w: -right_push(z, y, w), "up to the sign"),
        (lambda z, y, w: right_push(z, y, w) / len(y), "number of rows, padding included"),
        (lambda z, y, w: right_push(z, y, w) / (w != 0).sum(), "number of answer tokens"),
        (lambda z, y, w: 2 * right_push(z, y, w), "yours is 2 times"),
        (lambda z, y, w: right_push(z, y, torch.ones_like(w)), "the weights are missing"),
        (lambda z, y, w: right_push(z, y, (w != 0).double()), "numbers are off"),
        (
            lambda z, y, w: w[:, None] * (z.softmax(0) - torch.eye(z.shape[1])[y]),
            "the softmax runs over time",
        ),
        (lambda z, y, w: right_push(z, y, w.roll(1)), "numbers are off"),
        (lambda z, y, w: w[:, None] * (z.exp() / z.exp().sum(1, True)), "inf or a nan"),
        (lambda z, y, w: w * (z.softmax(-1) - torch.eye(z.shape[1])[y]), "RuntimeError"),
    ],
    "silent_bug": [
        (lambda gamma, tau, K: 1, "no factor would mean no bug"),
        (lambda gamma, tau, K: 1 / gamma, "upside down"),
        (lambda gamma, tau, K: 1 - gamma, "the share of the old u"),
        (lambda gamma, tau, K: gamma / tau, "one of them is missing"),
        (lambda gamma, tau, K: gamma * tau, "lost the 1/τ"),
        (lambda gamma, tau, K: gamma / K, "in ω_j already"),
        (lambda gamma, tau, K: -gamma, "up to the sign"),
        (lambda gamma, tau, K: torch.full((K,), gamma), "its shape is (3,)"),
    ],
    "success": [
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, ends) @ start[~ends],
            "holes count as goals",
        ),
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, ends & ~goals) @ start[~ends],
            "chance to drown",
        ),
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, goals).mean(),
            "all cells one can stand on",
        ),
        (
            lambda P, p, ends, goals, start: right_values(P, p, ends, goals).sum() / len(start),
            "ends included",
        ),
        (lambda P, p, ends, goals, start: right_values(P, p, ends, goals)[0], "at the first cell"),
        (
            lambda P, p, ends, goals, start: right_values(0.99 * P, p, ends, goals) @ start[~ends],
            "discounted",
        ),
        (
            lambda P, p, *lake: (
                right_values((p[:, :, None] * P).sum(1).T[:, None], 0 * p[:, :1] + 1, *lake)
                @ lake[2][~lake[0]]
            ),
            "rows and columns",
        ),
        (
            lambda P, p, ends, goals, start: (
                right_values(P, 0 * p + 0.25, ends, goals) @ start[~ends]
            ),
            "the same chance",
        ),
        (
            lambda P, p, *lake: (
                right_values(P, torch.eye(4).double()[p.argmax(1)], *lake) @ lake[2][~lake[0]]
            ),
            "likeliest",
        ),
        (lambda P, p, ends, goals, start: right_values(P, p, ends, goals), "its shape is"),
        (
            lambda P, p, ends, goals, start: torch.linalg.solve(
                torch.eye(len(start)) - (p[:, :, None] * P).sum(1), goals * 1.0
            )[0],
            "your function stopped with",
        ),
    ],
    "propagation": [
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma), 0),
            "detached and full are right. release: the",
        ),
        (
            lambda c, gamma: (full_weights(c, gamma), detached_weights(c, gamma), 1),
            "detached: those are the full weights",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), detached_weights(c, gamma), 1),
            "full: those are the detached ones",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), -full_weights(c, gamma), 1),
            "up to the sign",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma, P=0), 1),
            "P_j is missing",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma, C=0), 1),
            "Z was held fixed",
        ),
        (
            lambda c, gamma: (detached_weights(c, gamma), full_weights(c, gamma, C=-1), 1),
            "the sign of L C_j",
        ),
        (
            lambda c, gamma: (
                detached_weights(c.flip(0), gamma).flip(0),
                full_weights(c, gamma),
                1,
            ),
            "these favour late tokens",
        ),
        (lambda c, gamma: (detached_weights(c, 1.0), full_weights(c, gamma), 1), "γ is missing"),
        (
            lambda c, gamma: (c * detached_weights(c, gamma), full_weights(c, gamma), 1),
            "the loss itself",
        ),
        (
            lambda c, gamma: (len(c) * detached_weights(c, gamma), full_weights(c, gamma), 1),
            "times what it should be",
        ),
        (lambda c, gamma: detached_weights(c, gamma), "returns 1 value(s)"),
    ],
    "bug_hunt": [
        (lambda: (1, 3, 1), "run A: look again: swapped answers"),
        (lambda: (5, 3, 1), "run A: look again: with answers to other questions"),
        (lambda: (2, 6, 1), "run A is right. run B: look again: without steps"),
        (lambda: (2, 4, 1), "run B: look again: a rate that is too high"),
        (
            lambda: (2, 3, 2),
            "run A and run B are right. run C: look again: a loss without the shift",
        ),
        (lambda: (2, 3), "returns 2 value(s)"),
        (lambda: ("no shift", 3, 1), "numbers or tensors"),
    ],
    "peak": [
        (lambda config, weight, moment: count(config) * weight, "the weights alone"),
        (lambda config, weight, moment: count(config) * 2 * weight, "the optimizer is missing"),
        (
            lambda config, weight, moment: count(config) * (weight + 2 * moment),
            "the gradients are missing",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + moment),
            "two moments per weight",
        ),
        (lambda config, weight, moment: count(config) * 4 * weight, "a dtype of their own"),
        (lambda config, weight, moment: count(config) * 16, "everything in float32?"),
        (lambda config, weight, moment: count(config), "the number of weights"),
        (
            lambda config, weight, moment: count(config, n_layer=1) * (2 * weight + 2 * moment),
            "one layer only",
        ),
        (
            lambda config, weight, moment: count(config, mlp="gelu") * (2 * weight + 2 * moment),
            "three matrices",
        ),
        (
            lambda config, weight, moment: (
                count(config, n_kv_head=config.n_head) * (2 * weight + 2 * moment)
            ),
            "n_kv_head heads",
        ),
        (
            lambda config, weight, moment: count(config, tie=False) * (2 * weight + 2 * moment),
            "count it once",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + 2 * moment) / 2**30,
            "in GiB or GB",
        ),
        (
            lambda config, weight, moment: count(config) * (2 * weight + 2 * moment) / 1e9,
            "in GiB or GB",
        ),
        (
            lambda config, weight, moment: 1.5 * count(config) * (2 * weight + 2 * moment),
            "up to a factor",
        ),
    ],
}


@pytest.mark.parametrize("name", SOLVED)
def test_right_answers_are_right(name):
    assert getattr(check, name)(SOLVED[name]).startswith(check.RIGHT)


@pytest.mark.parametrize(
    "name, function, words",
    [(name, function, words) for name, wrongs in WRONG.items() for function, words in wrongs],
)
def test_wrong_answers_are_told_what_is_wrong(name, function, words):
    verdict = getattr(check, name)(function)
    assert verdict.startswith(check.WRONG) and words in verdict


@pytest.mark.parametrize("name", WRONG)
def test_a_blank_is_no_mistake(name):
    for blank in (lambda *inputs: ..., lambda *inputs: None, lambda *inputs: 2 * ...):
        assert getattr(check, name)(blank).startswith(check.BLANK)


@pytest.mark.parametrize("name", WRONG)
def test_a_function_that_stops_does_not_stop_the_lesson(name):
    verdict = getattr(check, name)(lambda *inputs: 1 / 0)
    assert verdict.startswith(check.WRONG) and "ZeroDivisionError" in verdict
