"""The comparison behind `minialign bench`: processes take turns at the same work.

Every side of a comparison is a process of its own, so that its peak memory is its own. Our sides
run worker.py; a peer's side runs peers/peer.py in an interpreter that has the peer. They take
turns, so that whatever else the machine does hits them alike. This process only asks and prints.
It computes nothing and imports no torch: where a process cannot reset the mark of its peak memory
(outside Linux), a child's peak begins with its parent's.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict

from minialign.bench import peers
from minialign.files import write_json
from minialign.progress import bar
from minialign.stats import table


def run(flags) -> None:
    """Measure in every mode that was asked for, print its table, and write the numbers of all."""
    modes = flags.modes or list(MODES)
    if flags.memory_only:
        modes = ["memory"]
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"no mode is called {mode}; choose among {', '.join(MODES)}")
    if flags.against:
        check_peer(flags, modes)

    # The folder is for a model to load, and for what TRL's trainers write.
    with tempfile.TemporaryDirectory() as folder:
        results = {mode: MODES[mode](flags, folder) for mode in modes}

    if flags.json:
        write_json(flags.json, results)


def check_peer(flags, modes: list[str]) -> None:
    """ValueError, before anything is measured, if the peer is missing or lacks a method."""
    python = peer_python(flags)
    search = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    try:
        found = subprocess.run([python, "-c", search, flags.against], capture_output=True)
    except OSError as error:
        raise ValueError(f"--peer-python {python} cannot be run ({error.strerror}); "
                         "give a Python interpreter") from None
    if found.returncode != 0:
        raise ValueError(f"{flags.against} is not installed for {python}; "
                         f"run '{python} -m pip install {peers.NEEDED[flags.against]}', "
                         "or name an interpreter that has it with --peer-python")
    known = peers.VARIANTS[flags.against]
    for method in methods_of(flags):
        if method not in known and "step" in modes:
            raise ValueError(f"{flags.against} has nothing to compare {method} with; "
                             f"choose --method among {', '.join(known)}")


def peer_python(flags) -> str:
    return flags.peer_python or sys.executable


def methods_of(flags) -> list[str]:
    """The names given with --method, each once."""
    return list(dict.fromkeys(flags.method.split(",")))


# ------------------------------------------------------------------------------- a side, a process


class Side:
    """A process that works on request, one line of JSON each way.

    The first request is the spec: what to do. The process answers with facts, once it has built
    what it needs and has worked once. Every further request is a turn; the answer is its seconds.
    """

    def __init__(self, label: str, command: list[str], spec: dict):
        self.label, self.command, self.spec = label, command, spec
        self.turns = []

    def __enter__(self):
        pipe = subprocess.PIPE
        self.log = tempfile.TemporaryFile("w+")    # what libraries print; shown if the process dies
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=self.log, text=True)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def begin(self, **more) -> dict:
        self.facts = self.ask(self.spec | more)
        return self.facts

    def ask(self, request: dict) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass                                    # it died, and the missing answer says so below
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            words = self.log.read().strip().splitlines()[-1:] or ["nothing"]
            raise ChildProcessError(f"{self.label} died; its last words: {words[0]}")
        answer = json.loads(answer)
        if "error" in answer:
            raise ValueError(f"{self.label}: {answer['error']}")
        return answer

    def column(self, key: str) -> list[float]:
        return [turn[key] for turn in self.turns]


def our_side(spec: dict, label: str = "minialign") -> Side:
    return Side(label, [sys.executable, "-m", "minialign.bench.worker"], spec)


def peer_side(flags, spec: dict, who: str, variant: str = "") -> Side:
    spec = spec | {"who": who, "variant": variant}
    return Side(f"{who} {variant}".strip(), [peer_python(flags), str(peers.SCRIPT)], spec)


# --------------------------------------------------------------------------------------- the modes


def head(flags, folder: str) -> dict:
    """The vocabulary head alone: ours, and torch's own operators on all tokens at once."""
    spec = training_spec(flags, "head", methods_of(flags)[0])
    return race(flags, [our_side(spec), our_side(spec | {"who": "plain torch"}, "plain torch")])


def step(flags, folder: str) -> dict:
    """One update of a training run, by every method named and by what the peer has for it."""
    sides, rivals = [], {}
    for method in methods_of(flags):
        spec = training_spec(flags, "step", method)
        sides.append(our_side(spec, f"minialign {method}"))
        if flags.against:
            spec["folder"] = folder
            for variant in peers.VARIANTS[flags.against][method]:   # one may stand for two of ours
                rivals[variant] = peer_side(flags, spec, flags.against, variant)
    return race(flags, [*sides, *rivals.values()])


def generate(flags, folder: str) -> dict:
    """Sampling: a single prompt, a few at a time, and many."""
    results = {}
    for batch in [flags.batch] if flags.batch else [1, 8, 32]:
        spec = spec_of(flags, "generate", examples=texts(flags, batch, 192, 64, answers=1))
        results[str(batch)] = race(flags, [our_side(spec), *transformers(flags, spec)])
    return results


def load(flags, folder: str) -> dict:
    """A model folder, from the disk to parameters: ours, and safetensors' own loader."""
    spec = spec_of(flags, "load", folder=flags.model or folder)
    if not flags.model:
        with our_side(spec | {"mode": "write"}) as writer:
            writer.begin()
    safetensors = our_side(spec | {"who": "safetensors"}, "safetensors load_file")
    return race(flags, [our_side(spec), safetensors, *transformers(flags, spec)])


def transformers(flags, spec: dict) -> list[Side]:
    """The peer that generates and loads, also where the peer of training is TRL."""
    return [peer_side(flags, spec, "transformers")] if flags.against else []


