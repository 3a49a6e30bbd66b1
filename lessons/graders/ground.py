"""The graders of lessons 01 to 04 and 12."""

import itertools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from lessons.judge import RIGHT, WRONG, grade
from minialign.bench.sheet import allocated

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
    }}, "lengths stay, products depend on distance alone. Now position is part of every comparison.")


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
    }}, "shifted by one, masked, and it does not overflow. That is all a method ever sees of a model.",
        overflow="The exponential of a large logit overflows: subtract the logsumexp, or use log_softmax.")


# ----------------------------------------------------------------------------------------- 03: push


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
    }}, "weights · (softmax − onehot). Every method here goes through this line; only the weights differ.",
        overflow="The exponential of a large logit overflows: torch's softmax takes care of that.")


def unlikelihood(function: Callable) -> str:
    """Weights (T,) of unlikelihood training, of log-probs (T,) and which tokens are wanted (T,)."""
    cases = []
    for logps, wanted in (([-0.9, -2.5, -0.05, -1.3], [True, False, True, False]),
                          ([-40.0, -1e-12, -1e-17, -0.4, -1e-3], [False, False, False, True, True])):
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


# ------------------------------------------------------------------------------------- 04: backward


def slopes(f: Callable, x: Tensor, step: float = 1e-5) -> Tensor:
    """∂f/∂x by central differences, one number of x at a time."""
    slope = torch.empty_like(x)
    for place in itertools.product(*map(range, x.shape)):
        nudge = torch.zeros_like(x)
        nudge[place] = step
        slope[place] = (f(x + nudge) - f(x - nudge)) / (2 * step)
    return slope


def norm_backward(function: Callable) -> str:
    """d_x (L, C) and d_w (C,) of RMSNorm, of d_y (L, C), x (L, C), w (C,) and ε."""
    draw = torch.Generator().manual_seed(4)
    cases = []
    for L, C, eps in (3, 5, 1e-5), (4, 2, 0.3):
        d_y, x = torch.randn(2, L, C, generator=draw, dtype=torch.float64)
        cases.append((d_y, 2 * x, torch.rand(C, generator=draw, dtype=torch.float64) + 0.5, eps))

    def loss(d_y, x, w, eps):
        return (d_y * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w).sum()

    def differences(d_y, x, w, eps) -> dict:
        return {"d_x": slopes(lambda x: loss(d_y, x, w, eps), x),
                "d_w": slopes(lambda w: loss(d_y, x, w, eps), w)}

    def parts(d_y, x, w, eps):
        r = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return x / r, d_y * w, r

    def d_x(of: Callable) -> Callable:
        """A mistake made of u, d_u and r."""
        return lambda d_y, x, w, eps: of(*parts(d_y, x, w, eps))

    return grade(function, cases, differences, {
        "d_x": {
            "the second way is missing: x_c also changes r, which divides all numbers of its token.":
                d_x(lambda u, d_u, r: d_u / r),
            "the division by r is missing.":
                d_x(lambda u, d_u, r: d_u - u * (d_u * u).mean(-1, keepdim=True)),
            "the sum over i is to be divided by C: it is a mean.":
                d_x(lambda u, d_u, r: (d_u - u * (d_u * u).sum(-1, keepdim=True)) / r),
            "the mean runs over all tokens. Each token is normalised by itself: over dim −1.":
                d_x(lambda u, d_u, r: (d_u - u * (d_u * u).mean()) / r),
            "the sign of the second term: it takes out the part of d_u along u.":
                d_x(lambda u, d_u, r: (d_u + u * (d_u * u).mean(-1, keepdim=True)) / r),
            "the second term has x where u = x / r belongs.":
                d_x(lambda u, d_u, r: (d_u - u * r * (d_u * u * r).mean(-1, keepdim=True)) / r),
            "w is missing: d_u is d_y · w.":
                lambda d_y, x, w, eps: d_x(
                    lambda u, d_u, r: (d_u - u * (d_u * u).mean(-1, keepdim=True)) / r,
                )(d_y, x, torch.ones_like(w), eps),
        },
        "d_w": {
            "that is Σ d_y x. The norm multiplies w by u = x / r.":
                lambda d_y, x, w, eps: (d_y * x).sum(0),
            "that is a mean over the tokens. The influences of a weight add up.":
                lambda d_y, x, w, eps: (d_y * parts(d_y, x, w, eps)[0]).mean(0),
            "w itself does not belong in it: y is linear in w.":
                lambda d_y, x, w, eps: (d_y * w * parts(d_y, x, w, eps)[0]).sum(0),
        },
    }, "the part along u is gone. Making a vector longer changes nothing behind a norm.")


