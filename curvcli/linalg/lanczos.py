"""Extreme eigenpairs by Lanczos with full reorthogonalisation, run until they have converged.

Lanczos 1950; Parlett 1998, chapter 13. Cost: one product a step; memory: one vector a step. The
answer is verified by continuing from an independent random vector in the complement of the basis:
single-vector Lanczos sees one copy of a repeated eigenvalue, and nothing that its start lacks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.basis import Basis, norm
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import (
    DOUBT,
    Ritz,
    Status,
    Watch,
    Which,
    beyond,
    missed,
    radii,
    small,
    wanted,
)


@dataclass
class Run:
    """A stretch of Lanczos from one random start, and what its last product left outside of Q."""

    begin: int  # how many vectors the basis held before it
    remainder: Tensor | None  # (n,) float64; None once the run has closed
    end: int = -1  # index of its last vector
    beta: float = 0.0  # norm of what the remainder was before it was made a unit vector
    cleared: int = 0  # how many vectors of the basis the remainder is orthogonal to


class Krylov:
    """An orthonormal basis Q grown by products, with H = Q^T A Q beside it.

    Every run begins at a random vector orthogonal to all before it, so that the first is plain
    Lanczos, and several together are a block method whose block grows as it turns out to be needed.
    Pairs and their certificates are told of what is noted down, also after a step was cut short.
    """

    def __init__(self, A: Counted) -> None:
        self.A = A
        self.Q = Basis(A.like)
        self.H = torch.zeros(0, 0, dtype=torch.float64)
        self.runs: list[Run] = []
        self.broken = False  # a step was cut short in the middle of being noted down
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}  # of the leading parts of H, by size

    def start(self, rng: torch.Generator) -> Run | None:
        """Begin a run; None where the basis already fills the space."""
        first = self.Q.random(rng)
        if first is None:
            return None
        self.runs.append(Run(begin=len(self.Q), remainder=first))
        return self.runs[-1]

    def step(self, run: Run) -> None:
        """Extend a run by one product."""
        assert run.remainder is not None
        q = run.remainder.to(self.A.like.dtype)
        w = self.A.matvec(q).double()
        coefficients = self.Q.remove(w, q)
        H = torch.nn.functional.pad(self.H, (0, 1, 0, 1))
        H[-1, :] = H[:, -1] = coefficients
        beta, m = norm(w), len(self.Q)
        # Ctrl-C may come at any time: nothing is noted down before all of it is known.
        self.broken = True
        self.Q.append(q)
        self.H, self._pairs = H, {}
        run.end, run.beta, run.cleared = m, beta, m + 1
        run.remainder = w / beta if beta > self.noise else None
        self.broken = False

    def resume(self, run: Run) -> bool:
        """Clear a run's remainder of what other runs have taken in since; False if none is left."""
        if run.remainder is not None and run.cleared < len(self.Q):
            self.Q.remove(run.remainder)
            left = norm(run.remainder)
            run.beta, run.cleared = run.beta * left, len(self.Q)
            run.remainder = run.remainder / left if run.beta > self.noise else None
        return run.remainder is not None

    @property
    def norm(self) -> float:
        """The largest Ritz value in size: a lower estimate of ||A||_2."""
        return float(self.ritz(len(self.H))[0].abs().max()) if len(self.H) else 0.0

    @property
    def noise(self) -> float:
        """The size of a remainder that is rounding: the run has closed an invariant subspace."""
        return 30 * torch.finfo(self.A.like.dtype).eps * self.norm

    @property
    def rounding(self) -> float:
        """The part of a residual that the recurrence does not know: every step leaves its own."""
        return 4 * math.sqrt(max(len(self.Q), 4)) * torch.finfo(self.A.like.dtype).eps * self.norm

    def ritz(self, size: int) -> tuple[Tensor, Tensor]:
        """Give the Ritz values, ascending (m,), and their coefficients (m, m) in m=size vectors."""
        if size not in self._pairs:
            theta, S = torch.linalg.eigh(self.H[:size, :size])
            self._pairs[size] = theta, S
        return self._pairs[size]

    def left(self, run: Run, S: Tensor) -> Tensor:
        """Give the part (k,) of the residuals of the pairs S (m, k) that this run accounts for."""
        if not 0 <= run.end < len(S):
            return torch.zeros(S.shape[1], dtype=S.dtype)
        self.resume(run)
        # Vectors of the basis that S leaves out hold a part of what was left.
        outside = self.H[len(S) :, run.end]
        return math.hypot(run.beta, norm(outside) if len(outside) else 0.0) * S[run.end].abs()

    def residuals(self, S: Tensor) -> Tensor:
        """Bound the residual norms (k,) of the pairs with coefficients S (m, k)."""
        if not self.runs:
            return torch.zeros(0, dtype=torch.float64)
        if self.broken:
            return torch.full((S.shape[1],), math.inf, dtype=torch.float64)
        none = torch.zeros(S.shape[1], dtype=torch.float64)  # ended before the first product
        return sum((self.left(r, S) for r in self.runs), none)

    def vectors(self, S: Tensor) -> Tensor:
        """Form the unit vectors (k, n) float64 with coefficients S (m, k)."""
        out = torch.zeros(S.shape[1], self.A.size, dtype=torch.float64, device=self.A.like.device)
        rest = len(self.Q) - len(S)
        for row, s in zip(out, S.T, strict=True):
            y = self.Q.combine(torch.nn.functional.pad(s, (0, rest)))
            row.copy_(y / y.norm())
        return out


