"""The graders of lessons 10 and 11."""

import functools
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext

import torch

from lessons.judge import grade
from minialign.logps import add_reference
from minialign.methods import METHODS

# -------------------------------------------------------------- 10: Live with your guesses: the GPT


def pull(function: Callable) -> str:
    """How far the logit of each token itself moves: of weights (T,) and log-probs (T,)."""
    cases = []
    for weights, logps in (([0.4, -0.2, 1.5], [-3.0, -0.1, -0.7]),
                           ([1.0, -2.0, 0.3, 0.5], [-1e-12, -1e-17, -40.0, -1e-3])):
        cases.append(tuple(torch.tensor([weights, logps], dtype=torch.float64)))

    def truth(weights, logps) -> dict:
        """In 60 digits."""
        with localcontext() as context:
            context.prec = 60
            values = [float(Decimal(w) * (1 - Decimal(l).exp()))
                      for w, l in zip(weights.tolist(), logps.tolist(), strict=True)]
        return {"pull": torch.tensor(values, dtype=torch.float64)}

    return grade(function, cases, truth, {"pull": {
        "right up to the sign: the gradient is w · (softmax − onehot), and training goes against "
        "it.":
            lambda w, l: w * torch.expm1(l),
        "that is w · p, what the others lose to it. Its own logit moves by w · (1 − p).":
            lambda w, l: w * l.exp(),
        "these are the weights themselves. At the logits onehot − softmax comes with them: 1 − p.":
            lambda w, l: w,
        "that is 1 − p. The weight says how often.":
            lambda w, l: -torch.expm1(l),
        "you took the log-prob for the probability: p = e^l.":
            lambda w, l: w * (1 - l),
    }}, "little is left of a weight where the model is sure already.")


def ift(function: Callable) -> str:
    """Weights of IFT's propagated loss, with the gradient through S and Z, of losses (T,) and γ."""
    draw = torch.Generator().manual_seed(8)
    cases = []
    for T, gamma in (7, 0.95), (5, 0.4), (1, 0.7):
        cases.append((3 * torch.rand(T, generator=draw, dtype=torch.float64) ** 3 + 0.05, gamma))

    def tails(c, gamma):
        """S_t, summed as it is written."""
        sums = []
        for t in range(len(c)):
            sums.append(sum(gamma ** (i - t) * c[i] for i in range(t, len(c))))
        return torch.stack(sums)

    def loss(c, gamma):
        S = tails(c, gamma)
        return (c * S).sum() / S.sum()

    def differences(c, gamma) -> dict:
        slopes = torch.empty_like(c)
        for t in range(len(c)):
            nudge = torch.zeros_like(c)
            nudge[t] = 1e-5
            slopes[t] = (loss(c + nudge, gamma) - loss(c - nudge, gamma)) / 2e-5
        return {"weights": slopes}

    def parts(of: Callable) -> Callable:
        """A mistake in (S + P − L C) / Z, made of its parts."""
        def mistaken(c, gamma):
            S, P = tails(c, gamma), tails(c.flip(0), gamma).flip(0)
            C = tails(torch.ones_like(c), gamma).flip(0)
            return of(S, P, C, loss(c, gamma)) / S.sum()
        return mistaken

    return grade(function, cases, differences, {"weights": {
        "right up to the sign: c is *minus* the log-prob, so −∂L/∂logp = +∂L/∂c.":
            lambda c, gamma: -differences(c, gamma)["weights"],
        "those are the detached weights, S/Z. S_t and Z depend on c_j as well.":
            parts(lambda S, P, C, L: S),
        "P_j is missing: c_j is inside of S_t for every t ≤ j.":
            parts(lambda S, P, C, L: S - L * C),
        "Z was held fixed: it depends on c_j as well, which brings the term −L C_j.":
            parts(lambda S, P, C, L: S + P),
        "the sign of L C_j: raising the denominator lowers the loss.":
            parts(lambda S, P, C, L: S + P + L * C),
        "−L C_j lacks the C_j: c_j is in Z once for every t ≤ j, discounted.":
            parts(lambda S, P, C, L: S + P - L),
        "C_j counts the starts *before* j, the sum down a column. You counted what is behind it.":
            parts(lambda S, P, C, L: S + P - L * C.flip(0)),
        "the division by Z is missing.":
            lambda c, gamma: differences(c, gamma)["weights"] * tails(c, gamma).sum(),
        "these favour late tokens: you summed over i ≤ t. A token answers for what follows it.":
            lambda c, gamma: tails(c.flip(0), gamma).flip(0) / tails(c.flip(0), gamma).sum(),
        "γ is missing: what follows further away counts less.":
            lambda c, gamma: differences(c, 1.0)["weights"],
        "these are the terms of the loss itself, c_t S_t / Z. Their slopes were asked for.":
            lambda c, gamma: c * tails(c, gamma) / tails(c, gamma).sum(),
    }}, "early and surprising tokens up; late and easy ones may go down. The release does that.")


