"""The graders of lessons 05 to 07."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import torch

from lessons.judge import grade

# -------------------------------------------------------------------------------------- 05: Imitate


def sft(function: Callable) -> str:
    """Weights (B, T) of the mean over answers of the mean over tokens, of a mask (B, T)."""
    cases = []
    for lengths in (3, 5, 1), (2, 7), (4,):
        longest = max(lengths) + 1
        cases.append((torch.arange(longest) < torch.tensor(lengths)[:, None],))

    def differences(mask) -> dict:
        """The loss is linear in every log-prob, so one nudge of 1 measures its slope."""
        def loss(logps):
            means = [logps[b, here].mean() for b, here in enumerate(mask)]
            return -sum(means) / len(means)

        weights = torch.zeros(mask.shape, dtype=torch.float64)
        for place in mask.nonzero().tolist():
            nudge = torch.zeros_like(weights)
            nudge[tuple(place)] = 1.0
            weights[tuple(place)] = -loss(nudge)
        return {"weights": weights}

    def n(mask):
        return mask.sum(-1, keepdim=True)

    return grade(function, cases, differences, {"weights": {
        "right up to the sign: these push the answers down. A weight is *minus* the slope.":
            lambda mask: mask / (-len(mask) * n(mask)),
        "the padding is pushed as well: multiply with the mask.":
            lambda mask: (1 / (len(mask) * n(mask))).expand(mask.shape),
        "every answer is divided by the longest row, padding included. Count its own tokens.":
            lambda mask: mask / mask.numel(),
        "that is the mean over all tokens of the batch: long answers would count more.":
            lambda mask: mask / mask.sum(),
        "that is 1/B, the weight for sums over tokens. The mean also divides by n_b.":
            lambda mask: mask / len(mask),
        "the mean over the answers is missing: divide by B as well.":
            lambda mask: mask / n(mask),
        "that is 1 on every token. A mean over tokens and one over answers are to be divided by.":
            lambda mask: mask.double(),
    }}, "up, all alike, for ever. That is the whole of supervised fine-tuning.")


def prefix(function: Callable) -> str:
    """How many tokens of a bad answer have the good answer's own log-probs: two lists of ids."""
    cases = [([9, 1, 7, 2, 7, 0], [9, 1, 3, 2, 7, 7, 0]),       # parts, then looks alike again
             ([5, 5, 0], [5, 5, 5, 0]),                         # the good one ends first
             ([8, 4, 6, 6, 0], [8, 4, 0]),                      # the bad one ends first
             ([3, 2, 0], [1, 2, 0]),                            # nothing in common but the rest
             ([6, 7, 0], [6, 7, 0])]                            # the same answer

    def common(good, bad) -> int:
        return max(k for k in range(min(len(good), len(bad)) + 1) if good[:k] == bad[:k])

    return grade(function, cases, lambda good, bad: {"prefix": common(good, bad)}, {"prefix": {
        "you count equal tokens wherever they stand. After the first difference even the same "
        "token has another context.":
            lambda good, bad: sum(g == b for g, b in zip(good, bad, strict=False)),
        "you count tokens that occur in both, in whatever order. The log-prob of a token depends "
        "on all tokens before it.":
            lambda good, bad: len(set(good) & set(bad)),
        "one too many: the token where they part has the same context but is another token, with "
        "a log-prob of its own.":
            lambda good, bad: common(good, bad) + 1,
        "one too few. Do you count from 0, or leave out the last token they share?":
            lambda good, bad: common(good, bad) - 1,
        "the end token is left out. It is a token like any other.":
            lambda good, bad: common(good[:-1], bad[:-1]),
        "that is the length of the shorter answer; they part before.":
            lambda good, bad: min(len(good), len(bad)),
    }}, "one opening, one set of log-probs. SFT cannot raise the one without the other there.")


# ----------------------------------------------------------------------------------- 06: Absolutely


