"""DFT and DFT2: raise the wanted answer against the answers the model itself would give.

No preference labels: the data of SFT, and answers that were drawn from the model beforehand.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from minialign.data import Batch
from minialign.methods.method import Method, reference, spread, sums_and_lengths
from minialign.settings import setting


@dataclass
class DFT(Method):
    """Discriminative fine-tuning (arXiv 2502.18679; not Dynamic Fine-Tuning).

    Make the wanted answer y₀ win among all answers, P_d(y₀|x) = exp(s₀/τ) / Σ_y exp(s_y/τ), where
    the score s of an answer is its log-prob. Minus τ times the logarithm of P_d is the loss:
        F = −s₀ + τ log u,     u = Σ_y exp(s_y/τ)                                      (eqs. 4, 6)
    Nobody can sum over all answers. Multiply and divide by P_ref(y), the probability under the
    frozen reference, and the sum is a mean over answers drawn from it; K of them estimate it:
        d_j = s_j/τ − log P_ref(y_j),      û = mean_j exp(d_j)                            (eq. 7)
    K is small, so û is averaged over visits, one number u per training example, kept as log u and
    starting at log u = 0:
        u ← (1−γ) u + γ û                                                                (eq. 10)
    In the gradient, τ ∂log u/∂s_j = τ (∂u/∂s_j) / u, each part gets the best estimate at hand: the
    denominator the running u, the numerator ∂û/∂s_j = exp(d_j) / (τK) of this visit. So
        push on s₀ = 1        push on s_j = −ω_j,      ω_j = exp(d_j) / (K u)             (eq. 8)

    By eye:    at γ = 1 the K pushes down add up to one push up, at γ < 1 to at most 1/γ. At the
               start the policy is the reference; with τ = 1 every d_j is 0 then, and u stays 1.
    Careful:   for γ < 1 these are not the derivatives of F, and need not be: autograd through u
               would find γ exp(d_j) / (τK) as the numerator, and shrink every push down by the
               factor γ, a silent bug. At τ = 1 the exact u is Σ_y P(y) = 1, and F is SFT's
               loss: in that case only the finite pool of answers and the running average set DFT
               apart from SFT.
               û is unbiased if the answers are drawn from P_ref. They are not quite: P_ref is the
               full distribution at temperature 1, and the paper draws at 0.7 among 50 tokens.
    Differs:   the loss printed here is F; released code prints a surrogate whose value means
               nothing. An example that occurs twice in a batch is visited twice, in order, as in
               two batches; in released code the last one wins.
    State:     `log_u` (n_examples,), float64, on the CPU: it belongs in checkpoints.
    """

    needs: ClassVar = ("negatives", "reference")
    reads_others: ClassVar = True

    tau: float = setting(
        1.0, "temperature: large spreads the push down evenly over the negatives, small aims it at "
             "the likeliest", above=0,
    )
    gamma: float = setting(
        0.95, "share of the new estimate in the running average; 1 = no memory", above=0, most=1
    )
    n_examples: int = 1             # the size of the data set: no choice of the user's
    log_u: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        self.log_u = torch.zeros(self.n_examples, dtype=torch.float64)

    def scores(self, l: Tensor, n: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """From log-probs l and lengths n, three numbers per answer, (A, B) each: its score s,
        d, the exponent in û (not used for answer 0), and ∂s/∂logp of each of its tokens.
        """
        return l, l / self.tau - reference(self, batch, l), torch.ones_like(l)

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                               # (A, B)
        present = n[1:] > 0                                                 # (K, B)
        lacking = ~present.any(0)                                           # (B,)
        if lacking.any():
            first = int(batch.index[lacking][0])
            raise ValueError(
                f"example {first} has no negatives; dft and dft2 need at least one negative per "
                "prompt: draw them with 'minialign sample'"
            )
        s, d, per_token = self.scores(l, n, batch)                           # (A, B)

        # The running averages, updated in float64. An absent answer adds exp(−∞) = 0 to û.
        d = torch.where(present, d[1:].double(), -torch.inf)                # (K, B)
        log_K = present.sum(0).double().log()                               # (B,)
        log_u = self.update(batch.index, d.logsumexp(0) - log_K).to(d.device)

        # F, and the push on each score: 1 for the wanted answer, −ω for the negatives.
        F = -s[0] + self.tau * log_u.to(s)                                  # (B,)
        omega = (d - log_u - log_K).exp()                                   # (K, B)
        omega = torch.where(d == -torch.inf, 0.0, omega)                    # −∞ − (−∞) is NaN
        push = torch.cat([torch.ones_like(s[:1]), -omega.to(s)])            # (A, B)

        N = batch.counts.examples
        info = {
            "loss_per_example": F,
            "log_u": log_u.to(s),
            "push_down": omega.sum(0).to(s),
        }
        return F.sum() / N, spread(push * per_token, batch) / N, info

    def update(self, index: Tensor, log_estimate: Tensor) -> Tensor:
        """u ← (1−γ) u + γ û in logarithms, one visit after the other.

        index (B,) says whose u, log_estimate (B,) is log û; → log u after each visit, (B,) float64
        on the CPU.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.log_u):
            raise ValueError(
                f"example {int(index.max())} has no running average: "
                "n_examples must be the size of the data set"
            )
        log_keep = -math.inf                                                # γ = 1 keeps nothing
        if self.gamma < 1:
            log_keep = math.log1p(-self.gamma)
        log_add = (math.log(self.gamma) + log_estimate).cpu()               # (B,)
        visited = torch.empty_like(log_add)                                 # (B,)
        for visit, i in enumerate(index.tolist()):
            self.log_u[i] = torch.logaddexp(log_keep + self.log_u[i], log_add[visit])
            visited[visit] = self.log_u[i]
        return visited

    def state_dict(self):
        return {"log_u": self.log_u}

    def load_state_dict(self, state):
        if state["log_u"].shape != self.log_u.shape:
            raise ValueError(
                f"saved running averages are for {len(state['log_u'])} examples, "
                f"the data has {len(self.log_u)}"
            )
        self.log_u.copy_(state["log_u"])