# ------------------------------------------------------------------------------------- 11: The race


def difference(function: Callable) -> str:
    """Mean of the paired differences of two lists of numbers, and its standard error."""
    draw = torch.Generator().manual_seed(11)
    cases = []
    for seeds in 5, 3, 8:
        luck = torch.randn(seeds, generator=draw, dtype=torch.float64)      # shared by both
        ours = 0.7 + 0.2 * luck + 0.03 * torch.randn(seeds, generator=draw, dtype=torch.float64)
        cases.append((ours, 0.6 + 0.2 * luck))

    def by_hand(ours, theirs) -> dict:
        gaps = [float(a) - float(b) for a, b in zip(ours, theirs, strict=True)]
        mean = sum(gaps) / len(gaps)
        variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
        return {"mean": mean, "standard error": (variance / len(gaps)) ** 0.5}

    def apart(a, b):
        """As if the seeds of the two had nothing to do with one another."""
        return ((a.var() + b.var()) / len(a)) ** 0.5

    return grade(function, cases, by_hand, {
        "mean": {
            "right up to the sign: ours − theirs.": lambda a, b: (b - a).mean(),
            "that is the sum over the seeds.": lambda a, b: (a - b).sum(),
            "that is the median.": lambda a, b: (a - b).median(),
            "that is the mean of ours alone.": lambda a, b: a.mean(),
        },
        "standard error": {
            "that is the standard deviation of the differences. A mean of n numbers is √n times "
            "more certain.":
                lambda a, b: (a - b).std(),
            "you divided by n − 1 or n twice: the standard deviation has its n − 1 already; then "
            "comes 1/√n.":
                lambda a, b: (a - b).std() / len(a),
            "that is the error if the two were apart. They share their seeds: take the "
            "differences first.":
                apart,
            "in the variance divide by n − 1: the mean was estimated from the same numbers.":
                lambda a, b: (a - b).std(unbiased=False) / len(a) ** 0.5,
            "that is the variance of the mean. Its square root was asked for.":
                lambda a, b: (a - b).var() / len(a),
        },
    }, "seeds are shared, so luck cancels. Two standard errors from 0 is where to look twice.")


BUGS = (
    "The wanted and the rejected answers are swapped.",
    "No shift: each token is scored from the place that has just read it.",
    "The reference model is the policy itself, at every update.",
    "The learning rate is thirty times too high.",
    "The answers belong to other questions.",
    "The optimizer never takes a step.",
)


def planted(examples: list, model) -> dict[str, list[tuple]]:
    """Spoilers! {run: [(healthy method, its examples), (the one with a bug, its examples)]}.

    Every example has two answers.
    """
    class NoShift(METHODS["sft"]):
        def prepare(self, model, parts):
            return [self.unshifted(part) for part in parts]

        def unshifted(self, batch):
            # The state that has read token t is the one that predicts token t + 1.
            source = batch.rows.source.clone()
            source[..., :-1] = torch.where(batch.mask[..., 1:], source[..., 1:], source[..., :-1])
            return replace(batch, rows=replace(batch.rows, source=source))

    class LiveReference(METHODS["dpo"]):
        def weigh(self, logps, batch):
            live = (logps * batch.mask).sum(-1).double()
            return super().weigh(logps, replace(batch, ref_logps=live))

    paired = [replace(example) for example in examples]
    add_reference(model, paired, micro_batch=64, progress=False)
    swapped = [replace(example, answers=example.answers[::-1]) for example in examples]
    return {"A": [(METHODS["sft"](), examples), (NoShift(), examples)],
            "B": [(METHODS["dpo"](), paired), (LiveReference(), paired)],
            "C": [(METHODS["asft"](), examples), (METHODS["asft"](), swapped)]}


def bug_hunt(function: Callable) -> str:
    """Which of BUGS, by number, runs A, B and C have."""
    seen = {
        1: "swapped answers would make the right one fall and keep the wrong one up, with a loss "
           "that falls as it should.",
        2: "a loss without the shift says nothing about what is tested: it falls, and both "
           "held-out answers go down with it.",
        3: "if the reference were the policy, the loss would compare a thing with itself and "
           "stand still.",
        4: "at a rate that is too high the loss would go up at once, and stay above its start.",
        5: "with answers to other questions both held-out answers would fall, to about −10: what "
           "an answer looks like would still be learnt.",
        6: "without steps nothing at all would move.",
    }
    wrong = {}
    for run, true in (("run A", 2), ("run B", 3), ("run C", 1)):
        wrong[run] = {}
        for number, words in seen.items():
            if number != true:
                wrong[run][f"look again: {words}"] = functools.partial(int, number)
    return grade(function, [()], lambda: {"run A": 2, "run B": 3, "run C": 1}, wrong,
                 "all three, from nine curves. Draw such curves before you read code.")
