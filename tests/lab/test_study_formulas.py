"""What studies compute instead of training: u, its estimators, memory and pushes, each against
another formula.
"""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from minialign.data import Batch
from minialign.lab.studies import cost, exact, pools
from minialign.methods import METHODS
from minialign.model import Config, Transformer


def test_exact_u_is_the_sum_over_all_answers_and_what_the_samples_estimate():
    draw = torch.Generator().manual_seed(0)
    log_p, ref = torch.randn(2, 3, 40, generator=draw, dtype=torch.float64).log_softmax(-1)
    u = [sum(math.exp(x) ** (1 / 0.8) for x in row) for row in log_p.tolist()]
    assert_close(exact.exact_log_u(log_p, 0.8).exp(), torch.tensor(u, dtype=torch.float64))
    assert_close(exact.exact_log_u(log_p, 1.0), torch.zeros(3, dtype=torch.float64))
    y = torch.multinomial(ref.exp(), 200_000, replacement=True, generator=draw)             # (3, K)
    method = METHODS["dft"](0.8, 1.0, 3)
    batch = Batch(mask=torch.ones(y.shape[1] + 1, 3, 1, dtype=torch.bool),
                  ref_logps=torch.cat([ref[:, :1], ref.gather(1, y)], 1).T)
    _, _, info = method.weigh(torch.cat([log_p[:, :1], log_p.gather(1, y)], 1).T[..., None], batch)
    assert_close(info["log_u"].exp(), torch.tensor(u, dtype=torch.float64), rtol=0.03, atol=0)


def test_estimators_agree_at_the_start_and_forget_as_they_should(monkeypatch):
    monkeypatch.setattr(exact, "PROMPTS", 6)
    errors = exact.watch_policy(0, visits=3)
    for name, visits in errors.items():
        # The policy still is the reference, so u is 1, and every sample says so.
        assert max(map(abs, visits[0])) < 1e-9, name
    first, second = (torch.tensor(errors["γ 1"][v]).exp() for v in (1, 2))  # τ = 1: error = log û
    assert_close(torch.tensor(errors["floor, no memory"][2]).exp(), 0.1 + 0.9 * second)
    assert_close(torch.tensor(errors["γ 0.5"][2]).exp(), 0.25 + 0.25 * first + 0.5 * second)


def test_a_reference_in_memory_costs_its_parameters_and_a_stored_one_nothing(monkeypatch):
    shape = Config(vocab_size=64, n_layer=1, n_head=2, d_model=32, d_mlp=64, max_len=64)
    monkeypatch.setattr(cost, "SHAPE", shape)
    parameters = 4 * sum(p.numel() for p in Transformer(shape).parameters())
    asft = cost.peak_bytes(partial(cost.stepper, 0, "asft", {}))
    stored = cost.peak_bytes(partial(cost.stepper, 0, "dpo", {}, "stored"))
    live = cost.peak_bytes(partial(cost.stepper, 0, "dpo", {}, "in memory"))
    assert abs(stored - asft) < 0.01 * asft
    assert live - stored == pytest.approx(parameters, rel=0.01)


def test_pushes_on_negatives_are_those_of_the_losses_by_hand():
    """One prompt, the wanted answer and four others, of 2 to 6 tokens."""
    mask = torch.zeros(5, 1, 6, dtype=torch.bool)
    lengths = (4, 2, 3, 5, 6)
    for answer, n in enumerate(lengths):
        mask[answer, :, :n] = True
    draw = torch.Generator().manual_seed(0)
    logps = -torch.rand(5, 1, 6, generator=draw, dtype=torch.float64) * mask
    ref = logps.sum(-1) - torch.rand(5, 1, generator=draw, dtype=torch.float64)
    batch = Batch(mask=mask, index=torch.tensor([0]), ref_logps=ref)
    l, ref = logps.sum(-1)[:, 0], ref[:, 0]
    a = l / torch.tensor(lengths)

    def shares(down):
        return down / down.sum()

    expected = {
        "dft2": (a[1:] / 0.3).softmax(0),
        "dft": (l - ref)[1:].softmax(0),
        "simpo": shares(torch.sigmoid(5 - 10 * (a[0] - a[1:]))),
        "spin": shares(torch.sigmoid(-0.1 * ((l - ref)[0] - (l - ref)[1:]))),
    }
    for name, share in expected.items():
        assert_close(shares(pools.pushes(logps, batch, name)[:, 0]), share, msg=name)
