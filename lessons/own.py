"""The reader's functions as methods, so that a lesson can train with what its reader wrote.

`own.method("dpo", mine.dpo, verdict)` is the method of the package, but where the verdict on the
reader's function is RIGHT, that function says how hard each token is pushed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lessons.judge import RIGHT
from minialign.methods import METHODS, Method, build_method
from minialign.methods.method import spread


def method(name: str, function: Callable, verdict: str, n_examples: int = 1, **hyper) -> Method:
    """A method of the package, with the reader's pushes if the grader has called them right.

    name        a name in METHODS that has a function in mine.py
    n_examples  the size of the data set, for DFT
    hyper       settings of the method
    """
    if not verdict.startswith(RIGHT):
        return build_method(name, hyper, n_examples)

    class Yours(METHODS[name]):
        """The method, with its loss and its settings; the weights are the reader's."""

        def weigh(self, logps, batch):
            weights = WEIGHTS[name](function, self, logps, batch)
            loss, _, info = super().weigh(logps, batch)
            return loss, weights / batch.counts.examples, info

    Yours.__name__ = METHODS[name].__name__
    if name == "dft":
        hyper = {**hyper, "n_examples": n_examples}
    return Yours(**hyper)


# ------------------------------------------ weights (A, B, T) of all tokens, by a reader's function


def sft(function: Callable, method: Method, logps: Tensor, batch) -> Tensor:
    weights = torch.zeros_like(logps)
    weights[0] = function(batch.mask[0]) * len(batch)       # the reader divides by the answers here
    return weights


def dpo(function: Callable, method: Method, logps: Tensor, batch) -> Tensor:
    l, ref = (logps * batch.mask).sum(-1), batch.ref_logps.to(logps)        # (A, B)
    pushes = torch.zeros_like(l)
    for k in range(1, len(l)):
        up, down = function(l[0], l[k], ref[0], ref[k], method.beta)
        pushes[0] += up / (len(l) - 1)
        pushes[k] = down / (len(l) - 1)
    return spread(pushes, batch)


def asft(function: Callable, method: Method, logps: Tensor, batch) -> Tensor:
    n = batch.mask.sum(-1)                                                  # (A, B)
    a = (logps * batch.mask).sum(-1) / n
    a = torch.where(a == 0, -torch.finfo(a.dtype).eps / 2, a)               # odds have no end at 1
    pushes = torch.zeros_like(a)
    for k in range(1, len(a)):
        up, down = function(a[0], a[k], method.lam)
        pushes[0] += up / (len(a) - 1)
        pushes[k] = down / (len(a) - 1)
    return spread(pushes / n, batch)


def dft(function: Callable, method: Method, logps: Tensor, batch) -> Tensor:
    l, ref = (logps * batch.mask).sum(-1).double(), batch.ref_logps         # (A, B)
    log_u = method.log_u[batch.index]                                   # (B,), before this visit
    _, pushes = function(l, ref, log_u, method.tau, method.gamma)
    return spread(pushes.to(logps), batch)


def ift(function: Callable, method: Method, logps: Tensor, batch) -> Tensor:
    weights = torch.zeros_like(logps)
    for b, mask in enumerate(batch.mask[0]):
        weights[0, b, mask] = function(-logps[0, b, mask], method.gamma)
    return weights


WEIGHTS = {"sft": sft, "dpo": dpo, "asft": asft, "dft": dft, "ift": ift}
