"""`python -m toy`: the comparison on one lake, or a study. Torch is imported when work starts."""

import argparse
import json
import sys
import time
from dataclasses import replace

from minialign.files import can_write, write_text
from minialign.verbs.flags import add_flags, exit_status
from toy.flags import COMPARISON_ONLY, Flags


def parse(argv: list[str] | None) -> Flags:
    """The command line; argparse exits with status 2 on anything it does not know."""
    parser = argparse.ArgumentParser("python -m toy", description=Flags.__doc__, allow_abbrev=False)
    add_flags(parser, Flags)
    return Flags(**vars(parser.parse_args(argv)))


def run_studies(flags: Flags) -> dict:
    """One study or all of them, each with as many seeds as its sentence needs unless told."""
    from toy.studies import STUDIES

    for name in COMPARISON_ONLY:
        if getattr(flags, name) != getattr(Flags, name):
            raise ValueError(f"--{name} belongs to the comparison; a study chooses its own: "
                             "leave it out, or leave out --study")
    found = {}
    for name in STUDIES if flags.study == "all" else [flags.study]:
        study = STUDIES[name]
        found[name] = study.run(replace(flags, seeds=flags.seeds or study.SEEDS))
        print()
    return found


def run(flags: Flags) -> None:
    """Do what was asked for; the numbers also go to a file if --json names one."""
    began = time.time()
    can_write(flags.out, flags.json)        # now, and not after the work
    import torch

    from toy import compare
    from toy.report import plain

    torch.set_num_threads(1)    # tensors this small are slower when threads share them
    found = run_studies(flags) if flags.study else compare.run(flags)
    if flags.json:
        write_text(flags.json, json.dumps(plain(found)))
        print(f"numbers: {flags.json}")
    print(f"{time.time() - began:.0f} s")


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 failed, 2 bad usage, 130 interrupted."""
    flags = parse(argv)
    return exit_status("toy", lambda: run(flags))


if __name__ == "__main__":
    sys.exit(main())
