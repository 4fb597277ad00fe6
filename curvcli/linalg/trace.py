"""The trace of a symmetric operator from random probes, with a standard error that can be trusted.

Hutchinson 1990, doi:10.1080/03610919008812866; Hutch++ [Meyer, Musco, Musco and Woodruff 2021,
doi:10.1137/1.9781611976496.16]; XTrace [Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323].
Cost: Hutchinson takes a product a probe, Hutch++ two a sketch and one a probe, XTrace two a probe.
Where the budget reaches n, n products with unit vectors give the trace exactly.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvcli.linalg.basis import Basis, norm
from curvcli.linalg.operator import Counted, LinearOperator, normal, rademacher
from curvcli.linalg.ritz import Watch

Status = Literal["converged", "max_matvecs", "interrupted"]
Spread = tuple[float, float]

FLOOR = 0.1
"""A trace below this share of its parts' sizes is held against this share of them instead."""

SURE = 1.2816
"""Normal quantile: with probability 90 % the deviation is not above the bound that must be met."""

QUANTILE = 1.959964
"""Of the normal distribution: 95 % lie within as many deviations."""

TRIALS = 4
"""Sketches that are always tried, and whose yield is looked at together."""


_COLUMNS = 1 << 18  # entries converted to float64 at a time


@dataclass(frozen=True)
class Estimate:
    """A trace and its standard error: mean ± 1.96 stderr holds the truth in 95 of 100 cases.

    stderr:  widened where probes are few or skewed; 0 where the trace is exact, inf where one
             probe cannot tell
    blocks:  mean and standard error of every block's own trace
    scale:   what the standard error was held against: the trace, or FLOOR of the parts' sizes
    parts:   the larger of the sum of the |blocks| and the Frobenius norm, both <= sum |lambda|
    matvecs: products used; `sketches` are directions taken out exactly
    by_entries: the diagonal was taken entry by entry, in random order
    """

    mean: float
    stderr: float
    blocks: tuple[Spread, ...]
    scale: float
    parts: float
    matvecs: int
    probes: int
    sketches: int
    status: Status
    by_entries: bool = False

    @property
    def exact(self) -> bool:
        """Whether every entry of the diagonal has been computed."""
        return self.by_entries and self.status == "converged"

    @property
    def bound(self) -> float:
        """What the standard error is below, with 90 % probability: what the tolerance is for."""
        if self.stderr in (0, math.inf) or self.probes < 2:
            return self.stderr
        return self.stderr * _bound(self.probes - 1) / widening(self.probes - 1)

    @property
    def relative(self) -> float:
        """The standard error in units of the scale."""
        return self.stderr / self.scale if self.scale > 0 else (math.inf if self.stderr else 0.0)


