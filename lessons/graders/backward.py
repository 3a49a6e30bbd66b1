"""The graders of lessons 04 and 12, on the way back from the loss into the weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lessons.graders.ground import slopes
from lessons.judge import RIGHT, WRONG, grade
from minialign.bench.sheet import allocated

# ------------------------------------------------------------------------------------- 04: backward


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
            "the second way is missing: x_c also changes r, which divides all of its token.":
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
        overflow="The exponential of a large logit overflows: torch's logsumexp prevents that.")
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