def softmax_backward(function: Callable) -> str:
    """d_s (…, L) of p = softmax(s), of d_p and p."""
    draw = torch.Generator().manual_seed(5)
    cases = []
    for shape in (2, 4), (3, 2, 5):
        d_p, s = torch.randn(2, *shape, generator=draw, dtype=torch.float64)
        s[..., -1] = -math.inf                      # a place that may not be seen
        cases.append((d_p, s.softmax(-1)))

    def by_definition(d_p, p) -> dict:
        """Through the whole table of ∂p_i/∂s_j, of each row."""
        table = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
        return {"d_s": (d_p[..., None, :] @ table)[..., 0, :]}

    return grade(function, cases, by_definition, {"d_s": {
        "the sum is missing: p_i falls when any other place rises.": lambda d_p, p: p * d_p,
        "the factor p_j in front is missing.":
            lambda d_p, p: d_p - (d_p * p).sum(-1, keepdim=True),
        "you subtracted the plain sum of d_p. Each is weighted by how much it is looked at, p_i.":
            lambda d_p, p: p * (d_p - d_p.sum(-1, keepdim=True)),
        "you subtracted the plain mean of d_p. Each is weighted by how much it is looked at, p_i.":
            lambda d_p, p: p * (d_p - d_p.mean(-1, keepdim=True)),
        "the sum runs over everything. Every row is a distribution of its own: over dim −1.":
            lambda d_p, p: p * (d_p - (d_p * p).sum()),
        "that is the way back through *log*-softmax: d − p Σ d.":
            lambda d_p, p: d_p - p * d_p.sum(-1, keepdim=True),
    }}, "better than what is seen on average: look at it more.")


def adamw(function: Callable) -> str:
    """The new w, m and v of one update of AdamW."""
    draw = torch.Generator().manual_seed(6)
    cases = []
    for t, lr, beta1, beta2, eps, decay in ((1, 0.1, 0.9, 0.95, 1e-3, 0.2),
                                            (7, 0.02, 0.8, 0.99, 1e-2, 0.0)):
        w, g, m = torch.randn(3, 2, 3, generator=draw, dtype=torch.float64)
        v = torch.rand(2, 3, generator=draw, dtype=torch.float64)
        if t == 1:
            m, v = torch.zeros_like(m), torch.zeros_like(v)
        cases.append((w, g, m, v, t, lr, beta1, beta2, eps, decay))

    def update(w, g, m, v, t, lr, b1, b2, eps, decay, b1_hat=None, b2_hat=None, root=None,
               of_decay=None) -> dict:
        """Number by number, with other corrections, another root or another decay if given."""
        new_m, new_v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat = new_m / (1 - b1**t if b1_hat is None else b1_hat)
        v_hat = new_v / (1 - b2**t if b2_hat is None else b2_hat)
        below = v_hat.sqrt() + eps if root is None else root(v_hat, eps)
        shrink = decay * w if of_decay is None else of_decay(decay, w, lr)
        return {"w": w - lr * (m_hat / below + shrink), "m": new_m, "v": new_v}

    def mistaken(**changes) -> Callable:
        return lambda *inputs: update(*inputs, **changes)["w"]

    return grade(function, cases, update, {
        "w": {
            "you walked with the gradient: training goes against it.":
                lambda *inputs: 2 * inputs[0] - update(*inputs)["w"],
            "m̂ and v̂ are missing: both means start at 0 and are too small at first.":
                mistaken(b1_hat=1, b2_hat=1),
            "m̂ is missing, m / (1 − β₁ᵗ).": mistaken(b1_hat=1),
            "v̂ is missing, v / (1 − β₂ᵗ).": mistaken(b2_hat=1),
            "the corrections lack the power: 1 − βᵗ, and t is the number of the update.":
                lambda *inputs: update(*inputs, b1_hat=1 - inputs[6], b2_hat=1 - inputs[7])["w"],
            "ε stands under the root. It is added to the root of v̂.":
                mistaken(root=lambda v_hat, eps: (v_hat + eps).sqrt()),
            "the root is missing: m̂ is divided by √v̂ + ε.":
                mistaken(root=lambda v_hat, eps: v_hat + eps),
            "the decay is missing: lr · decay · w is subtracted as well.":
                mistaken(of_decay=lambda decay, w, lr: 0 * w),
            "the decay lacks the learning rate: lr multiplies the whole bracket.":
                mistaken(of_decay=lambda decay, w, lr: decay * w / lr),
            "the decay went into the gradient. In Adam*W* it stays outside of both means.":
                lambda w, g, *rest: update(w, g + rest[-1] * w, *rest[:-1], 0.0)["w"],
        },
        "m": {"β₁ and 1 − β₁ are swapped: the old mean keeps the larger share.":
              lambda w, g, m, v, t, lr, b1, *rest: (1 - b1) * m + b1 * g,
              "that is m̂. Return m itself, as it is kept for the next update.":
              lambda w, g, m, v, t, lr, b1, *rest: (b1 * m + (1 - b1) * g) / (1 - b1**t)},
        "v": {"v is a mean of the *squares* of the gradients.":
              lambda w, g, m, v, t, lr, b1, b2, *rest: b2 * v + (1 - b2) * g,
              "β₂ and 1 − β₂ are swapped: the old mean keeps the larger share.":
              lambda w, g, m, v, t, lr, b1, b2, *rest: (1 - b2) * v + b2 * g**2,
              "that is v̂. Return v itself, as it is kept for the next update.":
              lambda w, g, m, v, t, lr, b1, b2, *rest: (b2 * v + (1 - b2) * g**2) / (1 - b2**t)},
    }, "a step of the size of the learning rate, whatever the size of the gradient.")


