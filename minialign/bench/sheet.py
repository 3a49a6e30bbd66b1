"""What a training step will hold in memory, counted from shapes before anything is allocated.

Counted for the fullest moment: between the forward and the backward pass, while the last logits are alive, with the gradients of
earlier passes kept. A test holds the sum against the allocator's own count. Not counted: CUDA's context (about 0.5 GiB) and what
the allocator loses between blocks.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from minialign.data import Example, collate, longest_text
from minialign.hf import lora
from minialign.logps import CHUNK_ELEMENTS
from minialign.model import Config, Transformer
from minialign.train import Recipe, passes

GIB = 2**30


@dataclass(frozen=True)
class Load:
    """How much the largest forward pass of a run has to do."""

    tokens: int         # that the network reads: every prompt once, and its answers
    attended: int       # that attention reads: prompt + answer for every answer, right-padded
    responses: int      # response tokens
    scored: int         # response tokens of one example, whose logits are always alive together


@dataclass(frozen=True)
class Adapters:
    """LoRA as `train` was asked for it."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = lora.TARGETS


def load_of(examples: list[Example], recipe: Recipe) -> Load:
    """The worst these examples can do: the longest of them together in one pass, and the one with the most response tokens."""
    longest = sorted(examples, key=longest_text)[-recipe.micro_batch :]
    rows = [collate(part).rows for part in passes(longest, recipe.micro_batch, recipe.pass_tokens)]
    largest = [max(x) for x in zip(*((r.tokens.numel(), r.texts.numel(), int(r.mask.sum())) for r in rows), strict=True)]
    return Load(*largest, max(sum(map(len, e.answers)) for e in examples))


def sheet(config: Config, load: Load, recipe: Recipe, dtype: str = "bfloat16", recompute: bool = False,
          adapters: Adapters | None = None) -> dict[str, int]:
    """Bytes of {"weights", "gradients", "optimizer", "activations", "head"} in one training step."""
    parameters = parameters_of(config, dtype, adapters)
    learnt = [p for p in parameters if p.requires_grad]
    kept = learnt if not recipe.inside_backward else [max(learnt, key=Tensor.numel)]      # one at a time
    moments = (1 if recipe.beta1 == 0 else 2) * getattr(torch, recipe.moments).itemsize
    b = getattr(torch, dtype).itemsize
    layer, head = layer_bytes(config, b, load), head_bytes(config, b, load, adapters is None)
    activations = config.n_layer * layer + load.tokens * norm_bytes(config, b)
    if recompute:       # only the input of every layer; when a layer is computed again, the head's memory is free again
        gradients = load.tokens * b * (2 * config.d_model + (2 if config.mlp == "swiglu" else 1) * config.d_mlp)
        activations = (config.n_layer + 1) * load.tokens * b * config.d_model + max(0, layer + gradients - head)
    return {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": sum(p.nbytes for p in kept),
        "optimizer": moments * sum(p.numel() for p in learnt),
        "activations": activations,
        "head": head,
    }


def parameters_of(config: Config, dtype: str, adapters: Adapters | None = None) -> list[Tensor]:
    """The parameters of a training run, on the meta device: shapes without memory."""
    with torch.device("meta"):
        model = Transformer(config).to(getattr(torch, dtype))
        if adapters:
            lora.add_adapters(model, adapters.rank, adapters.alpha, adapters.targets)
    return list(model.parameters())


def norm_bytes(config: Config, b: int) -> int:
    """What a norm keeps for the backward pass, per token: its output, and for RMSNorm a float32 input and what is scaled."""
    return config.d_model * (2 * b if config.norm == "layer" else 4 + 2 * b)


def layer_bytes(config: Config, b: int, load: Load) -> int:
    """What one layer keeps for the backward pass; b bytes per number."""
    heads, kv = config.n_head * config.d_head, config.n_kv_head * config.d_head
    attention = b * (2 * heads + 2 * kv) + 4 * config.n_head            # q, k, v, output, logsumexp
    mlp = b * config.d_mlp * (4 if config.mlp == "swiglu" else 2)       # gate, silu(gate), up, product; or up and gelu(up)
    return load.attended * attention + load.tokens * (2 * norm_bytes(config, b) + b * heads + mlp)


def head_bytes(config: Config, b: int, load: Load, learnt: bool) -> int:
    """What the fused pass holds while the last logits are alive."""
    V, C = config.vocab_size, config.d_model
    rows = max(load.scored, min(load.responses, CHUNK_ELEMENTS // V))   # examples go together while their logits are few
    states = load.tokens * C * (4 + b) + rows * C * (4 + b)             # hidden states' gradient, float32; one part's states
    if b == 4:
        return states + rows * V * 4 + learnt * V * C * 4               # log-softmax in the logits' place; the head's gradient
    # beside them in float32; and either a float32 copy on the way there, or one part's share of the head's gradient
    return states + rows * V * (b + 4) + learnt * V * C * 4 + max(rows * V * 4, learnt * V * C * b)


def allocated(work: Callable) -> int:
    """The most bytes alive at once among those that `work` allocates on the CPU: measured, to hold the sheet against."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")              # the profiler need not say that it starts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    alive = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def available(device: str) -> int:
    """Bytes that can still be allocated on this device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):                                    # not Linux: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def table(parts: dict[str, int]) -> str:
    """The sheet as lines of text, in GiB."""
    return "\n".join(f"  {name:<12}{size / GIB:>9.2f} GiB" for name, size in (parts | {"total": sum(parts.values())}).items())


def check_fits(parts: dict[str, int], device: str, advice: str) -> None:
    """ValueError with the sheet if this much cannot be allocated."""
    total, free = sum(parts.values()), available(device)
    if total > free:
        raise ValueError(f"a training step needs {total / GIB:.1f} GiB, and {device} has {free / GIB:.1f} GiB free:\n"
                         f"{table(parts)}\nwhat makes it smaller: {advice}")
