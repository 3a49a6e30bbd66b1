"""What can be seen of a run: marks on held-out examples, the best update, the curves, TensorBoard.

Nothing here changes what is trained. The keys of log.jsonl are explained in README.md beside this
file.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from minialign import parallel
from minialign.bench.peers.turns import used
from minialign.bench.sheet import GIB
from minialign.data import Example
from minialign.evaluate import answer_logps, marks
from minialign.files import write_tensors, write_text
from minialign.hf.datafiles import load_examples
from minialign.hf.weights import check_tensors
from minialign.verbs.checkpoint import finished_lines
from minialign.verbs.flags import reading

EVAL_EVERY = 50             # updates between two looks at held-out examples

# The marks of evaluate.py that are logged, and under which key.
LOGGED = {
    "eval_perplexity": "perplexity",
    "eval_pair_accuracy": "pair_accuracy",
    "eval_margin": "margin",
}

# ------------------------------------------------------------------------------- held-out examples


@dataclass
class HeldOut:
    """Examples that are not trained on, and what the model makes of them from time to time."""

    examples: list[Example]
    every: int                      # updates between two looks
    batch: int                      # examples at a time
    best_file: Path | None          # keeps the best model so far; None: it is not kept
    best_mark: float | None = None  # of the model in that file

    def marks(self, model) -> dict[str, float]:
        """What log.jsonl says of this model; pairs are left out if the examples have none."""
        found = marks(*answer_logps(model, self.examples, self.batch, progress=False))
        record = {"eval_loss": -found["logp_per_token"]}
        for key, mark in LOGGED.items():
            if found[mark] is not None:
                record[key] = found[mark]
        return record

    def keep_best(self, model, record: dict) -> None:
        """Write the model to `best_file`, if one is kept and this is better than the one there."""
        if self.best_file is None:
            return
        mark = record.get("eval_pair_accuracy", -record["eval_loss"])
        if self.best_mark is None or mark > self.best_mark:
            parameters = parallel.parameters(model)
            tensors = {name: p for name, p in parameters.items() if p.requires_grad}
            about = {"step": str(record["step"]), "mark": repr(mark)}
            write_tensors(self.best_file, tensors, about)
            self.best_mark = mark

    def resume(self) -> None:
        """Take up the best mark of a run that is continued.

        The file may be ahead of the checkpoint. Then the run comes to the same update again, which
        is not better than itself.
        """
        if self.best_file and self.best_file.exists():
            with opened(self.best_file) as file:
                self.best_mark = float(file.metadata()["mark"])

    def restore_best(self, model) -> int:
        """Give the model the parameters of its best update, and return that update's number."""
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with opened(self.best_file) as file:
            best = {name: file.get_tensor(name) for name in file.keys()}
            step = int(file.metadata()["step"])
        try:
            check_tensors(best, parameters)
        except ValueError as error:
            raise ValueError(f"{self.best_file} is not of this run ({error}); start again with "
                             "another --out") from None
        for name, p in parameters.items():
            p.data.copy_(best[name])
        return step


def held_out_of(flags, tokenizer, max_len: int) -> HeldOut | None:
    """The examples of --eval-data; None if it was not given.

    ValueError if there is nothing to take marks from, or for a flag that means nothing without.
    """
    if flags.eval_data is None:
        if flags.eval_every or flags.keep_best:
            raise ValueError("--eval-every and --keep-best look at held-out examples; give "
                             "--eval-data FILE too")
        return None
    examples, _ = load_examples(flags.eval_data, tokenizer, max_len, **reading(flags))
    if not any(e.answers[0] for e in examples):
        raise ValueError(f"no row of {flags.eval_data} has a wanted answer to take marks from; "
                         "give another --eval-data")
    best = Path(flags.out) / "best.safetensors" if flags.keep_best else None
    return HeldOut(examples, flags.eval_every or EVAL_EVERY, flags.micro_batch or 8, best)