def dpo(function: Callable) -> str:
    """−∂L/∂l_w and −∂L/∂l_l of DPO's loss, pair by pair: l_w, l_l, ref_w, ref_l (B,), β."""
    cases = []
    for numbers, beta in ((([-1.2, -8.5, -0.3], [-0.4, -9.0, -40.0],
                            [-1.4, -2.5, -1.1], [-0.5, -1.5, -2.0]), 0.1),
                          (([-30.0, -2.0], [-3.0, -60.0], [-2.0, -2.2], [-2.5, -1.0]), 0.4)):
        cases.append((*torch.tensor(numbers, dtype=torch.float64), beta))

    def loss(l_w, l_l, ref_w, ref_l, beta):
        margin = beta * ((l_w - ref_w) - (l_l - ref_l))
        return torch.logaddexp(torch.zeros_like(margin), -margin)           # −log σ(m)

    def differences(l_w, l_l, ref_w, ref_l, beta) -> dict:
        def slope(nudge_w, nudge_l):
            return (loss(l_w + nudge_w, l_l + nudge_l, ref_w, ref_l, beta)
                    - loss(l_w - nudge_w, l_l - nudge_l, ref_w, ref_l, beta)) / 2e-4

        return {"push on the chosen answer": -slope(1e-4, 0),
                "push on the rejected answer": -slope(0, 1e-4)}

    def sizes(sign: int) -> dict:
        """Mistakes in the size of the push, with the push's own sign."""
        def mistaken(of: Callable) -> Callable:
            return lambda l_w, l_l, ref_w, ref_l, beta: sign * of(
                l_w - ref_w, l_l - ref_l, l_w - l_l, ref_l - ref_w, beta)

        return {
            "that is β σ(m), which grows when the pair is ranked right. It should fade: σ(−m).":
                mistaken(lambda s_w, s_l, raw, ref, b: b * torch.sigmoid(b * (s_w - s_l))),
            "the reference is missing: a margin compares how far the two log-probs have moved.":
                mistaken(lambda s_w, s_l, raw, ref, b: b * torch.sigmoid(-b * raw)),
            "the reference has the wrong sign: s = l − l_ref.":
                mistaken(lambda s_w, s_l, raw, ref, b: b * torch.sigmoid(-b * (raw - ref))),
            "the β in front is missing: m contains β l, so the chain rule brings a factor β.":
                mistaken(lambda s_w, s_l, raw, ref, b: torch.sigmoid(-b * (s_w - s_l))),
            "the β inside is missing: m = β (s_w − s_l).":
                mistaken(lambda s_w, s_l, raw, ref, b: b * torch.sigmoid(s_l - s_w)),
            "that is the loss, −log σ(m). Its slope was asked for.":
                mistaken(lambda s_w, s_l, raw, ref, b:
                         -torch.nn.functional.logsigmoid(b * (s_w - s_l))),
        }

    return grade(function, cases, differences, {
        "push on the chosen answer": {
            "right up to the sign: a push is minus the slope, so the chosen answer goes up.":
                lambda *pair: -differences(*pair)["push on the chosen answer"],
            **sizes(+1)},
        "push on the rejected answer": {
            "right up to the sign: this pushes the rejected answer up.":
                lambda *pair: -differences(*pair)["push on the rejected answer"],
            "nothing pushes the rejected answer. m falls by β when l_l rises by 1.":
                lambda *pair: torch.zeros_like(pair[0]),
            **sizes(-1)},
    }, "the same push, up and down. It fades as the margin grows, and not before.")


def asft(function: Callable) -> str:
    """−∂L/∂a_w and −∂L/∂a_l of ASFT's loss, pair by pair: a_w, a_l (B,), λ."""
    cases = []
    for w, l, lam in (([-0.9, -2.5, -0.05], [-1.3, math.log(0.5), -0.2], 0.1),
                      ([-0.4, -30.0, -1e-3], [-40.0, -1e-6, -1e-17], 0.7)):
        cases.append((*torch.tensor([w, l], dtype=torch.float64), lam))

    def loss(a_w: Decimal, a_l: Decimal, lam: Decimal) -> Decimal:
        """As the paper has it, with odds, in 60 digits."""
        odds_w, odds_l = (a.exp() / (1 - a.exp()) for a in (a_w, a_l))
        return -a_w + lam * ((1 + 1 / odds_w).ln() + (1 + odds_l).ln())

    def differences(a_w, a_l, lam) -> dict:
        up, down = torch.empty_like(a_w), torch.empty_like(a_l)
        with localcontext() as context:
            context.prec = 60
            lam, step = Decimal(str(lam)), Decimal("1e-20")
            for b, (w, l) in enumerate(zip(a_w.tolist(), a_l.tolist(), strict=True)):
                w, l = Decimal(w), Decimal(l)
                more, less = loss(w + w * step, l, lam), loss(w - w * step, l, lam)
                up[b] = -float((more - less) / (2 * w * step))
                more, less = loss(w, l + l * step, lam), loss(w, l - l * step, lam)
                down[b] = -float((more - less) / (2 * l * step))
        return {"push on the chosen answer": up, "push on the rejected answer": down}

    return grade(function, cases, differences, {
        "push on the chosen answer": {
            "right up to the sign: that is the slope of the loss. A push is minus the slope, so "
            "the chosen answer goes up.":
                lambda w, l, lam: torch.full_like(w, -1 - lam),
            "that is the SFT term alone. The alignment term, −λ log σ(log O_w) = −λ a_w, adds its "
            "own.":
                lambda w, l, lam: torch.ones_like(w),
            "that is the alignment term alone. The SFT term, −a_w, adds its own.":
                lambda w, l, lam: torch.full_like(w, lam),
            "that is −∂L/∂p_w. The slope was asked in a = log p, which has a factor p more.":
                lambda w, l, lam: (1 + lam) / w.exp()},
        "push on the rejected answer": {
            "right up to the sign: this raises the rejected answer.":
                lambda w, l, lam: lam / torch.expm1(-l),
            "λ is missing.":
                lambda w, l, lam: -1 / torch.expm1(-l),
            "that is −∂L/∂p_l. The slope was asked in a = log p, which has a factor p more.":
                lambda w, l, lam: lam / torch.expm1(l),
            "that is −λ p; the slope of log(1 − p) also has 1 − p below.":
                lambda w, l, lam: -lam * l.exp(),
            "you used the chosen answer's log-prob in it.":
                lambda w, l, lam: -lam / torch.expm1(-w),
            "that is as hard as the push up, as in DPO. Here each answer is judged alone.":
                lambda w, l, lam: torch.full_like(l, -1 - lam),
            "right, but for probabilities within rounding of 1: there 1 − eᵃ is 0. Use "
            "torch.expm1.":
                lambda w, l, lam: -lam * l.exp() / (1 - l.exp())},
    }, "up for ever, down by the odds: nothing at p = 0, λ at ½, without bound at 1.")


