"""What readers might answer to the exercises of lessons 05 to 07, 10 and 11: right and wrong."""

import torch


def right_prefix(good, bad):
    return next(
        (i for i, (g, b) in enumerate(zip(good, bad, strict=False)) if g != b),
        min(len(good), len(bad)),
    )


def right_asft(a_w, a_l, lam):
    return (1 + lam) * torch.ones_like(a_w), -lam / (
        torch.exp(-a_l) - 1 if a_l[-1] < -1e-9 else torch.special.expm1(-a_l)
    )


# {grader: what solves it}
SOLVED = {
    "prefix": right_prefix,
    "asft": right_asft,
    "silent_bug": lambda gamma, tau, K: gamma,
    "bug_hunt": lambda: (2, 3, 1),
}

# {grader: [(what a reader might write, a piece of what must be said)]}
WRONG = {
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
        (lambda w, l, lam: (right_asft(w, l, lam)[0], l[None]), "its shape is"),
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
}
