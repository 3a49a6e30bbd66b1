"""Where released code breaks and ours must not.

Every failure below was seen by running a release on the same numbers. Two more stand with their
identities: an example twice in a batch of DFT's, and IFT's discounted sums.
"""

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import METHODS, build, close, make_batch, tensor

from minialign import Batch
from minialign.data import Example, collate
from minialign.logps import batch_logps
from minialign.methods.method import below_one, log1mexp
from minialign.train import fused_pass


def exact(name, a_w, a_l, lam):
    """Loss and −gradient of ASFT or ORPO for answers of one token, straight from the definition,
    in 60 decimal digits.
    """
    def log_odds(a):
        return (a.exp() / (1 - a.exp())).ln()

    def softplus(x):
        return (1 + x.exp()).ln()

    def loss(a_w, a_l):
        w, l = log_odds(a_w), log_odds(a_l)
        if name == "asft":
            return -a_w + Decimal(lam) * (softplus(-w) + softplus(l))
        return -a_w + Decimal(lam) * softplus(l - w)

    with localcontext() as context:
        context.prec = 60
        w, l, h = Decimal(a_w), Decimal(a_l), Decimal(10) ** -30
        slope_w = (loss(w + h, l) - loss(w - h, l)) / (2 * h)
        slope_l = (loss(w, l + h) - loss(w, l - h)) / (2 * h)
        return float(loss(w, l)), [-float(slope_w), -float(slope_l)]


def two_tokens(a_w, a_l, dtype=torch.float64):
    """One pair of answers of one token each."""
    logps = torch.tensor([a_w, a_l], dtype=dtype).view(2, 1, 1)
    return logps, Batch(torch.ones(2, 1, 1, dtype=torch.bool))


EXTREME = [
    (-1e-8, -1.0), (-1.0, -1e-8), (-1e-8, -1e-8), (-120.0, -2.0), (-2.0, -1e-9), (-1e-8, -2.0),
    (-1e-15, -3.0), (-3.0, -1e-15), (-1e-15, -1e-15), (-0.7, -0.69), (-100.0, -100.0),
]


@pytest.mark.parametrize("a_w, a_l", EXTREME)
@pytest.mark.parametrize("name", ["asft", "orpo"])
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_asft_and_orpo_near_probability_1(name, a_w, a_l, dtype, rtol):
    """NaN or a vanished gradient in the IFT, TRL, Liger and turbo releases."""
    logps, batch = two_tokens(a_w, a_l, dtype)
    loss, weights, _ = build(name, {"lam": 1.0}).weigh(logps, batch)
    expected, pushes = exact(name, *logps.flatten().tolist(), 1)
    close(loss.item(), expected, rtol=rtol, atol=1e-30)
    close(weights.flatten().tolist(), pushes, rtol=rtol, atol=1e-30)


