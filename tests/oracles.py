"""Matrices of prescribed spectrum, small models with dense Hessians, and what to hold against."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from curvcli.batches import Batch, arguments
from curvcli.curvature.compat import second_order
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(values: Sequence[float], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Build a symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, generator=rng(seed), dtype=torch.float64))[0]
    A: Tensor = (Q * torch.tensor(values, dtype=torch.float64)) @ Q.T
    return ((A + A.T) / 2).to(dtype)


def held_apart(centres: Tensor, radii: Tensor, points: Tensor) -> int:
    """Count how many of the intervals can be given a point of their own."""
    intervals = sorted((float(c + r), float(c - r)) for c, r in zip(centres, radii, strict=True))
    free = list(intervals)
    for point in sorted(points.tolist()):
        for interval in free:  # the first to end is served first
            if interval[1] <= point <= interval[0]:
                free.remove(interval)
                break
    return len(intervals) - len(free)


class Interrupting(LinearOperator):
    """A map whose k-th product is cut short by Ctrl-C."""

    def __init__(self, inner: LinearOperator, at: int) -> None:
        self.inner = inner
        self.like = inner.like
        self.left = at

    def matvec(self, v: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner.matvec(v)


def dense_hessian(problem: Problem) -> Tensor:
    """Differentiate L twice as a function of one vector, without anything that curv does for it."""
    layout = problem.layout

    def loss(theta: Tensor) -> Tensor:
        total = weight = torch.zeros((), dtype=theta.dtype)
        for batch in problem.batches:
            args, kwargs = arguments(batch.inputs)
            terms = problem.loss(
                functional_call(problem.model, layout.named(theta), args, kwargs), batch
            )
            total, weight = total + terms.total, weight + terms.weight
        return total / weight

    with problem.engaged(), second_order(problem.model):
        differentiate: Any = torch.autograd.functional.hessian
        H: Tensor = differentiate(loss, problem.vector())
    return H.detach()


def by_products(operator: LinearOperator) -> Tensor:
    """Multiply by every unit vector."""
    n = operator.size
    return torch.stack([operator.matvec(e) for e in torch.eye(n, dtype=operator.like.dtype)])


def gap(a: Tensor, b: Tensor) -> float:
    """Give the largest difference relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def cut(batch: Batch, sizes: Sequence[int]) -> tuple[Batch, ...]:
    """Cut a batch into batches of these sizes."""
    assert sum(sizes) == batch.size
    out, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        part = batch.map(lambda t, rows=rows: t[rows])  # type: ignore[misc]
        out.append(Batch(part.inputs, part.target, size))
        start += size
    return tuple(out)


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a float64 model from a seed, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def output_of(problem: Problem, batch: Batch, theta: Tensor) -> Tensor:
    """Evaluate the one tensor that a model returns, alone or in a dict."""
    args, kwargs = arguments(batch.inputs)
    found = functional_call(problem.model, problem.layout.named(theta), args, kwargs)
    output: Tensor = found if isinstance(found, Tensor) else next(iter(found.values()))
    return output


def dense_gauss_newton(problem: Problem) -> Tensor:
    """Put the loss's Hessian by the outputs between Jacobians that are held whole."""
    G = torch.zeros(problem.layout.size, problem.layout.size, dtype=torch.float64)
    differentiate: Any = torch.autograd.functional
    with problem.engaged(), second_order(problem.model):
        for batch in problem.batches:

            def outputs(theta: Tensor, batch: Batch = batch) -> Tensor:
                return output_of(problem, batch, theta)

            def share(output: Tensor, batch: Batch = batch) -> Tensor:
                return problem.loss(output, batch).total / problem.measure.weight

            f = outputs(problem.vector()).detach()
            J = differentiate.jacobian(outputs, problem.vector()).reshape(f.numel(), -1)
            H = differentiate.hessian(share, f).reshape(f.numel(), f.numel())
            G += J.T @ H @ J
    return G


def dense_empirical(
    problem: Problem, terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Add up w_i g_i g_i^T / sum_i w_i; `terms` gives l_i and w_i from an output and its target."""
    F = torch.zeros(problem.layout.size, problem.layout.size, dtype=torch.float64)
    total = 0.0
    with problem.engaged(), second_order(problem.model):
        for batch in problem.batches:
            theta = problem.vector().requires_grad_()
            values, weights = terms(output_of(problem, batch, theta), batch.target)
            for value, w in zip(values.flatten(), weights.flatten().tolist(), strict=True):
                (g,) = torch.autograd.grad(value, theta, retain_graph=True)
                F += w * torch.outer(g, g)
                total += w
    return F / total
