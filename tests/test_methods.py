"""The laws every method keeps. Three witnesses for each gradient: the objective typed naively and sent through autograd, central
differences of the loss (both here), and numbers from other people's code (test_vectors.py)."""

import math
from dataclasses import fields, replace
from decimal import Decimal, localcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign import METHODS, Batch
from minialign.data import Counts, collate
from minialign.logps import batch_logps, fused_pass
from minialign.methods.ift import discounted_head, discounted_tail
from minialign.methods.method import log1mexp

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
    return PLAIN[name](method, examples, SimpleNamespace(kl=batch.kl_logps - batch.kl_ref_logps))


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


# ------------------------------------------------------------------------------------------------ the three witnesses

def test_no_method_is_left_out():
    assert set(PLAIN) == {name for name, _ in VARIANTS} == set(METHODS)


@pytest.mark.parametrize("name, hyper", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_minus_the_gradient_of_the_objective(name, hyper, seed):
    logps, batch = batch_for(name, seed=seed)
    agree_with_autograd(lambda *x: build(name, hyper).weigh(*x), lambda x, b: plain(name, build(name, hyper), x, b), logps, batch)


@pytest.mark.parametrize("name, hyper", VARIANTS)
def test_weights_are_minus_the_slope_of_the_loss(name, hyper):
    logps, batch = batch_for(name, B=2)
    agree_with_differences(lambda: build(name, hyper), logps, batch)


@pytest.mark.parametrize("sabotage", [
    lambda loss, w: (loss, -w), lambda loss, w: (loss, 1.001 * w), lambda loss, w: (loss, w.roll(1, 0)),
    lambda loss, w: (loss, w + 1e-6), lambda loss, w: (loss + 1e-6, w),
], ids=["sign", "scale", "answers swapped", "pushes on padding", "loss"])
@pytest.mark.parametrize("name", ["dpo", "asft", "ift"])
def test_the_witnesses_catch_a_mistake(name, sabotage):
    logps, batch = batch_for(name)

    def weigh(*x):
        loss, weights, info = build(name).weigh(*x)
        return *sabotage(loss, weights), info

    with pytest.raises(AssertionError):
        agree_with_autograd(weigh, lambda x, b: plain(name, build(name), x, b), logps, batch)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), A=st.integers(2, 5), B=st.integers(1, 5), T=st.integers(1, 7),
       name=st.sampled_from(["asft", "dpo", "orpo", "kto", "simpo_sft", "ift", "cpo", "rdpo"]))
def test_whatever_the_shape(seed, A, B, T, name):
    logps, batch = make_batch(seed, A, B, T, unpaired=name == "kto")
    agree_with_autograd(lambda *x: build(name).weigh(*x), lambda x, b: plain(name, build(name), x, b), logps, batch)


# ------------------------------------------------------------------------------------------------ what changes nothing

@every
def test_the_loss_is_the_mean_of_its_examples_and_info_has_a_number_for_each(name, hyper):
    logps, batch = batch_for(name)
    loss, weights, info = build(name, hyper).weigh(logps, batch)
    assert all(x.shape == (3,) and x.isfinite().all() for x in info.values())
    assert weights.shape == logps.shape and loss.shape == () and not (weights * ~batch.mask).any()
    if "loss_per_example" in info:
        close(info["loss_per_example"].mean(), loss)
    else:
        assert name == "kto" or "token_mean" in hyper.values() or build(name, hyper).likelihood()[1] == "token_mean"


@every
@pytest.mark.parametrize("cuts", [[0, 1, 2, 3], [0, 2, 3]])
def test_parts_add_up_to_the_whole(name, hyper, cuts):
    logps, batch = batch_for(name)
    whole, by_parts = build(name, hyper), build(name, hyper)
    loss, weights, info = whole.weigh(logps, batch)
    parts = [by_parts.weigh(logps[:, i:j], batch.part(i, j)) for i, j in zip(cuts, cuts[1:], strict=False)]
    close(sum(p[0] for p in parts), loss)
    close(torch.cat([p[1] for p in parts], 1), weights)
    close({k: torch.cat([p[2][k] for p in parts]) for k in info}, info)
    close(by_parts.state_dict(), whole.state_dict())


