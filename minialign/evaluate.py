"""How good a model is on a file of examples: log-probs, perplexity, preference accuracy,
and its own answers against the wanted ones.
"""

import json
import math
import re
from collections import Counter

import torch
from tqdm import tqdm

from minialign.data import collate
from minialign.hf.datafiles import load_examples
from minialign.hf.folders import load_model
from minialign.hf.rows import as_text
from minialign.logps import batch_logps
from minialign.verbs.sample import answers


@torch.no_grad()
def answer_logps(model, examples, batch_size: int, progress: bool = True) -> tuple[list[list[float]], list[list[int]]]:
    """Summed log-prob and number of tokens of every answer of every example."""
    sums, lengths = [], []
    for i in tqdm(range(0, len(examples), batch_size), desc="log-probs", disable=not progress, leave=False):
        part = examples[i : i + batch_size]
        batch = collate(part).to(model.head.device)
        l = batch_logps(model, batch).double().sum(-1).T.tolist()       # (b, A)
        if not all(math.isfinite(x) for row in l for x in row):
            raise FloatingPointError("the model's log-probs are not finite; its weights are damaged or overflow in this dtype")
        sums += [row[: len(e.answers)] for row, e in zip(l, part, strict=True)]
        lengths += [[len(a) for a in e.answers] for e in part]
    return sums, lengths


def final_answer(text: str) -> str:
    """What counts in exact match: the text behind the last "####" as in GSM8K, else all of it;
    commas in numbers and spaces do not.
    """
    text = text.rsplit("####", 1)[-1].strip().rstrip(".")
    return re.sub(r"(?<=\d),(?=\d{3})", "", re.sub(r"\s+", " ", text))


def words_13a(text: str) -> list[str]:
    """The words of mteval-v13a, on which BLEU is usually reported: punctuation apart, but not in numbers; apostrophes stay."""
    text = re.sub(r"([{-~\[-` -&(-+:-@/])", r" \1 ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def bleu4(candidates: list[str], references: list[str]) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002), 0 to 1, one reference each, words_13a, no smoothing."""
    hits, totals, lengths = [0] * 4, [0] * 4, [0, 0]
    for candidate, reference in zip(candidates, references, strict=True):
        c, r = words_13a(candidate), words_13a(reference)
        lengths = [lengths[0] + len(c), lengths[1] + len(r)]
        for n in range(4):
            grams = Counter(tuple(c[i : i + n + 1]) for i in range(len(c) - n))
            wanted = Counter(tuple(r[i : i + n + 1]) for i in range(len(r) - n))
            hits[n] += sum((grams & wanted).values())
            totals[n] += sum(grams.values())
    if not all(hits):
        return 0.0
    brevity = min(0.0, 1 - lengths[1] / lengths[0])
    return math.exp(brevity + sum(math.log(h / t) for h, t in zip(hits, totals, strict=True)) / 4)


def rouge_l(candidates: list[str], references: list[str]) -> float:
    """Mean ROUGE-L F1 (Lin 2004): the longest common subsequence of lower-case alphanumeric words against both lengths."""
    scores = []
    for candidate, reference in zip(candidates, references, strict=True):
        c, r = (re.findall(r"[a-z0-9]+", text.lower()) for text in (candidate, reference))
        row = [0] * (len(r) + 1)                                # row[j]: longest common subsequence with the first j words of r
        for word in c:
            diagonal = 0
            for j, other in enumerate(r, start=1):
                diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
        scores.append(2 * row[-1] / (len(c) + len(r)) if c and r else 0.0)
    return sum(scores) / len(scores)


def marks(sums: list[list[float]], lengths: list[list[int]]) -> dict:
    """From the log-probs alone. Pairs are wanted answer against the next one; `margin` is in nats, per token where it says so."""
    wanted = [(l[0], n[0]) for l, n in zip(sums, lengths, strict=True) if n[0]]
    tokens = sum(n for _, n in wanted)
    per_token = sum(l for l, _ in wanted) / tokens if tokens else None
    pairs = [(l, n) for l, n in zip(sums, lengths, strict=True) if len(n) > 1 and n[0] and n[1]]
    total = [l[0] - l[1] for l, _ in pairs]
    mean = [l[0] / n[0] - l[1] / n[1] for l, n in pairs]
    share = lambda margins: sum(m > 0 for m in margins) / len(margins) if margins else None  # noqa: E731
    average = lambda margins: sum(margins) / len(margins) if margins else None  # noqa: E731
    return {"examples": len(sums), "tokens": tokens, "logp_per_token": per_token,
            "perplexity": None if per_token is None else math.exp(-per_token) if per_token > -700 else math.inf,
            "pair_accuracy": share(total), "margin": average(total),
            "pair_accuracy_per_token": share(mean), "margin_per_token": average(mean)}


def compare_answers(model, tokenizer, examples, args) -> tuple[dict, list[tuple[str, str, str]]]:
    """Greedy answers to the first prompts against the wanted ones; also (prompt, wanted, answer) to read."""
    chosen = [e for e in examples if e.answers[0]][: args.generate]
    if not chosen:
        raise ValueError(f"{args.data} has no row with a wanted answer to compare with; leave out --generate")
    generated = []
    for i in tqdm(range(0, len(chosen), args.batch), desc="answers", leave=False):
        prompts = [e.prompt for e in chosen[i : i + args.batch]]
        generated += [pool[0][0] for pool in answers(model, tokenizer, prompts, 1, args.max_new_tokens, 0.0, None, None, None)]
    wanted = [as_text(e.text["answers"][0]) for e in chosen]
    exact = sum(final_answer(a) == final_answer(b) for a, b in zip(generated, wanted, strict=True)) / len(chosen)
    panel = [(as_text(e.text["prompt"]), w, g) for e, w, g in zip(chosen, wanted, generated, strict=True)][:3]
    return {"exact_match": exact, "bleu4": bleu4(generated, wanted), "rouge_l": rouge_l(generated, wanted)}, panel


def run(args) -> None:
    """`minialign evaluate`."""
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    max_len = min(args.max_len or model.config.max_len, model.config.max_len)
    examples, truncated = load_examples(args.data, tokenizer, max_len)
    result = marks(*answer_logps(model, examples, args.batch))
    result |= {"truncated": truncated, "exact_match": None, "bleu4": None, "rouge_l": None}
    panel = []
    if args.generate:
        compared, panel = compare_answers(model, tokenizer, examples, args)
        result |= compared
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if value is not None:
            number = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"{name.replace('_', ' '):26}{number}")
    for prompt, wanted, generated in panel:
        print(f"\n── {prompt[-300:]}\nwanted  {wanted[:400]}\nanswer  {generated[:400]}")
