"""One frozen dataclass per command becomes its command line; errors become one sentence and an exit status. No torch here."""

import argparse
import errno
import os
import sys
from dataclasses import MISSING, field, fields
from typing import get_args


def arg(default, help: str, **how):
    """A dataclass field that is also a flag. `default` ... (Ellipsis) means that the flag must be given.

    how: choices, metavar, for numbers the bounds least, most (included) and above (not included); positional=True for a word
    that is given without a flag.
    """
    metadata = {"help": help, **how}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, cls) -> None:
    """Every field of the dataclass as --its-name, with type, default and reason in -h."""
    for f in fields(cls):
        how, required = dict(f.metadata), f.default is MISSING
        if how.pop("positional", False):
            parser.add_argument(f.name, metavar=f.name.upper(), **how)
            continue
        bounds = {name: how.pop(name) for name in ("least", "most", "above") if name in how}
        kind = next((t for t in get_args(f.type) if t is not type(None)), f.type)
        how["help"] = how["help"].replace("%", "%%")
        if not required and f.default is not None and kind is not bool:
            how["help"] += f" [{kind.__name__}, default {f.default}]"
        if kind is bool:
            how["action"] = "store_true" if f.default is False else argparse.BooleanOptionalAction
        else:
            how["type"] = within(kind, **bounds) if bounds else kind
            how.setdefault("metavar", None if how.get("choices") else kind.__name__.upper())
        parser.add_argument("--" + f.name.replace("_", "-"), dest=f.name, required=required,
                            default=None if required else f.default, **how)


def within(kind, least=None, most=None, above=None):
    """A reader for argparse of numbers within bounds."""
    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None
        inside = (least is None or value >= least) and (most is None or value <= most) and (above is None or value > above)
        if not (inside and abs(value) < 1e15):
            words = [f"above {above}"] * (above is not None) + [f"from {least}"] * (least is not None)
            words += [f"up to {1e15 if most is None else most:g}"]
            raise argparse.ArgumentTypeError(f"{text} is out of range, give a number {' '.join(words)}")
        return value
    return read


def exit_status(prog: str, work) -> int:
    """Run work() and say in one sentence what went wrong: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.

    In this project ValueError and the file errors mean that the user gave something unusable, and say what to give instead.
    Anything else is our mistake and keeps its traceback.
    """
    try:
        work()
        return 0
    except KeyboardInterrupt as stop:
        print(f"\n{prog}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # whoever read our output, say `head`, has seen enough
        return 1
    except (ValueError, OSError) as error:
        failed = isinstance(error, ChildProcessError) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EIO, errno.EDQUOT)
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1 if failed else 2
    except (MemoryError, RuntimeError) as error:                            # torch has no class of its own for the CPU's
        if not (isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)):
            raise
        print(f"{prog}: out of memory; a smaller --batch needs less (train: --micro-batch, --pass-tokens)", file=sys.stderr)
        return 1
    except FloatingPointError as error:         # a run that was asked for correctly and diverged
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
