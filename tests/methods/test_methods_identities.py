"""What methods have in common, the memory of DFT, the token weights of IFT.

Identities that need no experiment.
"""

import math
from dataclasses import replace

import pytest
import torch
from naive import METHODS, build, close, make_batch, mean, tensor

from minialign import Batch
from minialign.data import Counts
from minialign.methods import ASFT
from minialign.methods.ift import discounted_head, discounted_tail
from minialign.methods.preference import Pairwise

# ------------------------------------------------------------------------ one method inside another

SAME = {
    "IFT without residual and propagation is SFT":
        (("ift", {"lam": 0.0, "gamma": 0.0}), ("sft", {})),
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
    one, other = SAME[law]
    close(build(*one).weigh(logps, batch)[:2], build(*other).weigh(logps, batch)[:2])


def test_cpo_is_dpo_with_a_uniform_reference_plus_sft():
    logps, batch = make_batch()
    uniform = replace(batch, ref_logps=torch.zeros_like(batch.ref_logps))
    loss, weights, _ = build("cpo", {"alpha": 0.3}).weigh(logps, batch)
    a = build("dpo").weigh(logps, uniform)
    b = build("sft", {"reduction": "token_mean"}).weigh(logps, batch)
    close(loss, a[0] + 0.3 * b[0])
    close(weights, a[1] + 0.3 * b[1])


def test_orpo_is_asft_plus_lambda_log_d():
    """D = p_w (1 − p_l) + p_l (1 − p_w) ≤ 1, so ORPO's loss is below ASFT's."""
    logps, batch = make_batch(A=2, B=1)
    p_w, p_l = (logps[a, 0][batch.mask[a, 0]].mean().exp() for a in (0, 1))
    log_d = torch.log(p_w * (1 - p_l) + p_l * (1 - p_w))
    orpo = build("orpo", {"lam": 0.8}).weigh(logps, batch)[0]
    asft = build("asft", {"lam": 0.8}).weigh(logps, batch)[0]
    close(orpo, asft + 0.8 * log_d)
    assert log_d < 0


@pytest.mark.parametrize("name", [n for n in METHODS if issubclass(METHODS[n], (Pairwise, ASFT))])
def test_several_negatives_are_the_mean_over_the_pairs(name):
    logps, batch = make_batch()
    batch, logps = batch.part(0, 1), logps[:, :1]
    batch.counts = Counts(1, 4, 6)
    one = []
    for pair in [0, 1], [0, 2], [0, 3]:
        cut = replace(batch, mask=batch.mask[pair], ref_logps=batch.ref_logps[pair])
        one.append(build(name).weigh(logps[pair], cut))
    loss, weights, _ = build(name).weigh(logps, batch)
    close(loss, mean(x[0] for x in one))
    close(weights[0], mean(x[1][0] for x in one))
    close(weights[1:], torch.cat([x[1][1:] for x in one]) / 3)


@pytest.mark.parametrize("name, hyper", [
    ("dpo", {}), ("spin", {}), ("dpop", {"beta": 0.1}), ("rdpo", {"alpha": 0.0}),
])
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


@pytest.mark.parametrize("r_w, slope", [(1e-9, 1), (0.0, 1), (-1e-9, 51)])
def test_dpo_p_is_fined_below_the_reference_and_not_at_it(r_w, slope):
    """The kink at r_w = 0: the side of DPO counts, as with torch's relu."""
    logps = tensor(-1.0, -2.0).view(2, 1, 1)
    ref_logps = tensor([-1.0 - r_w], [-2.0])
    batch = Batch(torch.ones(2, 1, 1, dtype=torch.bool), ref_logps=ref_logps)
    _, weights, _ = build("dpop", {"beta": 0.1, "lam": 50.0}).weigh(logps, batch)
    close(weights.flatten(), tensor(0.05 * slope, -0.05), rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin, pushed", [(1.875, 1), (2.0, 0), (2.125, 0)])
def test_slic_leaves_a_pair_alone_from_its_margin_on(margin, pushed):
    """The kink at h = 0: a margin of exactly δ is enough."""
    logps = tensor(-1.0, -1.0 - margin).view(2, 1, 1)
    batch = Batch(torch.ones(2, 1, 1, dtype=torch.bool))
    loss, weights, _ = build("slic", {"delta": 2.0, "lam": 0.0}).weigh(logps, batch)
    close(loss.item(), max(0.0, 2 - margin))
    close(weights.flatten(), tensor(pushed, -pushed))


# ----------------------------------------------------------------------- the running average of DFT

def test_below_gamma_1_autograd_through_u_is_off_by_exactly_gamma():
    """eq. 13 holds u fixed once updated: the pushes down are exp(d)/(K u); autograd would shrink
    each by γ.
    """
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
    """All nine two-token answers of a random policy as the negatives of one prompt: u is exact.

    Answers come as often as the reference gives them. Returns policy parameters, logps, batch.
    """
    g = torch.Generator().manual_seed(3)
    # Row 0: the first token; row 1 + i: the token after i.
    theta = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    log_p = theta.log_softmax(-1)
    times = {(i, j): 1 + (2 * i + j) % 3 for i in range(3) for j in range(3)}
    answers = [(1, 2)] + [y for y in times for _ in range(times[y])]
    logps = torch.stack([torch.stack([log_p[0, i], log_p[1 + i, j]]) for i, j in answers])  # (A, 2)
    logps = logps[:, None]                                                              # (A, 1, 2)
    ref = tensor(*(times[y] / sum(times.values()) for y in answers)).log()[:, None]
    return theta, logps, Batch(torch.ones_like(logps, dtype=torch.bool), ref_logps=ref)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_with_every_answer_counted_dft_at_tau_1_is_sft(gamma):
    """u = Σ_y P(y) = 1 then: what sets DFT apart from SFT is its finite pool and its running
    average, not its objective.
    """
    theta, logps, batch = enumerated()
    method = build("dft", {"tau": 1.0, "gamma": gamma})
    loss, weights, _ = method.weigh(logps.detach(), batch)
    loss_sft, weights_sft, _ = build("sft", {"reduction": "seq_sum"}).weigh(logps.detach(), batch)
    close(loss, loss_sft)
    close(method.log_u[0], tensor(0)[0])
    only_down = torch.cat([torch.zeros_like(weights[:1]), weights[1:]])
    ours, sfts, downs = (
        torch.autograd.grad((w * logps).sum(), theta, retain_graph=True)[0]
        for w in (weights, weights_sft, only_down)
    )
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
    single = replace(batch.part(0, 1), index=torch.tensor([4]))
    a = [once.weigh(logps[:, :1], single) for _ in range(2)]
    double = replace(
        batch, mask=batch.mask[:, [0, 0]], ref_logps=batch.ref_logps[:, [0, 0]],
        index=torch.tensor([4, 4]),
    )
    _, weights, info = twice.weigh(logps[:, [0, 0]], double)
    close(twice.log_u, once.log_u)
    close(weights, torch.cat([x[1] for x in a], 1))
    assert info["log_u"][0] != info["log_u"][1]


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


# ------------------------------------------------------------------------------------ IFT's weights

def test_equation_21_gives_token_i_the_weight_i_plus_1():
    batch = Batch(torch.ones(1, 2, 5, dtype=torch.bool))
    _, weights, _ = build("ift_eq21").weigh(-torch.rand(1, 2, 5).double(), batch)
    close(weights[0], torch.arange(1.0, 6.0).double().expand(2, 5) / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_discounted_sums_of_every_row(gamma):
    """The library that released IFT code uses gets only the first row of a batch right on CPU."""
    x = torch.ones(6, 5).double()
    row = [sum(gamma ** (i - t) for i in range(t, 5)) for t in range(5)]
    tail = torch.tensor(row).double().expand(6, 5)
    close(discounted_tail(x, gamma), tail)
    close(discounted_head(x, gamma), tail.flip(-1))


def test_released_ift_weights_push_late_easy_tokens_down_and_detached_ones_never_do():
    logps = -tensor(3, 0.1, 0.1, 0.1).view(1, 1, 4)
    batch = Batch(torch.ones(1, 1, 4, dtype=torch.bool))
    _, weights, info = build("ift", {"gamma": 0.95}).weigh(logps, batch)
    close(weights[0, 0], tensor(0.963, -0.458, -1.094, -1.701), rtol=0, atol=1e-3)
    assert info["negative_weights"] == 0.75
    loss, detached, _ = build("ift", {"gamma": 0.95, "detach_weights": True}).weigh(logps, batch)
    assert (detached > 0).all()
    close((-logps * detached).sum(), loss)


def test_ift_on_certain_tokens_falls_back_to_sft():
    """Released code divides 0 by 0 here."""
    logps = torch.zeros(1, 2, 3).double()
    batch = Batch(torch.tensor([[[True, True, True], [True, False, False]]]))
    for hyper in {}, {"detach_weights": True}:
        loss, weights, _ = build("ift", hyper).weigh(logps, batch)
        close((loss, weights), build("sft").weigh(logps, batch)[:2])
