"""Hessian-vector products, one operator per way to compute them.

Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147: H v is the derivative of the gradient along v.
Costs in gradients: graph kept 2, rebuilt 3 to 4, forward over reverse 3 to 4.5, linearized 2 after
tracing, central difference of gradients 2 with an error near eps^(2/3).
"""

import contextlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.func import grad, jvp, linearize

from curvcli.batches import Batch
from curvcli.curvature.closed import ClosedForms
from curvcli.curvature.compat import WrittenOut, second_order
from curvcli.curvature.memory import fitting
from curvcli.errors import CurvError
from curvcli.linalg.operator import LinearOperator, normal
from curvcli.params import Layout
from curvcli.problem import Problem


class Products(LinearOperator):
    """The Hessian of a problem's L, by one method; batches are summed in the parameters' dtype."""

    method: ClassVar[str]

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layout = problem.layout
        self.like = problem.like
        _ = problem.measure  # now, since it cannot be taken within a functional transform

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model so that it can be differentiated twice."""
        with self.problem.engaged(), second_order(self.problem.model):
            yield

    def matvec(self, v: Tensor) -> Tensor:
        """Multiply: v (n,) to the product (n,).

        Raises: CurvError (E_NONFINITE) where the product is not finite.
        """
        with self.engaged():
            return finite(self.product(v))

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Multiply, with the model held."""

    def point(self) -> dict[str, Tensor]:
        """Give the parameters' values by name."""
        return {n: p.detach() for n, p in self.problem.params.items()}


def finite(product: Tensor) -> Tensor:
    """Hand a product on.

    Raises: CurvError (E_NONFINITE) where it is not finite.
    """
    # The sum takes one pass, and tells unless it overflows.
    if not product.sum().isfinite() and not product.isfinite().all():
        raise CurvError(
            "E_NONFINITE",
            "a product with the Hessian is not finite",
            "the loss may have no second derivative here, as sqrt at 0 has none",
        )
    return product


Named = Mapping[str, Tensor]
"""Tangents, or cotangents, of parameters by name; what is not named is zero, or not wanted."""


class ByBatch(Products):
    """A product that is the sum of the products with every batch's share of L."""

    def product(self, v: Tensor) -> Tensor:
        """Add up the products of the batches."""
        return self.along(v, self.layout)

    def along(self, v: Tensor, layout: Layout) -> Tensor:
        """Multiply by the diagonal block of the parameters that `layout` (m,) names."""
        parts = layout.named(v)
        total: Tensor | None = None
        for index, batch in enumerate(self.problem.batches):
            share = self.share(index, batch, parts)
            if share is not None:
                flat = layout.flatten(share[n].detach() for n in layout.names)
                total = flat if total is None else total.add_(flat)
        return torch.zeros_like(v) if total is None else total

    @abstractmethod
    def share(self, index: int, batch: Batch, v: Named) -> Named | None:
        """Multiply by one batch's share of the block that `v` names; None stands for zero."""


class _Graph:
    """The gradient of one batch's share with its graph, to be differentiated again."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self.params = problem.params
        grads = dict(zip(problem.names, problem.gradients(batch, create_graph=True), strict=True))
        # Only the graph is wanted, the values are as large as theta. A gradient that does not
        # depend on the parameters has no graph, and nothing to add.
        self.roots = {n: get_gradient_edge(g) for n, g in grads.items() if g.requires_grad}

    def product(self, v: Named, keep: bool) -> Named | None:
        live = [n for n in v if n in self.roots]
        if not live:
            return None
        found = torch.autograd.grad(
            [self.roots[n] for n in live],
            [self.params[n] for n in v],
            grad_outputs=[v[n] for n in live],
            retain_graph=keep,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(v, found, strict=True))


class Kept(ByBatch):
    """Reverse over reverse; the graphs of as many batches as `memory` bytes hold are kept."""

    method = "kept"

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        super().__init__(problem)
        with self.engaged():
            self.graphs, self.bytes_per_batch = fitting(
                lambda index: _Graph(problem, problem.batches[index]),
                [batch.size for batch in problem.batches],
                memory,
                self.like.device,
            )

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model, and compute by closed forms."""
        with super().engaged(), ClosedForms():
            yield

    def share(self, index: int, batch: Batch, v: Named) -> Named | None:
        """Differentiate the kept graph, or one that is built for this product."""
        graph = self.graphs.get(index)
        if graph is not None:
            return graph.product(v, keep=True)
        return _Graph(self.problem, batch).product(v, keep=False)