@every
def test_padding_changes_nothing(name, hyper):
    logps, batch = batch_for(name)
    longer = torch.cat([logps, torch.full_like(logps[..., :3], -torch.inf)], -1)
    padded = replace(batch, mask=torch.cat([batch.mask, torch.zeros_like(batch.mask[..., :3])], -1))
    loss, weights, _ = build(name, hyper).weigh(logps, batch)
    loss_padded, weights_padded, _ = build(name, hyper).weigh(longer, padded)
    close(loss_padded, loss)
    close(weights_padded[..., : logps.shape[-1]], weights)
    assert not weights_padded[..., logps.shape[-1] :].any()


@every
def test_one_more_absent_answer_changes_nothing(name, hyper):
    logps, batch = batch_for(name)
    more = lambda x, fill: torch.cat([x, torch.full_like(x[:1], fill)])  # noqa: E731
    wider = replace(batch, mask=more(batch.mask, False), ref_logps=more(batch.ref_logps, math.nan),
                    rewards=more(batch.rewards, math.nan))
    loss, weights, _ = build(name, hyper).weigh(logps, batch)
    loss_wider, weights_wider, _ = build(name, hyper).weigh(more(logps, math.nan), wider)
    close(loss_wider, loss)
    close(weights_wider, more(weights, 0.0))


@every
def test_the_order_of_the_negatives_changes_nothing(name, hyper):
    logps, batch = batch_for(name)
    order = [0, 3, 1, 2]
    loss, weights, _ = build(name, hyper).weigh(logps, batch)
    shuffled = replace(batch, mask=batch.mask[order], ref_logps=batch.ref_logps[order], rewards=batch.rewards[order])
    loss_shuffled, weights_shuffled, _ = build(name, hyper).weigh(logps[order], shuffled)
    close(loss_shuffled, loss)
    close(weights_shuffled, weights[order])


@every
def test_an_example_is_weighed_without_regard_to_its_company(name, hyper):
    """With the counts known beforehand, an example's weights depend on nothing but that example."""
    logps, batch = batch_for(name)
    alone = build(name, hyper).weigh(logps[:, 1:2], batch.part(1, 2))[1]
    other = logps.clone()
    other[:, [0, 2]] *= 3
    close(build(name, hyper).weigh(other, batch)[1][:, 1:2], alone)


@every
def test_float32_in_float32_out(name, hyper):
    logps, batch = batch_for(name)
    loss, weights, info = build(name, hyper).weigh(logps, batch)
    loss_32, weights_32, info_32 = build(name, hyper).weigh(logps.float(), batch)
    assert {x.dtype for x in (loss, weights, *info.values())} == {torch.float64}
    assert {x.dtype for x in (loss_32, weights_32, *info_32.values())} == {torch.float32}
    close(loss_32.double(), loss, rtol=1e-4, atol=1e-5)
    close(weights_32.double(), weights, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_stay_finite(name, hyper, dtype):
    """Three answers from 10⁴ nats a token to probability exactly 1, in every combination."""
    per_token = torch.cartesian_prod(*3 * [tensor(-1e4, -120, -1, -1e-8, -1e-15, 0).to(dtype)])      # (216, 3)
    logps = per_token.T[..., None].expand(-1, -1, 2)
    A, B, T = logps.shape
    batch = Batch(torch.ones(A, B, T, dtype=torch.bool), ref_logps=torch.full((A, B), -3.0), rewards=torch.rand(A, B),
                  kl_logps=tensor(-1e4, 0), kl_ref_logps=tensor(-1e4, -1e4))
    loss, weights, info = build(name, hyper, B).weigh(logps, batch)
    assert loss.isfinite() and weights.isfinite().all() and all(x.isfinite().all() for x in info.values())


@every
def test_inputs_are_left_as_they_were(name, hyper):
    logps, batch = batch_for(name)
    tensors = lambda: {k: v.clone() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)} | {"logps": logps.clone()}  # noqa: E731
    before = tensors()
    build(name, hyper).weigh(logps, batch)
    close(tensors(), before, equal_nan=True)


