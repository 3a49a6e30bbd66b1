"""One side of a comparison, in a process of its own, so that its peak memory is its own.

Reads what to do as a line of JSON, answers {"ready", "peak", …}, then, for every further line, does it once and answers
{"seconds", "floor"}: the floor is measured right beside, so that what else the machine does hits both.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from minialign.bench import counts
from minialign.bench import sheet as memory
from minialign.data import Batch, Example, collate
from minialign.hf.families import config_to_hf
from minialign.hf.folders import check_device, load_model, read_config, save_model
from minialign.hf.shapes import PRESETS
from minialign.hf.tokenizer import byte_tokenizer
from minialign.methods import METHODS, Method, build_method
from minialign.model import Config, Transformer, wide
from minialign.train import Recipe, fit, head_pass, split_by_logits


@dataclass
class Task:
    """What to measure: the work, and its floor as a function that measures it or as (FLOPs, bytes) of phases in turn."""

    work: Callable
    floor: Callable[[], float] | list[tuple[float, float]] = ()         # empty: mapped files need not even be copied
    facts: dict = field(default_factory=dict)


def config_of(spec: dict) -> Config:
    if not spec["model"]:
        return PRESETS[spec["preset"]]
    return read_config(spec["model"])


def build(spec: dict) -> Transformer:
    """A model of this shape with random weights."""
    torch.manual_seed(0)
    with torch.device(spec["device"]):
        return Transformer(config_of(spec)).to(getattr(torch, spec["dtype"]))


def examples_of(spec: dict) -> list[Example]:
    """The prompts and answers that every side is given, folded into the vocabulary."""
    V = config_of(spec).vocab_size
    fold = lambda ids: [i % V for i in ids]                             # noqa: E731
    examples = [Example(i, fold(prompt), [fold(a) for a in answers]) for i, (prompt, answers) in enumerate(spec["examples"])]
    return [replace(e, rewards=[float(-i) for i in range(len(e.answers))]) for e in examples]


def method_of(spec: dict) -> Method:
    if spec["method"] not in METHODS:
        raise ValueError(f"no method is called {spec['method']}; choose among {', '.join(METHODS)}")
    return build_method(spec["method"], {}, len(spec["examples"]))


def recipe_of(spec: dict) -> Recipe:
    """One pass per update. Lean: moments in bfloat16, and gradients used up at once."""
    n = len(spec["examples"])
    lean = {"moments": "bfloat16", "inside_backward": True, "clip": math.inf} if spec["lean"] else {}
    return Recipe(epochs=10**6, batch=n, micro_batch=n, lr=1e-6, **lean)


def head(spec: dict) -> Task:
    """The vocabulary head on random hidden states, ours or (`who`: plain) torch's own operators on all tokens at once."""
    config, examples = config_of(spec), examples_of(spec)
    method = method_of(spec)
    batch = collate(examples).to(spec["device"])
    draw = {"dtype": getattr(torch, spec["dtype"]), "device": spec["device"]}
    states = torch.randn(batch.rows.tokens.numel(), config.d_model, **draw)
    weight = torch.randn(config.vocab_size, config.d_model, **draw).mul_(0.02)
    if "reference" in method.needs:
        batch.ref_logps = torch.full(batch.mask.shape[:2], -100.0)

    cuts = [int(part.mask.sum()) for part in split_by_logits(batch, len(weight))]        # the runs ours works in
    buffers = []

    def three_matmuls() -> float:
        if not buffers:                                                 # only now: they must not count as ours
            n = max(cuts)
            buffers.extend([weight.new_empty(n, len(weight)), torch.empty_like(states[:n]), torch.empty_like(weight)])
        z, d_states, d_weight = buffers

        def floor():
            for n in cuts:
                torch.mm(states[:n], weight.T, out=z[:n])
                torch.mm(z[:n], weight, out=d_states[:n])
                torch.mm(z[:n].T, states[:n], out=d_weight)
        return timed(floor, spec["device"])

    work = head_pass if spec["who"] == "minialign" else plain_head
    return Task(lambda: work(states, weight, method, batch), three_matmuls, {"tokens": sum(cuts)})


