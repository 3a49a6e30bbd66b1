"""AdamW and its schedule.

Written out because pure-bf16 training needs one thing libraries leave out: rounding that loses nothing on average.
"""

import math

import torch
from torch import Tensor


def cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step (counted from 0):
    linear up over `warmup` steps, then a half cosine down to 0 at `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def round_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 → bf16, up or down with probability by distance, so that a thousand tiny steps add up instead of vanishing.

    bf16 is the upper half of a float32: adding 16 random low bits and cutting them off
    carries into the upper half just often enough.
    """
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    return (x.contiguous().view(torch.int32) + noise).bitwise_and_(-1 << 16).view(torch.float32).to(torch.bfloat16)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), the decay on matrices only.

    m ← β₁ m + (1−β₁) g    v ← β₂ v + (1−β₂) g²    w ← w − lr (m̂ / (√v̂ + ε) + decay · w),    m̂, v̂ without the bias towards 0

    The arithmetic is float32 whatever the dtype of the parameters; bf16 parameters are rounded stochastically.
    Moments live in float32.
    """

    def __init__(self, parameters: dict[str, Tensor], betas=(0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0,
                 seed: int = 0):
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.v = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.steps = 0
        device = next(iter(self.parameters.values())).device
        self.generator = torch.Generator(device).manual_seed(seed)

    def gradient_norm(self) -> Tensor:
        """The length of the whole gradient, (), float32."""
        squares = [p.grad.float().square().sum() for p in self.parameters.values() if p.grad is not None]
        return torch.stack(squares).sum().sqrt()

    @torch.no_grad()
    def step(self, lr: float, scale: float | Tensor = 1.0) -> None:
        """One update with the gradients times `scale` (clipping); the gradients are then dropped."""
        self.steps += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.update(name, p, lr, scale)
                p.grad = None

    def update(self, name: str, p: Tensor, lr: float, scale: float | Tensor) -> None:
        g, (b1, b2) = p.grad.float() * scale, self.betas
        m = self.m[name].lerp_(g, 1 - b1)
        v = self.v[name].mul_(b2).addcmul_(g, g, value=1 - b2)
        root = (v / (1 - b2**self.steps)).sqrt_().add_(self.eps)
        w = p.float() if p.dtype != torch.float32 else p
        if self.weight_decay and p.dim() > 1:
            w = w.mul_(1 - lr * self.weight_decay)
        w = w.addcdiv_(m, root, value=-lr / (1 - b1**self.steps))
        if p.dtype == torch.bfloat16:
            p.copy_(round_stochastically(w, self.generator))
        elif p.dtype != torch.float32:
            p.copy_(w)

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {f"{kind}.{name}": x for kind in ("m", "v") for name, x in getattr(self, kind).items()}
        return tensors | {"steps": torch.tensor(self.steps), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for kind in "m", "v":
            for name, x in getattr(self, kind).items():
                x.copy_(state[f"{kind}.{name}"])
        self.steps = int(state["steps"])
        self.generator.set_state(state["generator"].cpu())
