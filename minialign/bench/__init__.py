"""What the work costs on this machine: beside the least it could cost, and beside TRL and transformers.

Every side of a comparison is a process of its own, ours worker.py, theirs peers/peer.py in an interpreter that has them, so that
its peak memory is its own; they work in turns, so that what else the machine does hits all alike. This process only asks and
prints: it imports neither torch nor any peer.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from minialign.files import write_text
from minialign.stats import table

MODES = ("head", "step", "generate", "load", "memory")
ALONE = ("sft", "ift", "ift_eq21")                                      # methods that look at the wanted answer only
PEERS = {"trl": "trl==1.16.0", "transformers": "transformers==5.23.0"}
TRL_METHODS = {"sft": ["sft"], "asft": ["orpo"], "orpo": ["orpo"], "simpo": ["simpo"], "cpo": ["cpo"],
               "dpo": ["dpo", "dpo, reference precomputed"]}
LOOP_METHODS = ("sft", "asft", "orpo", "simpo", "dpo")
OURS = [sys.executable, "-m", "minialign.bench.worker"]
PEER_SCRIPT = Path(__file__).parent / "peer.py"


class Side:
    """A process that measures on request. `begin` waits until it has built what it needs and worked once."""

    def __init__(self, label: str, command: list, spec: dict):
        self.label, self.command, self.spec = label, command, spec
        self.turns = []

    def __enter__(self):
        self.log = tempfile.TemporaryFile("w+")                         # what libraries print; shown only if the process dies
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def begin(self, **more) -> dict:
        self.facts = self.ask(json.dumps(self.spec | more))
        return self.facts

    def turn(self) -> None:
        self.turns.append(self.ask(""))

    def ask(self, line: str) -> dict:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass                                                        # it died; the missing answer says so
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            words = self.log.read().strip().splitlines()[-1:] or ["nothing"]
            raise ChildProcessError(f"{self.label} died; its last words: {words[0]}")
        answer = json.loads(answer)
        if "error" in answer:
            raise ValueError(f"{self.label}: {answer['error']}")
        return answer

    def __getitem__(self, key: str) -> list[float]:
        return [turn[key] for turn in self.turns]


def main(args) -> None:
    """`minialign bench`."""
    modes = args.modes or list(MODES)
    if args.memory_only:
        modes = ["memory"]
    if unknown := set(modes) - set(MODES):
        raise ValueError(f"no mode is called {sorted(unknown)[0]}; choose among {', '.join(MODES)}")
    if args.against:
        check_peer(args)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes:
            if mode == "memory":
                results[mode] = memory(args)
            elif mode == "generate":
                rows = [args.batch] if args.batch else [1, 8, 32]
                results[mode] = {str(n): race(args, mode, generate_sides(args, n)) for n in rows}
            else:
                sides = {"head": head_sides, "step": step_sides, "load": load_sides}[mode]
                results[mode] = race(args, mode, sides(args, folder))
    if args.json == "-":
        print(json.dumps(results))
    elif args.json:
        write_text(args.json, json.dumps(results) + "\n")


def check_peer(args) -> None:
    """ValueError, before anything is measured, if the interpreter has no such peer or the peer no such method."""
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    try:
        absent = subprocess.run([python(args), "-c", found, args.against], capture_output=True).returncode
    except OSError as error:
        raise ValueError(f"--peer-python {python(args)} cannot be run ({error.strerror}); give a Python interpreter") from None
    if absent:
        needed = " ".join(PEERS[peer] for peer in (PEERS if args.against == "trl" else [args.against]))
        raise ValueError(f"{args.against} is not installed for {python(args)}; run '{python(args)} -m pip install {needed}', "
                         "or name an interpreter that has it with --peer-python")
    if not PEER_SCRIPT.exists():
        raise ValueError(f"--against needs {PEER_SCRIPT}, which is part of the repository; run from a checkout")
    known = TRL_METHODS if args.against == "trl" else LOOP_METHODS
    for method in args.method.split(","):
        if method not in known and (not args.modes or "step" in args.modes):
            raise ValueError(f"nothing of {args.against} to compare {method} with; it has {', '.join(known)}")


def python(args) -> str:
    return args.peer_python or sys.executable


def spec(args, mode: str, method: str, batch: int, prompt: int, answer: int, **more) -> dict:
    """What a side is told. Prompts and answers are random numbers that it folds into its vocabulary."""
    draw = random.Random(0)
    tokens = lambda n: [draw.randrange(10**6) for _ in range(n)]        # noqa: E731
    answers = 1 if method in ALONE else 1 + args.k
    examples = [(tokens(prompt), [tokens(answer) for _ in range(answers)]) for _ in range(batch)]
    return {"mode": mode, "who": "minialign", "method": method, "preset": args.preset, "model": args.model, "dtype": args.dtype,
            "device": args.device, "threads": args.threads, "lean": args.lean, "examples": examples} | more


def training(args, mode: str, method: str, **more) -> dict:
    length, prompt = args.len or 512, args.prompt_len or 128
    if prompt >= length:
        raise ValueError(f"--len {length} counts prompt and answer, so it must be above --prompt-len {prompt}")
    return spec(args, mode, method, args.batch or 4, prompt, length - prompt, **more)


def head_sides(args, _) -> list[Side]:
    method = args.method.split(",")[0]
    return [Side("minialign", OURS, training(args, "head", method)),
            Side("plain torch", OURS, training(args, "head", method, who="plain"))]


def step_sides(args, folder: str) -> list[Side]:
    methods = list(dict.fromkeys(args.method.split(",")))
    sides = {f"minialign {method}": Side(f"minialign {method}", OURS, training(args, "step", method)) for method in methods}
    for method in methods if args.against else []:
        for name in TRL_METHODS[method] if args.against == "trl" else [method]:
            label, what = f"{args.against} {name}", training(args, "step", method, who=args.against, variant=name, folder=folder)
            sides[label] = peer(args, label, what)
    return list(sides.values())


def generate_sides(args, batch: int) -> list[Side]:
    prompt = args.prompt_len or 64
    what = spec(args, "generate", "sft", batch, prompt, 1, new=(args.len or 192) - prompt)
    if what["new"] < 1:
        raise ValueError(f"--len counts prompt and new tokens, so it must be above --prompt-len {prompt}")
    sides = [Side("minialign", OURS, what)]
    return sides + [peer(args, "transformers", what | {"who": "transformers"})] * bool(args.against)


def load_sides(args, folder: str) -> list[Side]:
    what = spec(args, "load", "sft", 1, 1, 1, folder=args.model or folder)
    if not args.model:
        with Side("minialign", OURS, what | {"mode": "write"}) as writer:
            writer.begin()
    sides = [Side("minialign", OURS, what), Side("safetensors load_file", OURS, what | {"who": "safetensors"})]
    return sides + [peer(args, "transformers", what | {"who": "transformers"})] * bool(args.against)


def peer(args, label: str, what: dict) -> Side:
    return Side(label, [python(args), str(PEER_SCRIPT)], what)


def memory(args) -> dict:
    """What a training step of this shape will hold, counted; the method decides how many answers there are."""
    with Side("minialign", OURS, training(args, "sheet", args.method.split(",")[0])) as side:
        facts = side.begin()
    free, rows = facts["free"], []
    for flags, parts in facts["sheets"].items():
        total = sum(parts.values())
        rows.append([flags, *(f"{size / 2**30:.2f}" for size in [*parts.values(), total]), "yes" if total <= free else "no"])
    shape = title(args, side.spec).partition(";")[0]
    print(f"memory: a training step of {args.method.split(',')[0]}, {shape}; GiB, counted and not allocated")
    print(table(["train with", *parts, "total", f"fits {args.device} ({free / 2**30:.0f} GiB free)"], rows), flush=True)
    return facts["sheets"]


def race(args, mode: str, sides: list[Side]) -> dict:
    """Let the sides take turns, print their table, return all numbers. The first side is what the others are compared with."""
    with ExitStack() as stack, tqdm(total=len(sides) * (args.rounds + 1), desc=mode, leave=False) as bar:
        for side in sides:
            stack.enter_context(side)
        for side in sides:
            bar.set_postfix_str(side.label)
            side.begin(hf=sides[0].facts["hf"] if side is not sides[0] else None)
            bar.update()
        for _ in range(args.rounds):
            for side in sides:
                bar.set_postfix_str(side.label)
                side.turn()
                bar.update()
    print(f"{mode}: {title(args, sides[0].spec)}; median of {args.rounds} rounds (range)")
    print(show(sides), flush=True)
    return {side.label: {"turns": side.turns, "peak_bytes": side.facts["peak"], "tokens": side.facts.get("tokens")}
            for side in sides}


def title(args, what: dict) -> str:
    prompt, answers = what["examples"][0]
    shape = {"generate": f"{len(what['examples'])} prompts of {len(prompt)} tokens, {what.get('new')} new ones each",
             "load": "a folder of safetensors"}.get(
        what["mode"], f"{len(what['examples'])} prompts of {len(prompt)} tokens, {len(answers)} answers of {len(answers[0])}")
    threads = f", {args.threads} threads" if args.threads else ""
    return f"{args.model or args.preset}, {shape}; {args.dtype} on {args.device}{threads}"


def show(sides: list[Side]) -> str:
    """Floors were measured in our processes, in the same round; all is compared with the first side."""
    first, rows = sides[0], []
    for side in sides:
        other, measured = side is not first, next((s for s in (side, first) if "floor" in s.turns[0]), None)
        tokens = side.facts.get("tokens")
        rows.append([side.label, spread(side["seconds"], 3),
                     spread(ratios(side["seconds"], measured["floor"]), 2) if measured else "",
                     f"{tokens / statistics.median(side['seconds']):,.0f}" if tokens else "",
                     spread(ratios(side["seconds"], first["seconds"]), 2) if other else "",
                     spread(shares(side), 2) if "flops" in side.facts else "", f"{side.facts['peak'] / 1e6:,.0f}",
                     f"{side.facts['peak'] / first.facts['peak']:.2f}" if other and first.facts["peak"] else ""])
    names = ["", "seconds", "× floor", "tokens/s", "× time", "of matmul rate", "MB beyond the model", "× memory"]
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] for row in rows)]
    return table([names[i] for i in kept], [[row[i] for i in kept] for row in rows])


def shares(side: Side) -> list[float]:
    """The model's FLOPs per second over those of a matmul measured beside: recomputing and all else count as lost time."""
    return [side.facts["flops"] / s / rate for s, rate in zip(side["seconds"], side["rate"], strict=True)]


def ratios(a: list[float], b: list[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def spread(numbers: list[float], digits: int) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(numbers):.{digits}f} ({min(numbers):.{digits}f}–{max(numbers):.{digits}f})"
