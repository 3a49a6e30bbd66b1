"""The same numbers on a GPU; skipped where there is none."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model

from minialign import METHODS
from minialign.bench import sheet as memory
from minialign.data import Example, collate
from minialign.hf import lora
from minialign.hf.folders import check_device
from minialign.model import Config, Transformer
from minialign.optim import AdamW
from minialign.train import Recipe, build_optimizer, fit, fused_pass, gradient
from minialign.verbs.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SHAPE = Config(vocab_size=8000, n_layer=3, n_head=8, n_kv_head=2, d_model=256, d_mlp=704)


@pytest.fixture(autouse=True)
def begin():
    """What every verb does before it computes on a GPU."""
    check_device("cuda")


def model_of(config=SHAPE, dtype=torch.bfloat16, device="cuda"):
    torch.manual_seed(0)
    return Transformer(config).to(device, dtype)


def pairs(n, longest=120):
    draw = torch.Generator().manual_seed(0)

    def ids(k):
        return torch.randint(0, 8000, (k,), generator=draw).tolist()

    return [Example(i, ids(20 + 5 * i), [ids(longest - i), ids(longest // 2 + i)])
            for i in range(n)]


def gradients(model, examples, micro_batch=8):
    model.zero_grad()
    gradient(model, METHODS["asft"](), examples, micro_batch)
    return {name: p.grad.float().cpu() for name, p in model.named_parameters()}


def direction(a, b):
    """The cosine between two gradients."""
    a, b = (torch.cat([x.flatten() for x in g.values()]).double() for g in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("name", ["sft", "asft", "dft", "dft2", "ift", "kto"])
def test_the_gradient_is_the_one_of_the_cpu(examples, name):
    results = []
    for device in "cpu", "cuda":
        model = tiny_model().float().to(device)
        method = METHODS[name](**({"n_examples": 3} if name.startswith("dft") else {}))
        method.prepare_data(model, examples, progress=False)
        (batch,) = method.prepare(model, [collate(examples).to(device)])
        loss, logps, _ = fused_pass(model, method, batch)
        results.append(
            (loss.cpu(), logps.cpu(), {n: p.grad.cpu() for n, p in model.named_parameters()})
        )
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", [{}, {"window": 50}, {"n_kv_head": 8}], ids=str)
def test_gradients_in_bfloat16_point_where_those_in_float32_do(change):
    """Also float32 with grouped heads, and a sliding window: each has an attention of its own."""
    config, examples = replace(SHAPE, **change), pairs(4)
    exact = gradients(model_of(config, torch.float32, "cpu"), examples)
    assert direction(exact, gradients(model_of(config, torch.float32), examples)) > 0.9999
    assert direction(exact, gradients(model_of(config), examples)) > 0.99


def test_recomputing_activations_changes_no_gradient():
    examples, model = pairs(4), model_of()
    kept = gradients(model, examples)
    model.recompute = True
    assert direction(kept, gradients(model, examples)) > 0.9999


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_update_is_the_one_of_the_cpu(dtype, moments):
    """The noise of rounding too: at most a few numbers fall on the other side."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(300, 70, generator=draw).to(dtype)
    steps = [torch.randn(300, 70, generator=draw).to(dtype) for _ in range(3)]
    ends = []
    for device in "cpu", "cuda":
        p = torch.nn.Parameter(start.clone().to(device))
        optimizer = AdamW({"w": p}, weight_decay=0.1, moments=moments)
        for step in steps:
            p.grad = step.to(device)
            optimizer.step(1e-3, 0.5)
        ends.append(p.detach().float().cpu())
    off = (ends[0] - ends[1]).abs()
    assert (off > 1e-5).float().mean() < 0.001 and off.max() < 0.04


def test_tiny_bfloat16_updates_move_the_weights_on_average():
    start = 0.02 * torch.randn(256, 256, device="cuda").bfloat16()
    p = torch.nn.Parameter(start.clone())
    optimizer, sign = AdamW({"w": p}), torch.randn(256, 256, device="cuda").sign()
    for _ in range(300):
        p.grad = sign.bfloat16()
        optimizer.step(1e-6)
    moved = ((p.detach().float() - start.float()) * -sign).mean()
    assert float(moved) == pytest.approx(300e-6, rel=0.03)