# ------------------------------------------------------------------------------------------------ one method inside another

SAME = {
    "IFT without residual and propagation is SFT": (("ift", {"lam": 0.0, "gamma": 0.0}), ("sft", {})),
    "SPIN is DPO": (("spin", {"beta": 0.4}), ("dpo", {"beta": 0.4})),
    "R-DPO at α = 0 is DPO": (("rdpo", {"alpha": 0.0}), ("dpo", {})),
    "DPO-p at λ = 0 is DPO": (("dpop", {"lam": 0.0, "beta": 0.1}), ("dpo", {})),
    "SimPO-SFT at w = 0 is SimPO": (("simpo_sft", {"sft_weight": 0.0}), ("simpo", {})),
    "ASFT at λ = 0 is SFT": (("asft", {"lam": 0.0}), ("sft", {})),
    "ORPO at λ = 0 is SFT": (("orpo", {"lam": 0.0}), ("sft", {})),
    "tempered ASFT at b = 1 is ASFT": (("asft", {"beta_odds": 1 + 1e-15}), ("asft", {})),
}


@pytest.mark.parametrize("law", SAME)
def test_methods_that_coincide(law):
    logps, batch = make_batch()
    (loss, weights, _), (other_loss, other_weights, _) = (build(*x).weigh(logps, batch) for x in SAME[law])
    close(loss, other_loss)
    close(weights, other_weights)


def test_cpo_is_dpo_with_a_uniform_reference_plus_sft():
    logps, batch = make_batch()
    uniform = replace(batch, ref_logps=torch.zeros_like(batch.ref_logps))
    loss, weights, _ = build("cpo", {"alpha": 0.3}).weigh(logps, batch)
    a, b = build("dpo").weigh(logps, uniform), build("sft", {"reduction": "token_mean"}).weigh(logps, batch)
    close(loss, a[0] + 0.3 * b[0])
    close(weights, a[1] + 0.3 * b[1])


def test_orpo_is_asft_plus_lambda_log_d():
    """D = p_w (1 − p_l) + p_l (1 − p_w) ≤ 1, so ORPO's loss is below ASFT's."""
    logps, batch = make_batch(A=2, B=1)
    p_w, p_l = (logps[a, 0][batch.mask[a, 0]].mean().exp() for a in (0, 1))
    log_d = torch.log(p_w * (1 - p_l) + p_l * (1 - p_w))
    orpo, asft = (build(name, {"lam": 0.8}).weigh(logps, batch)[0] for name in ("orpo", "asft"))
    close(orpo, asft + 0.8 * log_d)
    assert log_d < 0


def test_several_negatives_are_the_mean_over_the_pairs():
    logps, batch = make_batch()
    batch, logps = batch.part(0, 1), logps[:, :1]
    batch.counts = Counts(1, 4, 6)
    cut = [[0, a] for a in (1, 2, 3)]
    for name in "asft", "dpo", "dpop", "ipo", "orpo", "cpo", "simpo", "simpo_sft", "rdpo", "spin", "slic":
        one = [build(name).weigh(logps[i], replace(batch, mask=batch.mask[i], ref_logps=batch.ref_logps[i])) for i in cut]
        loss, weights, _ = build(name).weigh(logps, batch)
        close(loss, mean(x[0] for x in one))
        close(weights[0], mean(x[1][0] for x in one))
        close(weights[1:], torch.cat([x[1][1:] for x in one]) / 3)


@pytest.mark.parametrize("name, hyper", [("dpo", {}), ("spin", {}), ("dpop", {"beta": 0.1}), ("rdpo", {"alpha": 0.0})])
def test_where_policy_is_reference_a_pair_is_pushed_by_half_beta(name, hyper):
    """DPO-p has a kink there; it takes DPO's side."""
    logps, batch = make_batch(A=2, B=1)
    start = replace(batch, ref_logps=torch.where(batch.mask, logps, 0.0).sum(-1))
    loss, weights, _ = build(name, hyper).weigh(logps, start)
    close(loss.item(), math.log(2))
    close(weights, tensor([0.05], [-0.05])[..., None] * batch.mask)