@dataclass
class DFT2(DFT):
    """DFT without a reference (same paper): the score is the mean log-prob a = l/n of an answer.

    The model's own answers score like one another and far above random text (fig. 1), so a few of
    them may stand for all answers, and P_ref is left out:
        F = −a₀ + τ log u                                                                (eq. 11)
        d_j = a_j/τ,     û = mean_j exp(d_j),     u ← (1−γ) u + γ û                      (eq. 12)
    The derivation is DFT's with a for s, and a = l/n gives each token 1/n of the push:
        push on a₀ = 1         push on a_j = −ω_j,      ω_j = exp(d_j) / (K u)

    By eye:    at γ = 1 F = τ log mean_j exp((a_j − a₀)/τ), and ω is a softmax over the negatives;
               τ → ∞ spreads the push down evenly.
    Careful:   this F is not a softmax classifier's loss: the wanted answer is not in the sum, so F
               has no floor and falls without bound as the negatives become unlikely. And d starts
               far below 0, so u = 1 is no natural start: it fades as (1−γ)^visits and mutes the
               first pushes down.
    Differs:   released code adds 1e-8 to n, the paper does not. An absent answer has no score here.
    """

    needs: ClassVar = ("negatives",)

    tau: float = setting(
        0.3, "temperature: large spreads the push down evenly over the negatives, small aims it at "
             "the likeliest", above=0,
    )
    gamma: float = setting(
        0.9, "share of the new estimate in the running average; 1 = no memory", above=0, most=1
    )

    def scores(self, l, n, batch):
        per_token = torch.where(n > 0, 1 / n.clamp(min=1).to(l.dtype), 0.0)     # 0 if absent
        a = l * per_token                                                   # (A, B)
        return a, a / self.tau, per_token
