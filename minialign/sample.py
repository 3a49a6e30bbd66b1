"""Answers drawn from a model: the pool of negatives that DFT learns against, and one prompt continued on the terminal."""

import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from minialign.data import Example, collate, shared_row_pays
from minialign.files import write_text
from minialign.jsonl import as_key, encode_answer, encode_prompt, read_jsonl, split_row
from minialign.load import load_model
from minialign.logps import batch_logps


def with_system(prompt, system: str | None):
    """The prompt under a system message: in its place among messages, in front of a string."""
    if not system:
        return prompt
    if isinstance(prompt, str):
        return system + prompt
    return [{"role": "system", "content": system}] + [m for m in prompt if m["role"] != "system"]


@torch.no_grad()
def answers(model, tokenizer, prompts: list[list[int]], k: int, max_new_tokens: int, temperature: float, top_k: int | None,
            top_p: float | None, generator: torch.Generator) -> list[list[tuple[str, bool]]]:
    """k answers to every prompt: (text, finished), where an unfinished one ran into max_new_tokens."""
    device = model.head.device
    lengths = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(k)
    longest = max(map(len, prompts))
    padded = [p + [0] * (longest - len(p)) for p in prompts]
    tokens = torch.tensor(padded, device=device).repeat_interleave(k, 0)            # (prompts · k, L)
    out = model.generate(tokens, max_new_tokens, temperature, top_k, top_p, tokenizer.stop_ids, lengths, generator).tolist()
    pairs = []
    for ids, n in zip(out, lengths.tolist(), strict=True):
        new = ids[n : n + max_new_tokens]
        end = next((i for i, token in enumerate(new) if token in tokenizer.stop_ids), None)
        text = tokenizer.decode(new[:end])
        pairs.append((text, end is not None or not text))
    return [pairs[i : i + k] for i in range(0, len(pairs), k)]


@torch.no_grad()
def score_pool(model, tokenizer, prompts: list, pools: list[list[tuple[str, bool]]]) -> list[list[float]]:
    """Summed log-prob of every answer in the pools under its prompt."""
    examples = []
    for i, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
        ids = [encode_answer(tokenizer, prompt, as_answer(prompt, text), done) for text, done in pool]
        examples.append(Example(i, encode_prompt(tokenizer, prompt), ids))
    batch = collate(examples, shared_row_pays(examples, model.config)).to(model.head.device)
    sums = batch_logps(model, batch).sum(-1).double().T.tolist()         # (prompts, k)
    return [row[: len(pool)] for row, pool in zip(sums, pools, strict=True)]


def as_answer(prompt, text: str):
    """An answer's text in the form its prompt has."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def unique_prompts(path) -> list:
    """The prompts of a data file, each once, in order."""
    prompts = {}
    for where, row in read_jsonl(path):
        prompt = split_row(where, row)[0]
        prompts.setdefault(as_key(prompt), prompt)
    return list(prompts.values())


def finished_rows(out: Path, prompts: list, args) -> int:
    """How many prompts an interrupted file has already; a torn last line is removed.

    ValueError if the file belongs to something else.
    """
    if not out.exists():
        return 0
    lines = out.read_text(encoding="utf-8").split("\n")[:-1]     # what follows the last newline was cut off while being written
    try:
        rows = [json.loads(line) for line in lines]
        if [row["prompt"] for row in rows] != prompts[: len(rows)] or any(len(row["negatives"]) != args.k for row in rows):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{out} holds other prompts, or another number of answers than --k {args.k}; "
                         "choose another --out, or delete it") from None
    done = len(rows) if len(rows) == len(prompts) else len(rows) - len(rows) % args.batch   # draws depend on whole batches
    write_text(out, "".join(line + "\n" for line in lines[:done]))
    return done


def run(args) -> None:
    """`minialign sample`: a line per prompt, {"prompt", "negatives", "finished", "ref_logps"},
    and "augmented_ref_logps" with --system.

    ref_logps are summed log-probs under the prompt as it will be trained on (what DFT's released code divides by); the augmented
    ones are under the prompt the answers were drawn from (what the paper writes).
    """
    prompts, out = unique_prompts(args.data), Path(args.out)
    done = finished_rows(out, prompts, args)
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8") as file, tqdm(total=len(prompts), initial=done, desc="sample", unit="prompt") as bar:
        for begin in range(done, len(prompts), args.batch):
            part = prompts[begin : begin + args.batch]
            asked = [with_system(prompt, args.system) for prompt in part]
            generator = torch.Generator(model.head.device).manual_seed(1_000_003 * args.seed + begin)
            pools = answers(model, tokenizer, [encode_prompt(tokenizer, prompt) for prompt in asked], args.k, args.max_new_tokens,
                            args.temperature, args.top_k, args.top_p, generator)
            columns = {"ref_logps": score_pool(model, tokenizer, part, pools)}
            if args.system:
                columns["augmented_ref_logps"] = score_pool(model, tokenizer, asked, pools)
            for i, (prompt, pool) in enumerate(zip(part, pools, strict=True)):
                row = {"prompt": prompt, "negatives": [text for text, _ in pool], "finished": [ended for _, ended in pool]}
                file.write(json.dumps(row | {name: values[i] for name, values in columns.items()}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(part))
    print(f"{len(prompts)} prompts with {args.k} answers each: {out}")


def talk(args) -> None:
    """`minialign generate`: the prompt's continuation, written as it comes."""
    model, tokenizer = load_model(args.model, args.dtype, args.device)
    chat = tokenizer.chat_template is not None and not args.raw
    ids = encode_prompt(tokenizer, [{"role": "user", "content": args.prompt}] if chat else args.prompt)
    generator = torch.Generator(model.head.device).manual_seed(args.seed)
    if not chat:
        sys.stdout.write(args.prompt)
    tokens, new, written = torch.tensor([ids], device=model.head.device), [], ""
    for token in model.stream(tokens, args.max_new_tokens, 0.0 if args.greedy else args.temperature, args.top_k, args.top_p,
                              tokenizer.stop_ids, generator=generator):
        if int(token) in tokenizer.stop_ids:
            break
        new.append(int(token))
        text = tokenizer.decode(ids + new)[len(tokenizer.decode(ids)) :]
        if not text.endswith("\ufffd"):                                  # half a character: wait for its other bytes
            sys.stdout.write(text[len(written) :])
            sys.stdout.flush()
            written = text
    print()