def opened(path: Path):
    """The file of the best model. ValueError if it is gone or damaged."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}, the best model so far, cannot be read ({error}); start again with another "
            "--out") from None


# ---------------------------------------------------------------------------------------- the log


class Log:
    """log.jsonl of a run, a line per update. A line is also what TensorBoard is given.

    Of a run that is continued the first `start` updates stay. With held-out examples there is a
    line 0, of the model before training.
    """

    def __init__(self, out: Path, start: int, updates: int, held_out: HeldOut | None = None,
                 board: bool = False):
        self.start, self.updates, self.held_out = start, updates, held_out
        self.tokens, self.seconds = 0, 0.0          # since the run was started or continued
        self.file = self.board = None               # of several ranks, the first keeps the log
        if not parallel.first():
            return
        path = out / "log.jsonl"
        lines = finished_lines(path, start, 0 if held_out else 1)
        write_text(path, "".join(line + "\n" for line in lines))
        self.file = open(path, "a", encoding="utf-8")
        self.board = open_board(out / "tensorboard", start) if board else None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()

    def begin(self, model) -> None:
        """Before the first update: the marks of the model as it is, if it is not trained yet."""
        if self.held_out and self.start == 0:
            self.write({"step": 0, **self.held_out.marks(model)})
        elif self.held_out:
            self.held_out.resume()

    def add(self, model, record: dict) -> None:
        """After an update: its record, with marks on held-out examples where they are due."""
        step = record["step"]
        if self.held_out and (step % self.held_out.every == 0 or step == self.updates):
            record = {**record, **self.held_out.marks(model)}
            self.held_out.keep_best(model, record)
        self.tokens += record["tokens"]
        self.seconds += record["seconds"]
        self.write(record)

    def write(self, record: dict) -> None:
        """One line."""
        if self.file is None:
            return
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.board:
            for key, value in record.items():
                self.board.add_scalar(key, value, record["step"])

    def sync(self) -> None:
        """Whatever was written is on the disk when this returns."""
        if self.file:
            os.fsync(self.file.fileno())

    def state(self, record: dict, device: str) -> str:
        """What stands behind the progress bar."""
        parts = [f"loss {record['loss']:.4g}", f"{self.tokens / self.seconds:,.0f} answer tokens/s"]
        peak = used(device)
        if peak:
            parts.append(f"at most {peak / GIB:.2f} GiB")
        return ", ".join(parts)


def read_log(out: Path) -> list[dict]:
    """The records of a run folder."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def open_board(folder: Path, start: int):
    """A writer for TensorBoard. What an earlier start wrote beyond update `start` is forgotten."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1)


def check_board() -> None:
    """ValueError if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ValueError("--tensorboard needs a package that is not installed: pip install "
                         "tensorboard, or leave the flag out (log.jsonl has every number)"
                         ) from None


# ----------------------------------------------------------------------------------- at the end


def summary(out: Path, step: int) -> str:
    """ "pairs right .54 → .70, perplexity 4.31 → 5.02": the model of a step against the first."""
    seen = {record["step"]: record for record in read_log(out)}
    before, after = seen[0], seen[step]
    parts = []
    if "eval_pair_accuracy" in before:
        old, new = before["eval_pair_accuracy"], after["eval_pair_accuracy"]
        parts.append(f"pairs right {share(old)} → {share(new)}")
    old, new = before["eval_perplexity"], after["eval_perplexity"]
    parts.append(f"perplexity {size(old)} → {size(new)}")
    return ", ".join(parts)


def share(x: float) -> str:
    """.54, as shares are written in tables."""
    return f"{x:.2f}".removeprefix("0")


def size(x: float) -> str:
    """4.31, or 12,345 where decimals say nothing."""
    return f"{x:.2f}" if x < 100 else f"{x:,.0f}"


COLORS = {"loss": "#4d4d4d", "wanted": "#009e73", "wanted, held out": "#56b4e9",
          "others": "#d55e00", "the method's": "#4d4d4d", "held out, nats": "#56b4e9",
          "lr": "#8c8c8c"}


def draw_curves(out: Path, title: str) -> Path | None:
    """RUN/curves.png from RUN/log.jsonl; None for a run too short to have curves.

    Loss, log-probs, margins and learning rate; held-out marks stand beside those of training.
    """
    # Drawing is imported only now, for it takes a second and a run can do without.
    from minialign.lab import plot

    records = read_log(out)
    for record in records:
        if "eval_loss" in record:
            record["eval_logp"] = -record["eval_loss"]
    panels = [
        ("what is minimised", "loss ↓", {"loss": "loss"}),
        ("what the answers are given", "log-prob per token",
         {"wanted": "logp_wanted", "others": "logp_others", "wanted, held out": "eval_logp"}),
        ("how far wanted answers are ahead", "margin ↑",
         {"the method's": "margin", "held out, nats": "eval_margin"}),
        ("the size of a step", "learning rate", {"lr": "lr"}),
    ]
    drawn = []
    for name, ylabel, keys in panels:
        lines = {}
        for line, key in keys.items():
            points = [(r["step"], r[key]) for r in records if key in r]
            if len(points) > 1:
                lines[line] = [points]
        if lines:
            drawn.append((name, ylabel, lines))
    if not drawn:
        return None
    rows = [drawn[:2], drawn[2:]] if len(drawn) == 4 else [drawn]
    return plot.curves(rows, title, COLORS, folder=out, name="curves")


def try_to_draw(out: Path, title: str) -> None:
    """`draw_curves`, except that whatever goes wrong costs a sentence on stderr and not the run."""
    try:
        draw_curves(out, title)
    except Exception as error:
        print(f"the curves could not be drawn ({type(error).__name__}: {error}); "
              f"{out / 'log.jsonl'} has the numbers", file=sys.stderr)
