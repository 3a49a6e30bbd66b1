"""JSONL → Example → Batch: the only place that renders, shifts and masks.

An `Example` is a prompt with its answers, answer 0 the wanted one, as token ids. A `Batch` is what a method weighs, and carries
in `rows` what the network reads. No padding token, no label −100: a mask says which token is a response token.
"""

import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from minialign.model import Config

# ---------------------------------------------------------------------------------------------------- what a method sees

@dataclass(frozen=True)
class Counts:
    """What a mean divides by. Known before anything is computed, so that parts of a batch can be weighed one at a time."""

    examples: int       # prompts
    answers: int        # answers that are present, wanted or not
    tokens: int         # tokens of the wanted answers


@dataclass
class Rows:
    """What the network reads: R rows of L tokens, right-padded, and where in them the (A, B, T) response tokens are predicted."""

    tokens: Tensor              # (R, L) int
    positions: Tensor           # (R, L) int, restarting after the prompt for every answer
    segments: Tensor | None     # (R, L) int: 0 prompt, 1.. answers, −1 padding; None when every row holds one answer
    y: Tensor                   # (A, B, T) int, the response tokens
    source: Tensor              # (A, B, T) int, which of the R·L hidden states predicts y
    mask: Tensor                # (A, B, T) bool, where y is a token of an answer
    guesses: Tensor | None = None   # (A, B, T) int, the policy's own greedy tokens (IFT)


@dataclass
class Batch:
    """B prompts with up to A answers each, T the longest answer. `mask` (A, B, T): this is a token of that answer.

    An answer whose mask is empty is absent. Everything but the mask is optional; a method that misses something says so.
    """

    mask: Tensor                            # (A, B, T) bool
    index: Tensor | None = None             # (B,) int, the example's number in the data set
    ref_logps: Tensor | None = None         # (A, B) summed log-prob of each answer under the frozen reference
    rewards: Tensor | None = None           # (A, B)
    kl_logps: Tensor | None = None          # (B',) summed log-probs of mismatched answers, policy and reference (KTO)
    kl_ref_logps: Tensor | None = None
    counts: Counts | None = None            # of the whole optimizer batch that this is a part of; None = this is all
    rows: Rows | None = None
    kl_rows: Rows | None = None             # the mismatched (prompt, answer) pairs behind kl_logps

    def __post_init__(self):
        if self.mask.dim() != 3 or self.mask.dtype != torch.bool:
            raise ValueError(f"Batch.mask must be a bool tensor (A, B, T), not {self.mask.dtype} {tuple(self.mask.shape)}")
        if self.index is None:
            self.index = torch.arange(self.mask.shape[1], device=self.mask.device)
        if self.counts is None:
            self.counts = Counts(self.mask.shape[1], int(self.mask.any(-1).sum()), int(self.mask[0].sum()))

    def __len__(self) -> int:
        return self.mask.shape[1]

    def part(self, begin: int, end: int) -> "Batch":
        """Examples begin..end−1 as a batch of their own that still divides by the counts of the whole."""
        values = {name: getattr(self, name) for name in ("mask", "ref_logps", "rewards")}
        cut = {name: None if x is None else x[:, begin:end] for name, x in values.items()}
        return replace(self, **cut, index=self.index[begin:end], rows=None)

    def to(self, device) -> "Batch":
        moved = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                value = value.to(device)
            elif isinstance(value, Rows):
                value = Rows(**{g.name: x if (x := getattr(value, g.name)) is None else x.to(device) for g in fields(value)})
            moved[f.name] = value
        return Batch(**moved)


# ---------------------------------------------------------------------------------------------------- one prompt, its answers

@dataclass
class Example:
    """A prompt and its answers as token ids. Answer 0 is the wanted one; an empty list marks an absent answer (unpaired data)."""

    index: int
    prompt: list[int]
    answers: list[list[int]]
    ref_logps: list[float] | None = None    # one per answer
    rewards: list[float] | None = None      # one per answer
    kl_answer: list[int] | None = None      # another prompt's answer, for KTO's estimate of the KL divergence
    kl_ref_logp: float | None = None
    text: dict = field(default_factory=dict)    # the row it came from