def test_orpo_is_finite_at_probability_exactly_1_of_the_wanted_answer():
    """L → −λ log(1) there: nothing left to win against l, and SFT's push stays."""
    loss, weights, _ = build("orpo", {"lam": 1.0}).weigh(*two_tokens(0.0, -1.0))
    p_l = math.exp(-1)
    close((loss.item(), *weights.flatten().tolist()), (0.0, 1 + p_l / (1 - p_l), 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["asft", "orpo"])
def test_a_rejected_answer_of_probability_exactly_1_counts_as_the_nearest_number_below(name, dtype):
    """1 − eps/2: the loss is infinite at 1. Other answers keep the probability they have."""
    below = math.log1p(-torch.finfo(dtype).eps / 2)
    loss, weights, info = build(name, {"lam": 1.0}).weigh(*two_tokens(-2.0, 0.0, dtype))
    expected, pushes = exact(name, -2.0, below, 1)
    close(loss.item(), expected, rtol=1e-5, atol=0)
    close(weights.flatten().tolist(), pushes, rtol=1e-5, atol=0)
    nearest = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    close(below_one(torch.zeros(1, dtype=dtype)).exp(), nearest[None], rtol=0, atol=0)
    others = torch.tensor([-1e-10, -1e-3, -7.0], dtype=dtype)
    assert torch.equal(below_one(others), others)


def test_asft_says_which_share_of_the_rejected_answers_is_saturated():
    logps = tensor([0.0, 0.0], [-1.0, -2.0], [0.0, -1e-9]).view(3, 1, 2)
    mask = torch.ones(3, 1, 2, dtype=torch.bool)
    assert build("asft").weigh(logps, Batch(mask))[2]["saturated"] == 0         # nearly is not
    logps[2] = 0.0
    assert build("asft").weigh(logps, Batch(mask))[2]["saturated"] == 0.5
    logps[1] = 0.0
    assert build("asft").weigh(logps, Batch(mask))[2]["saturated"] == 1


def test_tempered_asft_of_a_hopeless_answer_is_finite():
    """softplus(1000) is 1000, not log(1 + e¹⁰⁰⁰)."""
    tempered = build("asft", {"lam": 1.0, "beta_odds": 0.5})
    loss, _, _ = tempered.weigh(*two_tokens(-2000.0, -1.0))
    p_l = math.exp(-1)
    close(loss.item(), 2000 + 1000 + math.log1p((p_l / (1 - p_l)) ** 0.5))


@settings(deadline=None)
@given(a=st.floats(-700, -1e-300))
def test_log1mexp_keeps_its_digits_at_both_ends(a):
    with localcontext() as context:
        context.prec = 400
        expected = float((1 - Decimal(a).exp()).ln())
    close(log1mexp(tensor(a)).item(), expected, rtol=1e-14, atol=0)


def test_ipo_at_the_start_asks_for_its_margin():
    """Policy = reference: HALOs divides by the number of tokens that differ, 0/0.

    One of three tokens off: the mean is over 3.
    """
    logps, batch = make_batch(A=2)
    batch.mask[:, 1], logps = True, torch.full_like(logps, -1.0)
    batch.ref_logps = torch.where(batch.mask, logps, 0.0).sum(-1)
    method = build("ipo", {"tau": 0.1, "length_normalize": True})
    loss, weights, info = method.weigh(logps, batch)
    close(loss, tensor(25)[0])
    close(weights.sum(-1), tensor([10], [-10]).expand(2, 3) / 3)
    ref_logps = torch.full((2, 1), -3.0).double()
    three = Batch(torch.ones(2, 1, 3, dtype=torch.bool), ref_logps=ref_logps)
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
        assert loss.isfinite() and weights.isfinite().all() and method.log_u.isfinite().all()
        assert not weights[1].any()


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
    ref_logps = torch.full((2, 1), -2000.0)
    batch = Batch(torch.ones(2, 1, 320, dtype=torch.bool), ref_logps=ref_logps)
    _, _, info = build("dft", {"gamma": 1.0, "tau": 1.0}).weigh(token, batch)
    close(info["log_u"].exp(), torch.tensor([math.exp(-0.4)]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_log_probs_in_half_precision_are_refused(name):
    """In bfloat16 ORPO's odds are infinite from −0.001 on, and a long answer's ratio to the
    reference is lost.
    """
    logps, batch = make_batch(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16; log-probs must be float32 or float64"):
        build(name).weigh(logps, batch)


@pytest.mark.parametrize("B", [2, 3])
def test_slic_adds_numbers_of_the_same_answer(B):
    """Three tokens: HALOs adds a number per token to one per answer, an error for two pairs and a
    silent 3 × 3 loss for three.
    """
    logps = -torch.arange(1.0, 2 * B * 3 + 1, dtype=torch.float64).view(2, B, 3) / 10
    batch = Batch(torch.ones(2, B, 3, dtype=torch.bool))
    _, weights, info = build("slic", {"delta": 3.0, "lam": 0.5}).weigh(logps, batch)
    w, l = logps.sum(-1)
    close(info["loss_per_example"], (3 - w + l).clamp(min=0) - 0.5 * w)
    assert weights.shape == (2, B, 3)


def test_rrhf_scores_by_the_length_of_the_answer_not_of_its_row():
    """Lengths 2 and 5 in a row of 8, both at −1 per token: a tie.

    Divided by the row they are −0.25 and −0.625, out of order.
    """
    mask = torch.arange(8) < torch.tensor([[[2]], [[5]]])
    batch = Batch(mask, rewards=tensor([0.0], [1.0]))
    loss, weights, info = build("rrhf").weigh(-mask.double(), batch)
    assert info["wrong_pairs"] == 0 and not weights[0].any()
    close(loss, tensor(1)[0])                           # what is left: SFT on the better answer


def test_rdpo_trusts_a_longer_wanted_answer_less():
    """The sign of the paper: 40 tokens longer, α 0.05, β 0.1 at the start: 0.0119, not 0.05 (DPO)
    or 0.0881 (the other sign).
    """
    mask = torch.arange(50) < torch.tensor([[[50]], [[10]]])
    batch = Batch(mask, ref_logps=-mask.sum(-1))
    _, weights, _ = build("rdpo", {"beta": 0.1, "alpha": 0.05}).weigh(-mask.double(), batch)
    close(weights[:, 0, 0], tensor(0.0119, -0.0119), rtol=0, atol=5e-5)


def test_kto_holds_its_reference_point_fixed_and_counts_rows_of_zero_drift():
    logps, batch = make_batch(unpaired=True)
    drift = {
        "kl_logps": tensor(-1, -2, -2, -2).requires_grad_(),
        "kl_ref_logps": tensor(-5, -2, -2, -2),
    }
    batch = replace(batch, **drift)
    loss, weights, info = build("kto").weigh(logps, batch)
    assert not weights.requires_grad and not loss.requires_grad and not info["kl"].requires_grad
    close(info["kl"], tensor(1, 1, 1))
    likelier = replace(batch, kl_ref_logps=0 * drift["kl_ref_logps"])
    close(build("kto").weigh(logps, likelier)[2]["kl"], tensor(0, 0, 0))        # never below 0


def test_kto_reads_the_drift_of_mismatched_answers_off_the_policy(model, examples):
    """Another prompt's wanted answer; the drift of all parts of the update is one number."""
    method, reference = build("kto"), tiny_model(seed=3)
    method.prepare_data(reference, examples, progress=False)
    parts = method.prepare(model, [collate(examples[:2]), collate(examples[2:])])
    answers = [examples[1].answers[0], examples[2].answers[0], examples[0].answers[0]]
    alone = [collate([Example(0, e.prompt, [y])]) for e, y in zip(examples, answers, strict=True)]
    policy = torch.stack([batch_logps(model, one).sum() for one in alone]).detach()
    before = torch.stack([batch_logps(reference, one).sum() for one in alone]).detach()
    drift = (policy - before).mean().clamp(min=0)
    for part in parts:
        close(part.extra["kl_logps"], policy)
        close(part.extra["kl_ref_logps"], before)
        assert not part.extra["kl_logps"].requires_grad
        close(fused_pass(model, method, part)[2]["kl"], drift.expand(len(part)))


def test_ktos_mismatched_answers_are_cut_and_skip_what_is_absent(model):
    """The next example's first answer that is there, as far as it fits behind the prompt."""
    examples = [
        Example(4, [1, 2, 3], [[5, 6]]),
        Example(9, [1], [[], [7, 8, 9, 10]]),
        Example(2, [1, 2, 3, 4, 5, 6], [[11, 12, 13]]),
    ]
    method = build("kto")
    method.prepare_data(model, examples, max_len=5, progress=False)
    read = {i: (pair.prompt, pair.answers) for i, pair in method.mismatched.items()}
    assert read == {
        4: ([1, 2, 3], [[7, 8]]),
        9: ([1], [[11, 12, 13]]),
        2: ([1, 2, 3, 4, 5, 6], [[5]]),
    }
