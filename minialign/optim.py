"""AdamW and the schedule of its learning rate.

AdamW is written out here because training in pure bf16 needs one thing that libraries leave out:
a rounding of the updated parameters that loses nothing on average.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from minialign import parallel

# How many numbers a CPU updates at a time: the temporary results of a piece stay in its cache.
CPU_PIECE = 2**16


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


def hashed(position: Tensor, key: Tensor) -> Tensor:
    """Numbers from −32,768 to 32,767 that look random, int32, one for every position.

    position  (n,) int32
    key       () int32: another key, and all numbers are others

    Nothing is kept from one draw to the next. So the same position and key give the same number on
    every device, in whatever pieces a tensor is drawn. Integers wrap around; both factors are those
    of the hash function xxHash. To shift an int32 repeats its sign, which the masks take away.
    """
    a, b = -0x61C8864F, -0x7A143595                     # 0x9E3779B1 and 0x85EBCA6B as int32
    x = position * a + key
    x = (x ^ ((x >> 15) & 0x1FFFF)) * b
    x = (x ^ ((x >> 13) & 0x7FFFF)) * a
    return x >> 16                                      # the upper half is the better one


def round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """float32 → bf16, up or down at random, the nearer neighbour with the higher probability.

    The expected value of the result is x itself, so a thousand tiny steps add up. Rounding to the
    nearest would lose every one of them.

    A bf16 is the upper half of a float32. Add 16 random bits to the lower half and cut it off: the
    sum carries into the upper half with just the right probability. `noise` is from −32,768 to
    32,767, hence the constant.
    """
    bits = x.view(torch.int32) + noise + 0x8000
    return (bits & (-1 << 16)).view(torch.float32).to(torch.bfloat16)


def adamw(w: Tensor, g: Tensor, m: Tensor | None, v: Tensor, numbers: dict[str, Tensor],
          constants: tuple[float, float, float], decays: bool, first: Tensor) -> None:
    """The formulas of the class AdamW for a piece of a parameter: changes w, m and v, (n,) each.

    numbers    what is another in every update, () each; see AdamW.numbers
    constants  β₁, β₂, ε
    first      () int32: the position of w[0] among all parameters, which its rounding depends on

    Every number depends on numbers in the same place alone. So a CPU can go piece by piece, and a
    compiler can make one pass over memory of it all.

    `float()` makes a copy of what is bfloat16, and gives back what is float32 already. So float32
    is updated where it lies, and a copy must be written back at the end.
    """
    # v ← β₂ v + (1−β₂) g², and √v̂ + ε
    b1, b2, eps = constants
    g = g.float() * numbers["scale"]
    square = v.float().mul_(b2).addcmul_(g, g, value=1 - b2)
    root = (square / numbers["square_correction"]).sqrt_().add_(eps)

    # m ← β₁ m + (1−β₁) g; without m, the mean is the gradient itself
    mean = g if m is None else m.float().lerp_(g, 1 - b1)

    # w ← w − lr (m̂ / (√v̂ + ε) + decay · w); lr and the correction in m̂ are one factor
    new = w.float()
    if decays:
        new.mul_(numbers["kept"])
    new.addcdiv_(mean * numbers["factor"], root)

    # Write back what was copied. For float32 moments, copy_ onto themselves does nothing.
    v.copy_(square)
    if m is not None:
        m.copy_(mean)
    if w.dtype == torch.bfloat16:
        position = torch.arange(len(w), dtype=torch.int32, device=w.device) + first
        w.copy_(round_stochastically(new, hashed(position, numbers["key"])))
    elif w.dtype != torch.float32:
        w.copy_(new)


@cache
def compiled_adamw():
    """`adamw` as one kernel, for GPUs: as they stand, its lines go over memory some 25 times.

    `dynamic` makes it one kernel for parameters of all sizes.
    """
    return torch.compile(adamw, dynamic=True)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); only matrices decay.

        m ← β₁ m + (1−β₁) g              the running mean of the gradients, and
        v ← β₂ v + (1−β₂) g²             of their squares; both start at 0, so they are too small at
        m̂ = m / (1−β₁ᵗ)                  first, which m̂ and v̂ make good in update t
        v̂ = v / (1−β₂ᵗ)
        w ← w − lr (m̂ / (√v̂ + ε) + decay · w)

    The arithmetic is float32 whatever the dtype of the parameters; bf16 parameters are rounded
    stochastically. β₁ = 0 is RMSprop, and keeps no m. But RMSprop elsewhere, as in
    torch.optim, divides by √v and not by √v̂: its first updates are larger, by 1/√(1−β₂ᵗ).

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

        # Rounding depends on the seed, on the update, and on where a number stands among all
        # parameters: int32, which wraps around in large models.
        self.seed = seed
        self.first: dict[str, Tensor] = {}              # () each
        total = 0
        for name, p in self.parameters.items():
            begin = total + parallel.rows_before(p) * (p.numel() // len(p))
            position = (begin + 2**31) % 2**32 - 2**31
            self.first[name] = torch.tensor(position, dtype=torch.int32, device=p.device)
            total += p.numel()

    def gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, all parameters together, () float32."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = torch.stack([norm(parallel.local(g)) for g in gradients])
        return norm(parallel.joined(norms))

    @torch.no_grad()
    def step(self, lr: float, scale: float = 1.0) -> None:
        """One update with the gradients times `scale` (clipping), which are then dropped."""
        self.steps += 1
        numbers = self.numbers(lr, scale)
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.update(name, p, numbers)

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
        numbers = self.numbers(lr, 1.0)

        def take(name: str, p: Tensor) -> None:
            norms.append(norm(p.grad))
            with torch.no_grad():
                self.update(name, p, numbers)

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

    def numbers(self, lr: float, scale: float) -> dict[str, Tensor]:
        """What `adamw` needs to know of this update, as tensors () on the parameters' device.

        A compiler would take Python numbers for constants, and start again when they change.
        """
        b1, b2 = self.betas
        device = next(iter(self.parameters.values())).device
        numbers = {
            "scale": scale,                                     # of the gradients
            "square_correction": 1 - b2**self.steps,            # v̂ = v / this
            "kept": 1 - lr * self.weight_decay,                 # of a weight that decays
            "factor": -lr / (1 - b1**self.steps),               # of m / (√v̂ + ε)
        }
        values = torch.tensor(list(numbers.values()), dtype=torch.float32).to(device)
        drawn = hashlib.sha256(f"{self.seed} {self.steps}".encode()).digest()[:4]
        key = int.from_bytes(drawn, "little", signed=True)
        key = torch.tensor(key, dtype=torch.int32).to(device)
        return {**dict(zip(numbers, values, strict=True)), "key": key}

    def update(self, name: str, p: Tensor, numbers: dict[str, Tensor]) -> None:
        """Change one parameter by its gradient, and drop the gradient."""
        on_gpu = p.device.type == "cuda"
        change = compiled_adamw() if on_gpu else adamw
        constants = (*self.betas, self.eps)
        decays = self.weight_decay > 0 and p.dim() > 1

        # All are cut in the same places. Pieces of w, m and v are views: changing them changes all.
        w, g, v = parallel.local(p), parallel.local(p.grad), parallel.local(self.v[name])
        piece = w.numel() if on_gpu else CPU_PIECE
        ws, gs, vs = w.view(-1).split(piece), g.reshape(-1).split(piece), v.view(-1).split(piece)
        ms = [None] * len(vs)
        if name in self.m:
            ms = parallel.local(self.m[name]).view(-1).split(piece)

        first = self.first[name]
        for w, g, m, v in zip(ws, gs, ms, vs, strict=True):
            change(w, g, m, v, numbers, constants, decays, first)
            first = first + len(w)
        p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next update depends on: the moments, and how many updates there were."""
        state = {f"m.{name}": m for name, m in self.m.items()}
        state |= {f"v.{name}": v for name, v in self.v.items()}
        return state | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        for name, m in self.m.items():
            parallel.fill(m, state[f"m.{name}"])
        for name, v in self.v.items():
            parallel.fill(v, state[f"v.{name}"])
        self.steps = int(state["steps"])
