"""`minialign sample`: a pool of a model's own answers, which methods such as DFT learn against.

A pool is a JSONL file, one line per prompt: {"draw", "prompt", "negatives", "finished",
"ref_logps"}. "draw" is a digest of all that the draws depend on, so that a pool that was
interrupted can be continued, and no other one is.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from minialign import parallel
from minialign.bench.sheet import check_fits, sampling_sheet
from minialign.data import Example, collate
from minialign.files import can_write, lock
from minialign.generate import READ_TOKENS, answers, room
from minialign.hf.encoding import encode_answer, encode_prompt
from minialign.hf.folders import check_device
from minialign.hf.jsonfiles import parse_object
from minialign.hf.rows import as_answer, as_key, read_rows
from minialign.logps import batch_logps
from minialign.model import Config
from minialign.progress import bar
from minialign.settings import setting
from minialign.train import passes
from minialign.verbs.flags import ALL_TURNS, CHAT, COLUMNS, DTYPES, reading
from minialign.verbs.models import digest_of, read_weights, shape_and_tokenizer

DRAW = ("chat_template", "k", "system", "temperature", "top_k", "top_p", "max_new_tokens", "batch",
        "seed", "dtype")
Pool = list[tuple[str, bool]]       # the answers to one prompt, each with "it came to its end"


@dataclass(frozen=True)
class Flags:
    """What to draw from, how often, and how."""

    model: str = setting(
        ..., "model to draw from, the reference of dft: a folder, adapter, or OWNER/NAME on the "
        "Hugging Face hub, stories260K or llama2xs, which ship with this package, or small: the "
        "small GPT of compare, of this --seed")
    data: str = setting(
        ..., "a data file whose prompts to answer, in any of the layouts of train, or with prompts "
        "alone")
    out: str = setting(
        ..., "JSONL file to append to, a line per prompt; the same command continues a file that "
        "was interrupted")
    columns: str | None = setting(None, COLUMNS)
    chat: bool = setting(False, CHAT)
    all_turns: bool = setting(False, ALL_TURNS)
    k: int = setting(
        2, "answers per prompt; for fresh ones in every epoch take k × epochs", least=1)
    chat_template: str | None = setting(
        None, "Jinja file with a chat template, instead of the one in the model folder")
    system: str | None = setting(
        None, "system message while sampling, such as a request for bad answers (written in front "
        "of prompts that are strings, on a line of its own unless it ends with a space)")
    temperature: float = setting(0.7, "0 takes the likeliest token", least=0)
    top_k: int | None = setting(50, "draw among the k likeliest tokens", least=1)
    top_p: float | None = setting(
        None, "draw among the likeliest tokens that hold this share of it all", above=0, most=1)
    max_new_tokens: int = setting(128, "longest answer", least=1, most=10**6)
    batch: int = setting(16, "prompts at a time", least=1)
    seed: int = setting(0, "what the draws depend on", least=0, most=10**9)
    dtype: str = setting("float32", "the model's numbers", choices=DTYPES)
    device: str = setting("cpu", "cpu, cuda, cuda:1, mps, or auto: the best there is")


def run(flags: Flags) -> None:
    """Draw --k answers to every prompt of --data, and append a line per prompt to --out."""
    parallel.begin(flags.device)
    rows, out = unique_prompts(flags), Path(flags.out)
    if parallel.first():
        can_write(file=out)
    config, tokenizer = shape_and_tokenizer(flags.model, flags.chat_template)
    encoded = encode_all(config, tokenizer, rows, flags.system)
    check_memory(config, encoded, flags)
    model = read_weights(flags.model, config, flags.dtype, flags.device, flags.seed)
    prompts = [prompt for _, prompt in rows]

    def draw_batch(begin: int) -> list[dict]:
        """Lines of the pool for --batch prompts from number `begin` on."""
        here = slice(begin, begin + flags.batch)
        generator = torch.Generator(model.head.device)
        generator.manual_seed(1_000_003 * flags.seed + begin)
        drawn = answers(
            model, tokenizer, encoded[here], flags.k, flags.max_new_tokens,
            flags.temperature, flags.top_k, flags.top_p, generator)
        return pool_rows(model, tokenizer, prompts[here], drawn, flags.system)

    # The draws of a batch depend on all of it, so a pool is continued after its last whole batch.
    # Of several processes the first one alone has the file.
    draw, done = digest(flags), 0
    with open(out if parallel.first() else os.devnull, "a", encoding="utf-8", newline="\n") as file:
        if parallel.first():
            lock(file.fileno(), out)
            lines = finished_rows(out, prompts, draw)
            done = len(lines)
            if done < len(prompts):
                done -= done % flags.batch
            file.truncate(sum(len(line) + 1 for line in lines[:done]))
        done = parallel.gather(done)[0]

        with bar(len(prompts), "sample", "prompt", done) as shown:
            for drawn in parallel.dealt(draw_batch, range(done, len(prompts), flags.batch)):
                for row in drawn:
                    file.write(json.dumps({"draw": draw, **row}, ensure_ascii=False) + "\n")
                file.flush()
                shown.update(len(drawn))
    print(f"{len(prompts)} prompts with {flags.k} answers each: {out}")


def check_memory(config: Config, encoded: list[list[int]], flags: Flags) -> None:
    """ValueError, before a weight is read, if drawing takes more memory than there is."""
    longest = max([1, *map(len, encoded)])
    new = min(flags.max_new_tokens, config.max_len - 1)
    device = check_device(flags.device)
    parts = sampling_sheet(
        config, flags.dtype, device, min(flags.batch, len(encoded)), longest, flags.k, new,
        flags.top_k)
    advice = "a smaller --batch, --k or --max-new-tokens, --dtype bfloat16"
    check_fits(parts, device, advice, "drawing answers")


def pool_rows(model, tokenizer, prompts: list, drawn: list[Pool], system: str | None) -> list[dict]:
    """What a line of the pool holds, for every prompt, but for its "draw".

    "ref_logps" are summed log-probs of the answers under the prompt as it will be trained on: what
    DFT's released code divides by. With a system message "augmented_ref_logps" are those under
    the prompt that the answers were drawn from: what the paper writes.
    """
    # A chat template strips the spaces around a message, so they go before the log-probs are taken.
    pools = []
    for prompt, pool in zip(prompts, drawn, strict=True):
        if not isinstance(prompt, str):
            pool = [(text.strip(), finished) for text, finished in pool]
        pools.append(pool)
    ref_logps = score_pool(model, tokenizer, prompts, pools)
    if system:
        asked = [with_system(prompt, system) for prompt in prompts]
        augmented = score_pool(model, tokenizer, asked, pools)
    rows = []
    for i, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
        row = {
            "prompt": prompt,
            "negatives": [text for text, _ in pool],
            "finished": [finished or not text for text, finished in pool],
            "ref_logps": ref_logps[i],
        }
        if system:
            row["augmented_ref_logps"] = augmented[i]
        rows.append(row)
    return rows


@torch.no_grad()
def score_pool(model, tokenizer, prompts: list, pools: list[Pool]) -> list[list[float]]:
    """Summed log-prob of every answer in the pools under its prompt."""
    examples = []
    for i, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
        ids = []
        for text, finished in pool:
            ids.append(encode_answer(tokenizer, prompt, as_answer(prompt, text), finished))
        examples.append(Example(i, encode_prompt(tokenizer, prompt), ids))
    sums = torch.zeros(len(pools), max(map(len, pools)), dtype=torch.float64)       # (prompts, k)
    for part in passes(examples, len(examples), READ_TOKENS):
        summed = batch_logps(model, collate(part).to(model.head.device)).sum(-1)    # (k, part)
        sums[[e.index for e in part], : len(summed)] = summed.cpu().double().T
    if not sums.isfinite().all():
        raise FloatingPointError("the model's log-probs are not finite; its weights are damaged or "
                                 "overflow in this dtype")
    return [row[: len(pool)] for row, pool in zip(sums.tolist(), pools, strict=True)]


# ---------------------------------------------------------------------- the prompts


def with_system(prompt, system: str | None):
    """The prompt under a system message: in its place among messages, in front of a string."""
    if not system:
        return prompt
    if isinstance(prompt, str):
        # A message that brings no white space at its end gets a line of its own.
        gap = "" if system[-1].isspace() else "\n"
        return system + gap + prompt
    others = [message for message in prompt if message["role"] != "system"]
    return [{"role": "system", "content": system}, *others]


def unique_prompts(flags: Flags) -> list[tuple[str, object]]:
    """("FILE line N", prompt) of the data file, each prompt once, in order."""
    prompts = {}
    for row in read_rows(flags.data, **reading(flags), prompts_only=True):
        if row.tools:
            raise ValueError(f"{row.where}: prompts with tools are not answered here; remove "
                             "the column, or draw the answers as minialign/hf/README.md says")
        prompts.setdefault(as_key(row.prompt), (row.where, row.prompt))
    return list(prompts.values())


def encode_all(config: Config, tokenizer, prompts: list, system: str | None) -> list[list[int]]:
    """What the model will read for each of `unique_prompts`.

    ValueError names the first line that it cannot answer.
    """
    encoded = []
    for where, prompt in prompts:
        try:
            ids = encode_prompt(tokenizer, with_system(prompt, system))
            room(config, [ids], 1)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        encoded.append(ids)
    return encoded


# ---------------------------------------------------------------------- an interrupted pool


def digest(flags: Flags) -> str:
    """MODEL-FLAGS: a digest of the model, and one of the flags that the draws depend on."""
    values = [getattr(flags, name) for name in DRAW]
    of_flags = hashlib.sha256(repr(values).encode()).hexdigest()[:12]
    return f"{digest_of(flags.model, flags.seed)}-{of_flags}"


def finished_rows(out: Path, prompts: list, draw: str) -> list[bytes]:
    """The whole lines of an interrupted pool. ValueError if the file is anything else.

    A last line that was torn by the interruption is left out, if it began as a line of this pool.
    """
    other = ValueError(f"{out} is no pool of these prompts drawn from this model with these "
                       "settings; choose another --out")
    try:
        *lines, torn = out.read_bytes().split(b"\n")
        made = []
        for line in lines:
            row = parse_object(line, str(out), "")
            made.append((row["draw"], row["prompt"]))
    except (ValueError, KeyError):
        raise other from None
    expected = [(draw, prompt) for prompt in prompts[: len(made)]]
    opening = json.dumps({"draw": draw})[:-1].encode()
    if made != expected or torn[: len(opening)] != opening[: len(torn)]:
        raise other
    return lines
