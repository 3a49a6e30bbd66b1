"""The contract every method keeps, and the arithmetic that several of them share. No model code, no autograd."""

import math
from dataclasses import fields

import torch
from torch import Tensor

from minialign.data import Batch


class Method:
    """A rule that turns the log-probs of tokens already in the batch into one push per token.

    `weigh` is the whole of a method: loss, and weights = −∂loss/∂logps, worked out by hand. A weight above 0 pushes its token up.
    At the logits the push is weights · (softmax − onehot), one line for all methods (logps.py), and the chain rule does the rest.
    """

    needs: tuple[str, ...] = ()     # beyond the wanted answer: "rejected", "negatives", "reference", "rewards", "kl"

    def weigh(self, logps: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """logps (A, B, T), float32 or float64, no graph → loss (), weights (A, B, T), info.

        The loss is the objective, divided by `batch.counts`, so that the parts of a batch add up to the whole. `info` holds
        numbers worth logging, one per example (B,); info["loss_per_example"] where the loss is a mean over examples. ValueError
        if data is missing.
        """
        raise NotImplementedError

    def __post_init__(self):
        """Every number among the hyper-parameters must be one, and not below 0: a negative weight would train the opposite."""
        for f in fields(self):
            x = getattr(self, f.name, None)
            if f.init and isinstance(x, (int, float)) and not 0 <= x < math.inf:
                raise ValueError(f"{f.name} is {x}; it must be a number not below 0")

    def prepare(self, model, batch: Batch) -> Batch:
        """What must be asked of the policy before the forward pass, without a graph. Most methods ask nothing."""
        return batch

    def inputs(self, model, batch: Batch) -> Tensor:
        """What the network reads: tokens (R, L), or embeddings (R, L, C)."""
        return batch.rows.tokens

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must keep. Most methods have no memory."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


def sums_and_lengths(logps: Tensor, batch: Batch, wanted: bool = True) -> tuple[Tensor, Tensor]:
    """Log-prob of each answer and its number of tokens, (A, B) each. `wanted`: every example must have an answer 0."""
    if logps.shape != batch.mask.shape:
        raise ValueError(f"logps {tuple(logps.shape)} and batch.mask {tuple(batch.mask.shape)} must both be (A, B, T)")
    if logps.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logps are {logps.dtype}; log-probs must be float32 or float64, or their sums lose what counts")
    n = batch.mask.sum(-1)
    if wanted and (n[0] == 0).any():
        raise ValueError(f"example {int(batch.index[n[0] == 0][0])} has no answer 0, the wanted one (kto and rrhf do without)")
    return torch.where(batch.mask, logps, 0.0).sum(-1), n


def spread(push: Tensor, batch: Batch) -> Tensor:
    """A push per answer (A, B) → the same push on each of its tokens (A, B, T)."""
    return push[..., None] * batch.mask


def share_of_negatives(n: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
    """(K, B): 1 over the number of negatives present, 0 where one is absent.

    One rule for every method that compares pairs: its loss is the mean over the pairs (wanted answer, one negative).
    """
    present = n[1:] > 0
    lacking = ~present.any(0)
    if lacking.any():
        raise ValueError(f"example {int(batch.index[lacking][0])} has no rejected answer, nothing to compare the wanted one with")
    return present.to(dtype) / present.sum(0)


def reference(method: Method, batch: Batch, like: Tensor) -> Tensor:
    """The answers' log-probs under the frozen reference, (A, B) in the dtype and on the device of `like`."""
    if batch.ref_logps is None:
        raise ValueError(f"{type(method).__name__} needs the reference model's log-prob of every answer (ref_logps); "
                         "'minialign train' computes them once and stores them beside the data")
    if batch.ref_logps.shape != like.shape:
        raise ValueError(f"ref_logps {tuple(batch.ref_logps.shape)} must hold one number per answer, {tuple(like.shape)}")
    return batch.ref_logps.to(like)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 − eᵃ) for a < 0, accurate at both ends; each branch is fed only values it is good for."""
    near = a > -0.6931471805599453                                      # eᵃ > ½: 1 − eᵃ is small, expm1 keeps its digits
    small = torch.where(near, a, -1.0)
    large = torch.where(near, -1.0, a)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def below_one(a: Tensor) -> Tensor:
    """Mean log-probs in which exact zeros are replaced by the largest log-prob below 0 that rounding could have hidden (−eps/2).

    An answer of probability 1 has infinite odds. Floats round to exactly 1 from a distance of eps/2 on.
    """
    return torch.where(a == 0, -torch.finfo(a.dtype).eps / 2, a)
