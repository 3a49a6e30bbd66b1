"""DFT's running average u against the sum over all answers that it estimates: a table of 500 answers, no network.

u only decides how hard the negatives are pushed. To compare estimators and not the policies they lead to, one policy is trained
with the exact gradient, and all of them watch it, with the same negatives.
"""

import math

import torch

from minialign.data import Batch
from minialign.lab.studies import plots
from minialign.lab.studies.dft import FloorOnly
from minialign.lab.studies.lab import HOLDS, NOT, OPEN, Difference, Findings, Lab
from minialign.methods import METHODS
from minialign.stats import show

PROMPTS, ANSWERS, NEGATIVES, VISITS, LR, TAU, PAPER = 128, 500, 2, 30, 0.5, 1.0, 3
GAMMAS = (1.0, 0.9, 0.5)


def exact_log_u(log_p: torch.Tensor, tau: float) -> torch.Tensor:
    """log Σ_y P(y)^(1/τ), the whole sum: (n, V) → (n,). At τ = 1 it is 0 whatever the policy."""
    return (log_p / tau).logsumexp(-1)


def watch_policy(seed: int, tau: float = TAU, visits: int = VISITS) -> dict[str, list[list[float]]]:
    """{estimator: [[error of log u of every prompt] at every visit]} while the exact gradient trains the policy."""
    draw = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(PROMPTS, ANSWERS, generator=draw, dtype=torch.float64)      # logits: the reference, then the policy
    ref = z.log_softmax(-1)                                                         # (n, V)
    wanted = torch.multinomial(ref.exp(), 1, generator=draw)                        # (n, 1)
    estimators = {f"γ {g:g}": METHODS["dft"](tau, g, PROMPTS) for g in GAMMAS}
    estimators["floor, no memory"] = FloorOnly(tau, 0.9, PROMPTS)
    errors, index = {name: [] for name in estimators}, torch.arange(PROMPTS)
    for _ in range(visits):
        log_p = z.log_softmax(-1)
        y = torch.cat([wanted, torch.multinomial(ref.exp(), NEGATIVES, replacement=True, generator=draw)], 1)   # (n, 1+K)
        logps, ref_logps = log_p.gather(1, y).T, ref.gather(1, y).T                 # (A, n)
        batch = Batch(mask=torch.ones(1 + NEGATIVES, PROMPTS, 1, dtype=torch.bool), index=index, ref_logps=ref_logps)
        truth = exact_log_u(log_p, tau)
        for name, method in estimators.items():
            _, _, info = method.weigh(logps[..., None], batch)
            errors[name].append((info["log_u"] - truth).tolist())
        push = torch.zeros_like(z).scatter_(1, wanted, 1.0) - (log_p / tau).softmax(-1)     # −∂F/∂s, all answers
        z = z + LR * (push - log_p.exp() * push.sum(-1, keepdim=True))              # through the softmax
    return errors


def rms(errors: list[float]) -> float:
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def exact_u(lab: Lab) -> Findings:
    watched = [watch_policy(seed) for seed in lab.seeds]
    data = {name: {"error_first": [rms(w[name][0]) for w in watched], "error_paper": [rms(w[name][PAPER - 1]) for w in watched],
                   "error_last": [rms(w[name][-1]) for w in watched],
                   "bias_last": [sum(w[name][-1]) / PROMPTS for w in watched]} for name in watched[0]}
    early, late = (Difference(data["γ 0.9"], data["γ 1"], mark) for mark in ("error_paper", "error_last"))
    floor = Difference(data["γ 0.9"], data["floor, no memory"], "error_last")
    if early.below() and late.below():
        verdict = HOLDS if floor.below() else "holds, but a floor without memory does no worse"
    else:
        verdict = NOT if early.above() or late.above() else OPEN
    size = {mark: show(data["γ 1"][mark]) for mark in ("error_paper", "error_last")}
    sentence = (f"After the {PAPER} visits of the paper's runs log u is off by {size['error_paper']} nats (root mean square) at "
                f"γ = 1, and γ = 0.9 changes that by {early}; after {VISITS} visits by {size['error_last']} and {late}. Against "
                f"a constant floor without memory γ = 0.9 then is off by {floor} more.")
    lines = {name: [[(visit + 1, rms(errors)) for visit, errors in enumerate(w[name])] for w in watched] for name in data}
    return Findings(data, verdict, sentence, lambda out: plots.curves(
        {"error of log u (root mean square) ↓": lines}, f"How well does u know its sum over {ANSWERS} answers?", out, "exact_u",
        xlabel="visits to an example", start=False, mark=(PAPER, "the paper's runs end here"),
        colors={"γ 1": "#882255", "γ 0.9": "#0072b2", "γ 0.5": "#009e73", "floor, no memory": "#56b4e9"}),
        {"error_first": ("error, visit 1", 3), "error_paper": (f"visit {PAPER}", 3), "error_last": (f"visit {VISITS}", 3),
         "bias_last": (f"mean error, visit {VISITS}", 3)})