def lanczos(
    A: LinearOperator,
    top: int,
    tolerance: float,
    rng: torch.Generator,
    *,
    which: Which = "largest",
    max_matvecs: int = 1000,
    watch: Watch | None = None,
) -> Ritz:
    """Find extreme eigenpairs to a relative residual of `tolerance`.

    A residual is held against the eigenvalue's own size, or FLOOR times the norm where that is
    more. `which="both"` gives `top` from either end. Ctrl-C ends it with what is known.
    """
    counted = Counted(A)
    K = Krylov(counted)
    search = _Search(K, min(top, A.size), which, tolerance)
    status: Status = "max_matvecs"
    run = K.start(rng)
    try:
        while run and counted.matvecs < max_matvecs - 1:  # one product is kept for _finish
            K.step(run)
            if status == "unverified" and not search.contributes(run):
                if search.doubt(run) <= DOUBT:
                    status = "converged"
                    break
                continue
            search.size = len(K.Q)
            if watch:
                watch(counted.matvecs, None, *search.leader())
            fulfilled = search.fulfilled()
            status = "unverified" if fulfilled else "max_matvecs"
            run = (None if fulfilled else search.neediest()) or K.start(rng)
        if run is None:  # the basis fills the space: nothing can have been missed
            status = "converged"
    except KeyboardInterrupt:
        status = "interrupted"
    return _finish(counted, search, status)


@dataclass
class _Search:
    """What is asked of a Krylov space, and how far its first `size` vectors fulfil it."""

    K: Krylov
    top: int
    which: Which
    tolerance: float
    size: int = 0

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Give the wanted values (k,) and their coefficients (m, k)."""
        theta, S = self.K.ritz(self.size)
        chosen, _ = wanted(theta, self.top, self.which)
        return theta[chosen], S[:, chosen]

    def leader(self) -> tuple[float, float]:
        """Give the most wanted value and its residual."""
        theta, S = self.pairs()
        return float(theta[0]), float(self.K.residuals(S[:, :1])[0])

    def fulfilled(self) -> bool:
        """Decide whether every wanted pair is there and has a small residual."""
        theta, S = self.pairs()
        count = min(self.top * (2 if self.which == "both" else 1), self.K.A.size)
        return len(theta) == count and small(
            self.K.residuals(S), theta, self.K.norm, self.tolerance
        )

    def neediest(self) -> Run | None:
        """Find the run whose remainder weighs most in the wanted pairs; None if all are closed."""
        _, S = self.pairs()
        runs = [r for r in self.K.runs if r.remainder is not None]
        runs.sort(key=lambda r: -float(self.K.left(r, S).max()))
        return next((r for r in runs if self.K.resume(r)), None)

    def _ends(self, run: Run) -> tuple[Tensor, tuple[float, float]]:
        """Give the run's own Ritz values, and the edges beyond which they would be wanted."""
        own = torch.linalg.eigvalsh(self.K.H[run.begin :, run.begin :])
        theta, _ = self.K.ritz(self.size)
        return own, beyond(theta, self.top, self.which, self.K.norm)

    def contributes(self, run: Run) -> bool:
        """Decide whether the run, begun to look for what was missed, has found something."""
        own, (low, high) = self._ends(run)
        # Written so that nan, too few values known before this run, counts as found.
        return not (float(own[-1]) <= high and float(own[0]) >= low)

    def doubt(self, run: Run) -> float:
        """Bound the probability that the complement before this run hides a wanted value."""
        if run.begin != self.size or len(self.K.Q) == self.size:
            return 1.0
        if run.remainder is None:  # the run closed: it holds every value of the complement
            return 0.0
        own, (low, high) = self._ends(run)
        steps, n = len(own), self.K.A.size - run.begin
        theta, _ = self.K.ritz(len(self.K.Q))
        up = missed(steps, n, high, float(own[-1]), float(theta[0]))
        return min(1.0, up + missed(steps, n, low, float(own[0]), float(theta[-1])))


def _finish(A: Counted, search: _Search, status: Status) -> Ritz:
    """Form the vectors, and certify them."""
    K = search.K
    doubt = 0.0 if len(K.H) >= A.size else search.doubt(K.runs[-1])
    found, search.size = search.size, len(K.H)
    if not search.fulfilled():  # the search for missed ones has not sharpened the answer
        search.size = found or len(K.H)
    return certified(K, *search.pairs(), doubt, status, search.tolerance)


def certified(
    K: Krylov, theta: Tensor, S: Tensor, doubt: float, status: Status, tolerance: float
) -> Ritz:
    """Put pairs (k,), (m, k) together with their certificates; the first takes one true product.

    What the recurrence does not explain of that is rounding, in the products or in the basis, or a
    product that is not of a symmetric map. It counts for every pair, and where it makes a residual
    too large, the answer is `inexact` however well the recurrence converged.
    """
    A = K.A
    residuals, vectors, rounding = K.residuals(S), K.vectors(S), K.rounding
    if status != "interrupted" and len(theta):
        product = A.matvec(vectors[0].to(A.like.dtype)).double()
        rounding = max(rounding, norm(product - theta[0] * vectors[0]) - float(residuals[0]))
    residuals = residuals + rounding
    done = status in ("converged", "unverified")
    floor = 4 * K.rounding  # an eigenvalue of zero has no relative residual
    if done and not small((residuals - floor).clamp_min(0), theta, K.norm, tolerance):
        status = "inexact"
    return Ritz(
        values=theta,
        vectors=vectors.to(A.like.dtype),
        residuals=residuals,
        radius=radii(theta, residuals),
        doubt=doubt,
        matvecs=A.matvecs,
        status=status,
    )
