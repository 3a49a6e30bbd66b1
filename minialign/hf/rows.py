"""Rows of a data file → prompt and answers as text. The layouts are those that people have.

A prompt is a string or a list of messages, and an answer has the form of its prompt. Nothing is
guessed: a row whose columns have no known meaning is refused, and `columns` says what they mean.
Every complaint names the file, the line and what is wrong. The files are read in rowfiles.py, token
ids are made in encoding.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from minialign.hf.rowfiles import FORMATS, read_file

# What a column can mean.
MEANINGS = ("prompt", "completion", "chosen", "rejected", "label", "responses", "rewards",
            "messages", "conversations", "text", "system", "tools")
# ShareGPT's names of those who speak.
SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant",
            "system": "system", "tool": "tool"}
REMEDY = ("or say which columns these are, such as --columns prompt=question,completion=answer")
TURN = "\n\nAssistant:"             # how the transcripts of hh-rlhf open an answer


@dataclass
class Row:
    """A prompt and its answers, as text or messages. Answer 0 is the wanted one, None is absent."""

    where: str                                      # "FILE line N"
    prompt: str | list[dict]
    answers: list
    rewards: list[float] | None = None              # one number per answer
    tools: list[dict] | None = None                 # for the chat template
    finished: list[bool] | None = None              # per answer, False if it was cut off; all True
    ref_logps: list[float | None] | None = None     # per answer, as a pool tells them
    unused: list[str] = field(default_factory=list)     # columns that nothing was read from


def read_rows(
    path, columns: dict[str, str] | None = None, chat: bool = False, all_turns: bool = False,
    prompts_only: bool = False,
) -> list[Row]:
    """The rows of a data file.

    columns       {"prompt": "question", "completion": "answer"}: which column has which meaning;
                  "instruction+input" joins those that are not empty with a blank line
    chat          make messages of strings: the prompt a user's, the answer an assistant's
    all_turns     a row for every assistant message of a conversation, not for the last one alone
    prompts_only  rows may have no answers

    Raises ValueError for the first row that cannot be used.
    """
    for meaning in columns or ():
        if meaning not in MEANINGS:
            raise ValueError(f"--columns {meaning}=…: the meaning stands before the =, the column "
                             f"behind it; meanings are {', '.join(MEANINGS)}")
    rows = []
    for where, values in read_file(path):
        values = renamed(where, values, columns or {})
        for part in turns(values) if all_turns else (values,):
            rows.append(read_row(where, part, chat, prompts_only))
    return rows


def parse_columns(text: str | None) -> dict[str, str] | None:
    """What --columns says: "prompt=question,completion=answer" as a dictionary."""
    if text is None:
        return None
    columns = {}
    for part in text.split(","):
        meaning, equals, column = part.partition("=")
        if not equals or not column or meaning in columns:
            raise ValueError(f"--columns {text}: write each meaning once, with its column, such as "
                             "prompt=question,completion=answer")
        columns[meaning.strip()] = column.strip()
    return columns


def renamed(where: str, row: dict, columns: dict[str, str]) -> dict:
    """The row with its columns under the names of their meanings."""
    sources = {meaning: names.split("+") for meaning, names in columns.items()}
    named = [name for names in sources.values() for name in names]
    result = {key: value for key, value in row.items() if key not in named}
    for meaning, names in sources.items():
        for name in names:
            if name not in row:
                raise ValueError(f"{where}: --columns names '{name}', and the row has "
                                 f"{', '.join(sorted(row)) or 'no columns'}")
        values = [row[name] for name in names if row[name] not in (None, "")]
        if len(names) == 1:
            result[meaning] = row[names[0]]
        elif all(isinstance(value, str) for value in values):
            result[meaning] = "\n\n".join(values)
        else:
            raise ValueError(f"{where}: --columns can join columns of text alone, and one of "
                             f"{' and '.join(names)} holds something else")
    return result


def turns(row: dict) -> Iterator[dict]:
    """A conversation up to each of its assistant's messages; another row as it is."""
    key = "messages" if "messages" in row else "conversations"
    messages = row.get(key)
    ends = []
    for end, message in enumerate(messages if isinstance(messages, list) else (), start=1):
        speaker = None
        if isinstance(message, dict):
            speaker = message.get("role", message.get("from"))
        if end > 1 and SPEAKERS.get(str(speaker)) == "assistant":
            ends.append(end)
    if not ends:
        yield row
    for end in ends:
        yield {**row, key: messages[:end]}


