"""Diagonal blocks of curvature matrices: products with some parameters that cost only their paths.

From a kept graph, reverse mode computes what leads to the block alone: one of the last layer never
reaches the first. Measured, MLP 784-512-256-10, in products with the whole: first layer 0.65,
second 0.20, last 0.04.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from curvcli.curvature.jacobian import Pullback
from curvcli.curvature.products import ByBatch, Linearized, finite
from curvcli.linalg.operator import LinearOperator, Restricted
from curvcli.params import Layout
from curvcli.problem import Problem


def restricted(operator: LinearOperator, problem: Problem, names: Sequence[str]) -> LinearOperator:
    """Build the diagonal block of an operator's parameters, in the order of `names`.

    A product of a traced map, of differences or of a wrapped operator costs as much as a whole one.
    """
    layout = Layout.of({n: problem.params[n] for n in names})
    traced = isinstance(operator, Linearized)
    differenced = isinstance(operator, Pullback) and operator.step is not None
    if isinstance(operator, ByBatch) and not traced and not differenced:
        return Block(operator, layout)
    return Restricted(operator, _places(problem.layout, names))


class Block(LinearOperator):
    """The block of a sum over batches, by the paths between its own parameters."""

    def __init__(self, inner: ByBatch, layout: Layout) -> None:
        self.inner = inner
        self.layout = layout
        self.like = inner.like[: layout.size]

    def matvec(self, v: Tensor) -> Tensor:
        """Multiply by the block.

        Raises: CurvError (E_NONFINITE) where the product is not finite.
        """
        with self.inner.engaged():
            return finite(self.inner.along(v, self.layout))


def _places(layout: Layout, names: Sequence[str]) -> slice | Tensor:
    """Say where the parameters lie in the whole vector, as a slice if they lie together."""
    found = [layout.slices[n] for n in names]
    if all(a.stop == b.start for a, b in pairwise(found)):
        return slice(found[0].start, found[-1].stop)
    return torch.cat([torch.arange(s.start, s.stop) for s in found])
