"""The loop: exact accumulation, resuming bit for bit, refusing what cannot be right, and
learning.
"""

import copy
import json
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign import METHODS
from minialign.data import Example, collate, laid_out
from minialign.evaluate import answer_logps
from minialign.logps import add_reference
from minialign.methods import build_method
from minialign.train import Diverged, Recipe, batches, fit, gradient, passes, pick_answers


def pairs(n=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(1, 50, (n,), generator=g).tolist()  # noqa: E731
    return [Example(i, ids(2 + i % 3), [ids(3 + i % 2), ids(2), ids(4)]) for i in range(n)]


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["sft", "asft", "dft2", "ift"])
def test_one_batch_can_be_learnt_by_heart(model, name):
    examples = pairs(4)
    method = build_method(name, {}, 4)
    records = list(fit(model, method, examples, Recipe(epochs=40, batch=4, lr=1e-2)))
    assert [r["step"] for r in records] == list(range(1, 41))
    assert records[-1]["loss"] < records[0]["loss"] - 1


@pytest.mark.parametrize("name", list(METHODS))
def test_micro_batches_change_nothing(model, name):
    examples = [replace(e, rewards=[2.0, 1.0, 0.0]) for e in pairs(6)]
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1.05)  # the policy is no longer the reference
    results, reference, model = [], model, moved
    for micro_batch in 6, 2, 1:
        model.zero_grad()
        method = build_method(name, {}, 6)
        method.prepare_data(reference, examples, progress=False)
        loss, _ = gradient(model, method, examples, micro_batch)
        results.append((loss, {n: p.grad.clone() for n, p in model.named_parameters()}))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-9)
        torch.testing.assert_close(grads, results[0][1])


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=3)),
        min_size=1,
        max_size=12,
    ),
    micro_batch=st.integers(1, 5),
    pass_tokens=st.none() | st.integers(1, 100),
)
def test_passes_hold_every_example_once_and_keep_to_both_limits(lengths, micro_batch, pass_tokens):
    examples = [
        Example(i, [1] * n, [[2] * 3] + [[2] * k for k in ks]) for i, (n, ks) in enumerate(lengths)
    ]
    parts = passes(examples, micro_batch, pass_tokens)
    assert sorted(e.index for part in parts for e in part) == list(range(len(examples)))
    for part in parts:
        tokens = sum(map(laid_out, part))
        assert tokens == collate(part).rows.tokens.numel(), (
            "what is counted is what lies on the row"
        )
        assert len(part) <= micro_batch and (
            pass_tokens is None or tokens <= pass_tokens or len(part) == 1
        )


