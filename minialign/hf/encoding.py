"""A prompt and its answers → token ids: where an answer begins, where it ends, what is cut off."""

import re

from minialign.hf.chat import as_templates_see


def encode_row(
    tokenizer, prompt, answers: list, finished: list[bool]
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt and of all its answers; the prompt is rendered and encoded once.

    prompt    a string, or messages for the chat template
    answers   in the form of the prompt; None for an absent answer, which has no tokens
    finished  for every answer, False if it was cut off and so has no end

    Raises ValueError for what the template refuses, for an end token in the middle of an answer,
    and for a prompt without tokens in a vocabulary that has no end token.
    """
    before, special = prompt, True
    if not isinstance(prompt, str):
        before, special = tokenizer.render(prompt, add_generation_prompt=True), False
    prefix = tokenizer.encode(before, special)
    if not prefix and tokenizer.eos_id is None:
        raise ValueError("an empty prompt, and a vocabulary without a begin or an end token: "
                         "nothing predicts the first token")

    encoded = []
    for answer, done in zip(answers, finished, strict=True):
        ids = []
        if answer is not None:
            if isinstance(prompt, str):
                whole = prompt + answer
            else:
                whole = render_answer(tokenizer, prompt, answer, before)
            ids = continuation(tokenizer, before, prefix, whole, special)
            ids = end_once(tokenizer, ids, done)
        encoded.append(ids)
    # An empty prompt in a model without a begin token: what ends a text also opens one (GPT-2).
    return prefix or [tokenizer.eos_id], encoded


def encode_prompt(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a string as it stands, messages up to the assistant's opened turn."""
    return encode_row(tokenizer, prompt, [], [])[0]


def encode_answer(tokenizer, prompt, answer, finished: bool = True) -> list[int]:
    """Token ids of one answer to a prompt; as `encode_row`."""
    return encode_row(tokenizer, prompt, [answer], [finished])[1][0]


def render_answer(tokenizer, prompt: list[dict], answer: list[dict], before: str) -> str:
    """The text of a prompt with its answer, which begins with the prompt's own text `before`.

    Some templates open the model's turn with a tag and do not repeat it once there is an answer
    (DeepSeek-R1's <think>). The model is asked with that tag, so it learns with it: the answer then
    stands behind `before` as it is, with its reasoning if it has a trace of it.
    """
    whole = tokenizer.render(prompt + answer)
    if whole.startswith(before):
        return whole

    # Only what opens the turn may differ. A prompt that itself reads differently is refused.
    history = tokenizer.render(prompt)
    message = as_templates_see(answer[-1])
    text = message.get("content")
    plain = len(answer) == 1 and isinstance(text, str)
    if not (plain and before.startswith(history) and whole.startswith(history)):
        raise ValueError("the chat template renders the prompt differently once an answer follows; "
                         "give prompt and answer as strings")

    # The tag is there already, and a trace in a field of its own still needs the one that ends it.
    opened = re.search(r"<(\w+)>\s*$", before)
    if opened and "reasoning_content" in message:
        text = f"{message['reasoning_content']}\n</{opened[1]}>\n\n{text}"
    if opened and text.startswith(f"<{opened[1]}>"):
        text = text.removeprefix(f"<{opened[1]}>").lstrip("\n")
    return before + text


def continuation(
    tokenizer, before: str, prefix: list[int], whole: str, special: bool
) -> list[int]:
    """Token ids of what follows the text `before`, whose ids are `prefix`, in the text `whole`.

    They are encoded together, so that the tokens are those that the model would see in running
    text. Where a token would straddle the border, the rest is encoded alone, which in SentencePiece
    vocabularies begins a new word.
    """
    ids = tokenizer.encode(whole, special)
    if ids[: len(prefix)] == prefix:
        return ids[len(prefix) :]
    return tokenizer.encode(whole[len(before) :], False)


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