def test_in_probabilities_dpo_moves_the_unlikelier_answer_more():
    """|∂L/∂p_w| : |∂L/∂p_l| = p_l : p_w; in log-probs the two pushes are equal."""
    logps, batch = make_batch(A=2, B=1)
    _, weights, _ = build("dpo").weigh(logps, batch)
    up, down = weights[0, 0, 0], -weights[1, 0, 0]
    close(up, down)
    p_w, p_l = (logps[a, 0][batch.mask[a, 0]].sum().exp() for a in (0, 1))
    close((up / p_w) / (down / p_l), p_l / p_w)


# ------------------------------------------------------------------------------------------------ the running average of DFT

def test_below_gamma_1_autograd_through_u_is_off_by_exactly_gamma():
    """eq. 13 holds u fixed once updated: the pushes down are exp(d)/(K u); autograd would shrink each by γ."""
    logps, batch = make_batch(A=3, B=3)
    batch.mask[2, 1, :2] = True
    logps = torch.where(batch.mask, logps.nan_to_num(-1.0), math.nan)
    batch.ref_logps = torch.where(batch.mask, logps, 0.0).sum(-1) - 0.5
    for name, gamma, tau in ("dft", 0.6, 0.9), ("dft2", 0.85, 0.3):
        method = build(name, {"gamma": gamma, "tau": tau})
        method.log_u.copy_(torch.linspace(-1, 1, 9))
        old = method.log_u[batch.index].exp()
        x = logps.clone().requires_grad_()
        l, n = torch.where(batch.mask, x, 0).sum(-1), batch.mask.sum(-1)
        s = l if name == "dft" else l / n
        d = s[1:] / tau - (batch.ref_logps[1:] if name == "dft" else 0)
        u = (1 - gamma) * old + gamma * d.exp().mean(0)
        value = (-s[0] + tau * u.log()).mean()
        through_u = torch.where(batch.mask, torch.autograd.grad(value, x)[0], 0.0)
        loss, weights, _ = method.weigh(logps, batch)
        close(loss, value.detach())
        close(weights[0], -through_u[0])
        close(weights[1:] * gamma, -through_u[1:])
        eq_13 = -(d.exp() / (2 * u)).detach() / 3 / (1 if name == "dft" else n[1:])
        close(weights[1:], eq_13[..., None] * batch.mask[1:])


def enumerated():
    """All nine two-token answers of a random policy as the negatives of one prompt, drawn from a reference with u exact: answers
    come with the multiplicity the reference gives them. Returns policy parameters, logps, batch."""
    g = torch.Generator().manual_seed(3)
    theta = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)     # row 0: first token; 1 + i: after i
    log_p = theta.log_softmax(-1)
    times = {(i, j): 1 + (2 * i + j) % 3 for i in range(3) for j in range(3)}
    answers = [(1, 2)] + [y for y in times for _ in range(times[y])]
    logps = torch.stack([torch.stack([log_p[0, i], log_p[1 + i, j]]) for i, j in answers])[:, None]     # (A, 1, 2)
    ref = tensor(*(times[y] / sum(times.values()) for y in answers)).log()[:, None]
    return theta, logps, Batch(torch.ones_like(logps, dtype=torch.bool), ref_logps=ref)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_with_every_answer_counted_dft_at_tau_1_is_sft(gamma):
    """u = Σ_y P(y) = 1 then: what sets DFT apart from SFT is its finite pool and its running average, not its objective."""
    theta, logps, batch = enumerated()
    method = build("dft", {"tau": 1.0, "gamma": gamma})
    loss, weights, _ = method.weigh(logps.detach(), batch)
    loss_sft, weights_sft, _ = build("sft", {"reduction": "seq_sum"}).weigh(logps.detach(), batch)
    close(loss, loss_sft)
    close(method.log_u[0], tensor(0)[0])
    only_down = torch.cat([torch.zeros_like(weights[:1]), weights[1:]])
    ours, sfts, downs = (torch.autograd.grad((w * logps).sum(), theta, retain_graph=True)[0]
                         for w in (weights, weights_sft, only_down))
    close(ours, sfts)
    close(downs, torch.zeros_like(theta))                              # E[ω · ∇ log P(y′)] = 0


