"""Supervised fine-tuning: push every token of the wanted answer up, all by the same amount."""

from dataclasses import dataclass

import torch

from minialign.methods.method import Method, spread, sums_and_lengths
from minialign.settings import setting


@dataclass
class SFT(Method):
    """Maximum likelihood of the wanted answer.

    l = log-prob of the wanted answer, n = its number of tokens, N = number of prompts.
    Three reductions are in use, and they differ in more than scale:
        seq_mean    L = −mean l/n    push 1/(N n)   every answer counts the same (IFT's code)
        seq_sum     L = −mean l      push 1/N       the likelihood itself: long answers count more
        token_mean  L = −Σl / Σn     push 1/Σn      every token counts the same (TRL, DFT, SimPO)
    All three are linear in l, so the push on l is the coefficient with which l enters −L.

    By eye:    on answers of equal length seq_mean and token_mean are the same; for one example
               seq_sum is its negative log-prob.
    Careful:   the parts of an update must divide by Σn of the whole update. Divided by their own,
               parts with few tokens would count too much.
    """

    reduction: str = setting(
        "seq_mean",
        "what is averaged: answers, by the mean or the sum of their tokens, or all tokens alike",
        choices=("seq_mean", "seq_sum", "token_mean"),
    )

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                               # (A, B)
        N = batch.counts.examples

        # The coefficient of l in −L: the push on the wanted answer. All others are left alone.
        push = torch.zeros_like(l)                                          # (A, B)
        if self.reduction == "seq_mean":
            push[0] = 1 / (N * n[0].to(l.dtype))
        elif self.reduction == "seq_sum":
            push[0] = 1 / N
        else:
            push[0] = 1 / batch.counts.tokens

        # Each example's part of the loss; they add up to it.
        parts = -push[0] * l[0]                                             # (B,)
        info = {}
        if self.reduction != "token_mean":                                  # a mean over examples
            info["loss_per_example"] = N * parts
        return parts.sum(), spread(push, batch), info
