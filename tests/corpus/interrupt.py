"""`python interrupt.py N VERB …`: a verb, killed before the N-th thing it does to a file.

Counted are the calls of Python that open a file for writing, rename, remove, link, make a folder or
wait for the disk, but none on devices. 0: it is not killed. Its worker processes are not counted.
What they do is `cache FOLDER`, which makes a base model after a few updates.
"""

import os
import signal
import sys
from pathlib import Path

COUNTED = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


def main() -> int:
    place = int(sys.argv[1])
    count = 0

    def note() -> None:
        nonlocal count
        count += 1
        if count == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, args: tuple) -> None:
        if event == "open":
            path, mode, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ours = isinstance(path, (str, bytes)) and not os.fsdecode(path).startswith("/dev/")
            if writes and ours and "__pycache__" not in os.fsdecode(path):
                note()
        elif event in COUNTED and "__pycache__" not in str(args[0]):
            note()

    # Imports write caches of their own, which are not what is tested.
    sys.dont_write_bytecode = True
    from minialign.__main__ import main as minialign
    from minialign.lab import small

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        note()
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(hear)
    if sys.argv[2] == "cache":
        small.COURSES, status = (5,), 0
        small.base_model(0, Path(sys.argv[3]))
    else:
        status = minialign(sys.argv[2:])
    print(count, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
