"""The weights of a model's first layer as pictures, where it looks at pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvcli.problem import Problem
from curvcli.signals.place import Place

SMALLEST = 16
"""Pixels of a square that a row of inputs is taken for; of fewer, little is to be seen."""


@dataclass(frozen=True)
class Pictures:
    """One picture for each unit of a layer: (k, channels, height, width)."""

    layer: str
    pixels: Tensor
    guessed: bool
    """Whether the inputs are rows, and a square only by their number."""


def pictures(problem: Problem, layers: Sequence[Place]) -> Pictures | None:
    """Take the first layer's weights for what its inputs are; None where those are no pictures."""
    if not layers:
        return None
    first = layers[0]
    weight = getattr(first.module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    weight = weight.detach()
    if isinstance(first.module, nn.Conv2d):
        return Pictures(first.name, weight, False)
    shape = _seen(problem)
    if not isinstance(first.module, nn.Linear) or math.prod(shape) != weight.shape[1]:
        return None
    side = math.isqrt(weight.shape[1])
    if len(shape) == 1 and side**2 == shape[0] >= SMALLEST:
        return Pictures(first.name, weight.reshape(-1, 1, side, side), True)
    if len(shape) in (2, 3):
        return Pictures(first.name, weight.reshape(-1, *shape[:-2] or (1,), *shape[-2:]), False)
    return None


def _seen(problem: Problem) -> torch.Size:
    """Give the shape of one example of the only input."""
    tensors = [t for t in pytree.tree_leaves(problem.batches[0].inputs) if isinstance(t, Tensor)]
    return tensors[0].shape[1:] if len(tensors) == 1 else torch.Size()
