"""JSON objects read from files: the one reader that the whole wing uses.

A file or a line that is torn, or that holds something other than an object, is refused in one
sentence that says where it stands. What the keys mean is the caller's business.
"""

import json
from pathlib import Path


def read_json(path: Path) -> dict:
    """The JSON object in a file, or {} where there is no such file.

    Most files beside a model are optional; whoever needs one looks first whether it is there.
    Raises ValueError as `parse_object` does.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    return parse_object(content, str(path), "fetch the file again")


def parse_object(text: str | bytes, where: str, remedy: str) -> dict:
    """The JSON object that `text` spells out.

    where   the file, or the file and its line, for the message
    remedy  what the reader of the message can do about it

    Raises ValueError for what is not JSON, is nested too deeply to be read, or is no object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}"
        if error.lineno > 1:
            place = f"line {error.lineno}, {place}"
        raise ValueError(f"{where}: not JSON ({error.msg}, {place}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); {remedy}") from None

    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{where}: must be a JSON object, not a {kind}; {remedy}")
    return value
