"""The head: linear_logps against its definition, the fused pass against autograd,
and prompts that are read once against each answer alone.
"""

from dataclasses import replace

import pytest
import torch

from minialign import METHODS, linear_logps, train
from minialign import logps as head
from minialign.data import Counts, Example, collate
from minialign.logps import add_reference, batch_logps, greedy, logit_gradient, score
from minialign.train import fused_pass, head_pass

N, C, V = 7, 5, 11


def inputs(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(n, C, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (N, V)
    )
    return hidden, weight, torch.randint(0, V, (N,), generator=g)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_linear_logps_is_log_softmax_at_the_targets_for_every_chunk(chunk):
    hidden, weight, targets = inputs()
    expected = (hidden @ weight.T).log_softmax(-1)[torch.arange(N), targets]
    torch.testing.assert_close(linear_logps(hidden, weight, targets, chunk), expected)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_backward_of_linear_logps_passes_gradcheck(chunk):
    """gradcheck's upstream weights are not uniform, so a backward that assumed a mean would
    fail.
    """
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logps(h, w, targets, chunk), (hidden, weight)
    )


def test_linear_logps_gives_gradients_only_where_they_are_wanted():
    hidden, weight, targets = inputs()
    linear_logps(hidden.detach(), weight, targets, 2).sum().backward()
    assert hidden.grad is None and weight.grad is not None


def test_linear_logps_answers_in_float32_for_bfloat16():
    hidden, weight, targets = inputs(torch.bfloat16)
    out = linear_logps(hidden, weight, targets, 3)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert weight.grad.dtype == torch.bfloat16


def test_huge_logits_stay_finite():
    hidden, weight, targets = inputs()
    big = (hidden.detach() * 1e4).requires_grad_()
    out = linear_logps(big, weight, targets, 3)
    out.sum().backward()
    assert out.isfinite().all() and big.grad.isfinite().all() and out.min() < -1e3


@pytest.mark.parametrize(
    "hidden, weight, targets, chunk",
    [
        ((7, 5), (11, 4), (7,), 2),
        ((7, 5), (11, 5), (6,), 2),
        ((2, 7, 5), (11, 5), (7,), 2),
        ((7, 5), (11, 5), (7,), 0),
    ],
)
def test_linear_logps_refuses_shapes_that_do_not_fit(hidden, weight, targets, chunk):
    with pytest.raises(ValueError, match="linear_logps takes|chunk is 0"):
        linear_logps(
            torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.long), chunk
        )


def test_greedy_is_the_argmax_of_the_logits(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 2 * V)
    hidden, weight, _ = inputs()
    assert torch.equal(greedy(hidden, weight), (hidden @ weight.T).argmax(-1))


# ------------------------------------------------------------------------------- one row per prompt


def test_log_probs_are_those_of_each_answer_alone(any_model, examples):
    """Whatever stands on a row, a token's log-prob is the one it has after its own prompt and
    the answer so far.
    """
    got = batch_logps(any_model, collate(examples))
    for b, e in enumerate(examples):
        for a, answer in enumerate(e.answers):
            z = any_model(torch.tensor([e.prompt + answer])) @ any_model.head.T  # (1, L, V)
            for t, y in enumerate(answer):
                torch.testing.assert_close(
                    got[a, b, t], z[0, len(e.prompt) + t - 1].log_softmax(-1)[y]
                )


def test_the_gradient_is_that_of_each_answer_alone(any_model, examples):
    """A prompt that is read once learns from all its answers as if each had been read on a row
    of its own.
    """
    batch = collate(examples)
    _, logps, _ = fused_pass(any_model, METHODS["dft2"](n_examples=3), batch)
    shared = {name: p.grad.clone() for name, p in any_model.named_parameters()}
    any_model.zero_grad()
    _, weights, _ = METHODS["dft2"](n_examples=3).weigh(logps, batch)
    for b, e in enumerate(examples):
        for a, answer in enumerate(e.answers):
            z = any_model(torch.tensor([e.prompt + answer[:-1]])) @ any_model.head.T  # (1, L, V)
            log_p = z[0, len(e.prompt) - 1 :].log_softmax(-1)  # (n, V)
            alone = log_p.gather(1, torch.tensor(answer)[:, None])[:, 0]  # (n,)
            (-(weights[a, b, : len(answer)] * alone).sum()).backward()
    torch.testing.assert_close({name: p.grad for name, p in any_model.named_parameters()}, shared)


