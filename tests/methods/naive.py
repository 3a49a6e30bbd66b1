"""Every objective typed again, naively, and a batch in which all varies that can.

The tests of the methods compare with both.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from minialign import METHODS, Batch
from minialign.methods import build_method

close = torch.testing.assert_close


def tensor(*x):
    return torch.tensor(x, dtype=torch.float64)


# ------------------------------------------------------------------- the objectives, typed naively

def mean(x):
    x = list(x)
    return sum(x) / len(x)


def log_odds(y):
    return torch.log(y.p / (1 - y.p))


def cost(z):
    return -torch.log(torch.sigmoid(z))


def nll(examples):
    return -sum(e[0].l for e in examples) / sum(e[0].n for e in examples)


def pairs(loss):
    """The mean over prompts of the mean over its pairs (wanted, one rejected)."""
    def objective(m, examples, drift):
        return mean(mean(loss(m, e[0], bad) for bad in e[1:]) for e in examples)
    return objective


def sft(m, examples, drift):
    if m.reduction == "seq_mean":
        return mean(-e[0].a for e in examples)
    if m.reduction == "seq_sum":
        return mean(-e[0].l for e in examples)
    return nll(examples)


def asft(m, w, l):
    b = m.beta_odds
    return -w.a + m.lam * (cost(b * log_odds(w)) + cost(-b * log_odds(l)))


def dft(m, examples, drift):
    """γ = 1: u is this visit's estimate and nothing else, so there is a loss to differentiate."""
    def row(answers):
        u = mean(torch.exp(y.l / m.tau - y.ref) for y in answers[1:])
        return -answers[0].l + m.tau * torch.log(u)
    return mean(row(e) for e in examples)


def dft2(m, examples, drift):
    def row(answers):
        u = mean(torch.exp(y.a / m.tau) for y in answers[1:])
        return -answers[0].a + m.tau * torch.log(u)
    return mean(row(e) for e in examples)


def ift(m, examples, drift):
    def row(c):
        n = len(c)
        if m.gamma == 0:
            return mean(c)
        coefficient = [sum(m.gamma ** (i - t) * c[i] for i in range(t, n)) for t in range(n)]
        return sum(c[t] * n * coefficient[t] / sum(coefficient) for t in range(n)) / n
    return mean(row(-e[0].tokens) for e in examples)


def ift_eq21(m, examples, drift):
    def row(c):
        return sum(m.gamma ** (i - n) * c[i] for n in range(len(c)) for i in range(n, len(c)))
    return mean(row(-e[0].tokens) for e in examples)


def dpo(m, w, l):
    z = m.beta * (w.r - l.r)
    return (1 - m.label_smoothing) * cost(z) + m.label_smoothing * cost(-z)


def dpop(m, w, l):
    return cost(m.beta * (w.r - l.r - m.lam * torch.relu(-w.r)))


def ipo(m, w, l):
    h = w.r / w.n - l.r / l.n if m.length_normalize else w.r - l.r
    return (h - 1 / (2 * m.tau)) ** 2


def kto(m, examples, drift):
    z_0 = max(0.0, float(mean(drift)))
    wanted = [e[0] for e in examples if e[0]]
    rejected = [y for e in examples for y in e[1:]]
    good = [m.lambda_d * (1 - torch.sigmoid(m.beta * (y.r - z_0))) for y in wanted]
    bad = [m.lambda_u * (1 - torch.sigmoid(m.beta * (z_0 - y.r))) for y in rejected]
    return mean(good + bad)


def orpo(m, w, l):
    return -w.a + m.lam * cost(log_odds(w) - log_odds(l))


def simpo(m, w, l):
    return cost(m.beta * (w.a - l.a) - m.gamma)


def simpo_sft(m, examples, drift):
    return pairs(simpo)(m, examples, drift) + m.sft_weight * nll(examples)


def cpo(m, examples, drift):
    likelihood = nll(examples)
    if m.nll == "seq_sum":
        likelihood = mean(-e[0].l for e in examples)
    margins = pairs(lambda m, w, l: cost(m.beta * (w.l - l.l)))
    return margins(m, examples, drift) + m.alpha * likelihood


def rdpo(m, w, l):
    return cost(m.beta * (w.r - l.r) + m.alpha * (w.n - l.n))


def rrhf(m, examples, drift):
    def row(answers):
        answers = [y for y in answers if y]
        rank = 0.0
        for worse in answers:
            for better in answers:
                if better.reward > worse.reward:
                    s_i, s_j = (y.l / y.n**m.length_penalty for y in (worse, better))
                    rank = rank + torch.relu(s_i - s_j)
        best = max(answers, key=lambda y: y.reward)
        return m.rrhf_weight * rank - (best.a if m.sft == "token_mean" else best.l)
    return mean(row(e) for e in examples)


def slic(m, w, l):
    return torch.relu(m.delta - w.l + l.l) - m.lam * w.l


PLAIN = {
    "sft": sft,
    "asft": pairs(asft),
    "dft": dft,
    "dft2": dft2,
    "ift": ift,
    "ift_eq21": ift_eq21,
    "dpo": pairs(dpo),
    "spin": pairs(dpo),
    "dpop": pairs(dpop),
    "rdpo": pairs(rdpo),
    "ipo": pairs(ipo),
    "kto": kto,
    "orpo": pairs(orpo),
    "cpo": cpo,
    "simpo": pairs(simpo),
    "simpo_sft": simpo_sft,
    "rrhf": rrhf,
    "slic": pairs(slic),
}


