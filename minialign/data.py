"""Example → Batch: the only place that shifts and masks. Reading data files is hf/datafiles.py.

An `Example` is a prompt with its answers as token ids; answer 0 is the wanted one. A `Batch` is
what a method weighs. Its `rows` are what the network reads. There is no padding token and no label
−100: a mask says which token is a response token, that is, a token of an answer.

Letters for shapes, here and everywhere: A answers to a prompt, K = A − 1 of them beside the wanted
one, B prompts, T tokens of the longest answer, L tokens on a row, X texts of at most M tokens.
"""

import math
from dataclasses import dataclass, field, fields, replace
from itertools import cycle, islice

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------- what is read


@dataclass
class Example:
    """A prompt and its answers as token ids.

    Answer 0 is the wanted one. An empty list marks an answer that is absent, as in unpaired data.
    """

    index: int                                      # the example's number in the data set
    prompt: list[int]
    answers: list[list[int]]
    ref_logps: list[float | None] | None = None     # each answer's log-prob under the reference
    rewards: list[float] | None = None              # one number per answer
    text: dict = field(default_factory=dict)        # the row of the data file it came from


def laid_out(example: Example) -> int:
    """Tokens the network reads: the prompt once, and every answer less its last token."""
    return len(example.prompt) + sum(len(answer) - 1 for answer in example.answers if answer)


def longest_text(example: Example) -> int:
    """Tokens that the network reads for the longest of an example's answers, prompt included."""
    return len(example.prompt) + max(map(len, example.answers)) - 1


# ------------------------------------------------------------------------------- what a method sees


@dataclass(frozen=True)
class Counts:
    """What a mean divides by.

    The counts of an update are known before anything is computed, so its parts can be weighed one
    at a time.
    """

    examples: int       # prompts
    answers: int        # answers that are present, wanted or not
    tokens: int         # tokens of the wanted answers


@dataclass
class Rows:
    """What the network reads, and which of its hidden states predicts which response token.

    Everything stands on one row, nothing padded: each prompt once, and after it all its answers.
    All that a token needs except attention can be computed on that row. Attention needs to know
    what belongs together: `texts` lists, for every answer, the places of its prompt and of its own
    tokens.
    """

    tokens: Tensor                  # (1, L) int
    positions: Tensor              # (1, L) int: each answer goes on counting where its prompt ended
    texts: Tensor               # (X, M) int: X texts of prompt + answer, as places on the row; a
                                    # short text begins anew, up to M places
    y: Tensor                       # (A, B, T) int: the response tokens
    source: Tensor               # (A, B, T) int: the place on the row whose hidden state predicts y
    mask: Tensor                    # (A, B, T) bool: y is a token of an answer
    guesses: Tensor | None = None   # (A, B, T) int: the policy's greedy tokens, if asked for


@dataclass(init=False)
class Batch:
    """B prompts with up to A answers each.

    An answer whose mask is empty is absent. Only the mask must be given; a method that lacks
    something says so. Numbers that one method alone asks for go by name into `extra`:
    `Batch(mask, kl_logps=…)` keeps them as `batch.extra["kl_logps"]`. They belong to the whole
    batch: `part` hands them on uncut.
    """

    mask: Tensor                            # (A, B, T) bool: this is a token of that answer
    index: Tensor                           # (B,) int: the example's number in the data set
    ref_logps: Tensor | None      # (A, B) summed log-prob of each answer under the frozen reference
    rewards: Tensor | None                  # (A, B)
    counts: Counts                          # of the whole update that this is a part of
    rows: Rows | None                       # what the network reads
    extra: dict[str, Tensor]                # what a single method needs besides

    def __init__(
        self,
        mask: Tensor,
        index: Tensor | None = None,
        ref_logps: Tensor | None = None,
        rewards: Tensor | None = None,
        counts: Counts | None = None,
        rows: Rows | None = None,
        extra: dict[str, Tensor] | None = None,
        **more: Tensor,
    ):
        if mask.dim() != 3 or mask.dtype != torch.bool:
            found = f"{mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"Batch.mask must be a bool tensor (A, B, T), not {found}")
        if index is None:
            index = torch.arange(mask.shape[1], device=mask.device)
        if counts is None:                  # this batch is all there is
            counts = Counts(mask.shape[1], int(mask.any(-1).sum()), int(mask[0].sum()))
        self.mask, self.index, self.counts, self.rows = mask, index, counts, rows
        self.ref_logps, self.rewards = ref_logps, rewards
        self.extra = {**(extra or {}), **more}

    def __len__(self) -> int:
        return self.mask.shape[1]

    def part(self, begin: int, end: int) -> "Batch":
        """Examples begin..end−1 as a batch, which still divides by the counts of the whole."""
        here = slice(begin, end)
        cut = {"mask": self.mask[:, here], "index": self.index[here]}
        if self.ref_logps is not None:
            cut["ref_logps"] = self.ref_logps[:, here]
        if self.rewards is not None:
            cut["rewards"] = self.rewards[:, here]
        if self.rows is not None:
            y, source, mask = self.rows.y, self.rows.source, self.rows.mask
            cut["rows"] = replace(
                self.rows, y=y[:, here], source=source[:, here], mask=mask[:, here])
        return replace(self, **cut)

    def to(self, device) -> "Batch":
        """The same batch with all its tensors on `device`."""
        moved = {f.name: move(getattr(self, f.name), device) for f in fields(self)}
        return Batch(**moved)


