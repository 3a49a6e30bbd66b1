"""IFT: imitate, but continue from what you would have said yourself. The data of SFT, no more."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from minialign.data import Batch
from minialign.logps import greedy
from minialign.methods.method import Method, sums_and_lengths
from minialign.settings import setting


@dataclass
class IFT(Method):
    """Intuitive fine-tuning (arXiv 2405.11870; not instruction fine-tuning).

    1. Temporal residual connection (eq. 17). SFT always continues from the label; later the model
       has to continue from its own words. So ask the policy first, without a graph, for its greedy
       guess g_t at every y_t, made after the true beginning of the answer, and let it read
           (1−λ) E[y_t] + λ E[g_t]     instead of     E[y_t]        (E embeds; prompts stay as is)
       so that token t+1 is predicted partly from what the policy itself would have said at t.
    2. Relation propagation (Algorithm 1). c_t = −log-prob of y_t. An early token answers for the
       losses that follow it, discounted by γ per step:
           S_t = Σ_{i≥t} γ^(i−t) c_i,      Z = Σ_t S_t,      L = Σ_t c_t S_t / Z
       The coefficients S carry gradient too (the authors confirm it). ∂S_t/∂c_j is γ^(j−t) for
       t ≤ j, so with P_j = Σ_{t≤j} γ^(j−t) c_t and C_j = Σ_{t≤j} γ^(j−t) the quotient rule gives
           −∂L/∂logp_j = ∂L/∂c_j = (S_j + P_j − L C_j) / Z          detach_weights:  S_j / Z

    By eye:    γ = 0 stands for no propagation, which leaves SFT (`seq_mean`) on mixed inputs; with
               λ = 0 as well IFT *is* SFT.
    Careful:   late, well-predicted tokens can get negative weights: of c = (3, .1, .1, .1) tokens 2
               to 4 are pushed DOWN. Detached weights are never negative. γ = 0 is a case of its
               own: the formula above would leave Σc²/Σc.
    Differs:   released code reads E from a frozen copy, so the embedding table learns nothing from
               the input side; here it learns as in SFT, or λ = 0 would not be SFT. L is 0/0
               where all tokens have probability 1: NaN there, SFT here. It trains with RMSprop
               and clips gradients at 10 (verbs/recipes/ift.sh tells how ours differs).
    """

    forwards: ClassVar = 2                                  # the guesses take a pass of their own

    lam: float = setting(
        0.2, "share of the policy's own guess in what it reads", least=0, most=1
    )
    gamma: float = setting(
        0.95, "how far an early token answers for the losses behind it; 0 = not at all",
        least=0, most=1,
    )
    detach_weights: bool = setting(
        False, "no gradient through the propagation weights, which keeps them positive"
    )

    def prepare(self, model, parts):
        if self.lam == 0:
            return parts
        guessed = []
        for part in parts:
            rows = replace(part.rows, guesses=self.guess(model, part))
            guessed.append(replace(part, rows=rows))
        return guessed

    @torch.no_grad()
    def guess(self, model, batch: Batch) -> Tensor:
        """What the policy itself would say at the place of each response token: (A, B, T)."""
        rows = batch.rows
        hidden = model(rows.tokens, rows.positions, rows.texts).flatten(0, 1)       # (R·L, C)
        guesses = rows.y.clone()                                            # (A, B, T)
        guesses[batch.mask] = greedy(hidden[rows.source[batch.mask]], model.head)
        return guesses

    def inputs(self, model, batch):
        rows = batch.rows
        if self.lam == 0:
            return rows.tokens

        # Response token t is read at the place whose state predicts token t+1, at source[t+1]. Put
        # the guess of token t there. The last token of an answer is not read.
        read = batch.mask[..., 1:]                                          # (A, B, T−1)
        places = rows.source[..., 1:][read]                                 # (tokens read,)
        guesses = rows.guesses[..., :-1][read]                              # (tokens read,)
        guessed = rows.tokens.flatten().scatter(0, places, guesses)         # (R·L,)
        guessed = guessed.view_as(rows.tokens)                              # (R, L)

        # Everywhere else, in the prompt above all, guess and token are the same and so is the mix.
        return torch.lerp(model.embed(rows.tokens), model.embed(guessed), self.lam)     # (R, L, C)

    def weigh(self, logps, batch):
        n = sums_and_lengths(logps, batch)[1][0, :, None].to(logps.dtype)   # (B, 1)
        m = batch.mask[0].to(logps.dtype)                                   # (B, T)
        c = torch.where(batch.mask[0], -logps[0], 0.0)                      # (B, T)
        S = discounted_tail(c, self.gamma) * m                              # (B, T)
        Z = S.sum(-1, keepdim=True)                                         # (B, 1)

        # Where SFT takes over: without propagation, and where nothing is left to learn, Z = 0.
        plain = Z == 0                                                      # (B, 1)
        if self.gamma == 0:
            plain = torch.ones_like(plain)
        Z = torch.where(plain, 1.0, Z)                                      # no division by zero

        # The loss, and −∂L/∂logp of every token.
        L = (c * S).sum(-1, keepdim=True) / Z                               # (B, 1)
        L = torch.where(plain, c.sum(-1, keepdim=True) / n, L)
        if self.detach_weights:
            push = S / Z                                                    # (B, T)
        else:
            P, C = discounted_head(c, self.gamma), discounted_head(m, self.gamma)
            push = (S + P - L * C) / Z                                      # (B, T)
        push = torch.where(plain, 1 / n, push) * m

        N = batch.counts.examples
        weights = torch.zeros_like(logps)                                   # (A, B, T)
        weights[0] = push / N
        info = {
            "loss_per_example": L[:, 0],
            "negative_weights": (weights[0] < 0).sum(-1) / n[:, 0],
        }
        return L.sum() / N, weights, info


@dataclass
class IFTEq21(IFT):
    """IFT's loss as equation 21 of the paper prints it: a double sum.

        L = Σ_n Σ_{i≥n} γ^(i−n) c_i  =  Σ_i c_i C_i,          C_i = Σ_{n≤i} γ^(i−n)
    The second form counts how often c_i occurs: once for every start n ≤ i. It is linear in c:
        −∂L/∂logp_i = C_i                                     (= i+1 at γ = 1, counting from 0)
    Summed over the answer, averaged over examples.

    By eye:    LATE tokens weigh more here, EARLY ones in Algorithm 1. γ = 0 is SFT by sums.
    Careful:   the loss grows with the square of the length; long answers count far more.
    Differs:   the decay γ is ours, the equation has none (γ = 1). No released code has this form.
    """

    gamma: float = setting(
        1.0, "discount of a token's loss per step from each start; 1 is the equation",
        least=0, most=1,
    )
    detach_weights: bool = field(init=False, default=True, repr=False)      # they are constants

    def weigh(self, logps, batch):
        sums_and_lengths(logps, batch)                  # every example must have a wanted answer
        N = batch.counts.examples
        m = batch.mask[0].to(logps.dtype)                                   # (B, T)
        c = torch.where(batch.mask[0], -logps[0], 0.0)                      # (B, T)
        weights = torch.zeros_like(logps)                                   # (A, B, T)
        weights[0] = discounted_head(m, self.gamma) * m / N                 # C_i
        parts = (c * weights[0]).sum(-1)                                    # (B,)
        return parts.sum(), weights, {"loss_per_example": N * parts}


def discounted_tail(x: Tensor, gamma: float) -> Tensor:
    """S_t = Σ_{i≥t} γ^(i−t) x_i along the last axis, for all t at once.

    A sum over 1, 2, 4, 8, … neighbours, each made of two of the sums before: log₂ T steps.
    """
    reach = 1
    while reach < x.shape[-1]:
        x = x + gamma**reach * pad(x[..., reach:], (0, reach))
        reach *= 2
    return x


def discounted_head(x: Tensor, gamma: float) -> Tensor:
    """P_t = Σ_{i≤t} γ^(t−i) x_i along the last axis: the same, read backwards."""
    return discounted_tail(x.flip(-1), gamma).flip(-1)
