"""The graders of lessons 02 to 06: the truth from the definition, on awkward inputs, and what mistakes would have given."""

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import torch
from judge import grade

# ---------------------------------------------------------------------------------------------------- 02: score an answer

def score(function: Callable) -> str:
    """Log-prob of an answer from logits (L, V), tokens (L,) and the mask of the answer's tokens (L,)."""
    draw = torch.Generator().manual_seed(1)
    cases = []
    for prompt, answer, padding in (4, 3, 2), (2, 5, 0), (3, 1, 4):
        length = prompt + answer + padding
        z = 3 * torch.randn(length, 7, generator=draw, dtype=torch.float64) + 100
        z[prompt, 2] += 900                     # a token that is almost certain; exp(1000) overflows
        tokens = torch.randint(7, (length,), generator=draw)
        is_answer = (torch.arange(length) >= prompt) & (torch.arange(length) < prompt + answer)
        cases.append((z, tokens, is_answer))

    def logp(z, token) -> float:
        return float(z[token] - z.max() - (z - z.max()).exp().sum().log())

    def total(z, tokens, places, shift=1) -> float:
        return sum(logp(z[t - shift], tokens[t]) for t in places)

    def places(mask) -> list[int]:
        return mask.nonzero()[:, 0].tolist()

    return grade(function, cases, lambda z, tokens, mask: {"log-prob": total(z, tokens, places(mask))}, {"log-prob": {
        "you read each token from the logits at its own place. They speak about the next token: shift by one.":
            lambda z, tokens, mask: total(z, tokens, places(mask), shift=0),
        "tokens and logits are shifted well, but the mask stayed behind. It says which token is scored, so it goes with them.":
            lambda z, tokens, mask: total(z, tokens, [t + 1 for t in places(mask[:-1])]),
        "the prompt is scored as well. Its tokens are given; the mask should keep them out.":
            lambda z, tokens, mask: total(z, tokens, range(1, places(mask)[-1] + 1)),
        "prompt and padding are scored as well. Only the mask knows which tokens are the answer's.":
            lambda z, tokens, mask: total(z, tokens, range(1, len(tokens))),
        "the padding is scored as well. Only the mask knows where the answer ends.":
            lambda z, tokens, mask: total(z, tokens, range(places(mask)[0], len(tokens))),
        "the first token of the answer is missing. The last token of the prompt predicts it.":
            lambda z, tokens, mask: total(z, tokens, places(mask)[1:]),
        "that is the mean over the answer's tokens. Log-probs of parts add up; nothing is divided.":
            lambda z, tokens, mask: total(z, tokens, places(mask)) / int(mask.sum()),
        "that is the mean over the whole row, prompt and padding included. Nothing is divided here.":
            lambda z, tokens, mask: total(z, tokens, places(mask)) / len(tokens),
        "these are logits added up. A log-prob is a logit minus the logsumexp of its row.":
            lambda z, tokens, mask: sum(float(z[t - 1, tokens[t]]) for t in places(mask)),
        "that is the probability. Its logarithm was asked for, the sum and not the product.":
            lambda z, tokens, mask: torch.tensor(total(z, tokens, places(mask))).exp(),
    }}, "shifted by one, masked, and it does not overflow. That is all a method ever sees of a model.")


# ---------------------------------------------------------------------------------------------------- 03: push

def push(function: Callable) -> str:
    """∂loss/∂z for loss = −Σ weights · log-prob: logits (T, V), tokens (T,), weights (T,), 0 on padding."""
    draw = torch.Generator().manual_seed(2)
    cases = []
    for answer, padding, V in (7, 3, 5), (4, 0, 6):
        z = 2 * torch.randn(answer + padding, V, generator=draw, dtype=torch.float64)
        z[1] += 900                             # exp(900) overflows
        y = torch.randint(V, (answer + padding,), generator=draw)
        weights = torch.randn(answer + padding, generator=draw, dtype=torch.float64)
        weights[answer:] = 0
        cases.append((z, y, weights))

    def differences(z, y, weights) -> dict:
        """From the definition of a derivative, without the formula that is asked for."""
        def loss(z):
            return -(weights * (z.gather(1, y[:, None])[:, 0] - z.logsumexp(1))).sum()

        gradient, step = torch.empty_like(z), 1e-4
        for t, v in itertools.product(*map(range, z.shape)):
            nudge = torch.zeros_like(z)
            nudge[t, v] = step
            gradient[t, v] = (loss(z + nudge) - loss(z - nudge)) / (2 * step)
        return {"gradient": gradient}

    def softmax(z):
        return z.softmax(-1)

    def onehot(z, y):
        return torch.eye(z.shape[1], dtype=z.dtype)[y]

    return grade(function, cases, differences, {"gradient": {
        "right up to the sign: this is where the logits should go. The gradient points the other way, to where the loss grows.":
            lambda z, y, w: w[:, None] * (onehot(z, y) - softmax(z)),
        "the weights are missing: this is softmax − onehot, the gradient for weights of 1.":
            lambda z, y, w: softmax(z) - onehot(z, y),
        "you divided by the number of rows, padding included. The weights already hold whatever is to be divided by.":
            lambda z, y, w: w[:, None] * (softmax(z) - onehot(z, y)) / len(y),
        "you divided by the number of answer tokens. The weights already hold whatever is to be divided by.":
            lambda z, y, w: w[:, None] * (softmax(z) - onehot(z, y)) / (w != 0).sum(),
        "the weight multiplies the one-hot row alone. It belongs to the whole bracket: (softmax − onehot).":
            lambda z, y, w: softmax(z) - w[:, None] * onehot(z, y),
        "the weight multiplies the softmax alone. It belongs to the whole bracket: (softmax − onehot).":
            lambda z, y, w: w[:, None] * softmax(z) - onehot(z, y),
        "the one-hot row is missing: this pushes everything down and nothing up.":
            lambda z, y, w: w[:, None] * softmax(z),
        "only the token's own logit moves: the softmax, what all others pay, is missing.":
            lambda z, y, w: -w[:, None] * onehot(z, y),
        "these are log-probs minus onehot. The slope of logsumexp is the softmax itself.":
            lambda z, y, w: w[:, None] * (z.log_softmax(-1) - onehot(z, y)),
        "the softmax runs over time. A distribution is one row: over the vocabulary, dim −1.":
            lambda z, y, w: w[:, None] * (z.softmax(0) - onehot(z, y)),
        "only the sign of the weights is used. Their size counts as well.":
            lambda z, y, w: w.sign()[:, None] * (softmax(z) - onehot(z, y)),
    }}, "weights · (softmax − onehot). Every method here goes through this line; only the weights differ.")


