"""Answers drawn from a model: the pool of negatives that DFT learns against."""

import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from minialign.data import Example, collate
from minialign.files import can_write, write_text
from minialign.generate import answers, room
from minialign.hf.encoding import encode_answer, encode_prompt
from minialign.hf.folders import load_model
from minialign.hf.rows import as_answer, as_key, read_jsonl, split_row
from minialign.logps import batch_logps


def with_system(prompt, system: str | None):
    """The prompt under a system message: in its place among messages, in front of a string."""
    if not system:
        return prompt
    if isinstance(prompt, str):
        return system + prompt
    return [{"role": "system", "content": system}] + [m for m in prompt if m["role"] != "system"]


@torch.no_grad()
def score_pool(model, tokenizer, prompts: list, pools: list[list[tuple[str, bool]]]) -> list[list[float]]:
    """Summed log-prob of every answer in the pools under its prompt."""
    examples = []
    for i, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
        ids = [encode_answer(tokenizer, prompt, as_answer(prompt, text), done) for text, done in pool]
        examples.append(Example(i, encode_prompt(tokenizer, prompt), ids))
    batch = collate(examples).to(model.head.device)
    sums = batch_logps(model, batch).sum(-1).double().T                  # (prompts, k)
    if not sums.isfinite().all():
        raise FloatingPointError("the model's log-probs are not finite; its weights are damaged or overflow in this dtype")
    return [row[: len(pool)] for row, pool in zip(sums.tolist(), pools, strict=True)]


def unique_prompts(path) -> list[tuple[str, object]]:
    """("FILE line N", prompt) of a data file, each prompt once, in order."""
    prompts = {}
    for where, row in read_jsonl(path):
        prompt = split_row(where, row)[0]
        prompts.setdefault(as_key(prompt), (where, prompt))
    return list(prompts.values())


def encode_all(model, tokenizer, prompts: list[tuple[str, object]], system: str | None) -> list[list[int]]:
    """What the model will read for each of unique_prompts. ValueError names the first line that it cannot answer."""
    encoded = []
    for where, prompt in prompts:
        try:
            encoded.append(encode_prompt(tokenizer, with_system(prompt, system)))
            room(model, encoded[-1:], 1)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return encoded


def settings(model, args) -> str:
    """A digest of what the draws depend on, some numbers of every parameter included: a row of another draw is not continued."""
    names = "k", "system", "temperature", "top_k", "top_p", "max_new_tokens", "batch", "seed", "dtype"
    digest = hashlib.sha256(repr([getattr(args, name) for name in names]).encode())
    for p in model.parameters():
        digest.update(p.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def finished_rows(out: Path, prompts: list, draw: str) -> list[str]:
    """The lines of an interrupted pool that stay; a torn last one goes. ValueError if the file is anything else."""
    if not out.exists():
        return []
    other = ValueError(f"{out} is no pool of these prompts drawn from this model with these settings; choose another --out")
    try:
        *lines, torn = out.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines]
        ours = all((row["draw"], row["prompt"]) == (draw, prompt) for row, prompt in zip(rows, prompts, strict=False))
    except (OSError, ValueError, KeyError, TypeError):
        raise other from None
    opening = json.dumps({"draw": draw})[:-1]
    if not ours or len(rows) > len(prompts) or torn[: len(opening)] != opening[: len(torn)]:
        raise other
    return lines


def run(args) -> None:
    """`minialign sample`: a line per prompt, {"draw", "prompt", "negatives", "finished", "ref_logps"}, and
    "augmented_ref_logps" with --system.

    ref_logps are summed log-probs under the prompt as it will be trained on (what DFT's released code divides by); the augmented
    ones are under the prompt the answers were drawn from (what the paper writes).
    """
    rows, out = unique_prompts(args.data), Path(args.out)
    can_write(file=out)
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    asked_ids = encode_all(model, tokenizer, rows, args.system)
    prompts = [prompt for _, prompt in rows]
    asked = [with_system(prompt, args.system) for prompt in prompts]
    draw = settings(model, args)
    lines = finished_rows(out, prompts, draw)
    done = len(lines) if len(lines) == len(prompts) else len(lines) - len(lines) % args.batch   # draws depend on whole batches
    write_text(out, "".join(line + "\n" for line in lines[:done]))
    with open(out, "a", encoding="utf-8") as file, tqdm(total=len(prompts), initial=done, desc="sample", unit="prompt") as bar:
        for begin in range(done, len(prompts), args.batch):
            here = slice(begin, begin + args.batch)
            generator = torch.Generator(model.head.device).manual_seed(1_000_003 * args.seed + begin)
            pools = answers(model, tokenizer, asked_ids[here], args.k, args.max_new_tokens, args.temperature, args.top_k,
                            args.top_p, generator)
            pools = [pool if isinstance(prompt, str) else [(text.strip(), done) for text, done in pool]     # templates do as much
                     for prompt, pool in zip(prompts[here], pools, strict=True)]
            columns = {"ref_logps": score_pool(model, tokenizer, prompts[here], pools)}
            if args.system:
                columns["augmented_ref_logps"] = score_pool(model, tokenizer, asked[here], pools)
            for i, (prompt, pool) in enumerate(zip(prompts[here], pools, strict=True)):
                row = {"draw": draw, "prompt": prompt, "negatives": [text for text, _ in pool],
                       "finished": [ended or not text for text, ended in pool]}
                file.write(json.dumps(row | {name: values[i] for name, values in columns.items()}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(prompts[here]))
    print(f"{len(prompts)} prompts with {args.k} answers each: {out}")