class Rebuilt(Kept):
    """Reverse over reverse; every graph is built anew for every product."""

    method = "rebuilt"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, memory=0)


def _loss_of(problem: Problem, batch: Batch) -> Callable[[dict[str, Tensor]], Tensor]:
    """Give a batch's share of L as a function of the parameters."""
    return lambda values: problem.share(batch, values)


@contextlib.contextmanager
def _forward_mode() -> Iterator[None]:
    """Silence what torch's forward mode and tracer say of their own inner workings, and mend it."""
    with warnings.catch_warnings(), WrittenOut():
        warnings.simplefilter("ignore")
        yield


class Forward(ByBatch):
    """Forward over reverse: the gradient's own directional derivative."""

    method = "forward"

    def share(self, index: int, batch: Batch, v: Named) -> Named | None:
        """Push the direction through the gradient."""
        point = {n: p for n, p in self.point().items() if n in v}
        with _forward_mode():
            out: dict[str, Tensor] = jvp(
                grad(_loss_of(self.problem, batch)), (point,), ({n: v[n] for n in point},)
            )[1]
        return out


class Linearized(ByBatch):
    """Forward over reverse traced once per batch: fast products after seconds of tracing."""

    method = "linearize"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        with self.engaged(), _forward_mode():
            self.maps = [
                linearize(grad(_loss_of(problem, b)), self.point())[1] for b in problem.batches
            ]

    def share(self, index: int, batch: Batch, v: Named) -> Named | None:
        """Apply the traced map."""
        whole = {n: v[n] if n in v else torch.zeros_like(p) for n, p in self.point().items()}
        out: dict[str, Tensor] = self.maps[index](whole)
        return out


class Differences(Products):
    """Central differences of gradients: needs first derivatives only, good to eps^(2/3) or so."""

    method = "differences"

    def __init__(self, problem: Problem, step: float | None = None) -> None:
        super().__init__(problem)
        self.scale = math.hypot(*(float(p.norm()) for p in self.point().values())) or 1.0
        self.step = self._calibrated() if step is None else step  # relative to theta's size

    def _calibrated(self) -> float:
        """Choose the step at which a smaller one changes a product least: 8 gradients."""
        # eps^(1/3) balances rounding, eps / h, against truncation, h^2, for a loss that varies on
        # the scale of theta; a sharp one varies faster.
        first = math.cbrt(torch.finfo(self.like.dtype).eps)
        v = normal(self.like, torch.Generator().manual_seed(0))
        steps = [first * 10.0**-k for k in range(4)]
        with self.engaged():
            products = [self._difference(v, step) for step in steps]
        changes = [float((b - a).norm()) for a, b in pairwise(products)]
        least = changes.index(min(changes))
        # Of the two steps that agree best, the larger has less rounding, the smaller less of the
        # truncation that the first step of all is likely to show.
        return steps[least + 1] if least else steps[0]

    def product(self, v: Tensor) -> Tensor:
        """Difference the gradient at either side of theta along v."""
        return self._difference(v, self.step)

    def _difference(self, v: Tensor, step: float) -> Tensor:
        norm = float(v.norm())
        if norm == 0:
            return torch.zeros_like(v)
        h = step * self.scale / norm
        ahead, behind = self._gradient(v, h), self._gradient(v, -h)
        return ahead.sub_(behind).div_(2 * h)

    def _gradient(self, v: Tensor, h: float) -> Tensor:
        """Differentiate at theta + h v."""
        parts = self.layout.named(v)
        moved = {n: p.add(parts[n], alpha=h) for n, p in self.point().items()}
        total: Tensor | None = None
        with self.problem.displaced(moved):
            for batch in self.problem.batches:
                flat = self.layout.flatten(g.detach() for g in self.problem.gradients(batch))
                total = flat if total is None else total.add_(flat)
        return torch.zeros_like(v) if total is None else total
