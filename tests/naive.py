"""Every objective typed again, naively, and a batch in which all varies that can: what the tests of the methods compare with."""

import math
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from minialign import METHODS, Batch

close = torch.testing.assert_close


def tensor(*x):
    return torch.tensor(x, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ the objectives, typed naively

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
    return lambda m, examples, extra: mean(mean(loss(m, e[0], bad) for bad in e[1:]) for e in examples)


def sft(m, examples, extra):
    return {"seq_mean": lambda: mean(-e[0].a for e in examples), "seq_sum": lambda: mean(-e[0].l for e in examples),
            "token_mean": lambda: nll(examples)}[m.reduction]()


def asft(m, w, l):
    b = m.beta_odds
    return -w.a + m.lam * (cost(b * log_odds(w)) + cost(-b * log_odds(l)))


def dft(m, examples, extra):
    """γ = 1: u is this visit's estimate and nothing else, so there is a loss to differentiate."""
    return mean(-e[0].l + m.tau * torch.log(mean(torch.exp(y.l / m.tau - y.ref) for y in e[1:])) for e in examples)


def dft2(m, examples, extra):
    return mean(-e[0].a + m.tau * torch.log(mean(torch.exp(y.a / m.tau) for y in e[1:])) for e in examples)


def ift(m, examples, extra):
    def row(c):
        n = len(c)
        if m.gamma == 0:
            return mean(c)
        coefficient = [sum(m.gamma ** (i - t) * c[i] for i in range(t, n)) for t in range(n)]
        return sum(c[t] * n * coefficient[t] / sum(coefficient) for t in range(n)) / n
    return mean(row(-e[0].tokens) for e in examples)


def ift_eq21(m, examples, extra):
    return mean(sum(m.gamma ** (i - n) * -e[0].tokens[i] for n in range(e[0].n) for i in range(n, e[0].n)) for e in examples)


def dpo(m, w, l):
    z = m.beta * (w.r - l.r)
    return (1 - m.label_smoothing) * cost(z) + m.label_smoothing * cost(-z)


def dpop(m, w, l):
    return cost(m.beta * (w.r - l.r - m.lam * torch.relu(-w.r)))


def ipo(m, w, l):
    h = w.r / w.n - l.r / l.n if m.length_normalize else w.r - l.r
    return (h - 1 / (2 * m.tau)) ** 2


def kto(m, examples, extra):
    z_0 = max(0.0, float(mean(extra.kl)))
    good = [m.lambda_d * (1 - torch.sigmoid(m.beta * (e[0].r - z_0))) for e in examples if e[0]]
    bad = [m.lambda_u * (1 - torch.sigmoid(m.beta * (z_0 - y.r))) for e in examples for y in e[1:]]
    return mean(good + bad)


def orpo(m, w, l):
    return -w.a + m.lam * cost(log_odds(w) - log_odds(l))


def simpo(m, w, l):
    return cost(m.beta * (w.a - l.a) - m.gamma)


def simpo_sft(m, examples, extra):
    return pairs(simpo)(m, examples, extra) + m.sft_weight * nll(examples)


def cpo(m, examples, extra):
    likelihood = nll(examples) if m.nll == "token_mean" else mean(-e[0].l for e in examples)
    return pairs(lambda m, w, l: cost(m.beta * (w.l - l.l)))(m, examples, extra) + m.alpha * likelihood


def rdpo(m, w, l):
    return cost(m.beta * (w.r - l.r) + m.alpha * (w.n - l.n))


def rrhf(m, examples, extra):
    def row(answers):
        answers = [y for y in answers if y]
        s = [y.l / y.n**m.length_penalty for y in answers]
        rank = sum(torch.relu(s[i] - s[j]) for i, worse in enumerate(answers) for j, better in enumerate(answers)
                   if better.reward > worse.reward)
        best = max(answers, key=lambda y: y.reward)
        return m.rrhf_weight * rank - (best.a if m.sft == "token_mean" else best.l)
    return mean(row(e) for e in examples)


def slic(m, w, l):
    return torch.relu(m.delta - w.l + l.l) - m.lam * w.l


PLAIN = {
    "sft": sft, "asft": pairs(asft), "dft": dft, "dft2": dft2, "ift": ift, "ift_eq21": ift_eq21, "dpo": pairs(dpo),
    "dpop": pairs(dpop), "ipo": pairs(ipo), "kto": kto, "orpo": pairs(orpo), "cpo": cpo, "simpo": pairs(simpo),
    "simpo_sft": simpo_sft, "rdpo": pairs(rdpo), "rrhf": rrhf, "spin": pairs(dpo), "slic": pairs(slic),
}

VARIANTS = [
    ("sft", {}), ("sft", {"reduction": "seq_sum"}), ("sft", {"reduction": "token_mean"}),
    ("asft", {"lam": 0.7}), ("asft", {"lam": 0.7, "beta_odds": 0.4}),
    ("dft", {"gamma": 1.0, "tau": 0.9}), ("dft2", {"gamma": 1.0}),
    ("ift", {}), ("ift", {"gamma": 0.0}), ("ift", {"gamma": 1.0}), ("ift_eq21", {}), ("ift_eq21", {"gamma": 0.8}),
    ("dpo", {}), ("dpo", {"label_smoothing": 0.2, "beta": 0.5}), ("dpop", {"lam": 5.0}), ("spin", {"beta": 0.3}),
    ("ipo", {}), ("ipo", {"length_normalize": True}), ("kto", {"lambda_d": 2.0, "lambda_u": 0.7}),
    ("orpo", {"lam": 0.6}), ("cpo", {}), ("cpo", {"nll": "seq_sum", "alpha": 0.4}),
    ("simpo", {}), ("simpo_sft", {"sft_weight": 0.6}), ("rdpo", {}),
    ("rrhf", {}), ("rrhf", {"sft": "sum", "length_penalty": 0.6, "rrhf_weight": 3.0}),
    ("slic", {}), ("slic", {"delta": 9.0}),
]
STATEFUL = [("dft", {}), ("dft2", {}), ("dft", {"gamma": 0.5, "tau": 0.8})]      # γ < 1 is the gradient of no loss: eq. 13, below
ALL = VARIANTS + STATEFUL + [("ift", {"detach_weights": True})]

every = pytest.mark.parametrize("name, hyper", ALL, ids=lambda x: x if isinstance(x, str) else ",".join(map(str, x.values())))


def build(name, hyper=None, n_examples=9):
    known = {f.name for f in fields(METHODS[name])}
    return METHODS[name](**(hyper or {}), **({"n_examples": n_examples} if "n_examples" in known else {}))


# ------------------------------------------------------------------------------------------------ a batch with all that can vary

def make_batch(seed=0, A=4, B=3, T=6, dtype=torch.float64, unpaired=False):
    """Ragged answers, a negative absent (unpaired: a wanted answer too), nothing at zero; NaN wherever no one should look."""
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(1, T + 1, (A, B), generator=g)
    n[0, 0] = T
    if A > 2 and B > 1:
        n[A - 1, 1] = 0
    if unpaired:
        n[0, B - 1] = 0
    mask = torch.arange(T) < n[..., None]
    logps = torch.where(mask, -0.1 - 2 * torch.rand(A, B, T, generator=g, dtype=torch.float64), math.nan).to(dtype)
    sums = torch.where(mask, logps, 0).sum(-1)
    absent = torch.where(n > 0, 0.0, math.nan)
    ref = sums + torch.randn(A, B, generator=g) + absent
    kl = -10 - torch.rand(5, generator=g, dtype=torch.float64)
    rewards = torch.rand(A, B, generator=g) + absent
    batch = Batch(mask, index=torch.tensor([4, 1, 7, 2, 0])[:B], ref_logps=ref.to(dtype), rewards=rewards, kl_logps=kl.to(dtype),
                  kl_ref_logps=(kl - torch.rand(5, generator=g) + 0.2).to(dtype))
    return logps, batch


def batch_for(name, **options):
    return make_batch(unpaired=name == "kto" or name == "rrhf", **options)


def plain(name, method, logps, batch):
    """The naive objective of what stands in the batch."""
    examples = []
    for b in range(len(batch)):
        row = []
        for a in range(len(logps)):
            x = logps[a, b][batch.mask[a, b]]
            if len(x) == 0 and a > 0:
                continue
            ref, reward = batch.ref_logps[a, b], batch.rewards[a, b]
            row.append(len(x) and SimpleNamespace(tokens=x, l=x.sum(), n=len(x), a=x.mean(), p=x.mean().exp(), ref=ref,
                                                  r=x.sum() - ref, reward=float(reward)))
        examples.append(row)
    return PLAIN[name](method, examples, SimpleNamespace(kl=batch.extra["kl_logps"] - batch.extra["kl_ref_logps"]))


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