def test_padding_and_company_change_nothing(model, examples):
    alone = batch_logps(model, collate(examples[1:2]))
    together = batch_logps(model, collate(examples))
    torch.testing.assert_close(together[:2, 1, :4], alone[:, 0])


# ----------------------------------------------------------------------------------- the fused pass


def by_autograd(model, method, batch):
    """The same gradient through autograd alone: one graph over everything, all logits at once."""
    (batch,) = method.prepare(model, [batch])
    hidden = model(method.inputs(model, batch), batch.rows.positions, batch.rows.texts).flatten(
        0, 1
    )
    log_p = (hidden[batch.rows.source] @ model.head.T).log_softmax(-1)  # (A, B, T, V)
    logps = log_p.gather(-1, batch.rows.y[..., None])[..., 0]
    loss, weights, _ = method.weigh(torch.where(batch.mask, logps, 0.0).detach(), batch)
    (-(weights * logps)[batch.mask].sum()).backward()
    return loss


@pytest.mark.parametrize("name", ["sft", "asft", "dft", "dft2", "ift", "ift_eq21"])
def test_the_fused_pass_is_the_gradient(any_model, examples, name):
    batch = collate(
        [replace(e, answers=e.answers[:2], ref_logps=e.ref_logps[:2]) for e in examples]
    )
    make = lambda: METHODS[name](**({"n_examples": 3} if name.startswith("dft") else {}))  # noqa: E731
    expected_loss = by_autograd(any_model, make(), batch)
    expected = {n: p.grad.clone() for n, p in any_model.named_parameters()}
    any_model.zero_grad()
    method = make()
    loss, logps, info = fused_pass(any_model, method, *method.prepare(any_model, [batch]))
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(info["loss_per_example"].mean(), expected_loss)
    torch.testing.assert_close({n: p.grad for n, p in any_model.named_parameters()}, expected)
    assert not logps.requires_grad and logps.shape == batch.mask.shape