# --------------------------------------------------------------------------------- 07: Discriminate


def dft(function: Callable) -> str:
    """log u after a visit and −∂F/∂s of all answers: l, ref (1+K, B), log u (B,), τ, γ."""
    draw = torch.Generator().manual_seed(5)
    cases = []
    for K, B, tau, gamma in (3, 2, 0.8, 0.9), (2, 3, 1.0, 0.4), (4, 1, 1.6, 1.0):
        l, ref = (-6 * torch.rand(2, 1 + K, B, generator=draw, dtype=torch.float64)).unbind()
        if K == 4:
            l[:, 0] -= 2000                 # exp(l − ref) underflows: only logarithms can hold it
        log_u = 0.3 * torch.randn(B, generator=draw, dtype=torch.float64)
        cases.append((l, ref, log_u, tau, gamma))

    def definition(l, ref, log_u, tau, gamma) -> dict:
        """Equations 7 and 8 in 60 digits, without logarithms."""
        K, new, pushes = len(l) - 1, torch.empty_like(log_u), torch.ones_like(l)
        with localcontext() as context:
            context.prec = 60
            tau, gamma = Decimal(tau), Decimal(gamma)
            for b, old in enumerate(log_u.tolist()):
                pairs = zip(l[1:, b].tolist(), ref[1:, b].tolist(), strict=True)
                ratios = [(Decimal(s) / tau - Decimal(r)).exp() for s, r in pairs]
                u = (1 - gamma) * Decimal(old).exp() + gamma * sum(ratios) / K
                new[b] = float(u.ln())
                for j, ratio in enumerate(ratios, start=1):
                    pushes[j, b] = -float(ratio / (K * u))
        return {"log u": new, "pushes": pushes}

    def exponents(l, ref, log_u, tau, gamma):
        """d of the negatives, and log û."""
        d = l[1:] / tau - ref[1:]
        return d, d.logsumexp(0) - math.log(len(d))

    def average(log_u, log_new, gamma):
        keep = math.log(1 - gamma) if gamma < 1 else -math.inf
        return torch.logaddexp(keep + log_u, math.log(gamma) + log_new)

    def other_exponents(change: Callable) -> Callable:
        """A mistake in what is exponentiated; → log u."""
        def mistaken(l, ref, log_u, tau, gamma):
            l, ref, tau = change(l, ref, tau)
            return average(log_u, exponents(l, ref, log_u, tau, gamma)[1], gamma)
        return mistaken

    def pushed(down: Callable, up: float = 1.0) -> Callable:
        """The pushes of somebody with another ω."""
        def mistaken(*visit):
            omega = -definition(*visit)["pushes"][1:]
            return torch.cat([torch.full_like(visit[0][:1], up), -down(omega, *visit)])
        return mistaken

    def by_another_u(log_u_of: Callable) -> Callable:
        def down(omega, *visit):
            d, log_new = exponents(*visit)
            return (d - log_u_of(visit[2], log_new) - math.log(len(d))).exp()
        return pushed(down)

    return grade(function, cases, definition, {
        "log u": {
            "that is u itself. Its logarithm was asked for.":
                lambda *visit: definition(*visit)["log u"].exp(),
            "the roles of old and new are swapped: γ is the share of the newest estimate.":
                lambda *visit: average(
                    exponents(*visit)[1], visit[2], visit[4]),
            "that is û alone. The running average keeps a share 1 − γ of the old u.":
                lambda *visit: exponents(*visit)[1],
            "the wanted answer is in û as well. Only the negatives are drawn from the reference.":
                other_exponents(lambda l, ref, tau: (
                    torch.cat([l[:1], l]), torch.cat([ref[:1], ref]), tau)),
            "P_ref is missing: d_j = s_j/τ − log P_ref(y_j).":
                other_exponents(lambda l, ref, tau: (l, 0 * ref, tau)),
            "τ is missing: d_j = s_j/τ − log P_ref(y_j).":
                other_exponents(lambda l, ref, tau: (l, ref, 1.0)),
            "τ divides all of d. It divides the score alone: d_j = s_j/τ − log P_ref(y_j).":
                other_exponents(lambda l, ref, tau: (l, ref / tau, tau)),
            "û is a *mean* over the K negatives, not their sum.":
                lambda l, ref, log_u, tau, gamma: average(
                    log_u, (l[1:] / tau - ref[1:]).logsumexp(0), gamma),
            "the logarithms are averaged. The mean is over u and û themselves.":
                lambda *visit: (1 - visit[4]) * visit[2] + visit[4] * exponents(*visit)[1],
        },
        "pushes": {
            "right up to the sign: the wanted answer goes up and the negatives go down.":
                pushed(lambda omega, *visit: -omega, up=-1.0),
            "the wanted answer goes up: −∂F/∂s₀ = +1.":
                pushed(lambda omega, *visit: omega, up=-1.0),
            "these push the negatives *up*: −∂F/∂s_j = −ω_j.":
                pushed(lambda omega, *visit: -omega),
            "they are divided by the old u. Take the updated one (eq. 8).":
                by_another_u(lambda old, new: old),
            "they are divided by û of this visit, which remembers nothing. Take the updated u.":
                by_another_u(lambda old, new: new),
            "the 1/K is missing: û is a mean, so each negative has a K-th of it.":
                pushed(lambda omega, *visit: len(omega) * omega),
            "every push down is too small by a factor γ: that is autograd's, through u. Eq. 8 "
            "takes û's own slope.":
                pushed(lambda omega, *visit: visit[4] * omega),
        },
    }, "DFT, in six lines. Nobody had to say which answers are bad.",
        overflow="exp(d) under- or overflows: stay in logs, with logsumexp and logaddexp.")


