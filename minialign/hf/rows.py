"""Rows of a data file → prompt and answers as text. The formats are those that TRL users have.

A prompt is a string or a list of messages, and an answer has the form of its prompt. Every
complaint names the file, the line and what is wrong. Token ids: encoding.py.
"""

import json
from pathlib import Path

from minialign.hf.jsonfiles import parse_object

FORMATS = (
    '{"prompt", "completion"}, {"prompt", "chosen", "rejected"}, '
    '{"prompt", "responses", "rewards"}, {"prompt", "completion", "label"}, '
    '{"messages"} or {"text"}')


def read_jsonl(path) -> list[tuple[str, dict]]:
    """The rows of a JSONL file, each with the words "FILE line N" for error messages.

    Raises FileNotFoundError, and ValueError for what is no JSONL file, with its first bad line.
    """
    path = Path(path)
    expected = "give a JSONL file, one JSON object per line"
    if path.is_dir():
        raise ValueError(f"{path} is a folder; {expected}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}; {expected}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); {expected}") from None

    rows = []
    remedy = f"every line must be one JSON object: {FORMATS}"
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path} line {number}"
            rows.append((where, parse_object(line, where, remedy)))
    if not rows:
        raise ValueError(f"{path} has no rows; {remedy}")
    return rows


def split_row(where: str, row: dict) -> tuple[object, list, list[float] | None]:
    """A row → (prompt, answers, rewards), texts as they stand in the file.

    Answer 0 is the wanted one, None stands for an answer that is absent. Rewards are None in all
    formats but one. Raises ValueError, beginning with `where`, for a row that cannot be used.
    """
    keys, rewards = set(row), None
    if {"prompt", "chosen", "rejected"} <= keys:
        prompt = row["prompt"]
        answers = [check_text(where, key, row[key]) for key in ("chosen", "rejected")]
    elif {"prompt", "responses", "rewards"} <= keys:
        prompt = row["prompt"]
        answers, rewards = best_first(where, row["responses"], row["rewards"])
    elif {"prompt", "completion"} <= keys:
        prompt = row["prompt"]
        label = row.get("label", True)
        if not isinstance(label, bool):
            raise ValueError(f"{where}: 'label' must be true or false, "
                             f"not {json.dumps(label)[:60]}")
        # A completion with the label false is a rejected answer whose wanted one is absent.
        completion = check_text(where, "completion", row["completion"])
        answers = [completion] if label else [None, completion]
    elif "messages" in keys:
        messages = check_text(where, "messages", row["messages"])
        conversation = isinstance(messages, list) and len(messages) > 1
        if not conversation or messages[-1]["role"] != "assistant":
            raise ValueError(f"{where}: 'messages' must be a conversation that ends with an "
                             "assistant message, the one to train")
        prompt, answers = messages[:-1], [messages[-1:]]
    elif "text" in keys:
        prompt, answers = "", [check_text(where, "text", row["text"])]
    else:
        found = ", ".join(sorted(keys)) or "(none)"
        raise ValueError(f"{where}: found the keys {found}; expected {FORMATS}")

    if prompt != "":
        check_text(where, "prompt", prompt)
    for answer in answers:
        if answer is not None and type(answer) is not type(prompt):
            kind = "string" if isinstance(prompt, str) else "message list"
            raise ValueError(f"{where}: the prompt is a {kind} and an answer is not; "
                             "write both as strings or both as message lists")
    return prompt, answers, rewards


def best_first(where: str, responses, rewards) -> tuple[list, list[float]]:
    """Responses and their rewards, highest reward first: answer 0 is the wanted one."""
    lists = isinstance(responses, list) and isinstance(rewards, list)
    fit = lists and 0 < len(responses) == len(rewards)
    if not fit or not all(is_number(reward) for reward in rewards):
        raise ValueError(f"{where}: 'responses' and 'rewards' must be lists of the same length, "
                         "texts and finite numbers")
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    answers = [check_text(where, "responses", responses[i]) for i in order]
    return answers, [float(rewards[i]) for i in order]


def check_text(where: str, key: str, value):
    """The value itself, if it is a string with something in it or a list of messages.

    Raises ValueError for anything else.
    """
    listed = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    if not isinstance(value, str) and not listed:
        raise ValueError(f"{where}: '{key}' must be a string or a list of messages, "
                         f"not {json.dumps(value)[:60]}")
    blank = isinstance(value, str) and not value.strip() and key != "prompt"
    if not value or blank:
        raise ValueError(f"{where}: '{key}' is empty; remove the line or fill it in")
    for message in value if listed else ():
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"{where}: every message in '{key}' must be "
                             '{"role": "…", "content": "…"}')
    return value


def is_number(x) -> bool:
    """Is this a finite number, true and false not counted?"""
    return type(x) in (int, float) and abs(x) < 1e300


def as_key(prompt) -> str:
    """A prompt as a string, by which rows of two files are joined."""
    return json.dumps(prompt, sort_keys=True)


def as_answer(prompt, text: str):
    """An answer's text in the form that its prompt has."""
    if isinstance(prompt, str):
        return text
    return [{"role": "assistant", "content": text}]


def as_text(answer):
    """The text of an answer or a prompt: as it stands, or what its last message says."""
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        return answer[-1].get("content")
    return answer
