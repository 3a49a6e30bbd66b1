"""What readers might answer to the exercises of lessons 05 to 07, 10 and 11: right and wrong."""

import math

import torch


def right_sft(mask):
    return torch.where(mask, 1.0, 0.0) / mask.sum(1)[:, None] / len(mask)


def right_dpo(l_w, l_l, ref_w, ref_l, beta):
    push = beta / (1 + (beta * (l_w - l_l - ref_w + ref_l)).exp())
    return push, -push


def right_dft(l, ref, log_u, tau, gamma, old=False):
    d = l[1:] / tau - ref[1:]
    log_u_hat = d.logsumexp(0) - math.log(len(d))
    keep = math.log(1 - gamma) if gamma < 1 else -math.inf
    new = torch.logaddexp(keep + log_u, math.log(gamma) + log_u_hat)
    omega = (d - (log_u if old else new) - math.log(len(d))).exp()
    return new, torch.cat([torch.ones_like(l[:1]), -omega])


def right_keep(label, negatives):
    return (negatives - label != 0).all(0)


def right_prefix(good, bad):
    return next(
        (i for i, (g, b) in enumerate(zip(good, bad, strict=False)) if g != b),
        min(len(good), len(bad)),
    )


def right_asft(a_w, a_l, lam):
    return (1 + lam) * torch.ones_like(a_w), -lam / (
        torch.exp(-a_l) - 1 if a_l[-1] < -1e-9 else torch.special.expm1(-a_l)
    )


def right_ift(c, gamma, P=1, C=1, Z=1):
    t = torch.arange(len(c))
    D = torch.triu(gamma ** (t - t[:, None]).abs().to(c))
    S = D @ c
    return (S + P * (D.T @ c) - C * (c @ S) / S.sum() * D.sum(0)) / (S.sum() if Z else 1)


def right_difference(ours, theirs):
    return (ours - theirs).mean(), (ours - theirs).std() / math.sqrt(len(ours))


# {grader: what solves it}
SOLVED = {
    "sft": right_sft,
    "dpo": right_dpo,
    "dft": right_dft,
    "keep": right_keep,
    "pull": lambda weights, logps: -weights * torch.special.expm1(logps),
    "ift": right_ift,
    "difference": right_difference,
    "prefix": right_prefix,
    "asft": right_asft,
    "silent_bug": lambda gamma, tau, K: gamma,
    "bug_hunt": lambda: (2, 3, 1),
}

