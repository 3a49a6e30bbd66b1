"""The graders of lessons 05 to 07, 10 and 11."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext

import torch

from lessons.judge import grade
from minialign.logps import add_reference
from minialign.methods import METHODS

# --------------------------------------------------------------------------- 05: the shared opening


def prefix(function: Callable) -> str:
    """How many tokens of a bad answer have the good answer's own log-probs: two lists of ids → a number."""
    cases = [([9, 1, 7, 2, 7, 0], [9, 1, 3, 2, 7, 7, 0]),               # parts, then looks alike again
             ([5, 5, 0], [5, 5, 5, 0]),                                 # the good one ends first
             ([8, 4, 6, 6, 0], [8, 4, 0]),                              # the bad one ends first
             ([3, 2, 0], [1, 2, 0]),                                    # nothing in common but the rest
             ([6, 7, 0], [6, 7, 0])]                                    # the same answer

    def common(good, bad) -> int:
        return max(k for k in range(min(len(good), len(bad)) + 1) if good[:k] == bad[:k])

    return grade(function, cases, lambda good, bad: {"prefix": common(good, bad)}, {"prefix": {
        "you count equal tokens wherever they stand. After the first difference even the same token has another context.":
            lambda good, bad: sum(g == b for g, b in zip(good, bad, strict=False)),
        "you count tokens that occur in both, in whatever order. The log-prob of a token depends on all tokens before it.":
            lambda good, bad: len(set(good) & set(bad)),
        "one too many: the token where they part has the same context but is another token, with a log-prob of its own.":
            lambda good, bad: common(good, bad) + 1,
        "one too few. Do you count from 0, or leave out the last token they share?": lambda good, bad: common(good, bad) - 1,
        "the end token is left out. It is a token like any other.": lambda good, bad: common(good[:-1], bad[:-1]),
        "that is the length of the shorter answer; they part before.": lambda good, bad: min(len(good), len(bad)),
    }}, "one opening, one set of log-probs. SFT cannot raise the one answer there without the other.")


# ------------------------------------------------------------------------------- 06: ASFT's weights


def asft(function: Callable) -> str:
    """−∂L/∂a_w and −∂L/∂a_l of ASFT's loss, pair by pair: a_w, a_l (B,), λ."""
    cases = [(torch.tensor(w, dtype=torch.float64), torch.tensor(l, dtype=torch.float64), lam) for w, l, lam in (
        ([-0.9, -2.5, -0.05], [-1.3, math.log(0.5), -0.2], 0.1), ([-0.4, -30.0, -1e-3], [-40.0, -1e-6, -1e-17], 0.7))]

    def loss(a_w: Decimal, a_l: Decimal, lam: Decimal) -> Decimal:
        """As the paper has it, with odds, in 60 digits."""
        odds_w, odds_l = (a.exp() / (1 - a.exp()) for a in (a_w, a_l))
        return -a_w + lam * ((1 + 1 / odds_w).ln() + (1 + odds_l).ln())

    def differences(a_w, a_l, lam) -> dict:
        pushes = {"push on the chosen answer": torch.empty_like(a_w), "push on the rejected answer": torch.empty_like(a_l)}
        with localcontext() as context:
            context.prec = 60
            lam = Decimal(str(lam))
            for b, (w, l) in enumerate(zip(map(Decimal, a_w.tolist()), map(Decimal, a_l.tolist()), strict=True)):
                h = Decimal("1e-20")
                up = (loss(w + w * h, l, lam) - loss(w - w * h, l, lam)) / (2 * w * h)
                down = (loss(w, l + l * h, lam) - loss(w, l - l * h, lam)) / (2 * l * h)
                for push, slope in zip(pushes.values(), (up, down), strict=True):
                    push[b] = -float(slope)
        return pushes

    return grade(function, cases, differences, {
        "push on the chosen answer": {
            "right up to the sign: that is the slope of the loss. A push is minus the slope, so the chosen answer goes up.":
                lambda w, l, lam: torch.full_like(w, -1 - lam),
            "that is the SFT term alone. The alignment term, −λ log σ(log O_w) = −λ a_w, adds its own.":
                lambda w, l, lam: torch.ones_like(w),
            "that is the alignment term alone. The SFT term, −a_w, adds its own.": lambda w, l, lam: torch.full_like(w, lam),
            "that is −∂L/∂p_w. The slope was asked in a = log p, which has a factor p more.":
                lambda w, l, lam: (1 + lam) / w.exp()},
        "push on the rejected answer": {
            "right up to the sign: this raises the rejected answer.": lambda w, l, lam: lam / torch.expm1(-l),
            "λ is missing.": lambda w, l, lam: -1 / torch.expm1(-l),
            "that is −∂L/∂p_l. The slope was asked in a = log p, which has a factor p more.":
                lambda w, l, lam: lam / torch.expm1(l),
            "that is −λ p; the slope of log(1 − p) also has 1 − p below.": lambda w, l, lam: -lam * l.exp(),
            "you used the chosen answer's log-prob in it.": lambda w, l, lam: -lam / torch.expm1(-w),
            "that is as hard as the push up, as in DPO. Here each answer is judged alone.":
                lambda w, l, lam: torch.full_like(l, -1 - lam),
            "right, but for probabilities within rounding of 1: there 1 − eᵃ is 0. Use torch.expm1.":
                lambda w, l, lam: -lam * l.exp() / (1 - l.exp())},
    }, "up for ever, down by the odds: nothing at p = 0, λ at ½, without bound at 1.")


