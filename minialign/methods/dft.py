"""DFT and DFT2: raise the wanted answer against the answers the model itself would give. No preference labels."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minialign.methods.method import Method, reference, spread, sums_and_lengths


@dataclass
class DFT(Method):
    """Discriminative fine-tuning (arXiv 2502.18679; not Dynamic Fine-Tuning).

    Make the wanted answer y₀ win among all answers, P_d(y₀|x) = exp(s₀/τ) / Σ_y exp(s_y/τ), with score s = its log-prob:
        F = −s₀ + τ log u,      u = Σ_y exp(s_y/τ) = E_{y ~ P_ref} exp(s_y/τ) / P_ref(y)                       (eqs. 4, 6)
    The sum over all answers is an expectation over answers drawn once from the frozen reference model. K of them give
        d_j = s_j/τ − log P_ref(y_j),       û = mean_j exp(d_j),       u ← (1−γ) u + γ û                       (eqs. 7, 10)
    one number u per training example, kept as log u and starting at log u = 0. By hand, with u held fixed once updated:
        −∂F/∂s₀ = 1                     −∂F/∂s_j = −ω_j,     ω_j = exp(d_j) / (K u)                            (eq. 8)
    By eye:    at γ = 1 the K pushes down add up to one push up; for γ < 1 to at most 1/γ. At the start, where the policy still
               is the reference and τ = 1, every d_j is 0 and u stays 1.
    Careful:   autograd through u would shrink every push down by the factor γ — a silent bug. The loss printed here is F;
               released code prints a surrogate whose value means nothing. With τ = 1 the exact u is Σ_y P(y) = 1: then F is
               SFT's loss, and all that differs from SFT comes from the finite pool of answers and from the running average.
    State:     `log_u` (n_examples,) float64 belongs into checkpoints. While `frozen` (evaluation) it is read and not written. An
               example that occurs twice in a batch is visited twice, in order, as in two batches (released code: the last one
               wins).
    """

    needs = ("negatives", "reference")
    reads_others = True
    tau: float = 1.0
    gamma: float = 0.95
    n_examples: int = 1
    log_u: Tensor = field(init=False, repr=False)
    frozen: bool = field(init=False, default=False, repr=False)

    def __post_init__(self):
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; it must lie in (0, 1], 1 = no memory")
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}; it must be above 0")
        self.log_u = torch.zeros(self.n_examples, dtype=torch.float64)

    def score(self, l: Tensor, n: Tensor, batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scores s (A, B), d = log of what the running average averages (A, B), and what one token gets of a push on s (A, B)."""
        return l, l / self.tau - reference(self, batch, l), torch.ones_like(l)

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch)                           # (A, B)
        present = n[1:] > 0                                             # (K, B)
        if not present.any(0).all():
            raise ValueError("dft and dft2 need at least one negative per prompt; draw them with 'minialign sample'")
        s, d, per_token = self.score(l, n, batch)
        d = torch.where(present, d[1:].double(), -torch.inf)            # (K, B): e^d = 0 for an absent answer
        log_K = present.sum(0).double().log()                           # (B,)
        log_u = self.update(batch.index, d.logsumexp(0) - log_K).to(d.device)
        omega = torch.where(d == -torch.inf, 0.0, (d - log_u - log_K).exp())    # (K, B)
        loss = -s[0] + self.tau * log_u.to(s)
        push = torch.cat([torch.ones_like(s[:1]), -omega.to(s)]) * per_token    # −∂F/∂l  (A, B)
        info = {"loss_per_example": loss, "log_u": log_u.to(s), "push_down": omega.sum(0).to(s)}
        N = batch.counts.examples
        return loss.sum() / N, spread(push, batch) / N, info

    def update(self, index: Tensor, log_mean: Tensor) -> Tensor:
        """u ← (1−γ) u + γ û in logs, one visit after the other; returns log u after each visit, (B,) float64 on the CPU."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.log_u):
            raise ValueError(f"example {int(index.max())} has no running average: n_examples must be the size of the data set")
        log_keep = math.log1p(-self.gamma) if self.gamma < 1 else -math.inf
        table = self.log_u.clone() if self.frozen else self.log_u
        visited = torch.empty(len(index), dtype=torch.float64)
        for b, (i, new) in enumerate(zip(index.tolist(), (math.log(self.gamma) + log_mean).cpu(), strict=True)):
            visited[b] = table[i] = torch.logaddexp(log_keep + table[i].to(new), new)
        return visited

    def state_dict(self):
        return {"log_u": self.log_u}

    def load_state_dict(self, state):
        if state["log_u"].shape != self.log_u.shape:
            raise ValueError(f"saved running averages are for {len(state['log_u'])} examples, the data has {len(self.log_u)}")
        self.log_u.copy_(state["log_u"])


@dataclass
class DFT2(DFT):
    """DFT without a reference: the score is the *mean* log-prob a = l/n, and u averages exp(a_j/τ) itself (eq. 11).

        F = −a₀ + τ log u,      d_j = a_j/τ,        −∂F/∂a₀ = 1,       −∂F/∂a_j = −ω_j,        then 1/n per token
    By eye:    at γ = 1 F is a softmax classifier, τ log mean_j exp((a_j − a₀)/τ); τ → ∞ spreads the push down evenly.
    Careful:   d starts far below 0 here, so u₀ = 1 is no natural start: it fades only as (1−γ)^visits, and mutes the first
               pushes down. Released code adds 1e-8 to n, the paper does not; an empty answer is an error here.
    """

    needs = ("negatives",)
    tau: float = 0.3
    gamma: float = 0.9

    def score(self, l, n, batch):
        per_token = torch.where(n > 0, 1 / n.clamp(min=1).to(l.dtype), 0.0)     # 0 for absent answers
        a = l * per_token
        return a, a / self.tau, per_token
