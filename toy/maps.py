"""Where lakes come from: gymnasium's maps, a few of ours, random mazes, text files. No physics; that is lake.py."""

from pathlib import Path

CORRIDOR = """
SFFHFFG
FFFHFFF
FFFHFFF
FFFHFFF
FFFHFFF
FFFFFFF
FFFFFFF
"""
TWO_PATHS = """
SFFFG
FHHHF
FFFFF
"""
OURS = {"corridor": CORRIDOR.split(), "two-path": TWO_PATHS.split()}
NAMES = ("4x4", "8x8", "corridor", "maze", "two-path")
LETTERS = "S (start), F (frozen), H (hole) and G (goal)"
INSTEAD = f"give one of {', '.join(NAMES)}, or a text file of {LETTERS}"
LARGEST = 256           # cells; the exact solution solves one linear system per policy with this many unknowns


class BadRequest(ValueError):
    """What was asked for cannot be done: a map that is no lake, say. The message says what, where, and what to ask for."""


def find(name: str, seed: int = 0, frozen: float = 0.8, size: int = 6) -> tuple[str, ...]:
    """The rows of a named map, of the maze that belongs to `seed`, or of a text file."""
    from gymnasium.envs.toy_text.frozen_lake import MAPS, generate_random_map

    if name == "maze":
        return tuple(generate_random_map(size, frozen, seed))
    if name in OURS or name in MAPS:
        return tuple(OURS.get(name) or MAPS[name])
    path = Path(name)
    if name and path.is_dir():
        raise BadRequest(f"{name} is a folder; give a text file with one row of the map per line, or one of {', '.join(NAMES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise BadRequest(f"no map and no file is called {name!r}; {INSTEAD}") from None
    except (UnicodeDecodeError, ValueError):
        raise BadRequest(f"{name!r} is not a text file; a map is a text file of {LETTERS}, one row per line") from None
    except OSError as error:
        raise BadRequest(f"cannot read {name}: {error.strerror}; {INSTEAD}") from None
    return check(text.removeprefix("\ufeff").rstrip().split("\n"), name)


def check(lines: list[str], where: str) -> tuple[str, ...]:
    """The rows of a lake that has one start, a goal, and a path between them. BadRequest says what else it found."""
    rows = [line.rstrip() for line in lines]
    if not any(rows):
        raise BadRequest(f"{where} is empty; write one row of the map per line, with the letters {LETTERS}")
    for number, row in enumerate(rows, start=1):
        if not row:
            raise BadRequest(f"{where} line {number} is empty; leave no empty lines in a map")
        for column, letter in enumerate(row, start=1):
            if letter not in "SFHG":
                hint = f"write {letter.upper()!r}" if letter.upper() in "SFHG" else f"use only {LETTERS}"
                raise BadRequest(f"{where} line {number}, column {column}: unknown letter {letter!r}; {hint}")
        if len(row) != len(rows[0]):
            lengths = f"{where} line {number} has {len(row)} letters, line 1 has {len(rows[0])}"
            raise BadRequest(f"{lengths}; make all rows equally long")
    if len(rows) * len(rows[0]) > LARGEST:
        size = f"{len(rows)} × {len(rows[0])} cells"
        raise BadRequest(f"{where} has {size}; the exact solution takes at most {LARGEST}: make it smaller")
    starts = [f"line {r + 1}, column {c + 1}" for r, row in enumerate(rows) for c, letter in enumerate(row) if letter == "S"]
    if len(starts) != 1:
        found = "no start" if not starts else f"{len(starts)} starts ({' and '.join(starts[:3])})"
        raise BadRequest(f"{where} has {found}; write exactly one S")
    if not any("G" in row for row in rows):
        raise BadRequest(f"{where} has no goal; write a G where the walk should end")
    if not connected(rows):
        raise BadRequest(f"{where}: no path leads from S to G without a hole; turn some H on the way into F")
    return tuple(rows)


def connected(rows: list[str]) -> bool:
    """Can one walk from S to G, up, down, left and right, without entering a hole?"""
    cells = {(r, c): letter for r, row in enumerate(rows) for c, letter in enumerate(row) if letter != "H"}
    seen = todo = {cell for cell, letter in cells.items() if letter == "S"}
    while todo:
        todo = {(r + dr, c + dc) for r, c in todo for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0))} & cells.keys() - seen
        seen = seen | todo
    return any(cells[cell] == "G" for cell in seen)