def test_stepping_inside_backward_learns_what_stepping_after_it_does():
    examples, losses = pairs(4), []
    for inside in False, True:
        recipe = Recipe(epochs=4, batch=4, clip=math.inf, inside_backward=inside, lr=1e-4)
        losses.append([r["loss"] for r in fit(model_of(), METHODS["asft"](), examples, recipe)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_adapters_learn():
    model, examples = model_of(), pairs(4)
    lora.add_adapters(model, 8, 16.0)
    recipe = Recipe(epochs=8, batch=4, lr=1e-2)
    losses = [record["loss"] for record in fit(model, METHODS["sft"](), examples, recipe)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("first, then", [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_moves_between_devices(first, then, tmp_path):
    method, examples = METHODS["asft"](), pairs(8)
    recipe = Recipe(epochs=2, batch=2, lr=1e-4)
    whole = list(fit(model_of(device=then), method, examples, recipe))
    model = model_of(device=first)
    optimizer = build_optimizer(model, recipe)
    for record, _ in zip(fit(model, method, examples, recipe, optimizer), range(3), strict=False):
        step = record["step"]
    save_checkpoint(tmp_path / "c", model, optimizer, method, step)

    model = model_of(device=then)
    optimizer = build_optimizer(model, recipe)
    start = load_checkpoint(tmp_path / "c", model, optimizer, method)
    rest = list(fit(model, method, examples, recipe, optimizer, start))
    assert [r["step"] for r in rest] == [r["step"] for r in whole[start:]]
    expected = [r["loss"] for r in whole[start:]]
    assert [r["loss"] for r in rest] == pytest.approx(expected, rel=0.02)


def test_greedy_text_is_the_one_of_the_cpu():
    prompt, model = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), tiny_model().float()
    lengths = torch.tensor([4, 2])
    expected = model.generate(prompt, 12, temperature=0, lengths=lengths)
    got = (
        copy.deepcopy(model)
        .cuda()
        .generate(prompt.cuda(), 12, temperature=0, lengths=lengths.cuda())
    )
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("window", [None, 16])
def test_ragged_prompts_in_bfloat16_go_on_as_each_does_alone(window):
    """Scores of the same text, since in bfloat16 two likely tokens may change places."""
    model = model_of(replace(SHAPE, window=window))
    tokens = torch.randint(0, 8000, (5, 60), device="cuda")
    lengths = torch.tensor([60, 1, 33, 17, 48], device="cuda")
    out = model.generate(tokens, 40, temperature=0, lengths=lengths, repeat=2)
    for row, n in zip(out, lengths.repeat_interleave(2).tolist(), strict=True):
        logits = model.logits(row[None, : n + 40])[0, n - 1 : -1]
        taken = logits.gather(1, row[n : n + 40, None])[:, 0]
        assert (logits.max(-1).values - taken).max() < 0.05


def test_all_rows_that_stop_end_the_text():
    model, prompts = model_of(), torch.randint(0, 8000, (3, 9), device="cuda")
    free = model.generate(prompts, 60, temperature=0)[:, 9:]
    stop = tuple(free[:, 20].tolist())
    out = model.generate(prompts, 60, temperature=0, stop=stop)[:, 9:]
    assert out.shape[1] <= 21 and set(out[:, -1].tolist()) <= set(stop)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_allocates_what_the_sheet_says(dtype, recompute):
    model, examples = model_of(dtype=getattr(torch, dtype)), pairs(8, longest=700)
    model.recompute = recompute
    gradients(model, examples)                  # gradients are there, and kernels are loaded
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradient(model, METHODS["asft"](), examples, 8)
    used = torch.cuda.max_memory_allocated() - before
    load = memory.load_of(examples, Recipe())
    parts = memory.sheet(SHAPE, load, Recipe(), dtype, recompute)
    assert used == pytest.approx(parts["activations"] + parts["head"], rel=0.15)


def test_drawing_allocates_what_its_sheet_says():
    model, tokens = model_of(), torch.zeros(16, 500, dtype=torch.long, device="cuda")
    model.generate(tokens[:1], 2)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model.generate(tokens, 50, 1.0, None, repeat=4)
    used = torch.cuda.max_memory_allocated() - before
    parts = memory.sampling_sheet(SHAPE, "bfloat16", "cuda", 16, 500, 4, 50, None)
    assert used == pytest.approx(parts["cache"] + parts["work"], rel=0.25)