# --------------------------------------------------------------- which methods, which settings

def build(name, hyper=None, n_examples=9):
    return build_method(name, hyper or {}, n_examples)


DEFAULTS = [(name, {}) for name in METHODS]
# Settings beside the defaults that take another way through the code.
OTHERS = [
    ("sft", {"reduction": "seq_sum"}),
    ("sft", {"reduction": "token_mean"}),
    ("asft", {"lam": 0.7}),
    ("asft", {"lam": 0.7, "beta_odds": 0.4}),
    ("dft", {"gamma": 1.0, "tau": 0.9}),
    ("dft2", {"gamma": 1.0}),
    ("ift", {"gamma": 0.0}),
    ("ift", {"gamma": 1.0}),
    ("ift_eq21", {"gamma": 0.8}),
    ("dpo", {"label_smoothing": 0.2, "beta": 0.5}),
    ("dpop", {"lam": 5.0}),
    ("spin", {"beta": 0.3}),
    ("ipo", {"length_normalize": True}),
    ("kto", {"lambda_d": 2.0, "lambda_u": 0.7}),
    ("orpo", {"lam": 0.6}),
    ("cpo", {"nll": "seq_sum", "alpha": 0.4}),
    ("simpo_sft", {"sft_weight": 0.6}),
    ("rrhf", {"sft": "sum", "length_penalty": 0.6, "rrhf_weight": 3.0}),
    ("slic", {"delta": 9.0}),
]
# Their pushes are not minus the slope of the printed loss, on purpose.
NO_SLOPE = [("dft", {"gamma": 0.5, "tau": 0.8}), ("ift", {"detach_weights": True})]

# A method with a memory (DFT: a running average held fixed) is the gradient of no loss by default.
WITHOUT_MEMORY = [(name, {}) for name in METHODS if not build(name).state_dict()]
SLOPES = WITHOUT_MEMORY + OTHERS
ALL = DEFAULTS + OTHERS + NO_SLOPE


def label(x):
    return x if isinstance(x, str) else ",".join(map(str, x.values()))


def parametrize(methods):
    return pytest.mark.parametrize("name, hyper", methods, ids=label)


every = parametrize(ALL)


# ------------------------------------------------------------------- a batch with all that can vary

def make_batch(seed=0, A=4, B=3, T=6, dtype=torch.float64, unpaired=False):
    """Ragged answers, a negative absent (unpaired: a wanted answer too), nothing at zero;
    NaN wherever no one should look.
    """
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(1, T + 1, (A, B), generator=g)
    n[0, 0] = T
    if A > 2 and B > 1:
        n[A - 1, 1] = 0
    if unpaired:
        n[0, B - 1] = 0
    mask = torch.arange(T) < n[..., None]
    drawn = -0.1 - 2 * torch.rand(A, B, T, generator=g, dtype=torch.float64)
    logps = torch.where(mask, drawn, math.nan).to(dtype)
    sums = torch.where(mask, logps, 0).sum(-1)
    absent = torch.where(n > 0, 0.0, math.nan)
    ref = sums + torch.randn(A, B, generator=g) + absent
    kl = -10 - torch.rand(5, generator=g, dtype=torch.float64)
    rewards = torch.rand(A, B, generator=g) + absent
    kl_ref = kl - torch.rand(5, generator=g) + 0.2
    batch = Batch(
        mask, index=torch.tensor([4, 1, 7, 2, 0])[:B], ref_logps=ref.to(dtype), rewards=rewards,
        kl_logps=kl.to(dtype), kl_ref_logps=kl_ref.to(dtype),
    )
    return logps, batch


def batch_for(name, **options):
    return make_batch(unpaired=METHODS[name].allows_unpaired, **options)


def plain(name, method, logps, batch):
    """The naive objective of what stands in the batch."""
    examples = []
    for b in range(len(batch)):
        row = []
        for a in range(len(logps)):
            x = logps[a, b][batch.mask[a, b]]
            if len(x) > 0:
                ref, reward = batch.ref_logps[a, b], float(batch.rewards[a, b])
                row.append(SimpleNamespace(
                    tokens=x, l=x.sum(), n=len(x), a=x.mean(), p=x.mean().exp(),
                    ref=ref, r=x.sum() - ref, reward=reward,
                ))
            elif a == 0:
                row.append(None)
        examples.append(row)
    drift = batch.extra["kl_logps"] - batch.extra["kl_ref_logps"]
    return PLAIN[name](method, examples, drift)


def agree_with_autograd(weigh, objective, logps, batch):
    """Loss and weights against the naive objective and its gradient."""
    x = logps.clone().requires_grad_()
    value = objective(x, batch)
    loss, weights, _ = weigh(logps, batch)
    gradient = torch.where(batch.mask, torch.autograd.grad(value, x)[0], 0.0)
    close(loss, value.detach(), rtol=1e-9, atol=1e-12)
    close(weights, -gradient, rtol=1e-9, atol=1e-12)


def agree_with_differences(make, logps, batch, h=1e-6):
    """Weights against central differences of the printed loss, token by token."""
    weights = make().weigh(logps, batch)[1]
    for where in batch.mask.nonzero().tolist():
        up, down = logps.clone(), logps.clone()
        up[tuple(where)] += h
        down[tuple(where)] -= h
        slope = (make().weigh(up, batch)[0] - make().weigh(down, batch)[0]) / (2 * h)
        close(weights[tuple(where)], -slope, rtol=1e-5, atol=1e-7)
