"""RRHF: put several answers into the order of their rewards, and imitate the best."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from minialign.methods.method import Method, spread, sums_and_lengths
from minialign.settings import setting


@dataclass
class RRHF(Method):
    """Rank responses to align language models with human feedback (arXiv 2304.05302).

    s = l / n^lp, the score of an answer; ρ = its reward, by people, a model or a verifier:
        L = w Σ_{ρ_j > ρ_i} max(0, s_i − s_j) − k l_best       k = 1/n (token_mean) or 1 (sum)
    A pair in the wrong order, ρ_j > ρ_i but s_j < s_i, adds s_i − s_j: slope +1 in s_i, −1 in s_j;
    a pair in the right order adds nothing. Counting the pairs in which answer i takes part:
        −∂L/∂s_i = w (#{worse answers that score higher} − #{better answers that score lower})
    and the best answer gets k more per nat of l_best.

    By eye:    in the right order nothing is left but SFT on the best answer. In the wrong one w
               pulls at each pair with the same force, near or far.
    Careful:   ties in reward are not ranked; of several best answers the first is imitated.
               Answer 0 has no special part here.
    Differs:   w is 100 by default in released code and 1 in every script of it. The paper's SFT
               term is a sum. Released code takes a mean, which has the scale of s, but divides by
               the padded row and so by wrong lengths (a known bug); it takes one prompt per batch,
               we the mean over prompts.
    """

    needs: ClassVar = ("rewards",)
    reads_others: ClassVar = True
    allows_unpaired: ClassVar = True

    rrhf_weight: float = setting(1.0, "weight of the ranking term", least=0)
    length_penalty: float = setting(
        1.0, "power of the length that divides a log-prob: 1 gives the mean, 0 the sum", least=0
    )
    sft: str = setting(
        "token_mean", "the likelihood of the best answer: its mean or its sum over tokens",
        choices=("token_mean", "sum"),
    )

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch, wanted=False)                 # (A, B)
        present = n > 0                                                     # (A, B)
        check_rewards(batch, present)

        # Rewards ρ and scores s. An absent answer is better than nobody.
        rho = torch.where(present, batch.rewards.to(l), -torch.inf)         # (A, B)
        n = n.clamp(min=1).to(l.dtype)
        unit = n**self.length_penalty
        s = l / unit                                                        # (A, B)

        # wrong[j, i]: j is the better answer of the two and scores lower.
        better = rho[:, None] > rho                                         # (A, A, B)
        lower = s[:, None] < s                                              # (A, A, B)
        wrong = better & lower & present                                    # (A, A, B)
        rank = torch.where(wrong, s - s[:, None], 0.0).sum((0, 1))          # (B,)

        # An answer is pulled up once per pair in which it is j, down once per pair where it is i.
        push = self.rrhf_weight * (wrong.sum(1) - wrong.sum(0)) / unit      # −∂L/∂l  (A, B)

        # Imitate the best answer.
        best = rho.argmax(0, keepdim=True)                                  # (1, B)
        k = torch.ones_like(l[:1])                                          # (1, B)
        if self.sft == "token_mean":
            k = 1 / n.gather(0, best)
        loss = self.rrhf_weight * rank - (k * l.gather(0, best))[0]         # (B,)
        push = push.scatter_add(0, best, k)                                 # (A, B)

        N = batch.counts.examples
        info = {
            "loss_per_example": loss,
            "rank": rank,
            "wrong_pairs": wrong.sum((0, 1)).to(l.dtype),
        }
        return loss.sum() / N, spread(push, batch) / N, info


def check_rewards(batch, present) -> None:
    """ValueError unless every answer present has a reward, and every example an answer."""
    if batch.rewards is None:
        raise ValueError(
            "RRHF needs a reward for every answer; "
            'give rows {"prompt", "responses": […], "rewards": […]}'
        )
    lacking = ~present.any(0)                                               # (B,)
    if lacking.any():
        first = int(batch.index[lacking][0])
        raise ValueError(f"example {first} has no answers at all; RRHF needs some to rank")
    if batch.rewards.isnan()[present].any():
        raise ValueError("a reward is not a number; RRHF cannot rank it")
