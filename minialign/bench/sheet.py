"""What a training step will hold in memory, counted from shapes before anything is allocated.

Counted is the fullest moment: between the forward and the backward pass, while the last logits are
alive, with the gradients of earlier passes kept. `allocated` measures the same in a step that is
really done, and a test holds the two together. `sampling_sheet` does the same for drawing answers.
Not counted are CUDA's own context and what the allocator loses between blocks: for those a GPU has
to have some memory to spare.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from minialign.data import Example, collate, laid_out
from minialign.generate import READ_TOKENS
from minialign.hf import lora
from minialign.logps import CHUNK_ELEMENTS
from minialign.model import Config, Transformer
from minialign.train import Recipe, passes

GIB = 2**30
SPARE = 0.06            # share of a GPU that CUDA's own work and gaps between blocks may need


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
    """The worst that these examples can do: the largest of them meet in one update."""
    largest = sorted(examples, key=laid_out)[-recipe.micro_batch :]
    rows = [collate(part).rows for part in passes(largest, recipe.micro_batch, recipe.pass_tokens)]
    return Load(
        tokens=max(r.tokens.numel() for r in rows),
        attended=max(r.texts.numel() for r in rows),
        responses=max(int(r.mask.sum()) for r in rows),
        scored=max(sum(map(len, e.answers)) for e in examples),
    )


def sheet(config: Config, load: Load, recipe: Recipe, dtype: str = "bfloat16",
          recompute: bool = False, adapters: Adapters | None = None) -> dict[str, int]:
    """Bytes of {"weights", "gradients", "optimizer", "activations", "head"} in a training step."""
    b = getattr(torch, dtype).itemsize
    parameters = parameters_of(config, dtype, adapters)
    learnt = [p for p in parameters if p.requires_grad]
    gradients = sum(p.nbytes for p in learnt)
    if recipe.inside_backward:                                  # one gradient at a time
        gradients = max(p.nbytes for p in learnt)
    moments = (1 if recipe.beta1 == 0 else 2) * getattr(torch, recipe.moments).itemsize

    layer, head = layer_bytes(config, b, load), head_bytes(config, b, load, learn=adapters is None)
    activations = config.n_layer * layer + load.tokens * norm_bytes(config, b)
    if recompute:
        # Every layer keeps its input alone. When one of them is computed again, with its gradients,
        # the memory of the head is free again.
        inputs = (config.n_layer + 1) * load.tokens * b * config.d_model
        wide = 2 if config.mlp == "swiglu" else 1
        again = layer + load.tokens * b * (2 * config.d_model + wide * config.d_mlp)
        activations = inputs + max(0, again - head)
    return {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": gradients,
        "optimizer": moments * sum(p.numel() for p in learnt),
        "activations": activations,
        "head": head,
    }


def per_rank(parts: dict[str, int], config: Config, dtype: str, ranks: int,
             adapters: Adapters | None = None) -> dict[str, int]:
    """What one of several ranks holds that share a model out (parallel.py), from its `sheet`.

    Weights, gradients and moments are divided. But at its fullest moment, whichever of three that
    is, a rank has some weights and gradients whole:

    with the last logits         the head
    within the backward pass     the head and two layers, one of them ahead of time, and gradients
    at the end of it             the head and the embedding table, with all of their gradients

    Gradients are sent in float32, from all numbers of a tensor to those of this rank.
    """
    if ranks == 1:
        return parts
    with torch.device("meta"):
        model = Transformer(config)
    layer, table = sum(p.numel() for p in model.model["layers"][0].parameters()), model.head.numel()
    tables = table if config.tie else 2 * table
    b, sent = getattr(torch, dtype).itemsize, 4 + 4 / ranks
    if adapters:
        backward, end = b * (table + 2 * layer), b * tables
    else:
        backward = 2 * b * table + (3 * b + sent) * layer
        end = (2 * b + sent) * tables

    # The head of the sheet is what the first moment has and the others have not.
    scored = b * table + parts["head"] + parts["activations"]
    more = max(0, backward + parts["activations"] - scored, end - scored)
    return {
        **parts,
        "weights": parts["weights"] // ranks + b * table,
        "gradients": parts["gradients"] // ranks + int(more),
        "optimizer": parts["optimizer"] // ranks,
    }


def sampling_sheet(config: Config, dtype: str, device: str, prompts: int, longest: int, k: int,
                   new: int, top_k: int | None) -> dict[str, int]:
    """Bytes of {"weights", "cache", "work"} while k answers to so many prompts are drawn.

    longest   tokens of the longest prompt
    new       tokens of the longest answer
    """
    b = getattr(torch, dtype).itemsize
    V, C, rows = config.vocab_size, config.d_model, prompts * k

    def cached(rows: int, slots: int) -> int:
        return 2 * b * config.n_layer * rows * config.n_kv_head * slots * config.d_head

    # A few prompts are read at a time, into a cache of their own. The widest moment of a layer is
    # in the MLP: its input and its output, and there up, gate and their product.
    few = min(prompts, max(1, READ_TOKENS // longest))
    reading = cached(few, longest) + few * longest * b * (3 * C + 3 * config.d_mlp)

    # A token is chosen by its logit, here and in float32. Without top_k its probability is computed
    # in float32, and added up in float64. A CPU lays the head out anew.
    choosing = rows * V * (b + 4 + (0 if top_k else 4 + 8 + 8))
    if device == "cpu":
        choosing += V * C * b
    return {
        "weights": sum(p.nbytes for p in parameters_of(config, dtype)),
        "cache": cached(rows, longest + new),
        "work": max(reading, choosing),
    }


def parameters_of(config: Config, dtype: str, adapters: Adapters | None = None) -> list[Tensor]:
    """The parameters of a training run on the meta device: shapes without memory."""
    with torch.device("meta"):
        model = Transformer(config).to(getattr(torch, dtype))
        if adapters:
            lora.add_adapters(model, adapters.rank, adapters.alpha, adapters.targets)
    return list(model.parameters())


def norm_bytes(config: Config, b: int) -> int:
    """What a norm keeps of a token for the backward pass; b bytes per number, here and below.

    That is its output, and its input: RMSNorm keeps that once more in float32, to be scaled.
    """
    return config.d_model * (2 * b if config.norm == "layer" else 4 + 2 * b)


def layer_bytes(config: Config, b: int, load: Load) -> int:
    """What one layer keeps for the backward pass."""
    heads, kv = config.n_head * config.d_head, config.n_kv_head * config.d_head
    attention = b * (2 * heads + 2 * kv) + 4 * config.n_head    # q, k, v, output, and a logsumexp
    mlp = 4 if config.mlp == "swiglu" else 2    # gate, silu(gate), up, product; or up and gelu(up)
    rest = 2 * norm_bytes(config, b) + b * heads + b * mlp * config.d_mlp
    if config.qk_norm:
        rest += (4 + b) * (heads + kv)          # q and k before their norms, once more in float32
    return load.attended * attention + load.tokens * rest


def head_bytes(config: Config, b: int, load: Load, learn: bool) -> int:
    """What scoring and pushing hold while the last logits are alive."""
    V, C = config.vocab_size, config.d_model
    rows = max(load.scored, min(load.responses, CHUNK_ELEMENTS // V))   # whose logits are together
    d_head = 4 * V * C if learn else 0                          # float32
    states = (load.tokens + rows) * C * (4 + b)     # ∂loss/∂states twice; and one run's states
    if b == 4:
        return states + d_head + 4 * rows * V       # log-probs and gradient in the logits' place

    # In bfloat16 the logit gradient is copied to bfloat16. One run's share of the head's gradient
    # comes in bfloat16 too, and the CPU casts it to float32 before it adds it up.
    share = V * C * (b + 4) if learn else 0
    return states + d_head + (4 + b) * rows * V + share


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that are alive at once of those that `work` allocates on the CPU: measured."""
    return max(size for _, size in memory_line(work))


