"""Supervised fine-tuning: push every token of the wanted answer up, all by the same amount."""

from dataclasses import dataclass

import torch

from minialign.methods.method import Method, spread, sums_and_lengths


@dataclass
class SFT(Method):
    """Maximum likelihood of the wanted answer. l = its log-prob, n = its length, N prompts.

    Three reductions are in use, and they differ in more than scale:
        seq_mean     L = −mean l/n           push 1/(N n)     every answer counts the same (IFT's code)
        seq_sum      L = −mean l             push 1/N         the likelihood itself; long answers count more
        token_mean   L = −Σl / Σn            push 1/Σn        every token counts the same (TRL, the DFT and SimPO code)
    By eye:    seq_mean on answers of equal length is token_mean; one example with seq_sum is its negative log-prob.
    Careful:   token_mean over micro-batches must divide by the tokens of the whole batch, or short micro-batches count too much.
    """

    reduction: str = "seq_mean"

    def __post_init__(self):
        if self.reduction not in ("seq_mean", "seq_sum", "token_mean"):
            raise ValueError(f"reduction is {self.reduction!r}; choose seq_mean, seq_sum or token_mean")

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                           # (A, B)
        push = torch.zeros_like(l)
        push[0] = {
            "seq_mean": 1 / (batch.counts.examples * n[0].to(l.dtype)),
            "seq_sum": torch.full_like(l[0], 1 / batch.counts.examples),
            "token_mean": torch.full_like(l[0], 1 / batch.counts.tokens),
        }[self.reduction]
        loss = -(push[0] * l[0]).sum()                                  # the loss is linear in l: its gradient is its coefficient
        info = {} if self.reduction == "token_mean" else {"loss_per_example": -push[0] * l[0] * batch.counts.examples}
        return loss, spread(push, batch), info
