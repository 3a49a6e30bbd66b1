"""AdamW against torch's, rounding that loses nothing on average, and the schedule's shape."""

import math

import pytest
import torch
from conftest import tiny_model
from torch.fx.experimental.proxy_tensor import make_fx

from minialign import METHODS, optim
from minialign.optim import AdamW, adamw, cosine, hashed, round_stochastically
from minialign.train import Recipe, fit

SIZES = {"w": (3, 4), "u": (2, 2)}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs_adamw(weight_decay):
    g = torch.Generator().manual_seed(0)

    def parameters():
        return {name: torch.nn.Parameter(torch.ones(size)) for name, size in SIZES.items()}

    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, weight_decay=weight_decay)
    reference = torch.optim.AdamW(theirs.values(), 0.01, (0.9, 0.95), weight_decay=weight_decay)
    for _ in range(20):
        for name in ours:
            gradient = torch.randn(ours[name].shape, generator=g)
            ours[name].grad, theirs[name].grad = 0.5 * gradient, gradient.clone()
        optimizer.step(0.01, scale=2.0)
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_vectors_do_not_decay():
    p = {
        "matrix": torch.nn.Parameter(torch.ones(2, 2)),
        "vector": torch.nn.Parameter(torch.ones(2)),
    }
    for x in p.values():
        x.grad = torch.zeros_like(x)
    AdamW(p, weight_decay=0.5).step(0.1)
    assert (p["matrix"] < 1).all() and (p["vector"] == 1).all()


def test_stochastic_rounding_is_right_on_average_and_never_leaves_the_two_neighbours():
    x = torch.full((200_000,), 1 + 0.3 / 128)           # its bf16 neighbours are 1 and 1 + 1/128
    rounded = round_stochastically(x, noise(len(x), key=0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 1 / 128}
    share = (rounded > 1).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(x)) ** 0.5
    exact = torch.tensor([0.0, 1.0, -2.5, 3e38])
    assert torch.equal(round_stochastically(exact[:3], noise(3, key=0)).float(), exact[:3])


def test_the_noise_of_rounding_looks_random_between_neighbours_updates_and_tensors():
    n = 2**18
    draws = torch.stack([noise(n, key).double() for key in (0, 1, 2, -(2**31), 12345)])
    assert [len(draw.unique()) for draw in draws] == [pytest.approx(65_536, rel=0.03)] * 5
    assert draws.min() == -(2**15) and draws.max() == 2**15 - 1
    z = draws / 2**16 * 12**0.5                                         # variance 1
    four_sd = 4 / n**0.5
    assert (z.mean(1).abs() < four_sd).all()
    for lag in 1, 2, 64, 4096, 14_336:                                  # neighbours in a row, rows
        assert ((z[:, lag:] * z[:, :-lag]).mean(1).abs() < four_sd).all()
    assert (z.corrcoef() - torch.eye(5)).abs().max() < 1.2 * four_sd    # updates


def noise(n, key):
    return hashed(torch.arange(n, dtype=torch.int32), torch.tensor(key, dtype=torch.int32))


ATEN = torch.ops.aten
# Operators without the tag "pointwise" that read numbers in the same place alone, or none at all.
HARMLESS = (ATEN.arange.default, ATEN.view.dtype, ATEN.detach.default, ATEN._to_copy.default,
            ATEN.copy_.default)


