"""JSONL → Example: the only place that reads data files, renders chats and decides where an answer begins and ends.

The formats are those TRL users have. Every complaint names the file, the line, and what is wrong. Shifts and masks: data.py.
"""

import json
from pathlib import Path

from minialign.data import Example

FORMATS = ('{"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"prompt", "responses", "rewards"}, '
           '{"prompt", "completion", "label"}, {"messages"} or {"text"}')


def read_jsonl(path) -> list[tuple[str, dict]]:
    """The rows of a JSONL file, each with the words "FILE line N" for error messages. ValueError on the first bad line."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a JSONL file, one JSON object per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}; give a JSONL file, one JSON object per line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); give a JSONL file, one JSON object per line") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise ValueError(f"{where}: not JSON ({why}); every line must be one JSON object") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object; expected {FORMATS}")
        rows.append((where, row))
    if not rows:
        raise ValueError(f"{path} has no rows; every line must be one JSON object: {FORMATS}")
    return rows


def split_row(where: str, row: dict) -> tuple[object, list, list[float] | None]:
    """A row → (prompt, answers, rewards); texts as they stand in the file, strings or message lists, None for an absent answer.

    Of several responses with rewards the best comes first: answer 0 is the wanted one.
    """
    keys, rewards = set(row), None
    if {"prompt", "chosen", "rejected"} <= keys:
        prompt, answers = row["prompt"], [answer_of(where, row, "chosen"), answer_of(where, row, "rejected")]
    elif {"prompt", "responses", "rewards"} <= keys:
        prompt, answers, rewards = row["prompt"], row["responses"], row["rewards"]
        numbers = isinstance(rewards, list) and all(map(is_number, rewards))
        if not isinstance(answers, list) or not answers or not numbers or len(rewards) != len(answers):
            raise ValueError(f"{where}: 'responses' and 'rewards' must be lists of the same length, texts and finite numbers")
        order = sorted(range(len(answers)), key=lambda i: -rewards[i])
        answers, rewards = [check_text(where, "responses", answers[i]) for i in order], [float(rewards[i]) for i in order]
    elif {"prompt", "completion", "label"} <= keys:
        if not isinstance(row["label"], bool):
            raise ValueError(f"{where}: 'label' must be true or false, not {json.dumps(row['label'])[:60]}")
        prompt, answers = row["prompt"], [None] * (not row["label"]) + [answer_of(where, row, "completion")]
    elif {"prompt", "completion"} <= keys:
        prompt, answers = row["prompt"], [answer_of(where, row, "completion")]
    elif "messages" in keys:
        messages = answer_of(where, row, "messages")
        if not isinstance(messages, list) or messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ValueError(f"{where}: 'messages' must be a conversation that ends with an assistant message, the one to train")
        prompt, answers = messages[:-1], [messages[-1:]]
    elif "text" in keys:
        prompt, answers = "", [answer_of(where, row, "text")]
    else:
        raise ValueError(f"{where}: found the keys {', '.join(sorted(keys)) or '(none)'}; expected {FORMATS}")
    if prompt != "":
        check_text(where, "prompt", prompt)
    if any(answer is not None and type(answer) is not type(prompt) for answer in answers):
        kind = "string" if isinstance(prompt, str) else "message list"
        raise ValueError(f"{where}: the prompt is a {kind} and an answer is not; write both as strings or both as message lists")
    return prompt, answers, rewards


def is_number(x) -> bool:
    return type(x) in (int, float) and abs(x) < 1e300


def answer_of(where: str, row: dict, key: str):
    return check_text(where, key, row[key])


def check_text(where: str, key: str, value):
    """The value itself, if it is a string with something in it or a list of messages; else ValueError."""
    if not isinstance(value, (str, list)) or (isinstance(value, list) and not all(isinstance(m, dict) for m in value)):
        raise ValueError(f"{where}: '{key}' must be a string or a list of messages, not {json.dumps(value)[:60]}")
    if not value or (isinstance(value, str) and not value.strip() and key != "prompt"):
        raise ValueError(f"{where}: '{key}' is empty; remove the line or fill it in")
    if isinstance(value, list) and not all(isinstance(m.get(part), str) for m in value for part in ("role", "content")):
        raise ValueError(f'{where}: every message in \'{key}\' must be {{"role": "…", "content": "…"}}')
    return value


def encode_prompt(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a string as it stands,
    messages through the chat template with the opening of the assistant's turn.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    else:
        ids = tokenizer.encode(tokenizer.render(prompt, add_generation_prompt=True), add_special_tokens=False)
    if not ids and tokenizer.eos_id is None:
        raise ValueError("an empty prompt, and a vocabulary without a begin or an end token: nothing predicts the first token")
    # An empty prompt in a model without a begin token: what ends a text also opens one, as in GPT-2.
    return ids or [tokenizer.eos_id]


def encode_answer(tokenizer, prompt, answer, finished: bool = True) -> list[int]:
    """Token ids of an answer, ending in exactly one end-of-sequence token (none if the answer was cut off: finished = False).

    Strings are tokenized together with their prompt, so that the tokens are those the model would see in running text; where a
    token would straddle the border, the answer is tokenized alone, which in SentencePiece vocabularies begins a new word.
    """
    if isinstance(prompt, str):
        before, whole, special = prompt, prompt + answer, True
    else:
        before = tokenizer.render(prompt, add_generation_prompt=True)
        whole, special = tokenizer.render(prompt + answer, add_generation_prompt=False), False
        if not whole.startswith(before):
            raise ValueError("the chat template renders the prompt differently once an answer follows; "
                             "give prompt and answer as strings")
    prefix, ids = tokenizer.encode(before, special), tokenizer.encode(whole, special)
    ids = ids[len(prefix):] if ids[: len(prefix)] == prefix else tokenizer.encode(whole[len(before):], False)
    eos = tokenizer.eos_id
    if eos is None:
        return ids
    if eos in ids:                      # what the template writes behind the end, say a newline, is never generated: it goes
        end = len(ids) - 1 - ids[::-1].index(eos)
        ids, behind = ids[:end], tokenizer.decode(ids[end + 1 :])
        if behind.strip() or eos in ids:
            raise ValueError("the answer has the end-of-sequence token in its middle; remove that text")
    return ids + [eos] if finished else ids


def truncate(prompt: list[int], answers: list[list[int]], max_len: int) -> tuple[list[int], list[list[int]], bool]:
    """Fit prompt + longest answer into max_len tokens: the prompt loses its beginning, but not below max_len / 2;
    then answers lose their end.
    """
    longest = max(len(a) for a in answers)
    if len(prompt) + longest <= max_len:
        return prompt, answers, False
    prompt = prompt[-max(max_len - longest, max_len // 2):]
    return prompt, [a[: max_len - len(prompt)] for a in answers], True


def load_examples(path, tokenizer, max_len: int, negatives=None) -> tuple[list[Example], int]:
    """Read a data file, and a pool of sampled negatives if given, into examples; also how many of them had to be truncated.

    negatives  a JSONL file whose rows hold {"prompt", "negatives": [text, …]} as `minialign sample` writes it (with "ref_logps",
               "finished", one per text, if known), or {"prompt", "completion"} rows from elsewhere; joined to the data by prompt

    ValueError names the file and the line of the first row that cannot be used.
    """
    pool = read_negatives(negatives) if negatives else None
    examples, truncated, unmatched = [], 0, None
    for where, row in read_jsonl(path):
        prompt, texts, rewards = split_row(where, row)
        finished, ref_logps = [True] * len(texts), None
        if pool is not None:
            sampled = pool.get(as_key(prompt), [])
            unmatched = unmatched or (None if sampled else where)
            texts = texts[:1] + [as_answer(prompt, s["text"]) for s in sampled]
            finished = [True] + [s["finished"] for s in sampled]
            ref_logps, rewards = [None] + [s["ref_logp"] for s in sampled], None
        try:
            ids = encode_prompt(tokenizer, prompt)
            answers = [[] if t is None else encode_answer(tokenizer, prompt, t, f) for t, f in zip(texts, finished, strict=True)]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if any(t is not None and len(a) == 0 for t, a in zip(texts, answers, strict=True)):
            raise ValueError(f"{where}: an answer has no tokens; remove the line or fill it in")
        ids, answers, cut = truncate(ids, answers, max_len)
        truncated += cut
        text = {"where": where, "prompt": prompt, "answers": texts}
        examples.append(Example(len(examples), ids, answers, None if cut else ref_logps, rewards, text=text))
    if unmatched:
        raise ValueError(f"{unmatched}: no negatives for this prompt in {negatives}; "
                         f"make them with 'minialign sample --data {path} --out {negatives}'")
    return examples, truncated


def as_key(prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def as_answer(prompt, text: str):
    """An answer's text in the form its prompt has."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def as_text(answer):
    """The text of an answer: as it stands, or what its last message says."""
    return answer[-1].get("content") if isinstance(answer, list) and answer and isinstance(answer[-1], dict) else answer


