"""XTrace: every probe judged by the range of all others.

Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323. Cost: two products a probe.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvcli.linalg.basis import Basis, norm
from curvcli.linalg.operator import Counted, normal
from curvcli.linalg.probing import CHUNK, Known, Method, drawn, widening
from curvcli.linalg.scatter import by_block, coupled, pairs, pooled

HELD = 3
"""Vectors held for every two products."""


class XTrace(Method):
    """Probes Omega, A Omega = Q R, H = Q^T A Q, G = (AQ)^T (AQ), W = Q^T Omega, all growing by one.

    Without probe i the range is that of Q (I - s s^T), where s is column i of R^-T made a unit
    vector: that gives every probe the projector P_i of all others without a product. Probes are
    uniform on the sphere, and so is the direction of what P_i leaves of them; its length is set to
    its mean [sections 2 and 3 of the paper].
    """

    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        super().__init__(A, rng, blocks)
        self.Q, self.AQ, self.Omega = Basis(A.like), Basis(A.like), Basis(A.like)
        self.R = torch.zeros(0, 0).double()
        self.H, self.G, self.W = self.R, self.R, self.R
        self.lengths: list[float] = []  # squared
        self.rows: list[Tensor] = []  # Hutchinson's samples of the blocks
        self.parts: list[Tensor] = []  # ||A z||^2 within them
        self.inner: list[Tensor] = []
        self.shared, self.looked = 0.0, 0  # covariance of two estimates, and at how many probes

    @property
    def sketches(self) -> int:
        """How many vectors the range has that judges a probe."""
        return max(len(self.Q) - 1, 0)

    def step(self, matvecs: int) -> bool:
        """Multiply probes, and the directions that they add to the range."""
        count = min(CHUNK, matvecs // 2)
        if count < 1:
            return False
        Z = drawn(self._probe, count, self.A.like, self.rng)
        Y = self.A.matmat(Z)
        new, heights = Basis(self.A.like), []
        for y in Y:
            q, r = self._outward(y.to(torch.float64, copy=True), new)
            new.append(q)
            heights.append(r)
        AQ = self.A.matmat(torch.stack([new[i] for i in range(count)]))
        self.inner += pairs(coupled(self.blocks, Z, Y))
        for i, (z, y, r) in enumerate(zip(Z, Y, heights, strict=True)):
            self._note(z, y, r, new[i], AQ[i])
        return True

    def _probe(self, like: Tensor, rng: torch.Generator) -> Tensor:
        z = normal(like, rng)
        return (z.double() * (math.sqrt(self.A.size) / norm(z.double()))).to(z.dtype)

    def _within(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum the products of entries over every block: (b,)."""
        xy = x.double() * y.double()
        return torch.stack([xy[s].sum() for s in self.blocks]).cpu()

    def _note(self, z: Tensor, y: Tensor, r: Tensor, q: Tensor, Aq: Tensor) -> None:
        """Take in a probe, its product, that one's coefficients, its direction and its product."""
        x, v, w = q.double(), Aq.double(), z.double()
        self.Q.append(q)
        self.AQ.append(Aq)
        h, g = self.Q.dots(v), self.AQ.dots(v)
        qz, Qz = torch.cat([self.Omega.dots(x), (x @ w).reshape(1).cpu()]), self.Q.dots(w)
        self.Omega.append(z)
        self.rows.append(self._within(z, y))
        self.parts.append(self._within(y, y))
        self.squares.append(float(self.parts[-1].sum()))
        self.lengths.append(float(w.square().sum()))
        self.R, self.H, self.G, self.W = (
            pad(M, (0, 1, 0, 1)) for M in (self.R, self.H, self.G, self.W)
        )
        self.R[:, -1] = r
        self.H[-1, :] = self.H[:, -1] = h
        self.G[-1, :] = self.G[:, -1] = g
        self.W[-1, :], self.W[:, -1] = qz, Qz

    def _outward(self, w: Tensor, new: Basis) -> tuple[Tensor, Tensor]:
        """Give a unit vector for what of w (n,) is left outside, and the coefficients of it all.

        Any vector outside serves where what is left is rounding.
        """
        before = norm(w)
        r = torch.cat([self.Q.remove(w), new.remove(w)])
        left = norm(w)
        if left > torch.finfo(torch.float64).eps * before:
            w = w / left
            self.Q.remove(w)  # what little was left has the rounding of what there was before
            new.remove(w)
        if not float(w.norm()) > 0.5 or left <= torch.finfo(torch.float64).eps * before:
            w = normal(self.A.like, self.rng).double()
            for _ in range(2):  # fewer vectors than n: something is left of a random one
                self.Q.remove(w)
                new.remove(w)
                w /= w.norm()
        q = (w / w.norm()).to(self.A.like.dtype)
        return q, torch.cat([r, torch.tensor([left], dtype=torch.float64)])

    def known(self, *, last: bool) -> Known:
        """Leave every probe out of the range in turn."""
        k = len(self.R)
        # Normal probes: what they say is scattered by the diagonal as by all else.
        blocks = by_block(self.blocks, self.rows, self.parts, self.inner)
        if k < 2:
            return Known((math.nan, math.inf), 0.0, blocks, k)
        L = torch.tensor(self.lengths).double()
        whole = _exchanged(self.R, self.H, self.W, L, self.A.size)
        if k > 2 and (last or k >= 1.25 * self.looked):
            self.shared = _covariance(whole, self.R, self.H, self.W, L, self.A.size)
            self.looked = k
        variances = _variances(self.R, self.H, self.G, self.W, L, self.A.size)
        (variance,), (freedom,) = pooled(variances.unsqueeze(1))
        error = math.sqrt(variance / k + self.shared) * widening(freedom)
        return Known((float(whole.mean()), error), freedom, blocks, k)