def test_at_gamma_1_one_negative_is_pushed_down_exactly_as_hard_as_the_wanted_answer_up():
    logps, batch = make_batch(A=2, B=1)
    for scale in 0.1, 1, 100:
        for name in "dft", "dft2":
            _, weights, _ = build(name, {"gamma": 1.0}).weigh(scale * logps, batch)
            per_token = 1 if name == "dft" else batch.mask.sum(-1, keepdim=True)
            close(weights * per_token, tensor(1, -1).view(2, 1, 1) * batch.mask)


@pytest.mark.parametrize("gamma", [1.0, 0.95, 0.3])
def test_the_pushes_down_add_up_to_at_most_1_over_gamma(gamma):
    for seed in range(5):
        logps, batch = make_batch(seed)
        down = build("dft", {"gamma": gamma}).weigh(20 * logps, batch)[2]["push_down"]
        assert (down <= 1 / gamma + 1e-9).all()
        if gamma == 1:
            close(down, torch.ones_like(down))


def test_an_example_twice_in_a_batch_is_visited_twice():
    logps, batch = make_batch()
    once, twice = build("dft"), build("dft")
    a = [once.weigh(logps[:, :1], replace(batch.part(0, 1), index=torch.tensor([4]))) for _ in range(2)]
    double = replace(batch, mask=batch.mask[:, [0, 0]], ref_logps=batch.ref_logps[:, [0, 0]], index=torch.tensor([4, 4]))
    _, weights, info = twice.weigh(logps[:, [0, 0]], double)
    close(twice.log_u, once.log_u)
    close(weights, torch.cat([x[1] for x in a], 1))
    assert info["log_u"][0] != info["log_u"][1]


def test_while_frozen_dft_reads_its_average_and_does_not_write_it():
    logps, batch = make_batch()
    method, other = build("dft"), build("dft")
    for m in method, other:
        m.weigh(logps, batch)
    before = method.log_u.clone()
    method.frozen = True
    frozen, thawed = method.weigh(logps, batch), other.weigh(logps, batch)
    close(frozen[:2], thawed[:2])
    assert torch.equal(method.log_u, before) and not torch.equal(other.log_u, before)


def test_the_average_survives_a_checkpoint_and_refuses_another_data_set():
    logps, batch = make_batch()
    method, restored = build("dft"), build("dft")
    method.weigh(logps, batch)
    restored.load_state_dict({k: v.clone() for k, v in method.state_dict().items()})
    close(restored.weigh(logps, batch)[:2], method.weigh(logps, batch)[:2])
    with pytest.raises(ValueError, match="8 examples, the data has 9"):
        restored.load_state_dict(build("dft", n_examples=8).state_dict())
    with pytest.raises(ValueError, match="example 7 has no running average"):
        build("dft", n_examples=5).weigh(logps, batch)


# ------------------------------------------------------------------------------------------------ IFT's weights

