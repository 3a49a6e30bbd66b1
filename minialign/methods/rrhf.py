"""RRHF: put several answers into the order of their rewards, and imitate the best."""

from dataclasses import dataclass

import torch

from minialign.methods.method import Method, spread, sums_and_lengths


@dataclass
class RRHF(Method):
    """Rank responses to align with human feedback (arXiv 2304.05302). ρ = reward, by people, a model or a verifier.

        s = l / n^lp,       L = w Σ_{ρ_j > ρ_i} max(0, s_i − s_j) − k l_best,           k = 1/n ("token_mean") or 1 ("sum")
    Each pair in the wrong order, ρ_j > ρ_i but s_j < s_i, has slope +1 in s_i and −1 in s_j:
        −∂L/∂s_i = w (#{worse answers that score higher} − #{better answers that score lower}),      and k more per nat of l_best
    By eye:    in the right order nothing is left but SFT on the best answer; in the wrong one w pulls at each pair, near or far.
    Careful:   ties in reward are not ranked; of several best answers the first is imitated. Answer 0 has no special part here.
               w: 100 is the default of the released code, 1 stands in every script. The paper's SFT term is a sum; the code's a
               mean, which has the scale of s, but over the padded row: it counts wrong lengths (a known bug). One prompt a batch
               there; here the mean over prompts.
    """

    needs = ("rewards",)
    reads_others = True
    allows_unpaired = True
    rrhf_weight: float = 1.0
    length_penalty: float = 1.0
    sft: str = "token_mean"

    def __post_init__(self):
        super().__post_init__()
        if self.sft not in ("token_mean", "sum"):
            raise ValueError(f"sft is {self.sft!r}; choose token_mean or sum")

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch, wanted=False)             # (A, B)
        if batch.rewards is None:
            raise ValueError('RRHF needs a reward for every answer; give rows {"prompt", "responses": […], "rewards": […]}')
        present = n > 0
        if not present.any(0).all():
            raise ValueError(f"example {int(batch.index[~present.any(0)][0])} has no answers at all; RRHF needs some to rank")
        if batch.rewards.isnan()[present].any():
            raise ValueError("a reward is not a number; RRHF cannot rank it")
        n = n.clamp(min=1).to(l.dtype)
        rho = torch.where(present, batch.rewards.to(l), -torch.inf)     # (A, B): an absent answer is nobody's better
        unit = n**self.length_penalty
        s = l / unit
        wrong = (rho[:, None] > rho) & (s[:, None] < s) & present       # (A, A, B): j is better than i, and scores lower
        rank = torch.where(wrong, s - s[:, None], 0.0).sum((0, 1))                   # (B,)
        push = self.rrhf_weight * (wrong.sum(1) - wrong.sum(0)) / unit  # −∂/∂l  (A, B): up as the better j, down as the worse i
        best = rho.argmax(0, keepdim=True)                              # (1, B)
        k = 1 / n.gather(0, best) if self.sft == "token_mean" else torch.ones_like(l[:1])
        loss = self.rrhf_weight * rank - (k * l.gather(0, best))[0]
        push = push.scatter_add(0, best, k)
        N = batch.counts.examples
        info = {"loss_per_example": loss, "rank": rank, "wrong_pairs": wrong.sum((0, 1)).to(l.dtype)}
        return loss.sum() / N, spread(push, batch) / N, info