# {grader: [(what a reader might write, a piece of what must be said)]}
WRONG = {
    "sft": [
        (lambda mask: -right_sft(mask), "up to the sign"),
        (lambda mask: mask / mask.sum(1, True), "mean over the answers is missing"),
        (lambda mask: mask * 1.0, "1 on every token"),
        (lambda mask: mask / mask.sum(), "all tokens of the batch"),
        (lambda mask: mask / len(mask[0]) / len(mask), "padding included"),
        (lambda mask: 1 / mask.sum(1, True) / len(mask) + 0 * mask, "the padding is pushed"),
        (lambda mask: right_sft(mask).T, "its shape is"),
    ],
    "dpo": [
        (lambda *x: right_dpo(*x)[::-1], "chosen answer: right up to the sign"),
        (lambda *x: (right_dpo(*x)[0],) * 2, "answer is right. push on the rejected answer: right"),
        (lambda *x: (right_dpo(*x)[0], 0 * x[0]), "nothing pushes the rejected answer"),
        (lambda w, l, rw, rl, b: right_dpo(w, l, 0, 0, b), "the reference is missing"),
        (lambda w, l, rw, rl, b: right_dpo(w, l, -rw, -rl, b), "wrong sign: s = l"),
        (
            lambda w, l, rw, rl, b: right_dpo(b * w, b * l, b * rw, b * rl, 1),
            "the β in front is missing",
        ),
        (
            lambda w, l, rw, rl, b: tuple(b * x for x in right_dpo(w, l, rw, rl, 1)),
            "the β inside is missing",
        ),
        (
            lambda w, l, rw, rl, b: (b - right_dpo(w, l, rw, rl, b)[0], 0 * w),
            "which grows when the pair is ranked right",
        ),
    ],
    "dft": [
        (lambda *x: (right_dft(*x)[0].exp(), right_dft(*x)[1]), "log u: that is u itself"),
        (
            lambda l, r, u, t, g: (right_dft(l, r, u, t, 1 - g)[0] if g < 1 else u, l),
            "the roles of old and new",
        ),
        (
            lambda l, r, u, t, g: (right_dft(l, r, u, t, 1)[0], l),
            "û alone",
        ),
        (
            lambda l, r, *x: (right_dft(torch.cat([l[:1], l]), torch.cat([r[:1], r]), *x)[0], l),
            "the wanted answer is in û",
        ),
        (lambda l, r, u, t, g: (right_dft(l, 0 * r, u, t, g)[0], l), "P_ref is missing"),
        (lambda l, r, u, t, g: (right_dft(l, r, u, 1, g)[0], l), "τ is missing"),
        (
            lambda *x: (right_dft(*x)[0], -right_dft(*x)[1]),
            "log u is right. pushes: right up to the sign",
        ),
        (
            lambda *x: (right_dft(*x)[0], right_dft(*x)[1].abs()),
            "push the negatives *up*",
        ),
        (
            lambda *x: (right_dft(*x)[0], right_dft(*x, old=True)[1]),
            "divided by the old u",
        ),
        (
            lambda l, r, u, t, g: (
                right_dft(l, r, u, t, g)[0],
                torch.cat([l[:1] ** 0, -torch.softmax(l[1:] / t - r[1:], 0)]),
            ),
            "remembers nothing",
        ),
        (
            lambda l, r, u, t, g: (
                right_dft(l, r, u, t, g)[0],
                right_dft(l, r, u, t, g)[1] * torch.tensor([1.0] + [g] * (len(l) - 1))[:, None],
            ),
            "too small by a factor γ",
        ),
        (
            lambda l, r, u, t, g: (
                ((1 - g) * u.exp() + g * (l[1:] / t - r[1:]).exp().mean(0)).log(),
                l,
            ),
            "stay in logs",
        ),
    ],
    "keep": [
        (lambda y, n: ~right_keep(y, n), "the wrong way round"),
        (lambda y, n: (n != y).any(0), "if *all* negatives"),
        (lambda y, n: n[0] != y, "only the first negative"),
        (lambda y, n: y >= 0, "kept everything"),
        (lambda y, n: ~torch.isin(y, n), "negatives of all examples"),
        (lambda y, n: n != y, "its shape is"),
    ],
    "pull": [
        (lambda w, l: w * (l.exp() - 1), "up to the sign"),
        (lambda w, l: w * l.exp(), "what the others lose"),
        (lambda w, l: w, "the weights themselves"),
        (lambda w, l: 1 - l.exp(), "The weight says how often"),
        (lambda w, l: w - w * l, "the log-prob for the probability"),
    ],
    "ift": [
        (lambda c, gamma: -right_ift(c, gamma), "up to the sign"),
        (lambda c, gamma: right_ift(c, gamma, P=0, C=0), "the detached weights"),
        (lambda c, gamma: right_ift(c, gamma, P=0), "P_j is missing"),
        (lambda c, gamma: right_ift(c, gamma, C=0), "Z was held fixed"),
        (lambda c, gamma: right_ift(c, gamma, C=-1), "the sign of L C_j"),
        (lambda c, gamma: right_ift(c, gamma, Z=0), "the division by Z"),
        (lambda c, gamma: right_ift(c, 1.0), "γ is missing"),
        (
            lambda c, gamma: right_ift(c.flip(0), gamma, P=0, C=0).flip(0),
            "these favour late tokens",
        ),
        (lambda c, gamma: c * right_ift(c, gamma, P=0, C=0), "terms of the loss itself"),
    ],
    "difference": [
        (lambda a, b: right_difference(b, a), "mean: right up to the sign"),
        (lambda a, b: ((a - b).sum(), 0), "the sum over the seeds"),
        (lambda a, b: (a.mean(), 0), "of ours alone"),
        (lambda a, b: ((a - b).mean(), (a - b).std()), "standard deviation of the differences"),
        (
            lambda a, b: ((a - b).mean(), (a.var() / len(a) + b.var() / len(b)).sqrt()),
            "if the two were apart",
        ),
        (
            lambda a, b: ((a - b).mean(), (a - b).std(unbiased=False) / len(a) ** 0.5),
            "divide by n − 1",
        ),
        (lambda a, b: ((a - b).mean(), (a - b).var() / len(a)), "Its square root"),
        (lambda a, b: (a - b).mean(), "returns 1 value(s)"),
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
        (lambda: (2, 4, 1), "run B: look again: at a rate that is too high"),
        (
            lambda: (2, 3, 2),
            "run A and run B are right. run C: look again: a loss without the shift",
        ),
        (lambda: (2, 3), "returns 2 value(s)"),
        (lambda: ("no shift", 3, 1), "numbers or tensors"),
    ],
}
