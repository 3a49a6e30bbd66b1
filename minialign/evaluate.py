"""How good a model is on examples: log-probs, perplexity, preference accuracy, and its own answers.

`answer_logps` and `marks` ask what the model thinks of answers that are given; `compare_answers`
lets it answer by itself, and compares text with text. Nothing here reads files or prints.
"""

import math
import re
from collections import Counter

import torch
from torch import Tensor

from minialign import parallel
from minialign.data import collate
from minialign.generate import answers
from minialign.logps import batch_logps
from minialign.progress import tracked


@torch.no_grad()
def answer_logps(model, examples, batch_size: int,
                 progress: bool = True) -> tuple[list[list[float]], list[list[int]]]:
    """Summed log-prob and number of tokens of every answer of every example."""
    def ask(part) -> Tensor:
        batch = collate(part).to(model.head.device)
        return batch_logps(model, batch).cpu().double().sum(-1)         # (A, b)

    sums, lengths = [], []
    parts = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    shown = tracked(parts, "log-probs", show=progress)
    for part, l in zip(shown, parallel.dealt(ask, parts), strict=True):
        if not l.isfinite().all():
            raise FloatingPointError("the model's log-probs are not finite; "
                                     "its weights are damaged or overflow in this dtype")

        # Examples with fewer than A answers have their own first, and nothing behind them.
        for example, row in zip(part, l.T.tolist(), strict=True):
            sums.append(row[: len(example.answers)])
            lengths.append([len(answer) for answer in example.answers])
    return sums, lengths


def marks(sums: list[list[float]], lengths: list[list[int]]) -> dict:
    """What log-probs and lengths of answers, as from `answer_logps`, say about a model.

    Pairs are the wanted answer (0) against the next one (1). A margin is how many nats the wanted
    one is ahead; with "per_token", both are divided by their lengths first. A mark is None if there
    is nothing to take it from.
    """
    tokens = 0                          # of the wanted answers
    wanted = 0.0                        # their log-prob
    margins: list[float] = []
    margins_per_token: list[float] = []
    for l, n in zip(sums, lengths, strict=True):
        if n[0]:
            tokens += n[0]
            wanted += l[0]
        if len(n) > 1 and n[0] and n[1]:
            margins.append(l[0] - l[1])
            margins_per_token.append(l[0] / n[0] - l[1] / n[1])

    # e⁷⁰⁹ is the largest number there is.
    per_token = perplexity = None
    if tokens:
        per_token = wanted / tokens
        perplexity = math.exp(-per_token) if per_token > -700 else math.inf
    return {
        "examples": len(sums),
        "tokens": tokens,
        "logp_per_token": per_token,
        "perplexity": perplexity,
        "pair_accuracy": share_above_zero(margins),
        "margin": mean(margins),
        "pair_accuracy_per_token": share_above_zero(margins_per_token),
        "margin_per_token": mean(margins_per_token),
    }


def mean(values: list[float]) -> float | None:
    """None for no values."""
    return sum(values) / len(values) if values else None


def share_above_zero(values: list[float]) -> float | None:
    """How many of the values are above 0, as a share; None for no values."""
    return mean([float(value > 0) for value in values])


def compare_answers(model, tokenizer, prompts: list[list[int]], wanted: list[str], batch_size: int,
                    max_new_tokens: int, progress: bool = True) -> tuple[dict, list[str]]:
    """Answer the prompts greedily: marks against the wanted texts, and the answers to read."""
    def answer(part: list[list[int]]) -> list[str]:
        pools = answers(model, tokenizer, part, 1, max_new_tokens, temperature=0.0)
        return [text for [(text, _)] in pools]

    parts = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    shown = tracked(parts, "answers", show=progress)
    generated = []
    for _, texts in zip(shown, parallel.dealt(answer, parts), strict=True):
        generated += texts

    # Three marks, from the strictest to the most lenient.
    pairs = zip(generated, wanted, strict=True)
    exact = sum(final_answer(text) == final_answer(other) for text, other in pairs)
    compared = {
        "exact_match": exact / len(wanted),
        "bleu4": bleu4(generated, wanted),
        "rouge_l": rouge_l(generated, wanted),
    }
    return compared, generated


def final_answer(text: str) -> str:
    """What counts in exact match: the text behind the last "####" as in GSM8K, else all of it.

    Commas in numbers do not count, nor do a full stop at the end and how wide a space is.
    """
    text = text.rsplit("####", 1)[-1].strip().rstrip(".")
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)


def words_13a(text: str) -> list[str]:
    """The words of mteval-v13a, on which BLEU is usually reported.

    Punctuation stands apart, but not inside numbers; apostrophes stay where they are.
    """
    # All ASCII punctuation but apostrophe, comma, hyphen and full stop.
    text = re.sub(r"([{-~\[-` -&(-+:-@/])", r" \1 ", f" {text} ")

    # Commas and full stops, unless digits stand on both sides; hyphens behind a digit.
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])(-)", r"\1 \2 ", text)
    return text.split()


def bleu4(candidates: list[str], references: list[str]) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002), 0 to 1: one reference each, words_13a, no smoothing."""
    # Over the whole corpus, for runs of 1 to 4 words: how many there are in the candidates, and how
    # many of these the reference has too.
    hits, totals = [0] * 4, [0] * 4
    candidate_words = reference_words = 0
    for candidate, reference in zip(candidates, references, strict=True):
        c, r = words_13a(candidate), words_13a(reference)
        candidate_words += len(c)
        reference_words += len(r)
        for n in range(1, 5):
            found = Counter(tuple(c[i : i + n]) for i in range(len(c) - n + 1))
            expected = Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1))
            hits[n - 1] += (found & expected).total()
            totals[n - 1] += found.total()
    if not all(hits):
        return 0.0

    # The geometric mean of the four precisions, and a penalty for candidates that are too short.
    brevity = min(0.0, 1 - reference_words / candidate_words)
    precision = sum(math.log(h / t) for h, t in zip(hits, totals, strict=True)) / 4
    return math.exp(brevity + precision)


def rouge_l(candidates: list[str], references: list[str]) -> float:
    """Mean ROUGE-L F1 (Lin 2004), on lower-case alphanumeric words.

    The longest common subsequence of words, as a share of both lengths: 2 · common / (both).
    """
    scores = []
    for candidate, reference in zip(candidates, references, strict=True):
        c = re.findall(r"[a-z0-9]+", candidate.lower())
        r = re.findall(r"[a-z0-9]+", reference.lower())
        if c and r:
            scores.append(2 * common_subsequence(c, r) / (len(c) + len(r)))
        else:
            scores.append(0.0)
    return sum(scores) / len(scores)


def common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, one word of `a` at a time."""
    # longest[j] is the answer for the words of `a` so far and the first j words of b.
    longest = [0] * (len(b) + 1)
    for word in a:
        before = longest
        longest = [0]
        for j, other in enumerate(b):
            if word == other:
                longest.append(before[j] + 1)
            else:
                longest.append(max(before[j + 1], longest[j]))
    return longest[-1]
