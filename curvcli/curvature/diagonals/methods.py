"""Diagonals by name, in one form: entries, how each tensor's came about, errors and cost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from curvcli.curvature.diagonals import roots
from curvcli.curvature.diagonals.becker_lecun import BeckerLeCunDiagonal
from curvcli.curvature.diagonals.exact import ExactDiagonal
from curvcli.curvature.diagonals.squares import SquaresDiagonal
from curvcli.curvature.hessian import TITLES, Chosen, hessian
from curvcli.curvature.memory import spare
from curvcli.errors import CurvError
from curvcli.linalg.dense import dense_matrix
from curvcli.linalg.diagonal import DiagonalEstimate, hutchinson_diagonal
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probing import Spread
from curvcli.linalg.xdiag import xdiag
from curvcli.params import Layout
from curvcli.problem import Problem
from curvcli.work import Watch, Work

Method = Literal["exact", "hutchinson", "xdiag", "ggn", "empirical-fisher", "becker-lecun"]

TITLE: dict[Method, str] = {
    "exact": "the Hessian's diagonal",
    "hutchinson": "the Hessian's diagonal, estimated",
    "xdiag": "the Hessian's diagonal, estimated",
    "ggn": "the Gauss-Newton matrix's diagonal",
    "empirical-fisher": "the empirical Fisher matrix's diagonal",
    "becker-lecun": "the Hessian's diagonal without off-diagonal terms in back-propagation",
}


@dataclass(frozen=True)
class Diagonal:
    """The tensors that are complete, by name.

    ways:     how each was computed
    stderr:   the standard errors of entries, where they are estimates
    blocks:   those of each tensor's trace; `trace` is the trace's of the whole
    products: for each pass over the data
    """

    entries: dict[str, Tensor]
    ways: dict[str, str]
    products: int
    stderr: dict[str, Tensor] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)
    trace: Spread | None = None
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def by_method(method: Method, problem: Problem, work: Work, probes: int) -> Diagonal:
    """Compute the diagonal of that name.

    Raises: CurvError where the method is not for this model or loss.
    """
    if method == "exact":
        return by_parts(ExactDiagonal(problem, work.memory), work)
    if method in ("hutchinson", "xdiag"):
        return estimated(method, problem, work, probes)
    return _approximated(method, problem, work)


def by_parts(exact: ExactDiagonal, work: Work) -> Diagonal:
    """Compute the exact diagonal; Ctrl-C leaves the tensors that are complete."""
    watch = work.announce("exact diagonal")
    products = sum(p.products for p in exact.parts)
    entries: dict[str, Tensor] = {}
    ways: dict[str, str] = {}
    count, trace, interrupted = 0, None, False

    def tick(more: int) -> None:
        nonlocal count
        count += more
        watch(count, products * len(exact.problem.batches), trace, None)

    try:
        for part in exact.parts:
            for name, found in exact.compute(part, tick).items():
                entries[name], ways[name] = found.diagonal, found.way
            trace = sum(float(d.double().sum()) for d in entries.values())
    except KeyboardInterrupt:
        interrupted = True
    entries = {n: entries[n] for n in exact.problem.names if n in entries}
    return Diagonal(entries, ways, products, interrupted=interrupted)


SMALLEST = 8
"""Entries up to which probes may coincide, and tell of no error: each has its own product."""


def estimated(method: Method, problem: Problem, work: Work, probes: int) -> Diagonal:
    """Estimate the Hessian's diagonal from random probes, with standard errors.

    Raises: CurvError (E_MEMORY) where what XDiag holds does not fit.
    """
    chosen = hessian(problem, work)
    layout, A = problem.layout, chosen.operator
    if A.size <= SMALLEST:
        return _one_by_one(chosen, layout)
    by: Callable[..., DiagonalEstimate] = hutchinson_diagonal
    if method == "xdiag":
        by, probes = xdiag, _held(A, work, probes)
    watch: Watch = work.announce("trace by probes")
    found = by(A, probes, work.rng, [*layout.slices.values()], watch)
    notes = [f"products by {TITLES[chosen.method]}", *chosen.notes]
    if found.interrupted and method == "xdiag":
        notes.append("interrupted, so Hutchinson's estimate from the products that there are")
        method = "hutchinson"
    if found.probes == 0:
        return Diagonal({}, {}, 0, notes=tuple(notes), interrupted=True)
    return Diagonal(
        entries=layout.named(found.mean),
        ways=dict.fromkeys(layout.names, method),
        products=found.matvecs,
        stderr=layout.named(found.stderr),
        blocks={n: found.block(i)[1] for i, n in enumerate(layout.names)},
        trace=found.trace(),
        notes=tuple(notes),
        interrupted=found.interrupted,
    )


def _one_by_one(chosen: Chosen, layout: Layout) -> Diagonal:
    """Take every entry by its own product."""
    entries = dense_matrix(chosen.operator).diagonal().to(chosen.operator.like.device)
    return Diagonal(
        entries=layout.named(entries),
        ways=dict.fromkeys(layout.names, "one-hot"),
        products=layout.size,
        stderr=layout.named(torch.zeros_like(entries)),
        blocks=dict.fromkeys(layout.names, 0.0),
        trace=(float(entries.sum()), 0.0),
        notes=(f"products by {TITLES[chosen.method]}", *chosen.notes),
    )


def _held(A: LinearOperator, work: Work, probes: int) -> int:
    """Limit XDiag's probes to what differs, and to what fits in memory."""
    probes = min(probes, max(A.size // 2, 1))
    size = 5 * 8 * probes * A.size
    room = spare(A.like.device) if work.memory is None else work.memory
    if size > room:
        raise CurvError(
            "E_MEMORY",
            f"xdiag holds five vectors for each of {probes} probes, {size / 1e9:.1f} GB",
            "use fewer --probes, raise --memory, or use --method hutchinson",
        )
    return probes


def _approximated(method: Method, problem: Problem, work: Work) -> Diagonal:
    watch = work.announce(TITLE[method])
    count = 0

    def tick(more: int) -> None:
        nonlocal count
        count += more
        watch(count, None, None, None)

    which: SquaresDiagonal | BeckerLeCunDiagonal
    if method == "becker-lecun":
        which = BeckerLeCunDiagonal(problem)
    else:
        which = SquaresDiagonal(problem, roots.gauss_newton if method == "ggn" else roots.scores)
    try:
        entries = which.compute(tick)
    except KeyboardInterrupt:
        return Diagonal({}, {}, which.products, interrupted=True)
    ways: dict[str, str] = dict.fromkeys(entries, method)
    return Diagonal({n: d.detach() for n, d in entries.items()}, ways, which.products)


def compared(found: Tensor, truth: Tensor) -> tuple[float | None, float | None, float | None]:
    """Hold a diagonal against the exact one: error in norm, correlation, and error of the trace.

    Errors are relative to the exact; None where that is zero, or where nothing varies.
    """
    a, b = found.double().reshape(-1), truth.double().reshape(-1)
    norm, trace = float(b.norm()), float(b.sum())
    error = float((a - b).norm()) / norm if norm else None
    x, y = a - a.mean(), b - b.mean()
    size = float(x.norm() * y.norm())
    correlation = float(x @ y) / size if size > 0 else None
    return error, correlation, (float(a.sum()) - trace) / abs(trace) if trace else None


def flat(entries: dict[str, Tensor]) -> Tensor:
    """Join the entries of all tensors."""
    return torch.cat([d.reshape(-1).double() for d in entries.values()])
