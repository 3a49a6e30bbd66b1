"""A frozen dataclass becomes a command line; an error becomes one sentence and an exit status.

The fields are declared with `settings.setting`. Nothing outside verbs/ and toy/ knows argparse.
This file imports no torch.
"""

import argparse
import errno
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import get_args

from minialign.hf.rows import parse_columns
from minialign.settings import BOUNDS, bounds_in_words, is_required, out_of_bounds

# The flags that say how --data is read, in every verb that reads examples.
COLUMNS = (
    "what the columns of the data mean, where they have other names: "
    "prompt=question,completion=answer; prompt=instruction+input joins two with a blank line"
)
CHAT = "make messages of strings: a user's of each prompt, an assistant's of each answer"
ALL_TURNS = (
    "an example for every assistant message of a conversation; unless given, messages train the "
    "last one alone"
)

DTYPES = ("float32", "bfloat16", "float16", "float64")      # in which a model can be opened
TRAIN_DTYPES = ("float32", "bfloat16")                      # in which it can be trained


def add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Give the parser every field of the dataclass, each with its type, its default and its reason.

    Fields that carry the same `section` in their metadata stand under that title in -h.
    """
    sections = {None: parser}
    for f in fields(cls):
        title = f.metadata.get("section")
        if title not in sections:
            sections[title] = parser.add_argument_group(title)
        if f.metadata.get("positional"):
            add_word(sections[title], f)
        else:
            add_flag(sections[title], f)


def add_word(parser, f: Field) -> None:
    """A field that is given by its place on the command line, without a flag."""
    how = {"metavar": f.name.upper(), "help": f.metadata["help"]}
    if "nargs" in f.metadata:
        how["nargs"] = f.metadata["nargs"]
    parser.add_argument(f.name, **how)


def add_flag(parser, f: Field) -> None:
    """A field that is given as --its-name VALUE; a bool is given as --its-name alone."""
    kind = kind_of(f)
    how = {"dest": f.name, "required": is_required(f)}
    how["help"] = f.metadata["help"].replace("%", "%%")
    if f.default is not MISSING:
        how["default"] = f.default
        if f.default is not None and kind is not bool:
            how["help"] += f" [{kind.__name__}, default {f.default}]"

    # A bool that is off until it is asked for needs one flag. Any other one also needs the
    # opposite, --no-its-name.
    if kind is bool and f.default is False:
        how["action"] = "store_true"
    elif kind is bool:
        how["action"] = argparse.BooleanOptionalAction
    else:
        how["type"] = reader(f, kind)
        if "choices" in f.metadata:
            how["choices"] = f.metadata["choices"]
        how["metavar"] = f.metadata.get("metavar")
        if how["metavar"] is None and "choices" not in how:
            how["metavar"] = kind.__name__.upper()
    parser.add_argument("--" + flag_name(f.name), **how)


def flag_name(field_name: str) -> str:
    """micro_batch → micro-batch"""
    return field_name.replace("_", "-")


def kind_of(f: Field) -> type:
    """What one value on the command line is read as: int for int, int | None and list[int]."""
    for kind in get_args(f.type):
        if kind is not NoneType:
            return kind
    return f.type


def reader(f: Field, kind: type) -> Callable[[str], object]:
    """What argparse calls to turn text into a value: the type, or a check of bounds around it."""
    if not any(name in f.metadata for name in BOUNDS):
        return kind

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if out_of_bounds(f, value):
            allowed = bounds_in_words(f.metadata)
            raise argparse.ArgumentTypeError(f"{text} is out of range, give a number {allowed}")
        return value

    return read


def reading(flags) -> dict:
    """The arguments of `load_examples` and `read_rows` that say what the columns mean."""
    columns = parse_columns(flags.columns)
    return {"columns": columns, "chat": flags.chat, "all_turns": flags.all_turns}


def exit_status(prog: str, work: Callable[[], None]) -> int:
    """Do the work; if it fails, say in one sentence what went wrong.

    Returns 0 for done, 1 for failed, 2 for wrong usage or input, 130 for interrupted. In this
    project ValueError and the errors of files mean that the user gave something unusable, and their
    message says what to give instead. Any other error is our mistake and keeps its traceback.
    """
    try:
        with terminable():
            work()
        return 0
    except KeyboardInterrupt as stop:
        say(f"\n{prog}: {str(stop) or 'interrupted'}", by_all=False)
        return 130
    except BrokenPipeError:
        # Whoever read our output, `head` for instance, has seen enough. What Python still has to
        # flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        say(f"{prog}: error: {printable(str(error))}")
        return 1 if machine_failed(error) else 2
    except (MemoryError, RuntimeError) as error:
        if another_is_gone(error):
            why = "what it said, or its exit code below, tells why"
            print(f"{prog}: another process of this run has ended; {why}", file=sys.stderr)
            return 1
        if not out_of_memory(error):
            raise
        cure = "a smaller --batch needs less (train: --micro-batch, --pass-tokens)"
        say(f"{prog}: out of memory; {cure}")
        return 1
    except TypeError as error:
        # Apple's GPUs have no float64, in which DFT keeps its averages and top-p adds up.
        if "MPS" not in str(error) or "float64" not in str(error):
            raise
        say(f"{prog}: error: this computes in float64, which Apple's GPUs have not; "
            "give --device cpu")
        return 2
    except FloatingPointError as error:
        # The run was asked for correctly, and its numbers left the range of numbers.
        say(f"{prog}: {error}")
        return 1


def say(sentence: str, by_all: bool = True) -> None:
    """On stderr. Of several processes each may have its own to say, or else the first one speaks.

    What all of them have to say is read once: those that give way are ended before they speak.
    """
    from minialign import parallel

    if by_all:
        parallel.give_way()
    if by_all or parallel.first():
        print(sentence, file=sys.stderr)


@contextmanager
def terminable() -> Iterator[None]:
    """Within this block the SIGTERM that clusters send is like Ctrl-C."""
    def stop(*_) -> None:
        raise KeyboardInterrupt("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield                                   # Python handles signals in its main thread alone
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def printable(text: str) -> str:
    """The text without the control characters that could move the cursor or write elsewhere."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def machine_failed(error: Exception) -> bool:
    """Did the machine fail (a full disk, a dead process)? If not, the request was at fault."""
    if isinstance(error, ChildProcessError):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT)


def out_of_memory(error: Exception) -> bool:
    """Did an allocation fail? On the CPU torch raises a RuntimeError, known by its text alone."""
    if isinstance(error, MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def another_is_gone(error: Exception) -> bool:
    """Did a process that this one works together with end? gloo tells it by its text alone."""
    ends = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return "gloo" in str(error) and any(end in str(error) for end in ends)
