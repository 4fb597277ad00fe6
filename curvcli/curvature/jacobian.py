"""Matrices J^T M J: J the derivative of a model's outputs by its parameters, M a map of outputs.

By reverse mode alone: J^T u is linear in u, so that J v is its derivative by u, along v. The graphs
of both are kept. Costs in gradients, measured (MLP 784-512-256-10, small GPT): graph kept 1.2 and
1.6, rebuilt 2.2 and 2.9. Forward mode is no help: it takes 2.1 and 3.1, and torch lacks it for the
same functions that it cannot differentiate twice. There J v is a difference of outputs.
"""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, arguments
from curvcli.curvature.closed import ClosedForms
from curvcli.curvature.memory import fitting
from curvcli.curvature.products import ByBatch, Named
from curvcli.derivatives import derivatives, optional_derivatives
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

Map = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From tangents of some tensors to their cotangents."""

PROBE_EXAMPLES = 16
AGREE = 1e-3
"""Relative gap between u^T (J v) and (J^T u)^T v up to which J counts as right."""


class Jacobian:
    """The derivative of tensors by leaves of their graph, as a map there and back.

    `live` are the leaves that the tensors depend on; tangents and cotangents are of those alone.
    """

    def __init__(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        self.dummies = [torch.zeros_like(t, requires_grad=True) for t in outputs]
        rows: Sequence[Tensor | None] = ()  # J^T u
        if outputs and leaves:
            rows = optional_derivatives(outputs, leaves, self.dummies, create_graph=True)
        reached = {i: g for i, g in enumerate(rows) if g is not None}
        self.live = list(reached)
        self.leaves = [leaves[i] for i in reached]
        # Only the graphs are wanted. The values of J^T u, zeros, are as large as the leaves.
        self.rows = {
            k: get_gradient_edge(g) for k, g in enumerate(reached.values()) if g.requires_grad
        }
        self.outputs = [get_gradient_edge(t) for t in outputs]

    def push(self, tangents: Sequence[Tensor | None], keep: bool = True) -> tuple[Tensor, ...]:
        """Multiply: tangents of the live leaves, None for zero, to those of the outputs."""
        along = {k: t for k, t in enumerate(tangents) if t is not None and k in self.rows}
        return _grad([self.rows[k] for k in along], self.dummies, list(along.values()), keep)

    def pull(
        self, cotangents: Sequence[Tensor], keep: bool = True, among: Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """Multiply by the transpose: cotangents of the outputs to those of the live leaves.

        Of `among` alone, where it is given.
        """
        leaves = self.leaves if among is None else [self.leaves[k] for k in among]
        return _grad(self.outputs, leaves, cotangents, keep)

    def constant(self) -> bool:
        """Tell whether the outputs are linear functions of the leaves."""
        if not self.rows:
            return True
        rows, by = list(self.rows.values()), self.leaves
        ones = [by[k].new_ones(()).expand_as(by[k]) for k in self.rows]
        again = torch.autograd.grad(rows, by, ones, retain_graph=True, allow_unused=True)
        return all(g is None for g in again)


class Differenced:
    """The same map for a model's outputs, with J v as a central difference of them."""

    def __init__(
        self, problem: Problem, batch: Batch, outputs: "Outputs", chosen: list[int], step: float
    ) -> None:
        self.problem, self.batch, self.chosen = problem, batch, chosen
        self.outputs = [outputs.tensors[i] for i in chosen]
        self.leaves = list(problem.params.values())
        self.live = list(range(len(self.leaves)))
        self.step = step  # relative to theta's size

    def push(self, tangents: Sequence[Tensor | None], keep: bool = False) -> tuple[Tensor, ...]:
        """Evaluate the outputs at either side of theta."""
        theta = [p.detach() for p in self.leaves]
        along = {k: t for k, t in enumerate(tangents) if t is not None}
        h = self.step * (_norm(theta) or 1.0) / (_norm(list(along.values())) or 1.0)
        ends = []
        for by in (h, -h):
            moved = {self.problem.names[k]: theta[k] + by * t for k, t in along.items()}
            with self.problem.displaced(moved):
                tensors = Outputs(self.problem, self.batch).tensors
            ends.append([tensors[i].detach() for i in self.chosen])
        return tuple((a - b) / (2 * h) for a, b in zip(*ends, strict=True))

    def pull(
        self, cotangents: Sequence[Tensor], keep: bool = False, among: Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """Differentiate the outputs, once."""
        leaves = self.leaves if among is None else [self.leaves[k] for k in among]
        return derivatives(self.outputs, leaves, cotangents)


class Outputs:
    """What a model returns for a batch: its tensors that need a gradient, also as leaves.

    `given` is the output with the leaves in place, for the loss: one of a model's outputs may be a
    function of another, and the loss is differentiated by each for itself.
    """

    def __init__(self, problem: Problem, batch: Batch) -> None:
        if problem.penalty is not None:
            raise CurvError("E_LOSS", "a penalty is no function of a model's outputs")
        args, kwargs = arguments(batch.inputs)
        with problem.replaying():
            output = problem.model(*args, **kwargs)
        flat, tree = pytree.tree_flatten(output)
        if not any(isinstance(t, Tensor) for t in flat):
            raise CurvError(
                "E_MODEL",
                f"the model returns a {type(output).__name__}, in which no tensors are found",
                "return a tensor, or tuples, lists and dicts of tensors",
            )
        live = {i: t for i, t in enumerate(flat) if _differentiable(t)}
        self.tensors = list(live.values())
        leaves = {i: t.detach().requires_grad_() for i, t in live.items()}
        self.leaves = list(leaves.values())
        self.given = pytree.tree_unflatten([leaves.get(i, t) for i, t in enumerate(flat)], tree)


class Graph:
    """One batch's outputs as functions of the parameters, and the map between J and J^T."""

    def __init__(self, operator: "Pullback", index: int, batch: Batch) -> None:
        outputs = Outputs(operator.problem, batch)
        chosen, self.middle = operator.form(index, batch, outputs)
        self.shapes = [outputs.leaves[i].detach() for i in chosen]
        self.jacobian: Jacobian | Differenced | None = None
        self.names = operator.problem.names
        if chosen and operator.step is None:
            params = tuple(operator.problem.params.values())
            self.jacobian = Jacobian([outputs.tensors[i] for i in chosen], params)
        elif chosen and operator.step is not None:
            self.jacobian = Differenced(operator.problem, batch, outputs, chosen, operator.step)

    def product(self, v: Named, keep: bool) -> Named | None:
        """Multiply by the batch's share; None stands for zero."""
        J = self.jacobian
        if J is None:
            return None
        live = [self.names[i] for i in J.live]
        among = {n: k for k, n in enumerate(live) if n in v}
        if not among:
            return None
        z = self.middle(J.push([v.get(n) for n in live], keep))
        found = dict(zip(among, J.pull(z, keep, list(among.values())), strict=True))
        return {n: found[n] if n in found else torch.zeros_like(t) for n, t in v.items()}

    def gap(self) -> float:
        """Give the relative gap between u^T (J v) and (J^T u)^T v, for a random u and v = J^T u."""
        J, rng = self.jacobian, torch.Generator().manual_seed(0)
        if J is None:
            return 0.0
        u = [normal(t, rng) for t in self.shapes]
        v = J.pull(u)
        size = _dot(v, v)
        return abs(_dot(u, J.push(v)) - size) / size if size else 0.0


class Pullback(ByBatch):
    """J^T M J of a problem, batch by batch, with the weights that the terms have in L.

    The graphs of as many batches as `memory` bytes hold are kept. J is held against J^T on a few
    examples first; where it is wrong or cannot be had, `notes` say so, and J v is a difference of
    outputs with the relative step `step`.
    """

    method = "kept"

    def __init__(self, problem: Problem, memory: float | None = None) -> None:
        super().__init__(problem)
        self.graphs: dict[int, Graph] = {}
        self.bytes_per_batch = 0
        self.step: float | None = None
        self.notes: tuple[str, ...] = ()
        with self.engaged():
            self._settle()
            if self.step is None:
                self.graphs, self.bytes_per_batch = fitting(
                    lambda index: Graph(self, index, problem.batches[index]),
                    [batch.size for batch in problem.batches],
                    memory,
                    self.like.device,
                )

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Hold the model, and compute by closed forms."""
        # Not activations: what J v takes of their second derivative is one pass over memory.
        with super().engaged(), ClosedForms(smooth=()):
            yield

    @abstractmethod
    def form(self, index: int, batch: Batch, outputs: Outputs) -> tuple[list[int], Map]:
        """Say which of the outputs' leaves count, and what maps their tangents to cotangents.

        Raises: CurvError (E_LOSS) for a loss that has no such map.
        """

    def share(self, index: int, batch: Batch, v: Named) -> Named | None:
        """Multiply by one batch's share, with its kept graph or one built for this product."""
        graph = self.graphs.get(index)
        if graph is not None:
            return graph.product(v, keep=True)
        return Graph(self, index, batch).product(v, keep=False)

    def _settle(self) -> None:
        few = self.problem.sampled(PROBE_EXAMPLES, torch.Generator().manual_seed(0)).batches[0]
        eps = torch.finfo(self.like.dtype).eps
        try:
            gap = Graph(self, 0, few).gap()
            wrong = not gap <= max(AGREE, 10 * eps)
            why = f"it is off by {gap:.1e} from the transpose of J^T" if wrong else ""
        except RuntimeError as error:
            said = str(error).strip().partition("\n")[0].partition(". ")[0]
            why = said[:160] or type(error).__name__
        if not why:
            return
        # eps^(1/3) suits outputs that vary on the scale of theta; sharp ones vary faster.
        gaps = {}
        for k in range(4):
            self.step = math.cbrt(eps) * 10.0**-k
            gaps[self.step] = Graph(self, 0, few).gap()
        self.step = min(gaps, key=lambda s: (math.isnan(gaps[s]), gaps[s]))
        self.notes = (
            f"J v not by reverse mode: {why}",
            f"J v is a difference of outputs, good to about {gaps[self.step]:.0e}",
        )


def _grad(roots: Any, by: Sequence[Tensor], along: Any, keep: bool) -> tuple[Tensor, ...]:
    if not roots:
        return tuple(torch.zeros_like(t, requires_grad=False) for t in by)
    return torch.autograd.grad(
        roots, by, along, retain_graph=keep, allow_unused=True, materialize_grads=True
    )


def _differentiable(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _norm(a: Sequence[Tensor]) -> float:
    return math.sqrt(_dot(a, a))
