"""Softmax policies for the lake, N of them side by side, and the loop in which a method of minialign trains them.

The same score → weigh → push as for a GPT: `score` gives the log-probs of the actions on trajectories, (A, B, T); `weigh` is
the method's; `push` turns its weights into the gradient of every parameter, by hand. Seeds never meet: everything carries a
leading N, and `counts` tells the method to divide by the examples of one seed. No loss is written here, and no autograd runs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minialign.data import Batch, Counts
from toy.lake import Lake

PARTS = ("base", "labels", "negatives", "rollouts")         # every use of chance draws from a stream of its own, per seed


def dice(seeds: list[int], part: str, *shape: int) -> Tensor:
    """Uniform random numbers (N, *shape). A seed's numbers depend on nothing but the seed and what they are for."""
    streams = (torch.Generator().manual_seed(len(PARTS) * seed + PARTS.index(part)) for seed in seeds)
    return torch.stack([torch.rand(*shape, generator=g, dtype=torch.float64) for g in streams])


# ---------------------------------------------------------------------------------------------------- policies

@dataclass
class Table:
    """A softmax table: one row of four logits per feature. features (N, S, F), None = one per state; parameters [W (N, F, 4)]."""

    features: Tensor | None
    parameters: list[Tensor]

    def forward(self, rows: Tensor | None = None) -> tuple[Tensor, tuple]:
        """rows (N, M, S), distributions over states (None = every state once) → logits (N, M, 4), and what `gradient` needs."""
        x = self.read(rows)
        return self.first(x), (x,)

    def gradient(self, kept: tuple, d_logits: Tensor) -> list[Tensor]:
        """∂loss/∂parameters from ∂loss/∂logits."""
        return [self.d_first(kept[0], d_logits)]

    def read(self, rows: Tensor | None) -> Tensor | None:
        """Features of the rows, (N, M, F); None stands for the identity matrix."""
        return rows if self.features is None else self.features if rows is None else rows @ self.features

    def first(self, x: Tensor | None) -> Tensor:
        """x times the first parameter."""
        return self.parameters[0] if x is None else x @ self.parameters[0]

    def d_first(self, x: Tensor | None, d: Tensor) -> Tensor:
        """The first parameter's gradient from that of the product."""
        return d if x is None else x.mT @ d

    def probabilities(self) -> Tensor:
        return self.forward()[0].softmax(-1)                            # (N, S, 4)

    def copy(self):
        return replace(self, parameters=[p.clone() for p in self.parameters])

    @classmethod
    def fresh(cls, seeds: list[int], features: Tensor | None, S: int):
        """Untrained: logits uniform within ±1, a random policy with weak preferences."""
        return cls(features, [2 * dice(seeds, "base", S if features is None else features.shape[-1], 4) - 1])


@dataclass
class Network(Table):
    """The paper's two fully connected layers: features → tanh → four logits. parameters [W1 (N, F, H), b1 (N, 1, H), W2, b2]."""

    def forward(self, rows=None):
        _, b1, W2, b2 = self.parameters
        x = self.read(rows)
        h = torch.tanh(self.first(x) + b1)                              # (N, M, H)
        return h @ W2 + b2, (x, h)

    def gradient(self, kept, d_logits):
        x, h = kept
        d_h = d_logits @ self.parameters[2].mT * (1 - h * h)            # (N, M, H): tanh' = 1 − tanh²
        return [self.d_first(x, d_h), d_h.sum(1, keepdim=True), h.mT @ d_logits, d_logits.sum(1, keepdim=True)]

    @classmethod
    def fresh(cls, seeds, features, S, width: int = 64):
        """Untrained: every parameter uniform within ±1/√(numbers that feed it), the default of torch.nn.Linear."""
        F = S if features is None else features.shape[-1]
        sizes, shapes = [width * F, width, 4 * width, 4], [(F, width), (1, width), (width, 4), (1, 4)]
        pieces = dice(seeds, "base", sum(sizes)).split(sizes, -1)
        reach = [F**-0.5, F**-0.5, width**-0.5, width**-0.5]
        return cls(features, [(2 * p - 1).view(-1, *shape) * r for p, shape, r in zip(pieces, shapes, reach, strict=True)])


