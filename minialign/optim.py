"""AdamW and its schedule.

Written out because pure-bf16 training needs one thing libraries leave out: rounding that loses nothing on average.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat

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


def length(x: Tensor) -> Tensor:
    """√Σx², (), in float32 or wider, without a wide copy of x."""
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))


PIECE = {"cpu": 2**18}                          # numbers updated at a time: their temporaries stay in the processor's cache
ELSEWHERE = 2**25                               # on a GPU: few launches, and never more than 128 MB a temporary


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), the decay on matrices only.

    m ← β₁ m + (1−β₁) g    v ← β₂ v + (1−β₂) g²    w ← w − lr (m̂ / (√v̂ + ε) + decay · w),    m̂, v̂ without the bias towards 0

    The arithmetic is float32 whatever the dtype of the parameters; bf16 parameters are rounded stochastically. β₁ = 0 is RMSprop
    (without the bias towards 0), and keeps no m. `moments` may be bfloat16, to halve their memory; there rounding to nearest will
    do: an update moves a moment by 5 or 10 % of its distance, rounding by less than 0.4 %.
    """

    def __init__(self, parameters: dict[str, Tensor], betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.0, seed: int = 0, moments: torch.dtype = torch.float32):
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m, self.v = ({name: torch.zeros_like(p, dtype=moments) for name, p in self.parameters.items()} for _ in range(2))
        if betas[0] == 0:
            self.m = {}
        self.steps = 0
        device = next(iter(self.parameters.values())).device
        self.generator = torch.Generator(device).manual_seed(seed)

    def gradient_norm(self) -> Tensor:
        """The length of the whole gradient, (), float32."""
        return length(torch.stack([length(p.grad) for p in self.parameters.values() if p.grad is not None]))

    @torch.no_grad()
    def step(self, lr: float, scale: float = 1.0) -> None:
        """One update with the gradients times `scale` (clipping); the gradients are then dropped."""
        self.steps += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.update(name, p, lr, scale)

    @contextmanager
    def inside_backward(self, lr: float) -> Iterator[list[Tensor]]:
        """Backward passes in this block update every parameter as soon as its gradient is complete, and drop the gradient.

        So gradients need no memory of their own, but there must be one backward pass per update, and nothing to clip by: the
        length of the gradient is known only at the end. The list given to the block holds the length of every part.
        """
        lengths, hooks = [], []
        self.steps += 1

        def take(name: str, p: Tensor) -> None:
            lengths.append(length(p.grad))
            with torch.no_grad():
                self.update(name, p, lr, 1.0)

        for name, p in self.parameters.items():
            hooks.append(p.register_post_accumulate_grad_hook(partial(take, name)))
        try:
            yield lengths
        finally:
            for hook in hooks:
                hook.remove()
        for name, p in self.parameters.items():                         # the head's gradient does not come from autograd
            if p.grad is not None:
                take(name, p)

    def update(self, name: str, p: Tensor, lr: float, scale: float) -> None:
        """Change one parameter by its gradient, piece by piece, and drop the gradient."""
        piece = PIECE.get(p.device.type, ELSEWHERE)
        ms = self.m[name].view(-1).split(piece) if name in self.m else repeat(None)
        vs, gs = self.v[name].view(-1).split(piece), p.grad.reshape(-1).split(piece)
        decay = self.weight_decay if p.dim() > 1 else 0.0
        for w, g, m, v in zip(p.view(-1).split(piece), gs, ms, vs, strict=False):
            self.update_piece(w, g.float() * scale, m, v, lr, decay)
        p.grad = None

    def update_piece(self, w: Tensor, g: Tensor, m: Tensor | None, v: Tensor, lr: float, decay: float) -> None:
        b1, b2 = self.betas
        square = v.float().mul_(b2).addcmul_(g, g, value=1 - b2)        # v itself if it is float32
        root = (square / (1 - b2**self.steps)).sqrt_().add_(self.eps)
        mean = g if m is None else m.float().lerp_(g, 1 - b1)
        new = w.float() if w.dtype != torch.float32 else w
        if decay:
            new = new.mul_(1 - lr * decay)
        new = new.addcdiv_(mean, root, value=-lr / (1 - b1**self.steps))
        v.copy_(square)
        if m is not None:
            m.copy_(mean)
        if w.dtype == torch.bfloat16:
            w.copy_(round_stochastically(new, self.generator))
        elif w.dtype != torch.float32:
            w.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {f"{kind}.{name}": x for kind in ("m", "v") for name, x in getattr(self, kind).items()}
        return tensors | {"steps": torch.tensor(self.steps), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for kind in "m", "v":
            for name, x in getattr(self, kind).items():
                x.copy_(state[f"{kind}.{name}"])
        self.steps = int(state["steps"])
        self.generator.set_state(state["generator"].cpu())