def memory_line(work: Callable[[], object]) -> list[tuple[float, int]]:
    """What `work` has allocated on the CPU and not given back: (seconds, bytes) at every change.

    What was there before is not counted, and neither is its release. The profiler sees every block
    that torch's allocator gives and takes back, also inside operators and in the backward pass. The
    trace that it exports is the only public place where they are listed in order.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")      # it need not announce that it starts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    blocks = [event for event in events if event["name"] == "[memory]"]
    line, alive = [(0.0, 0)], 0
    for block in blocks:
        alive += block["args"]["Bytes"]                 # negative where memory is given back
        line.append(((block["ts"] - blocks[0]["ts"]) / 1e6, alive))
    return line


def available(device: str) -> float:
    """Bytes that can still be allocated on this device; inf where nothing says (Windows)."""
    if torch.device(device).type == "cuda":
        free, all_there_is = torch.cuda.mem_get_info(device)
        return max(0, free - int(SPARE * all_there_is))
    try:
        with open("/proc/meminfo") as file:
            return 1024 * next(int(l.split()[1]) for l in file if l.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    if hasattr(os, "sysconf"):                          # macOS: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def table(parts: dict[str, int]) -> str:
    """The sheet as lines of text, in GiB."""
    parts = {**parts, "total": sum(parts.values())}
    return "\n".join(f"  {name:<12}{size / GIB:>9.2f} GiB" for name, size in parts.items())


def check_fits(
    parts: dict[str, int], device: str, advice: str, what: str = "a training step"
) -> None:
    """ValueError with the sheet if this much cannot be allocated."""
    total, free = sum(parts.values()), available(device)
    if total > free:
        raise ValueError(f"{what} needs {total / GIB:.1f} GiB, and {device} has "
                         f"{free / GIB:.1f} GiB free:\n{table(parts)}\n"
                         f"what makes it smaller: {advice}")
