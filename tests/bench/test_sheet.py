"""The memory sheet against what the allocator counts in a real training step, and refusals."""

import math
import os
import weakref
from dataclasses import replace

import pytest
import torch

from minialign import METHODS, train
from minialign.bench.sheet import (
    Adapters,
    Load,
    allocated,
    available,
    check_fits,
    load_of,
    per_rank,
    sampling_sheet,
    sheet,
)
from minialign.data import Example
from minialign.hf import lora
from minialign.hf.shapes import PRESETS
from minialign.model import Config, Transformer
from minialign.train import Recipe, gradient, head_pass

LLAMA = Config(vocab_size=8000, n_layer=3, n_head=8, n_kv_head=4, d_model=128, d_mlp=352)
GPT2 = replace(LLAMA, n_kv_head=8, norm="layer", pos="learned", mlp="gelu", bias=True, tie=True)
QWEN3 = replace(LLAMA, d_head=32, qk_norm="head")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [LLAMA, GPT2, QWEN3], ids=["llama", "gpt2", "qwen3"])
def test_a_step_allocates_what_the_sheet_says(config, dtype, recompute):
    torch.manual_seed(0)
    model = Transformer(config).to(getattr(torch, dtype))
    model.recompute = recompute

    def ids(n: int) -> list[int]:
        return torch.randint(0, config.vocab_size, (n,)).tolist()

    examples = [Example(i, ids(90 + i), [ids(60), ids(70), ids(80)]) for i in range(3)]

    def step() -> None:
        gradient(model, METHODS["asft"](), examples, 3)

    step()                                          # the gradients of an earlier pass are there
    parts = sheet(config, load_of(examples, Recipe()), Recipe(), dtype, recompute)
    assert parts["weights"] == parts["gradients"] == sum(p.nbytes for p in model.parameters())
    assert parts["activations"] + parts["head"] == pytest.approx(allocated(step), rel=0.1)


def test_the_meter_counts_what_is_alive_at_once_beyond_what_was_there():
    before = torch.ones(1000)                       # not counted

    def work() -> None:
        kept = before + 1                           # 4,000 bytes
        passing = torch.ones(500)                   # 2,000 more, given back before the last 1,000
        del passing
        kept[:250] = torch.ones(250)

    assert allocated(work) == 6000
    assert allocated(lambda: None) == 0


def test_the_load_counts_every_prompt_once_and_follows_the_cut_into_passes():
    examples = [Example(i, [1] * 40, [[2] * 11] * 3) for i in range(8)]     # 70 tokens each
    assert load_of(examples, Recipe(micro_batch=4)) == Load(4 * 70, 4 * 3 * 50, 4 * 33, 33)
    three = Recipe(micro_batch=4, pass_tokens=210)
    assert load_of(examples, three) == Load(210, 3 * 3 * 50, 3 * 33, 33)
    assert load_of(examples, Recipe(batch=8, pass_tokens=560)).tokens == 560
    too_few = Recipe(pass_tokens=60)                # an example that is longer goes alone
    assert load_of(examples, too_few) == Load(70, 3 * 50, 33, 33)


def test_the_sheet_of_an_8b_model_is_the_arithmetic_of_its_shapes():
    load, b = Load(2048, 2048, 1536, 1536), "bfloat16"
    config = PRESETS["llama3-8b"]
    full = sheet(config, load, Recipe(), b, recompute=True)
    assert full["weights"] / 2**30 == pytest.approx(14.96, abs=0.01)    # 8.03 billion · 2 bytes
    assert full["optimizer"] == 4 * full["weights"]                 # two moments of four bytes
    assert sheet(config, load, Recipe(moments="bfloat16"), b)["optimizer"] == 2 * full["weights"]
    assert sheet(config, load, Recipe(beta1=0.0), b)["optimizer"] == 2 * full["weights"]
    inside = Recipe(inside_backward=True, batch=1, micro_batch=1, clip=math.inf)
    assert sheet(config, load, inside, b)["gradients"] == 2 * config.vocab_size * config.d_model
    assert sheet(config, load, Recipe(), b)["activations"] > 8 * full["activations"]
    tied = sheet(PRESETS["qwen2.5-0.5b"], load, Recipe(), b)
    assert tied["weights"] / 1e9 == pytest.approx(0.988, abs=0.001)


