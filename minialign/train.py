"""The training loop: score → weigh → push → step, and what makes it safe to interrupt.

`fit` is the loop, a generator that yields one log record per update;
`run` is the `train` verb around it: files, checkpoints, resume.
"""

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from minialign.cli import RunFailed
from minialign.data import Counts, Example, collate, shared_row_pays
from minialign.files import write_tensors, write_text
from minialign.jsonl import load_examples
from minialign.logps import batch_logps, fused_pass
from minialign.methods import METHODS, Method
from minialign.optim import AdamW, cosine


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from the method. Batches are counted in prompts."""

    epochs: int = 1
    batch: int = 32             # prompts per update
    micro_batch: int = 8        # prompts per forward pass; changes memory and speed, not the gradient
    lr: float = 1e-3
    warmup: float = 0.1         # share of all updates
    weight_decay: float = 0.0
    clip: float = 1.0           # longest gradient that is not shortened
    negatives: int | None = None    # negatives per prompt and epoch, taken in turn from the example's pool; None = all of it
    seed: int = 0

    def __post_init__(self):
        for name, ok in {"epochs": self.epochs > 0, "batch": self.batch > 0, "micro_batch": self.micro_batch > 0,
                         "lr": self.lr > 0, "warmup": 0 <= self.warmup < 1, "clip": self.clip > 0,
                         "weight_decay": self.weight_decay >= 0,
                         "negatives": self.negatives is None or self.negatives > 0}.items():
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}, which makes no sense; "
                                 "it must be positive" + (", below 1" * (name == "warmup")))

    def updates(self, n_examples: int) -> int:
        return self.epochs * math.ceil(n_examples / self.batch)


class Diverged(RunFailed):
    """The loss or the gradient is no longer a finite number. The parameters are still those before this update."""


def pick_answers(example: Example, method: Method, epoch: int, negatives: int | None) -> Example:
    """What a method looks at: the wanted answer alone, or with this epoch's share of the pool, taken in turn and round again."""
    pool = len(example.answers) - 1
    if not method.needs:
        chosen = [0]
    else:
        k = min(negatives or pool, pool)
        chosen = [0] + [1 + (epoch * k + j) % pool for j in range(k)]
    lists = {name: None if getattr(example, name) is None else [getattr(example, name)[i] for i in chosen]
             for name in ("answers", "ref_logps", "rewards")}
    return replace(example, **lists)


def batches(examples: list[Example], recipe: Recipe, method: Method, start: int = 0) -> Iterator[tuple[int, list[Example]]]:
    """(epoch, examples) of every update from number `start` on. Each epoch has its own order, a function of the seed alone."""
    per_epoch = math.ceil(len(examples) / recipe.batch)
    for step in range(start, recipe.updates(len(examples))):
        epoch, i = divmod(step, per_epoch)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)).tolist()
        chosen = order[i * recipe.batch : (i + 1) * recipe.batch]
        yield epoch, [pick_answers(examples[j], method, epoch, recipe.negatives) for j in chosen]


def gradient(model, method: Method, chosen: list[Example], micro_batch: int) -> tuple[float, dict[str, float]]:
    """Leave the exact gradient of one update's loss in `.grad`, however many forward passes it takes; returns loss and mean info.

    Every micro-batch divides by the counts of the whole update, so the parts add up and nothing is rescaled.
    """
    answers, tokens = sum(bool(a) for e in chosen for a in e.answers), sum(len(e.answers[0]) for e in chosen)
    counts = Counts(len(chosen), answers, tokens)
    parts = [chosen[i : i + micro_batch] for i in range(0, len(chosen), micro_batch)]
    parts = [collate(part, shared_row_pays(part, model.config), counts).to(model.head.device) for part in parts]
    if "kl" in method.needs:                    # KTO's reference point is the drift over the whole update
        with torch.no_grad():
            drift = {"kl_logps": torch.cat([batch_logps(model, part, part.kl_rows).sum((0, 2)) for part in parts]),
                     "kl_ref_logps": torch.cat([part.kl_ref_logps for part in parts])}
        parts = [replace(part, **drift) for part in parts]
    loss, sums = 0.0, {}
    for part in parts:
        part_loss, _, info = fused_pass(model, method, part)
        loss += float(part_loss)
        for name, values in info.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
    return loss, {name: total / len(chosen) for name, total in sums.items() if name != "loss_per_example"}


