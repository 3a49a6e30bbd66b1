"""ASFT: raise the absolute likelihood of the chosen answer, lower that of the rejected one. No reference model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.methods.method import Method, spread, sums_and_lengths


def log1mexp(a: Tensor) -> Tensor:
    """log(1 − eᵃ) for a < 0, accurate at both ends; each branch is fed only values it is good for."""
    near = a > -0.6931471805599453                                      # eᵃ > ½: 1 − eᵃ is small, expm1 keeps its digits
    small = torch.where(near, a, -1.0)
    large = torch.where(near, -1.0, a)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def below_one(a: Tensor) -> Tensor:
    """Mean log-probs in which exact zeros are replaced by the largest log-prob below 0 that rounding could have hidden (−eps/2).

    An answer of probability 1 has infinite odds. Floats round to exactly 1 from a distance of eps/2 on; callers report how often.
    """
    return torch.where(a == 0, -torch.finfo(a.dtype).eps / 2, a)


@dataclass
class ASFT(Method):
    """Aligned supervised fine-tuning (arXiv 2409.10571; not Anchored SFT).

    w chosen, l rejected; a = mean log-prob of an answer, p = eᵃ, odds O = p/(1−p):
        L = −a_w + λ · [ −log σ(log O_w) − log σ(−log O_l) ]                (SFT term + λ · alignment term)
    The sigmoid undoes the odds: σ(log O) = p and σ(−log O) = 1 − p, so the whole loss is
        L = −(1+λ) a_w − λ log(1 − p_l)                                     likelihood up, unlikelihood down
        −∂L/∂a_w = 1 + λ                −∂L/∂a_l = −λ p_l / (1 − p_l)
    By eye:    the chosen side never stops pushing; the rejected side fades as p_l → 0 and is −λ at p_l = ½.
    Careful:   λ is what the paper calls β (0.1). `beta_odds` ≠ 1 tempers the odds, σ(b log O): a variant of released code, not the paper:
        L = −a_w + λ [ softplus(−b o_w) + softplus(b o_l) ],   o = log O = a − log(1 − p)
        −∂L/∂a_w = 1 + λ b σ(−b o_w)/(1−p_w)            −∂L/∂a_l = −λ b σ(b o_l)/(1−p_l)
    Whether the paper's own SFT term is length-normalised could not be read; released code and the ORPO precedent normalise, and so do we.
    """

    needs = ("rejected",)
    lam: float = 0.1
    beta_odds: float = 1.0

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch, 0, 1)                     # (A, B)
        a_w, a_l = l[0] / n[0], below_one(l[1] / n[1])                  # (B,)
        if self.beta_odds == 1:
            loss = -(1 + self.lam) * a_w - self.lam * log1mexp(a_l)
            up = torch.full_like(a_w, 1 + self.lam)
            down = -self.lam / torch.expm1(-a_l)                        # p/(1−p) = 1/(e^−a − 1): no digit is lost at either end
        else:
            b, a_w = self.beta_odds, below_one(a_w)
            o_w, o_l = a_w - log1mexp(a_w), a_l - log1mexp(a_l)
            loss = -a_w + self.lam * (F.softplus(-b * o_w, threshold=1e4) + F.softplus(b * o_l, threshold=1e4))
            up = 1 - self.lam * b * torch.sigmoid(-b * o_w) / torch.expm1(a_w)
            down = self.lam * b * torch.sigmoid(b * o_l) / torch.expm1(a_l)
        push = torch.zeros_like(l)
        push[0], push[1] = up / n[0], down / n[1]                       # every token of an answer shares its answer's push
        N = batch.counts.examples
        info = {"loss_per_example": loss, "p_chosen": a_w.exp(), "p_rejected": a_l.exp(), "saturated": (l[1] == 0).to(l.dtype)}
        return loss.sum() / N, spread(push, batch) / N, info