# --------------------------------------------------------------------------------- 07: discriminate


def silent_bug(function: Callable) -> str:
    """Autograd's push down on a negative where u was not held fixed, as a multiple of eq. 8's: of gamma, tau and K."""
    cases = [(0.9, 0.7, 3), (0.35, 1.0, 2), (0.6, 1.4, 5)]

    def autograd(gamma, tau, K) -> dict:
        draw = torch.Generator().manual_seed(K)
        s, log_ref = (torch.randn(K, generator=draw, dtype=torch.float64) for _ in range(2))
        s.requires_grad_()
        w = (s / tau - log_ref).exp()
        u = (1 - gamma) * 0.8 + gamma * w.mean()
        slope = torch.autograd.grad(tau * u.log(), s)[0]                # F has no other s_j in it
        return {"factor": (slope / (w / (K * u)).detach()).mean()}

    return grade(function, cases, autograd, {"factor": {
        "no factor would mean no bug. u itself depends on s_j: follow it through the line that updates u.":
            lambda gamma, tau, K: 1.0,
        "upside down: autograd sees only a part of what u would have to change, so its push is too small.":
            lambda gamma, tau, K: 1 / gamma,
        "that is the share of the old u, which does not depend on s_j at all. Which share does?":
            lambda gamma, tau, K: 1 - gamma,
        "the τ in front of the logarithm and the 1/τ inside the exponential cancel; one of them is missing.":
            lambda gamma, tau, K: gamma / tau,
        "you kept the τ in front of the logarithm and lost the 1/τ inside the exponential.":
            lambda gamma, tau, K: gamma * tau,
        "the mean's 1/K is in ω_j already (eq. 8), so it does not show in the ratio.":
            lambda gamma, tau, K: gamma / K,
        "right up to the sign: ω_j counts pushes down as positive, and so does this ratio.":
            lambda gamma, tau, K: -gamma,
    }}, "γ. With γ = 0.9 nobody would notice 10 % less push; the release stops the gradient, and so do we.")


# ------------------------------------------------------------------------------------- 11: the race


BUGS = (
    "The wanted and the rejected answers are swapped.",
    "No shift: each token is scored from the place that has just read it.",
    "The reference model is the policy itself, at every update.",
    "The learning rate is thirty times too high.",
    "The answers belong to other questions.",
    "The optimizer never takes a step.",
)


def planted(examples: list, model) -> dict[str, list[tuple]]:
    """Spoilers! {run: [(healthy method, its examples), (the one with a bug, its examples)]}. Examples have two answers each."""
    class NoShift(METHODS["sft"]):
        def prepare(self, model, parts):
            return [self.unshifted(part) for part in parts]

        def unshifted(self, batch):
            source = batch.rows.source.clone()          # the state that has read token t is the one that predicts token t + 1
            source[..., :-1] = torch.where(batch.mask[..., 1:], source[..., 1:], source[..., :-1])
            return replace(batch, rows=replace(batch.rows, source=source))

    class LiveReference(METHODS["dpo"]):
        def weigh(self, logps, batch):
            return super().weigh(logps, replace(batch, ref_logps=(logps * batch.mask).sum(-1).double()))

    paired = [replace(example) for example in examples]
    add_reference(model, paired, micro_batch=64, progress=False)
    swapped = [replace(example, answers=example.answers[::-1]) for example in examples]
    return {"A": [(METHODS["sft"](), examples), (NoShift(), examples)],
            "B": [(METHODS["dpo"](), paired), (LiveReference(), paired)],
            "C": [(METHODS["asft"](), examples), (METHODS["asft"](), swapped)]}


def bug_hunt(function: Callable) -> str:
    """Which of BUGS, by number, runs A, B and C have."""
    seen = {1: "swapped answers would make the right one fall and the wrong one rise, with a loss that falls as it should.",
            2: "a loss without the shift says nothing about what is tested: it falls, and both held-out answers go down with it.",
            3: "if the reference were the policy, the loss would compare a thing with itself and stand still.",
            4: "a rate that is too high makes a loss jump. It is smooth here.",
            5: "with answers to other questions the right and the wrong answer would fare alike, and the loss would stay high.",
            6: "without steps nothing at all would move."}
    wrong = {run: {f"look again: {words}": functools.partial(int, number) for number, words in seen.items() if number != true}
             for run, true in (("run A", 2), ("run B", 3), ("run C", 1))}
    return grade(function, [()], lambda: {"run A": 2, "run B": 3, "run C": 1}, wrong,
                 "all three, from nine curves. Draw such curves before you read code.")
