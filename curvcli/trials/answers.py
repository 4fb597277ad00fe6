"""What a model gives for some examples, kept apart from it: rows of outputs beside their targets.

A loss is a function of outputs and targets, so most of what is to be known of it needs no model.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, arguments, joined
from curvcli.errors import CurvError, memory_error
from curvcli.problem import Problem
from curvcli.trials.targets import Tally, tally, threshold

PIECES = 4096
"""Up to so many examples each gives a loss of its own, whose scatter gives the standard error; more
go in groups of equal size, which are cut from all of the data and not from its batches."""


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
        # A loss may work in place, which a leaf does not allow.
        total = problem.loss(given.with_leaves([t * 1 for t in leaves]).output, given.batch).total
        if not leaves or not total.requires_grad:
            return [False] * len(leaves)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [g is not None for g in found]


@dataclass(frozen=True)
class Examined:
    """The loss and the accuracy over some batches, and the answers for some of the examples.

    error:    standard error of the loss, as of a sample; None where examples are not told apart
    right:    how many of `asked` targets the outputs name; asked is 0 where that is nothing
    majority: the share of targets that are the most frequent; None where they are no classes
    """

    loss: float
    error: float | None
    right: int
    asked: int
    kept: list[Answers]
    majority: float | None = None

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
    total = weight = 0.0
    pieces = _Pieces(size)
    level: float | None = None
    kept: list[Answers] = []
    found, start = Tally(), 0
    for batch in batches:
        with torch.no_grad():
            given = answer(problem, batch)
            terms = problem.loss(given.output, given.batch)
            pieces.add(problem, given, start)
        total, weight = total + float(terms.total), weight + float(terms.weight)
        level = threshold(problem, given) if start == 0 else level
        found = found.plus(tally(given, level)) if start else tally(given, level)
        inside = chosen[(chosen >= start) & (chosen < start + batch.size)] - start
        if len(inside):
            kept.append(given.rows(inside))
        start += batch.size
        if not weight and start == size:
            raise CurvError("E_DATA", "the loss has no terms over these examples (weight 0)")
        loss = total / weight if weight else math.nan
        yield Examined(
            loss, pieces.error(), found.right, found.asked, together(kept), found.majority
        )


class _Pieces:
    """The loss of each example, or of groups of examples, for the standard error of their mean."""

    def __init__(self, size: int) -> None:
        self.each = math.ceil(size / PIECES)
        self.totals = torch.zeros(math.ceil(size / self.each), dtype=torch.float64)
        self.weights = torch.zeros_like(self.totals)
        self.count = 0
        self.apart = True

    def add(self, problem: Problem, given: Answers, start: int) -> None:
        """Evaluate the loss on what a batch, whose first example is `start`, has of each group."""
        if not self.apart or not any(judged(problem, given)):
            self.apart = False
            return
        group = torch.arange(start, start + given.batch.size) // self.each
        sizes = torch.bincount(group - group[0]).tolist()
        rows = torch.split(torch.arange(given.batch.size), sizes)
        try:
            parts = [given.rows(r) for r in rows]
            terms = [problem.loss(a.output, a.batch) for a in parts]
        except (CurvError, RuntimeError, ValueError, IndexError) as error:
            if memory_error(error):
                raise
            self.apart = False  # a loss that refuses a single example
            return
        first, self.count = int(group[0]), int(group[-1]) + 1
        self.totals[first : self.count] += _numbers(t.total for t in terms)
        self.weights[first : self.count] += _numbers(t.weight for t in terms)

    def error(self) -> float | None:
        """Give the standard error of the weighted mean; None where it is not known."""
        totals, weights, n = self.totals[: self.count], self.weights[: self.count], self.count
        weight = float(weights.sum())
        if not self.apart or n < 2 or not weight > 0:
            return None
        off = (totals - totals.sum() / weight * weights) / weight
        found = math.sqrt(float(off.square().sum()) * n / (n - 1))
        # A mean over no terms at all is no number, as for an example whose targets are left out.
        return found if math.isfinite(found) else None


def _numbers(found: Iterable[Tensor | float]) -> Tensor:
    return torch.tensor([float(x) for x in found], dtype=torch.float64)


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
