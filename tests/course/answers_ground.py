"""What readers might answer to the exercises of lessons 01 to 04 and 12: right and wrong."""

import math

import torch


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
            (h[part] @ W.T - lse[part, None]).exp() - torch.nn.functional.one_hot(y[part], len(W))
        )
        d_h[part] = d_z @ W
        d_W = d_z.T @ h[part] + (0 if overwrite else d_W)
    return d_h, d_W


def right_forward(h, W, y, chunk, all_at_once=False):
    parts = [h] if all_at_once else h.split(chunk)
    lse = torch.cat([(part @ W.T).logsumexp(-1) for part in parts])
    return (h * W[y]).sum(-1) - lse, lse


def right_unlikelihood(logps, wanted, odds=lambda l: 1 / torch.special.expm1(-l)):
    return torch.where(wanted, 1.0, -odds(logps))


def right_rotate(x, angles, sign=1):
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos()[:, None], sign * angles.sin()[:, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def right_norm_backward(d_y, x, w, eps, size=None, over=-1):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    r = (x.pow(2).mean(over, keepdim=True) + eps).sqrt() if size is None else size
    return torch.autograd.grad((d_y * w * x / r).sum(), (x, w))


def right_softmax_backward(d_p, p):
    return p * d_p - p * (p * d_p).sum(-1, keepdim=True)


def right_adamw(w, g, m, v, t, lr, b1, b2, eps, decay):
    m, v = m.lerp(g, 1 - b1), v.lerp(g.square(), 1 - b2)
    step = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
    return w * (1 - lr * decay) - lr * step, m, v


# {grader: what solves it}
SOLVED = {
    "norm_backward": right_norm_backward,
    "softmax_backward": right_softmax_backward,
    "adamw": right_adamw,
    "rotate": right_rotate,
    "causal_mask": lambda length: torch.ones(length, length).tril().bool(),
    "log_softmax": lambda z: torch.nn.functional.log_softmax(z, -1),
    "unlikelihood": right_unlikelihood,
    "score": lambda *row: sum(logp for logp, here, _ in right_score(*row) if here),
    "push": right_push,
    "head_forward": right_forward,
    "head_backward": chunked_backward,
}

# {grader: [(what a reader might write, a piece of what must be said)]}
WRONG = {
    "norm_backward": [
        (lambda d, x, w, e: right_norm_backward(
            d, x, w, e, (x.pow(2).mean(-1, keepdim=True) + e).sqrt()), "the second way is missing"),
        (lambda d, x, w, e: right_norm_backward(d, x, torch.ones_like(w), e), "w is missing"),
        (lambda d, x, w, e: right_norm_backward(d, x, w, e)[::-1], "numbers are off"),
        (lambda d, x, w, e: (right_norm_backward(d, x, w, e)[0], (d * x).sum(0)), "Σ d_y x"),
        (lambda d, x, w, e: (-right_norm_backward(d, x, w, e)[0], w), "d_x: right up to the sign"),
        (lambda d, x, w, e: right_norm_backward(d, x, w, e)[0], "it should return d_x, d_w"),
    ],
    "softmax_backward": [
        (lambda d, p: p * d, "the sum is missing"),
        (lambda d, p: right_softmax_backward(d, p) / p.clamp(min=1e-30), "numbers are off"),
        (lambda d, p: p * (d - d.sum(-1, True)), "the plain sum"),
        (lambda d, p: p * (d - (d * p).sum()), "over everything"),
        (lambda d, p: d - p * d.sum(-1, True), "*log*-softmax"),
        (lambda d, p: -right_softmax_backward(d, p), "up to the sign"),
    ],
    "adamw": [
        (lambda w, *x: (2 * w - right_adamw(w, *x)[0], *right_adamw(w, *x)[1:]), "walked with"),
        (lambda w, g, m, v, t, *x: right_adamw(w, g, m, v, 10**6, *x), "m̂ and v̂ are missing"),
        (lambda w, g, m, v, t, *x: right_adamw(w, g, m, v, 1, *x), "lack the power"),
        (lambda w, g, *x: right_adamw(w, g + x[-1] * w, *x[:-1], 0.0), "Adam*W*"),
        (lambda *x: right_adamw(*x[:-1], 0.0), "the decay is missing"),
        (lambda *x: (right_adamw(*x)[0], x[1], x[3]), "w is right. m: "),
    ],
    "rotate": [
        (lambda x, f: right_rotate(x, f, sign=-1), "the wrong way round"),
        (lambda x, f: right_rotate(x, f).roll(x.shape[-1] // 2, -1), "the wrong half"),
        (lambda x, f: x, "nothing is turned"),
        (lambda x, f: torch.stack(
            [x[..., ::2] * f[:, None].cos() - x[..., 1::2] * f[:, None].sin(),
             x[..., ::2] * f[:, None].sin() + x[..., 1::2] * f[:, None].cos()], -1,
        ).flatten(-2), "you paired neighbours"),
        (lambda x, f: x * f, "stopped in line"),
        (lambda x, f: right_rotate(x, f)[:, 0], "its shape is"),
    ],
    "causal_mask": [
        (lambda n: torch.ones(n, n).triu().bool(), "see the future"),
        (lambda n: torch.ones(n, n).triu(1).bool(), "may *not* look"),
        (lambda n: torch.ones(n, n).tril(-1).bool(), "does not see itself"),
        (lambda n: torch.ones(n, n), "everybody sees everybody"),
        (lambda n: torch.full((n, n), -math.inf).triu(1), "to be added"),
        (lambda n: torch.ones(n), "everybody sees everybody"),
    ],
    "log_softmax": [
        (lambda z: z.exp() / z.exp().sum(-1, True), "overflows"),
        (lambda z: (z.exp() / z.exp().sum(-1, True)).log(), "subtract each row's largest"),
        (lambda z: z.softmax(-1), "these are the probabilities"),
        (lambda z: z.log_softmax(0), "runs over the rows"),
        (lambda z: z - z.logsumexp((0, 1)), "the whole matrix"),
        (lambda z: z - z.amax(-1, True), "logarithm of the sum"),
        (lambda z: -z.log_softmax(-1), "up to the sign"),
        (lambda z: z.log_softmax(-1) / math.log(2), "yours is 1.443 times"),
        (lambda z: z.logsumexp(-1), "its shape is"),
    ],
    "unlikelihood": [
        (lambda l, w: -right_unlikelihood(l, w), "up to the sign"),
        (lambda l, w: right_unlikelihood(l, w, lambda l: -1 / torch.expm1(-l)), "pushed up"),
        (lambda l, w: right_unlikelihood(l, ~w), "the roles are swapped"),
        (lambda l, w: right_unlikelihood(l, w, torch.exp), "1 − p below"),
        (lambda l, w: right_unlikelihood(l, w, lambda l: -1 / torch.expm1(l)), "asked in l"),
        (lambda l, w: right_unlikelihood(l, w, lambda l: l.exp() / (1 - l.exp())), "rounding"),
        (lambda l, w: w.double(), "left out their part"),
        (lambda l, w: 2 * w.double() - 1, "SFT with the sign turned"),
    ],
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
    "head_forward": [
        (lambda *x: right_forward(*x, all_at_once=True), "alive at the peak"),
        (lambda h, W, y, chunk: ((h * W[y]).sum(-1), right_forward(h, W, y, chunk)[1]), "logits"),
        (lambda *x: right_forward(*x)[::-1], "numbers are off"),
        (lambda *x: (right_forward(*x)[0], right_forward(*x)[1].exp()), "without its logarithm"),
        (lambda *x: (right_forward(*x)[0].exp(), 0), "these are probabilities"),
    ],
    "head_backward": [
        (right_backward, "the numbers are right, but"),
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
}
