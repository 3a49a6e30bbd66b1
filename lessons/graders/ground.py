"""The graders of lessons 01 to 03."""

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from lessons.judge import grade

# -------------------------------------------------------------------------------- 01: a GPT, opened


def rotate(function: Callable) -> str:
    """Queries or keys (L, H, D), turned by angles (L, D/2)."""
    draw = torch.Generator().manual_seed(1)
    cases = []
    for L, H, D in (3, 2, 6), (4, 3, 2), (2, 1, 8):
        x = torch.randn(L, H, D, generator=draw, dtype=torch.float64)
        cases.append((x, 3 * torch.rand(L, D // 2, generator=draw, dtype=torch.float64)))

    def as_complex(x, angles, sign=1.0, neighbours=False):
        """A pair as a complex number, which is turned by a factor exp(iφ)."""
        if neighbours:
            a, b = x[..., 0::2], x[..., 1::2]
        else:
            a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        turned = torch.complex(a, b) * torch.exp(sign * 1j * angles[:, None])
        if neighbours:
            return torch.stack([turned.real, turned.imag], -1).flatten(-2)
        return torch.cat([turned.real, turned.imag], -1)

    def unsigned(x, angles):
        """Both products added, where one of them belongs subtracted."""
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos + b * sin, a * sin + b * cos], -1)

    return grade(function, cases, lambda x, angles: {"turned": as_complex(x, angles)}, {"turned": {
        "turned the wrong way round: a becomes a cos φ − b sin φ, with a minus.":
            lambda x, angles: as_complex(x, angles, sign=-1.0),
        "you paired neighbours, numbers 2i and 2i + 1. Here number i goes with number i + D/2.":
            lambda x, angles: as_complex(x, angles, neighbours=True),
        "a sign is missing: a becomes a cos φ − b sin φ, and b becomes a sin φ + b cos φ.":
            unsigned,
        "the rotated numbers stand in the wrong half: first all a', then all b'.":
            lambda x, angles: torch.cat(as_complex(x, angles).chunk(2, -1)[::-1], -1),
        "nothing is turned: this is x itself.": lambda x, angles: x,
        "sine and cosine are swapped: by an angle of 0 nothing should move.":
            lambda x, angles: as_complex(x, torch.pi / 2 - angles),
    }}, "lengths stay, and products depend on the distance alone.")


def causal_mask(function: Callable) -> str:
    """Who may look at whom in a text of so many tokens: bool (length, length)."""
    def table(length, may=lambda t, s: s <= t, yes=1.0, no=0.0):
        rows = [[yes if may(t, s) else no for s in range(length)] for t in range(length)]
        return torch.tensor(rows, dtype=torch.float64)

    return grade(function, [(5,), (1,), (8,)], lambda length: {"mask": table(length)}, {"mask": {
        "rows and columns are swapped: your tokens see the future, and nothing of the past.":
            lambda length: table(length, lambda t, s: s >= t),
        "True and False are swapped: this says who may *not* look.":
            lambda length: table(length, lambda t, s: s > t),
        "a token does not see itself in it. The first one would have nothing to look at.":
            lambda length: table(length, lambda t, s: s < t),
        "everybody sees everybody, the future included.":
            lambda length: table(length, lambda t, s: True),
        "that is a mask to be added, 0 and −∞. Here True and False are asked for.":
            lambda length: table(length, yes=0.0, no=-math.inf),
        "everybody sees the last two tokens only. There is no window here.":
            lambda length: table(length, lambda t, s: t - 1 <= s <= t),
    }}, "a triangle. It turns one text into as many questions as it has tokens.")


# ------------------------------------------------------------------------------ 02: score an answer


def log_softmax(function: Callable) -> str:
    """Log-probs (L, V) of all tokens, from logits (L, V)."""
    draw = torch.Generator().manual_seed(2)
    cases = []
    for shape, level in ((3, 5), 0.3), ((4, 7), 900.0), ((2, 3), -900.0):
        z = 2 * torch.randn(shape, generator=draw, dtype=torch.float64) + level
        z[1, 2] += 40
        cases.append((z,))

    def by_definition(z) -> dict:
        """The logarithm of each probability, in 60 digits."""
        rows = []
        with localcontext() as context:
            context.prec, context.Emin, context.Emax = 60, -9999, 9999
            for row in z.tolist():
                exps = [Decimal(number).exp() for number in row]
                rows.append([float((one / sum(exps)).ln()) for one in exps])
        return {"log-probs": torch.tensor(rows, dtype=torch.float64)}

    return grade(function, cases, by_definition, {"log-probs": {
        "these are the probabilities. Their logarithms were asked for.":
            lambda z: z.softmax(-1),
        "the softmax runs over the rows. A distribution is one row: over the vocabulary, dim −1.":
            lambda z: z.log_softmax(0),
        "you subtracted one logsumexp for the whole matrix. Each row is a distribution of its own.":
            lambda z: z - z.flatten().logsumexp(0),
        "you subtracted the largest logit; the logarithm of the sum of exponentials is missing.":
            lambda z: z - z.max(-1, keepdim=True).values,
        "the logarithm is missing: you subtracted the sum of the exponentials itself.":
            lambda z: z - z.max(-1, keepdim=True).values
            - (z - z.max(-1, keepdim=True).values).exp().sum(-1, keepdim=True),
        "these are the logits as they came. Minus the logsumexp of each row, they are log-probs.":
            lambda z: z,
        "you added the logsumexp. The logarithm of a quotient is a difference.":
            lambda z: z + z.logsumexp(-1, keepdim=True),
    }}, "each row is a distribution, whatever the size of its logits.",
        overflow="The exponential of 900 overflows: subtract each row's largest logit first.")


def score(function: Callable) -> str:
    """Log-prob of an answer, of logits (L, V), tokens (L,) and which are the answer's (L,)."""
    draw = torch.Generator().manual_seed(1)
    cases = []
    for prompt, answer, padding in (4, 3, 2), (2, 5, 0), (3, 1, 4):
        length = prompt + answer + padding
        z = 3 * torch.randn(length, 7, generator=draw, dtype=torch.float64) + 100
        z[prompt, 2] += 900                     # almost certain; exp(1000) overflows
        tokens = torch.randint(7, (length,), generator=draw)
        is_answer = (torch.arange(length) >= prompt) & (torch.arange(length) < prompt + answer)
        cases.append((z, tokens, is_answer))

    def logp(z, token) -> float:
        return float(z[token] - z.max() - (z - z.max()).exp().sum().log())

    def places(mask) -> list[int]:
        return mask.nonzero()[:, 0].tolist()

    def total(z, tokens, where, shift=1) -> float:
        return sum(logp(z[t - shift], tokens[t]) for t in where)

    def right(z, tokens, mask) -> float:
        return total(z, tokens, places(mask))

    return grade(function, cases, lambda *case: {"log-prob": right(*case)}, {"log-prob": {
        "you read each token from the logits at its own place. They speak about the next token: "
        "shift by one.":
            lambda z, tokens, mask: total(z, tokens, places(mask), shift=0),
        "tokens and logits are shifted well, but the mask stayed behind. It says which token is "
        "scored, so it goes with them.":
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
            lambda z, tokens, mask: right(z, tokens, mask) / int(mask.sum()),
        "that is the mean over the whole row, prompt and padding too. Nothing is divided here.":
            lambda z, tokens, mask: right(z, tokens, mask) / len(tokens),
        "these are logits added up. A log-prob is a logit minus the logsumexp of its row.":
            lambda z, tokens, mask: sum(float(z[t - 1, tokens[t]]) for t in places(mask)),
        "that is the probability. Its logarithm was asked for, the sum and not the product.":
            lambda *case: math.exp(right(*case)),
    }}, "shifted by one, masked, and it does not overflow. A method sees nothing else of a model.",
        overflow="The exponential of a large logit overflows: use log_softmax, torch's or yours.")


# ----------------------------------------------------------------------------------------- 03: push


def slopes(f: Callable, x: Tensor, step: float = 1e-5) -> Tensor:
    """∂f/∂x by central differences, one number of x at a time."""
    slope = torch.empty_like(x)
    for place in itertools.product(*map(range, x.shape)):
        nudge = torch.zeros_like(x)
        nudge[place] = step
        slope[place] = (f(x + nudge) - f(x - nudge)) / (2 * step)
    return slope


def push(function: Callable) -> str:
    """∂loss/∂z (T, V) of loss = −Σ weights · log-prob, of z (T, V), tokens (T,), weights (T,)."""
    draw = torch.Generator().manual_seed(2)
    cases = []
    for answer, padding, V in (7, 3, 5), (4, 0, 6):
        z = 2 * torch.randn(answer + padding, V, generator=draw, dtype=torch.float64)
        z[1] += 900                             # exp(900) overflows
        y = torch.randint(V, (answer + padding,), generator=draw)
        weights = torch.randn(answer + padding, generator=draw, dtype=torch.float64)
        weights[answer:] = 0
        cases.append((z, y, weights))

    def loss(z, y, weights):
        return -(weights * (z.gather(1, y[:, None])[:, 0] - z.logsumexp(1))).sum()

    def differences(z, y, weights) -> dict:
        """From the definition of a derivative, without the formula that is asked for."""
        return {"gradient": slopes(lambda z: loss(z, y, weights), z, step=1e-4)}

    def softmax(z):
        return z.softmax(-1)

    def onehot(z, y):
        return torch.eye(z.shape[1], dtype=z.dtype)[y]

    return grade(function, cases, differences, {"gradient": {
        "right up to the sign: this is where the logits should go. The gradient points the other "
        "way, to where the loss grows.":
            lambda z, y, w: w[:, None] * (onehot(z, y) - softmax(z)),
        "the weights are missing: this is softmax − onehot, the gradient for weights of 1.":
            lambda z, y, w: softmax(z) - onehot(z, y),
        "you divided by the number of rows, padding included. The weights already hold whatever "
        "is to be divided by.":
            lambda z, y, w: w[:, None] * (softmax(z) - onehot(z, y)) / len(y),
        "you divided by the number of answer tokens. The weights already hold whatever is to be "
        "divided by.":
            lambda z, y, w: w[:, None] * (softmax(z) - onehot(z, y)) / (w != 0).sum(),
        "the weight multiplies the one-hot row alone. It belongs to the whole bracket.":
            lambda z, y, w: softmax(z) - w[:, None] * onehot(z, y),
        "the weight multiplies the softmax alone. It belongs to the whole bracket.":
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
    }}, "weights · (softmax − onehot). All methods go through this line; only the weights differ.",
        overflow="The exponential of a large logit overflows: torch's softmax takes care of that.")


def unlikelihood(function: Callable) -> str:
    """Weights (T,) of unlikelihood training, of log-probs (T,) and which tokens are wanted (T,)."""
    cases = []
    for logps, wanted in (([-0.9, -2.5, -0.05, -1.3], [True, False, True, False]),
                          ([-40.0, -1e-12, -1e-17, -0.4, -1e-3], [False] * 3 + [True] * 2)):
        cases.append((torch.tensor(logps, dtype=torch.float64), torch.tensor(wanted)))

    def slope(l: float, wanted: bool) -> float:
        """Minus the slope of a token's part of the loss, by differences in 60 digits."""
        def part(l: Decimal) -> Decimal:
            return -l if wanted else -(1 - l.exp()).ln()

        with localcontext() as context:
            context.prec = 60
            l, h = Decimal(l), Decimal("1e-20")
            return -float((part(l + l * h) - part(l - l * h)) / (2 * l * h))

    def differences(logps, wanted) -> dict:
        pairs = zip(logps.tolist(), wanted.tolist(), strict=True)
        return {"weights": torch.tensor([slope(*pair) for pair in pairs], dtype=torch.float64)}

    def mistaken(down: Callable, up: Callable = torch.ones_like) -> Callable:
        """What comes out with other weights for the unwanted tokens, or for the wanted ones."""
        return lambda logps, wanted: torch.where(wanted, up(logps), down(logps))

    def odds(l):
        return 1 / torch.expm1(-l)

    return grade(function, cases, differences, {"weights": {
        "the unwanted tokens are pushed up: a weight is *minus* the slope of the loss.":
            mistaken(odds),
        "the roles are swapped: `wanted` is True where the token shall become likelier.":
            mistaken(torch.ones_like, lambda l: -odds(l)),
        "unwanted tokens: that is −p. The slope of log(1 − p) also has a 1 − p below.":
            mistaken(lambda l: -l.exp()),
        "unwanted tokens: that is −1/(1 − p). The slope was asked in l = log p, and ∂p/∂l = p.":
            mistaken(lambda l: 1 / torch.expm1(l)),
        "unwanted tokens: that is −1, SFT with the sign turned. This loss lets go as p falls.":
            mistaken(lambda l: -torch.ones_like(l)),
        "wanted tokens: the slope was asked in l = log p, and it is 1 for each of them.":
            mistaken(lambda l: -odds(l), lambda l: 1 / l.exp()),
        "right, but not where p is within rounding of 1: there 1 − eˡ is 0. Use torch.expm1.":
            mistaken(lambda l: -l.exp() / (1 - l.exp())),
        "unwanted tokens weigh nothing in your answer: you left out their part of the loss.":
            mistaken(torch.zeros_like),
    }}, "1 on what you want; on the rest a push that fades with p. Lesson 06 meets it again.")