def test_an_update_is_one_pass_over_memory_for_who_can_fuse_it():
    """Every operator computes each number from those in its place, so only what goes in and what
    comes out has to move: 14 bytes a parameter if all is bfloat16, 22 with moments in float32.
    """
    n = 4096
    for moments, most in (torch.bfloat16, 14), (torch.float32, 22):
        p = {"w": torch.nn.Parameter(torch.zeros(2, n // 2).bfloat16())}
        optimizer = AdamW(p, weight_decay=0.1, moments=moments)
        optimizer.steps = 1
        m, v = optimizer.m["w"].view(-1), optimizer.v["w"].view(-1)

        def once(w, g, m, v, first, numbers):
            adamw(w, g, m, v, numbers, (0.9, 0.95, 1e-8), True, first)
            return w, m, v

        graph = make_fx(once, tracing_mode="fake")(
            p["w"].detach().view(-1), torch.zeros(n).bfloat16(), m, v, optimizer.first["w"],
            optimizer.numbers(1e-3, 1.0)).graph
        moved = 0
        for node in graph.nodes:
            if node.op == "placeholder":
                moved += node.meta["val"].nbytes
            elif node.op == "output":
                moved += sum(x.meta["val"].nbytes for x in node.args[0])
            elif node.target not in HARMLESS:
                assert torch.Tag.pointwise in node.target.tags, node
        assert moved / n == pytest.approx(most, abs=0.1)


def test_a_thousand_tiny_bfloat16_updates_move_the_weights_as_float32_does():
    """At lr 1e-6 a weight of 0.02 moves 1e-3 in a thousand steps;
    each step is a hundredth of the distance between two bf16 numbers.
    """
    g = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(64, 64, generator=g).bfloat16()
    wide, narrow = torch.nn.Parameter(start.float()), torch.nn.Parameter(start.clone())
    optimizers = [AdamW({"w": wide}), AdamW({"w": narrow})]
    direction = torch.randn(64, 64, generator=g).sign()
    for _ in range(1000):
        for p, optimizer in zip((wide, narrow), optimizers, strict=True):
            p.grad = direction.to(p.dtype)
            optimizer.step(1e-6)
    moved = (narrow.detach().float() - start.float()) * direction
    expected = (wide.detach() - start.float()) * direction
    assert abs(moved.mean() / expected.mean() - 1) < 0.02
    nearest = start.clone()
    for _ in range(1000):               # what rounding to nearest does: most weights never move
        nearest = (nearest.float() - 1e-6 * direction).bfloat16()
    assert ((nearest.float() - start.float()).abs().mean() / expected.abs().mean()) < 0.5


def test_the_schedule_rises_linearly_then_falls_to_nearly_zero():
    lrs = [cosine(step, 100, 10) for step in range(100)]
    assert lrs[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a >= b for a, b in zip(lrs[9:], lrs[10:], strict=False))
    assert lrs[10] == 1 and 0 < lrs[-1] < 1e-3


def test_state_survives_a_round_trip():
    p = {"w": torch.nn.Parameter(torch.ones(3).bfloat16())}
    a = AdamW(p, seed=3)
    p["w"].grad = torch.ones(3).bfloat16()
    a.step(0.1)
    b = AdamW(p, seed=9)
    b.load_state_dict({k: v.clone() for k, v in a.state_dict().items()})
    assert b.steps == 1 and torch.equal(a.m["w"], b.m["w"])
    assert all(x.device.type == "cpu" for x in a.state_dict().values())


def test_without_momentum_it_is_adam_without_momentum_and_keeps_none():
    ours, theirs = torch.nn.Parameter(torch.ones(5, 3)), torch.nn.Parameter(torch.ones(5, 3))
    optimizer = AdamW({"w": ours}, betas=(0.0, 0.99))
    reference = torch.optim.AdamW([theirs], 0.01, (0.0, 0.99), weight_decay=0)
    for i in range(10):
        ours.grad = torch.linspace(-1, 1 + i, 15).view(5, 3)
        theirs.grad = ours.grad.clone()
        optimizer.step(0.01)
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert not optimizer.m and set(optimizer.state_dict()) == {"v.w", "steps"}


def test_moments_in_bfloat16_lead_to_the_same_place():
    g = torch.Generator().manual_seed(0)
    p = [torch.nn.Parameter(torch.zeros(64, 64)) for _ in range(2)]
    optimizers = [
        AdamW({"w": p[0]}, moments=torch.float32),
        AdamW({"w": p[1]}, moments=torch.bfloat16),
    ]
    for _ in range(200):
        gradient = torch.randn(64, 64, generator=g) + 0.5
        for x, optimizer in zip(p, optimizers, strict=True):
            x.grad = gradient.clone()
            optimizer.step(1e-3)
    assert (p[0] - p[1]).norm() < 0.01 * p[0].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_a_piece_changes_nothing(monkeypatch, dtype):
    """Neither in float32 nor in the noise of rounding, which depends on the place alone."""
    results = []
    for piece in 1, 7, 2**18:
        monkeypatch.setattr(optim, "CPU_PIECE", piece)
        p = torch.nn.Parameter(torch.linspace(-1, 1, 60).view(5, 12).to(dtype))
        optimizer = AdamW({"w": p}, weight_decay=0.1)
        for step in range(3):
            # gradients need not be contiguous
            p.grad = torch.linspace(1, step, 60).view(12, 5).T.to(dtype)
            optimizer.step(0.1)
        results.append(p.detach())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_stepping_inside_backward_is_stepping_after_it_and_keeps_no_gradient(shape, examples):
    """A tied embedding (qwen2) gets its gradient from two sides and must still be updated once."""
    models = [tiny_model(shape).float() for _ in range(2)]
    logs = []
    for model, inside in zip(models, (False, True), strict=True):
        recipe = Recipe(epochs=4, batch=3, clip=math.inf, inside_backward=inside)
        logs.append(list(fit(model, METHODS["asft"](), examples, recipe)))
    for a, b in zip(*logs, strict=True):
        for key in "loss", "gradient_norm":
            assert a[key] == pytest.approx(b[key], rel=1e-5)
    after, inside = (dict(model.named_parameters()) for model in models)
    torch.testing.assert_close(after, inside)
    assert all(p.grad is None for p in models[1].parameters())