def keep(function: Callable) -> str:
    """Which examples' labels are not among their negatives: label (B,), negatives (K, B)."""
    cases = [(torch.tensor([0, 1, 1, 0]), torch.tensor([[1, 1, 0, 0], [1, 0, 7, 3]])),
             (torch.tensor([2, 0, 5]), torch.tensor([[2, 4, 1], [2, 0, 1], [2, 3, 1]])),
             (torch.tensor([3, 1]), torch.tensor([[1, 3]]))]

    def kept(label, negatives) -> list[bool]:
        return [not any(int(n) == int(y) for n in negatives[:, b]) for b, y in enumerate(label)]

    return grade(function, cases, lambda *x: {"kept": kept(*x)}, {"kept": {
        "the wrong way round: these are the examples to drop.":
            lambda y, negatives: (negatives == y).any(0),
        "you drop an example only if *all* negatives repeat its label. One is enough.":
            lambda y, negatives: ~(negatives == y).all(0),
        "only the first negative is looked at.":
            lambda y, negatives: negatives[0] != y,
        "you compare with the negatives of all examples. Those of its own count.":
            lambda y, negatives: ~torch.isin(y, negatives),
        "the filter kept everything. Compare each label with its own column of negatives.":
            lambda y, negatives: torch.ones_like(y),
    }}, "one line, and no method at all: what the negatives repeat is not trained on.")


def silent_bug(function: Callable) -> str:
    """Autograd's push down where u was not held fixed, as a multiple of eq. 8's: of γ, τ and K."""
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
        "no factor would mean no bug. u itself depends on s_j: follow it through the line that "
        "updates u.":
            lambda gamma, tau, K: 1.0,
        "upside down: autograd sees only a part of what u would have to change, so its push is "
        "too small.":
            lambda gamma, tau, K: 1 / gamma,
        "that is the share of the old u, which does not depend on s_j at all. Which share does?":
            lambda gamma, tau, K: 1 - gamma,
        "the τ in front of the logarithm and the 1/τ inside the exponential cancel; one of them is "
        "missing.":
            lambda gamma, tau, K: gamma / tau,
        "you kept the τ in front of the logarithm and lost the 1/τ inside the exponential.":
            lambda gamma, tau, K: gamma * tau,
        "the mean's 1/K is in ω_j already (eq. 8), so it does not show in the ratio.":
            lambda gamma, tau, K: gamma / K,
        "right up to the sign: ω_j counts pushes down as positive, and so does this ratio.":
            lambda gamma, tau, K: -gamma,
    }}, "γ. With γ = 0.9 nobody would notice 10 % less push; the release stops the gradient, and "
        "so do we.")
