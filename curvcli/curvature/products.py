"""Hessian-vector products, one operator per way to compute them.

Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147: H v is the derivative of the gradient along v.
Costs in gradients: graph kept 2, rebuilt 3 to 4, forward over reverse 3 to 4.5, linearized 2 after
tracing, central difference of gradients 2 with an error near eps^(2/3).
"""

import contextlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, jvp, linearize

from curvcli.batches import Batch
from curvcli.curvature.compat import WrittenOut, second_order
from curvcli.curvature.memory import held, spare
from curvcli.errors import CurvError
from curvcli.linalg.operator import LinearOperator, normal
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
            out = self.product(v)
        if not out.isfinite().all():
            raise CurvError(
                "E_NONFINITE",
                "a product with the Hessian is not finite",
                "the loss may have no second derivative here, as sqrt at 0 has none",
            )
        return out

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Multiply, with the model held."""

    def point(self) -> dict[str, Tensor]:
        """Give the parameters' values by name."""
        return {n: p.detach() for n, p in self.problem.params.items()}


class ByBatch(Products):
    """A product that is the sum of the products with every batch's share of L."""

    def product(self, v: Tensor) -> Tensor:
        """Add up the products of the batches."""
        out = torch.zeros_like(v)
        parts = self.layout.split(v)
        for index, batch in enumerate(self.problem.batches):
            product = self.share(index, batch, parts)
            if product is not None:
                out += self.layout.flatten(p.detach() for p in product)
        return out

    @abstractmethod
    def share(self, index: int, batch: Batch, v: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Multiply by the Hessian of one batch's share of L; None stands for zero."""


class _Graph:
    """The gradient of one batch's share with its graph, to be differentiated again."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        self.params = tuple(problem.params.values())
        grads = problem.gradients(batch, create_graph=True)
        # A gradient that does not depend on the parameters has no graph, and nothing to add.
        self.live = [i for i, g in enumerate(grads) if g.requires_grad]
        self.grads = [grads[i] for i in self.live]

    def product(self, v: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, ...] | None:
        if not self.live:
            return None
        return torch.autograd.grad(
            self.grads,
            self.params,
            grad_outputs=[v[i] for i in self.live],
            retain_graph=keep,
            allow_unused=True,
            materialize_grads=True,
        )


class Kept(ByBatch):
    """Reverse over reverse; the graphs of as many batches as `memory` bytes hold are kept."""

    method = "kept"

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        super().__init__(problem)
        self.graphs: dict[int, _Graph] = {}
        with self.engaged():
            largest = max(problem.batches, key=lambda b: b.size)
            self.bytes_per_batch = held(lambda: _Graph(problem, largest), self.like.device)
            room = spare(self.like.device) if memory is None else memory
            fits = int(min(room // max(self.bytes_per_batch, 1), len(problem.batches)))
            for index in range(fits):
                self.graphs[index] = _Graph(problem, problem.batches[index])

    def share(self, index: int, batch: Batch, v: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
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

    def share(self, index: int, batch: Batch, v: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Push the direction through the gradient."""
        direction = dict(zip(self.layout.names, v, strict=True))
        with _forward_mode():
            out: dict[str, Tensor] = jvp(
                grad(_loss_of(self.problem, batch)), (self.point(),), (direction,)
            )[1]
        return tuple(out[n] for n in self.layout.names)


class Linearized(ByBatch):
    """Forward over reverse traced once per batch: fast products after seconds of tracing."""

    method = "linearize"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        with self.engaged(), _forward_mode():
            self.maps = [
                linearize(grad(_loss_of(problem, b)), self.point())[1] for b in problem.batches
            ]

    def share(self, index: int, batch: Batch, v: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Apply the traced map."""
        out: dict[str, Tensor] = self.maps[index](dict(zip(self.layout.names, v, strict=True)))
        return tuple(out[n] for n in self.layout.names)


class Differences(Products):
    """Central differences of gradients: needs first derivatives only, good to eps^(2/3) or so."""

    method = "differences"

    def __init__(self, problem: Problem, step: float | None = None) -> None:
        super().__init__(problem)
        self.scale = float(problem.vector().norm()) or 1.0
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
        theta = self.problem.vector()
        return (self._gradient(theta + h * v) - self._gradient(theta - h * v)) / (2 * h)

    def _gradient(self, theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        with self.problem.displaced(self.layout.named(theta)):
            for batch in self.problem.batches:
                total += self.layout.flatten(self.problem.gradients(batch))
        return total