def coordinates(lakes: Lake) -> Tensor:
    """Row and column of every state, from −1 to 1, (N, S, 2): features in which neighbours look alike."""
    N, S = lakes.ends.shape
    columns = len(lakes.rows[0])
    s = torch.arange(S, dtype=torch.float64)
    r, c = s.div(columns, rounding_mode="floor"), s % columns
    return torch.stack([2 * r / max(S // columns - 1, 1) - 1, 2 * c / max(columns - 1, 1) - 1], -1).expand(N, S, 2)


# ---------------------------------------------------------------------------------------------------- data

@dataclass(frozen=True)
class Data:
    """Trajectories of N seeds with D examples each; trajectory 0 of A is the wanted one, as everywhere in minialign."""

    states: Tensor                      # (A, N, D, T) int
    actions: Tensor                     # (A, N, D, T) int
    mask: Tensor                        # (A, N, D, T) bool
    ref_logps: Tensor | None = None     # (A, N, D) summed log-prob under the initial policy
    rewards: Tensor | None = None       # (A, N, D)
    fresh: int = 0                      # if above 0: trajectories 1, 2, … are a pool, and every step reads that many new ones

    def at(self, step: int) -> "Data":
        """What the given training step sees."""
        if not self.fresh:
            return self
        pool, K = len(self.states) - 1, self.fresh
        chosen = [0, *((step * K + k) % pool + 1 for k in range(K))]
        every = self.states, self.actions, self.mask, self.ref_logps, self.rewards
        return Data(*(None if x is None else x[chosen] for x in every))

    def batch(self) -> Batch:
        """As the methods read it: B = N·D examples, divided by the counts of one seed, so that each trains as if alone.

        Seeds with mazes of their own differ in tokens; no method divides by those unless asked to (SFT's token_mean).
        """
        A, N, D, T = self.mask.shape
        counts = Counts(D, int(self.mask[:, 0].any(-1).sum()), int(self.mask[0, 0].sum()))
        extra = {f: None if (x := getattr(self, f)) is None else x.flatten(1, 2) for f in ("ref_logps", "rewards")}
        return Batch(self.mask.flatten(1, 2), counts=counts, **extra)


def trajectories(*answers: list[list]) -> Data:
    """Paths → Data. One list per answer; in it one list per seed; in it the D paths of that seed."""
    D = {len(paths) for answer in answers for paths in answer}
    T = max(len(path) for answer in answers for paths in answer for path in paths)
    shape = (len(answers), len(answers[0]), D.pop(), T)
    states, actions, mask = (torch.zeros(shape, dtype=kind) for kind in (torch.long, torch.long, torch.bool))
    for a, answer in enumerate(answers):
        for n, paths in enumerate(answer):
            for d, path in enumerate(paths):
                states[a, n, d, : len(path)], actions[a, n, d, : len(path)] = torch.tensor(path).T
                mask[a, n, d, : len(path)] = True
    return Data(states, actions, mask)


# ---------------------------------------------------------------------------------------------------- reading, IFT's way

READS = {                               # what the policy reads in place of the demonstration's next state (with share lam)
    "path": "the demonstrated state itself",
    "expected": "where its own action leads, averaged over its probabilities",
    "greedy": "where its own likeliest action leads",
    "uniform": "where a random action leads: the control that knows nothing of the policy",
    "oracle": "the demonstrated states, and apart from them where its own action leads, labelled by the optimal policy",
}


def residual(lakes: Lake, data: Data, probabilities: Tensor, reads: str, lam: float) -> tuple[Tensor, Tensor]:
    """IFT's temporal residual connection (eq. 17) in state space, through the known transitions of the lake:

        s_i  ←  (1−λ) s*_i + λ · (where the policy's own action at s*_{i−1} leads)

    → mixed states (N, D, T, S), and the share of that mixture that left the demonstrated path, (N,), averaged over i ≥ 1. The
    first state has no predecessor and stays as it is. No gradient flows through the guess, as in the released code.
    """
    states, mask = data.states[0], data.mask[0]                         # (N, D, T)
    mixed = torch.nn.functional.one_hot(states, lakes.ends.shape[-1]).double()
    n = torch.arange(len(states))[:, None, None]
    before = states[..., :-1]
    act = probabilities[n, before]                                      # (N, D, T−1, 4)
    if reads == "greedy":
        act = torch.nn.functional.one_hot(act.argmax(-1), 4).double()
    elif reads == "uniform":
        act = torch.full_like(act, 0.25)
    leads = (act[..., None] * lakes.P[n, before]).sum(-2)               # (N, D, T−1, S)
    later = mask[..., 1:]                                               # (N, D, T−1)
    left = (1 - leads.gather(-1, states[..., 1:, None])[..., 0]) * later
    mixed[..., 1:, :] = torch.where(later[..., None], (1 - lam) * mixed[..., 1:, :] + lam * leads, mixed[..., 1:, :])
    return mixed, lam * left.sum((1, 2)) / later.sum((1, 2)).clamp(min=1)


def with_oracle(lakes: Lake, data: Data, mixed: Tensor) -> tuple[Data, Tensor]:
    """The oracle control: each demonstrated step shrinks to its share of the mixture, and every other state in the mixture
    becomes a step of its own, labelled by the optimal policy. → data with S more steps, and the share of every step (N·D, T
    + S).
    """
    A, N, D, T = data.states.shape
    S = mixed.shape[-1]
    here = mixed.gather(-1, data.states[0][..., None])                  # (N, D, T, 1): what is left of the demonstrated state
    off = mixed.scatter(-1, data.states[0][..., None], 0.0) * data.mask[0][..., None]
    every = torch.arange(S).expand(1, N, D, S)
    more = Data(
        torch.cat([data.states, every], -1),
        torch.cat([data.actions, lakes.expert[:, None].expand(1, N, D, S)], -1),
        torch.cat([data.mask, lakes.solvable[:, None].expand(1, N, D, S)], -1),
    )
    return more, torch.cat([here[..., 0], off.sum(2)], -1).flatten(0, 1)


# ---------------------------------------------------------------------------------------------------- score → weigh → push

def score(logits: Tensor, data: Data, source: Tensor) -> Tensor:
    """Log-probs of the actions taken, (A, N·D, T). `source` (A, N, D, T): which of the rows of logits (N, M, 4) predicts each."""
    n = torch.arange(len(logits))[:, None, None]
    return logits.log_softmax(-1)[n, source, data.actions].flatten(1, 2)


def push(logits: Tensor, data: Data, source: Tensor, weights: Tensor) -> Tensor:
    """∂loss/∂logits (N, M, 4) = Σ over the actions read there of weights · (softmax − onehot)."""
    N, M, _ = logits.shape
    n = torch.arange(N)[:, None, None].expand_as(source)
    pushed = torch.zeros_like(logits)
    pushed.index_put_((n, source, data.actions), weights.view(source.shape), accumulate=True)
    return logits.softmax(-1) * pushed.sum(-1, keepdim=True) - pushed


def step(policy: Table, lakes: Lake, data: Data, method, reads: str, lam: float) -> tuple[Tensor, list[Tensor], Tensor]:
    """One score → weigh → push: loss of every seed together (), the gradient of every parameter, and the off-path share (N,)."""
    share, rows, off_path = None, None, torch.zeros(len(lakes.ends), dtype=torch.float64)
    source = data.states                                                # plain reading: a row per state of the lake
    if reads == "oracle" or (reads != "path" and lam > 0):
        mixed, off_path = residual(lakes, data, policy.probabilities(), reads, lam)
        if reads == "oracle":
            length = data.mask[0].sum(-1).flatten()[:, None]            # (N·D, 1)
            data, share = with_oracle(lakes, data, mixed)
            source, share = data.states, share / length
        else:
            rows = mixed.flatten(1, 2)                                  # (N, D·T, S): a row per step of the demonstration
            source = torch.arange(rows.shape[1]).view(1, 1, *data.states.shape[2:]).expand_as(data.states)
    logits, kept = policy.forward(rows)
    loss, weights, _ = method.weigh(score(logits, data, source), data.batch())
    if share is not None:
        weights = weights * share
    return loss, policy.gradient(kept, push(logits, data, source, weights)), off_path


def train(policy: Table, lakes: Lake, data: Data, method, *, steps: int, lr: float, optimizer: str = "adam",
          reads: str = "path", lam: float = 0.0, watch=None) -> tuple[Table, Tensor]:
    """`steps` full-batch steps from a copy of `policy` → the trained copy, and the off-path share of what it read, (steps, N).

    `watch(step, policy)` is called before the first step and after each one. The optimizers work element by element: seeds do
    not meet.
    """
    policy = policy.copy()
    if optimizer == "adam":
        descent = torch.optim.Adam(policy.parameters, lr=lr, fused=True)
    else:
        descent = torch.optim.SGD(policy.parameters, lr=lr)
    history = []
    if watch:
        watch(0, policy)
    for i in range(steps):
        _, gradients, off_path = step(policy, lakes, data.at(i), method, reads, lam)
        for parameter, gradient in zip(policy.parameters, gradients, strict=True):
            parameter.grad = gradient
        descent.step()
        history.append(off_path)
        if watch:
            watch(i + 1, policy)
    return policy, torch.stack(history) if history else torch.zeros(0, len(lakes.ends))


def log_prob(policy: Table, data: Data) -> Tensor:
    """Exact log-prob of every trajectory, (A, N, D): the reference of DPO and DFT. (The ice's own chances cancel in every
    ratio.)
    """
    logits, _ = policy.forward()
    return (score(logits, data, data.states).view(data.mask.shape) * data.mask).sum(-1)
