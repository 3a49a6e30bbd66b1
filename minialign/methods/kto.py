"""KTO: single answers marked good or bad, no pairs; each is judged against how far the policy has drifted on the whole."""

from dataclasses import dataclass, replace

import torch

from minialign.data import Example, collate
from minialign.logps import add_reference, batch_logps
from minialign.methods.method import Method, reference, spread, sums_and_lengths


@dataclass
class KTO(Method):
    """Kahneman–Tversky optimization (arXiv 2402.01306). r = l − l_ref, the log-ratio of an answer to a frozen reference.

    People feel gains and losses against a reference point, with diminishing returns both ways. The point is the policy's mean
    drift, estimated on prompts with another prompt's answer (`kl_logps`, `kl_ref_logps`):
        z₀ = max(0, mean(l_kl − l_ref,kl)) ≈ KL(π ‖ π_ref)                  a constant: no gradient
        good answers (answer 0):     u = β (r − z₀),       L = λ_D (1 − σ(u))          −∂L/∂l = λ_D β σ(u) σ(−u)
        bad answers (all others):    v = β (z₀ − r),       L = λ_U (1 − σ(v))          −∂L/∂l = −λ_U β σ(v) σ(−v)
    by σ′ = σ(u) σ(−u); mean over all answers together, good and bad. An absent answer (empty mask) counts for nothing.
    By eye:    at the start u = v = 0 and an answer is pushed by λβ/4, the most there is; far from z₀, either way, it is left
               alone.
    Careful:   gradient through z₀ would couple all rows (one release has it, and doubles the push). HALOs leaves rows with r = 0
               out of the mean. With K bad answers per good one, λ_D between K and 1.5 K balances them (DFT paper).
    """

    needs = ("reference",)
    reads_others = True
    allows_unpaired = True
    beta: float = 0.1
    lambda_d: float = 1.0
    lambda_u: float = 1.0

    def prepare_data(self, model, examples, max_len=None, progress=True):
        super().prepare_data(model, examples, max_len, progress)
        if len(examples) < 2:
            raise ValueError("kto judges answers against the drift on other prompts' answers; it needs at least two examples")
        self.mismatched = {}
        for e, other in zip(examples, examples[1:] + examples[:1], strict=True):
            answer = next(answer for answer in other.answers if answer)
            if max_len is not None:
                answer = answer[: max(1, max_len - len(e.prompt))]
            self.mismatched[e.index] = Example(e.index, e.prompt, [answer])
        add_reference(model, list(self.mismatched.values()), progress=progress)

    @torch.no_grad()
    def prepare(self, model, parts):
        policy, reference = [], []
        for part in parts:
            pairs = [self.mismatched[i] for i in part.index.tolist()]
            policy.append(batch_logps(model, collate(pairs).to(model.head.device)).sum((0, 2)))
            reference += [pair.ref_logps[0] for pair in pairs]
        drift = {"kl_logps": torch.cat(policy), "kl_ref_logps": torch.tensor(reference, dtype=torch.float64)}
        return [replace(part, extra=drift) for part in parts]

    def weigh(self, logps, batch):
        l, n = sums_and_lengths(logps, batch, wanted=False)             # (A, B)
        present = n > 0
        if "kl_logps" not in batch.extra or "kl_ref_logps" not in batch.extra or not len(batch.extra["kl_logps"]):
            raise ValueError("KTO needs log-probs of mismatched answers under policy and reference (kl_logps, kl_ref_logps) to "
                             "estimate the drift; 'minialign train' pairs prompts with other prompts' answers by itself")
        z_0 = (batch.extra["kl_logps"] - batch.extra["kl_ref_logps"].to(logps.device)).to(l).mean().clamp(min=0).detach()
        r = torch.where(present, l - reference(self, batch, l), 0.0)    # (A, B)
        sign, lam = torch.ones_like(r), torch.full_like(r, self.lambda_u)
        sign[1:], lam[0] = -1, self.lambda_d                            # + for good answers, − for bad ones
        u = self.beta * sign * (r - z_0)                                # u and v in one
        loss = torch.where(present, lam * torch.sigmoid(-u), 0.0)       # 1 − σ(u) = σ(−u): no digit is lost
        push = torch.where(present, sign * lam * self.beta * torch.sigmoid(u) * torch.sigmoid(-u), 0.0)
        N = batch.counts.answers
        return loss.sum() / N, spread(push, batch) / N, {"kl": z_0.expand(len(batch))}