def shared_row_pays(examples: list[Example], config: Config) -> bool:
    """Is one row per prompt cheaper than one row per answer? Multiply-adds of one layer, counted, padding included.

    Sharing computes the prompt once, but its attention mask has blocks, and the masked attention computes the full L × L square
    where the plain causal one computes half. So it pays for long prompts, many answers and wide models.
    """
    C, D = config.d_model, config.d_head
    linear = 2 * C * D * (config.n_head + config.n_kv_head) + (3 if config.mlp == "swiglu" else 2) * C * config.d_mlp

    def cost(lengths: list[int], part_of_square: float) -> float:
        L = max(lengths)
        return len(lengths) * L * (linear + 2 * part_of_square * L * D * config.n_head)

    shared = [len(e.prompt) + sum(max(len(a) - 1, 0) for a in e.answers) for e in examples]
    separate = [len(e.prompt) + len(a) - 1 for e in examples for a in e.answers if a]
    return cost(shared, 1.0) < cost(separate, 0.5)


def collate(examples: list[Example], shared: bool = False, counts: Counts | None = None) -> Batch:
    """Examples → Batch. `shared`: one row per prompt with all its answers, else one row per answer. No log-prob depends on it.

    The last token of an answer is predicted but never read, so it is not on the row. The last prompt token predicts the first
    token of every answer; from then on each answer token predicts the next one.
    """
    if any(not e.prompt for e in examples):
        raise ValueError("a prompt without tokens: nothing predicts the first token of the answer")
    A = max(len(e.answers) for e in examples)
    T = max(len(a) for e in examples for a in e.answers)
    per_answer = {}
    for name in "ref_logps", "rewards":
        lists = [getattr(e, name) for e in examples]
        if all(x is not None for x in lists):
            per_answer[name] = torch.tensor([x + [0.0] * (A - len(x)) for x in lists]).T.contiguous()      # (A, B)
    rows = lay_out([(e.prompt, e.answers) for e in examples], A, T, shared)
    kl = {}
    if all(e.kl_answer for e in examples):
        kl["kl_rows"] = lay_out([(e.prompt, [e.kl_answer]) for e in examples], 1, max(len(e.kl_answer) for e in examples), False)
        if all(e.kl_ref_logp is not None for e in examples):
            kl["kl_ref_logps"] = torch.tensor([e.kl_ref_logp for e in examples])
    return Batch(rows.mask, torch.tensor([e.index for e in examples]), **per_answer, counts=counts, rows=rows, **kl)


def lay_out(pairs: list[tuple[list[int], list[list[int]]]], A: int, T: int, shared: bool) -> Rows:
    """(prompt, answers) of every example → Rows: what stands where, and which hidden state predicts which response token."""
    groups = []                                                 # per row: b, prompt, [(a, answer)]
    for b, (prompt, answers) in enumerate(pairs):
        present = [(a, answer) for a, answer in enumerate(answers) if answer]
        groups += [(b, prompt, present)] if shared else [(b, prompt, [one]) for one in present]
    L = max(len(prompt) + sum(len(answer) - 1 for _, answer in group) for _, prompt, group in groups)
    tokens = torch.zeros(len(groups), L, dtype=torch.long)
    positions = torch.zeros(len(groups), L, dtype=torch.long)
    segments = torch.full((len(groups), L), -1)
    y = torch.zeros(A, len(pairs), T, dtype=torch.long)
    source = torch.zeros(A, len(pairs), T, dtype=torch.long)
    mask = torch.zeros(A, len(pairs), T, dtype=torch.bool)
    for r, (b, prompt, group) in enumerate(groups):
        P = len(prompt)
        tokens[r, :P], positions[r, :P], segments[r, :P] = torch.tensor(prompt), torch.arange(P), 0
        begin = P
        for a, answer in group:
            n = len(answer)
            here = slice(begin, begin + n - 1)
            tokens[r, here] = torch.tensor(answer[:-1], dtype=torch.long)
            positions[r, here] = torch.arange(P, P + n - 1)
            segments[r, here] = a + 1
            y[a, b, :n], mask[a, b, :n] = torch.tensor(answer), True
            source[a, b, 0] = r * L + P - 1
            source[a, b, 1:n] = r * L + torch.arange(begin, begin + n - 1)
            begin += n - 1
    return Rows(tokens, positions, segments if shared else None, y, source, mask)


# ---------------------------------------------------------------------------------------------------- reading files

