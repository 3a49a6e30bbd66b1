"""The contract every method keeps, and the three lines of arithmetic they all share. No model code, no autograd."""

import torch
from torch import Tensor

from minialign.data import Batch


class Method:
    """A rule that turns the log-probs of tokens already in the batch into one push per token.

    `weigh` is the whole of a method: loss, and weights = −∂loss/∂logps, worked out by hand. A weight above 0 pushes its token up. At the
    logits the push is weights · (softmax − onehot), the same line for all methods (logps.py), and the chain rule does the rest.
    """

    needs: tuple[str, ...] = ()     # beyond the wanted answer: "rejected", "negatives", "reference", "rewards", "kl"

    def weigh(self, logps: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """logps (A, B, T), float32 or float64, no graph → loss (), weights (A, B, T), info.

        The loss is the objective, divided by `batch.counts`, so that the parts of a batch add up to the whole. `info` holds numbers worth
        logging, one per example (B,); info["loss_per_example"] where the loss is a mean over examples. ValueError if data is missing.
        """
        raise NotImplementedError

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


def sums_and_lengths(logps: Tensor, batch: Batch, *needed: int) -> tuple[Tensor, Tensor]:
    """Log-prob of each answer and its number of tokens, (A, B) each. Answers whose number is in `needed` must be present in every example."""
    if logps.shape != batch.mask.shape:
        raise ValueError(f"logps {tuple(logps.shape)} and batch.mask {tuple(batch.mask.shape)} must have the same shape (A, B, T)")
    n = batch.mask.sum(-1)
    for a in needed:
        if a >= len(n):
            raise ValueError("this method compares a wanted with an unwanted answer, and the batch has only one answer per prompt")
        if (n[a] == 0).any():
            b = int((n[a] == 0).nonzero()[0])
            raise ValueError(f"example {int(batch.index[b])} has no answer {a}; this method needs one (answer 0 is the wanted one)")
    return torch.where(batch.mask, logps, 0.0).sum(-1), n


def spread(push: Tensor, batch: Batch) -> Tensor:
    """A push per answer (A, B) → the same push on each of its tokens (A, B, T)."""
    return push[..., None] * batch.mask