@pytest.mark.parametrize("name", ["asft", "ift"])
def test_activation_checkpointing_and_token_budgets_change_nothing(model, name):
    results = []
    for recompute, pass_tokens in (False, None), (True, None), (True, 40):
        model.zero_grad()
        model.recompute = recompute
        loss, _ = gradient(model, build_method(name, {}, 6), pairs(6), 6, pass_tokens)
        results.append((loss, {n: p.grad.clone() for n, p in model.named_parameters()}))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own():
    examples, recipe = pairs(10), Recipe(epochs=2, batch=4)
    epochs = {0: [], 1: []}
    for epoch, chosen in batches(examples, recipe, METHODS["sft"]()):
        epochs[epoch].append([e.index for e in chosen])
    assert [len(b) for b in epochs[0]] == [4, 4, 2]
    first, second = ([i for b in epochs[k] for i in b] for k in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    again = [
        [e.index for e in chosen]
        for _, chosen in batches(examples, recipe, METHODS["sft"](), start=2)
    ]
    assert again == (epochs[0] + epochs[1])[2:]


def test_each_epoch_takes_the_next_negatives_and_goes_round():
    e = Example(0, [1], [[2], [3], [4], [5]], ref_logps=[0.0, -3.0, -4.0, -5.0])
    dft, sft = METHODS["dft"](), METHODS["sft"]()
    assert [pick_answers(e, dft, epoch, 2).answers[1:] for epoch in range(3)] == [
        [[3], [4]],
        [[5], [3]],
        [[4], [5]],
    ]
    assert pick_answers(e, dft, 1, 2).ref_logps == [0.0, -5.0, -3.0]
    assert (
        pick_answers(e, dft, 0, None).answers == e.answers
        and pick_answers(e, dft, 0, 9).answers == e.answers
    )
    assert pick_answers(e, sft, 1, 2).answers == [[2]]


def test_a_loss_that_is_not_finite_stops_before_the_parameters_are_touched(model):
    with torch.no_grad():
        model.head[7] = float("nan")
    before = parameters(model)
    with pytest.raises(Diverged, match=r"update 1: loss nan.*examples \["):
        list(fit(model, METHODS["sft"](), pairs(), Recipe()))
    torch.testing.assert_close(parameters(model), before, equal_nan=True)


def test_the_reference_is_the_model_before_training(model):
    examples = pairs(3)
    add_reference(model, examples, progress=False)
    for e in examples:
        for answer, l in zip(e.answers, e.ref_logps, strict=True):
            z = model(torch.tensor([e.prompt + answer])) @ model.head.T
            log_p = z.log_softmax(-1)[0, len(e.prompt) - 1 : -1]
            assert l == pytest.approx(log_p.gather(1, torch.tensor(answer)[:, None]).sum().item())


def test_a_hyper_parameter_of_another_method_is_refused():
    with pytest.raises(
        ValueError, match="asft has no --tau; its hyper-parameters: --beta-odds, --lam"
    ):
        build_method("asft", {"tau": 1.0}, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": -1.0},
        {"warmup": 1.5},
        {"negatives": 0},
        {"micro_batch": 0},
        {"pass_tokens": 0},
        {"beta1": 1.0},
        {"beta2": -0.1},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_one_pass_updates_refuse_what_needs_the_whole_gradient():
    for wrong in {"batch": 32, "micro_batch": 8}, {"batch": 4, "micro_batch": 4, "clip": 1.0}:
        with pytest.raises(ValueError, match="micro_batch must be at least batch .* clip inf"):
            Recipe(**{"clip": float("inf"), "inside_backward": True} | wrong)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
        ),
    ],
)
def test_a_bfloat16_run_at_lr_5e_7_follows_a_float32_one(device):
    """The movement of the weights: stochastic rounding loses none of it on average, however
    small the steps.
    """
    moved = []
    for dtype in torch.float32, torch.bfloat16:
        model = tiny_model().bfloat16().to(device, dtype)
        start = {n: p.detach().float().clone() for n, p in model.named_parameters()}
        for _ in fit(
            model,
            METHODS["dft2"](n_examples=12),
            pairs(),
            Recipe(epochs=100, batch=12, micro_batch=12, lr=5e-7),
        ):
            pass
        moved.append(
            torch.cat(
                [(p.detach().float() - start[n]).flatten() for n, p in model.named_parameters()]
            )
        )
    slope = (moved[0] @ moved[1]) / (moved[0] @ moved[0])  # 1: as far, under the noise of rounding
    assert abs(slope - 1) < 0.2 and moved[0].abs().max() < 1e-4


def test_records_are_json(model):
    record = next(fit(model, METHODS["ift"](), pairs(), Recipe()))
    named = {
        "step",
        "epoch",
        "loss",
        "lr",
        "gradient_norm",
        "tokens",
        "seconds",
        "negative_weights",
    }
    assert named <= set(json.loads(json.dumps(record)))


def test_the_micro_batch_is_eight_unless_tokens_count():
    assert Recipe().micro_batch == 8
    assert Recipe(batch=64, pass_tokens=16_384).micro_batch == 64
    assert Recipe(pass_tokens=16_384, micro_batch=4).micro_batch == 4


@pytest.mark.parametrize("name", ["sft", "asft"])
def test_a_record_says_how_likely_the_answers_were_before_the_update(model, name):
    examples = pairs(5)
    sums, lengths = answer_logps(model, examples, 5, progress=False)
    wanted = sum(l[0] for l in sums) / sum(n[0] for n in lengths)
    others = sum(sum(l[1:]) for l in sums) / sum(sum(n[1:]) for n in lengths)
    recipe = Recipe(batch=5, micro_batch=2, lr=1e-3)
    [record] = fit(model, build_method(name, {}, 5), examples, recipe)
    assert record["logp_wanted"] == pytest.approx(wanted, rel=1e-6)
    if METHODS[name].reads_others:
        assert record["logp_others"] == pytest.approx(others, rel=1e-6)
    else:
        assert "logp_others" not in record
