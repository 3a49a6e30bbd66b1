"""The laws every method keeps, a new one in METHODS too, with nothing to add here.

Three witnesses for each gradient: central differences of the loss, the objective typed naively and
sent through autograd (naive.py, the methods of the papers), and numbers from other people's code
(test_vectors.py).
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import (
    METHODS,
    PLAIN,
    SLOPES,
    agree_with_autograd,
    agree_with_differences,
    batch_for,
    build,
    close,
    every,
    make_batch,
    parametrize,
    plain,
    tensor,
)

from minialign import Batch
from minialign.data import collate
from minialign.logps import batch_logps

# ------------------------------------------------------------------------- the three witnesses

PAPERS = set(
    "sft asft dft dft2 ift ift_eq21 dpo dpop ipo kto orpo cpo simpo simpo_sft rdpo rrhf spin slic"
    .split()
)
WITNESSED = [(name, hyper) for name, hyper in SLOPES if name in PLAIN]


def test_no_method_of_the_papers_is_left_out():
    assert PAPERS == set(PLAIN) == {name for name, _ in WITNESSED}
    assert PAPERS <= set(METHODS)


@parametrize(WITNESSED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_minus_the_gradient_of_the_objective(name, hyper, seed):
    logps, batch = batch_for(name, seed=seed)
    agree_with_objective(name, hyper, logps, batch)


def agree_with_objective(name, hyper, logps, batch):
    agree_with_autograd(
        lambda *x: build(name, hyper).weigh(*x),
        lambda *x: plain(name, build(name, hyper), *x),
        logps, batch,
    )


@parametrize(SLOPES)
def test_weights_are_minus_the_slope_of_the_loss(name, hyper):
    logps, batch = batch_for(name, B=2)
    agree_with_differences(lambda: build(name, hyper), logps, batch)


@pytest.mark.parametrize("sabotage", [
    lambda loss, w: (loss, -w),
    lambda loss, w: (loss, 1.001 * w),
    lambda loss, w: (loss, w.roll(1, 0)),
    lambda loss, w: (loss, w + 1e-6),
    lambda loss, w: (loss + 1e-6, w),
], ids=["sign", "scale", "answers swapped", "pushes on padding", "loss"])
@pytest.mark.parametrize("name", ["dpo", "asft", "ift"])
def test_the_witnesses_catch_a_mistake(name, sabotage):
    logps, batch = batch_for(name)

    def weigh(*x):
        loss, weights, info = build(name).weigh(*x)
        return *sabotage(loss, weights), info

    with pytest.raises(AssertionError):
        agree_with_autograd(weigh, lambda *x: plain(name, build(name), *x), logps, batch)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), A=st.integers(2, 5), B=st.integers(1, 5), T=st.integers(1, 7),
    chosen=st.sampled_from(WITNESSED),
)
def test_whatever_the_shape(seed, A, B, T, chosen):
    name, hyper = chosen
    logps, batch = make_batch(seed, A, B, T, unpaired=name == "kto")
    agree_with_objective(name, hyper, logps, batch)


# -------------------------------------------------------------------------- what a method declares

@every
def test_a_method_reads_the_other_answers_if_and_only_if_it_says_so(name, hyper):
    logps, batch = batch_for(name)
    loss, weights, _ = build(name, hyper).weigh(logps, batch)
    other = torch.cat([logps[:1], 3 * logps[1:]])
    other_loss, other_weights, _ = build(name, hyper).weigh(other, batch)
    if METHODS[name].reads_others:
        assert not torch.equal(other_loss, loss)
        assert weights[1:].any()
    else:
        close((other_loss, other_weights), (loss, weights))
        assert not weights[1:].any()


class Counting:
    """A model that counts how often it is asked."""

    def __init__(self, model):
        self.model, self.head, self.embed, self.calls = model, model.head, model.embed, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.model(*inputs)


@pytest.mark.parametrize("name", METHODS)
def test_an_update_takes_as_many_forward_passes_as_the_method_says(name, model, examples):
    """One for the gradient, the rest to prepare it; none of them builds a graph."""
    method, policy = build(name), Counting(model)
    method.prepare_data(model, examples, progress=False)
    [batch] = method.prepare(policy, [collate(examples)])
    assert policy.calls + 1 == METHODS[name].forwards
    logps = batch_logps(model, batch).detach()
    batch.rewards = torch.rand(logps.shape[:2])
    loss, weights, _ = method.weigh(logps, batch)
    assert loss.isfinite() and weights.isfinite().all()
    assert not loss.requires_grad and not weights.requires_grad


# ----------------------------------------------------------------------------- what changes nothing

@every
def test_the_loss_is_the_mean_of_its_examples_and_info_has_a_number_for_each(name, hyper):
    logps, batch = batch_for(name)
    loss, weights, info = build(name, hyper).weigh(logps, batch)
    assert all(x.shape == (3,) and x.isfinite().all() for x in info.values())
    assert weights.shape == logps.shape and loss.shape == () and not (weights * ~batch.mask).any()
    if "loss_per_example" in info:
        close(info["loss_per_example"].mean(), loss)

    # Only a loss that divides by something else than the examples may do without.
    counts = replace(batch.counts, answers=2 * batch.counts.answers, tokens=2 * batch.counts.tokens)
    other_loss, _, _ = build(name, hyper).weigh(logps, replace(batch, counts=counts))
    assert ("loss_per_example" in info) == torch.equal(other_loss, loss)


@every
@pytest.mark.parametrize("cuts", [[0, 1, 2, 3], [0, 2, 3]])
def test_parts_add_up_to_the_whole(name, hyper, cuts):
    logps, batch = batch_for(name)
    whole, by_parts = build(name, hyper), build(name, hyper)
    loss, weights, info = whole.weigh(logps, batch)
    parts = []
    for i, j in zip(cuts, cuts[1:], strict=False):
        parts.append(by_parts.weigh(logps[:, i:j], batch.part(i, j)))
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

    def more(x, fill):
        return torch.cat([x, torch.full_like(x[:1], fill)])

    wider = replace(
        batch, mask=more(batch.mask, False), ref_logps=more(batch.ref_logps, math.nan),
        rewards=more(batch.rewards, math.nan),
    )
    loss, weights, _ = build(name, hyper).weigh(logps, batch)
    loss_wider, weights_wider, _ = build(name, hyper).weigh(more(logps, math.nan), wider)
    close(loss_wider, loss)
    close(weights_wider, more(weights, 0.0))


@every
def test_the_order_of_the_negatives_changes_nothing(name, hyper):
    logps, batch = batch_for(name)
    order = [0, 3, 1, 2]
    loss, weights, _ = build(name, hyper).weigh(logps, batch)
    shuffled = replace(
        batch, mask=batch.mask[order], ref_logps=batch.ref_logps[order],
        rewards=batch.rewards[order],
    )
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
    extremes = tensor(-1e4, -120, -1, -1e-8, -1e-15, 0).to(dtype)
    per_token = torch.cartesian_prod(extremes, extremes, extremes)                      # (216, 3)
    logps = per_token.T[..., None].expand(-1, -1, 2)
    A, B, T = logps.shape
    batch = Batch(
        torch.ones(A, B, T, dtype=torch.bool), ref_logps=torch.full((A, B), -3.0),
        rewards=torch.rand(A, B), kl_logps=tensor(-1e4, 0), kl_ref_logps=tensor(-1e4, -1e4),
    )
    loss, weights, info = build(name, hyper, B).weigh(logps, batch)
    assert loss.isfinite() and weights.isfinite().all()
    assert all(x.isfinite().all() for x in info.values())


@every
def test_inputs_are_left_as_they_were(name, hyper):
    logps, batch = batch_for(name)

    def tensors():
        everything = {**vars(batch), **batch.extra, "logps": logps}
        return {k: v.clone() for k, v in everything.items() if isinstance(v, torch.Tensor)}

    before = tensors()
    build(name, hyper).weigh(logps, batch)
    close(tensors(), before, equal_nan=True)
