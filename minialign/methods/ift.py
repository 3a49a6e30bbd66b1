"""IFT: imitate, but continue from what you would have said yourself. The data of SFT, nothing more."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.logps import greedy
from minialign.methods.method import Method, sums_and_lengths


def discounted_tail(x: Tensor, gamma: float) -> Tensor:
    """S_t = Σ_{i ≥ t} γ^(i−t) x_i along the last axis, in log₂ T steps: sums over 1, 2, 4, 8, … neighbours."""
    reach = 1
    while reach < x.shape[-1]:
        x = x + gamma**reach * F.pad(x[..., reach:], (0, reach))
        reach *= 2
    return x


def discounted_head(x: Tensor, gamma: float) -> Tensor:
    """P_t = Σ_{i ≤ t} γ^(t−i) x_i along the last axis."""
    return discounted_tail(x.flip(-1), gamma).flip(-1)


@dataclass
class IFT(Method):
    """Intuitive fine-tuning (arXiv 2405.11870; not instruction fine-tuning).

    1. Temporal residual connection (eq. 17). Ask the policy, without a graph, for its greedy guess g_t at every y_t; read
           (1−λ) E[y_t] + λ E[g_t]      instead of     E[y_t]               (E embeds; prompt tokens stay as they are)
       so that token t+1 is predicted partly from what the policy itself would have said at t.
    2. Relation propagation (Algorithm 1). With c_t = −log-prob of y_t, an early token answers for the losses that follow it:
           S_t = Σ_{i≥t} γ^(i−t) c_i,      Z = Σ_t S_t,      L = Σ_t c_t S_t / Z
       The coefficients carry gradient (the authors confirm it). With P_t = Σ_{i≤t} γ^(t−i) c_i and C_t = Σ_{i≤t} γ^(t−i):
           −∂L/∂logp_t = (S_t + P_t − L C_t) / Z                    detach_weights:  S_t / Z
    By eye:    γ = 0 switches propagation off: SFT (mean over tokens); with λ = 0 as well IFT *is* SFT.
    Careful:   the weights of late, well-predicted tokens can be negative: c = (3, .1, .1, .1) pushes tokens 2 to 4 DOWN. Detached
               weights never do. γ = 0 is not the limit γ → 0, which would be Σc²/Σc.
    Differs:   released code reads E from a frozen copy, so the embedding table learns nothing from the input side; here it
               learns as in SFT, which makes λ = 0 exactly SFT. The distance t − i counts masked tokens too, as there.
    """

    lam: float = 0.2
    gamma: float = 0.95
    detach_weights: bool = False

    def __post_init__(self):
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam is {self.lam}; it is the share of the policy's own guess, 0 to 1")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it must lie in [0, 1], 0 = no propagation")

    forwards = 2

    def prepare(self, model, parts):
        if self.lam == 0:
            return parts
        return [self.ask(model, part) for part in parts]

    def ask(self, model, batch):
        """The batch with the policy's greedy guess at every response token."""
        with torch.no_grad():
            hidden = model(batch.rows.tokens, batch.rows.positions, batch.rows.texts).flatten(0, 1)      # (R·L, C)
            guesses = batch.rows.y.clone()                                                                  # (A, B, T)
            guesses[batch.mask] = greedy(hidden[batch.rows.source[batch.mask]], model.head)
        return replace(batch, rows=replace(batch.rows, guesses=guesses))

    def inputs(self, model, batch):
        rows = batch.rows
        if self.lam == 0:
            return rows.tokens
        # Response token t is read at the very place that predicts token t+1.
        read = batch.mask[..., 1:]                                      # (A, B, T−1)
        guessed = rows.tokens.flatten().scatter(0, rows.source[..., 1:][read], rows.guesses[..., :-1][read]).view_as(rows.tokens)
        return torch.lerp(model.embed(rows.tokens), model.embed(guessed), self.lam)     # (R, L, C); prompt: its own guess

    def weigh(self, logps, batch):
        n = sums_and_lengths(logps, batch)[1][0, :, None].to(logps.dtype)   # (B, 1)
        m = batch.mask[0].to(logps.dtype)                               # (B, T)
        c = torch.where(batch.mask[0], -logps[0], 0.0)                  # (B, T)
        S = discounted_tail(c, self.gamma) * m
        Z = S.sum(-1, keepdim=True)                                     # (B, 1)
        plain = torch.full_like(Z, self.gamma == 0, dtype=torch.bool) | (Z == 0)        # Z = 0: every token has probability 1
        Z = torch.where(plain, 1.0, Z)
        L = torch.where(plain, c.sum(-1, keepdim=True) / n, (c * S).sum(-1, keepdim=True) / Z)      # (B, 1)
        if self.detach_weights:
            push = S / Z
        else:
            push = (S + discounted_head(c, self.gamma) - L * discounted_head(m, self.gamma)) / Z
        weights = torch.zeros_like(logps)
        weights[0] = torch.where(plain, 1 / n, push) * m / batch.counts.examples
        info = {"loss_per_example": L[:, 0], "negative_weights": ((weights[0] < 0).sum(-1) / n[:, 0])}
        return L.sum() / batch.counts.examples, weights, info


@dataclass
class IFTEq21(IFT):
    """IFT's loss as equation 21 prints it: a double sum, which favours LATE tokens where Algorithm 1 favours early ones.

        L = Σ_n Σ_{i≥n} γ^(i−n) c_i  =  Σ_i c_i C_i,      C_i = Σ_{n≤i} γ^(i−n)  (= i+1 at γ = 1),      −∂L/∂logp_i = C_i
    Summed over the answer, averaged over examples. The decay γ is ours; the equation has none (γ = 1). No released code has this.
    """

    gamma: float = 1.0
    detach_weights: bool = field(init=False, default=True, repr=False)      # the weights are constants

    def weigh(self, logps, batch):
        sums_and_lengths(logps, batch)                                  # every example must have a wanted answer
        m = batch.mask[0].to(logps.dtype)                               # (B, T)
        weights = torch.zeros_like(logps)
        weights[0] = discounted_head(m, self.gamma) * m / batch.counts.examples
        c = torch.where(batch.mask[0], -logps[0], 0.0)
        loss = (c * weights[0]).sum(-1)                                 # (B,)
        return loss.sum(), weights, {"loss_per_example": loss * batch.counts.examples}