def _exchanged(R: Tensor, H: Tensor, W: Tensor, L: Tensor, n: int) -> Tensor:
    """Estimate the trace by every probe from the range of all others: (..., k).

    R, H, W: (..., r, k), (..., r, r), (..., r, k); L: (..., k), the probes' squared lengths
    """
    S = _left_out(R)
    sW, sR, sHS = ((S * M).sum(dim=-2) for M in (W, R, H @ S))
    C = W - S * sW.unsqueeze(-2)  # what P_i takes of probe i
    left = sW * sR - (C * (R - H @ C)).sum(dim=-2)
    scale = (n - R.shape[-1] + 1) / (L - C.square().sum(dim=-2))
    within: Tensor = H.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True) - sHS
    found: Tensor = within + scale * left
    return found


def _variances(R: Tensor, H: Tensor, G: Tensor, W: Tensor, L: Tensor, n: int) -> Tensor:
    """Estimate the variance of every probe's estimate, given its range: (k,).

    What is left of a probe is z, of squared length m, uniform in the m dimensions outside P_i; with
    B the remainder there, z^T B z has variance 2 m / (m + 2) (|B|^2 - (tr B)^2 / m), and B z tells
    |B|^2 as its squared length.
    """
    S = _left_out(R)
    C = W - S * (S * W).sum(dim=0)
    m = n - R.shape[-1] + 1
    scale = m / (L - C.square().sum(dim=0))
    V = R - H @ C  # of A z, what is within the range of Q: Bz = A z - P_i A z
    sV = (S * V).sum(dim=0)
    whole = R.square().sum(dim=0) - 2 * (R * (H @ C)).sum(dim=0) + (C * (G @ C)).sum(dim=0)
    square = scale * (whole - V.square().sum(dim=0) + sV.square())
    trace = scale * ((S * W).sum(dim=0) * (S * R).sum(dim=0) - (C * V).sum(dim=0))
    return (square - trace.square() / m).clamp_min(0) * (2 * m / (m + 2))


def _covariance(whole: Tensor, R: Tensor, H: Tensor, W: Tensor, L: Tensor, n: int) -> float:
    """Estimate the covariance of two of XTrace's estimates t_i, t_j, which share their ranges.

    Let t_i^j be t_i without probe j, d_ij = t_i - t_i^j. Given all probes but i, t_i, t_i^j and
    hence d_ij have no error in the mean, and t_j^i does not depend on probe i; so cov(t_i, t_j) =
    E d_ij d_ji. Without this the error is told up to two times too small (the paper leaves it out).
    """
    k = len(R)
    everyone = torch.arange(k).expand(k, k)
    others = everyone[everyone != everyone.T].view(k, k - 1)
    Q, less = torch.linalg.qr(R[:, others].transpose(0, 1))  # (k, k, k - 1)
    V = W[:, others].transpose(0, 1)
    without = _exchanged(less, Q.mT @ H @ Q, Q.mT @ V, L[others], n)  # [j, i]
    d = torch.zeros(k, k, dtype=torch.float64).scatter_(1, others, whole[others] - without)
    return max(float((d * d.T).sum()) / (k * (k - 1)), 0.0)


def _left_out(R: Tensor) -> Tensor:
    """Give, as columns, the unit vectors orthogonal to all columns of R (..., k, k) but one."""
    tiny = torch.finfo(R.dtype).eps
    R = R / R.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(R.dtype).tiny)
    on = R.diagonal(dim1=-2, dim2=-1)
    R = R + torch.diag_embed(torch.where(on.abs() < tiny, tiny - on, 0.0))
    one = torch.eye(R.shape[-1], dtype=R.dtype).expand_as(R)
    S: Tensor = torch.linalg.solve_triangular(R.mT, one, upper=False)
    unit: Tensor = S / S.norm(dim=-2, keepdim=True)
    return unit
