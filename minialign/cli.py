"""One frozen dataclass per command becomes its command line; errors become one sentence and an exit status. No torch here."""

import argparse
import errno
import sys
from dataclasses import MISSING, field, fields
from typing import get_args


def arg(default, help: str, choices=None):
    """A dataclass field that is also a flag. `default` ... (Ellipsis) means the flag must be given."""
    metadata = {"help": help, "choices": choices}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, cls) -> None:
    """Every field of the dataclass as --its-name, with type, default and reason in -h."""
    for f in fields(cls):
        required = f.default is MISSING
        kind = next((t for t in get_args(f.type) if t is not type(None)), f.type)
        help = f.metadata["help"].replace("%", "%%")
        if not required and f.default is not None and kind is not bool:
            help += f" (default {f.default})"
        options = {"dest": f.name, "help": help, "required": required, "default": None if required else f.default}
        if kind is bool:
            options["action"] = "store_true" if f.default is False else argparse.BooleanOptionalAction
        else:
            choices = f.metadata["choices"]
            options |= {"type": kind, "choices": choices, "metavar": None if choices else kind.__name__.upper()}
        parser.add_argument("--" + f.name.replace("_", "-"), **options)


def parser_for(prog: str, cls, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description=description, allow_abbrev=False)
    add_flags(parser, cls)
    return parser


def exit_status(prog: str, work) -> int:
    """Run work() and say in one sentence what went wrong: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted.

    In this project ValueError and the file errors mean that the user gave something unusable, and say what to give instead.
    Anything else is our mistake and keeps its traceback.
    """
    try:
        work()
        return 0
    except KeyboardInterrupt as stop:
        print(f"\n{prog}: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()                      # the reader of our output left (… | head): nobody is there to be told
        return 1
    except (ValueError, OSError) as error:
        failed = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT)
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1 if failed else 2
    except RunFailed as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1


class RunFailed(RuntimeError):
    """A run that was asked for correctly and went wrong all the same; the message says how and what is left."""
