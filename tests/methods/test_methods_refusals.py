"""Data and hyper-parameters a method cannot work with are refused in one sentence that names them."""

import math
from dataclasses import replace

import pytest
import torch
from naive import METHODS, batch_for, build, close, every, make_batch


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
