"""A quadrature of the spectrum by Lanczos runs from random starts, or by forming a small matrix.

Cost: `steps` products a probe, n for a matrix that is formed; memory: a vector a step.
"""

import math
from collections.abc import Callable

import torch

from curvcli.linalg.averages import trace
from curvcli.linalg.basis import norm
from curvcli.linalg.dense import dense_matrix
from curvcli.linalg.krylov import Krylov
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.quadrature import Probe, Quadrature, Rule
from curvcli.linalg.ritz import Watch

DENSE = 2000
"""Up to this size a matrix is formed whole if that takes no more products than probes would."""

ROWS = 16
"""Rows of such a matrix that are multiplied together."""


def slq(
    A: LinearOperator,
    probes: int,
    steps: int,
    rng: torch.Generator,
    watch: Watch | None = None,
) -> Quadrature:
    """Integrate over the spectrum, from random starts or, if that is no dearer, over all of it.

    Ctrl-C leaves the probes that were finished, perhaps none.
    """
    counted = Counted(A)
    found: list[Probe] = []
    exact = whole(A.size, probes, steps)
    interrupted = False
    try:
        if exact:
            found.append(_whole(counted, watch))
        while not exact and len(found) < probes:
            found.append(_probe(counted, steps, rng, _ticker(counted, found, probes, steps, watch)))
    except KeyboardInterrupt:
        interrupted = True
    return Quadrature(A.size, tuple(found), exact, counted.matvecs, interrupted)


def whole(size: int, probes: int, steps: int) -> bool:
    """Decide whether a matrix is formed."""
    return size <= min(probes * steps, DENSE)


def _probe(A: Counted, steps: int, rng: torch.Generator, tick: Callable[[], None]) -> Probe:
    """Run Lanczos from a vector drawn uniformly from the sphere."""
    K = Krylov(A)
    run = K.start(rng)
    assert run is not None
    while len(K.Q) < min(steps, A.size) and run.remainder is not None:
        K.step(run)
        tick()
    m = len(K.Q)
    # A Krylov space that has closed holds all that its start has to tell.
    closed = run.remainder is None or m == A.size
    sizes = (m, m) if closed else (max(m - max(m // 4, 1), 1), max(m - 1, 1))
    _, S = K.ritz(m)
    return Probe(
        rule=_rule(K, m),
        residuals=K.residuals(S) + K.rounding,
        earlier=tuple(_rule(K, size) for size in sizes),
    )


def _rule(K: Krylov, size: int) -> Rule:
    """Take nodes and weights from the leading part of T [Golub and Welsch 1969]."""
    theta, S = K.ritz(size)
    return Rule(theta, S[0] ** 2)


def _whole(A: Counted, watch: Watch | None) -> Probe:
    """Multiply by every unit vector, and take the eigenvalues of what comes out."""
    n, M = A.size, dense_matrix(A, chunk=ROWS, watch=watch)
    theta = torch.linalg.eigvalsh((M + M.T) / 2)
    # Products are as far from those of a symmetric matrix as rounding takes them, at least.
    rounding = 4 * math.sqrt(max(n, 4)) * torch.finfo(A.like.dtype).eps * norm(theta)
    wrong = max(rounding, norm((M - M.T) / 2))
    rule = Rule(theta, torch.full_like(theta, 1 / n))
    return Probe(rule, torch.full_like(theta, wrong), (rule,))


def _ticker(
    A: Counted, found: list[Probe], probes: int, steps: int, watch: Watch | None
) -> Callable[[], None]:
    """Make what tells of every product, with the trace as the finished probes have it."""
    so_far = trace(Quadrature(A.size, tuple(found), False, 0, False)) if found else None
    known = (float(so_far.mean), float(so_far.stderr)) if so_far else (None, None)

    begun = A.matvecs

    def tick() -> None:
        if watch:
            watch(len(found) * steps + A.matvecs - begun, probes * steps, *known)

    return tick
