"""Where lakes come from: gymnasium's maps, two of ours, random mazes, text files. No physics here.

A map is a tuple of rows, strings of S (start), F (frozen), H (hole) and G (goal). Whatever is wrong
with one is said here, in one sentence, as a ValueError.
"""

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
LARGEST = 256           # cells; the exact solution has this many unknowns per policy


def find(name: str, seed: int = 0, frozen: float = 0.8, size: int = 6) -> tuple[str, ...]:
    """The rows of a named map, of the maze that belongs to `seed`, or of a text file.

    `frozen` is the share of frozen cells in a maze of size × size.
    """
    from gymnasium.envs.toy_text.frozen_lake import MAPS, generate_random_map

    if name == "maze":
        return tuple(generate_random_map(size, frozen, seed))
    if name in OURS or name in MAPS:
        return tuple(OURS.get(name) or MAPS[name])

    # Any other name is a file.
    path = Path(name)
    if name and path.is_dir():
        raise ValueError(f"{name} is a folder; give a text file with one row of the map per line, "
                         f"or one of {', '.join(NAMES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ValueError(f"no map and no file is called {name!r}; {INSTEAD}") from None
    except ValueError:                          # not UTF-8, or a name no file can have
        raise ValueError(f"{name!r} is not a text file; a map is a text file of {LETTERS}, "
                         "one row per line") from None
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}; {INSTEAD}") from None
    return check(text.removeprefix("\ufeff").rstrip().split("\n"), name)


def check(lines: list[str], where: str) -> tuple[str, ...]:
    """The rows of a lake that has one start, a goal, and a path between them."""
    rows = [line.rstrip() for line in lines]
    if not any(rows):
        raise ValueError(f"{where} is empty; write one row of the map per line, "
                         f"with the letters {LETTERS}")
    starts = []
    for number, row in enumerate(rows, start=1):
        if not row:
            raise ValueError(f"{where} line {number} is empty; leave no empty lines in a map")
        for column, letter in enumerate(row, start=1):
            place = f"line {number}, column {column}"
            if letter == "S":
                starts.append(place)
            if letter not in "SFHG":
                upper = letter.upper()
                hint = f"write {upper!r}" if upper in "SFHG" else f"use only {LETTERS}"
                raise ValueError(f"{where} {place}: unknown letter {letter!r}; {hint}")
        if len(row) != len(rows[0]):
            raise ValueError(f"{where} line {number} has {len(row)} letters, line 1 has "
                             f"{len(rows[0])}; make all rows equally long")
    if len(rows) * len(rows[0]) > LARGEST:
        raise ValueError(f"{where} has {len(rows)} × {len(rows[0])} cells; the exact solution "
                         f"takes at most {LARGEST}: make it smaller")
    if not starts:
        raise ValueError(f"{where} has no start; write exactly one S")
    if len(starts) > 1:
        raise ValueError(f"{where} has {len(starts)} starts ({' and '.join(starts[:3])}); "
                         "write exactly one S")
    if not any("G" in row for row in rows):
        raise ValueError(f"{where} has no goal; write a G where the walk should end")
    if not connected(rows):
        raise ValueError(f"{where}: no path leads from S to G without a hole; "
                         "turn some H on the way into F")
    return tuple(rows)


def connected(rows: list[str]) -> bool:
    """Can one walk from S to G, up, down, left and right, without entering a hole?"""
    cells = {}
    for r, row in enumerate(rows):
        for c, letter in enumerate(row):
            if letter != "H":
                cells[r, c] = letter
    todo = [cell for cell in cells if cells[cell] == "S"]
    seen = set(todo)
    while todo:
        r, c = todo.pop()
        for beside in ((r, c + 1), (r, c - 1), (r + 1, c), (r - 1, c)):
            if beside in cells and beside not in seen:
                seen.add(beside)
                todo.append(beside)
    return any(cells[cell] == "G" for cell in seen)
