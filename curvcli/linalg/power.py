"""Eigenpairs by power iteration with deflation: the slow classic, with the same certificate.

von Mises and Pollaczek-Geiringer 1929; deflation as in Parlett 1998, section 5.1. Cost: the number
of products grows like log(1/tolerance) / log(|lambda_i / lambda_(i+1)|) for every pair; memory:
one vector a pair. It is there to compare with; Lanczos needs a fraction of its products.
"""

import torch
from torch import Tensor

from curvcli.linalg.basis import Basis, norm
from curvcli.linalg.lanczos import Krylov, Run, certified, lanczos
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import (
    DOUBT,
    FLOOR,
    Ritz,
    Status,
    Watch,
    Which,
    beyond,
    missed,
    small,
)


class Deflated(LinearOperator):
    """The compression of a map to the complement of a basis."""

    def __init__(self, inner: LinearOperator, basis: Basis) -> None:
        self.inner = inner
        self.basis = basis
        self.like = inner.like

    def matvec(self, v: Tensor) -> Tensor:
        """Apply the map between two projections."""
        return self._project(self.inner.matvec(self._project(v)))

    def _project(self, v: Tensor) -> Tensor:
        w = v.double()
        self.basis.remove(w)
        return w.to(v.dtype)


def power(
    A: LinearOperator,
    top: int,
    tolerance: float,
    rng: torch.Generator,
    *,
    which: Which = "magnitude",
    max_matvecs: int = 1000,
    watch: Watch | None = None,
) -> Ritz:
    """Find eigenpairs, largest in size first, until `top` of them are of the kind asked for.

    `largest` and `smallest` pass over eigenvalues of the other sign; their vectors deflate too.
    The vectors found span the space from which the pairs are taken, since the error of an early
    one would else spoil all that follow. Missed ones are searched for by Lanczos in the complement.
    """
    counted = Counted(A)
    K = Krylov(counted)
    status: Status = "max_matvecs"
    doubt = 1.0
    try:
        while counted.matvecs < max_matvecs - 1 and not _enough(K, top, which):
            run = K.start(rng)
            if run is None:
                break
            _sharpen(K, run, tolerance / 2, max_matvecs - 1, watch)
            K.step(run)
        if _enough(K, top, which) and _small(K, top, which, tolerance):
            doubt = _doubt(K, top, which, rng, max_matvecs - 1)
            status = "converged" if doubt <= DOUBT else "unverified"
    except KeyboardInterrupt:
        status = "interrupted"
    return certified(K, *_pairs(K, top, which), doubt, status, tolerance)


def _sharpen(K: Krylov, run: Run, tolerance: float, max_matvecs: int, watch: Watch | None) -> None:
    """Iterate in the complement of the basis until the vector stands still in it."""
    A: Counted = K.A
    largest = K.norm
    while A.matvecs < max_matvecs - 1:  # one product is kept for the step that follows
        y = run.remainder
        assert y is not None
        product = A.matvec(y.to(A.like.dtype)).double()
        K.Q.remove(product)
        theta = float(product @ y)
        residual = norm(product - theta * y)
        largest = max(largest, abs(theta))
        if watch:
            watch(A.matvecs, None, theta, residual)
        noise = 8 * torch.finfo(A.like.dtype).eps * largest
        if residual <= max(tolerance * max(abs(theta), FLOOR * largest), noise):
            return
        run.remainder = product / norm(product)


def _pairs(K: Krylov, top: int, which: Which) -> tuple[Tensor, Tensor]:
    """Give the values found (k,) of the kind asked for, most wanted first, and their coefficients.

    A value that is zero to rounding is of either kind.
    """
    theta, S = K.ritz(len(K.H))
    if which == "magnitude":
        chosen = sorted(range(len(theta)), key=lambda i: -abs(float(theta[i])))
    else:
        sign = 1 if which == "largest" else -1
        chosen = [i for i in range(len(theta)) if sign * theta[i] >= -K.rounding]
        chosen.sort(key=lambda i: -sign * float(theta[i]))
    return theta[chosen[:top]], S[:, chosen[:top]]


def _enough(K: Krylov, top: int, which: Which) -> bool:
    return len(K.Q) >= K.A.size or len(_pairs(K, top, which)[0]) >= top


def _small(K: Krylov, top: int, which: Which, tolerance: float) -> bool:
    theta, S = _pairs(K, top, which)
    found = K.residuals(S)
    return small(found, theta, K.norm, tolerance) or bool((found <= K.rounding).all())


def _doubt(K: Krylov, top: int, which: Which, rng: torch.Generator, max_matvecs: int) -> float:
    """Bound the probability that the complement of what was found holds a wanted value."""
    n = K.A.size
    if len(K.Q) >= n:
        return 0.0
    theta, _ = K.ritz(len(K.H))
    low, high = beyond(theta, min(top, len(theta)), which, K.norm)
    doubt = 1.0
    for steps in (6, 12, 24):
        if K.A.matvecs + steps + 1 > max_matvecs:
            break
        space = Deflated(K.A, K.Q)
        ends = lanczos(space, 1, 0.0, rng, which="both", max_matvecs=steps + 1)
        top_end, low_end = float(ends.values[0]), float(ends.values[-1])
        up = missed(steps, n, high, top_end, min(low_end, float(theta[0])))
        down = missed(steps, n, low, low_end, max(top_end, float(theta[-1])))
        doubt = min(1.0, up + down)
        if doubt <= DOUBT or top_end > high or low_end < low:
            break
    return doubt
