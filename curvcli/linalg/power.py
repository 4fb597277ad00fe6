"""Eigenpairs by power iteration with deflation: the slow classic, with the same certificate.

von Mises and Pollaczek-Geiringer 1929; deflation as in Parlett 1998, section 5.1. Cost: the number
of products grows like log(1/tolerance) / log(|lambda_i / lambda_(i+1)|) for every pair; memory:
one vector a pair. It is there to compare with; Lanczos needs a fraction of its products.
"""

import torch
from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.certificate import certified
from curvcli.linalg.krylov import Krylov, Run
from curvcli.linalg.missed import Hunt, levels
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import DOUBT, FLOOR, Ritz, Status, Watch, Which, small

STEPS = 40
"""Products after which the search for missed ones ends."""


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
    doubt, found = 1.0, 0
    try:
        while counted.matvecs < max_matvecs - 1 and not _enough(K, top, which):
            run = K.start(rng)
            if run is None:
                break
            _sharpen(K, run, tolerance / 2, max_matvecs - 1, watch)
            K.step(run)
            found = len(K.H)
        if _enough(K, top, which) and _small(K, top, which, tolerance):
            doubt = _doubt(K, top, which, rng, max_matvecs - 1)
            status = "converged" if doubt <= DOUBT else "unverified"
    except KeyboardInterrupt:
        status = "interrupted"
    return certified(K, *_pairs(K, found, top, which), doubt, status, tolerance)


def _sharpen(K: Krylov, run: Run, tolerance: float, max_matvecs: int, watch: Watch | None) -> None:
    """Iterate in the complement of the basis until the vector stands still in it."""
    A: Counted = K.A
    largest = K.norm
    while A.matvecs < max_matvecs - 1:  # one product is kept for the step that follows
        y = run.U[0]
        product = A.matvec(y).to(torch.float64, copy=True)
        K.Q.remove(product)
        theta = float(product @ y.double())
        residual = norm(product - theta * y.double())
        largest = max(largest, abs(theta))
        if watch:
            watch(A.matvecs, None, theta, residual)
        noise = 8 * torch.finfo(A.like.dtype).eps * largest
        if residual <= max(tolerance * max(abs(theta), FLOOR * largest), noise):
            return
        run.U[0] = (product / norm(product)).to(y.dtype)


def _pairs(K: Krylov, size: int, top: int, which: Which) -> tuple[Tensor, Tensor]:
    """Give the values found (k,) of the kind asked for, most wanted first, and their coefficients.

    A value that is zero to rounding is of either kind.
    """
    theta, S = K.ritz(size)
    if which == "magnitude":
        chosen = sorted(range(len(theta)), key=lambda i: -abs(float(theta[i])))
    else:
        sign = 1 if which == "largest" else -1
        chosen = [i for i in range(len(theta)) if sign * theta[i] >= -K.rounding]
        chosen.sort(key=lambda i: -sign * float(theta[i]))
    return theta[chosen[:top]], S[:, chosen[:top]]


def _enough(K: Krylov, top: int, which: Which) -> bool:
    return len(K.Q) >= K.A.size or len(_pairs(K, len(K.H), top, which)[0]) >= top


def _small(K: Krylov, top: int, which: Which, tolerance: float) -> bool:
    theta, S = _pairs(K, len(K.H), top, which)
    found = K.residuals(S)
    return small(found, theta, K.norm, tolerance) or bool((found <= K.rounding).all())


def _doubt(K: Krylov, top: int, which: Which, rng: torch.Generator, max_matvecs: int) -> float:
    """Bound the probability that the complement of what was found holds a wanted value."""
    theta, S = K.ritz(len(K.H))
    found = levels(theta, K.residuals(S) + K.rounding, min(top, len(theta)), which, K.norm)
    run = K.start(rng)
    if run is None:
        return 0.0
    hunt, doubt = Hunt(K, run, found), 1.0
    while doubt > DOUBT and K.A.matvecs < max_matvecs and hunt.steps < STEPS:
        K.step(run)
        if hunt.look():
            return 1.0
        doubt = hunt.doubt
    return doubt
