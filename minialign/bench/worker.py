"""Our side of a comparison, in a process of its own; peers/turns.py says how it converses."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from minialign.bench import counts
from minialign.bench import sheet as memory
from minialign.bench.peers.turns import Task, listen, take_turns, timed, touch
from minialign.data import Batch, Example, collate
from minialign.hf.families import config_to_hf
from minialign.hf.folders import check_device, load_model, read_config, save_model
from minialign.hf.shapes import PRESETS
from minialign.hf.tokenizer import byte_tokenizer
from minialign.methods import METHODS, Method, build_method
from minialign.model import Config, Transformer, wide
from minialign.train import Recipe, fit, head_pass, pick_answers, split_by_logits


def build(spec: dict) -> Task:
    """The task of a spec. Peers will be told the model's shape in transformers' words, `hf`."""
    check_device(spec["device"])
    task = MODES[spec["mode"]](spec)
    task.facts["hf"] = config_to_hf(config_of(spec))
    return task


# ------------------------------------------------------------------------------ what is worked on


def config_of(spec: dict) -> Config:
    if spec["model"]:
        return read_config(spec["model"])
    return PRESETS[spec["preset"]]


def model_of(spec: dict) -> Transformer:
    """A model of this shape with random weights, at once in its dtype and on its device.

    In float32 first, the weights of an 8 B model would take twice their room.
    """
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, spec["dtype"]))
    try:
        with torch.device(spec["device"]):
            return Transformer(config_of(spec))
    finally:
        torch.set_default_dtype(before)


def examples_of(spec: dict) -> list[Example]:
    """The prompts and answers that every side is given, folded into the vocabulary."""
    V = config_of(spec).vocab_size

    def fold(numbers: list[int]) -> list[int]:
        return [i % V for i in numbers]

    examples = []
    for index, (prompt, answers) in enumerate(spec["examples"]):
        rewards = [-float(a) for a in range(len(answers))]
        examples.append(Example(index, fold(prompt), list(map(fold, answers)), rewards=rewards))
    return examples


def training_of(spec: dict) -> tuple[Method, list[Example], str]:
    """The method, the examples with the answers that it reads, and their sizes in words."""
    if spec["method"] not in METHODS:
        raise ValueError(f"no method is called {spec['method']}; choose among {', '.join(METHODS)}")
    method = build_method(spec["method"], {}, len(spec["examples"]))
    examples = [pick_answers(e, method, 0, None) for e in examples_of(spec)]
    P, answers = len(examples[0].prompt), examples[0].answers
    what = f"batch {len(examples)}, prompt {P}, answers {len(answers)} × {len(answers[0])}"
    return method, examples, what


# -------------------------------------------------------------------------------------- the modes


def head(spec: dict) -> Task:
    """The vocabulary head on random hidden states: ours, or torch's operators on all at once."""
    config, device, dtype = config_of(spec), spec["device"], getattr(torch, spec["dtype"])
    method, examples, what = training_of(spec)
    batch = collate(examples).to(device)
    if "reference" in method.needs:
        batch.ref_logps = torch.full(batch.mask.shape[:2], -100.0)
    states = torch.randn(batch.rows.tokens.numel(), config.d_model, dtype=dtype, device=device)
    weight = torch.randn(config.vocab_size, config.d_model, dtype=dtype, device=device).mul_(0.02)
    work = plain_head if spec["who"] == "plain torch" else head_pass

    # The floor is three matmuls, on as many tokens at a time as ours takes, into memory that is
    # there already.
    sizes = [int(part.mask.sum()) for part in split_by_logits(batch, len(weight))]
    z = weight.new_empty(max(sizes), len(weight))
    d_states, d_weight = torch.empty_like(states), torch.empty_like(weight)

    def three_matmuls() -> None:
        for n in sizes:
            torch.mm(states[:n], weight.T, out=z[:n])
            torch.mm(z[:n], weight, out=d_states[:n])
            torch.mm(z[:n].T, states[:n], out=d_weight)

    return Task(lambda: work(states, weight, method, batch), {"what": what, "tokens": sum(sizes)},
                lambda: {"floor": timed(three_matmuls, device)})


def plain_head(
    states: Tensor, weight: Tensor, method: Method, batch: Batch
) -> tuple[Tensor, Tensor]:
    """What head_pass does, as one writes it first: all logits at once, and autograd.

    Returns the gradients of the states and of the weight.
    """
    states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
    z = states[batch.rows.source[batch.mask]] @ weight.T                                 # (N, V)
    logps = wide(z).log_softmax(-1).gather(1, batch.rows.y[batch.mask][:, None])[:, 0]   # (N,)
    every = torch.zeros(batch.mask.shape, dtype=logps.dtype, device=logps.device)        # (A, B, T)
    every[batch.mask] = logps.detach()
    _, weights, _ = method.weigh(every, batch)
    logps.backward(-weights[batch.mask])
    return states.grad, weight.grad


