"""Example → Batch: the only place that shifts and masks. What turns a JSONL file into examples is jsonl.py.

An `Example` is a prompt with its answers, answer 0 the wanted one, as token ids. A `Batch` is what a method weighs, and carries
in `rows` what the network reads. No padding token, no label −100: a mask says which token is a response token.
"""

import math
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

# ---------------------------------------------------------------------------------------------------- what a method sees

@dataclass(frozen=True)
class Counts:
    """What a mean divides by. Known before anything is computed, so that parts of a batch can be weighed one at a time."""

    examples: int       # prompts
    answers: int        # answers that are present, wanted or not
    tokens: int         # tokens of the wanted answers


@dataclass
class Rows:
    """What the network reads, and where in it the (A, B, T) response tokens are predicted.

    Either R rows of L tokens, right-padded, prompt and answer on each; or one row of everything there is, each prompt once and
    nothing padded, and `texts` that say what belongs together.
    """

    tokens: Tensor              # (R, L) int
    positions: Tensor           # (R, L) int, restarting after the prompt for every answer
    texts: Tensor | None        # (X, M) int, X texts prompt + answer: which of the R·L tokens; None when every row is a text
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


def collate(examples: list[Example], counts: Counts | None = None, shared: bool = True) -> Batch:
    """Examples → Batch. `shared`: each prompt once for all its answers and no padding, else one padded row per answer, the plain
    layout. No log-prob depends on it, and sharing never costs more: attention sees the same texts, all else fewer tokens.

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
        kl["kl_rows"] = lay_out([(e.prompt, [e.kl_answer]) for e in examples], 1, max(len(e.kl_answer) for e in examples), shared)
        if all(e.kl_ref_logp is not None for e in examples):
            kl["kl_ref_logps"] = torch.tensor([e.kl_ref_logp for e in examples], dtype=torch.float64)
    return Batch(rows.mask, torch.tensor([e.index for e in examples]), **per_answer, counts=counts, rows=rows, **kl)


def lay_out(pairs: list[tuple[list[int], list[list[int]]]], A: int, T: int, shared: bool) -> Rows:
    """(prompt, answers) of every example → Rows: what stands where, and which hidden state predicts which response token."""
    tokens, positions, texts = [], [], []                       # flat, and per text the numbers of its tokens
    y = torch.zeros(A, len(pairs), T, dtype=torch.long)
    source = torch.zeros(A, len(pairs), T, dtype=torch.long)
    mask = torch.zeros(A, len(pairs), T, dtype=torch.bool)
    L = max(len(prompt) + len(answer) - 1 for prompt, answers in pairs for answer in answers if answer)
    for b, (prompt, answers) in enumerate(pairs):
        P, prompt_at = len(prompt), None
        for a, answer in enumerate(answers):
            if not answer:
                continue
            if prompt_at is None or not shared:
                prompt_at = range(len(tokens), len(tokens) + P)
                tokens += prompt
                positions += range(P)
            n, begin = len(answer), len(tokens)
            tokens += answer[:-1]
            positions += range(P, P + n - 1)
            texts.append([*prompt_at, *range(begin, begin + n - 1)])
            y[a, b, :n], mask[a, b, :n] = torch.tensor(answer), True
            source[a, b, :n] = torch.tensor(texts[-1][P - 1 :])
            if not shared:                                      # fill the row up
                tokens += [0] * (L - P - n + 1)
                positions += [0] * (L - P - n + 1)
    R = 1 if shared else len(texts)
    read = torch.tensor(tokens).view(R, -1), torch.tensor(positions).view(R, -1)
    return Rows(*read, torch.tensor([text + [0] * (L - len(text)) for text in texts]) if shared else None, y, source, mask)
