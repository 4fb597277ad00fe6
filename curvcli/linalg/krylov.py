"""A Krylov space: an orthonormal basis grown by products, and the map's projection on it.

Lanczos 1950, with full reorthogonalisation [Parlett 1998, chapter 13]; several vectors at a time
[Golub and Underwood 1977]; restarted by keeping Ritz vectors [Wu and Simon 2000,
doi:10.1137/S0895479898334605]. Cost: one product a vector; memory: a vector each, and one for every
remainder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvcli.linalg.basis import Basis, norm, unit
from curvcli.linalg.operator import Counted


@dataclass
class Run:
    """A stretch of Lanczos from random starts, and what its products left outside of Q.

    U: orthonormal vectors (n,), orthogonal to the first `cleared` of Q; none once it has closed
    C: (p, m) float64, how much of each of them is in the products with Q
    """

    begin: int  # how many vectors the basis held before it
    U: list[Tensor]
    C: Tensor
    cleared: int

    @property
    def remainder(self) -> Tensor | None:
        """The first vector that it would go on with; None once it has closed."""
        return self.U[0] if self.U else None


class Krylov:
    """An orthonormal basis Q (m, n) with H = Q A Q^T, such that A Q^T = Q^T H + sum of U^T C.

    The sum is over runs, each begun at random vectors orthogonal to all before it; what it adds to
    a Ritz vector is that vector's residual. Nothing here asks how H came about, so that it stays
    true of any rotation of Q: a restart is a rotation that leaves vectors out.
    """

    def __init__(self, A: Counted, most: int | None = None) -> None:
        self.A = A
        self.most = most  # vectors that may be alive, those of the runs among them
        self.Q = Basis(A.like, most)
        self.H = torch.zeros(0, 0, dtype=torch.float64)
        self.runs: list[Run] = []
        self.lost = self.H  # (l, m): rows of C whose vectors were given up for want of room
        self.broken = False  # a step was cut short in the middle of being noted down
        self.steps = 0  # products noted down
        self.dropped = 0.0  # norm of the remainders that were taken for rounding
        self.drift = 0.0  # by how much Ritz pairs that were kept are not quite those of H
        self.scale = 0.0  # the largest product of a unit vector, or Ritz value, seen so far
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}  # of the leading parts of H, by size

    def start(self, rng: torch.Generator, count: int = 1) -> Run | None:
        """Begin a run at `count` random vectors; None where the basis already fills the space."""
        U: list[Tensor] = []
        while len(U) < count and (first := self.Q.random(rng, U)) is not None:
            U.append(first.to(self.A.like.dtype))
        if not U:
            return None
        m = len(self.Q)
        self.runs.append(Run(m, U, torch.zeros(len(U), m, dtype=torch.float64), m))
        return self.runs[-1]

    def step(self, run: Run, rows: Sequence[int] = (0,)) -> None:
        """Extend a run by the products, taken at once, of some of its remainders."""
        assert run.cleared == len(self.Q)
        V = [run.U[i] for i in rows]
        rest = [i for i in range(len(run.U)) if i not in rows]
        W = self.A.matmat(torch.stack(V)) if len(V) > 1 else self.A.matvec(V[0])[None]
        m, p = len(self.Q), len(V)
        scale = max(self.norm, *(norm(w) for w in W))
        T = torch.zeros(p, m + p, dtype=torch.float64)
        U, C, dropped = [run.U[i] for i in rest], pad(run.C[rest], (0, p)), self.dropped
        for i, product in enumerate(W):
            w = product.to(torch.float64, copy=True)
            taken = self.Q.remove(w, [*V, *U])
            T[i] = taken[: m + p]
            C[:, m + i] += taken[m + p :]
            own = torch.zeros(m + p, dtype=torch.float64)
            own[m + i] = 1.0
            C, left = self._joined(U, C, w, own, scale)
            dropped = math.hypot(dropped, left)
        H = pad(self.H, (0, p, 0, p))
        H[m:, :m], H[:m, m:] = T[:, :m], T[:, :m].T
        H[m:, m:] = (T[:, m:] + T[:, m:].T) / 2
        # Ctrl-C may come at any time: nothing is noted down before all of it is known.
        self.broken = True
        for v in V:
            self.Q.append(v)
        for each in self.runs:
            each.C = pad(each.C, (0, p))
        self.H, self.lost, self._pairs = H, pad(self.lost, (0, p)), {}
        self.steps, self.dropped, self.scale = self.steps + p, dropped, scale
        run.U, run.C, run.cleared = U, C, m + p
        self.broken = False

    def _joined(
        self, U: list[Tensor], C: Tensor, w: Tensor, c: Tensor, scale: float
    ) -> tuple[Tensor, float]:
        """Add to U what is left of w (n,), which is orthogonal to it, and to C its row from c (m,).

        Returns C, and the size of what is left where that is rounding and is not added.
        """
        left = norm(w)
        if left * norm(c) <= self.noise(scale):
            return C, left * norm(c)
        U.append(unit(w, left, self.A.like.dtype))
        return torch.cat([C, left * c[None]]), 0.0

    def resume(self, run: Run) -> bool:
        """Clear a run's remainder of what other runs have taken in since; False if none is left."""
        if run.cleared < len(self.Q):
            self._replace([run], run.begin)
        return bool(run.U)

    def join(self) -> Run:
        """Make one run of all: remainders orthogonal to each other, of which any can be stepped."""
        self._replace(list(self.runs), 0)
        return self.runs[0]

    def _replace(self, runs: list[Run], begin: int) -> None:
        """Put one run in the place of some, with orthonormal remainders cleared of all of Q."""
        m = len(self.Q)
        U: list[Tensor] = []
        C, dropped, scale = torch.zeros(0, m, dtype=torch.float64), self.dropped, self.norm
        for u, c in (pair for run in runs for pair in zip(run.U, run.C, strict=True)):
            w = u.to(torch.float64, copy=True)
            C += torch.outer(self.Q.remove(w, U)[m:], c)
            C, left = self._joined(U, C, w, c, scale)
            dropped = math.hypot(dropped, left)
        first = runs[0]
        self.broken = True
        first.begin, first.U, first.C, first.cleared = begin, U, C, m
        self.runs = [run for run in self.runs if run is first or run not in runs]
        self.dropped = dropped
        self.broken = False

    def keep(self, chosen: Sequence[int]) -> None:
        """Leave of the basis the Ritz vectors `chosen`, by their place among the ascending values.

        With orthonormal columns s of S, H s = theta s, and Q' = S^T Q: A Q'^T = Q'^T diag(theta)
        + sum of U^T C S, so that nothing is lost but what is left out.
        """
        for run in self.runs:
            self.resume(run)
        theta, S = self.ritz(len(self.Q))
        theta, S = theta[list(chosen)], S[:, list(chosen)]
        # S and what is stored are rounded: left alone, that would add up from restart to restart.
        # With S^T Q Q^T S = 1 + E, S (1 + E)^(-1/2) makes an orthonormal basis.
        E = S.T @ self.Q.gram() @ S - torch.eye(len(theta), dtype=torch.float64)
        S = S - S @ E / 2
        drift = norm(self.H @ S - S * theta)
        self.broken = True
        late = self.Q.rotate(S)
        self.H, self.lost, self._pairs = torch.diag(theta), self.lost @ S, {}
        self.drift += drift
        for run in self.runs:
            run.C, run.begin, run.cleared = run.C @ S, 0, len(theta)
        self.broken = False
        if late:
            raise KeyboardInterrupt

    def forget(self, run: Run, row: int) -> None:
        """Give up one remainder of a run; its share of the residuals can then only be bounded."""
        rest = [i for i in range(len(run.U)) if i != row]
        self.broken = True
        self.lost = torch.cat([self.lost, run.C[row][None]])
        run.U, run.C = [run.U[i] for i in rest], run.C[rest]
        self.broken = False

    def fits(self, count: int) -> bool:
        """Tell whether so many products more leave room for what remains of them."""
        if self.most is None:
            return True
        after = len(self.Q) + count
        return after + min(sum(len(run.U) for run in self.runs), self.A.size - after) <= self.most

    @property
    def norm(self) -> float:
        """The largest product of a unit vector or Ritz value: a lower estimate of ||A||_2."""
        own = float(self.ritz(len(self.H))[0].abs().max()) if len(self.H) else 0.0
        return max(own, self.scale)

    def noise(self, scale: float) -> float:
        """The size of a remainder that is rounding: the run has closed an invariant subspace."""
        return 30 * torch.finfo(self.A.like.dtype).eps * scale

    @property
    def rounding(self) -> float:
        """The part of a residual that the recurrence does not know: every step leaves its own."""
        eps = torch.finfo(self.A.like.dtype).eps
        return 4 * math.sqrt(max(self.steps, 4)) * eps * self.norm + self.dropped + self.drift

    def ritz(self, size: int) -> tuple[Tensor, Tensor]:
        """Give the Ritz values, ascending (m,), and their coefficients (m, m) in m=size vectors."""
        if size not in self._pairs:
            theta, S = torch.linalg.eigh(self.H[:size, :size])
            self._pairs[size] = theta, S
        return self._pairs[size]

    def residuals(self, S: Tensor) -> Tensor:
        """Bound the residual norms (k,) of the pairs with coefficients S (m, k)."""
        m, k = S.shape
        if self.broken:
            return torch.full((k,), math.inf, dtype=torch.float64)
        outside = torch.zeros(k, dtype=torch.float64)
        for run in self.runs:
            if self.resume(run):
                outside += _lengths(run.C[:, :m] @ S)
        if len(self.lost):
            outside += (self.lost[:, :m] @ S).abs().sum(dim=0)
        if m == len(self.H):
            return outside
        # What the vectors of the basis hold that S leaves out.
        return torch.hypot(_lengths(self.H[m:, :m] @ S), outside)

    def vectors(self, S: Tensor) -> Tensor:
        """Form the unit vectors (k, n), of `like`'s kind, with coefficients S (m, k)."""
        like, rest = self.A.like, len(self.Q) - len(S)
        out = torch.empty(S.shape[1], self.A.size, dtype=like.dtype, device=like.device)
        for row, s in zip(out, S.T, strict=True):
            y = self.Q.combine(pad(s, (0, rest)))
            row.copy_(y / y.norm())
        return out


def _lengths(M: Tensor) -> Tensor:
    """Measure the columns of M (p, k), also where squares leave float64's range: (k,)."""
    if len(M) <= 1:
        return M.abs().sum(dim=0)
    scale = M.abs().amax(dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    lengths: Tensor = scale * (M / scale).norm(dim=0)
    return lengths