# ---------------------------------------------------------------------------------------------------- 12: the chunked backward

def backward(function: Callable) -> str:
    """d_h and d_W for loss = −Σ weights · log-prob from h (N, C), W (V, C), targets, logsumexps, weights and a chunk size."""
    draw = torch.Generator().manual_seed(3)
    cases = []
    for N, C, V, chunk in (7, 3, 5, 3), (4, 2, 6, 4), (5, 4, 3, 9):
        h, W = (torch.randn(n, C, generator=draw, dtype=torch.float64) for n in (N, V))
        targets, weights = torch.randint(V, (N,), generator=draw), torch.randn(N, generator=draw, dtype=torch.float64)
        cases.append((h, W, targets, (h @ W.T).logsumexp(-1), weights, chunk))

    def loss(h, W, targets, weights):
        z = h @ W.T
        return -(weights * (z.gather(1, targets[:, None])[:, 0] - z.logsumexp(-1))).sum()

    def differences(h, W, targets, lse, weights, chunk) -> dict:
        slopes = {}
        for name, x in ("d_h", h), ("d_W", W):
            slopes[name] = torch.empty_like(x)
            for place in itertools.product(*map(range, x.shape)):
                ends = []
                for step in 1e-5, -1e-5:
                    moved = x.clone()
                    moved[place] += step
                    ends.append(loss(moved, W, targets, weights) if x is h else loss(h, moved, targets, weights))
                slopes[name][place] = (ends[0] - ends[1]) / 2e-5
        return slopes

    def mistaken(name, d_logits=lambda p, onehot, w, chunk: w[:, None] * (p - onehot), rows=lambda N, chunk: range(N)):
        """The gradient `name` of the big matrices, with other d_logits or summed over other rows."""
        def value(h, W, targets, lse, weights, chunk):
            onehot = torch.eye(len(W), dtype=W.dtype)[targets]
            d = d_logits((h @ W.T - lse[:, None]).exp(), onehot, weights, chunk)
            only = torch.zeros(len(h), 1, dtype=h.dtype)
            only[list(rows(len(h), chunk))] = 1
            return (d * only) @ W if name == "d_h" else (d * only).T @ h
        return value

    def both(name):
        return {
            "right up to the sign: weights are minus the slope of the loss, so d_logits = weights · (softmax − onehot).":
                mistaken(name, lambda p, onehot, w, chunk: -w[:, None] * (p - onehot)),
            "the weights are missing.": mistaken(name, lambda p, onehot, w, chunk: p - onehot),
            "every chunk uses the weights of the first one. They are sliced like the rows.":
                mistaken(name, lambda p, onehot, w, chunk: w[torch.arange(len(w)) % chunk, None] * (p - onehot)),
            "the one-hot rows are missing.": mistaken(name, lambda p, onehot, w, chunk: w[:, None] * p),
            "the last chunk is left out where it is shorter than the others.":
                mistaken(name, rows=lambda N, chunk: range(N // chunk * chunk)),
            "only the first chunk is there. Did the loop end early?":
                mistaken(name, rows=lambda N, chunk: range(min(chunk, N))),
        }

    return grade(function, cases, differences, {
        "d_h": both("d_h"),
        "d_W": {"only the last chunk is in it. It is a sum over all rows, so chunks add to it.":
                mistaken("d_W", rows=lambda N, chunk: range((N - 1) // chunk * chunk, N)), **both("d_W")},
    }, "every row once, whatever the chunk. A vocabulary of any size now fits.")


# ---------------------------------------------------------------------------------------------------- 05: the shared opening

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


# ---------------------------------------------------------------------------------------------------- 06: ASFT's weights

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
