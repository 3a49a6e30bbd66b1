"""`python -m toy`: the comparison on one lake, or the study of labels. Imports torch late."""

import argparse
import math
import sys
import time

from minialign.files import can_write, write_json
from minialign.verbs.flags import add_flags, exit_status
from toy.flags import COMPARISON_ONLY, Flags


def run(flags: Flags) -> None:
    """Do what was asked for; the numbers also go to a file if --json names one."""
    began = time.time()
    can_write(flags.out, flags.json)        # now, and not after the work
    for name in COMPARISON_ONLY:
        if flags.study and getattr(flags, name) != getattr(Flags, name):
            raise ValueError(f"--{name} belongs to the comparison; a study chooses its own: "
                             "leave it out, or leave out --study")
    import torch

    from toy import compare, labels

    torch.set_num_threads(1)    # tensors this small are slower when threads share them
    found = labels.run(flags) if flags.study else compare.run(flags)
    if flags.json:
        write_json(flags.json, plain(found))
        print(f"numbers: {flags.json}")
    print(f"{time.time() - began:.0f} s")


def plain(x):
    """Nested results as JSON can hold them: tensors as lists, null for nan."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if hasattr(x, "tolist"):
        return plain(x.tolist())
    return None if isinstance(x, float) and not math.isfinite(x) else x


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 failed, 2 bad usage, 130 interrupted."""
    parser = argparse.ArgumentParser("python -m toy", description=Flags.__doc__, allow_abbrev=False)
    add_flags(parser, Flags)
    flags = Flags(**vars(parser.parse_args(argv)))
    return exit_status("toy", lambda: run(flags))


if __name__ == "__main__":
    sys.exit(main())
