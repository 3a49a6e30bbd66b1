"""Runs that have been done: what they measured, kept in a file beside the base models.

Ten seeds of all studies take an hour. A run is a function of its `Run`, its seed and the code, so
each is done once, and a command that was interrupted goes on where it was.
"""

import json
from pathlib import Path

from minialign.lab.arena import Run
from minialign.lab.small import MADE_BY, PACKAGE, digest

# The files whose code a run depends on: after a change in one of them it is done anew.
RUN_BY = (
    *MADE_BY, "generate.py", "lab/arena.py", "lab/places.py", "methods/__init__.py",
    "methods/asft.py", "methods/dft.py", "methods/ift.py", "methods/kto.py",
    "methods/preference.py", "methods/rrhf.py",
)


class Known:
    """{(run, seed): marks}; the run None stands for the base model.

    A run whose method is a class of a study's own is kept in memory alone: its code is in no file
    of RUN_BY.
    """

    def __init__(self, folder: Path):
        self.path = folder / f"runs-{digest(PACKAGE, RUN_BY)}.jsonl"
        self.marks = {}
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                run, seed, marks = json.loads(line)
            except ValueError:
                continue            # empty, or cut off when the process was stopped
            self.marks[run, seed] = marks

    def __contains__(self, key: tuple[Run | None, int]) -> bool:
        run, seed = key
        return (repr(run), seed) in self.marks

    def __getitem__(self, key: tuple[Run | None, int]) -> dict:
        run, seed = key
        return self.marks[repr(run), seed]

    def add(self, run: Run | None, seed: int, marks: dict) -> None:
        """Remember what a run has measured, and write it down."""
        if (run, seed) in self:
            return
        self.marks[repr(run), seed] = marks
        if run is not None and not isinstance(run.method, str):
            return

        # A line begins with its line feed, so that one that was cut off spoils no other.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([repr(run), seed, marks]))