def fit(model, method: Method, examples: list[Example], recipe: Recipe, optimizer: AdamW | None = None,
        start: int = 0) -> Iterator[dict]:
    """Train; after every update yields {"step", "epoch", "loss", "lr", "gradient_norm", "tokens", "seconds",
    and the method's own numbers}.

    `optimizer` and `start` continue an interrupted run. Diverged is raised before an update that would spoil the parameters.
    """
    optimizer = optimizer or AdamW(dict(model.named_parameters()), weight_decay=recipe.weight_decay, seed=recipe.seed)
    updates = recipe.updates(len(examples))
    warmup = round(recipe.warmup * updates)
    for step, (epoch, chosen) in enumerate(batches(examples, recipe, method, start), start=start):
        began = time.perf_counter()
        loss, info = gradient(model, method, chosen, recipe.micro_batch)
        norm = float(optimizer.gradient_norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(f"update {step + 1}: loss {loss}, gradient norm {norm}; examples {[e.index for e in chosen]}")
        lr = recipe.lr * cosine(step, updates, warmup)
        optimizer.step(lr, min(1.0, recipe.clip / (norm + 1e-12)))
        yield {"step": step + 1, "epoch": epoch, "loss": loss, "lr": lr, "gradient_norm": norm,
               "tokens": sum(len(a) for e in chosen for a in e.answers), "seconds": time.perf_counter() - began, **info}


@torch.no_grad()
def add_reference(model, examples: list[Example], micro_batch: int = 16, progress: bool = True) -> None:
    """Fill in the summed log-probs of all answers under the model as it is now: the frozen reference, needed only once.

    What is known already, from the file of a pool, stays.
    """
    todo = [e for e in examples if e.ref_logps is None or None in e.ref_logps or (e.kl_answer and e.kl_ref_logp is None)]
    for i in tqdm(range(0, len(todo), micro_batch), desc="reference", disable=not progress, leave=False):
        part = todo[i : i + micro_batch]
        batch = collate(part, shared_row_pays(part, model.config)).to(model.head.device)
        sums = batch_logps(model, batch).sum(-1).double()                       # (A, B)
        mismatched = [None] * len(part)
        if batch.kl_rows is not None:
            mismatched = batch_logps(model, batch, batch.kl_rows).sum((0, 2)).tolist()
        for b, e in enumerate(part):
            known = e.ref_logps or [None] * len(e.answers)
            e.ref_logps = [new if old is None else old for old, new in zip(known, sums[: len(known), b].tolist(), strict=True)]
            e.kl_ref_logp = mismatched[b]


def add_mismatched(examples: list[Example]) -> None:
    """Give every prompt the first answer of the next example: what KTO estimates the policy's drift on."""
    if len(examples) < 2:
        raise ValueError("kto judges answers against the drift on other prompts' answers; it needs at least two examples")
    for e, other in zip(examples, examples[1:] + examples[:1], strict=True):
        e.kl_answer = next(answer for answer in other.answers if answer)


# ------------------------------------------------------------------------------------------------ the verb: files around the loop

def save_checkpoint(path: Path, model, optimizer: AdamW, method: Method, step: int) -> None:
    """Everything the next update depends on, in one file, replaced whole."""
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    tensors |= {f"optimizer.{name}": x for name, x in optimizer.state_dict().items()}
    tensors |= {f"method.{name}": x for name, x in method.state_dict().items()}
    write_tensors(path, tensors, {"step": str(step)})


def load_checkpoint(path: Path, model, optimizer: AdamW, method: Method) -> int:
    """Put everything back; returns the number of finished updates. ValueError if the file is not a checkpoint of this run."""
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            step = int(file.metadata()["step"])
        for name, p in model.named_parameters():
            p.data.copy_(state[f"model.{name}"])
        for prefix, owner in (("optimizer.", optimizer), ("method.", method)):
            owner.load_state_dict({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this run ({error}); start again with another --out") from None
    return step


def fingerprint(path: str | None) -> str | None:
    """A digest of a data file, so that a resumed run can tell whether it is still the same."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}; give a JSONL file, one JSON object per line")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def build_method(name: str, hyper: dict, n_examples: int) -> Method:
    """METHODS[name] with the hyper-parameters given, the size of the data set where it wants one.

    ValueError names the ones it does have.
    """
    known = {f.name for f in fields(METHODS[name]) if f.init}
    if unknown := set(hyper) - known:
        has = ", ".join(f"--{k.replace('_', '-')}" for k in sorted(known - {"n_examples"})) or "none"
        flags = ", ".join(f"--{k.replace('_', '-')}" for k in sorted(unknown))
        raise ValueError(f"{name} has no {flags}; its hyper-parameters: {has}")
    return METHODS[name](**hyper, **({"n_examples": n_examples} if "n_examples" in known else {}))


MISSING = {
    "rejected": 'pairs: rows {"prompt", "chosen", "rejected"}, or answers of the model itself with --negatives '
                "(made by 'minialign sample')",
    "negatives": "answers of the model itself: make them with 'minialign sample --model … --data … --out negatives.jsonl', "
                 "pass --negatives",
    "rewards": 'a score for every answer: rows {"prompt", "responses": [text, …], "rewards": [number, …]}',
}


def check_data(name: str, examples: list[Example], path: str) -> None:
    """ValueError if the data lacks what the method compares."""
    for need in METHODS[name].needs:
        lacking = next((e for e in examples
                        if need in MISSING and (len(e.answers) < 2 or (need == "rewards" and e.rewards is None))), None)
        if lacking is not None:
            raise ValueError(f"{name} needs {MISSING[need]}. {path} row {lacking.index + 1} has none")
    if "kl" not in METHODS[name].needs and any(not e.answers[0] for e in examples):
        raise ValueError(f"{path} has unpaired rows (label: false); {name} needs a wanted answer in every row, only kto does not")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came, and what had been done by then is saved."""


def run(args) -> None:
    """`minialign train`: load, train, leave RUN/{config.json, log.jsonl, checkpoint.safetensors, model/}."""
    from minialign.load import load_model, save_model
    from minialign.small import base_model

    out = Path(args.out)
    config = {**asdict(args), "data_sha256": fingerprint(args.data), "negatives_sha256": fingerprint(args.negatives)}
    checkpoint, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if args.resume:
        check_same_run(out, config)
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; add --resume to continue the run in it, or choose another --out")
    if args.threads:
        torch.set_num_threads(args.threads)
    model, tokenizer = base_model(args.seed) if args.model == "small" else load_model(args.model, args.dtype, args.device)
    examples, truncated = load_examples(args.data, tokenizer, args.max_len or model.config.max_len, args.negatives)
    check_data(args.method, examples, args.data)
    method = build_method(args.method, args.hyper(), len(examples))
    recipe = Recipe(**{f.name: getattr(args, f.name if f.name != "negatives" else "k") for f in fields(Recipe)})
    print(f"{len(examples)} examples, {truncated} truncated, {recipe.updates(len(examples))} updates; {method}", flush=True)
    write_text(out / "config.json", json.dumps(config, indent=2) + "\n")

    optimizer = AdamW(dict(model.named_parameters()), weight_decay=recipe.weight_decay, seed=recipe.seed)
    if "kl" in method.needs:
        add_mismatched(examples)
    if "reference" in method.needs:
        add_reference(model, examples, recipe.micro_batch)
    start = load_checkpoint(checkpoint, model, optimizer, method) if args.resume and checkpoint.exists() else 0
    train_with_checkpoints(model, method, examples, recipe, optimizer, start, args.checkpoint_every, checkpoint, log)
    save_model(out / "model", model, tokenizer)
    print(f"done: {out / 'model'}")


def check_same_run(out: Path, config: dict) -> None:
    """Resuming must not mix two runs: the arguments and the data files must be those the run began with."""
    try:
        old = json.loads((out / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"nothing to resume: {out / 'config.json'} does not exist; drop --resume to start a run there") from None
    except json.JSONDecodeError:
        raise ValueError(f"{out / 'config.json'} is not JSON any more; start again with another --out") from None
    free = {"resume", "out", "device", "threads", "checkpoint_every"}
    for key in sorted(set(old) | set(config)):
        if key not in free and old.get(key) != config.get(key):
            what = f"the file given as --{key.split('_')[0]} has changed" if key.endswith("sha256") else \
                f"--{key.replace('_', '-')} was {old.get(key)} and is now {config.get(key)}"
            raise ValueError(f"cannot resume {out}: {what} since the run began")


def train_with_checkpoints(model, method, examples, recipe, optimizer, start, every, checkpoint: Path, log: Path) -> None:
    """The loop, its log and its checkpoints; Ctrl-C finishes the update, saves, and raises Interrupted."""
    lines = log.read_text().splitlines()[:start] if start else []
    write_text(log, "".join(line + "\n" for line in lines))
    stop = False

    def ask_to_stop(*_):
        nonlocal stop
        if stop:
            raise KeyboardInterrupt             # the second Ctrl-C does not wait
        stop = True

    previous = signal.signal(signal.SIGINT, ask_to_stop)
    updates = recipe.updates(len(examples))
    try:
        with open(log, "a", encoding="utf-8") as file, tqdm(total=updates, initial=start, desc="train", unit="update") as bar:
            for record in fit(model, method, examples, recipe, optimizer, start):
                file.write(json.dumps(record) + "\n")
                file.flush()
                bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
                bar.update()
                if stop or record["step"] % every == 0 or record["step"] == updates:
                    os.fsync(file.fileno())
                    save_checkpoint(checkpoint, model, optimizer, method, record["step"])
                if stop and record["step"] < updates:
                    raise Interrupted(f"stopped after update {record['step']} of {updates}; "
                                      "the same command with --resume goes on from there")
    finally:
        signal.signal(signal.SIGINT, previous)
