"""A prompt and its answers → token ids: where an answer begins, where it ends, what is cut off."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from minialign.hf.chat import as_templates_see
from minialign.hf.rows import Row
from minialign.hf.tokenizer import check_unicode


def encode_rows(tokenizer, rows: list[Row]) -> list[tuple[list[int], list[list[int]]]]:
    """(token ids of the prompt, token ids of every answer) for every row, in few large batches.

    An answer that is absent has no tokens; one that was cut off has no end.

    Raises ValueError for what the template refuses, for an end token in the middle of an answer,
    and for a prompt without tokens in a vocabulary that has no end token.
    """
    # The text of every prompt, and the text that stands behind it for each answer.
    before, behind = [], []
    for row in rows:
        with naming(row.where):
            before.append(prompt_text(tokenizer, row))
            behind.append([answer_text(tokenizer, row, before[-1], a) for a in row.answers])

    # Strings get the vocabulary's own special tokens, rendered messages have theirs.
    special = [isinstance(row.prompt, str) for row in rows]
    ids = encode_all(tokenizer, set(zip(before, special, strict=True)))
    prefixes = [ids[key] for key in zip(before, special, strict=True)]

    # Prompt and answer are encoded together, so that the tokens are those that the model would see
    # in running text. The end of the prompt suffices, from its last special token on.
    ends, joined = [], set()
    for i, row in enumerate(rows):
        with naming(row.where):
            if not prefixes[i] and tokenizer.eos_id is None:
                raise ValueError("an empty prompt, and a vocabulary without a begin or an end "
                                 "token: nothing predicts the first token")
        end = (before[i], prefixes[i])
        if not special[i]:
            end = last_piece(tokenizer, *end)
        ends.append(end)
        joined |= {(end[0] + text, special[i]) for text in behind[i] if text is not None}
    ids = encode_all(tokenizer, joined)

    encoded = []
    for i, row in enumerate(rows):
        text, prefix = ends[i]
        finished = row.finished or [True] * len(row.answers)
        answers = []
        for answer, done in zip(behind[i], finished, strict=True):
            found = []
            if answer is not None:
                found = ids[text + answer, special[i]]
                if found[: len(prefix)] == prefix:
                    found = found[len(prefix) :]
                else:
                    # A token would straddle the border, so the answer is encoded alone. In
                    # SentencePiece vocabularies it then begins a new word.
                    found = tokenizer.encode(answer, False)
                with naming(row.where):
                    found = end_once(tokenizer, found, done)
            answers.append(found)
        # An empty prompt in a model without a begin token: what ends a text opens one (GPT-2).
        prefix = prefixes[i] or [tokenizer.eos_id]
        with naming(row.where):
            for found in (prefix, *answers):
                tokenizer.check_ids(found)
        encoded.append((prefix, answers))
    return encoded


def encode_prompt(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a string as it stands, messages up to the assistant's opened turn."""
    return encode_rows(tokenizer, [Row("", prompt, [])])[0][0]


def encode_answer(tokenizer, prompt, answer, finished: bool = True) -> list[int]:
    """Token ids of one answer to a prompt; as `encode_rows`."""
    return encode_rows(tokenizer, [Row("", prompt, [answer], finished=[finished])])[0][1][0]


@contextmanager
def naming(where: str) -> Iterator[None]:
    """A ValueError within the block begins with the row's place, if it has one."""
    try:
        yield
    except ValueError as error:
        if not where:
            raise
        raise ValueError(f"{where}: {error}") from None


def prompt_text(tokenizer, row: Row) -> str:
    """A string as it stands, messages rendered up to the assistant's opened turn."""
    if isinstance(row.prompt, str):
        check_unicode(row.prompt)
        return row.prompt
    text = tokenizer.render(row.prompt, add_generation_prompt=True, tools=row.tools)
    if row.tools and text == tokenizer.render(row.prompt, add_generation_prompt=True):
        raise ValueError("the chat template does not write the tools of this row; "
                         "remove them, or use a model whose template does")
    check_unicode(text)
    return text


def answer_text(tokenizer, row: Row, before: str, answer) -> str | None:
    """What stands behind the prompt's text `before` for an answer; None for an absent one."""
    if answer is None:
        return None
    if isinstance(row.prompt, str):
        text = answer
    else:
        whole = tokenizer.render(row.prompt + answer, tools=row.tools)
        if whole.startswith(before):
            text = whole[len(before) :]
            check_written(answer, text)
        else:
            text = behind_opening(tokenizer, row, before, answer, whole)
    check_unicode(text)
    return text


