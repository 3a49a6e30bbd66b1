"""Where everybody starts: the lakes, the policy before alignment, the demonstrations.

All methods share one World, so that they differ in nothing but the method.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.methods import METHODS
from toy import lake
from toy.lake import Lake
from toy.policy import Data, Network, Table, dice, log_prob, train, trajectories

NOISY_LABELS, NOISE = 16, 0.75      # what the "noisy" initial policy has learnt from
TEACHING = {"noisy": 100, "optimum": 500}       # SFT steps that make these policies
NEGATIVES = 2               # trajectories that DFT reads per step, as in its paper's main runs


@dataclass
class World:
    """N lakes and the initial policy of every seed; what can be seen of them follows."""

    seeds: list[int]
    singles: list[Lake]
    base: Table
    lakes: Lake = field(init=False)         # the same lakes, stacked
    path: Data = field(init=False)          # the optimal trajectory
    pairs: Data = field(init=False)         # with the sub-optimal one as answer 1

    def __post_init__(self):
        self.lakes = lake.stack(self.singles)
        best = [[one.best] for one in self.singles]
        worse = [[one.worse] for one in self.singles]
        self.path = trajectories(best)
        both = trajectories(best, worse)
        rewards = torch.tensor([[[1.0]], [[0.0]]], dtype=torch.float64)
        rewards = rewards.expand(2, len(self.seeds), 1)                 # (A, N, D)
        reference = log_prob(self.base, both)
        self.pairs = Data(both.states, both.actions, both.mask, reference, rewards)

    def data(self, needs: tuple[str, ...], steps: int) -> Data:
        """What a method with these needs may see in so many training steps."""
        if "negatives" in needs:
            return sampled_negatives(self, NEGATIVES * steps)
        return self.pairs if "rejected" in needs or "rewards" in needs else self.path

    @cached_property
    def optimum(self) -> Table:
        """The paper's "optimal parameterised policy".

        It is the same network from the same start, trained on the optimal action of every state.
        """
        return imitate(self.base, self.lakes, self.lakes.expert[:, None], TEACHING["optimum"])


def prepare(
    map_name: str, seeds: list[int], slippery: bool = False, base: str = "random"
) -> World:
    """The world of these seeds. Each has a maze of its own; any other map is the same for all.

    `base` is the policy before alignment. "random": untrained. "noisy": it has learnt NOISY_LABELS
    labels for every state from an expert who picks a random action with chance NOISE; it is mostly
    right and never sure.
    """
    if map_name == "maze":
        singles = [lake.make(lake.find(map_name, seed), slippery) for seed in seeds]
    else:
        singles = [lake.make(lake.find(map_name), slippery)] * len(seeds)
    lakes = lake.stack(singles)
    S = lakes.ends.shape[-1]
    policy = Network.fresh(seeds, S)
    if base == "noisy":
        chance = dice(seeds, "labels", NOISY_LABELS, S, 2)              # (N, labels, S, 2)
        random = (4 * chance[..., 1]).long()
        labels = torch.where(chance[..., 0] < NOISE, random, lakes.expert[:, None])
        policy = imitate(policy, lakes, labels, TEACHING["noisy"])
    return World(list(seeds), singles, policy)


def imitate(policy: Table, lakes: Lake, labels: Tensor, steps: int) -> Table:
    """SFT on labels for every state (N, labels, S), wherever the goal can still be reached."""
    N, D, S = labels.shape
    states = torch.arange(S).expand(1, N, D, S)
    mask = lakes.solvable[None, :, None].expand(1, N, D, S)
    data = Data(states, labels[None], mask)
    return train(policy, lakes, data, METHODS["sft"](), steps=steps, lr=0.01)[0]


def sampled_negatives(world: World, size: int) -> Data:
    """DFT's negatives: `size` walks per seed of the initial policy, before training starts.

    They are cut off at four times the length of the demonstration. NEGATIVES of them are read at
    each step, and none twice.
    """
    best = world.path
    T = 4 * best.mask.shape[-1]
    rolls = dice(world.seeds, "negatives", size, T, 2)
    walks = lake.sample(world.lakes, world.base.probabilities(), rolls)
    columns = []
    for shown, walked in zip((best.states, best.actions, best.mask), walks, strict=True):
        wanted = F.pad(shown, (0, T - shown.shape[-1]))                 # (1, N, 1, T)
        columns.append(torch.cat([wanted, walked.transpose(0, 1)[:, :, None]]))     # (A, N, 1, T)
    data = Data(*columns)
    return Data(*columns, ref_logps=log_prob(world.base, data), fresh=NEGATIVES)
