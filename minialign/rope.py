"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys turn with their positions.

Their numbers turn in pairs, each pair at a speed of its own, so that the product of a query and a
key depends on their distance alone. Learned positions, which GPT-2 has, are in model.py.

Shapes in the comments: R rows of L tokens, H heads of D numbers each.
"""

import math

import torch
from torch import Tensor


def rope_frequencies(config) -> Tensor:
    """By what angle each pair of numbers turns from one position to the next, (D/2,) float32.

    Pair i turns by θ^(−2i/D): the first pairs turn fast, the last ones slowly. Models whose context
    was stretched after training rescale these angles.
    """
    D = config.d_head
    exponents = torch.arange(0, D, 2, dtype=torch.int64).float() / D    # (D/2,)
    frequency = 1.0 / config.rope_theta**exponents                      # (D/2,)
    if config.rope_scaling is None:
        return frequency

    # Linear scaling squeezes the longer context into the old one.
    kind, factor, *rest = config.rope_scaling
    if kind == "linear":
        return frequency / factor

    # Llama 3.1 and YaRN keep the pairs that turn fast as they are, slow down the slow ones by
    # `factor`, and blend those between.
    if kind == "llama3":
        low, high, old_len = rest
        wavelength = 2 * math.pi / frequency
        blend = ((old_len / wavelength - low) / (high - low)).clamp(0, 1)   # (D/2,), 1 = keep
    else:
        fast, slow, old_len, _ = rest
        blend = yarn_blend(D, config.rope_theta, fast, slow, old_len)       # (D/2,), 1 = keep
    return (1 - blend) * frequency / factor + blend * frequency


def yarn_blend(D: int, theta: float, fast: float, slow: float, old_len: int) -> Tensor:
    """How much of its old speed each pair keeps with YaRN (Peng et al. 2023, arXiv 2309.00071).

    Within the old context, pairs that make more than `fast` turns keep all of it, and those that
    make fewer than `slow` turns keep nothing. Between them the share falls from pair to pair along
    a straight line. Gives (D/2,), from 1 down to 0.
    """
    # Pair i makes n turns where old_len · θ^(−2i/D) = 2πn.
    first = D / 2 * math.log(old_len / (2 * math.pi * fast)) / math.log(theta)
    last = D / 2 * math.log(old_len / (2 * math.pi * slow)) / math.log(theta)
    first, last = max(math.floor(first), 0), min(math.ceil(last), D - 1)
    place = (torch.arange(D // 2) - first) / max(last - first, 0.001)       # (D/2,)
    return 1 - place.clamp(0, 1)


def rope_rotation(
    config, frequencies: Tensor, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(cos, ∓sin) of the angles at `positions` (R, L), each (R, L, 1, D), for `rotate`."""
    angles = positions[:, :, None, None].float() * frequencies              # (R, L, 1, D/2)
    cos, sin = angles.cos(), angles.sin()

    # YaRN also lengthens queries and keys, which sharpens the attention over a longer context.
    if config.rope_scaling is not None and config.rope_scaling[0] == "yarn":
        length = config.rope_scaling[-1]
        cos, sin = cos * length, sin * length
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (R, L, H, D) turned by the angles of their positions, (R, L, 1, D).

    Number i turns together with number i + D/2, which is the pairing of Hugging Face's weights:
    a and b become a cos − b sin and b cos + a sin. `sin` has the minus sign of the first half; to
    roll x by half puts b before a. That is three calls, where two halves would take seven.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)        # (R, L, H, D)
