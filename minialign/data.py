"""Example → Batch: the only place that shifts and masks. What turns a JSONL file into examples is jsonl.py.

An `Example` is a prompt with its answers, answer 0 the wanted one, as token ids. A `Batch` is what a method weighs, and carries
in `rows` what the network reads. No padding token, no label −100: a mask says which token is a response token.
"""

import math
from dataclasses import dataclass, field, fields, replace

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
    ref_logps: list[float | None] | None = None     # one per answer; None = not known yet
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
            padded = [[math.nan if v is None else v for v in x] + [math.nan] * (A - len(x)) for x in lists]
            per_answer[name] = torch.tensor(padded, dtype=torch.float64).T.contiguous()     # (A, B)
    rows = lay_out([(e.prompt, e.answers) for e in examples], A, T, shared)
    kl = {}
    if all(e.kl_answer for e in examples):
        kl["kl_rows"] = lay_out([(e.prompt, [e.kl_answer]) for e in examples], 1, max(len(e.kl_answer) for e in examples), False)
        if all(e.kl_ref_logp is not None for e in examples):
            kl["kl_ref_logps"] = torch.tensor([e.kl_ref_logp for e in examples], dtype=torch.float64)
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