def read_row(where: str, row: dict, chat: bool = False, prompts_only: bool = False) -> Row:
    """What a row means. Raises ValueError, beginning with `where`, if it cannot be used."""
    keys = {key for key, value in row.items() if value is not None}
    prompt, rewards, used = None, None, {"prompt"}
    if "prompt" in keys:
        prompt = row["prompt"]
        if prompt != "":
            prompt = check_text(where, "prompt", prompt)

    if {"chosen", "rejected"} <= keys:
        used |= {"chosen", "rejected"}
        answers = [check_text(where, key, row[key]) for key in ("chosen", "rejected")]
    elif {"prompt", "responses", "rewards"} <= keys:
        used |= {"responses", "rewards"}
        answers, rewards = best_first(where, row["responses"], row["rewards"])
    elif {"prompt", "completion"} <= keys:
        used |= {"completion", "label"}
        answers = [check_text(where, "completion", row["completion"])]
        # A completion with the label false is a rejected answer whose wanted one is absent.
        if not is_wanted(where, row.get("label", True)):
            answers = [None, *answers]
    elif "messages" in keys or "conversations" in keys:
        key = "messages" if "messages" in keys else "conversations"
        used = {key}
        prompt, answers = last_turn(where, key, check_text(where, key, row[key]))
    elif "text" in keys:
        used = {"text"}
        prompt, answers = "", [check_text(where, "text", row["text"])]
    elif "prompt" in keys and prompts_only:
        answers = []
    else:
        found = ", ".join(sorted(row)) or "(none)"
        raise ValueError(f"{where}: found the keys {found}; expected {FORMATS}, {REMEDY}")

    whole = prompt is None or "text" in used        # one text, without a border in it
    prompt, answers = part(where, prompt, answers, chat)
    if chat and isinstance(prompt, str):
        if whole or not prompt.strip():
            raise ValueError(f"{where}: --chat makes a user's message of the prompt, and this row "
                             "has none of its own; leave out --chat")
        answers = [as_answer([], a) if isinstance(a, str) else a for a in answers]
        prompt = [{"role": "user", "content": prompt}]
    check_forms(where, prompt, answers)
    prompt = under_system(where, prompt, row.get("system"))
    tools = read_tools(where, prompt, row.get("tools"))
    unused = sorted(keys - used - {"system", "tools"})
    return Row(where, prompt, answers, rewards, tools, unused=unused)


# ----------------------------------------------------------------------- where the prompt ends


def part(where: str, prompt, answers: list, chat: bool) -> tuple[object, list]:
    """(prompt, answers) of answers that may repeat the prompt, or hold it when there is none.

    Whole conversations part where they first differ, as TRL has it, and at the latest before their
    last message.
    """
    present = [answer for answer in answers if answer is not None]
    if prompt is None and all(isinstance(answer, str) for answer in present):
        end = common_text(present).rfind(TURN) + len(TURN)
        if end < len(TURN):
            raise ValueError(f"{where}: there is no prompt, and 'chosen' and 'rejected' do not "
                             "begin with the same turns up to \"\\n\\nAssistant:\"; "
                             "add a column 'prompt'")
        return present[0][:end], [answer[end:] for answer in answers]
    if not present or not all(isinstance(answer, list) for answer in present):
        if prompt is None:
            raise ValueError(f"{where}: 'chosen' and 'rejected' must both be strings or both be "
                             "message lists")
        return prompt, answers

    length = common_length(present)
    opening = present[0][:length]
    if isinstance(prompt, list):
        # An answer that repeats the prompt goes on behind it.
        if opening[: len(prompt)] != prompt:
            return prompt, answers
        length, opening = len(prompt), prompt
    elif prompt is not None:
        # A string is the question of the conversations, if they hold it.
        asked = [message.get("content", "").strip() for message in opening]
        if prompt.strip() not in asked:
            if opening and not chat:
                raise ValueError(f"{where}: the prompt is a string, and the answers are "
                                 "conversations in which it does not stand before they differ; "
                                 "give the prompt as messages")
            return prompt, answers
    elif not opening:
        raise ValueError(f"{where}: there is no prompt, and 'chosen' and 'rejected' differ from "
                         "the first message on; add a column 'prompt'")
    behind = []
    for answer in answers:
        behind.append(None if answer is None else answer[length:])
    return opening, behind


def common_text(texts: list[str]) -> str:
    """What all texts begin with."""
    shortest, longest = min(texts), max(texts)
    for i, letter in enumerate(shortest):
        if letter != longest[i]:
            return shortest[:i]
    return shortest


def common_length(conversations: list[list[dict]]) -> int:
    """How many messages all conversations begin with, leaving each at least one."""
    first = conversations[0]
    most = min(len(messages) for messages in conversations) - 1
    for length in range(most):
        if any(messages[length] != first[length] for messages in conversations):
            return length
    return most