def test_a_push_up_is_a_gradient_below_zero_at_the_tokens_own_logit():
    """The sign, once and for all: weights > 0 pull up; the optimizer walks against the gradient."""
    z = torch.randn(
        2, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    targets, weights = torch.tensor([3, 5]), torch.tensor([2.0, -1.0], dtype=torch.float64)
    logps = z.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (-(weights * logps).sum()).backward()
    by_hand = logit_gradient(z.detach().log_softmax(-1), targets, weights)
    torch.testing.assert_close(by_hand, z.grad)
    assert by_hand[0, 3] < 0 < by_hand[1, 5]


def test_logits_written_into_memory_that_was_used_before_are_the_same():
    hidden, weight, targets = (x.detach() for x in inputs())
    fresh, memory = (
        score(hidden, weight, targets),
        torch.full((N + 2, V), torch.nan, dtype=torch.float64),
    )
    torch.testing.assert_close(score(hidden, weight, targets, memory[:N]), fresh)


def test_the_head_in_bfloat16_is_the_head_in_float32_up_to_its_rounding(model, examples):
    """Logits, log-probs and pushes lie in different memory there, and nothing but rounding may
    tell.
    """
    batch, method = collate(examples), METHODS["sft"]()
    states = torch.randn(batch.rows.tokens.numel(), 32, generator=torch.Generator().manual_seed(0))
    weight = model.head.detach().float()
    states, weight = states.bfloat16().float(), weight.bfloat16().float()
    exact, rounded = (
        head_pass(states.to(dtype), weight.to(dtype), method, batch)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded[1].dtype == torch.float32
    for a, b in zip(exact[3:], rounded[3:], strict=True):
        assert (a - b).norm() < 0.01 * a.norm()


def test_one_example_at_a_time_is_the_whole_batch(model, examples, monkeypatch):
    method, gradients = METHODS["sft"](reduction="token_mean"), []
    for limit in 1, 2**24:
        monkeypatch.setattr(train, "CHUNK_ELEMENTS", limit)
        model.zero_grad()
        fused_pass(model, method, collate(examples))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_micro_batches_add_up_to_the_batch(model, examples):
    """Exact gradient accumulation: each part divides by the counts of the whole."""
    method = METHODS["sft"](reduction="token_mean")
    fused_pass(model, method, collate(examples))
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    counts = Counts(3, 8, sum(len(e.answers[0]) for e in examples))
    for e in examples:
        fused_pass(model, method, collate([e], counts=counts))
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, whole)


def test_a_frozen_head_gets_no_gradient(model, examples):
    model.head.requires_grad_(False)
    fused_pass(model, METHODS["sft"](), collate(examples))
    assert model.head.grad is None and model.embed.__self__.model["norm"].weight.grad is not None


def test_ift_without_residual_and_propagation_is_sft_in_every_parameter(any_model, examples):
    gradients = []
    for method in METHODS["sft"](), METHODS["ift"](lam=0.0, gamma=0.0):
        any_model.zero_grad()
        fused_pass(any_model, method, collate(examples))
        gradients.append({name: p.grad.clone() for name, p in any_model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_ift_reads_its_own_guess_where_the_answer_is_read(model, examples):
    """At λ = 1 the second pass reads exactly the greedy tokens of the first;
    prompts stay, and so does the first answer token's log-prob.
    """
    e = examples[0]
    batch = collate([replace(e, answers=e.answers[:1])])
    method = METHODS["ift"](lam=1.0)
    (prepared,) = method.prepare(model, [batch])
    z = model(torch.tensor([e.prompt + e.answers[0]])) @ model.head.T
    guesses = z.argmax(-1)[0, len(e.prompt) - 1 : -1]  # of y₀, y₁, y₂
    assert torch.equal(prepared.rows.guesses[0, 0], guesses)
    read = torch.tensor([e.prompt + guesses[:-1].tolist()])
    torch.testing.assert_close(method.inputs(model, prepared), model.embed(read))
    assert not guesses.eq(torch.tensor(e.answers[0])).all(), (
        "an untrained model that guesses right would make this test empty"
    )


def test_the_first_answer_token_is_trained_and_the_last_prompt_token_is_not(model, examples):
    """Through the embedding of what predicts it: the prompt's last token moves the first log-prob,
    changing y₀ does not.
    """
    e = examples[0]
    base = batch_logps(model, collate([e]))[0, 0, 0]
    assert batch_logps(model, collate([replace(e, prompt=[1, 2, 3, 5])]))[0, 0, 0] != base
    other = batch_logps(model, collate([replace(e, answers=[[5, 49, 49]])]))[0, 0, 0]
    torch.testing.assert_close(other, base)
    assert collate([e]).mask.sum() == sum(map(len, e.answers))


def test_the_reference_is_not_asked_about_answers_that_are_absent(model):
    """An unpaired example whose only answer is known already leaves nothing to ask."""
    examples = [
        Example(0, [1, 2], [[], [3, 4]], ref_logps=[None, -1.0]),
        Example(1, [1], [[5], []], ref_logps=[None, None]),
    ]
    add_reference(model, examples[:1], progress=False)
    assert examples[0].ref_logps == [None, -1.0]
    add_reference(model, examples, progress=False)
    assert examples[0].ref_logps == [None, -1.0]
    alone = batch_logps(model, collate([Example(1, [1], [[5]])])).sum().item()
    assert examples[1].ref_logps[0] == pytest.approx(alone)