def test_equation_21_gives_token_i_the_weight_i_plus_1():
    batch = Batch(torch.ones(1, 2, 5, dtype=torch.bool))
    _, weights, _ = build("ift_eq21").weigh(-torch.rand(1, 2, 5).double(), batch)
    close(weights[0], torch.arange(1.0, 6.0).double().expand(2, 5) / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_discounted_sums_of_every_row(gamma):
    """The library that released IFT code uses gets only the first row of a batch right on CPU."""
    x = torch.ones(6, 5).double()
    tail = torch.tensor([[sum(gamma ** (i - t) for i in range(t, 5)) for t in range(5)]] * 6).double()
    close(discounted_tail(x, gamma), tail)
    close(discounted_head(x, gamma), tail.flip(-1))


def test_released_ift_weights_push_late_easy_tokens_down_and_detached_ones_never_do():
    logps, batch = -tensor(3, 0.1, 0.1, 0.1).view(1, 1, 4), Batch(torch.ones(1, 1, 4, dtype=torch.bool))
    _, weights, info = build("ift", {"gamma": 0.95}).weigh(logps, batch)
    close(weights[0, 0], tensor(0.963, -0.458, -1.094, -1.701), rtol=0, atol=1e-3)
    assert info["negative_weights"] == 0.75
    loss, detached, _ = build("ift", {"gamma": 0.95, "detach_weights": True}).weigh(logps, batch)
    assert (detached > 0).all()
    close((-logps * detached).sum(), loss)


def test_ift_on_certain_tokens_falls_back_to_sft():
    """Released code divides 0 by 0 here."""
    logps, batch = torch.zeros(1, 2, 3).double(), Batch(torch.tensor([[[True] * 3, [True, False, False]]]))
    for hyper in {}, {"detach_weights": True}:
        loss, weights, _ = build("ift", hyper).weigh(logps, batch)
        close((loss, weights), build("sft").weigh(logps, batch)[:2])


# ------------------------------------------------------------------------------------------------ where released code breaks

def exact(name, a_w, a_l, lam):
    """Loss and −gradient of ASFT or ORPO for answers of one token, in 60 decimal digits and straight from the definition."""
    with localcontext() as context:
        context.prec = 60

        def loss(a_w, a_l):
            w, l = ((x.exp() / (1 - x.exp())).ln() for x in (a_w, a_l))
            softplus = lambda x: (1 + x.exp()).ln()  # noqa: E731
            return -a_w + Decimal(lam) * (softplus(-w) + softplus(l) if name == "asft" else softplus(l - w))

        a, h = [Decimal(a_w), Decimal(a_l)], Decimal(10) ** -30
        w, l = a
        slopes = (loss(w + h, l) - loss(w - h, l)) / (2 * h), (loss(w, l + h) - loss(w, l - h)) / (2 * h)
        return float(loss(w, l)), [-float(s) for s in slopes]


EXTREME = [(-1e-8, -1.0), (-1.0, -1e-8), (-1e-8, -1e-8), (-120.0, -2.0), (-2.0, -1e-9), (-1e-8, -2.0), (-1e-15, -3.0),
           (-3.0, -1e-15), (-1e-15, -1e-15), (-0.7, -0.69), (-100.0, -100.0)]


@pytest.mark.parametrize("a_w, a_l", EXTREME)
@pytest.mark.parametrize("name", ["asft", "orpo"])
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_asft_and_orpo_near_probability_1(name, a_w, a_l, dtype, rtol):
    """NaN or a vanished gradient in the IFT, TRL, Liger and turbo releases (METHODS.md §5, 1 and 2)."""
    logps = torch.tensor([a_w, a_l], dtype=dtype).view(2, 1, 1)
    loss, weights, _ = build(name, {"lam": 1.0}).weigh(logps, Batch(torch.ones(2, 1, 1, dtype=torch.bool)))
    expected, pushes = exact(name, *logps.flatten().tolist(), 1)
    close(loss.item(), expected, rtol=rtol, atol=1e-30)
    close(weights.flatten().tolist(), pushes, rtol=rtol, atol=1e-30)


def test_orpo_is_finite_at_probability_exactly_1_of_the_wanted_answer():
    """L → −λ log(1) there: nothing left to win against l, and SFT's push stays."""
    logps = tensor(0, -1).view(2, 1, 1)
    loss, weights, _ = build("orpo", {"lam": 1.0}).weigh(logps, Batch(torch.ones(2, 1, 1, dtype=torch.bool)))
    p_l = math.exp(-1)
    close((loss.item(), *weights.flatten().tolist()), (0.0, 1 + p_l / (1 - p_l), 0.0))


def test_tempered_asft_of_a_hopeless_answer_is_finite():
    """softplus(1000) is 1000, not log(1 + e¹⁰⁰⁰)."""
    logps = tensor(-2000, -1).view(2, 1, 1)
    loss, _, _ = build("asft", {"lam": 1.0, "beta_odds": 0.5}).weigh(logps, Batch(torch.ones(2, 1, 1, dtype=torch.bool)))
    close(loss.item(), 2000 + 1000 + math.log1p(math.exp(-1) ** 0.5 * (1 - math.exp(-1)) ** -0.5))


@settings(deadline=None)
@given(a=st.floats(-700, -1e-300))
def test_log1mexp_keeps_its_digits_at_both_ends(a):
    with localcontext() as context:
        context.prec = 400
        expected = float((1 - Decimal(a).exp()).ln())
    close(log1mexp(tensor(a)).item(), expected, rtol=1e-14, atol=0)


def test_ipo_at_the_start_asks_for_its_margin():
    """Policy = reference: HALOs divides by the number of tokens that differ, 0/0. One of three tokens off: the mean is over 3."""
    logps, batch = make_batch(A=2)
    batch.mask[:, 1], logps = True, torch.full_like(logps, -1.0)
    batch.ref_logps = torch.where(batch.mask, logps, 0.0).sum(-1)
    method = build("ipo", {"tau": 0.1, "length_normalize": True})
    loss, weights, info = method.weigh(logps, batch)
    close(loss, tensor(25)[0])
    close(weights.sum(-1), tensor([10], [-10]).expand(2, 3) / 3)
    three = Batch(torch.ones(2, 1, 3, dtype=torch.bool), ref_logps=torch.full((2, 1), -3.0).double())
    x = torch.full((2, 1, 3), -1.0).double()
    x[0, 0, 1] = -3.0
    close(method.weigh(x, three)[2]["margin"], tensor(-2 / 3))


def test_a_negative_of_probability_0_is_left_alone():
    """Released DFT code gives NaN."""
    logps, batch = make_batch()
    logps[1] = -torch.inf
    for gamma in 1.0, 0.9:
        method = build("dft", {"gamma": gamma})
        loss, weights, _ = method.weigh(logps, batch)
        assert loss.isfinite() and weights.isfinite().all() and not weights[1].any() and method.log_u.isfinite().all()


def test_examples_not_visited_yet_keep_their_average():
    """Released DFT code sets log u of examples unseen in an epoch to NaN."""
    logps, batch = make_batch()
    method = build("dft")
    method.weigh(logps, batch)
    unseen = [i for i in range(9) if i not in batch.index.tolist()]
    assert not method.log_u[unseen].any() and method.log_u[batch.index].all()
    assert method.weigh(logps, replace(batch, index=torch.tensor(unseen[:3])))[0].isfinite()


def test_long_answers_keep_the_ratio_to_the_reference():
    """In bfloat16 a ratio of 0.67 over 320 tokens becomes 1.0; sums here are float32 or wider."""
    token = torch.full((2, 1, 320), -6.25)
    token[1, 0, 0] -= 0.4
    batch = Batch(torch.ones(2, 1, 320, dtype=torch.bool), ref_logps=torch.full((2, 1), -2000.0))
    _, _, info = build("dft", {"gamma": 1.0, "tau": 1.0}).weigh(token, batch)
    close(info["log_u"].exp(), torch.tensor([math.exp(-0.4)]), rtol=1e-3, atol=0)


def test_rdpo_trusts_a_longer_wanted_answer_less():
    """The sign of the paper: 40 tokens longer, α 0.05, β 0.1 at the start: 0.0119, not 0.05 (DPO) or 0.0881 (the other sign)."""
    mask = torch.arange(50) < torch.tensor([[[50]], [[10]]])
    _, weights, _ = build("rdpo", {"beta": 0.1, "alpha": 0.05}).weigh(-mask.double(), Batch(mask, ref_logps=-mask.sum(-1)))
    close(weights[:, 0, 0], tensor(0.0119, -0.0119), rtol=0, atol=5e-5)


def test_kto_holds_its_reference_point_fixed_and_counts_rows_of_zero_drift():
    logps, batch = make_batch(unpaired=True)
    batch.kl_logps = tensor(-1, -2, -2, -2).requires_grad_()
    batch.kl_ref_logps = tensor(-5, -2, -2, -2)
    loss, weights, info = build("kto").weigh(logps, batch)
    assert not weights.requires_grad and not loss.requires_grad and not info["kl"].requires_grad
    close(info["kl"], tensor(1, 1, 1))
    likelier = replace(batch, kl_ref_logps=0 * batch.kl_ref_logps)
    close(build("kto").weigh(logps, likelier)[2]["kl"], tensor(0, 0, 0))                # never below 0


def test_kto_reads_the_drift_of_mismatched_answers_off_the_policy(model, examples):
    answers = [[30, 31, 32, 33, 34, 35], [11], [5, 6, 7]]
    examples = [replace(e, kl_answer=y, kl_ref_logp=-30.0) for e, y in zip(examples, answers, strict=True)]
    batch = build("kto").prepare(model, collate(examples))
    alone = [batch_logps(model, collate([replace(e, answers=[e.kl_answer], ref_logps=None)])).sum() for e in examples]
    close(batch.kl_logps, torch.stack(alone).detach())
    assert not batch.kl_logps.requires_grad and build("kto").prepare(model, batch) is batch
    drift = (batch.kl_logps - batch.kl_ref_logps).mean().clamp(min=0)
    close(fused_pass(model, build("kto"), collate(examples))[2]["kl"], drift.expand(3))


# ------------------------------------------------------------------------------------------------ what is missing is named

def without(batch, need):
    """The batch less what this need stands for."""
    if need in ("rejected", "negatives"):
        mask = batch.mask.clone()
        mask[1:, 1] = False
        return replace(batch, mask=mask)
    return replace(batch, **{"reference": {"ref_logps": None}, "rewards": {"rewards": None}, "kl": {"kl_logps": None}}[need])


SENTENCE = {"rejected": "example 1 has no rejected answer", "negatives": "example 1 has no|at least one negative per prompt",
            "kl": "mismatched", "reference": "needs the reference model's log-prob.*minialign", "rewards": '"responses"'}


@pytest.mark.parametrize("name, need", [(name, need) for name in METHODS for need in METHODS[name].needs])
def test_missing_data_is_named(name, need):
    logps, batch = make_batch()
    with pytest.raises(ValueError, match=SENTENCE[need]):
        build(name).weigh(logps, without(batch, need))


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_wanted_answer_is_refused_where_one_is_needed(name):
    """Every averaging release answers NaN."""
    logps, batch = make_batch(unpaired=True)
    if name in ("kto", "rrhf"):
        assert build(name).weigh(logps, batch)[1].isfinite().all()
    else:
        with pytest.raises(ValueError, match="example 7 has no answer 0"):
            build(name).weigh(logps, batch)


def test_rrhf_refuses_a_prompt_without_answers_and_a_reward_that_is_none():
    logps, batch = make_batch()
    with pytest.raises(ValueError, match="not a number"):
        build("rrhf").weigh(logps, replace(batch, rewards=batch.rewards * math.nan))
    batch.mask[:, 2] = False
    with pytest.raises(ValueError, match="example 7 has no answers at all"):
        build("rrhf").weigh(logps, batch)


def test_rrhf_does_not_rank_ties_and_imitates_the_first_of_the_best():
    logps, batch = make_batch(A=3, B=1)
    batch = replace(batch, mask=torch.ones_like(batch.mask), rewards=torch.ones(3, 1))
    logps = logps.nan_to_num(-1.0)
    loss, weights, info = build("rrhf").weigh(logps, batch)
    assert info["wrong_pairs"] == 0 and not weights[1:].any()
    close((loss, weights), build("sft").weigh(logps, batch)[:2])


@pytest.mark.parametrize("name, hyper", [
    ("sft", {"reduction": "mean"}), ("dft", {"gamma": 0.0}), ("dft", {"gamma": 1.1}), ("dft2", {"tau": 0.0}),
    ("ift", {"lam": 1.5}), ("ift", {"gamma": -0.1}), ("dpo", {"beta": -0.1}), ("dpo", {"label_smoothing": 0.5}),
    ("ipo", {"tau": 0.0}), ("cpo", {"nll": "mean"}), ("rrhf", {"sft": "mean"}), ("orpo", {"lam": -1.0}),
])
def test_hyper_parameters_that_make_no_sense_are_refused(name, hyper):
    with pytest.raises(ValueError, match=next(iter(hyper))):
        build(name, hyper)


@every
def test_logps_of_another_shape_are_refused(name, hyper):
    logps, batch = batch_for(name)
    with pytest.raises(ValueError, match="must both be"):
        build(name, hyper).weigh(logps[..., :-1], batch)
