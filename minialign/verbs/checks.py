"""What `minialign train` refuses before it writes anything: data, memory, disk, a foreign pool."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minialign import parallel
from minialign.bench.sheet import GIB
from minialign.data import Example
from minialign.evaluate import answer_logps
from minialign.hf.rowfiles import read_file
from minialign.logps import add_reference
from minialign.methods import METHODS
from minialign.train import Diverged

ASKED_AGAIN = 16            # examples of a pool whose log-probs are computed once more
LARGE = 100_000_000         # parameters, beyond which no learning rate is taken for granted
MISSING = {
    "rejected": 'pairs: rows {"prompt", "chosen", "rejected"}, or answers of the model itself with '
                "--negatives (made by 'minialign sample')",
    "negatives": "answers of the model itself: make them with 'minialign sample --model … --data … "
                 "--out negatives.jsonl', pass --negatives",
    "rewards": 'a score for every answer: rows {"prompt", "responses": [text, …], '
               '"rewards": [number, …]}',
}


def check_data(name: str, examples: list[Example], path: str, negatives: str | None) -> None:
    """ValueError if the data lack what the method compares, naming the first line that does."""
    method = METHODS[name]
    if "negatives" in method.needs and negatives is None:
        raise ValueError(f"{name} needs {MISSING['negatives']}")
    for e in examples:
        where = e.text.get("where", path)
        if "rejected" in method.needs and len(e.answers) < 2:
            raise ValueError(f"{name} needs {MISSING['rejected']}; {where} has none")
        if "rewards" in method.needs and (len(e.answers) < 2 or e.rewards is None):
            raise ValueError(f"{name} needs {MISSING['rewards']}; {where} has none")
        if not e.answers[0] and not method.allows_unpaired:
            others = ", ".join(other for other, m in METHODS.items() if m.allows_unpaired)
            raise ValueError(
                f"{where} is unpaired (label: false); {name} needs a wanted answer in every row; "
                f"methods that do not: {others}"
            )


def check_lr(lr: float | None, parameters: int) -> None:
    """ValueError for a large model without --lr: the default suits small ones, and wrecks a 7 B."""
    if lr is None and parameters > LARGE:
        raise ValueError(
            f"--model has {parameters / 1e6:,.0f} million parameters, and the default learning "
            "rate is for small ones; give --lr: 5e-7 to 2e-6 if all weights learn, around 1e-4 "
            "with --lora-rank")


def advice(flags) -> str:
    """The flags that would need less memory and are not given yet, the cheapest first."""
    ways = []
    if not flags.activation_checkpointing:
        ways.append("--activation-checkpointing")
    if flags.micro_batch != 1:
        ways.append("--micro-batch 1")
    if flags.dtype != "bfloat16":
        ways.append("--dtype bfloat16")
    if flags.moments != "bfloat16" and not flags.lora_rank:
        ways.append("--moments bfloat16")
    ways.append("a smaller --max-len")
    if not flags.lora_rank:
        ways.append("--lora-rank 16")
    return ", ".join(ways)


def check_place(out: Path) -> None:
    """ValueError if there can be no folder `out`."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name another folder as --out")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} is read-only; name another folder as --out")


def check_disk(out: Path, parameters: list[Tensor], moments: int, every: int,
               best: bool = False) -> None:
    """ValueError now, and not at the first checkpoint, if the run cannot be written to `out`.

    moments   bytes that the optimizer keeps
    every     updates between checkpoints; 0 for none
    best      is the best model kept as well?
    """
    # A checkpoint is written beside the last one, which is there already if the run is resumed.
    need = sum(p.nbytes for p in parameters)
    learnt = sum(p.nbytes for p in parameters if p.requires_grad)
    if best:
        need += 2 * learnt
    if every:
        need += 2 * (moments + learnt)
        last = out / "checkpoint.safetensors"
        if last.exists():
            need -= last.stat().st_size
    free = shutil.disk_usage(out).free
    if need > free:
        raise ValueError(
            f"the model and its checkpoints need {need / GIB:.2f} GiB of disk, and {out} has "
            f"{free / GIB:.2f} GiB free; give another --out, or --checkpoint-every 0 to keep none"
        )


def check_pool(model, digest: str, examples: list[Example], path: str | None) -> None:
    """ValueError if the log-probs that came with the negatives are those of another model.

    digest   of --model, which the lines of a pool carry if `minialign sample` wrote them

    Some examples, drawn from the whole file, are asked again. Rounding in bfloat16 makes a few
    hundredths of a nat per token, all answers taken together; a single one may be off by more.
    """
    told = [e for e in examples if e.ref_logps and any(l is not None for l in e.ref_logps)]
    if not told:
        return
    remedy = ('draw the negatives from this model, or delete "ref_logps" from the file, and '
              "they are computed")
    for where, row in read_file(path):
        drawn_from, dash, _ = str(row.get("draw")).partition("-")
        if dash and drawn_from != digest and "ref_logps" in row:
            raise ValueError(f"{where}: the log-probs are not those of --model: {remedy}")

    some = random.Random(0).sample(told, min(ASKED_AGAIN, len(told)))
    again = [replace(e, ref_logps=None) for e in some]
    add_reference(model, again, progress=False)
    total, tokens, wrong = 0.0, 0, None
    for e, fresh in zip(some, again, strict=True):
        for answer, old, new in zip(e.answers, e.ref_logps, fresh.ref_logps, strict=True):
            if old is None:
                continue
            off = abs(old - new)
            if not off <= 0.5 + 0.2 * len(answer):
                wrong = e
            total += off
            tokens += len(answer)
    if wrong is not None or not total / tokens <= 0.1:
        off = f"{total / tokens:.2f} nats per token off"
        if wrong is not None:
            off += f", for the prompt of {wrong.text.get('where', 'one example')} among others"
        raise ValueError(f"the log-probs in {path} are not those of --model ({off}): {remedy}")


def check_trained(model, examples: list[Example], step: int) -> None:
    """Diverged if the last update has left the model without finite numbers.

    The loop sees what an update did only in the next one, and after the last there is none.
    """
    mine = [parallel.local(p) for p in model.parameters()]
    finite = all(parallel.gather(all(p.isfinite().all() for p in mine)))
    if finite:
        try:
            answer_logps(model, examples[:1], 1, progress=False)
        except FloatingPointError:
            finite = False
    if not finite:
        raise Diverged(f"update {step}: the model's numbers are no longer finite "
                       "(a lower learning rate may help); nothing of it is saved")
