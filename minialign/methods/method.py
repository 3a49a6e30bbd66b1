"""The contract every method keeps, and the arithmetic that several share. No model, no autograd.

Adding a method takes one class that fills in `weigh`, and one line in METHODS (`__init__.py`).
Whatever else the project does with it is derived from the class: flags and their help, races and
pictures, memory sheets, and the tests that every method must pass.
"""

from typing import ClassVar

import torch
from torch import Tensor

from minialign.data import Batch, Example
from minialign.logps import add_reference
from minialign.settings import check_settings


class Method:
    """A rule that turns the log-probs of tokens already in the batch into one weight per token.

    `weigh` is the whole of a method: the loss, and the weights, worked out by hand. A weight above
    0 pushes its token up, one below 0 pushes it down, so a weight is also called the push on its
    token. It is −∂loss/∂(log-prob of the token) in every method but DFT, whose paper estimates the
    gradient in another way than the loss. From there on all methods are the same:
    ∂loss/∂logits = weights · (softmax − onehot), and so on into the network (train.py).

    Answer 0 is the wanted answer (the chosen one of a pair). All others are rejected answers or,
    if the model itself wrote them, negatives; there are K of them. l is the log-prob of an answer,
    n its number of tokens.

    Subclasses are dataclasses whose fields are hyper-parameters, declared with `setting`: default,
    explanation, bounds.
    """

    # What the data must bring besides the wanted answer: "rejected", "negatives" or "rewards"; and
    # "reference", the log-probs of all answers under the model training starts from.
    needs: ClassVar[tuple[str, ...]] = ()
    # Does `weigh` look at answers other than the wanted one, so that the network must read them?
    reads_others: ClassVar[bool] = False
    # May an example lack its wanted answer (an empty mask for answer 0)?
    allows_unpaired: ClassVar[bool] = False
    # Forward passes that an update takes. IFT takes one more, to ask the policy for its guesses.
    forwards: ClassVar[int] = 1

    def __post_init__(self):
        check_settings(self)

    def weigh(self, logps: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of a batch and the push on each of its tokens.

        logps     (A, B, T) float32 or float64, no graph: log-probs of the response tokens; what
                  stands outside the mask is not read
        →
        loss      (), the objective itself, divided by `batch.counts`, so that the parts of an
                  update add up to the whole
        weights   (A, B, T) = −∂loss/∂logps, 0 outside the mask
        info      numbers worth logging, one per example (B,); among them "loss_per_example" if the
                  loss is a mean over examples

        A method with a memory, like DFT, updates it here: each example passes through `weigh`
        exactly once per update. ValueError if the batch lacks something the method needs.
        """
        raise NotImplementedError

    def prepare_data(
        self, model, examples: list[Example], max_len: int | None = None, progress: bool = True
    ) -> None:
        """Once, before training, while `model` is still the model that training starts from.

        Methods with "reference" among their needs get the log-probs of all answers under it here
        (`ref_logps` of each example). `max_len` is the longest prompt + answer the model may read.
        """
        if "reference" in self.needs:
            add_reference(model, examples, progress=progress)

    def prepare(self, model, parts: list[Batch]) -> list[Batch]:
        """Once per update, before it: what must be asked of the policy, without a graph.

        `parts` together are the examples of the update. Most methods ask nothing.
        """
        return parts

    def inputs(self, model, batch: Batch) -> Tensor:
        """What the network reads: tokens (R, L), or embeddings (R, L, C)."""
        return batch.rows.tokens

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must keep: tables with a row for every example of the data set.

        Most methods have no memory.
        """
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""


def sums_and_lengths(logps: Tensor, batch: Batch, wanted: bool = True) -> tuple[Tensor, Tensor]:
    """Log-prob of each answer, l (A, B), and its number of tokens, n (A, B).

    `wanted`: every example must have an answer 0. ValueError if one has not, or if the shapes or
    the dtype are not as they must be.
    """
    if logps.shape != batch.mask.shape:
        raise ValueError(
            f"logps {tuple(logps.shape)} and batch.mask {tuple(batch.mask.shape)} "
            "must both be (A, B, T)"
        )
    if logps.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"logps are {logps.dtype}; log-probs must be float32 or float64, "
            "or their sums lose what counts"
        )
    n = batch.mask.sum(-1)                                              # (A, B)
    if wanted and (n[0] == 0).any():
        first = int(batch.index[n[0] == 0][0])
        raise ValueError(
            f"example {first} has no answer 0, the wanted one; "
            "only methods for unpaired data can do without one"
        )
    return torch.where(batch.mask, logps, 0.0).sum(-1), n               # masked: NaN is not read


def spread(push: Tensor, batch: Batch) -> Tensor:
    """A push per answer (A, B) → the same push on each of its tokens (A, B, T)."""
    return push[..., None] * batch.mask


def share_of_negatives(n: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
    """(K, B): 1 over the number of negatives present, 0 where one is absent.

    One rule for every method that compares pairs: its loss is the mean over the pairs (wanted
    answer, one negative).
    """
    present = n[1:] > 0                                                 # (K, B)
    lacking = ~present.any(0)                                           # (B,)
    if lacking.any():
        first = int(batch.index[lacking][0])
        raise ValueError(
            f"example {first} has no rejected answer, nothing to compare the wanted one with"
        )
    return present.to(dtype) / present.sum(0)


def reference(method: Method, batch: Batch, like: Tensor) -> Tensor:
    """The answers' log-probs under the frozen reference, (A, B), in the dtype of `like`."""
    if batch.ref_logps is None:
        raise ValueError(
            f"{type(method).__name__} needs the reference model's log-prob of every answer "
            "(ref_logps); 'minialign train' computes them once and stores them beside the data"
        )
    if batch.ref_logps.shape != like.shape:
        raise ValueError(
            f"ref_logps {tuple(batch.ref_logps.shape)} must hold one number per answer, "
            f"{tuple(like.shape)}"
        )
    return batch.ref_logps.to(like)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 − eᵃ) for a < 0, accurate at both ends.

    Where 1 − eᵃ is small, eᵃ > ½, expm1 keeps its digits; elsewhere log1p does. Each is fed only
    the numbers it is good for.
    """
    near = a > -0.6931471805599453                                      # log ½
    small = torch.where(near, a, -1.0)
    large = torch.where(near, -1.0, a)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def below_one(a: Tensor) -> Tensor:
    """Mean log-probs, with −eps/2 in the place of exact zeros.

    An answer of probability 1 has infinite odds, and hence an infinite loss. The largest number
    below 1 that the dtype holds is 1 − eps/2; such an answer is taken to have that probability.
    Only exact zeros are replaced, so this is not a cap: a long answer that is almost certain may
    have a mean log-prob nearer to 0, −1e-10 say. It keeps it, and is pushed down harder.
    """
    return torch.where(a == 0, -torch.finfo(a.dtype).eps / 2, a)
