"""Writing files so that a crash leaves the old file or the new one, never half of either.

Also the lock that keeps two runs out of one folder.
"""

import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:             # Windows has no such locks: there two runs are not kept apart
    fcntl = None

UNFINISHED = ".unfinished-"     # so begin the names of the folders in which files are prepared

# ------------------------------------------------------------------------------------- the lock


@contextmanager
def locked(folder, wait: bool = False) -> Iterator[None]:
    """Keep everybody else who asks for this lock out of the folder until the block ends.

    The system forgets the lock of a process that dies. A folder that does not exist is made, and
    goes again if the block leaves it empty. With `wait` the block begins once the folder is free;
    else ValueError if it is not.
    """
    folder = Path(folder)
    made, held = [], None
    try:
        while held is None:
            made = made or [place for place in (folder, *folder.parents) if not place.exists()]
            check_folder(folder)
            held = hold(folder, wait)
        yield
    finally:
        for place in made:
            try:
                place.rmdir()
            except OSError:
                break                           # there is something in it
        if held is not None:
            os.close(held)


def hold(path: Path, wait: bool = False, must: bool = False) -> int | None:
    """An open descriptor of a file or a folder that has its lock; closing it gives the lock back.

    None if the path was removed in the meantime. ValueError if somebody else has the lock. Some
    network file systems have no locks: there a path is free for everybody, unless it `must` be
    locked (OSError).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        lock(descriptor, path, wait, must)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock(descriptor: int, path: Path, wait: bool = False, must: bool = False) -> None:
    """Lock what is open as `descriptor`, until it is closed. `path` and the rest as in `hold`."""
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        what = "folder" if path.is_dir() else "file"
        raise ValueError(f"another run is using this {what}: {path}; wait until it is done, or "
                         "give another one") from None
    except OSError:
        if must:
            raise


# ---------------------------------------------------------------------------- files, whole or not


@contextmanager
def replacing(path) -> Iterator[Path]:
    """Give a file of the same name to write to, which takes the place of `path` at the end.

    If the block fails, or the disk is full (OSError), whatever stood at `path` is still there.
    ValueError for a folder or a device, which must not be replaced. A file that is replaced keeps
    its permissions.
    """
    path = Path(path)
    check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with private_folder(path.parent) as folder:
        # The file is made here to see what permissions the umask leaves to a new one.
        unfinished = folder / path.name
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
        old = path if path.is_file() else unfinished
        permissions = stat.S_IMODE(old.stat().st_mode)
        yield unfinished

        # Some libraries put a file of their own in its place, which its owner alone may read.
        unfinished.chmod(permissions)

        # Everything must be on the disk before the file gets its name. Windows wants the file
        # open for writing.
        with open(unfinished, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)


@contextmanager
def private_folder(inside: Path) -> Iterator[Path]:
    """A new hidden folder inside `inside`, for what is unfinished; it is gone when the block ends.

    Nobody can know its name beforehand. While its owner lives it is locked, so what killed
    processes have left behind can be told apart, and is cleared away first.
    """
    clear_away(inside)
    held = None
    while held is None:
        folder = inside / f"{UNFINISHED}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        held = hold(folder, wait=True)          # None: taken for one left behind before it was held
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def clear_away(inside: Path) -> None:
    """Remove what killed processes have left in a folder: unfinished files that nobody holds."""
    for folder in inside.glob(f"{UNFINISHED}*"):
        if fcntl is None or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            held = hold(folder, must=True)
        except (ValueError, OSError):
            continue                            # its owner lives, or it belongs to another user
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


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

    Processes that share a model must all come here; the first one writes.
    """
    # Imported here, because the rest of this file is for everybody, with torch or without.
    import torch

    from minialign import parallel

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

    if not parallel.first():
        for name in order:
            parallel.whole(tensors[name])
        return
    with replacing(path) as unfinished:
        try:
            with open(unfinished, "wb") as file:
                file.write(len(words).to_bytes(8, "little") + words)
                for name in order:
                    x = parallel.whole(tensors[name]).detach()
                    file.write(x.cpu().flatten().view(torch.uint8).numpy())
        except OSError as error:                    # it does not say which file, and `path` does
            raise OSError(error.errno, error.strerror, str(path)) from None
