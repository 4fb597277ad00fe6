"""Targets beside the outputs that are to meet them: how many are met, and how they are spread."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from curvcli.batches import Batch
from curvcli.problem import Problem

if TYPE_CHECKING:
    from curvcli.trials.answers import Answers


class Tally(NamedTuple):
    """How many targets are met, of how many, and how often each class occurs in each column."""

    right: int = 0
    asked: int = 0
    counts: Tensor | None = None  # (classes, columns)

    def plus(self, other: "Tally") -> "Tally":
        """Add what another batch has."""
        right, asked = self.right + other.right, self.asked + other.asked
        if not (self.asked and other.asked):
            return Tally(right, asked, self.counts if self.asked else other.counts)
        a, b = self.counts, other.counts
        if a is None or b is None or a.shape != b.shape:
            return Tally(right, asked)
        return Tally(right, asked, a + b)

    @property
    def majority(self) -> float | None:
        """The share of targets that are the most frequent of their column."""
        if self.counts is None or not self.asked:
            return None
        return float(self.counts.max(0).values.sum()) / float(self.counts.sum())


def tally(given: "Answers", level: float | None) -> Tally:
    """Count the classes that the largest output names, or those on their side of a level."""
    target, leaves = given.batch.target, given.leaves()
    if not isinstance(target, Tensor) or not leaves:
        return Tally()
    if level is not None:
        return _sides(leaves[0], target, level)
    axis = class_axis(leaves[0], target)
    if axis is None or target.dtype == torch.bool:
        return Tally()
    classes = leaves[0].shape[axis]
    valid = (target >= 0) & (target < classes)
    hits = (leaves[0].argmax(axis) == target) & valid
    counts = torch.bincount(target[valid].flatten(), minlength=classes).unsqueeze(1)
    return Tally(int(hits.sum()), int(valid.sum()), counts.cpu())


def _sides(output: Tensor, target: Tensor, level: float) -> Tally:
    ones = target.reshape(output.shape) > 0.5
    hits = (output > level) == ones
    columns = ones.reshape(len(ones), -1)
    counts = torch.stack([columns.logical_not().sum(0), columns.sum(0)])
    return Tally(int(hits.sum()), hits.numel(), counts.cpu())


def threshold(problem: Problem, given: "Answers") -> float | None:
    """Find the output at which binary cross-entropy changes sides: 0 for logits, else 0.5.

    None for another loss. That one is known by its value there, log 2 whatever the target.
    """
    target, leaves = given.batch.target, given.leaves()
    if not isinstance(target, Tensor) or not target.is_floating_point() or len(leaves) != 1:
        return None
    if leaves[0].numel() != target.numel() or not ((target == 0) | (target == 1)).all():
        return None
    for level in (0.0, 0.5):
        with torch.no_grad():
            flat = given.with_leaves([torch.full_like(leaves[0], level)])
            terms = problem.loss(flat.output, flat.batch)
        found, weight = float(terms.total), float(terms.weight)
        if weight and math.isclose(found / weight, math.log(2), rel_tol=1e-4):
            several = level == 0 and leaves[0].ndim > 1 and leaves[0].shape[1] > 1
            return None if several and _by_differences(problem, given) else level
    return None


def _by_differences(problem: Problem, given: "Answers") -> bool:
    """Tell whether only differences of outputs count: cross-entropy of two classes is log 2 too."""
    with torch.no_grad():
        before, after = (
            float(problem.loss(a.output, a.batch).total)
            for a in (given, given.with_leaves([t + 1 for t in given.leaves()]))
        )
    return math.isclose(before, after, rel_tol=1e-4)


def class_axis(output: Tensor, target: Any) -> int | None:
    """Say along which axis the classes lie that an integer target counts; None for no such."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if output.ndim > 1 and target.shape == output.shape[:1] + output.shape[2:]:
        return 1
    return -1 if output.ndim > 1 and target.shape == output.shape[:-1] else None


def same(batches: Sequence[Batch]) -> bool | None:
    """Tell whether all targets are one: one class, or one row of numbers.

    None where there are none to look at. Negative classes are those that a loss leaves out.
    """
    first: Tensor | None = None
    for batch in batches:
        target = batch.target
        if not isinstance(target, Tensor) or not target.ndim or not len(target):
            return None
        entries = target if target.is_floating_point() else target[target >= 0].flatten()
        if not len(entries):
            continue
        first = entries[0] if first is None else first
        if entries.shape[1:] != first.shape or bool((entries != first).any()):
            return False
    return None if first is None else True
