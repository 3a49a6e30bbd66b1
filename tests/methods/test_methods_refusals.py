"""Data and hyper-parameters that a method cannot work with are refused in one sentence."""

import math
from dataclasses import fields, replace

import pytest
import torch
from naive import METHODS, batch_for, build, close, every, make_batch

from minialign.data import collate
from minialign.methods import build_method


def without(batch, need):
    """The batch less what this need stands for."""
    if need in ("rejected", "negatives"):
        mask = batch.mask.clone()
        mask[1:, 1] = False
        return replace(batch, mask=mask)
    return replace(batch, **{{"reference": "ref_logps", "rewards": "rewards"}[need]: None})


SENTENCE = {
    "rejected": "example 1 has no rejected answer",
    "negatives": "example 1 has no (negatives|rejected answer)",
    "reference": "needs the reference model's log-prob.*minialign",
    "rewards": '"responses"',
}


@pytest.mark.parametrize("name, need", [(n, need) for n in METHODS for need in METHODS[n].needs])
def test_missing_data_is_named(name, need):
    logps, batch = make_batch()
    with pytest.raises(ValueError, match=SENTENCE[need]):
        build(name).weigh(logps, without(batch, need))


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_wanted_answer_is_refused_where_one_is_needed(name):
    """Every averaging release answers NaN."""
    logps, batch = make_batch(unpaired=True)
    if METHODS[name].allows_unpaired:
        assert build(name).weigh(logps, batch)[1].isfinite().all()
    else:
        with pytest.raises(ValueError, match="example 7 has no answer 0"):
            build(name).weigh(logps, batch)


def test_kto_refuses_to_guess_the_drift(model, examples):
    """A batch without it, as when nobody called `prepare_data`; a single example has no other."""
    logps, batch = batch_for("kto")
    [unprepared] = build("kto").prepare(model, [collate(examples)])
    for bare in replace(batch, extra={}), replace(batch, kl_logps=torch.zeros(0)):
        with pytest.raises(ValueError, match="mismatched answers"):
            build("kto").weigh(logps, bare)
    assert not unprepared.extra
    with pytest.raises(ValueError, match="at least two examples"):
        build("kto").prepare_data(model, examples[:1])


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
    ("sft", {"reduction": "mean"}),
    ("asft", {"beta_odds": 0.0}),
    ("dft", {"gamma": 0.0}),
    ("dft", {"gamma": 1.1}),
    ("dft2", {"tau": 0.0}),
    ("ift", {"lam": 1.5}),
    ("ift", {"gamma": -0.1}),
    ("ift_eq21", {"gamma": 1.1}),
    ("dpo", {"beta": -0.1}),
    ("dpo", {"label_smoothing": 0.5}),
    ("ipo", {"tau": 0.0}),
    ("cpo", {"nll": "mean"}),
    ("rrhf", {"sft": "mean"}),
    ("orpo", {"lam": -1.0}),
])
def test_hyper_parameters_that_make_no_sense_are_refused(name, hyper):
    with pytest.raises(ValueError, match=next(iter(hyper))):
        build(name, hyper)


def hyper_parameters(name):
    return [f for f in fields(METHODS[name]) if f.init and f.name != "n_examples"]


@pytest.mark.parametrize("name", METHODS)
def test_no_number_may_be_negative_or_none_at_all(name):
    """A negative weight would train the opposite."""
    for f in hyper_parameters(name):
        assert f.metadata["help"]
        if isinstance(f.default, float):
            for nonsense in -1.0, math.nan, math.inf, "1":
                with pytest.raises(ValueError, match=f.name):
                    build(name, {f.name: nonsense})


def test_a_hyper_parameter_of_another_method_is_refused_and_the_size_of_the_data_is_none():
    known = "asft has no --tau; its hyper-parameters: --beta-odds, --lam"
    with pytest.raises(ValueError, match=known):
        build_method("asft", {"tau": 1.0}, 5)
    with pytest.raises(ValueError, match="DFT has no --n-examples; .*: --gamma, --tau"):
        build_method(METHODS["dft"], {"n_examples": 4}, 5)
    assert len(build_method("dft", {}, 5).log_u) == 5


# What the papers or, where they are silent, the code of their authors or of TRL start from.
DEFAULTS = {
    "sft": {"reduction": "seq_mean"},
    "asft": {"lam": 0.1, "beta_odds": 1.0},
    "dft": {"tau": 1.0, "gamma": 0.95},
    "dft2": {"tau": 0.3, "gamma": 0.9},
    "ift": {"lam": 0.2, "gamma": 0.95, "detach_weights": False},
    "ift_eq21": {"lam": 0.2, "gamma": 1.0},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "spin": {"beta": 0.1, "label_smoothing": 0.0},
    "dpop": {"beta": 0.3, "lam": 50.0},
    "rdpo": {"beta": 0.1, "alpha": 0.05},
    "ipo": {"tau": 0.1, "length_normalize": False},
    "kto": {"beta": 0.1, "lambda_d": 1.0, "lambda_u": 1.0},
    "orpo": {"lam": 0.1},
    "cpo": {"beta": 0.1, "alpha": 1.0, "nll": "token_mean"},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "simpo_sft": {"beta": 2.0, "gamma": 0.5, "sft_weight": 1.0},
    "rrhf": {"rrhf_weight": 1.0, "length_penalty": 1.0, "sft": "token_mean"},
    "slic": {"delta": 1.0, "lam": 0.1},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_hyper_parameters_start_from_these_values(name):
    assert {f.name: f.default for f in hyper_parameters(name)} == DEFAULTS[name]


@every
def test_logps_of_another_shape_are_refused(name, hyper):
    logps, batch = batch_for(name)
    with pytest.raises(ValueError, match="must both be"):
        build(name, hyper).weigh(logps[..., :-1], batch)
