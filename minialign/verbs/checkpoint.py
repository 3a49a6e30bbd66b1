"""What lets a killed run go on: its checkpoint, its log, its reference, its identity.

All that the next update depends on is in the checkpoint, so on the CPU a run that is resumed ends
bit for bit like one that never stopped.
"""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from minialign.data import Example
from minialign.files import write_json, write_tensors
from minialign.hf.rowfiles import data_file
from minialign.methods import Method
from minialign.optim import AdamW

# Flags that may differ when a run is resumed. Files may have moved: what is in them is compared by
# digest.
FREE = {"resume", "out", "model", "data", "negatives", "eval_data", "device", "threads",
        "checkpoint_every", "tensorboard", "made_with"}


# ---------------------------------------------------------------------------- the checkpoint


def save_checkpoint(path: Path, model, optimizer: AdamW, method: Method, step: int) -> None:
    """Everything the next update depends on, in one file that replaces the last one as a whole."""
    tensors = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {f"optimizer.{name}": x for name, x in optimizer.state_dict().items()}
    tensors |= {f"method.{name}": x for name, x in method.state_dict().items()}
    write_tensors(path, tensors, {"step": str(step)})


def load_checkpoint(path: Path, model, optimizer: AdamW, method: Method) -> int:
    """Put everything back and return the number of finished updates.

    ValueError if the file is not a checkpoint of this run.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            step = int(file.metadata()["step"])
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.data.copy_(state[f"model.{name}"])
        optimizer.load_state_dict(with_prefix(state, "optimizer."))
        method.load_state_dict(with_prefix(state, "method."))
    except (SafetensorError, KeyError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of this run ({error}); start again with another --out"
        ) from None
    return step


def with_prefix(state: dict, prefix: str) -> dict:
    """The tensors whose name begins so, under the rest of their name."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


# ---------------------------------------------------------------------------- the reference


def read_reference(path: Path, examples: list[Example]) -> bool:
    """Give the examples the reference log-probs that an earlier start of this run has stored.

    False if there are none, or if the file is damaged: the model is not trained yet, so it can be
    asked again.
    """
    stored = []
    try:
        for e, ref_logps in zip(examples, json.loads(path.read_text()), strict=True):
            stored.append([float(l) for _, l in zip(e.answers, ref_logps, strict=True)])
    except (OSError, ValueError, TypeError):
        return False
    for e, ref_logps in zip(examples, stored, strict=True):
        e.ref_logps = ref_logps
    return True


def write_reference(path: Path, examples: list[Example]) -> None:
    """Store one list of log-probs per example, one for each of its answers."""
    write_json(path, [e.ref_logps for e in examples])


# ---------------------------------------------------------------------------- the same run


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
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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
    try:
        old = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"nothing to resume: {file} does not exist; drop --resume to start a run there"
        ) from None
    except ValueError:
        old = None
    if not isinstance(old, dict):
        raise ValueError(f"{file} is damaged; start again with another --out")
    for key in sorted(old.keys() | config.keys()):
        if key in FREE or old.get(key) == config.get(key):
            continue
        if key.endswith("sha256"):
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
    lines = []
    if log.exists():
        lines = log.read_text(encoding="utf-8").split("\n")[: len(expected)]
    try:
        steps = [json.loads(line)["step"] for line in lines]
    except (ValueError, TypeError, KeyError):
        steps = None
    if steps != expected:
        raise ValueError(
            f"{log} does not hold the {start} updates of the checkpoint beside it; "
            "start again with another --out"
        )
    return lines