def check_written(answer: list[dict], written: str) -> None:
    """ValueError if the rendered text `written` lacks what the answer says.

    Its end token alone would be trained. What a reasoning trace says before </think> may be
    dropped, and spaces do not count.
    """
    said = answer[-1].get("content")
    if not isinstance(said, str):
        return
    said = said.rpartition("</think>")[2]
    if said.strip() not in written and "".join(said.split()) not in "".join(written.split()):
        raise ValueError("the chat template does not write the text of the answer; "
                         "give prompt and answer as strings, or use a model whose template does")


def behind_opening(tokenizer, row: Row, before: str, answer: list[dict], whole: str) -> str:
    """What stands behind `before` if the rendered conversation, `whole`, does not begin with it.

    Some templates open the model's turn with a tag and do not repeat it once there is an answer
    (DeepSeek-R1's <think>). The model is asked with that tag, so it learns with it: behind it
    stands the answer's content as it is, with its reasoning if it has a trace of it.
    """
    # Only what opens the turn may differ. A prompt that itself reads differently is refused.
    history = tokenizer.render(row.prompt, tools=row.tools)
    message = as_templates_see(answer[-1])
    text = message.get("content")
    plain = len(answer) == 1 and isinstance(text, str)
    if not (plain and before.startswith(history) and whole.startswith(history)):
        raise ValueError("the chat template renders the prompt differently once an answer "
                         "follows; give prompt and answer as strings")

    # The tag is there already, and a trace in a field of its own still needs the one that ends it.
    opened = re.search(r"<(\w+)>\s*$", before)
    if opened and "reasoning_content" in message:
        text = f"{message['reasoning_content']}\n</{opened[1]}>\n\n{text}"
    if opened and text.startswith(f"<{opened[1]}>"):
        text = text.removeprefix(f"<{opened[1]}>").lstrip("\n")
    return text


def encode_all(tokenizer, texts: set[tuple[str, bool]]) -> dict[tuple[str, bool], list[int]]:
    """Token ids of (text, add special tokens?), each different text encoded once."""
    encoded = {}
    for special in (True, False):
        some = [text for text, adds in texts if adds is special]
        for text, ids in zip(some, tokenizer.encode_batch(some, special), strict=True):
            encoded[text, special] = ids
    return encoded


def last_piece(tokenizer, text: str, ids: list[int]) -> tuple[str, list[int]]:
    """A rendered prompt and its ids from the last special token on; all of it if there is none.

    A text is cut at its special tokens before it is encoded, so what stands before the last one
    cannot change the ids of what follows it.
    """
    for place in range(len(ids) - 1, -1, -1):
        token = tokenizer.cuts.get(ids[place])
        if token is not None and token in text:
            return text[text.rindex(token) :], ids[place:]
    return text, ids


def end_once(tokenizer, ids: list[int], finished: bool) -> list[int]:
    """An answer's ids with exactly one end-of-sequence token, or with none if it was cut off.

    A vocabulary without such a token leaves the ids as they are.
    """
    eos = tokenizer.eos_id
    if eos is None:
        return ids
    if eos in ids:
        # What a template writes behind the end, say a newline, is never generated, so it goes.
        end = len(ids) - 1 - ids[::-1].index(eos)
        behind = tokenizer.decode(ids[end + 1 :])
        ids = ids[:end]
        if behind.strip() or eos in ids:
            raise ValueError("the answer has the end-of-sequence token in its middle; "
                             "remove that text")
    return [*ids, eos] if finished else ids


def truncate(
    prompt: list[int], answers: list[list[int]], max_len: int
) -> tuple[list[int], list[list[int]], bool]:
    """Fits prompt + longest answer into max_len tokens: (prompt, answers, was anything cut?).

    The prompt loses its beginning, but keeps max_len / 2 tokens; then answers lose their end.
    """
    longest = max(len(answer) for answer in answers)
    if len(prompt) + longest <= max_len:
        return prompt, answers, False
    prompt = prompt[-max(max_len - longest, max_len // 2) :]
    room = max_len - len(prompt)
    return prompt, [answer[:room] for answer in answers], True