def test_adapters_cost_what_they_hold():
    plain = sheet(LLAMA, Load(9, 9, 9, 9), Recipe())
    adapters = Adapters(4, 8.0, ("q_proj", "down_proj"))
    parts = sheet(LLAMA, Load(9, 9, 9, 9), Recipe(), adapters=adapters)
    numbers = LLAMA.n_layer * 4 * (128 + 128 + 352 + 128)
    assert parts["gradients"] == 4 * numbers and parts["optimizer"] == 8 * numbers
    assert parts["weights"] == plain["weights"] + 4 * numbers and parts["head"] < plain["head"]
    assert lora.TARGETS == Adapters(4, 8.0).targets


def test_what_does_not_fit_is_refused_with_the_sheet_and_a_way_out():
    parts = sheet(PRESETS["llama3-8b"], Load(10**6, 10**6, 10**5, 10**5), Recipe())
    words = r"(?s)needs .* GiB, and cpu has .*weights +14\.96 GiB.*smaller: --lora-rank 16"
    with pytest.raises(ValueError, match=words):
        check_fits(parts, "cpu", "--lora-rank 16")
    check_fits(sheet(LLAMA, Load(9, 9, 9, 9), Recipe()), "cpu", "")


@pytest.mark.parametrize("prompts, longest, k, new, top_k", [
    (8, 100, 4, 30, None), (8, 100, 4, 30, 50), (2, 700, 2, 4, 50), (40, 900, 1, 2, 50)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_drawing_allocates_what_its_sheet_says(config, dtype, prompts, longest, k, new, top_k):
    model = Transformer(config).to(getattr(torch, dtype))
    tokens = torch.zeros(prompts, longest, dtype=torch.long)
    parts = sampling_sheet(config, dtype, "cpu", prompts, longest, k, new, top_k)
    assert parts["weights"] == sum(p.nbytes for p in model.parameters())
    measured = allocated(lambda: model.generate(tokens, new, 1.0, top_k, repeat=k))
    assert parts["cache"] + parts["work"] == pytest.approx(measured, rel=0.2)


def test_a_gpu_is_not_filled_to_the_brim(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (75 * 2**30, 80 * 2**30))
    assert 0.05 * 80 < 75 - available("cuda") / 2**30 < 0.08 * 80


def test_the_gradient_of_the_head_is_gone_when_the_network_goes_backward(monkeypatch):
    """In bfloat16 a wide copy of it was summed: 2 GiB for an 8 B model."""
    model = Transformer(LLAMA).bfloat16()
    sums, alive = [], []

    def watched(*args, **kwargs):
        results = head_pass(*args, **kwargs)
        sums.append(weakref.ref(results[-1]))
        return results

    monkeypatch.setattr(train, "head_pass", watched)
    model.model["norm"].weight.register_hook(lambda _: alive.append(sums[-1]()))
    gradient(model, METHODS["sft"](), [Example(0, [1, 2], [[3, 4]])], 1)
    assert alive == [None]


def test_where_nothing_tells_how_much_memory_there_is_nothing_is_refused(monkeypatch):
    """Windows has neither /proc/meminfo nor os.sysconf."""
    def absent(*_):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert 0 < available("cpu") < math.inf
    monkeypatch.delattr(os, "sysconf")
    assert available("cpu") == math.inf
    check_fits({"weights": 10**18}, "cpu", "nothing")


def test_ranks_divide_what_they_share():
    """That a rank really holds so much is measured in test_parallel.py."""
    shape, adapters = PRESETS["llama3-8b"], Adapters(16, 32.0)
    for learnt in None, adapters:
        load, recipe = Load(2048, 2048, 2048, 2048), Recipe(micro_batch=1)
        one = sheet(shape, load, recipe, recompute=True, adapters=learnt)
        assert per_rank(one, shape, "bfloat16", 1, learnt) == one
        eight = per_rank(one, shape, "bfloat16", 8, learnt)
        assert eight["optimizer"] == one["optimizer"] // 8
        assert eight["weights"] == one["weights"] // 8 + 2 * shape.vocab_size * shape.d_model
        assert eight["activations"] == one["activations"] and eight["head"] == one["head"]
        assert sum(eight.values()) < sum(one.values()) / (4 if learnt is None else 2)
