"""A data file of any kind → its rows, each with the words that say where it stands.

JSON Lines (also gzipped), a JSON array, parquet, or a folder that `datasets` has written. The last
two need pyarrow. A few data sets ship with this package and have names. What the columns of a row
mean is told in rows.py.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from minialign.hf.jsonfiles import parse_object
from minialign.hf.places import SHIPPED

# The data sets that ship with this package, by name (shipped/README.md).
DATA = {
    "stories-dialogue": SHIPPED / "stories-dialogue-train.jsonl",
    "stories-dialogue-test": SHIPPED / "stories-dialogue-test.jsonl",
    "stories": SHIPPED / "stories.jsonl",
}
KINDS = ("give a JSONL file (one JSON object per line, .gz or not), a .json array, a .parquet file "
         f"or a folder written by datasets' save_to_disk, or one of {', '.join(DATA)}")
FORMATS = (
    '{"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"chosen", "rejected"}, '
    '{"prompt", "responses", "rewards"}, {"prompt", "completion", "label"}, '
    '{"messages"}, {"conversations"} or {"text"}')
FETCH = "it is damaged or was cut off: fetch or write it again"


def data_file(path: str | Path) -> Path:
    """The file or folder that `path` means: what lies there, else the shipped one of that name.

    FileNotFoundError if there is neither, ValueError for a pipe or a device.
    """
    found = Path(path)
    if not found.exists():
        if str(path) not in DATA:
            raise FileNotFoundError(f"no such file: {path}; {KINDS}")
        found = DATA[str(path)]
    if not found.is_file() and not found.is_dir():
        raise ValueError(f"{path} is a pipe or a device, which cannot be read twice; {KINDS}")
    return found


def read_file(path) -> list[tuple[str, dict]]:
    """The rows of a data file, each with the words "FILE line N" or "FILE row N" for messages.

    Raises FileNotFoundError, and ValueError for a file of another kind, for one that is damaged,
    with the place, and for one without rows.
    """
    path = data_file(path)
    if path.is_dir():
        rows = arrow_rows(path)
    elif path.suffix == ".parquet":
        rows = parquet_rows(path)
    elif path.suffix == ".json" and begins_an_array(path):
        rows = array_rows(path)
    else:
        rows = line_rows(path)
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path} has no rows; {KINDS}")
    return rows


# ------------------------------------------------------------------------------------------- JSON


def line_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a JSONL file, gzipped or not; empty lines do not count."""
    remedy = f"every line must be one JSON object: {FORMATS}"
    for number, line in enumerate(lines_of(path), start=1):
        where = f"{path} line {number}"
        # Windows begins a file with a byte order mark.
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{where} is not UTF-8 text; {KINDS}") from None
        if text.strip():
            yield where, parse_object(text, where, remedy)


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, gzipped or not. ValueError says after which line a gzip file breaks."""
    if path.suffix != ".gz":
        with open(path, "rb") as file:
            yield from file
        return
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                number += 1
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read behind line {number} ({error}); {FETCH}") from None


def begins_an_array(path: Path) -> bool:
    """Many files named .json hold lines of JSON; those with one array begin with a bracket."""
    with open(path, "rb") as file:
        return file.read(64).strip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def array_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a file that holds one JSON array of objects."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); {KINDS}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {FETCH}") from None
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise ValueError(f"{path} row {number}: must be a JSON object, not a "
                             f"{type(value).__name__}; {FORMATS}")
        yield f"{path} row {number}", value


# ------------------------------------------------------------------------------------------ arrow


def parquet_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a parquet file."""
    import_pyarrow(path)
    from pyarrow.parquet import ParquetFile

    def batches():
        with ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1000)

    yield from rows_of_batches(path, batches())


def arrow_rows(folder: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a folder written by `datasets`: its arrow files in the order of state.json."""
    state = folder / "state.json"
    if not state.exists():
        inside = sorted(file.name for file in folder.iterdir())
        splits = [name for name in inside if (folder / name / "state.json").exists()]
        if splits:
            raise ValueError(f"{folder} is a folder with the splits {', '.join(splits)}; name one "
                             f"of them, such as {folder / splits[0]}")
        raise ValueError(f"{folder} is a folder; {KINDS}")
    pyarrow = import_pyarrow(folder)
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{state} does not name the arrow files; {FETCH}") from None

    def batches(file: Path):
        with pyarrow.memory_map(str(file)) as source:
            yield from pyarrow.ipc.open_stream(source)

    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(f"no such file: {folder / name}; {FETCH}")
        yield from rows_of_batches(folder / name, batches(folder / name))


def rows_of_batches(path: Path, batches: Iterable) -> Iterator[tuple[str, dict]]:
    """The rows of pyarrow's record batches, without the nulls that fill up nested objects."""
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", {key: filled(x) for key, x in row.items()}
    except (ValueError, OSError, NotImplementedError) as error:
        reason = str(error).split("\n")[0][:100].rstrip(". ")
        raise ValueError(f"{path} cannot be read behind row {number} ({reason}); {FETCH}") from None


def filled(value):
    """A value without the keys that arrow adds to objects because other rows have them."""
    if isinstance(value, dict):
        return {key: filled(x) for key, x in value.items() if x is not None}
    if isinstance(value, list):
        return [filled(x) for x in value]
    return value


def import_pyarrow(path: Path):
    """The library that reads parquet and arrow. ValueError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"reading {path} needs pyarrow, which is not installed; "
                         "pip install pyarrow") from None
    return pyarrow
