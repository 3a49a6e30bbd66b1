"""What lets a killed run go on: its checkpoint, its log, its reference, its identity.

All that the next update depends on is in the checkpoint, so on the CPU a run that is resumed ends
bit for bit like one that never stopped.
"""

import hashlib
import json
import platform
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minialign import parallel
from minialign.data import Example
from minialign.files import clear_away, locked, write_json, write_tensors
from minialign.hf.folders import finish_killed_save
from minialign.hf.jsonfiles import parse_object, read_json
from minialign.hf.rowfiles import data_file
from minialign.hf.weights import check_tensors
from minialign.methods import Method
from minialign.optim import AdamW

# Flags that may differ when a run is resumed. Files may have moved: what is in them is compared by
# digest.
FREE = {"resume", "out", "model", "data", "negatives", "eval_data", "device", "threads",
        "checkpoint_every", "tensorboard", "made_with"}


# ---------------------------------------------------------------------------- the checkpoint


def save_checkpoint(path: Path, model, optimizer: AdamW, method: Method, step: int) -> None:
    """Everything the next update depends on, in one file that replaces the last one as a whole."""
    write_tensors(path, tensors_of(model, optimizer, method), {"step": str(step)})


def tensors_of(model, optimizer: AdamW, method: Method) -> dict[str, Tensor]:
    """What a checkpoint holds."""
    parameters = parallel.parameters(model)
    tensors = {f"model.{name}": p for name, p in parameters.items() if p.requires_grad}
    tensors |= {f"optimizer.{name}": x for name, x in optimizer.state_dict().items()}
    tensors |= {f"method.{name}": x for name, x in method.state_dict().items()}
    return tensors


def load_checkpoint(path: Path, model, optimizer: AdamW, method: Method) -> int:
    """Put everything back and return the number of finished updates.

    ValueError if the file is not a checkpoint of this run.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            step = int(file.metadata()["step"])
        if step < 1:
            raise ValueError(f"update {step}")
        check_tensors(state, tensors_of(model, optimizer, method))
        for name, p in parallel.parameters(model).items():
            if p.requires_grad:
                parallel.fill(p, state[f"model.{name}"])
        optimizer.load_state_dict(with_prefix(state, "optimizer."))
        method.load_state_dict(with_prefix(state, "method."))
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of this run ({error}); start again with another --out"
        ) from None
    return step


def with_prefix(state: dict, prefix: str) -> dict:
    """The tensors whose name begins so, under the rest of their name."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


# ---------------------------------------------------------------------------- an interrupt


class Interrupted(KeyboardInterrupt):
    """The user stopped the run, and what had been done by then is saved."""


class Stop:
    """Within its block, Ctrl-C and the SIGTERM that clusters send only set `asked`.

    So the update can be finished and saved. A second signal is not waited for; but torchrun, which
    hands signals on, may send several for one.
    """

    def __enter__(self) -> "Stop":
        self.asked = False
        self.handlers = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self.handlers.items():
            signal.signal(s, handler)

    def ask(self, *_) -> None:
        if self.asked and parallel.world() == 1:
            raise KeyboardInterrupt
        self.asked = True


# ---------------------------------------------------------------------------- the reference


def read_reference(path: Path, examples: list[Example]) -> bool:
    """Give the examples the reference log-probs that an earlier start of this run has stored.

    False if there are none, or if the file is damaged: the model is not trained yet, so it can be
    asked again.
    """
    try:
        stored = read_json(path)
    except ValueError:
        return False
    ref_logps = stored.get("ref_logps")
    if not ref_logps or stored.get("sha256") != digest(examples, ref_logps):
        return False
    for e, of_answers in zip(examples, ref_logps, strict=True):
        e.ref_logps = of_answers
    return True


def write_reference(path: Path, examples: list[Example]) -> None:
    """Store one list of log-probs per example, one for each of its answers."""
    ref_logps = [e.ref_logps for e in examples]
    write_json(path, {"sha256": digest(examples, ref_logps), "ref_logps": ref_logps})


def digest(examples: list[Example], ref_logps: list) -> str:
    """A digest of the numbers and of the answers that they belong to."""
    answers = [[e.prompt, e.answers] for e in examples]
    return hashlib.sha256(json.dumps([answers, ref_logps]).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------- the same run


def clear_run(out: Path) -> None:
    """Remove what a killed start has left unfinished in a run folder and in those inside."""
    clear_away(out)
    clear_away(out / "adapter")
    if (out / "model").is_dir():
        with locked(out / "model"):
            finish_killed_save(out / "model")
            clear_away(out / "model")


def fingerprint(path: str | None) -> str | None:
    """A digest of a data file, or of all files of a folder, so that a resumed run can tell whether
    it is still the same.
    """
    if path is None:
        return None
    path = data_file(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    hashed = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            hashed.update(hashlib.file_digest(opened, "sha256").digest())
    return hashed.hexdigest()[:16]


def made_with() -> dict[str, str]:
    """What else one wants to know of an old run: versions, revision, command line."""
    facts = {
        "minialign": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "minialign " + shlex.join(sys.argv[1:]),
    }
    revision = git_revision()
    if revision:
        facts["git"] = revision
    return facts


def version() -> str:
    """The installed version of the package; "not installed" in a bare checkout."""
    try:
        return metadata.version("minialign")
    except metadata.PackageNotFoundError:
        return "not installed"


def git_revision() -> str | None:
    """The commit of the checkout that the package lies in, "…-dirty" if files were changed since.

    None if it lies in none, or if there is no git.
    """
    try:
        # A virtual environment may lie in the checkout of something else, which does not track it.
        git("ls-files", "--error-unmatch", __file__)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def git(*words: str) -> str:
    """What git says about the folder of this file."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()


def check_same_run(out: Path, config: dict) -> None:
    """ValueError unless the flags and the data files are those that the run in `out` began with."""
    file = out / "config.json"
    if not file.is_file():
        raise ValueError(
            f"nothing to resume: {file} does not exist; drop --resume to start a run there"
        )
    try:
        old = read_json(file)
    except ValueError:
        raise ValueError(f"{file} is damaged; start again with another --out") from None
    for key in sorted(old.keys() | config.keys()):
        if key in FREE or old.get(key) == config.get(key):
            continue
        if key == "model_sha256":
            what = "the model given as --model has changed"
        elif key.endswith("sha256"):
            what = f"the file given as --{key.removesuffix('_sha256')} has changed"
        else:
            was, now = old.get(key, "not given"), config.get(key, "not given")
            what = f"--{key.replace('_', '-')} was {was} and is now {now}"
        raise ValueError(f"cannot resume {out}: {what} since the run began")


def finished_lines(log: Path, start: int, first: int = 1) -> list[str]:
    """The lines of the log that belong to the `start` updates in the checkpoint.

    `first` is the number of the first line: 0 if the marks before training stand there.
    ValueError if some lines are gone: a log with holes would mislead.
    """
    if start == 0:
        return []
    expected = list(range(first, start + 1))
    lines, steps = [], []
    try:
        if log.is_file():
            lines = log.read_text(encoding="utf-8").split("\n")[: len(expected)]
        for line in lines:
            steps.append(parse_object(line, str(log), "")["step"])
    except (ValueError, KeyError):
        steps = None
    if steps != expected:
        raise ValueError(
            f"{log} does not hold the {start} updates of the checkpoint beside it; "
            "start again with another --out"
        )
    return lines
