"""Where two answers to one prompt part: the opening that both share, the fork, what comes behind.

A loss of a pair pushes the tokens of the shared opening twice, once for each answer. What a method
does there, at the fork and behind it are three different stories. Here is who stands where.
"""

import os

import torch
from torch import Tensor

from minialign.data import Batch
from minialign.lab.tasks import Question
from minialign.logps import batch_logps

PLACES = ("opening", "fork", "behind")


def places(batch: Batch) -> Tensor:
    """The place of every response token of the first two answers: (3, 2, B, T) bool, as in PLACES.

    The opening is what the answers have in common before the first token in which they differ, the
    fork is that token, and all others are behind. An answer that is the other one's beginning, or
    equal to it, has no fork. Of each example's tokens every one stands at exactly one place.
    ValueError for a batch with one answer to each prompt.
    """
    if len(batch.mask) < 2:
        raise ValueError("a fork needs two answers to a prompt: the chosen and the rejected one")
    y, mask = batch.rows.y[:2], batch.mask[:2]                          # (2, B, T)
    same = (y[0] == y[1]) & mask[0] & mask[1]                           # (B, T)

    # From the first difference on the product is 0, so its sum is the length of the opening.
    length = same.long().cumprod(-1).sum(-1, keepdim=True)              # (B, 1)
    t = torch.arange(y.shape[-1], device=y.device)                      # (T,)
    return torch.stack([t < length, t == length, t > length])[:, None] & mask


def by_place(model, batch: Batch) -> Tensor:
    """The log-probs of the first two answers, chosen and rejected, split by place: (3, 2, B) nats.

    The three parts add up to the log-prob of the answer. Differentiable, as `batch_logps` is.
    """
    return split(batch_logps(model, batch), batch)


def split(logps: Tensor, batch: Batch) -> Tensor:
    """Log-probs (or pushes) of tokens, (A, B, T), summed over each place: (3, 2, B)."""
    return (logps[:2] * places(batch)).sum(-1)


def after_a_slip(question: Question) -> dict[str, tuple[str, list[str]]]:
    """{place of the slip: (the prompt and an answer begun wrongly, [the right answer's rest])}.

    At the opening the first digit is one that nobody named; at the fork it is the digit with which
    the wrong answer goes on.
    """
    right, wrong, prompt = question.right, question.wrong, question.prompt()
    fork = len(os.path.commonprefix([right, wrong]))
    digit = (int(right[0]) + 1) % 10
    return {
        "opening": (f"{prompt}{digit}", [right[1:]]),
        "fork": (prompt + wrong[: fork + 1], [right[fork + 1 :]]),
    }
