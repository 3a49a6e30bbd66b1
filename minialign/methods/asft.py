"""ASFT: raise the absolute likelihood of the chosen answer, lower that of the rejected one. No reference model."""

from dataclasses import dataclass

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


@dataclass
class ASFT(Method):
    """Aligned supervised fine-tuning (arXiv 2409.10571; not Anchored SFT).

    w chosen, l rejected; a = mean log-prob of an answer, p = eᵃ, odds O = p/(1−p):
        L = −a_w + λ · [ −log σ(log O_w) − log σ(−log O_l) ]                (SFT term + λ · alignment term)
    The sigmoid undoes the odds: σ(log O) = p and σ(−log O) = 1 − p, so the whole loss is
        L = −(1+λ) a_w − λ log(1 − p_l)                                     likelihood up, unlikelihood down
        −∂L/∂a_w = 1 + λ                −∂L/∂a_l = −λ p_l / (1 − p_l)
    By eye:    the chosen side never stops pushing; the rejected side fades as p_l → 0 and is −λ at p_l = ½.
    Several rejected answers: mean over the pairs.
    Careful:   λ is what the paper calls β (0.1). `beta_odds` ≠ 1 tempers the odds, σ(b log O); released code has it, the paper
               not:
        L = −a_w + λ [ softplus(−b o_w) + softplus(b o_l) ],   o = log O = a − log(1 − p)
        −∂L/∂a_w = 1 + λ b σ(−b o_w)/(1−p_w)            −∂L/∂a_l = −λ b σ(b o_l)/(1−p_l)
    Whether the paper normalises its own SFT term by length could not be read; released code and the ORPO precedent do; we do too.
    """

    needs = ("rejected",)
    reads_others = True
    lam: float = 0.1
    beta_odds: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.beta_odds == 0:
            raise ValueError("beta_odds is 0, which makes every answer's odds 1; the paper has 1")

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                           # (A, B)
        share = share_of_negatives(n, batch, l.dtype)                   # (K, B)
        n = n.clamp(min=1)
        a_w, a_l = l[:1] / n[:1], below_one(l[1:] / n[1:])              # (1, B), (K, B)
        if self.beta_odds == 1:
            loss = -(1 + self.lam) * a_w - self.lam * log1mexp(a_l)
            up = torch.full_like(a_w, 1 + self.lam)
            down = -self.lam / torch.expm1(-a_l)                        # p/(1−p) = 1/(e^−a − 1): exact at both ends
        else:
            b, a_w = self.beta_odds, below_one(a_w)
            o_w, o_l = a_w - log1mexp(a_w), a_l - log1mexp(a_l)
            loss = -a_w - self.lam * (logsigmoid(b * o_w) + logsigmoid(-b * o_l))     # softplus(x) = −log σ(−x)
            up = 1 - self.lam * b * torch.sigmoid(-b * o_w) / torch.expm1(a_w)
            down = self.lam * b * torch.sigmoid(b * o_l) / torch.expm1(a_l)
        push = torch.cat([(share * up).sum(0, keepdim=True), share * down]) / n     # an answer's tokens share its push
        each = (share * loss).sum(0)                                    # (B,)
        N = batch.counts.examples
        info = {"loss_per_example": each, "p_chosen": a_w[0].exp(), "p_rejected": (share * a_l.exp()).sum(0),
                "saturated": (share * (l[1:] == 0)).sum(0)}
        return each.sum() / N, spread(push, batch) / N, info
