"""Softmax policies for the lake, and the loop in which a method of minialign trains them.

The same score → weigh → push as for a GPT. `score` gives the log-probs of the actions on
trajectories, (A, B, T); `weigh` is the method's own; `logit_gradient` and `Table.gradient` carry
its weights to every parameter, by hand. No loss is written here, and no autograd runs.

N policies, one per seed, train side by side. Everything carries a leading N, so they never meet,
and `counts` tells the method to divide by the examples of one seed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.data import Batch, Counts
from toy.lake import Lake

# Every use of chance draws from a stream of its own, per seed.
PARTS = ("base", "labels", "negatives", "rollouts")


def dice(seeds: list[int], part: str, *shape: int) -> Tensor:
    """Uniform random numbers (N, *shape) that depend on the seed and on what they are for alone."""
    drawn = []
    for seed in seeds:
        stream = torch.Generator().manual_seed(len(PARTS) * seed + PARTS.index(part))
        drawn.append(torch.rand(*shape, generator=stream, dtype=torch.float64))
    return torch.stack(drawn)


# ------------------------------------------------------------------------------ policies

@dataclass
class Table:
    """A softmax table: four logits per state. parameters: [W (N, S, 4)]."""

    parameters: list[Tensor]

    @classmethod
    def fresh(cls, seeds: list[int], S: int):
        """Untrained: logits uniform within ±1, a random policy with weak preferences."""
        return cls([2 * dice(seeds, "base", S, 4) - 1])

    def copy(self):
        return type(self)([p.clone() for p in self.parameters])

    def forward(self, rows: Tensor | None = None) -> tuple[Tensor, tuple]:
        """Logits (N, M, 4) of M inputs, and what `gradient` needs to know of them.

        An input is a row of `rows` (N, M, S), a distribution over the states. None stands for
        every state once, the identity matrix, which nobody has to multiply with.
        """
        return self.first(rows), (rows,)

    def gradient(self, kept: tuple, d_logits: Tensor) -> list[Tensor]:
        """∂loss/∂parameters from ∂loss/∂logits."""
        (rows,) = kept
        return [self.d_first(rows, d_logits)]

    def first(self, rows: Tensor | None) -> Tensor:
        """The inputs times the first parameter."""
        return self.parameters[0] if rows is None else rows @ self.parameters[0]

    def d_first(self, rows: Tensor | None, d: Tensor) -> Tensor:
        """The gradient of the first parameter from that of the product."""
        return d if rows is None else rows.mT @ d

    def probabilities(self) -> Tensor:
        return self.forward()[0].softmax(-1)                            # (N, S, 4)


@dataclass
class Network(Table):
    """The paper's two fully connected layers: one-hot state → tanh → four logits.

    parameters: [W1 (N, S, H), b1 (N, 1, H), W2 (N, H, 4), b2 (N, 1, 4)].
    """

    @classmethod
    def fresh(cls, seeds, S, width: int = 64):
        """Untrained: uniform within ±1/√(numbers that feed it), the default of torch.nn.Linear."""
        shapes = [(S, width), (1, width), (width, 4), (1, 4)]
        feeds = [S, S, width, width]
        drawn = dice(seeds, "base", sum(rows * columns for rows, columns in shapes))
        parameters, begin = [], 0
        for (rows, columns), fed_by in zip(shapes, feeds, strict=True):
            piece = drawn[:, begin : begin + rows * columns].view(-1, rows, columns)
            parameters.append((2 * piece - 1) * fed_by**-0.5)
            begin += rows * columns
        return cls(parameters)

    def forward(self, rows=None):
        _, b1, W2, b2 = self.parameters
        h = torch.tanh(self.first(rows) + b1)                           # (N, M, H)
        return h @ W2 + b2, (rows, h)

    def gradient(self, kept, d_logits):
        rows, h = kept
        W2 = self.parameters[2]
        d_h = d_logits @ W2.mT * (1 - h * h)                            # (N, M, H): tanh′ = 1−tanh²
        return [self.d_first(rows, d_h), d_h.sum(1, keepdim=True),
                h.mT @ d_logits, d_logits.sum(1, keepdim=True)]


# ------------------------------------------------------------------------------ data

@dataclass(frozen=True)
class Data:
    """Trajectories: A answers for each of D examples of N seeds. Answer 0 is the wanted one."""

    states: Tensor                      # (A, N, D, T) int
    actions: Tensor                     # (A, N, D, T) int
    mask: Tensor                        # (A, N, D, T) bool: the walk had not ended before
    ref_logps: Tensor | None = None     # (A, N, D) summed log-prob under the initial policy
    rewards: Tensor | None = None       # (A, N, D)
    fresh: int = 0                      # above 0: answers 1, 2, … are a pool, of which every
                                        # training step reads so many new ones

    def at(self, step: int) -> "Data":
        """What the given training step sees."""
        if not self.fresh:
            return self
        pool = len(self.states) - 1
        first = step * self.fresh
        chosen = [0, *((first + k) % pool + 1 for k in range(self.fresh))]
        ref_logps = None if self.ref_logps is None else self.ref_logps[chosen]
        return Data(self.states[chosen], self.actions[chosen], self.mask[chosen], ref_logps)

    def batch(self) -> Batch:
        """As the methods read it: B = N·D examples, divided by the counts of one seed.

        So each seed trains as if alone. Seeds with mazes of their own differ in their number of
        tokens; no method divides by that unless asked to (SFT's token_mean).
        """
        D = self.mask.shape[2]
        answers = int(self.mask[:, 0].any(-1).sum())
        counts = Counts(D, answers, int(self.mask[0, 0].sum()))
        extra = {}
        if self.ref_logps is not None:
            extra["ref_logps"] = self.ref_logps.flatten(1, 2)           # (A, B)
        if self.rewards is not None:
            extra["rewards"] = self.rewards.flatten(1, 2)               # (A, B)
        return Batch(self.mask.flatten(1, 2), counts=counts, **extra)


def trajectories(*answers: list[list]) -> Data:
    """Paths → Data. One list per answer; in it one list per seed; in it the D paths of the seed."""
    D = {len(paths) for answer in answers for paths in answer}
    T = max(len(path) for answer in answers for paths in answer for path in paths)
    shape = (len(answers), len(answers[0]), D.pop(), T)
    states = torch.zeros(shape, dtype=torch.long)
    actions = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    for a, answer in enumerate(answers):
        for n, paths in enumerate(answer):
            for d, path in enumerate(paths):
                t = slice(0, len(path))
                states[a, n, d, t], actions[a, n, d, t] = torch.tensor(path).T
                mask[a, n, d, t] = True
    return Data(states, actions, mask)


# ------------------------------------------------------------------------------ IFT's residual

def residual(lakes: Lake, data: Data, probabilities: Tensor, reads: str, lam: float) -> Tensor:
    """IFT's temporal residual connection (eq. 17) in state space, through the known transitions:

        s_i  ←  (1−λ) s*_i + λ · (where the action taken at s*_{i−1} leads)

    `reads` says which action that is: "greedy" is the policy's likeliest one, as in eq. 17,
    Algorithm 1 and the released code. Ours: "soft" averages over the policy's probabilities, and
    "uniform", a control that knows nothing of the policy, over all four actions.

    → mixed states (N, D, T, S). The first state has no predecessor and stays as it is. No gradient
    flows through the guess, as in the released code.
    """
    states, mask = data.states[0], data.mask[0]                         # (N, D, T)
    n = torch.arange(len(states))[:, None, None]
    before = states[..., :-1]                                           # (N, D, T−1)
    act = probabilities[n, before]                                      # (N, D, T−1, 4)
    if reads == "greedy":
        act = F.one_hot(act.argmax(-1), 4).double()
    elif reads == "uniform":
        act = torch.full_like(act, 0.25)
    leads = (act[..., None] * lakes.P[n, before]).sum(-2)               # (N, D, T−1, S)

    mixed = F.one_hot(states, lakes.ends.shape[-1]).double()            # (N, D, T, S)
    mixture = (1 - lam) * mixed[..., 1:, :] + lam * leads
    mixed[..., 1:, :] = torch.where(mask[..., 1:, None], mixture, mixed[..., 1:, :])
    return mixed


def deviation(data: Data, mixed: Tensor) -> Tensor:
    """What of the mixture is not the demonstrated state, (N, D, T, S)."""
    shown = data.states[0][..., None]                                   # (N, D, T, 1)
    return mixed.scatter(-1, shown, 0.0) * data.mask[0][..., None]


def judged(lakes: Lake, data: Data, off: Tensor) -> Tensor:
    """Three numbers per seed on a deviation, (3, N).

    They are its share of what is read (the first state of a walk, which cannot deviate, left out),
    how much of it lies where the goal can still be reached, and how much of that has the right
    label: the demonstration's next action is optimal there too.
    """
    n = torch.arange(len(off))[:, None, None]
    right = off * lakes.optimal.mT[n, data.actions[0]]                  # (N, D, T, S)
    reachable = off * lakes.solvable[:, None, None]
    read = data.mask[0][..., 1:].sum((1, 2)).clamp(min=1)               # (N,)
    whole, reachable, right = (x.sum((1, 2, 3)) for x in (off, reachable, right))
    return torch.stack([whole / read, reachable, right])


def with_oracle(lakes: Lake, data: Data, mixed: Tensor) -> tuple[Data, Tensor]:
    """The control: the same deviated states as IFT's, but labelled by the optimal policy.

    Each demonstrated step shrinks to its share of the mixture, and every other state in the
    mixture becomes a step of its own, with the expert's action.
    → data with S more steps, and the share of every step, (N·D, T + S).
    """
    _, N, D, _ = data.states.shape
    S = mixed.shape[-1]
    here = mixed.gather(-1, data.states[0][..., None])                  # (N, D, T, 1)
    off = deviation(data, mixed).sum(2)                                 # (N, D, S)
    every = torch.arange(S).expand(1, N, D, S)
    more = Data(
        torch.cat([data.states, every], -1),
        torch.cat([data.actions, lakes.expert[:, None].expand(1, N, D, S)], -1),
        torch.cat([data.mask, lakes.solvable[:, None].expand(1, N, D, S)], -1),
    )
    return more, torch.cat([here[..., 0], off], -1).flatten(0, 1)


# ----------------------------------------------------------------------- score → weigh → push

def score(logits: Tensor, data: Data, source: Tensor) -> Tensor:
    """Log-probs of the actions taken, (A, N·D, T).

    `source` (A, N, D, T) says which row of the logits (N, M, 4) predicts each of them.
    """
    n = torch.arange(len(logits))[:, None, None]
    return logits.log_softmax(-1)[n, source, data.actions].flatten(1, 2)


def logit_gradient(logits: Tensor, data: Data, source: Tensor, weights: Tensor) -> Tensor:
    """∂loss/∂logits (N, M, 4): over the actions read there, Σ weight · (softmax − onehot)."""
    n = torch.arange(len(logits))[:, None, None].expand_as(source)
    pushed = torch.zeros_like(logits)                                   # (N, M, 4)
    pushed.index_put_((n, source, data.actions), weights.view(source.shape), accumulate=True)
    return logits.softmax(-1) * pushed.sum(-1, keepdim=True) - pushed


def log_prob(policy: Table, data: Data) -> Tensor:
    """Exact log-prob of every trajectory, (A, N, D): the reference of DPO and DFT.

    The ice's own chances are left out, as they cancel in every ratio.
    """
    logits, _ = policy.forward()
    return (score(logits, data, data.states).view(data.mask.shape) * data.mask).sum(-1)


def step(
    policy: Table, lakes: Lake, data: Data, method, reads: str, lam: float, oracle: bool = False
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss of all seeds together (), gradient of every parameter, and `judged` (3, N).

    `reads` says what the policy reads in place of the demonstrated states: "path" is those states
    themselves; for the others see `residual`. `oracle` gives what it reads the right labels.
    """
    # What is read: at first a row of logits per state of the lake.
    rows, source, share = None, data.states, None
    off_path = torch.zeros(3, len(lakes.ends), dtype=torch.float64)
    if oracle or (reads != "path" and lam > 0):
        mixed = residual(lakes, data, policy.probabilities(), reads, lam)
        off_path = judged(lakes, data, deviation(data, mixed))
        if oracle:
            off_path[2] = off_path[1]                                   # every label is right
            length = data.mask[0].sum(-1).flatten()[:, None]            # (N·D, 1)
            data, share = with_oracle(lakes, data, mixed)
            source, share = data.states, share / length
        else:                           # a row of logits per step of the demonstration
            rows = mixed.flatten(1, 2)                                  # (N, D·T, S)
            source = torch.arange(rows.shape[1]).view(1, 1, *data.states.shape[2:])
            source = source.expand_as(data.states)

    # Score the actions, let the method weigh them, and push the parameters.
    logits, kept = policy.forward(rows)
    loss, weights, _ = method.weigh(score(logits, data, source), data.batch())
    if share is not None:
        weights = weights * share
    d_logits = logit_gradient(logits, data, source, weights)
    return loss, policy.gradient(kept, d_logits), off_path


def train(
    policy: Table, lakes: Lake, data: Data, method, *, steps: int, lr: float,
    optimizer: str = "adam", reads: str = "path", lam: float = 0.0, oracle: bool = False,
) -> tuple[Table, Tensor]:
    """A trained copy of `policy`, and what was `judged` at every step, (steps, 3, N).

    Every step reads all the data. The optimizers work element by element, so seeds do not meet in
    them.
    """
    policy = policy.copy()
    if optimizer == "adam":
        descent = torch.optim.Adam(policy.parameters, lr=lr, fused=True)
    else:
        descent = torch.optim.SGD(policy.parameters, lr=lr)
    history = []
    for i in range(steps):
        _, gradients, off_path = step(policy, lakes, data.at(i), method, reads, lam, oracle)
        for parameter, gradient in zip(policy.parameters, gradients, strict=True):
            parameter.grad = gradient
        descent.step()
        history.append(off_path)
    return policy, torch.stack(history) if history else torch.zeros(0, 3, len(lakes.ends))