def memory(flags, folder: str) -> dict:
    """What a training step will hold, in each of the ways to hold less. Nothing is run."""
    spec = training_spec(flags, "sheet", methods_of(flags)[0])
    with our_side(spec) as side:
        facts = side.begin()
    rows = []
    for way, parts in facts["sheets"].items():
        total = sum(parts.values())
        sizes = [f"{size / 2**30:.2f}" for size in [*parts.values(), total]]
        rows.append([way, *sizes, "yes" if total <= facts["free"] else "no"])
    fits = f"fits {flags.device} ({facts['free'] / 2**30:.0f} GiB free)"
    print(f"memory: a training step of {spec['method']}, {flags.model or flags.preset}, "
          f"{facts['what']}; GiB, counted and not allocated")
    print(table(["train with", *parts, "total", fits], rows), flush=True)
    return facts["sheets"]


MODES = {"head": head, "step": step, "generate": generate, "load": load, "memory": memory}


def spec_of(flags, mode: str, **more) -> dict:
    """What a side is told: the flags, and what they do not say."""
    return {**asdict(flags), "mode": mode, "who": "minialign", **more}


def training_spec(flags, mode: str, method: str) -> dict:
    """With 1 + k answers to every prompt. Methods that read only the wanted one drop the rest."""
    examples = texts(flags, flags.batch or 4, 512, 128, answers=1 + flags.k)
    return spec_of(flags, mode, method=method, examples=examples)


def texts(flags, batch: int, length: int, prompt: int, answers: int) -> list[tuple[list, list]]:
    """`batch` prompts with their answers: random numbers, which a side folds into its vocabulary.

    `length` (of prompt and answer) and `prompt` hold unless --len and --prompt-len were given.
    """
    length, prompt = flags.len or length, flags.prompt_len or prompt
    if prompt >= length:
        raise ValueError(f"--len {length} counts the prompt and what follows it, "
                         f"so it must be above --prompt-len {prompt}")
    draw = random.Random(0)

    def tokens(n: int) -> list[int]:
        return [draw.randrange(10**6) for _ in range(n)]

    examples = []
    for _ in range(batch):
        examples.append((tokens(prompt), [tokens(length - prompt) for _ in range(answers)]))
    return examples


# --------------------------------------------------------------------------- turns and their table


def race(flags, sides: list[Side]) -> dict:
    """Let the sides take turns, print their table, return all numbers. The first side is ours."""
    mode = sides[0].spec["mode"]
    total = len(sides) * (1 + flags.rounds)
    with ExitStack() as stack, bar(total, mode, stay=False) as shown:
        for side in sides:
            stack.enter_context(side)
        first = sides[0].begin()
        shown.update()
        for side in sides[1:]:
            shown.set_postfix_str(side.label)
            side.begin(hf=first["hf"])              # the model's shape, as transformers writes it
            shown.update()
        for side in sides * flags.rounds:
            shown.set_postfix_str(side.label)
            side.turns.append(side.ask({}))
            shown.update()
    threads = f", --threads {flags.threads}" if flags.threads else ""
    print(f"{mode}: {flags.model or flags.preset}, {first['what']}; {flags.dtype} on {flags.device}"
          f"{threads}; median of {flags.rounds} rounds (range)")
    print(show(sides), flush=True)
    results = {}
    for side in sides:
        facts = {"peak_bytes": side.facts["peak"], "tokens": side.facts.get("tokens")}
        results[side.label] = {"turns": side.turns, **facts}
    return results


def show(sides: list[Side]) -> str:
    """A table with a row for every side. Columns in which nothing stands are left out."""
    rows = [cells(side, sides[0]) for side in sides]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return table(columns, [[row[name] for name in columns] for row in rows])


def cells(side: Side, first: Side) -> dict[str, str]:
    """A side's row of the table: {column: text}, empty where there is nothing to say."""
    seconds, peak = side.column("seconds"), side.facts["peak"]
    row = dict.fromkeys(["", "seconds", "× floor", "tokens/s", "× time", "of matmul rate", "MFU",
                         "MB beyond the model", "× memory"], "")
    row[""] = side.label
    row["seconds"] = spread(seconds, 3)
    row["MB beyond the model"] = f"{peak / 1e6:,.0f}"
    if side is not first:
        row["× time"] = ratio(seconds, first.column("seconds"))
        row["× memory"] = f"{peak / first.facts['peak']:.2f}" if first.facts["peak"] else ""
    if "tokens" in side.facts:
        row["tokens/s"] = f"{side.facts['tokens'] / statistics.median(seconds):,.0f}"

    # A peer measures no floor. It is held against the floor of our first side in the same round.
    measured = side if "floor" in side.turns[0] else first
    if "floor" in measured.turns[0]:
        row["× floor"] = ratio(seconds, measured.column("floor"))

    # The model's FLOPs per second over those of a matmul measured beside it. All else is time lost.
    if "flops" in side.facts:
        rates = [side.facts["flops"] / s for s in seconds]
        row["of matmul rate"] = ratio(rates, side.column("rate"))

        # The same over what the GPU's maker promises: "model FLOPs utilisation".
        if side.facts.get("peak_rate"):
            row["MFU"] = spread([rate / side.facts["peak_rate"] for rate in rates], 2)
    return row


def ratio(a: list[float], b: list[float]) -> str:
    return spread([x / y for x, y in zip(a, b, strict=True)], 2)


def spread(numbers: list[float], digits: int) -> str:
    """The median, and from where to where the numbers go."""
    least, middle, most = min(numbers), statistics.median(numbers), max(numbers)
    return f"{middle:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"
