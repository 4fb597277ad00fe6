"""Examples in batches: what the model takes, what it should give, and which of them are taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.errors import CurvError


@dataclass(frozen=True)
class Batch:
    """Some examples: what the model takes (a tensor, a tuple or a dict) and what it should give."""

    inputs: Any
    target: Any
    size: int

    def map(self, f: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply `f` to every tensor."""
        inputs, target = (pytree.tree_map_only(Tensor, f, x) for x in (self.inputs, self.target))
        return Batch(inputs, target, self.size)


class Terms(NamedTuple):
    """The sum of the loss terms of one batch, each times its weight, and the sum of the weights.

    `ignored` counts the targets that are in no term.
    """

    total: Tensor
    weight: Tensor | float
    ignored: Tensor | int = 0


Loss = Callable[[Any, Batch], Terms]
"""From the model's output and the batch to the batch's terms."""


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Say how a model is called with a batch's inputs."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def select(batches: Sequence[Batch], chosen: Tensor) -> tuple[Batch, ...]:
    """Gather the examples with these (sorted) indices, into one batch where shapes allow it."""
    picked, start = [], 0
    for batch in batches:
        inside = chosen[(chosen >= start) & (chosen < start + batch.size)] - start
        if len(inside):
            picked.append(replace(batch.map(partial(_rows, inside)), size=len(inside)))
        start += batch.size
    shapes = [[t.shape[1:] for t in pytree.tree_leaves((b.inputs, b.target))
               if isinstance(t, Tensor)] for b in picked]  # fmt: skip
    same = all(s == shapes[0] for s in shapes)
    return (joined(picked),) if same else tuple(picked)


def _rows(chosen: Tensor, t: Tensor) -> Tensor:
    return t[chosen.to(t.device)] if t.ndim else t


def joined(batches: Sequence[Batch]) -> Batch:
    """Make one batch of several."""

    def join(*parts: Any) -> Any:
        return torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].ndim else parts[0]

    inputs = pytree.tree_map(join, *(b.inputs for b in batches))
    target = pytree.tree_map(join, *(b.target for b in batches))
    return Batch(inputs, target, sum(b.size for b in batches))


def as_batch(given: Any) -> Batch:
    """Make a Batch of an (inputs, target) pair, as a DataLoader yields them.

    Raises: CurvError (E_DATA) for anything else, or without a tensor whose first axis counts.
    """
    if isinstance(given, Batch):
        return given
    if isinstance(given, Mapping):
        given = (given, None)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise CurvError(
            "E_DATA", f"a batch is a {type(given).__name__}", "yield (inputs, target) pairs"
        )
    inputs, target = given
    sized = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim]
    if not sized:
        raise CurvError("E_DATA", "a batch has no tensor with examples", "check the inputs")
    return Batch(inputs, target, len(sized[0]))
