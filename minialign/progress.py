"""What long work shows on stderr: a bar on a terminal, elsewhere a plain line every 30 seconds.

A bar redraws itself several times a second. In the log of a batch job that would be megabytes, so
there the same numbers come as lines. Of several processes that torchrun has started the first shows
what it does. No torch here.
"""

import os
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

EVERY = 30.0            # seconds between two lines
LINE = "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def bar(total: int, what: str, unit: str = "it", done: int = 0, stay: bool = True,
        smoothing: float = 0.3, delay: float = 0.0):
    """A bar to use in a `with` block: `update()` moves it, `set_postfix_str` writes behind it.

    done       how much of the total had been done before
    stay       leave the bar on the terminal when the block ends
    smoothing  the weight of the latest updates in the speed: 0 is the mean over the whole work
    delay      seconds in which the bar is not shown yet
    """
    if os.environ.get("RANK", "0") != "0":              # torchrun numbers its processes
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, desc=what, unit=unit, leave=stay,
                    smoothing=smoothing, delay=delay)
    return Lines(total, what, unit, done)


def tracked(things, what: str, show: bool = True) -> Iterable:
    """The same things, with a bar that says how many of them are done."""
    if not show:
        yield from things
        return
    with bar(len(things), what, stay=False) as shown:
        for thing in things:
            yield thing
            shown.update()


class Lines:
    """The part of tqdm's interface that is used here, for a stderr that is no terminal.

    Work that takes less than EVERY seconds writes nothing.
    """

    def __init__(self, total: int, what: str, unit: str, done: int):
        self.total, self.what, self.unit = total, what, unit
        self.before = self.done = self.told = done
        self.postfix = ""
        self.began = self.last = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_) -> None:
        """The state at the end, if there were lines before and something has happened since."""
        if self.told > self.before and self.done > self.told:
            self.tell()

    def update(self, n: int = 1) -> None:
        self.done += n
        if time.monotonic() - self.last >= EVERY:
            self.tell()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.postfix = text

    def set_description(self, what: str) -> None:
        self.what = what

    def tell(self) -> None:
        """Write one line."""
        self.told, self.last = self.done, time.monotonic()
        line = tqdm.format_meter(
            self.done, self.total, self.last - self.began, initial=self.before, unit=self.unit,
            prefix=f"{self.what}: ", postfix=self.postfix, bar_format=LINE)
        print(line, file=sys.stderr, flush=True)
