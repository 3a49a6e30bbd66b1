"""AdamW and the schedule of its learning rate.

AdamW is written out here because training in pure bf16 needs one thing that libraries leave out:
a rounding of the updated parameters that loses nothing on average.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

# How many numbers are updated at a time. On a CPU the temporary results of a piece stay in the
# processor's cache. A GPU wants few and large kernels, but no temporary larger than 128 MB.
CPU_PIECE = 2**18
GPU_PIECE = 2**25


def cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    It rises linearly over `warmup` steps, then falls along half a cosine to 0 at `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def norm(x: Tensor) -> Tensor:
    """√Σx², (), in float32 or wider, without making a wide copy of x."""
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))


def round_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 → bf16, up or down at random, the nearer neighbour with the higher probability.

    The expected value of the result is x itself, so a thousand tiny steps add up. Rounding to the
    nearest would lose every one of them.

    A bf16 is the upper half of a float32. Add 16 random bits to the lower half and cut it off: the
    sum carries into the upper half with just the right probability.
    """
    like_bits = {"dtype": torch.int32, "device": x.device}
    noise = torch.randint(0, 1 << 16, x.shape, **like_bits, generator=generator)
    bits = x.contiguous().view(torch.int32) + noise
    return bits.bitwise_and_(-1 << 16).view(torch.float32).to(torch.bfloat16)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); only matrices decay.

        m ← β₁ m + (1−β₁) g              the running mean of the gradients, and
        v ← β₂ v + (1−β₂) g²             of their squares; both start at 0, so they are too small at
        m̂ = m / (1−β₁ᵗ)                  first, which m̂ and v̂ make good in update t
        v̂ = v / (1−β₂ᵗ)
        w ← w − lr (m̂ / (√v̂ + ε) + decay · w)

    The arithmetic is float32 whatever the dtype of the parameters; bf16 parameters are rounded
    stochastically. β₁ = 0 is RMSprop (with v̂ for v), and keeps no m.

    `moments` is the dtype of m and v. bfloat16 halves their memory, and for them rounding to the
    nearest will do: an update moves a moment by 5 or 10 % of its distance from the gradient, and
    rounding by less than 0.4 % of itself.
    """

    def __init__(self, parameters: dict[str, Tensor], betas: tuple[float, float] = (0.9, 0.95),
                 eps: float = 1e-8, weight_decay: float = 0.0, seed: int = 0,
                 moments: torch.dtype = torch.float32):
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.steps = 0                                  # t, the updates made so far

        # The moments: m stays empty if it is never used.
        self.m: dict[str, Tensor] = {}
        self.v: dict[str, Tensor] = {}
        for name, p in self.parameters.items():
            self.v[name] = torch.zeros_like(p, dtype=moments)
            if betas[0] > 0:
                self.m[name] = torch.zeros_like(p, dtype=moments)

        # Rounding draws from a generator of its own: no other draw of the run depends on it.
        device = next(iter(self.parameters.values())).device
        self.generator = torch.Generator(device).manual_seed(seed)

    def gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, all parameters together, () float32."""
        norms = [norm(p.grad) for p in self.parameters.values() if p.grad is not None]
        return norm(torch.stack(norms))

    @torch.no_grad()
    def step(self, lr: float, scale: float = 1.0) -> None:
        """One update with the gradients times `scale` (clipping), which are then dropped."""
        self.steps += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.update(name, p, lr, scale)

    @contextmanager
    def inside_backward(self, lr: float) -> Iterator[list[Tensor]]:
        """The backward pass in this block updates each parameter once its gradient is complete.

        The gradient is dropped at once, so gradients need no memory of their own. The price: one
        backward pass per update, and no clipping, because the norm of the whole gradient is known
        only at the end. The block gets a list, to which the norm of every part is added.
        """
        norms: list[Tensor] = []
        hooks = []
        self.steps += 1

        def take(name: str, p: Tensor) -> None:
            norms.append(norm(p.grad))
            with torch.no_grad():
                self.update(name, p, lr, 1.0)

        # autograd calls a parameter's hook when its gradient is complete.
        for name, p in self.parameters.items():
            hooks.append(p.register_post_accumulate_grad_hook(partial(take, name)))
        try:
            yield norms
        finally:
            for hook in hooks:
                hook.remove()

        # The head's gradient does not come from autograd (see train.py), so no hook has seen it.
        for name, p in self.parameters.items():
            if p.grad is not None:
                take(name, p)

    def update(self, name: str, p: Tensor, lr: float, scale: float) -> None:
        """Change one parameter by its gradient, piece by piece, and drop the gradient."""
        piece = CPU_PIECE if p.device.type == "cpu" else GPU_PIECE
        decay = self.weight_decay if p.dim() > 1 else 0.0

        # All are cut in the same places. Pieces of w, m and v are views: changing them changes all.
        ws = p.view(-1).split(piece)
        gs = p.grad.reshape(-1).split(piece)
        vs = self.v[name].view(-1).split(piece)
        ms = [None] * len(vs)
        if name in self.m:
            ms = self.m[name].view(-1).split(piece)
        for w, g, m, v in zip(ws, gs, ms, vs, strict=True):
            self.update_piece(w, g.float() * scale, m, v, lr, decay)
        p.grad = None

    def update_piece(self, w: Tensor, g: Tensor, m: Tensor | None, v: Tensor, lr: float,
                     decay: float) -> None:
        """The formulas of the class for one piece: changes w, m and v in place. g is float32.

        `float()` makes a copy of what is bfloat16, and gives back what is float32 already. So
        float32 is updated where it lies, and a copy must be written back at the end.
        """
        # v ← β₂ v + (1−β₂) g², and √v̂ + ε
        b1, b2 = self.betas
        square = v.float().mul_(b2).addcmul_(g, g, value=1 - b2)
        root = (square / (1 - b2**self.steps)).sqrt_().add_(self.eps)

        # m ← β₁ m + (1−β₁) g; without m, the mean is the gradient itself
        mean = g if m is None else m.float().lerp_(g, 1 - b1)

        # w ← w − lr (m̂ / (√v̂ + ε) + decay · w); the correction in m̂ is part of the factor
        new = w.float()
        if decay:
            new.mul_(1 - lr * decay)
        new.addcdiv_(mean, root, value=-lr / (1 - b1**self.steps))

        # Write back what was copied. For float32 moments, copy_ onto themselves does nothing.
        v.copy_(square)
        if m is not None:
            m.copy_(mean)
        if w.dtype == torch.bfloat16:
            w.copy_(round_stochastically(new, self.generator))
        elif w.dtype != torch.float32:
            w.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next update depends on: the moments, how many there were, the generator."""
        state = {f"m.{name}": m for name, m in self.m.items()}
        state |= {f"v.{name}": v for name, v in self.v.items()}
        return state | {"steps": torch.tensor(self.steps), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        for name, m in self.m.items():
            m.copy_(state[f"m.{name}"])
        for name, v in self.v.items():
            v.copy_(state[f"v.{name}"])
        self.steps = int(state["steps"])
        self.generator.set_state(state["generator"].cpu())
