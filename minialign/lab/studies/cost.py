"""What a training step costs: with a reference in memory, with stored log-probs, without any.

The settings stand side by side on one model; so does IFT, which asks the policy first. Times are
CPU time on one thread, medians over rounds in which every setting takes its turn: what else the
machine does hits all alike. Memory is the most that is allocated at once.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from minialign.bench.sheet import allocated
from minialign.data import Batch, Example, collate
from minialign.lab import plot
from minialign.lab.plot import COLOR
from minialign.lab.race import Difference
from minialign.lab.studies.lab import Findings, Lab, verdict
from minialign.logps import batch_logps
from minialign.methods import METHODS
from minialign.model import Config, Transformer
from minialign.optim import AdamW
from minialign.train import fused_pass

SHAPE = Config(                                                         # 5 M parameters
    vocab_size=4096, n_layer=4, n_head=8, d_model=256, d_mlp=688, max_len=256
)
PAIRS, PROMPT, ANSWER, ROUNDS = 2, 32, 32, 15
WORTH = 0.05                    # a share of a step's time or memory that is worth the name
MARKS = {
    "seconds": ("CPU s", 3),
    "fastest": ("fastest", 3),
    "slowest": ("slowest", 3),
    "seconds_ratio": ("time ratio", 3),
    "megabytes": ("MB at peak", 1),
    "megabytes_ratio": ("memory ratio", 3),
}


def example_batch(seed: int, answers: int) -> Batch:
    """PAIRS random prompts, each with so many answers."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(SHAPE.vocab_size, (n,), generator=draw).tolist()

    examples = []
    for i in range(PAIRS):
        prompt = tokens(PROMPT)
        examples.append(Example(i, prompt, [tokens(ANSWER) for _ in range(answers)]))
    return collate(examples)


@torch.no_grad()
def with_reference(batch: Batch, model: Transformer) -> Batch:
    return replace(batch, ref_logps=batch_logps(model, batch).sum(-1).double())


def stepper(seed: int, name: str, hyper: dict, reference: str = "") -> Callable[[], None]:
    """One training step of a method, everything that it needs already in memory.

    reference   "in memory": a second model gives its log-probs in every step; "stored": they are
                known beforehand; "": the method needs none
    """
    torch.manual_seed(seed)
    model = Transformer(SHAPE)
    method, optimizer = METHODS[name](**hyper), AdamW(dict(model.named_parameters()))
    batch = example_batch(seed, 2 if method.reads_others else 1)
    frozen = None
    if reference == "in memory":
        frozen = Transformer(SHAPE).requires_grad_(False)
        frozen.load_state_dict(model.state_dict())
    elif reference == "stored":
        batch = with_reference(batch, model)

    def step() -> None:
        known = batch if frozen is None else with_reference(batch, frozen)
        [part] = method.prepare(model, [known])
        fused_pass(model, method, part)
        optimizer.step(1e-5)

    return step


def peak_bytes(make: Callable[[], Callable[[], None]]) -> int:
    """The most that is alive at once while a setting takes two steps, what it is made of included.

    The second step is the fullest moment: by then the optimizer has its moments.
    """
    def work() -> None:
        step = make()
        step()
        step()

    return allocated(work)


def measure(lab: Lab, settings: dict[str, tuple]) -> dict[str, dict[str, list[float]]]:
    """{setting: {mark: [one value per seed]}}; a seed is a model, a batch and ROUNDS rounds."""
    marks = ("seconds", "fastest", "slowest", "megabytes")
    data = {name: {mark: [] for mark in marks} for name in settings}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in lab.seeds:
        makers = {name: partial(stepper, seed, *how) for name, how in settings.items()}
        for name, make in makers.items():
            data[name]["megabytes"].append(peak_bytes(make) / 2**20)

        # Every setting takes its turn in every round; the first round warms up.
        steps = {name: make() for name, make in makers.items()}
        times = {name: [] for name in settings}
        for round_ in range(ROUNDS + 1):
            for name, step in steps.items():
                began = time.process_time()
                step()
                if round_ > 0:
                    times[name].append(time.process_time() - began)
        for name, seconds in times.items():
            data[name]["seconds"].append(statistics.median(seconds))
            data[name]["fastest"].append(min(seconds))
            data[name]["slowest"].append(max(seconds))
    torch.set_num_threads(threads)
    return data


def compare_with(data: dict, other: str) -> None:
    """Add each setting's cost over that of `other`, seed by seed, as marks of their own."""
    for mark in ("seconds", "megabytes"):
        for marks in data.values():
            pairs = zip(marks[mark], data[other][mark], strict=True)
            marks[f"{mark}_ratio"] = [x / y for x, y in pairs]


def cost(lab: Lab) -> Findings:
    live, stored = "dpo, reference in memory", "dpo, reference stored"
    data = measure(lab, {
        "sft": ("sft", {}),
        "asft": ("asft", {}),
        stored: ("dpo", {}, "stored"),
        live: ("dpo", {}, "in memory"),
    })
    compare_with(data, live)
    seconds, memory, seconds_stored, memory_stored = (
        Difference(data[setting], data["asft"], mark)
        for setting in (live, stored) for mark in ("seconds_ratio", "megabytes_ratio")
    )
    found = verdict(
        seconds.above(WORTH) and memory.above(WORTH), seconds.within(WORTH) or memory.within(WORTH),
        limit="" if memory_stored.above(WORTH) else "if the rival keeps its reference in memory",
    )
    sentence = (
        f"Of a DPO step with its reference in memory ASFT saves {seconds.percent()} time and "
        f"{memory.percent()} memory; where the reference's log-probs were stored beforehand, "
        f"{seconds_stored.percent()} and {memory_stored.percent()}."
    )
    question = "What does a step cost without a reference model?"
    return Findings(data, found, sentence, picture(data, question), MARKS, tests={
        "time saved, reference in memory": seconds,
        "memory saved, reference in memory": memory,
        "memory saved, log-probs stored": memory_stored,
    })


def first_pass(lab: Lab) -> Findings:
    ift, unasked = "ift, λ = 0.2", "ift, λ = 0"
    data = measure(lab, {"sft": ("sft", {}), unasked: ("ift", {"lam": 0.0}), ift: ("ift", {})})
    compare_with(data, "sft")
    seconds = Difference(data[ift], data["sft"], "seconds_ratio")
    memory = Difference(data[ift], data["sft"], "megabytes_ratio")
    rest = Difference(data[unasked], data["sft"], "seconds_ratio")
    sentence = (
        f"An IFT step takes {seconds.percent()} longer than SFT's (a forward pass is a third of "
        f"forward and backward), {rest.percent()} where nothing is asked (λ = 0); it needs "
        f"{memory.percent()} more memory."
    )
    question = "What does it cost to ask the policy for its guesses first?"
    found = verdict(seconds.below(WORTH), seconds.above(WORTH))
    return Findings(data, found, sentence, picture(data, question), MARKS, tests={
        "time of ift over sft": seconds})


def picture(data: dict, question: str) -> partial:
    """Both ratios, every setting in its method's colour."""
    panels = {
        "time of a step": {name: marks["seconds_ratio"] for name, marks in data.items()},
        "memory at peak": {name: marks["megabytes_ratio"] for name, marks in data.items()},
    }
    colors = {name: COLOR[name.split(",")[0]] for name in data}
    return partial(plot.bars, panels, "relative to the dashed line", question, colors, line=1.0)