def move(value, device):
    """A tensor, or all tensors of a Rows or a dict, on `device`; anything else as it is."""
    if isinstance(value, Tensor):
        # Apple's GPUs have no float64. The log-probs there are float32, so nothing is lost.
        if torch.device(device).type == "mps" and value.dtype == torch.float64:
            value = value.float()
        return value.to(device)
    if isinstance(value, dict):
        return {name: move(x, device) for name, x in value.items()}
    if isinstance(value, Rows):
        return Rows(**{f.name: move(getattr(value, f.name), device) for f in fields(value)})
    return value


# ---------------------------------------------------------------------------- from one to the other


def collate(examples: list[Example], counts: Counts | None = None) -> Batch:
    """Examples → Batch. `counts` are those of the whole update, if these examples are part of one.

    No examples make a batch of none: the network reads a token, and nothing of it is scored.
    ValueError for a prompt without tokens, since nothing would predict the first token of its
    answers.
    """
    if not examples:
        stand_in = Example(0, [0], [[0], [0]], ref_logps=[0.0, 0.0], rewards=[0.0, 0.0])
        return collate([stand_in], counts).part(0, 0)
    if any(not e.prompt for e in examples):
        raise ValueError("a prompt without tokens: nothing predicts the first token of the answer")
    rows = lay_out([(e.prompt, e.answers) for e in examples])
    return Batch(
        rows.mask,
        index=torch.tensor([e.index for e in examples]),
        ref_logps=per_answer([e.ref_logps for e in examples], len(rows.mask)),
        rewards=per_answer([e.rewards for e in examples], len(rows.mask)),
        counts=counts,
        rows=rows,
    )


def per_answer(lists: list[list[float | None] | None], A: int) -> Tensor | None:
    """A list of numbers per example → (A, B) float64, NaN for none; None if a list is missing.

    A list longer than A, a mistake, makes a longer table: a method that reads it refuses it.
    """
    if any(numbers is None for numbers in lists):
        return None
    longest = max(map(len, lists))
    table = torch.full((max(A, longest), len(lists)), math.nan, dtype=torch.float64)
    for b, numbers in enumerate(lists):
        for a, number in enumerate(numbers):
            if number is not None:
                table[a, b] = number
    return table


def lay_out(pairs: list[tuple[list[int], list[list[int]]]]) -> Rows:
    """(prompt, answers) of every example → Rows: what stands where, and what predicts what.

    The last token of an answer is predicted but never read, so it is not on the row. The last token
    of a prompt predicts the first token of every answer. From then on each answer token predicts
    the next one.
    """
    A = max(len(answers) for _, answers in pairs)
    T = max(len(answer) for _, answers in pairs for answer in answers)
    y = torch.zeros(A, len(pairs), T, dtype=torch.long)
    source = torch.zeros(A, len(pairs), T, dtype=torch.long)
    mask = torch.zeros(A, len(pairs), T, dtype=torch.bool)

    tokens: list[int] = []              # the row so far
    positions: list[int] = []           # and the position of each of its tokens within its text
    texts: list[list[int]] = []         # per text the places of its tokens on the row
    for b, (prompt, answers) in enumerate(pairs):
        P = len(prompt)
        if not any(answers):
            continue

        # The prompt stands on the row once, whatever the number of its answers.
        prompt_places = list(range(len(tokens), len(tokens) + P))
        tokens += prompt
        positions += range(P)

        for a, answer in enumerate(answers):
            if not answer:              # absent
                continue

            # After the prompt stands the answer without its last token, which need not be read.
            n, begin = len(answer), len(tokens)
            tokens += answer[:-1]
            positions += range(P, P + n - 1)
            text = prompt_places + list(range(begin, begin + n - 1))
            texts.append(text)

            # The shift, once and for all: from the prompt's last token on, each place predicts one
            # response token.
            y[a, b, :n] = torch.tensor(answer)
            source[a, b, :n] = torch.tensor(text[P - 1 :])
            mask[a, b, :n] = True

    # What fills a short text up is read and never used. A text of its own tokens spreads this over
    # the row: going back, a GPU adds up slowly what many texts have read from one place.
    longest = max(map(len, texts))
    padded = torch.tensor([list(islice(cycle(text), longest)) for text in texts])
    return Rows(torch.tensor([tokens]), torch.tensor([positions]), padded, y, source, mask)