def read_negatives(path) -> dict[str, list[dict]]:
    """A pool of sampled answers: prompt → [{"text", "finished", "ref_logp"}], in the order of the file."""
    pool: dict[str, list[dict]] = {}
    for where, row in read_jsonl(path):
        texts = row.get("negatives", [row["completion"]] if "completion" in row else None)
        if "prompt" not in row or not isinstance(texts, list) or not texts:
            raise ValueError(f'{where}: expected {{"prompt", "negatives": [text, …]}} or {{"prompt", "completion"}}')
        lists = {name: row.get(name, [default] * len(texts)) for name, default in (("finished", True), ("ref_logps", None))}
        for name, values in lists.items():
            if not isinstance(values, list) or len(values) != len(texts):
                raise ValueError(f"{where}: '{name}' must be a list with one value per answer, {len(texts)} here")
        if not all(x is None or is_number(x) for x in lists["ref_logps"]):
            raise ValueError(f"{where}: 'ref_logps' holds something that is not a finite number")
        if not all(isinstance(x, bool) for x in lists["finished"]):
            raise ValueError(f"{where}: 'finished' must hold true or false for every answer")
        for text, finished, ref_logp in zip(map(as_text, texts), lists["finished"], lists["ref_logps"], strict=True):
            if not isinstance(text, str) or not (text or finished):
                raise ValueError(f"{where}: an answer that is no text, or empty and cut off; remove it from 'negatives'")
            pool.setdefault(as_key(row["prompt"]), []).append({"text": text, "finished": finished, "ref_logp": ref_logp})
    return pool
