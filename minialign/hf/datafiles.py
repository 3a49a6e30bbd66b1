"""Data files → examples: the rows of a file, joined with a pool of sampled negatives if given.

What a row means is told in rows.py, how it becomes token ids in encoding.py. Nothing is shifted or
masked here.
"""

from minialign.data import Example
from minialign.hf.encoding import encode_row, truncate
from minialign.hf.rows import as_answer, as_key, as_text, is_number, read_jsonl, split_row


def load_examples(path, tokenizer, max_len: int, negatives=None) -> tuple[list[Example], int]:
    """The examples of a data file, and how many of them had to be truncated to max_len tokens.

    negatives  a pool of sampled answers, which take the place of all answers but the wanted one.
               A JSONL file whose rows hold {"prompt", "negatives": [text, …]} as `minialign sample`
               writes it (with "ref_logps" and "finished", one per text, if known), or
               {"prompt", "completion"} rows from elsewhere; joined to the data by prompt

    Raises ValueError, with the file and the line, for the first row that cannot be used.
    """
    pool = read_negatives(negatives) if negatives else None
    examples, truncated, unmatched = [], 0, None
    for where, row in read_jsonl(path):
        prompt, answers, rewards = split_row(where, row)
        finished, ref_logps = [True] * len(answers), None
        if pool is not None:
            sampled = pool.get(as_key(prompt), [])
            if not sampled and unmatched is None:
                unmatched = where
            answers = answers[:1] + [as_answer(prompt, s["text"]) for s in sampled]
            finished = [True] + [s["finished"] for s in sampled]
            ref_logps, rewards = [None] + [s["ref_logp"] for s in sampled], None

        try:
            prompt_ids, answer_ids = encode_row(tokenizer, prompt, answers, finished)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for answer, ids in zip(answers, answer_ids, strict=True):
            if answer is not None and not ids:
                raise ValueError(f"{where}: an answer has no tokens; remove the line or fill it in")

        # Log-probs of whole answers are not those of answers that lose their end.
        prompt_ids, answer_ids, cut = truncate(prompt_ids, answer_ids, max_len)
        if cut:
            truncated += 1
            ref_logps = None
        text = {"where": where, "prompt": prompt, "answers": answers}
        index = len(examples)
        examples.append(Example(index, prompt_ids, answer_ids, ref_logps, rewards, text=text))

    if unmatched:
        raise ValueError(f"{unmatched}: no negatives for this prompt in {negatives}; "
                         f"make them with 'minialign sample --data {path} --out {negatives}'")
    return examples, truncated


def read_negatives(path) -> dict[str, list[dict]]:
    """A pool of sampled answers: {as_key(prompt): [{"text", "finished", "ref_logp"}, …]}.

    Answers stand in the order of the file. Raises ValueError for the first row that cannot be used.
    """
    pool = {}
    for where, row in read_jsonl(path):
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

        answers = pool.setdefault(as_key(row["prompt"]), [])
        for text, done, ref_logp in zip(texts, finished, ref_logps, strict=True):
            text = as_text(text)
            if ref_logp is not None and not is_number(ref_logp):
                raise ValueError(f"{where}: 'ref_logps' holds something that is not a finite "
                                 "number")
            if not isinstance(done, bool):
                raise ValueError(f"{where}: 'finished' must hold true or false for every answer")
            if not isinstance(text, str) or not (text or done):
                raise ValueError(f"{where}: an answer that is no text, or empty and cut off; "
                                 "remove it from 'negatives'")
            answers.append({"text": text, "finished": done, "ref_logp": ref_logp})
    return pool
