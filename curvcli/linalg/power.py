"""Eigenpairs by power iteration with deflation: the slow classic, with the same certificate.

von Mises and Pollaczek-Geiringer 1929; deflation as in Parlett 1998, section 5.1. Cost: the number
of products grows like log(1/tolerance) / log(|lambda_i / lambda_(i+1)|) for every pair; memory:
one vector a pair. It is there to compare with; Lanczos needs a fraction of its products.
"""

import torch
from torch import Tensor

from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos import lanczos
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import DOUBT, FLOOR, Ritz, Status, Watch, Which, beyond, missed, radii


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
    The search for missed ones is by Lanczos in the complement.
    """
    counted = Counted(A)
    basis = Basis(A.like)
    values: list[float] = []
    residuals: list[float] = []
    status: Status = "max_matvecs"
    doubt = 1.0
    try:
        while not _enough(values, top, which, A.size):
            pair = _pair(counted, basis, values, tolerance, rng, max_matvecs, watch)
            values.append(pair[0])
            residuals.append(pair[1])
            basis.append(pair[2])
            if counted.matvecs >= max_matvecs:
                break
        else:
            doubt = _doubt(counted, basis, values, top, which, rng)
            status = "converged" if doubt <= DOUBT else "unverified"
    except KeyboardInterrupt:
        status = "interrupted"
    theta = torch.tensor(values, dtype=torch.float64)
    chosen = _kind(values, which)[:top]
    r = torch.tensor(residuals, dtype=torch.float64)[chosen]
    none = torch.zeros(0, A.size, dtype=A.like.dtype, device=A.like.device)
    vectors = torch.stack([basis[i] for i in chosen]) if chosen else none
    return Ritz(theta[chosen], vectors, r, radii(theta[chosen], r), doubt, counted.matvecs, status)


def _pair(
    A: Counted,
    basis: Basis,
    values: list[float],
    tolerance: float,
    rng: torch.Generator,
    max_matvecs: int,
    watch: Watch | None,
) -> tuple[float, float, Tensor]:
    """Iterate in the complement of `basis`: the value, its true residual and its vector."""
    y = basis.random(rng)
    assert y is not None
    norm = max((abs(v) for v in values), default=0.0)
    while True:
        product = A.matvec(y.to(A.like.dtype)).double()
        theta = float(product @ y)
        residual = float((product - theta * y).norm())
        norm = max(norm, abs(theta))
        if watch:
            watch(A.matvecs, None, theta, residual)
        noise = 8 * torch.finfo(A.like.dtype).eps * norm
        small = residual <= max(tolerance * max(abs(theta), FLOOR * norm), noise)
        if small or A.matvecs >= max_matvecs:
            return theta, max(residual, noise), y
        basis.remove(product)
        y = product / product.norm()


def _kind(values: list[float], which: Which) -> list[int]:
    """Order the found values of the kind asked for, most wanted first."""
    indices = range(len(values))
    if which == "largest":
        return sorted((i for i in indices if values[i] >= 0), key=lambda i: -values[i])
    if which == "smallest":
        return sorted((i for i in indices if values[i] <= 0), key=lambda i: values[i])
    return sorted(indices, key=lambda i: -abs(values[i]))


def _enough(values: list[float], top: int, which: Which, size: int) -> bool:
    return len(values) >= size or len(_kind(values, which)) >= top


def _doubt(
    A: Counted, basis: Basis, values: list[float], top: int, which: Which, rng: torch.Generator
) -> float:
    """Bound the probability that the complement of what was found holds a wanted value."""
    if len(basis) >= A.size:
        return 0.0
    theta = torch.tensor(values, dtype=torch.float64).sort().values
    norm = float(theta.abs().max())
    low, high = beyond(theta, min(top, len(theta)), which, norm)
    doubt = 1.0
    for steps in (6, 12, 24):
        space = Deflated(A, basis)
        ends = lanczos(space, 1, 0.0, rng, which="both", max_matvecs=steps + 1)
        top_end, low_end = float(ends.values[0]), float(ends.values[-1])
        n = A.size - len(basis)
        up = missed(steps, n, high, top_end, min(low_end, float(theta[0])))
        down = missed(steps, n, low, low_end, max(top_end, float(theta[-1])))
        doubt = min(1.0, up + down)
        if doubt <= DOUBT or top_end > high or low_end < low:
            break
    return doubt
