"""What a model gives for some examples, kept apart from it: rows of outputs beside their targets.

A loss is a function of outputs and targets, so most of what is to be known of it needs no model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, arguments, joined
from curvcli.errors import CurvError
from curvcli.problem import Problem

GROUPS = 32
"""Of examples, whose scatter gives standard errors: good to an eighth."""


@dataclass(frozen=True)
class Answers:
    """A model's output for a batch, and that batch."""

    output: Any
    batch: Batch

    def rows(self, chosen: Tensor) -> "Answers":
        """Keep the examples with these indices."""
        cut = partial(_rows, self.batch.size, chosen)
        batch = replace(self.batch.map(cut), size=len(chosen))
        return Answers(pytree.tree_map_only(Tensor, cut, self.output), batch)

    def with_target(self, order: Tensor) -> "Answers":
        """Give the examples each other's targets."""
        cut = partial(_rows, self.batch.size, order)
        target = pytree.tree_map_only(Tensor, cut, self.batch.target)
        return replace(self, batch=replace(self.batch, target=target))

    def leaves(self) -> list[Tensor]:
        """List the tensors of the output that have a row for each example."""
        return [t for t in pytree.tree_leaves(self.output) if _by_example(t, self.batch.size)]

    def with_leaves(self, leaves: Sequence[Tensor]) -> "Answers":
        """Put others in their place."""
        given = iter(leaves)
        size = self.batch.size
        output = pytree.tree_map(lambda t: next(given) if _by_example(t, size) else t, self.output)
        return replace(self, output=output)


def _by_example(t: Any, size: int) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point() and t.ndim > 0 and len(t) == size


def _rows(size: int, chosen: Tensor, t: Tensor) -> Tensor:
    return t[chosen.to(t.device)] if t.ndim and len(t) == size else t


def answer(problem: Problem, batch: Batch) -> Answers:
    """Evaluate the model on a batch."""
    args, kwargs = arguments(batch.inputs)
    with problem.replaying():
        return Answers(problem.model(*args, **kwargs), batch)


def mean(problem: Problem, parts: Sequence[Answers]) -> float:
    """Give the weighted mean loss of some answers; NaN where they have no term."""
    found = [problem.loss(a.output, a.batch) for a in parts]
    weight = sum(float(t.weight) for t in found)
    return sum(float(t.total) for t in found) / weight if weight else math.nan


def judged(problem: Problem, given: Answers) -> list[bool]:
    """Tell on which of the outputs' tensors the loss depends: on none where the model gives it."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in given.leaves()]
        total = problem.loss(given.with_leaves(leaves).output, given.batch).total
        if not leaves or not total.requires_grad:
            return [False] * len(leaves)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [g is not None for g in found]


@dataclass(frozen=True)
class Examined:
    """The loss and the accuracy over some batches, and the answers for some of the examples.

    error:   standard error of the loss, as that of a sample; None where examples are not told apart
    right:   how many of `asked` targets the largest output names; asked is 0 where that is nothing
    """

    loss: float
    error: float | None
    right: int
    asked: int
    kept: list[Answers]

    @property
    def accuracy(self) -> float | None:
        """The share of targets that are right."""
        return self.right / self.asked if self.asked else None

    @property
    def accuracy_error(self) -> float:
        """Its standard error, never less than for one mistake."""
        p = min(max(self.right, 1), max(self.asked - 1, 1)) / max(self.asked, 1)
        return math.sqrt(p * (1 - p) / max(self.asked, 1))


def examine(
    problem: Problem, batches: Sequence[Batch], keep: int, rng: torch.Generator
) -> Iterator[Examined]:
    """Evaluate batches one by one, and yield what is known after each."""
    size = sum(b.size for b in batches)
    chosen = torch.randperm(size, generator=rng)[:keep].sort().values
    pieces: list[tuple[float, float]] = []
    kept: list[Answers] = []
    start = right = asked = 0
    for batch in batches:
        with torch.no_grad():
            given = answer(problem, batch)
            apart = any(judged(problem, given))
            count = max(1, round(GROUPS * batch.size / size)) if apart else 1
            for rows in torch.arange(batch.size).tensor_split(min(count, batch.size)):
                part = given.rows(rows) if count > 1 else given
                terms = problem.loss(part.output, part.batch)
                pieces.append((float(terms.total), float(terms.weight)))
        hits, targets = _right(given)
        right, asked = right + hits, asked + targets
        inside = chosen[(chosen >= start) & (chosen < start + batch.size)] - start
        if len(inside):
            kept.append(given.rows(inside))
        start += batch.size
        loss, error = _summed(pieces)
        yield Examined(loss, error if apart else None, right, asked, together(kept))


def together(parts: Sequence[Answers]) -> list[Answers]:
    """Make one of several, where their shapes allow it."""
    shapes = [[t.shape[1:] for t in pytree.tree_leaves((a.output, a.batch.target))
               if isinstance(t, Tensor)] for a in parts]  # fmt: skip
    if not parts or any(s != shapes[0] for s in shapes):
        return list(parts)
    outputs = joined([Batch(a.output, None, a.batch.size) for a in parts])
    try:
        return [Answers(outputs.inputs, joined([a.batch for a in parts]))]
    except (RuntimeError, ValueError):  # inputs of different shapes
        return list(parts)


def _summed(pieces: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """Give the weighted mean and its standard error, by the scatter of the pieces."""
    totals, weights = torch.tensor(pieces, dtype=torch.float64).unbind(1)
    weight = float(weights.sum())
    if not weight > 0:
        raise CurvError("E_DATA", "the loss has no terms over these examples (weight 0)")
    loss = float(totals.sum()) / weight
    n = len(pieces)
    if n < 2:
        return loss, None
    off = (totals - loss * weights) / weight
    return loss, math.sqrt(float(off.square().sum()) * n / (n - 1))


def _right(given: Answers) -> tuple[int, int]:
    """Count the classes that the largest output names right, and those that are asked for."""
    target, leaves = given.batch.target, given.leaves()
    if not isinstance(target, Tensor) or target.is_floating_point() or not leaves:
        return 0, 0
    axis = class_axis(leaves[0], target)
    if axis is None or target.dtype == torch.bool:
        return 0, 0
    counts = (target >= 0) & (target < leaves[0].shape[axis])
    hits = (leaves[0].argmax(axis) == target) & counts
    return int(hits.sum()), int(counts.sum())


def class_axis(output: Tensor, target: Any) -> int | None:
    """Say along which axis the classes lie that an integer target counts; None for no such."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if output.ndim > 1 and target.shape == output.shape[:1] + output.shape[2:]:
        return 1
    return -1 if output.ndim > 1 and target.shape == output.shape[:-1] else None
