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
from curvcli.linalg.probing import Method, Samples


class XTrace(Method):
    """Probes Omega, A Omega = Q R, H = Q^T A Q and W = Q^T Omega, all growing by one.

    Without probe i the range is that of Q (I - s s^T), where s is column i of R^-T made a unit
    vector: that gives every probe the projector P_i of all others without a product. Probes are
    uniform on the sphere, and so is the direction of what P_i leaves of them; its length is set to
    its mean [sections 2 and 3 of the paper].
    """

    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        super().__init__(A, rng, blocks)
        self.Q, self.Omega = Basis(A.like), Basis(A.like)
        self.R = torch.zeros(0, 0).double()
        self.H, self.W = self.R, self.R
        self.lengths: list[float] = []  # squared
        self.rows: list[Tensor] = []  # Hutchinson's samples of the blocks
        self.shared, self.looked = 0.0, 0  # covariance of two estimates, and at how many probes

    @property
    def sketches(self) -> int:
        """How many vectors the range has that judges a probe."""
        return max(len(self.Q) - 1, 0)

    least = 12
    cost = 2

    def step(self) -> None:
        """Multiply a probe, and the direction that it adds to the range."""
        z = normal(self.A.like, self.rng)
        z = (z.double() * (math.sqrt(self.A.size) / norm(z.double()))).to(z.dtype)
        y = self.A.matvec(z)
        row, w = self.by_block(z, y), y.double()
        square = float(w.square().sum())
        r = self.Q.remove(w)  # in place: y may be no more
        left = norm(w)
        q = self._outward(w, math.sqrt(square)).to(z.dtype)
        Aq = self.A.matvec(q)
        h = torch.cat([self.Q.dots(Aq.double()), (q.double() @ Aq.double()).reshape(1).cpu()])
        qz = torch.cat([self.Omega.dots(q.double()), (q.double() @ z.double()).reshape(1).cpu()])
        Qz = torch.cat([self.Q.dots(z.double()), qz[-1:]])
        self.squares.append(square)
        self.rows.append(row)
        self.lengths.append(float(z.double().square().sum()))
        self.R, self.H, self.W = (pad(M, (0, 1, 0, 1)) for M in (self.R, self.H, self.W))
        self.R[:-1, -1], self.R[-1, -1] = r, left
        self.H[-1, :] = self.H[:, -1] = h
        self.W[-1, :], self.W[:, -1] = qz, Qz
        self.Q.append(q)
        self.Omega.append(z)

    def _outward(self, w: Tensor, before: float) -> Tensor:
        """Make what is left of a vector a unit vector, any one outside Q if that is rounding."""
        left = norm(w)
        if left > torch.finfo(torch.float64).eps * before:
            w = w / left
            self.Q.remove(w)  # what little was left has the rounding of what there was before
            if float(w.norm()) > 0.5:
                unit: Tensor = w / w.norm()
                return unit
        out = self.Q.random(self.rng)
        return torch.zeros_like(w) if out is None else out  # never None for fewer vectors than n

    def samples(self, last: bool) -> Samples:
        """Leave every probe out of the range in turn."""
        k = len(self.R)
        blocks = torch.stack(self.rows) if k else torch.zeros(0, len(self.blocks)).double()
        if k < 2:
            return Samples(blocks.sum(dim=1), blocks, self.frobenius)
        L = torch.tensor(self.lengths).double()
        whole = _exchanged(self.R, self.H, self.W, L, self.A.size)
        if k > 2 and (last or k >= 1.25 * self.looked):
            self.shared = _covariance(whole, self.R, self.H, self.W, L, self.A.size)
            self.looked = k
        return Samples(whole, blocks, self.frobenius, self.shared)


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