def step(spec: dict) -> Task:
    """One update of `train`'s own loop: all of it, from lists of tokens to changed weights."""
    config, lean = config_of(spec), spec["lean"]
    method, examples, what = training_of(spec)

    # An update is one forward pass. Lean is how an 8 B model trains on one GPU.
    n = len(examples)
    recipe = Recipe(epochs=10**6, batch=n, micro_batch=n, lr=1e-6)
    if lean:
        recipe = replace(recipe, moments="bfloat16", inside_backward=True, clip=math.inf)
    held = memory.sheet(config, memory.load_of(examples, recipe), recipe, spec["dtype"], lean)
    memory.check_fits(held, spec["device"],
                      "--lean, --batch, --len, --dtype bfloat16, or a smaller --preset")
    model = model_of(spec)
    model.recompute = lean
    method.prepare_data(model, examples, progress=False)
    updates = fit(model, method, examples, recipe)

    # The optimizer moves its memory when the passes have done their FLOPs. Tokens are counted as
    # peers lay them out, with the prompt in front of every answer.
    flops = counts.step_flops(config, examples, method.forwards)
    moment = getattr(torch, recipe.moments).itemsize
    traffic = counts.optimizer_bytes(config, model.head.itemsize, moment)
    tokens = sum(len(e.prompt) + len(answer) for e in examples for answer in e.answers)
    facts = {"what": what, "tokens": tokens, "flops": flops}
    if spec["device"].startswith("cuda"):
        gpu = torch.cuda.get_device_name(spec["device"])
        facts["peak_rate"] = counts.peak_rate(gpu, spec["dtype"])
    return Task(lambda: next(updates), facts, floor_of(spec, [(flops, 0), (0, traffic)]))


def generate(spec: dict) -> Task:
    """Random prompts continued by as many tokens as their answers have; nobody stops early.

    Tokens are drawn among the 50 likeliest at temperature 0.7.
    """
    model, examples = model_of(spec), examples_of(spec)
    prompts = torch.tensor([e.prompt for e in examples], device=spec["device"])          # (R, L)
    (R, L), new = prompts.shape, len(examples[0].answers[0])
    draw = torch.Generator(spec["device"]).manual_seed(0)

    # The prompts are read once. Then come the new tokens, their context half as long as at the end.
    reading = counts.forward_flops(model.config, R * L, [L] * R, 0)
    flops, traffic = counts.token_floor(model.config, R, L + new // 2, model.head.itemsize)
    return Task(lambda: model.generate(prompts, new, 0.7, 50, generator=draw),
                {"what": f"{R} prompts of {L} tokens, {new} new ones each", "tokens": R * new},
                floor_of(spec, [(reading, 0), (new * flops, new * traffic)]))


def load(spec: dict) -> Task:
    """A model folder to parameters on the device, by us or by safetensors' own loader.

    There is no floor: a file that is mapped into memory need not even be copied.
    """
    folder, device = Path(spec["folder"]), spec["device"]

    def work() -> None:
        if spec["who"] == "safetensors":
            for file in sorted(folder.glob("*.safetensors")):
                touch(load_file(file, device).values())
        else:
            touch(load_model(folder, spec["dtype"], device)[0].parameters())

    return Task(work, {"what": "a folder of safetensors"})


def write(spec: dict) -> Task:
    """The folder for `load`, if none was given."""
    return Task(lambda: save_model(spec["folder"], model_of(spec), byte_tokenizer([])))


# Flags of train: dtype, moments, inside the backward pass, checkpointing, rank of LoRA. Then how
# many GPUs share the model.
WAYS = {
    "--dtype float32": ("float32", "float32", False, False, None, 1),
    "--dtype bfloat16": ("bfloat16", "float32", False, False, None, 1),
    "… --activation-checkpointing": ("bfloat16", "float32", False, True, None, 1),
    "… … and one of 8 GPUs": ("bfloat16", "float32", False, True, None, 8),
    "… … --moments bfloat16": ("bfloat16", "bfloat16", False, True, None, 1),
    "… … … --inside-backward": ("bfloat16", "bfloat16", True, True, None, 1),
    "… … --lora-rank 16": ("bfloat16", "float32", False, True, 16, 1),
}


def sheet(spec: dict) -> Task:
    """No work: what a training step will hold in memory, in each of the ways to hold less."""
    config, sheets = config_of(spec), {}
    _, examples, what = training_of(spec)
    n = len(examples)
    for flags, (dtype, moments, inside, recompute, rank, ranks) in WAYS.items():
        if rank and config.pos != "rope":
            continue                                # adapters are for layers with Llama's names
        recipe = Recipe(batch=n, micro_batch=n, moments=moments, inside_backward=inside,
                        clip=math.inf)
        adapters = memory.Adapters(rank, 2.0 * rank) if rank else None
        load = memory.load_of(examples, recipe)
        parts = memory.sheet(config, load, recipe, dtype, recompute, adapters)
        sheets[flags] = memory.per_rank(parts, config, dtype, ranks, adapters)
    facts = {"what": what, "sheets": sheets, "free": memory.available(spec["device"])}
    return Task(lambda: None, facts)


MODES = {"head": head, "step": step, "generate": generate, "load": load, "write": write,
         "sheet": sheet}


def floor_of(spec: dict, phases: list[tuple[float, float]]) -> Callable[[], dict]:
    """A function that measures the machine now, and says what these phases take at least.

    A phase is (FLOPs, bytes). It takes as long as its FLOPs at the rate of a matmul, or as its
    bytes at the rate of a copy, whichever is longer. Phases follow one another.

    The numbers are random: a GPU multiplies zeros and ones faster, for they cost less power.
    """
    device, dtype = spec["device"], getattr(torch, spec["dtype"])
    n, size = (8192, 2**30) if device.startswith("cuda") else (1536, 2**26)
    a, b, c = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(3))
    source = torch.randn(size // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)

    def measure() -> dict:
        matmul = min(timed(lambda: torch.mm(a, b, out=c), device) for _ in range(2))
        copy = min(timed(lambda: target.copy_(source), device) for _ in range(2))
        rate, bandwidth = 2 * n**3 / matmul, 2 * source.nbytes / copy
        floor = sum(max(flops / rate, traffic / bandwidth) for flops, traffic in phases)
        return {"floor": floor, "rate": rate, "bandwidth": bandwidth}

    return measure


if __name__ == "__main__":
    take_turns(build, *listen())
