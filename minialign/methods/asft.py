"""ASFT: raise the absolute likelihood of the chosen answer, lower that of the rejected one.

No reference model: an answer is judged by its own probability and not by what another model says.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from minialign.methods.method import (
    Method,
    below_one,
    log1mexp,
    share_of_negatives,
    spread,
    sums_and_lengths,
)
from minialign.settings import setting


@dataclass
class ASFT(Method):
    """Aligned supervised fine-tuning (arXiv 2409.10571; not Anchored SFT).

    Subscripts: w, the winner, is the chosen (wanted) answer; l, the loser, the rejected one.
    a = mean log-prob of an answer's tokens, p = eᵃ (the geometric mean of their probabilities),
    odds O = p/(1−p):
        L = −a_w + λ · [ −log σ(log O_w) − log σ(−log O_l) ]      SFT term + λ · alignment term
    The sigmoid undoes the odds, σ(log O) = p and σ(−log O) = 1 − p, and log p_w is a_w again:
        L = −(1+λ) a_w − λ log(1 − p_l)                           likelihood up, unlikelihood down
    The first term is linear in a_w. For the second, ∂p/∂a = p because p = eᵃ:
        −∂L/∂a_w = 1 + λ              −∂L/∂a_l = −λ p_l / (1 − p_l)

    By eye:    the push on the chosen answer never fades; the one on the rejected answer fades as
               p_l → 0, is −λ at p_l = ½, and has no bound as p_l → 1: there clipping the gradient
               is all that holds it.
               By probabilities the alignment term's slopes are −λ/p_w and λ/(1 − p_l): equal in
               size where the two answers are all there is. The likelihood term adds −1/p_w.
    Several rejected answers: the loss is the mean over the pairs (chosen, one rejected).
    Careful:   λ is what the paper calls β (0.1). `beta_odds` = b is something else, a temperature
               of the odds, σ(b log O), which released code has and the paper has not. With
               o = log O = a − log(1 − p) and softplus(x) = −log σ(−x):
        L = −a_w + λ [ softplus(−b o_w) + softplus(b o_l) ]
        −∂L/∂a_w = 1 + λ b σ(−b o_w)/(1−p_w)        −∂L/∂a_l = −λ b σ(b o_l)/(1−p_l)
               because ∂o/∂a = 1/(1−p). At b = 1 both are the lines above.
    Differs:   whether the paper divides its SFT term by the length, we could not find out. Released
               code does, and so does ORPO, which ASFT follows; so do we.
    """

    needs: ClassVar = ("rejected",)
    reads_others: ClassVar = True

    lam: float = setting(0.1, "weight of the alignment term", least=0)
    beta_odds: float = setting(1.0, "temperature of the odds; 1 is the paper's loss", above=0)

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                               # (A, B)
        share = share_of_negatives(n, batch, l.dtype)                       # (K, B)
        n = n.clamp(min=1)                                                  # absent: share 0
        a_w, a_l = l[:1] / n[:1], below_one(l[1:] / n[1:])                  # (1, B), (K, B)

        # Loss of every pair, −∂L/∂a_w and −∂L/∂a_l.
        if self.beta_odds == 1:
            loss = -(1 + self.lam) * a_w - self.lam * log1mexp(a_l)         # (K, B)
            up = torch.full_like(a_w, 1 + self.lam)                         # (1, B)
            down = -self.lam / torch.expm1(-a_l)                            # p/(1−p) = 1/(e^−a − 1)
        else:
            b, a_w = self.beta_odds, below_one(a_w)
            o_w, o_l = a_w - log1mexp(a_w), a_l - log1mexp(a_l)
            loss = -a_w - self.lam * (logsigmoid(b * o_w) + logsigmoid(-b * o_l))
            up = 1 - self.lam * b * torch.sigmoid(-b * o_w) / torch.expm1(a_w)
            down = self.lam * b * torch.sigmoid(b * o_l) / torch.expm1(a_l)     # 1 − p = −expm1(a)

        # The mean over the pairs. a = l/n, so every token gets 1/n of what its answer's mean gets.
        push = torch.cat([(share * up).sum(0, keepdim=True), share * down]) / n     # (A, B)
        each = (share * loss).sum(0)                                        # (B,)
        N = batch.counts.examples
        info = {
            "loss_per_example": each,
            "p_chosen": a_w[0].exp(),
            "p_rejected": (share * a_l.exp()).sum(0),
            "saturated": (share * (l[1:] == 0)).sum(0),                     # share with p_l = 1
        }
        return each.sum() / N, spread(push, batch) / N, info
