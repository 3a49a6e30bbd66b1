"""The training loop: score → weigh → push → step. `fit` is a generator that yields one log record per update.

What makes a run survive an interrupt (files, checkpoints, resume) is run.py.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from tqdm import tqdm

from minialign.data import Counts, Example, collate
from minialign.logps import batch_logps, fused_pass
from minialign.methods import METHODS, Method
from minialign.optim import AdamW, cosine


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from the method. Batches are counted in prompts."""

    epochs: int = 1
    batch: int = 32             # prompts per update
    micro_batch: int = 8        # most prompts per forward pass; changes memory and speed, not the gradient
    pass_tokens: int | None = None      # most tokens per forward pass, padding included (a longer example goes alone); likewise
    lr: float = 1e-3
    warmup: float = 0.1         # share of all updates
    weight_decay: float = 0.0
    clip: float = 1.0           # longest gradient that is not shortened
    beta1: float = 0.9          # AdamW's memory of gradients; 0 makes it RMSprop
    beta2: float = 0.95         # and of their squares
    moments: str = "float32"    # in what both are kept
    inside_backward: bool = False       # update each parameter during the backward pass, and keep no gradient
    negatives: int | None = None    # negatives per prompt and epoch, taken in turn from the example's pool; None = all of it
    seed: int = 0

    def __post_init__(self):
        for name, ok in {"epochs": self.epochs > 0, "batch": self.batch > 0, "micro_batch": self.micro_batch > 0,
                         "lr": self.lr > 0, "warmup": 0 <= self.warmup < 1, "clip": self.clip > 0,
                         "weight_decay": self.weight_decay >= 0,
                         "beta1": 0 <= self.beta1 < 1, "beta2": 0 <= self.beta2 < 1,
                         "pass_tokens": self.pass_tokens is None or self.pass_tokens > 0,
                         "negatives": self.negatives is None or self.negatives > 0}.items():
            if not ok:
                bounds = {"weight_decay": "at least 0"} | dict.fromkeys(("warmup", "beta1", "beta2"), "at least 0 and below 1")
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {bounds.get(name, 'above 0')}")
        if self.inside_backward and (self.batch > self.micro_batch or self.pass_tokens or self.clip < math.inf):
            raise ValueError("inside_backward updates in one pass, before the whole gradient is known: micro_batch must be at "
                             f"least batch ({self.batch}), pass_tokens unset and clip inf")

    def updates(self, n_examples: int) -> int:
        return self.epochs * math.ceil(n_examples / self.batch)


class Diverged(FloatingPointError):
    """The loss or the gradient is no longer a finite number. The parameters are still those before this update (what a method
    remembers, DFT's u, has moved on: go back to the last checkpoint).
    """


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


def passes(examples: list[Example], micro_batch: int, pass_tokens: int | None = None) -> list[list[Example]]:
    """Cut an update into forward passes of like lengths, of at most so many prompts and tokens: rows × longest row."""
    parts, longest, rows = [[]], 0, 0
    for e in sorted(examples, key=row_length):
        longest, rows = row_length(e), rows + sum(bool(a) for a in e.answers)
        if parts[-1] and (len(parts[-1]) == micro_batch or (pass_tokens and rows * longest > pass_tokens)):
            parts.append([])
            rows = sum(bool(a) for a in e.answers)
        parts[-1].append(e)
    return parts


def row_length(e: Example) -> int:
    """Tokens the network reads for an example's longest answer: its last token is only predicted."""
    return len(e.prompt) + max(map(len, e.answers)) - 1


def gradient(model, method: Method, chosen: list[Example], micro_batch: int,
             pass_tokens: int | None = None) -> tuple[float, dict[str, float]]:
    """Leave the exact gradient of one update's loss in `.grad`, however many forward passes it takes; returns loss and mean info.

    Every micro-batch divides by the counts of the whole update, so the parts add up and nothing is rescaled.
    """
    answers, tokens = sum(bool(a) for e in chosen for a in e.answers), sum(len(e.answers[0]) for e in chosen)
    counts = Counts(len(chosen), answers, tokens)
    parts = [collate(part, counts).to(model.head.device)
             for part in passes(chosen, micro_batch, pass_tokens)]
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

    `optimizer` and `start` continue an interrupted run. Diverged is raised before an update that would spoil the parameters
    (with inside_backward right after it: then only a checkpoint is good).
    """
    optimizer = optimizer or build_optimizer(model, recipe)
    updates = recipe.updates(len(examples))
    warmup = round(recipe.warmup * updates)
    for step, (epoch, chosen) in enumerate(batches(examples, recipe, method, start), start=start):
        began = time.perf_counter()
        lr = recipe.lr * cosine(step, updates, warmup)
        with optimizer.inside_backward(lr) if recipe.inside_backward else nullcontext() as norms:
            loss, info = gradient(model, method, chosen, recipe.micro_batch, recipe.pass_tokens)
        norm = float(torch.stack(norms).norm() if recipe.inside_backward else optimizer.gradient_norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            hint = "a lower learning rate may help" if step else "the model or the data are at fault, or their dtype"
            raise Diverged(f"update {step + 1}: loss {loss}, gradient norm {norm} ({hint}); examples {[e.index for e in chosen]}")
        if not recipe.inside_backward:
            optimizer.step(lr, min(1.0, recipe.clip / (norm + 1e-12)))
        yield {"step": step + 1, "epoch": epoch, "loss": loss, "lr": lr, "gradient_norm": norm,
               "tokens": sum(len(a) for e in chosen for a in e.answers), "seconds": time.perf_counter() - began, **info}


def build_optimizer(model, recipe: Recipe) -> AdamW:
    return AdamW(dict(model.named_parameters()), (recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay,
                 seed=recipe.seed, moments=getattr(torch, recipe.moments))


@torch.no_grad()
def add_reference(model, examples: list[Example], micro_batch: int = 16, progress: bool = True) -> None:
    """Fill in the summed log-probs of all answers under the model as it is now: the frozen reference, needed only once.

    What is known already, from the file of a pool, stays.
    """
    todo = [e for e in examples if e.ref_logps is None or None in e.ref_logps or (e.kl_answer and e.kl_ref_logp is None)]
    for i in tqdm(range(0, len(todo), micro_batch), desc="reference", disable=not progress, leave=False):
        part = todo[i : i + micro_batch]
        known = [e.ref_logps or [None] * len(e.answers) for e in part]
        asked = [replace(e, answers=[a if l is None else [] for a, l in zip(e.answers, ls, strict=True)], ref_logps=None)
                 for e, ls in zip(part, known, strict=True)]
        batch = collate(asked).to(model.head.device)
        sums = batch_logps(model, batch).sum(-1).double()                       # (A, B)
        mismatched = [None] * len(part)
        if batch.kl_rows is not None:
            mismatched = batch_logps(model, batch, batch.kl_rows).sum((0, 2)).tolist()
        for b, (e, old) in enumerate(zip(part, known, strict=True)):
            e.ref_logps = [new if l is None else l for l, new in zip(old, sums[: len(old), b].tolist(), strict=True)]
            e.kl_ref_logp = mismatched[b]


def add_mismatched(examples: list[Example], max_len: int | None = None) -> None:
    """Give every prompt the first answer of the next example, cut to max_len with it: what KTO estimates the drift on."""
    if len(examples) < 2:
        raise ValueError("kto judges answers against the drift on other prompts' answers; it needs at least two examples")
    for e, other in zip(examples, examples[1:] + examples[:1], strict=True):
        answer = next(answer for answer in other.answers if answer)
        e.kl_answer = answer if max_len is None else answer[: max(1, max_len - len(e.prompt))]


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
