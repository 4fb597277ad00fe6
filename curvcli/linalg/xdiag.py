"""XDiag: the diagonal of a symmetric operator, every probe judged by the range of all others.

Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323. With A W = Q R for probes W of signs, the
range without probe i is that of Q (I - s_i s_i^T), s_i column i of R^-T made a unit vector; what
that range takes of the diagonal is exact, the rest is probe i's. Cost: two products a probe, for
each of which four vectors are held.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvcli.linalg.diagonal import DiagonalEstimate, Moments
from curvcli.linalg.operator import LinearOperator, rademacher
from curvcli.linalg.ritz import Watch


def xdiag(
    A: LinearOperator,
    probes: int,
    rng: torch.Generator,
    blocks: list[slice],
    watch: Watch | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal from 2 `probes` products, with a standard error for every entry.

    Ctrl-C leaves Hutchinson's estimate from the products that there are.
    """
    probes = min(probes, A.size)
    W: list[Tensor] = []
    Y: list[Tensor] = []
    Z: list[Tensor] = []
    try:
        for k in range(1, probes + 1):
            w = rademacher(A.like, rng)
            y = A.matvec(w)
            W, Y = [*W, w], [*Y, y]
            if watch:
                watch(k, 2 * probes, None, None)
        Q, R = torch.linalg.qr(torch.stack(Y, dim=1).double())
        for k in range(1, probes + 1):
            Z = [*Z, A.matvec(Q[:, k - 1].to(A.like.dtype))]
            if watch:
                watch(probes + k, 2 * probes, None, None)
        sketch = Sketch.of(torch.stack(W, dim=1).double(), Q, torch.stack(Z, dim=1).double(), R)
        return _judged(sketch, A.like, blocks)
    except KeyboardInterrupt:
        moments = Moments(A.like, blocks)
        for w, y in zip(W, Y, strict=False):
            moments.add((w * y).double())
        return moments.estimate(len(Y) + len(Z), interrupted=True)


@dataclass(frozen=True)
class Sketch:
    """Probes W (n, m) with A W = Q R, Z = A Q, and the directions S (m, m) that each one adds."""

    W: Tensor
    Q: Tensor
    Z: Tensor
    R: Tensor
    S: Tensor

    @classmethod
    def of(cls, W: Tensor, Q: Tensor, Z: Tensor, R: Tensor) -> "Sketch":
        """Find, as columns, the unit vectors orthogonal to all columns of R but one."""
        tiny = torch.finfo(R.dtype).eps
        # The lengths of R's columns do not matter; a dependent one gets a direction of its own.
        scaled = R / R.norm(dim=0).clamp_min(torch.finfo(R.dtype).tiny)
        on = scaled.diagonal()
        scaled = scaled + torch.diag(torch.where(on.abs() < tiny, tiny - on, 0.0))
        one = torch.eye(len(R), dtype=R.dtype, device=R.device)
        S = torch.linalg.solve_triangular(scaled.T, one, upper=False)
        return cls(W, Q, Z, R, S / S.norm(dim=0))

    def sample(self, i: int) -> Tensor:
        """Estimate the diagonal by probe i from the range of all others: (n,)."""
        s, r = self.S[:, i], self.R[:, i]
        within = (self.Q * self.Z).sum(dim=1) - (self.Q @ s) * (self.Z @ s)
        found: Tensor = within + self.W[:, i] * (self.Q @ (s * (s @ r)))
        return found

    def moved(self, i: int, j: int) -> Tensor:
        """Say what probe j does to the estimate by probe i: (n,)."""
        v = self.S[:, j] - self.S[:, i] * (self.S[:, i] @ self.S[:, j])
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        q = self.Q @ v
        found: Tensor = q * (self.Z @ v) - self.W[:, i] * q * (v @ self.R[:, i])
        return found


def _judged(sketch: Sketch, like: Tensor, blocks: list[slice]) -> DiagonalEstimate:
    """Average the probes' estimates, which share their ranges and so are not independent.

    Let t_i be probe i's and d_ij what probe j does to it. Given all probes but i, t_i and d_ij have
    no error in the mean, and what j has without i does not depend on it: cov(t_i, t_j) is the mean
    of d_ij d_ji. Taken over neighbours i, j and all entries; without it the error is told up to 1.5
    times too small (the paper leaves it out).
    """
    m = sketch.R.shape[1]
    moments = Moments(like, blocks)
    for i in range(m):
        moments.add(sketch.sample(i))
    found = moments.estimate(2 * m, interrupted=False)
    if m < 3:
        return found
    shared, entries = torch.zeros(len(blocks) + 1).double(), 0.0
    for i in range(m):
        there, back = sketch.moved(i, (i + 1) % m), sketch.moved((i + 1) % m, i)
        entries += float(there @ back) / m
        sums = [torch.stack([d[b].sum() for b in [*blocks, slice(None)]]) for d in (there, back)]
        shared += (sums[0] * sums[1]).cpu() / m
    variance = float(moments.square.sum()) / (m - 1)
    wider = max(1 + (m - 1) * entries / variance, 1.0) if variance else 1.0
    return replace(found, stderr=found.stderr * wider**0.5, shared=shared.clamp_min(0))
