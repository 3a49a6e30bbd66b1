"""Writing files so that a crash leaves the old file or the new one, never half of either."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to, which takes its place when the block ends.

    If the block fails, or the disk is full (OSError), whatever stood at `path` is still there.
    ValueError for a folder or a device, which must not be replaced.
    """
    path = Path(path)
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        # The file is made here to see what permissions the umask leaves to a new one.
        unfinished.touch()
        permissions = stat.S_IMODE(unfinished.stat().st_mode)
        yield unfinished

        # Some libraries put a file of their own in its place, which its owner alone may read.
        unfinished.chmod(permissions)

        # Everything must be on the disk before the file gets its name. Windows wants the file
        # open for writing.
        with open(unfinished, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """ValueError if something stands at `path` that is no file, and must not be replaced by one."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device; name a file")


def check_folder(path: Path) -> None:
    """ValueError if files cannot be written to this folder. It is made if it does not exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot make the folder {path} ({error.strerror}); give another one"
        ) from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"the folder {path} is read-only; give one that can be written")


def can_write(folder=None, file=None) -> None:
    """ValueError now, and not after the work, if its results could not be written.

    `folder` is to hold files; `file` is one ("-": standard output). None: nothing goes there.
    """
    if folder is not None:
        check_folder(Path(folder))
    if file is not None and file != "-":
        check_folder(Path(file).parent)
        check_file(Path(file))


def write_text(path, text: str) -> None:
    """Write a whole text file."""
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


SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}


def write_tensors(path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """Write {name: tensor} as one safetensors file; OSError if the system refuses.

    safetensors' own writer first collects all tensors on the CPU, which for the checkpoint of an
    8 B model takes 75 GB of memory. Here one tensor at a time is there. The file begins with the
    length of its header, 8 bytes, and the header, JSON that says where each tensor begins and ends.
    """
    # Imported here, because the rest of this file is for everybody, with torch or without.
    import torch

    # Wide numbers stand before narrow ones, so that all lie where a processor reads them fast.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name in order:
        x = tensors[name]
        begin, end = end, end + x.nbytes
        dtype = SAFETENSORS_NAMES[str(x.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [begin, end]}
    words = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)                                  # a multiple of 8

    with replacing(path) as unfinished:
        try:
            with open(unfinished, "wb") as file:
                file.write(len(words).to_bytes(8, "little") + words)
                for name in order:
                    file.write(tensors[name].detach().cpu().flatten().view(torch.uint8).numpy())
        except OSError as error:                    # it does not say which file, and `path` does
            raise OSError(error.errno, error.strerror, str(path)) from None
