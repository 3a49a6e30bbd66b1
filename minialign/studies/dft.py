"""What the DFT paper claims (arXiv 2502.18679), with the controls it lacks."""

import math
from dataclasses import dataclass

import torch

from minialign.arena import Run
from minialign.methods import METHODS
from minialign.studies import plots
from minialign.studies.lab import HOLDS, NOISY, NOT, OPEN, Difference, Findings, Lab, quick, sft_and_control


@dataclass
class Memoryless(METHODS["dft"]):
    """DFT with γ û + (1−γ) · 1 for u: the constant floor of the first visit at every visit, and no average over visits."""

    def update(self, index, log_mean):
        return torch.logaddexp(torch.full_like(log_mean.cpu(), math.log1p(-self.gamma)), math.log(self.gamma) + log_mean.cpu())


@dataclass
class NoFloor(METHODS["dft"]):
    """DFT whose running average starts at u₀ = e⁻¹⁰ instead of 1: an average, but no floor."""

    def __post_init__(self):
        super().__post_init__()
        self.log_u.fill_(-10.0)


def likelihoods(lab: Lab) -> Findings:
    data = lab.run(sft_and_control() | {name: Run(name) for name in ("dft", "dft2", "simpo", "spin")})
    return Findings(data, OPEN, "", lambda out: None)

def gamma(lab: Lab) -> Findings:
    runs = {f"γ {g:g}": Run("dft", {"gamma": g}, NOISY) for g in (0.5, 0.8, 0.9, 0.95, 1.0)}
    runs |= {"floor, no memory": Run(Memoryless, {"gamma": 0.9}, NOISY), "memory, no floor": Run(NoFloor, {"gamma": 0.9}, NOISY)}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    return Findings(data, OPEN, "", lambda out: None)

def negatives(lab: Lab) -> Findings:
    runs = {f"B {b}": Run("dft", noise=NOISY, persona="plain", **quick(negatives=b)) for b in (1, 2, 4, 8)}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    return Findings(data, OPEN, "", lambda out: None)

def temperature(lab: Lab) -> Findings:
    runs = {f"T {t:g}": Run("dft", noise=NOISY, temperature=t) for t in (0.0, 0.3, 0.7, 1.0)}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    return Findings(data, OPEN, "", lambda out: None)

def personas(lab: Lab) -> Findings:
    runs = {f"{p}": Run("dft", noise=NOISY, persona=p) for p in ("plain","troll","sage")}
    runs |= {f"{p} dft2": Run("dft2", noise=NOISY, persona=p) for p in ("plain","troll","sage")}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    return Findings(data, OPEN, "", lambda out: None)

def tau(lab: Lab) -> Findings:
    runs = {f"dft τ {t:g}": Run("dft", {"tau": t}, NOISY) for t in (0.6,.8, 1.0,1.2,1.5)}
    runs |= {f"dft2 τ {t:g}": Run("dft2", {"tau": t}, NOISY) for t in (0.1,.2,.3,.5, 1.0)}
    data = lab.run(sft_and_control(noise=NOISY) | runs)
    return Findings(data, OPEN, "", lambda out: None)
