"""What an exact diagonal costs: measured in seconds, or counted in floating-point operations."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from curvcli.curvature.diagonals import roots, units
from curvcli.curvature.diagonals.exact import ExactDiagonal
from curvcli.curvature.diagonals.one_hot import one_hot
from curvcli.curvature.diagonals.parts import Part
from curvcli.curvature.diagonals.squares import Pulled
from curvcli.problem import Problem

SMALL = 1e7
"""Operations that a product costs at least: what torch spends on calls, about 0.1 ms."""


def seconds(exact: ExactDiagonal) -> float:
    """Measure a few products of each part on the first batch, and scale to all."""
    problem, total = _first(exact.problem), 0.0
    with exact.engaged():
        for part in exact.parts:
            products, few = _few(exact, problem, part)
            few()  # the first products of a kind set up more than they compute
            start = time.perf_counter()
            few()
            total += (time.perf_counter() - start) / products * part.products
    return total * exact.problem.examples / problem.examples


def operations(exact: ExactDiagonal) -> float:
    """Count the floating-point operations of the matrix products, and SMALL for every product.

    A count and no time, so that the same inputs give the same answer.
    """
    problem, total = _first(exact.problem), 0.0
    with exact.engaged():
        for part in exact.parts:
            products, few = _few(exact, problem, part)
            with FlopCounterMode(display=False) as counter:
                few()
            each = counter.get_total_flops() / products * exact.problem.examples / problem.examples
            total += part.products * (each + SMALL * len(exact.problem.batches))
    return total


def _first(problem: Problem) -> Problem:
    first = replace(problem, batches=problem.batches[:1])
    _ = first.measure
    return first


def _few(exact: ExactDiagonal, problem: Problem, part: Part) -> tuple[int, Callable[[], object]]:
    """Prepare some products of a part on a batch: how many, and what takes them."""
    (batch,) = problem.batches
    few = torch.arange(min(4, part.products))
    if part.way == "one-hot":
        name = part.names[0]
        return len(few), lambda: one_hot(problem, {name: few}, exact.chunk)
    layers = {path: exact.layers[path] for path in part.layers}
    if part.way == "gauss-newton":
        total = {n: torch.zeros_like(problem.params[n]) for n in part.names}
        found = Pulled.of(problem, batch, roots.gauss_newton, layers)
        # A loss that is piecewise linear has none.
        return max(found.columns.count, 1), lambda: found.add(total, lambda products: None)
    use, g = exact.differentiated(problem, batch, part)
    if use is None or g is None:
        return 1, lambda: None
    rows = {n: use.a.new_zeros(use.channels, use.features[n].fan_in) for n in part.names}
    return len(few), lambda: units.WAYS[part.way](use, g, few, rows)