def last_turn(where: str, key: str, messages) -> tuple[list[dict], list]:
    """A conversation → its prompt and the assistant's message that ends it, the one to train."""
    conversation = isinstance(messages, list) and len(messages) > 1
    if not conversation or messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: '{key}' must be a conversation that ends with an "
                         "assistant message, the one to train")
    return messages[:-1], [messages[-1:]]


def check_forms(where: str, prompt, answers: list) -> None:
    """ValueError unless every answer has the form of its prompt: a string, or one message."""
    for answer in answers:
        if answer is None:
            continue
        if type(answer) is not type(prompt):
            kind = "string" if isinstance(prompt, str) else "message list"
            raise ValueError(f"{where}: the prompt is a {kind} and an answer is not; "
                             "write both as strings or both as message lists")
        if isinstance(answer, list) and [m["role"] for m in answer] != ["assistant"]:
            roles = ", ".join(message["role"] for message in answer)
            raise ValueError(f"{where}: an answer must be one assistant message, and behind the "
                             f"prompt stand here: {roles}; move what comes before the last one "
                             "into the prompt")


# ------------------------------------------------------------------------------- single columns


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


def is_wanted(where: str, label) -> bool:
    """What a label says of its completion; 0 and 1 stand for false and true."""
    if not isinstance(label, bool) and not (isinstance(label, int) and label in (0, 1)):
        raise ValueError(f"{where}: 'label' must be true or false, or 1 or 0, not {shown(label)}")
    return bool(label)


def under_system(where: str, prompt, system):
    """The prompt under the system message of the column `system`, if there is one."""
    if system in (None, ""):
        return prompt
    if not isinstance(system, str):
        raise ValueError(f"{where}: 'system' must be a string, not {shown(system)}")
    if isinstance(prompt, str):
        raise ValueError(f"{where}: 'system' is for messages, and the prompt is a string; "
                         "make messages with --chat, or join with --columns prompt=system+prompt "
                         "(with the column of your prompt)")
    if prompt[0]["role"] == "system":
        raise ValueError(f"{where}: a system message in the column 'system' and another one in "
                         "the conversation; remove one of them")
    return [{"role": "system", "content": system}, *prompt]


def read_tools(where: str, prompt, tools) -> list[dict] | None:
    """The tools that a chat template is to describe: a list of objects, or one spelled as JSON."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            tools = {}
    if tools in (None, [], ""):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: 'tools' must be a list of JSON objects, or such a list as text")
    if isinstance(prompt, str):
        raise ValueError(f"{where}: 'tools' are for a chat template, and the prompt is a string; "
                         "give messages, or remove the column")
    return tools


def check_text(where: str, key: str, value):
    """A string with something in it as it is, or a list of messages as templates read them.

    Raises ValueError for anything else.
    """
    listed = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    if not isinstance(value, str) and not listed:
        remedy = "; write numbers as text" if isinstance(value, int | float) else ""
        raise ValueError(f"{where}: '{key}' must be a string or a list of messages, "
                         f"not {shown(value)}{remedy}")
    blank = isinstance(value, str) and not value.strip() and key != "prompt"
    if not value or blank:
        raise ValueError(f"{where}: '{key}' is empty; remove the line or fill it in")
    if isinstance(value, str):
        return value
    return [as_message(where, key, message) for message in value]


def as_message(where: str, key: str, message: dict) -> dict:
    """{"role", "content"} of a message in any of its spellings, without the keys that are null.

    ShareGPT writes {"from", "value"}. Content may be a list of text parts, and may be absent beside
    tool calls. Other keys stay: a template may read them.
    """
    message = {name: value for name, value in message.items() if value is not None}
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        if SPEAKERS.get(str(speaker)) is None:
            raise ValueError(f"{where}: a message in '{key}' is from {shown(speaker)}; known are "
                             f"{', '.join(SPEAKERS)}")
        message = {"role": SPEAKERS[speaker], **message}
        if "value" in message:
            message["content"] = message.pop("value")

    content = message.get("content")
    if isinstance(content, list):
        texts = []
        for piece in content:
            if not isinstance(piece, dict) or not isinstance(piece.get("text"), str):
                raise ValueError(f"{where}: a message in '{key}' holds {shown(piece)}; only parts "
                                 '{"type": "text", "text": "…"} can be read')
            texts.append(piece["text"])
        content = message["content"] = "".join(texts)
    spoken = isinstance(content, str) or (content is None and message.get("tool_calls"))
    if not isinstance(message.get("role"), str) or not spoken:
        raise ValueError(f"{where}: every message in '{key}' must be "
                         '{"role": "…", "content": "…"}')
    return message


def shown(value) -> str:
    """A value as a message may quote it."""
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


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