# ------------------------------------------------------------------------------- 12: the big matrix

ROWS, VOCABULARY, CHUNK = 64, 2000, 2           # where memory is measured: chunks are 3 % of all


def head(N: int, C: int, V: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a vocabulary head, targets and weights."""
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(N, C, generator=draw, dtype=torch.float64)
    W = torch.randn(V, C, generator=draw, dtype=torch.float64)
    weights = torch.randn(N, generator=draw, dtype=torch.float64)
    return h, W, torch.randint(V, (N,), generator=draw), weights


def frugal(verdict: str, work: Callable) -> str:
    """The verdict, unless the numbers are right and the peak of memory is not."""
    if not verdict.startswith(RIGHT):
        return verdict
    everything = ROWS * VOCABULARY * 8          # bytes, of all logits in float64
    peak = allocated(work)
    if peak < 0.5 * everything:
        return verdict
    return (f"{WRONG}: the numbers are right, but {peak / 1e6:.1f} MB were alive at the peak. All "
            f"logits of this test together are {everything / 1e6:.1f} MB, and a chunk of {CHUNK} "
            f"rows {CHUNK * VOCABULARY * 8 / 1e6:.2f} MB. Work on one chunk at a time, without "
            "autograd.")


def head_forward(function: Callable) -> str:
    """Log-probs and logsumexps (N,), of h (N, C), W (V, C), targets (N,) and a chunk size."""
    cases = []
    for N, C, V, chunk in (7, 3, 5, 3), (4, 2, 6, 4), (5, 4, 3, 9):
        h, W, targets, _ = head(N, C, V, seed=N)
        W[1] += 300                             # logits whose exponential overflows
        cases.append((h, W, targets, chunk))

    def by_definition(h, W, targets, chunk) -> dict:
        rows = []
        for hidden in h:
            z = [math.fsum(products) for products in (hidden * W).tolist()]
            rows.append(max(z) + math.log(math.fsum(math.exp(one - max(z)) for one in z)))
        lse = torch.tensor(rows, dtype=torch.float64)
        return {"log-probs": (h * W[targets]).sum(-1) - lse, "logsumexps": lse}

    def some_rows(keep: Callable) -> Callable:
        """The log-probs where some rows were left out, and stay 0."""
        def mistaken(h, W, targets, chunk):
            kept = torch.tensor([keep(n, len(h), chunk) for n in range(len(h))])
            return by_definition(h, W, targets, chunk)["log-probs"] * kept
        return mistaken

    verdict = grade(function, cases, by_definition, {
        "log-probs": {
            "these are logits. A log-prob is a logit minus the logsumexp of its row.":
                lambda h, W, targets, chunk: (h * W[targets]).sum(-1),
            "right up to the sign: a log-prob is the logit *minus* the logsumexp.":
                lambda *case: -by_definition(*case)["log-probs"],
            "every chunk looks up the targets of the first one. They are sliced like the rows.":
                lambda h, W, targets, chunk: by_definition(
                    h, W, targets[torch.arange(len(h)) % chunk], chunk)["log-probs"],
            "these are probabilities. Their logarithms were asked for.":
                lambda *case: by_definition(*case)["log-probs"].exp(),
        },
        "logsumexps": {
            "that is the sum of the exponentials without its logarithm.":
                lambda *case: by_definition(*case)["logsumexps"].exp(),
            "that is the largest logit of each row, without the others.":
                lambda h, W, targets, chunk: (h @ W.T).amax(-1),
        },
    }, "two numbers from each row, and the row is forgotten.",
        overflow="The exponential of a large logit overflows: torch's logsumexp takes care of that.")
    h, W, targets, _ = head(ROWS, 4, VOCABULARY, seed=0)
    return frugal(verdict, lambda: function(h, W, targets, CHUNK))


def head_backward(function: Callable) -> str:
    """d_h and d_W from h (N, C), W (V, C), targets, logsumexps, weights (N,) and a chunk size."""
    cases = []
    for N, C, V, chunk in (7, 3, 5, 3), (4, 2, 6, 4), (5, 4, 3, 9):
        h, W, targets, weights = head(N, C, V, seed=N)
        cases.append((h, W, targets, (h @ W.T).logsumexp(-1), weights, chunk))

    def loss(h, W, targets, weights):
        z = h @ W.T
        return -(weights * (z.gather(1, targets[:, None])[:, 0] - z.logsumexp(-1))).sum()

    def differences(h, W, targets, lse, weights, chunk) -> dict:
        return {"d_h": slopes(lambda h: loss(h, W, targets, weights), h),
                "d_W": slopes(lambda W: loss(h, W, targets, weights), W)}

    def push_down(p, onehot, w, chunk):
        return w[:, None] * (p - onehot)

    def every_row(N, chunk):
        return range(N)

    def mistaken(name, d_logits=push_down, rows=every_row):
        """The gradient `name`, with other d_logits or summed over other rows."""
        def value(h, W, targets, lse, weights, chunk):
            onehot = torch.eye(len(W), dtype=W.dtype)[targets]
            d = d_logits((h @ W.T - lse[:, None]).exp(), onehot, weights, chunk)
            only = torch.zeros(len(h), 1, dtype=h.dtype)
            only[list(rows(len(h), chunk))] = 1
            return (d * only) @ W if name == "d_h" else (d * only).T @ h
        return value

    def both(name):
        return {
            "right up to the sign: weights are minus the slope of the loss, so "
            "d_z = weights · (softmax − onehot).":
                mistaken(name, lambda p, onehot, w, chunk: -w[:, None] * (p - onehot)),
            "the weights are missing.": mistaken(name, lambda p, onehot, w, chunk: p - onehot),
            "every chunk uses the weights of the first one. They are sliced like the rows.":
                mistaken(name, lambda p, onehot, w, chunk:
                         w[torch.arange(len(w)) % chunk, None] * (p - onehot)),
            "the one-hot rows are missing.":
                mistaken(name, lambda p, onehot, w, chunk: w[:, None] * p),
            "the last chunk is left out where it is shorter than the others.":
                mistaken(name, rows=lambda N, chunk: range(N // chunk * chunk)),
            "only the first chunk is there. Did the loop end early?":
                mistaken(name, rows=lambda N, chunk: range(min(chunk, N))),
        }

    last = "only the last chunk is in it. It is a sum over all rows, so chunks add to it."
    verdict = grade(function, cases, differences, {
        "d_h": both("d_h"),
        "d_W": {last: mistaken("d_W", rows=lambda N, chunk: range((N - 1) // chunk * chunk, N)),
                **both("d_W")},
    }, "every row once, whatever the chunk, and the matrix never whole.")
    h, W, targets, weights = head(ROWS, 4, VOCABULARY, seed=0)
    lse = (h @ W.T).logsumexp(-1)
    return frugal(verdict, lambda: function(h, W, targets, lse, weights, CHUNK))
