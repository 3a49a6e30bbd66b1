"""Writing files so that a crash leaves the old file or the new one, never half of either."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.umask(UMASK := os.umask(0))                      # the only way to read it is to set it


@contextmanager
def replacing(path) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write to; when the block ends well,
    it is flushed to disk and takes the place of `path`.

    OSError if the folder cannot be written or the disk is full; whatever stood at `path` is then still there. ValueError for a
    folder or a device, which must not be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'device'}; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        os.chmod(unfinished, 0o666 & ~UMASK)    # libraries that write through a private file leave it readable by its owner alone
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def can_write(folder=None, file=None) -> None:
    """ValueError now, and not after the work, if results could not be written to this folder or file ("-": standard output)."""
    for place in (None if folder is None else Path(folder), None if file in (None, "-") else Path(file).parent):
        if place is not None:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cannot make the folder {place} ({error.strerror}); give another one") from None
            if not os.access(place, os.W_OK):
                raise ValueError(f"the folder {place} is read-only; give one that can be written")
    if file not in (None, "-") and Path(file).exists() and not Path(file).is_file():
        raise ValueError(f"{file} is a {'folder' if Path(file).is_dir() else 'device'}; name a file")


def write_tensors(path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """{name: tensor} as one safetensors file. OSError, whatever safetensors calls it, if the system refuses."""
    from safetensors import (
        SafetensorError,  # imported here: the rest of this file is for everybody, torch or not
    )
    from safetensors.torch import save_file

    with replacing(path) as unfinished:
        try:
            save_file({name: x.detach().contiguous() for name, x in tensors.items()}, unfinished, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from None


def write_text(path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path, value, indent: int | None = None) -> None:
    """Write a value as JSON, in one line unless there is an `indent`.

    The path "-" stands for standard output, as in the --json flags.
    """
    text = json.dumps(value, indent=indent) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        write_text(path, text)
