"""Texts of real models: written, turned into examples, and what they cost under a judge."""

import math
from functools import lru_cache

import torch

from minialign.data import Example, collate
from minialign.generate import answers
from minialign.hf.encoding import encode_rows
from minialign.hf.folders import load_model
from minialign.hf.rows import Row
from minialign.logps import batch_logps

AT_A_TIME = 128                 # texts that are written or scored together


@lru_cache
def opened(name: str):
    """A model that is only read, and its tokenizer; each process keeps it."""
    return load_model(name)


def write(model, tokenizer, prompts: list[str], k: int, new: int, seed: int,
          temperature: float = 1.0, top_k: int | None = None) -> list[list[tuple[str, bool]]]:
    """k continuations of every prompt, up to `new` tokens, each as (text, finished)."""
    draw = torch.Generator().manual_seed(seed)
    encoded = [ids for ids, _ in encode_rows(tokenizer, [Row("", p, []) for p in prompts])]
    pools = []
    per_batch = max(1, AT_A_TIME // k)
    for begin in range(0, len(prompts), per_batch):
        part = encoded[begin : begin + per_batch]
        pools += answers(model, tokenizer, part, k, new, temperature, top_k, None, draw)
    return pools


def as_examples(tokenizer, prompts: list[str], pools: list[list[tuple[str, bool]]]):
    """Prompts with their continuations, in order, as examples; unfinished ones have no end."""
    rows = []
    for prompt, pool in zip(prompts, pools, strict=True):
        texts = [text for text, _ in pool]
        # A continuation without any text consists of its end alone.
        finished = [done or not text for text, done in pool]
        rows.append(Row("", prompt, texts, finished=finished))
    encoded = encode_rows(tokenizer, rows)
    return [Example(i, prompt, texts) for i, (prompt, texts) in enumerate(encoded)]


@torch.no_grad()
def bits(judge, prompts: list[str], texts: list[str]) -> list[float]:
    """Bits per character of the texts behind their prompts under a judge: (model, tokenizer).

    →   four numbers: of all the text, and of the first, second and last third of its tokens
    """
    model, tokenizer = judge
    rows = [Row("", prompt, [text], finished=[False])
            for prompt, text in zip(prompts, texts, strict=True) if text]
    encoded = [(prompt, ids) for prompt, [ids] in encode_rows(tokenizer, rows) if ids]
    nats, letters = [0.0] * 3, [0] * 3
    for begin in range(0, len(encoded), AT_A_TIME):
        part = encoded[begin : begin + AT_A_TIME]
        batch = collate([Example(i, prompt, [ids]) for i, (prompt, ids) in enumerate(part)])
        logps = batch_logps(model, batch)[0].double()                   # (b, T)
        for (prompt, ids), row in zip(part, logps, strict=True):
            cuts = [round(len(ids) * third / 3) for third in range(4)]
            ends = [len(tokenizer.decode(prompt + ids[:cut])) for cut in cuts]
            for third in range(3):
                nats[third] -= float(row[cuts[third] : cuts[third + 1]].sum())
                letters[third] += ends[third + 1] - ends[third]
    totals = [sum(nats), *nats]
    return [x / math.log(2) / max(1, n)
            for x, n in zip(totals, [sum(letters), *letters], strict=True)]


def distinct(texts: list[str], n: int = 3) -> float:
    """The share of different ones among all runs of n words in the texts."""
    runs = []
    for text in texts:
        words = text.split()
        runs += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(runs)) / max(1, len(runs))