def plain_head(states: Tensor, weight: Tensor, method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    """What head_pass does, as one writes it first: all logits at once, autograd. Gradients of the states and of the weight."""
    states, weight = (x.detach().requires_grad_() for x in (states, weight))
    z = states[batch.rows.source[batch.mask]] @ weight.T                                            # (N, V)
    logps = wide(z).log_softmax(-1).gather(1, batch.rows.y[batch.mask][:, None])[:, 0]
    every = torch.zeros(batch.mask.shape, dtype=logps.dtype, device=logps.device).masked_scatter(batch.mask, logps.detach())
    logps.backward(-method.weigh(every, batch)[1][batch.mask])
    return states.grad, weight.grad


def step(spec: dict) -> Task:
    """One update of `train`'s own loop: the whole step, from token lists to changed weights."""
    config, examples = config_of(spec), examples_of(spec)
    recipe = recipe_of(spec)
    held = memory.sheet(config, memory.load_of(examples, recipe), recipe, spec["dtype"], spec["lean"])
    memory.check_fits(held, spec["device"], "--lean, --batch, --len, --dtype bfloat16, or a smaller --preset")
    model, method = build(spec), method_of(spec)
    model.recompute = spec["lean"]
    method.prepare_data(model, examples, progress=False)
    updates = fit(model, method, examples, recipe)
    (prompt, answers), batch = spec["examples"][0], len(examples)
    flops = counts.step_flops(config, spec["method"], batch, len(prompt), len(answers[0]), len(answers))
    traffic = counts.optimizer_bytes(config, model.head.itemsize)
    tokens = sum(len(p) + len(a) for p, answers in spec["examples"] for a in answers)
    return Task(lambda: next(updates), [(flops, 0), (0, traffic)], {"tokens": tokens, "flops": flops})


def generate(spec: dict) -> Task:
    """Random prompts continued by `new` tokens each, drawn among the 50 likeliest at temperature 0.7; nobody stops early."""
    model, config = build(spec), config_of(spec)
    prompts = torch.tensor([e.prompt for e in examples_of(spec)], device=spec["device"])            # (R, L)
    (R, L), new = prompts.shape, spec["new"]
    draw = torch.Generator(spec["device"]).manual_seed(0)
    flops, traffic = counts.token_floor(config, R, L + new // 2, model.head.itemsize)
    reading = counts.forward_flops(config, R * L, [L] * R, 0)
    return Task(lambda: model.generate(prompts, new, 0.7, 50, generator=draw), [(reading, 0), (new * flops, new * traffic)],
                {"tokens": R * new})


def load(spec: dict) -> Task:
    """A model folder to parameters on the device, ours or safetensors' own loader, and every page touched."""
    folder = Path(spec["folder"])
    files = sorted(folder.glob("*.safetensors"))

    def touch(tensors) -> None:
        for tensor in tensors:
            tensor.detach().view(-1).view(torch.uint8)[:: resource.getpagesize()].sum()

    def ours():
        touch(load_model(folder, spec["dtype"], spec["device"])[0].parameters())

    def theirs():
        for file in files:
            touch(load_file(file, spec["device"]).values())

    size = sum(file.stat().st_size for file in files)
    return Task(ours if spec["who"] == "minialign" else theirs, facts={"bytes": size})


def write(spec: dict) -> Task:
    """The model folder for `load`, if none was given."""
    save_model(spec["folder"], build(spec), byte_tokenizer([]))
    return Task(lambda: None)


WAYS = {                                    # flags of train: dtype, moments, in one pass, activation checkpointing, LoRA's rank
    "--dtype float32": ("float32", "float32", False, False, None),
    "--dtype bfloat16": ("bfloat16", "float32", False, False, None),
    "… --activation-checkpointing": ("bfloat16", "float32", False, True, None),
    "… … --moments bfloat16": ("bfloat16", "bfloat16", False, True, None),
    "… … … --inside-backward": ("bfloat16", "bfloat16", True, True, None),
    "… … --lora-rank 16": ("bfloat16", "float32", False, True, 16),
}


def sheet(spec: dict) -> Task:
    """No work at all: what a training step will hold in memory, in each of the ways there are to hold less."""
    method_of(spec)                         # there must be such a method
    config, examples = config_of(spec), examples_of(spec)
    n, sheets = len(examples), {}
    for flags, (dtype, moments, one_pass, recompute, rank) in WAYS.items():
        recipe = Recipe(batch=n, micro_batch=n, moments=moments, inside_backward=one_pass, clip=math.inf)
        adapters = memory.Adapters(rank, 2.0 * rank) if rank and config.pos == "rope" else None
        if adapters or not rank:
            sheets[flags] = memory.sheet(config, memory.load_of(examples, recipe), recipe, dtype, recompute, adapters)
    return Task(lambda: None, facts={"sheets": sheets, "free": memory.available(spec["device"])})


def timed(work: Callable, device: str) -> float:
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def machine(spec: dict) -> Callable[[], tuple[float, float]]:
    """A function that measures (FLOP/s of a matmul, bytes/s read and written by a copy) with the buffers it keeps."""
    n = 8192 if spec["device"].startswith("cuda") else 1536
    draw = {"dtype": getattr(torch, spec["dtype"]), "device": spec["device"]}
    a, b, c = (torch.ones(n, n, **draw) for _ in range(3))
    source, target = (torch.ones(32 * n * n if n > 1536 else 2**24, **draw) for _ in range(2))

    def measure() -> tuple[float, float]:
        rate = max(2 * n**3 / timed(lambda: torch.mm(a, b, out=c), spec["device"]) for _ in range(2))
        return rate, max(2 * source.nbytes / timed(lambda: target.copy_(source), spec["device"]) for _ in range(2))
    return measure


def used(device: str, reset: bool = False) -> int:
    """Most bytes in use since the last reset: of the GPU's allocator, else of the process (since it began, where not Linux)."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)                                                   # whatever else prints: not into the conversation

        def say(**facts) -> None:
            print(json.dumps(facts), file=out, flush=True)

        try:
            spec = json.loads(sys.stdin.readline())
            converse(spec, say)
        except (ValueError, OSError) as error:
            say(error=str(error))


def converse(spec: dict, say: Callable) -> None:
    check_device(spec["device"])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    task = MODES[spec["mode"]](spec)
    before = used(spec["device"], reset=True)
    task.work()
    facts = task.facts | {"peak": used(spec["device"]) - before, "hf": config_to_hf(config_of(spec))}
    measure = machine(spec) if task.floor and not callable(task.floor) else None
    if measure or task.floor:
        (measure or task.floor)()
    say(ready=True, **facts)
    for _ in sys.stdin:
        seconds = timed(task.work, spec["device"])
        if measure:
            rate, bandwidth = measure()
            say(seconds=seconds, floor=sum(max(f / rate, b / bandwidth) for f, b in task.floor), rate=rate, bandwidth=bandwidth)
        else:
            say(seconds=seconds, **({"floor": task.floor()} if task.floor else {}))


MODES = {"head": head, "step": step, "generate": generate, "load": load, "write": write, "sheet": sheet}

if __name__ == "__main__":
    main()