def hutchinson(
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    *,
    max_matvecs: int = 300,
    blocks: Sequence[slice] | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """Average z . A z over vectors of independent signs, until the relative error is `tolerance`.

    `blocks` partition the space; each gets its own trace from the same products.
    """
    return _search(_Hutchinson, A, tolerance, rng, max_matvecs, blocks, watch)


def hutchpp(
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    *,
    max_matvecs: int = 300,
    blocks: Sequence[slice] | None = None,
    watch: Watch | None = None,
    vectors: int | None = None,
) -> Estimate:
    """Take the range of a sketch out exactly, and estimate what remains as Hutchinson does.

    A sketch, which costs two products, is added with every probe as long as it promises to lower
    the remainder's variance by more than as many probes would [after Persson, Cortinovis and
    Kressner 2022, doi:10.1137/21M1447623]: a flat spectrum is left to the probes alone. What has
    been multiplied once serves every later remainder. `vectors` limits how many are held.
    """
    room = max_matvecs if vectors is None else vectors

    def method(A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> _HutchPP:
        return _HutchPP(A, rng, blocks, max_matvecs, room // 3)

    return _search(method, A, tolerance, rng, max_matvecs, blocks, watch)


def xtrace(
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    *,
    max_matvecs: int = 300,
    blocks: Sequence[slice] | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """Let every probe be judged by the range of all others, and average.

    The whole only: `blocks` get Hutchinson's estimates from half of the products, with errors as
    large as those are, and need not sum to the whole.
    """
    return _search(_XTrace, A, tolerance, rng, max_matvecs, blocks, watch)


def spreads(samples: Tensor, shared: float = 0.0) -> list[Spread]:
    """Give the means of samples (k, b) and their standard errors, so that ± 1.96 of them covers.

    Widened by Student's t, and for skewness by the leading term of the two-sided Edgeworth
    expansion, gamma^2 (x^4 + 2 x^2 - 3) / (18 k) [Hall 1992, The Bootstrap and Edgeworth Expansion,
    section 2.6]; `shared` is the covariance of two samples. None have a mean of nan, and one alone
    an infinite error.
    """
    k, mean = len(samples), samples.mean(dim=0)
    if k < 2:
        return [(m, math.inf) for m in mean.tolist()]
    gap = samples - mean
    square = gap.square().mean(dim=0)
    gamma = gap.pow(3).mean(dim=0) / square.pow(1.5)
    skewed = (QUANTILE**4 + 2 * QUANTILE**2 - 3) / 18 * gamma.nan_to_num(0.0).square() / k
    error = (square / (k - 1) + shared).sqrt() * (widening(k - 1) + skewed)
    return list(zip(mean.tolist(), error.tolist(), strict=True))


def widening(freedom: int) -> float:
    """Give Student's 97.5 % quantile over the normal's [Abramowitz and Stegun 1964, 26.7.5]."""
    x, v = QUANTILE, freedom
    g1: float = (x**2 + 1) / 4
    g2 = (5 * x**4 + 16 * x**2 + 3) / 96
    g3 = (3 * x**6 + 19 * x**4 + 17 * x**2 - 15) / 384
    g4 = (79 * x**8 + 776 * x**6 + 1482 * x**4 - 1920 * x**2 - 945) / 92160
    return 1 + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def _bound(freedom: int) -> float:
    """Bound how far a deviation from so few samples may lie below the true one, as a factor.

    sqrt(v / chi2) at the lower 10 % quantile of chi2 [Wilson and Hilferty 1931].
    """
    v = freedom
    root = 1 - 2 / (9 * v) - SURE * math.sqrt(2 / (9 * v))
    return 1 / math.sqrt(root**3)


@dataclass(frozen=True)
class _Samples:
    """What the probes say: the whole (k,) and the blocks (k, b), float64 on the CPU."""

    whole: Tensor
    blocks: Tensor
    frobenius: float  # an estimate of ||A||_F
    shared: float = 0.0  # covariance of two of the whole's samples


class _Method(ABC):
    """A way to spend products on samples whose mean is the trace.

    Ctrl-C may come at any time: a step notes nothing down before all of its products are there.
    """

    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        self.A = A
        self.rng = rng
        self.blocks = blocks
        self.cuts = [(i, cut) for i, s in enumerate(blocks) for cut in _cuts(s)]
        self.squares: list[float] = []  # ||A z||^2, whose mean is ||A||_F^2

    sketches = 0
    least: int
    """Probes before a deviation is trusted to end the search; single ones are skewed."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Products of the next step."""

    @abstractmethod
    def step(self) -> None:
        """Spend them."""

    @abstractmethod
    def samples(self, last: bool) -> _Samples:
        """Give what is known; `last` asks for what is worth its time only at the end."""

    def by_block(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum the products of entries over every block: (b,)."""
        xy = x.double() * y.double()
        return torch.stack([xy[s].sum() for s in self.blocks]).cpu()

    @property
    def frobenius(self) -> float:
        return math.sqrt(sum(self.squares) / len(self.squares)) if self.squares else 0.0


def _cuts(s: slice) -> list[slice]:
    ends = range(s.start, s.stop, _COLUMNS)
    return [slice(i, min(i + _COLUMNS, s.stop)) for i in ends]


class _Hutchinson(_Method):
    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        super().__init__(A, rng, blocks)
        self.rows: list[Tensor] = []

    least = 20
    cost = 1

    def step(self) -> None:
        z = rademacher(self.A.like, self.rng)
        y = self.A.matvec(z)
        row = self.by_block(z, y)
        self.squares.append(float(y.double().square().sum()))
        self.rows.append(row)

    def samples(self, last: bool) -> _Samples:
        rows = torch.stack(self.rows) if self.rows else torch.zeros(0, len(self.blocks)).double()
        return _Samples(rows.sum(dim=1), rows, self.frobenius)


class _HutchPP(_Method):
    """The sketch's orthonormal range Q, and for every probe z what any later Q needs of it.

    With P = Q Q^T, A = (PA + AP - PAP) + (I-P) A (I-P). The trace of the first part is tr(Q^T A Q);
    of the second a probe gives z^T A z - 2 c^T d + c^T H c, where c = Q^T z, d = Q^T A z and
    H = Q^T A Q. Both hold block by block with the dot products taken over the block, and for any
    symmetric P, so that rounding in Q does not bias the sum.
    """

    def __init__(
        self,
        A: Counted,
        rng: torch.Generator,
        blocks: Sequence[slice],
        max_matvecs: int,
        room: int,
    ) -> None:
        super().__init__(A, rng, blocks)
        b = len(blocks)
        self.max_matvecs, self.room = max_matvecs, room
        self.Q, self.AQ, self.Z = Basis(A.like), Basis(A.like), Basis(A.like)
        self.zAz = torch.zeros(b, 0).double()
        self.Qz = torch.zeros(b, 0, 0).double()  # (b, sketches, probes)
        self.AQz = torch.zeros(b, 0, 0).double()
        self.QQ = torch.zeros(b, 0, 0).double()  # (b, sketches, sketches)
        self.QAQ = torch.zeros(b, 0, 0).double()
        self.yields: list[tuple[float, float]] = []  # variance taken off, and variance before

    least = 12

    @property
    def sketches(self) -> int:  # type: ignore[override]
        return len(self.Q)

    @property
    def sketching(self) -> bool:
        """Whether another sketch promises more than the two probes that it costs.

        Decided by the sketches alone: were it by the probes, they would no longer be independent of
        the remainder that they are asked about.
        """
        left = self.max_matvecs - self.A.matvecs
        if left < 3 or len(self.Q) >= self.room:
            return False
        if len(self.yields) < TRIALS:
            return True
        gain, before = map(sum, zip(*self.yields[-TRIALS:], strict=True))
        return gain * left > 2 * before

    @property
    def cost(self) -> int:
        return 3 if self.sketching else 1

    def step(self) -> None:
        if self.sketching:
            self._sketch()
        self._probe()

    def _sketch(self) -> None:
        w = self.A.matvec(normal(self.A.like, self.rng)).double()
        square = float(w.square().sum())
        self.Q.remove(w)
        left = norm(w)
        if left <= torch.finfo(self.A.like.dtype).eps * math.sqrt(square):
            self.room = len(self.Q)  # nothing but rounding remains outside
            return
        w /= left
        self.Q.remove(w)
        q = (w / w.norm()).to(self.A.like.dtype)
        Aq = self.A.matvec(q)
        QAq = torch.cat([self._dots(self.Q, Aq), self.by_block(q, Aq).unsqueeze(1)], dim=1)
        AQq = torch.cat([self._dots(self.AQ, q), QAq[:, -1:]], dim=1)
        Qq = torch.cat([self._dots(self.Q, q), self.by_block(q, q).unsqueeze(1)], dim=1)
        qz, Aqz = self._dots(self.Z, q), self._dots(self.Z, Aq)
        h = QAq.sum(dim=0)  # a column of Q^T A Q
        gain = 2 * float(Aq.double().square().sum()) - 2 * float(h[:-1].square().sum())
        # Nothing before here has changed what is known.
        self.squares.append(square)
        self.yields.append((gain - float(h[-1]) ** 2, left**2))
        self.QAQ = _bordered(self.QAQ, AQq, QAq)
        self.QQ = _bordered(self.QQ, Qq, Qq)
        self.Qz = torch.cat([self.Qz, qz.unsqueeze(1)], dim=1)
        self.AQz = torch.cat([self.AQz, Aqz.unsqueeze(1)], dim=1)
        self.Q.append(q)
        self.AQ.append(Aq)

    def _probe(self) -> None:
        z = rademacher(self.A.like, self.rng)
        y = self.A.matvec(z)
        zAz = self.by_block(z, y)
        Qz, AQz = self._dots(self.Q, z), self._dots(self.AQ, z)
        self.squares.append(float(y.double().square().sum()))
        self.zAz = torch.cat([self.zAz, zAz.unsqueeze(1)], dim=1)
        self.Qz = torch.cat([self.Qz, Qz.unsqueeze(2)], dim=2)
        self.AQz = torch.cat([self.AQz, AQz.unsqueeze(2)], dim=2)
        if self.sketching:  # else no sketch will ask for it
            self.Z.append(z)

    def samples(self, last: bool) -> _Samples:
        H = self.QAQ.sum(dim=0)
        H = (H + H.T) / 2
        exact = 2 * self.QAQ.diagonal(dim1=1, dim2=2).sum(dim=1) - (self.QQ * H).sum(dim=(1, 2))
        c, d = self.Qz.sum(dim=0), self.AQz.sum(dim=0)  # (sketches, probes)
        rest = self.zAz - (self.AQz * c).sum(dim=1) + (self.Qz * (H @ c - d)).sum(dim=1)
        rows, plain = (exact.unsqueeze(1) + rest).T, self.zAz.T
        # Signs know a diagonal exactly, whose remainder is one no more.
        if len(rows) > 1 and plain.sum(dim=1).std() < rows.sum(dim=1).std() / 2:
            rows = plain
        return _Samples(rows.sum(dim=1), rows, self.frobenius)

    def _dots(self, held: Basis, w: Tensor) -> Tensor:
        """Multiply the vectors that are held by w, block by block: (b, k)."""
        out = torch.zeros(len(self.blocks), len(held), dtype=torch.float64, device=w.device)
        begin = 0
        for rows in held.blocks:
            filled = rows[: len(held) - begin]
            for i, cut in self.cuts:
                out[i, begin : begin + len(filled)] += filled[:, cut].double() @ w[cut].double()
            begin += len(filled)
        return out.cpu()


def _bordered(M: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Add a row (b, k + 1) and a column (b, k + 1) with the same corner to M (b, k, k)."""
    out = pad(M, (0, 1, 0, 1))
    out[:, -1, :], out[:, :, -1] = row, column
    return out


class _XTrace(_Method):
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
    def sketches(self) -> int:  # type: ignore[override]
        return max(len(self.Q) - 1, 0)

    least = 12
    cost = 2

    def step(self) -> None:
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

    def samples(self, last: bool) -> _Samples:
        k = len(self.R)
        blocks = torch.stack(self.rows) if k else torch.zeros(0, len(self.blocks)).double()
        if k < 2:
            return _Samples(blocks.sum(dim=1), blocks, self.frobenius)
        L = torch.tensor(self.lengths).double()
        whole = _exchanged(self.R, self.H, self.W, L, self.A.size)
        if k > 2 and (last or k >= 1.25 * self.looked):
            self.shared = _covariance(whole, self.R, self.H, self.W, L, self.A.size)
            self.looked = k
        return _Samples(whole, blocks, self.frobenius, self.shared)


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


def _search(
    method: Callable[[Counted, torch.Generator, Sequence[slice]], _Method],
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    max_matvecs: int,
    blocks: Sequence[slice] | None,
    watch: Watch | None,
) -> Estimate:
    """Take steps until the deviation is small enough, or the products are used up."""
    counted, within = Counted(A), blocks or [slice(0, A.size)]
    if max_matvecs >= A.size:
        return _one_by_one(counted, rng, within, watch)
    ways = method(counted, rng, within)
    found = _judged(ways, last=False)
    try:
        while counted.matvecs + ways.cost <= max_matvecs:
            ways.step()
            found = _judged(ways, last=counted.matvecs + ways.cost > max_matvecs)
            if watch:
                watch(counted.matvecs, max_matvecs, found.mean, found.stderr)
            if found.probes >= ways.least and found.bound <= tolerance * found.scale:
                found = replace(_judged(ways, last=True), status="converged")
                break
    except KeyboardInterrupt:
        found = replace(found, status="interrupted")
    return replace(found, matvecs=counted.matvecs)


def _judged(ways: _Method, *, last: bool) -> Estimate:
    """Put what is known together."""
    known = ways.samples(last)
    ((mean, stderr),) = spreads(known.whole.unsqueeze(1), known.shared)
    blocks = tuple(spreads(known.blocks))
    parts = max(sum(abs(m) for m, _ in blocks), known.frobenius)
    if parts > 0:  # products are not more exact than their rounding
        stderr = math.hypot(stderr, torch.finfo(ways.A.like.dtype).eps * parts)
    return Estimate(
        mean=mean,
        stderr=stderr,
        blocks=blocks,
        scale=max(abs(mean), FLOOR * parts),
        parts=parts,
        matvecs=ways.A.matvecs,
        probes=len(known.whole),
        sketches=ways.sketches,
        status="max_matvecs",
    )


def _one_by_one(
    A: Counted, rng: torch.Generator, blocks: Sequence[slice], watch: Watch | None
) -> Estimate:
    """Take every entry of the diagonal by a product with its unit vector, in random order.

    Cut short, the entries seen are a sample drawn without replacement, of every block too.
    """
    n = A.size
    status: Status = "converged"
    order = torch.randperm(n, generator=rng, device=rng.device).tolist()
    entries = torch.full((n,), torch.nan, dtype=torch.float64)
    square, e = 0.0, torch.zeros_like(A.like)
    try:
        for done, i in enumerate(order, start=1):
            e[i] = 1
            column = A.matvec(e).double()
            e[i] = 0
            square += float(column.square().sum())
            entries[i] = column[i]
            if watch:
                watch(done, n, *_total(entries))
    except KeyboardInterrupt:
        status = "interrupted"
    mean, stderr = _total(entries)
    within = tuple(_total(entries[s]) for s in blocks)
    seen = int((~entries.isnan()).sum())
    frobenius = math.sqrt(square * n / max(seen, 1))
    parts = max(sum(abs(m) for m, _ in within), frobenius)
    return Estimate(
        mean=mean,
        stderr=stderr,
        blocks=within,
        scale=max(abs(mean), FLOOR * parts),
        parts=parts,
        matvecs=A.matvecs,
        probes=seen,
        sketches=0,
        status=status,
        by_entries=True,
    )


def _total(entries: Tensor) -> Spread:
    """Estimate the sum of entries (m,) of which those not seen are nan."""
    seen, m = entries[~entries.isnan()], len(entries)
    if len(seen) == m:
        return float(seen.sum()), 0.0
    ((mean, stderr),) = spreads(seen.unsqueeze(1))
    # Drawn without replacement, so that the error goes to zero as the last are seen.
    return m * mean, m * stderr * math.sqrt(1 - len(seen) / m)
