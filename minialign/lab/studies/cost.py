"""What a step costs, side by side on one model: with a reference in memory, with stored log-probs, without; with a first pass.

Times are CPU time on one thread, medians over rounds in which every setting takes its turn: what else the machine does hits
all alike. Memory is the largest sum of tensors alive at once, counted, not sampled.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minialign.data import Batch, Example, collate
from minialign.lab.plot import COLOR
from minialign.lab.studies import plots
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, Difference, Findings, Lab
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.model import Config, Transformer
from minialign.optim import AdamW
from minialign.train import fused_pass

SHAPE = Config(vocab_size=4096, n_layer=4, n_head=8, d_model=256, d_mlp=688, max_len=256)       # 5 M parameters
PAIRS, PROMPT, ANSWER, ROUNDS = 2, 32, 32, 15


class Meter(TorchDispatchMode):
    """Bytes of all tensors made under it that are still alive, and the most there ever were at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return made

    def count(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, lambda _: self.forget(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def forget(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


def example_batch(seed: int, answers: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    def tokens(n):
        return torch.randint(SHAPE.vocab_size, (n,), generator=draw).tolist()
    return collate([Example(i, tokens(PROMPT), [tokens(ANSWER) for _ in range(answers)]) for i in range(PAIRS)])


def stepper(seed: int, name: str, hyper: dict, reference: str = "") -> Callable[[], None]:
    """One training step of a method, everything it needs already in memory. `reference`: "in memory", "stored", or none."""
    torch.manual_seed(seed)
    model = Transformer(SHAPE)
    method, optimizer = METHODS[name](**hyper), AdamW(dict(model.named_parameters()))
    batch = example_batch(seed, 1 + method.reads_others)
    frozen = None
    if reference:
        frozen = Transformer(SHAPE).requires_grad_(False)
        frozen.load_state_dict(model.state_dict())
    if reference == "stored":
        with torch.no_grad():
            batch = replace(batch, ref_logps=batch_logps(frozen, batch).sum(-1).double())
        frozen = None

    def step():
        now = batch
        if frozen is not None:
            with torch.no_grad():
                now = replace(batch, ref_logps=batch_logps(frozen, batch).sum(-1).double())
        fused_pass(model, method, *method.prepare(model, [now]))
        optimizer.step(1e-5)

    return step


def peak_bytes(make: Callable[[], Callable[[], None]]) -> int:
    """The most that is alive at once while a setting takes its steps, building not counted."""
    with Meter() as meter:
        step = make()
        step()
        meter.peak = meter.now
        step()
    return meter.peak


def measure(lab: Lab, settings: dict[str, tuple]) -> dict[str, dict[str, list[float]]]:
    """{setting: {seconds, fastest, slowest, megabytes: one value per seed}}; a seed is a model, a batch and ROUNDS rounds."""
    data = {name: {"seconds": [], "fastest": [], "slowest": [], "megabytes": []} for name in settings}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in lab.seeds:
        for name, args in settings.items():
            data[name]["megabytes"].append(peak_bytes(lambda args=args: stepper(seed, *args)) / 2**20)  # noqa: B023
        steps = {name: stepper(seed, *args) for name, args in settings.items()}
        times = {name: [] for name in settings}
        for round_ in range(ROUNDS + 1):                                # the first round warms up
            for name, step in steps.items():
                began = time.process_time()
                step()
                times[name] += [time.process_time() - began] * (round_ > 0)
        for name, seconds in times.items():
            for mark, pick in (("seconds", statistics.median), ("fastest", min), ("slowest", max)):
                data[name][mark].append(pick(seconds))
    torch.set_num_threads(threads)
    return data


def relative(data: dict, other: str, mark: str) -> dict[str, list[float]]:
    """Each setting's cost over that of `other`, seed by seed, as a mark of its own."""
    for marks in data.values():
        marks[f"{mark}_ratio"] = [x / y for x, y in zip(marks[mark], data[other][mark], strict=True)]
    return data


MARKS = {"seconds": ("CPU s", 3), "fastest": ("fastest", 3), "slowest": ("slowest", 3), "seconds_ratio": ("time ratio", 3),
         "megabytes": ("MB at peak", 1), "megabytes_ratio": ("memory ratio", 3)}


def cost(lab: Lab) -> Findings:
    live, stored = "dpo, reference in memory", "dpo, reference stored"
    data = measure(lab, {"sft": ("sft", {}), "asft": ("asft", {}), stored: ("dpo", {}, "stored"), live: ("dpo", {}, "in memory")})
    for mark in ("seconds", "megabytes"):
        relative(data, live, mark)
    time_, memory = (Difference(data[live], data["asft"], f"{mark}_ratio") for mark in ("seconds", "megabytes"))
    rest_time, rest_memory = (Difference(data[stored], data["asft"], f"{mark}_ratio") for mark in ("seconds", "megabytes"))
    saves = time_.above(0.05) and memory.above(0.05)
    if saves:
        verdict = "holds only if the rival keeps its reference in memory" if not rest_memory.above(0.05) else HOLDS
    else:
        verdict = NOT if time_.within(0.05) or memory.within(0.05) else OPEN
    sentence = (f"Of a DPO step with its reference in memory ASFT saves {time_.percent()} time and {memory.percent()} memory; "
                f"where the reference's log-probs were stored beforehand, {rest_time.percent()} and {rest_memory.percent()}.")
    return Findings(data, verdict, sentence, lambda out: picture(
        data, "What does a step cost without a reference model?", out, "cost"), MARKS)


def first_pass(lab: Lab) -> Findings:
    data = measure(lab, {"sft": ("sft", {}), "ift, λ = 0": ("ift", {"lam": 0.0}), "ift, λ = 0.2": ("ift", {})})
    for mark in ("seconds", "megabytes"):
        relative(data, "sft", mark)
    extra, more = (Difference(data["ift, λ = 0.2"], data["sft"], f"{mark}_ratio") for mark in ("seconds", "megabytes"))
    rest = Difference(data["ift, λ = 0"], data["sft"], "seconds_ratio")
    verdict = NOT if extra.above(0.05) else HOLDS if extra.below(0.05) else OPEN
    sentence = (f"An IFT step takes {extra.percent()} longer than SFT's (a forward pass is a third of forward and backward), "
                f"{rest.percent()} where nothing is asked (λ = 0); it needs {more.percent()} more memory.")
    return Findings(data, verdict, sentence, lambda out: picture(
        data, "What does it cost to ask the policy for its guesses first?", out, "first_pass"), MARKS)


def picture(data: dict, question: str, out, name: str):
    return plots.dots({"time of a step": {n: m["seconds_ratio"] for n, m in data.items()},
                       "memory at peak": {n: m["megabytes_ratio"] for n, m in data.items()}},
                      "relative to the dashed line", question, out, name,
                      {n: COLOR[n.split(",")[0]] for n in data}, line=1.0)