FORMATS = ('{"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"messages"}, '
           '{"prompt", "completion", "label"} or {"text"}')


def read_jsonl(path) -> list[tuple[str, dict]]:
    """The rows of a JSONL file, each with the words "FILE line N" for error messages. ValueError on the first bad line."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a JSONL file, one JSON object per line")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}; give a JSONL file, one JSON object per line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); give a JSONL file, one JSON object per line") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno}); "
                             "every line must be one JSON object") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object; expected {FORMATS}")
        rows.append((where, row))
    if not rows:
        raise ValueError(f"{path} has no rows; every line must be one JSON object: {FORMATS}")
    return rows


def split_row(where: str, row: dict) -> tuple[object, list]:
    """A row → (prompt, answers), each a string or a message list as it stands in the file; None marks an absent answer."""
    def get(key):
        value = row[key]
        if not isinstance(value, (str, list)) or (isinstance(value, list) and not all(isinstance(m, dict) for m in value)):
            raise ValueError(f"{where}: '{key}' must be a string or a list of messages, not {json.dumps(value)[:60]}")
        if isinstance(value, list) and not all(isinstance(m.get(part), str) for m in value for part in ("role", "content")):
            raise ValueError(f'{where}: every message in \'{key}\' must be {{"role": "…", "content": "…"}}')
        if not value or (isinstance(value, str) and not value.strip() and key != "prompt"):
            if not (key == "prompt" and isinstance(value, str)):
                raise ValueError(f"{where}: '{key}' is empty; remove the line or fill it in")
        return value

    keys = set(row)
    if {"prompt", "chosen", "rejected"} <= keys:
        prompt, answers = get("prompt"), [get("chosen"), get("rejected")]
    elif {"prompt", "completion", "label"} <= keys:
        if not isinstance(row["label"], bool):
            raise ValueError(f"{where}: 'label' must be true or false, not {json.dumps(row['label'])[:60]}")
        prompt, answers = get("prompt"), ([get("completion")] if row["label"] else [None, get("completion")])
    elif {"prompt", "completion"} <= keys:
        prompt, answers = get("prompt"), [get("completion")]
    elif "messages" in keys:
        messages = get("messages")
        if not isinstance(messages, list) or messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ValueError(f"{where}: 'messages' must be a conversation that ends with an assistant message; "
                             "that one is trained")
        prompt, answers = messages[:-1], [messages[-1:]]
    elif "text" in keys:
        prompt, answers = "", [get("text")]
    else:
        raise ValueError(f"{where}: found the keys {', '.join(sorted(keys)) or '(none)'}; expected {FORMATS}")
    if any(answer is not None and type(answer) is not type(prompt) for answer in answers):
        raise ValueError(f"{where}: the prompt is a {kind(prompt)} and an answer is not; "
                         "write both as strings or both as message lists")
    return prompt, answers


def kind(value) -> str:
    return "string" if isinstance(value, str) else "message list"


def encode_prompt(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a string as it stands,
    messages through the chat template with the opening of the assistant's turn.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    else:
        ids = tokenizer.encode(tokenizer.render(prompt, add_generation_prompt=True), add_special_tokens=False)
    # An empty prompt in a model without a begin token: what ends a text also opens one, as in GPT-2.
    return ids or [tokenizer.eos_id]


def encode_answer(tokenizer, prompt, answer, finished: bool = True) -> list[int]:
    """Token ids of an answer, ending in exactly one end-of-sequence token (none if the answer was cut off: finished = False).

    Strings are tokenized together with their prompt, so that the tokens are those the model would see in running text; where a
    token would straddle the border, the answer is tokenized alone.
    """
    if isinstance(prompt, str):
        before, whole, special = prompt, prompt + answer, True
    else:
        before = tokenizer.render(prompt, add_generation_prompt=True)
        whole, special = tokenizer.render(prompt + answer, add_generation_prompt=False), False
        if not whole.startswith(before):
            raise ValueError("the chat template renders the prompt differently once an answer follows; "
                             "give prompt and answer as strings")
    prefix, ids = tokenizer.encode(before, special), tokenizer.encode(whole, special)
    ids = ids[len(prefix):] if ids[: len(prefix)] == prefix else tokenizer.encode(whole[len(before):], False)
    eos = tokenizer.eos_id
    if eos is None:
        return ids
    while eos in ids:                   # what the template writes after the end, say a newline, is never generated: it goes too
        ids = ids[: len(ids) - 1 - ids[::-1].index(eos)]
    return ids + [eos] if finished else ids


def truncate(prompt: list[int], answers: list[list[int]], max_len: int) -> tuple[list[int], list[list[int]], bool]:
    """Fit prompt + longest answer into max_len tokens: the prompt loses its beginning, but not below max_len / 2;
    then answers lose their end.
    """
    longest = max(len(a) for a in answers)
    if len(prompt) + longest <= max_len:
        return prompt, answers, False
    prompt = prompt[-max(max_len - longest, max_len // 2):]
    return prompt, [a[: max_len - len(prompt)] for a in answers], True


def load_examples(path, tokenizer, max_len: int, negatives=None, k: int | None = None) -> tuple[list[Example], int]:
    """Read a data file, and a pool of sampled negatives if given, into examples; also how many of them had to be truncated.

    negatives  a JSONL file whose rows hold {"prompt", "negatives": [text, …]} as `minialign sample` writes it (with "ref_logps",
               "finished", one per text, if known), or {"prompt", "completion"} rows from elsewhere; joined to the data by prompt
    k          keep at most k negatives per prompt

    ValueError names the file and the line of the first row that cannot be used.
    """
    pool = read_negatives(negatives) if negatives else None
    examples, truncated, unmatched = [], 0, None
    for where, row in read_jsonl(path):
        prompt, texts = split_row(where, row)
        finished, ref_logps, rewards = [True] * len(texts), None, None
        if pool is not None:
            sampled = pool.get(as_key(prompt), [])[:k]
            unmatched = unmatched or (None if sampled else where)
            texts, finished = texts[:1] + [s["text"] for s in sampled], [True] + [s["finished"] for s in sampled]
            if all(s["ref_logp"] is not None for s in sampled):
                ref_logps = [0.0] + [s["ref_logp"] for s in sampled]
        try:
            ids = encode_prompt(tokenizer, prompt)
            answers = [[] if t is None else encode_answer(tokenizer, prompt, t, f) for t, f in zip(texts, finished, strict=True)]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if any(t is not None and len(a) == 0 for t, a in zip(texts, answers, strict=True)):
            raise ValueError(f"{where}: an answer has no tokens; remove the line or fill it in")
        ids, answers, cut = truncate(ids, answers, max_len)
        truncated += cut
        text = {"prompt": prompt, "answers": texts}
        examples.append(Example(len(examples), ids, answers, None if cut else ref_logps, rewards, text=text))
    if unmatched:
        raise ValueError(f"{unmatched}: no negatives for this prompt in {negatives}; "
                         f"make them with 'minialign sample --data {path} --out {negatives}'")
    return examples, truncated


def as_key(prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def read_negatives(path) -> dict[str, list[dict]]:
    """A pool of sampled answers: prompt → [{"text", "finished", "ref_logp"}], in the order of the file."""
    pool: dict[str, list[dict]] = {}
    for where, row in read_jsonl(path):
        texts = row.get("negatives", [row["completion"]] if "completion" in row else None)
        if "prompt" not in row or not isinstance(texts, list) or not texts:
            raise ValueError(f'{where}: expected {{"prompt", "negatives": [text, …]}} or {{"prompt", "completion"}}')
        lists = {name: row.get(name, [default] * len(texts)) for name, default in (("finished", True), ("ref_logps", None))}
        for name, values in lists.items():
            if not isinstance(values, list) or len(values) != len(texts):
                raise ValueError(f"{where}: '{name}' must be a list with one value per answer, {len(texts)} here")
        if any(x is not None and not math.isfinite(x) for x in lists["ref_logps"]):
            raise ValueError(f"{where}: 'ref_logps' holds a number that is not finite")
        for text, finished, ref_logp in zip(texts, lists["finished"], lists["ref_logps"], strict=True):
            if not isinstance(text, str) or not (text or finished):
                raise ValueError(f"{where}: an answer that is no text, or empty and cut off; remove it from 'negatives'")
            pool.setdefault(as_key(row["prompt"]), []).append({"text": text, "finished": finished, "ref_logp": ref_logp})
    return pool
