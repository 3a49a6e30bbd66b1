"""Data files → examples: the rows of a file, joined with a pool of sampled negatives if given.

Files are read in rowfiles.py, what a row means is told in rows.py, how it becomes token ids in
encoding.py. Nothing is shifted or masked here.
"""

from minialign.data import Example
from minialign.hf.encoding import encode_rows, truncate
from minialign.hf.rowfiles import read_file
from minialign.hf.rows import Row, as_answer, as_key, as_text, check_text, is_number, read_rows
from minialign.progress import bar

AT_A_TIME = 500             # rows that are encoded together
SMALLEST = -1e8             # no log-prob of an answer is less,
ROUNDING = 1e-3             # nor above 0, unless by rounding
SLOW = 2                    # seconds after which loading shows a bar


def load_examples(
    path, tokenizer, max_len: int, negatives=None, columns: dict[str, str] | None = None,
    chat: bool = False, all_turns: bool = False,
) -> tuple[list[Example], int]:
    """The examples of a data file, and how many of them had to be truncated to max_len tokens.

    negatives  a pool of sampled answers, which take the place of all answers but the wanted one.
               A file whose rows hold {"prompt", "negatives": [text, …]} as `minialign sample`
               writes it (with "ref_logps" and "finished", one per text, if known), or
               {"prompt", "completion"} rows from elsewhere; joined to the data by prompt
    columns, chat, all_turns    as in `read_rows`: what the columns of other layouts mean, strings
               as messages, every assistant message of a conversation instead of the last one

    Raises ValueError, with the file and the line, for a row that cannot be used.
    """
    rows = read_rows(path, columns, chat, all_turns)
    if negatives:
        join_pool(rows, read_negatives(negatives, chat), path, negatives)

    examples, truncated = [], 0
    with bar(len(rows), "encode", "row", stay=False, delay=SLOW) as shown:
        for begin in range(0, len(rows), AT_A_TIME):
            some = rows[begin : begin + AT_A_TIME]
            for row, ids in zip(some, encode_rows(tokenizer, some), strict=True):
                example, cut = make_example(len(examples), row, *ids, max_len)
                examples.append(example)
                truncated += cut
            shown.update(len(some))
    return examples, truncated


def make_example(
    index: int, row: Row, prompt: list[int], answers: list[list[int]], max_len: int
) -> tuple[Example, bool]:
    """The example of a row and its token ids, and whether anything had to be cut off."""
    for answer, ids in zip(row.answers, answers, strict=True):
        if answer is not None and not ids:
            raise ValueError(f"{row.where}: an answer has no tokens; remove the line or fill it in")
    prompt, answers, cut = truncate(prompt, answers, max_len)
    # Log-probs of whole answers are not those of answers that lose their end.
    ref_logps = None if cut else row.ref_logps
    text = {"where": row.where, "prompt": row.prompt, "answers": row.answers, "unused": row.unused}
    return Example(index, prompt, answers, ref_logps, row.rewards, text=text), cut


# --------------------------------------------------------------------------------- what is shown


def show_example(tokenizer, example: Example) -> str:
    """An example as the model reads it: prompt | answer, special tokens and control characters
    visible, what is long shortened in its middle.
    """
    answer = next(ids for ids in example.answers if ids)
    prompt = tokenizer.decode(example.prompt, skip_special_tokens=False)
    whole = tokenizer.decode(example.prompt + answer, skip_special_tokens=False)
    # Decoded alone, the first word of an answer may lose the space before it.
    said = whole.removeprefix(prompt)
    if said == whole:
        said = tokenizer.decode(answer, skip_special_tokens=False)
    return f"{in_short(prompt)} | {in_short(said)}"


def in_short(text: str, most: int = 300) -> str:
    """At most about 300 characters of a text, on one line and safe to print."""
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    letters = [c if c.isprintable() else c.encode("unicode_escape").decode() for c in text]
    return "".join(letters)


def remarks(tokenizer, examples: list[Example]) -> list[str]:
    """What a user should know of the data before training: columns and a template left unused."""
    unused = set()
    for example in examples:
        unused |= set(example.text["unused"])
    found = []
    if unused:
        found.append(f"columns not used: {', '.join(sorted(unused))}")
    prompts = [example.text["prompt"] for example in examples]
    if tokenizer.chat_template and any(prompt and isinstance(prompt, str) for prompt in prompts):
        found.append("these are strings, so the model's chat template is not applied; "
                     "--chat makes messages of them")
    return found


# ------------------------------------------------------------------------------ sampled negatives


def join_pool(rows: list[Row], pool: dict[str, list[dict]], path, negatives) -> None:
    """Put the sampled answers to every prompt in the place of all answers but the wanted one."""
    for row in rows:
        sampled = pool.get(as_key(row.prompt), [])
        if not sampled:
            raise ValueError(f"{row.where}: no negatives for this prompt in {negatives}; "
                             f"make them with 'minialign sample --data {path} --out {negatives}'")
        row.answers = row.answers[:1] + [as_answer(row.prompt, s["text"]) for s in sampled]
        row.finished = [True] + [s["finished"] for s in sampled]
        row.ref_logps = [None] + [s["ref_logp"] for s in sampled]
        row.rewards = None


def read_negatives(path, chat: bool = False) -> dict[str, list[dict]]:
    """A pool of sampled answers: {as_key(prompt): [{"text", "finished", "ref_logp"}, …]}.

    Answers stand in the order of the file; `chat` makes a user's message of a prompt that is a
    string. Raises ValueError for the first row that cannot be used.
    """
    pool = {}
    for where, row in read_file(path):
        texts = row.get("negatives")
        if "negatives" not in row and "completion" in row:
            texts = [row["completion"]]
        if "prompt" not in row or not isinstance(texts, list) or not texts:
            raise ValueError(f'{where}: expected {{"prompt", "negatives": [text, …]}} '
                             'or {"prompt", "completion"}')

        finished = row.get("finished", [True] * len(texts))
        ref_logps = row.get("ref_logps", [None] * len(texts))
        for name, values in (("finished", finished), ("ref_logps", ref_logps)):
            if not isinstance(values, list) or len(values) != len(texts):
                raise ValueError(f"{where}: '{name}' must be a list with one value per answer, "
                                 f"{len(texts)} here")

        prompt = row["prompt"]
        if prompt != "":
            prompt = check_text(where, "prompt", prompt)
        if chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        answers = pool.setdefault(as_key(prompt), [])
        for text, done, ref_logp in zip(texts, finished, ref_logps, strict=True):
            text = as_text(text)
            if ref_logp is not None and not is_number(ref_logp):
                raise ValueError(f"{where}: 'ref_logps' holds something that is not a finite "
                                 "number")
            if ref_logp is not None and not SMALLEST < ref_logp < ROUNDING:
                raise ValueError(f"{where}: 'ref_logps' holds {ref_logp}, which is no log-prob of "
                                 'an answer; draw the pool again, or delete "ref_logps" from it')
            if not isinstance(done, bool):
                raise ValueError(f"{where}: 'finished' must hold true or false for every answer")
            if not isinstance(text, str) or not (text or done):
                raise ValueError(f"{where}: an answer that is no text, or empty and cut off; "
                                 "remove it from 'negatives'")
            answers.append({"text": text, "finished": done, "ref_logp": ref_logp})
    return pool
