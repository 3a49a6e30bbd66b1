"""JSON objects read from files: the one reader for whatever people or crashes may have damaged.

A file or a line that is torn, too large, nested too deeply, ambiguous, or that holds something
other than an object, is refused in one sentence that says where it stands. What the keys mean is
the caller's business.
"""

import json
from pathlib import Path

LARGEST = 10**9             # bytes of a file of JSON


def read_json(path: Path) -> dict:
    """The JSON object in a file, or {} where there is no such file.

    Most files beside a model are optional; whoever needs one looks first whether it is there.
    Raises ValueError as `parse_object` does.
    """
    if not path.exists():
        return {}
    remedy = "fetch the file again"
    if not path.is_file():
        raise ValueError(f"{path} is no file; {remedy}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST:,} bytes; {remedy}")
    return parse_object(path.read_bytes(), str(path), remedy)


def parse_object(text: str | bytes, where: str, remedy: str) -> dict:
    """The JSON object that `text` spells out.

    where   the file, or the file and its line, for the message
    remedy  what the reader of the message can do about it

    Raises ValueError for what is not JSON, is nested too deeply to be read, says a key twice, or is
    no object.
    """
    try:
        value = json.loads(text, object_pairs_hook=without_doubles)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}"
        if error.lineno > 1:
            place = f"line {error.lineno}, {place}"
        raise ValueError(f"{where}: not JSON ({error.msg}, {place}); {remedy}") from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON we read (nested too deeply); {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); {remedy}") from None

    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{where}: must be a JSON object, not a {kind}; {remedy}")
    return value


def without_doubles(pairs: list[tuple[str, object]]) -> dict:
    """The object with these keys and values; ValueError if a key is there twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {json.dumps(double)[:60]} is there twice")
    return value
