"""Lessons as pages to read: prose, code, what the code printed, and the pictures.

    python lessons/pages.py         every lesson
    python lessons/pages.py 03      one of them

It runs the cells of a lesson with the exercises solved, and writes lessons/pages/03_push.md with
its pictures beside it. The solution is folded. The last line of a page has a digest of the lesson
it was made from, and a test compares the two, so that no page is out of date.
"""

import hashlib
import io
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lessons import check

PAGES = check.HERE / "pages"
WIDEST = 1400           # pixels of a picture on a page
COLOURS = 256           # of a picture: enough for lines and bars, in a third of the bytes


@dataclass
class Cell:
    """One cell of a lesson."""

    prose: bool
    line: int           # the number of its first line in the file, counted from 0
    text: str


def cells(source: str) -> list[Cell]:
    """A lesson cut at its lines `# %%` (code) and `# %% [markdown]` (prose)."""
    found = []
    for number, line in enumerate(source.split("\n")):
        if line.startswith("# %%"):
            found.append(Cell("[markdown]" in line, number + 1, ""))
        else:
            found[-1].text += line + "\n"
    return found


def digest(source: str) -> str:
    """Sixteen characters that change with the source."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def stamp(lesson: Path) -> str:
    """The last line of a lesson's page."""
    source = lesson.read_text(encoding="utf-8")
    return f"<!-- made by lessons/pages.py from {lesson.name} {digest(source)} -->"


def page(lesson: Path, flags: tuple[str, ...] = ("--solution",)) -> str:
    """Run a lesson and return its page; the pictures go to PAGES."""
    source = lesson.read_text(encoding="utf-8")
    sys.argv = [str(lesson), *flags]
    names = {"__name__": "__main__", "__file__": str(lesson)}
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        check.OUT = Path(folder)
        for cell in cells(source):
            if cell.prose:
                parts.append(re.sub(r"^# ?", "", cell.text, flags=re.MULTILINE))
            elif cell.text.lstrip().startswith("# region Solution"):
                parts.append(folded(cell.text))
            else:
                parts.append(fenced(cell.text, "python"))
                parts += run(cell, lesson, names)
    note = note_on(lesson)
    return "\n\n".join(part.strip("\n") for part in [*parts, note, stamp(lesson)]) + "\n"


def run(cell: Cell, lesson: Path, names: dict) -> list[str]:
    """Run a code cell; what it printed and drew, as parts of a page."""
    printed = io.StringIO()
    before = set(check.OUT.iterdir())
    # Empty lines in front give an error message the right line of the lesson.
    code = compile("\n" * cell.line + cell.text, str(lesson), "exec")
    with redirect_stdout(printed):
        exec(code, names)
    said = re.sub(r"^picture: .*\n", "", printed.getvalue(), flags=re.MULTILINE)
    parts = [fenced(said, "text")] if said.strip() else []
    for path in sorted(set(check.OUT.iterdir()) - before):
        if path.suffix in (".png", ".gif"):
            parts.append(f"![{path.stem}]({kept(path).name})")
    return parts


def kept(path: Path) -> Path:
    """Copy a picture to PAGES, smaller if it is a PNG."""
    PAGES.mkdir(exist_ok=True)
    copy = PAGES / path.name
    if path.suffix != ".png":
        copy.write_bytes(path.read_bytes())
        return copy
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    # Colours that cover all of the picture, moved to the means of what is near: red lines stay red.
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, 2, dither=Image.Dither.NONE)
    few.save(copy, optimize=True)
    return copy


def fenced(text: str, language: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").split("\n")]
    return "\n".join([f"```{language}", *lines, "```"])


def folded(text: str) -> str:
    """The solution, behind a line to click on."""
    code = re.sub(r"^# (region|endregion).*\n?", "", text, flags=re.MULTILINE)
    opening = "<details><summary>Solution: unfold when you have tried</summary>"
    return f"{opening}\n\n{fenced(code, 'python')}\n\n</details>"


def note_on(lesson: Path) -> str:
    """How to run what is to be read here."""
    command = f"python lessons/{lesson.name}"
    return (f"---\nThis page shows a run of [`{lesson.name}`](../{lesson.name}) with the exercises "
            f"solved; `{command}` runs it with yours, from [`mine.py`](../mine.py).")


def main(numbers: list[str]) -> None:
    lessons = sorted(check.HERE.glob("[01][0-9]_*.py"))
    known = [lesson.name[:2] for lesson in lessons]
    for number in numbers:
        if number not in known:
            sys.exit(f"there is no lesson {number!r}; choose from {', '.join(known)}")
    if len(numbers) == 1:
        lesson = lessons[known.index(numbers[0])]
        path = PAGES / f"{lesson.stem}.md"
        path.write_text(page(lesson), encoding="utf-8")
        print(path.relative_to(check.HERE.parent))
        return

    # Each lesson gets a process of its own, so that none finds what another has drawn at random.
    for number in numbers or known:
        subprocess.run([sys.executable, __file__, number], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
