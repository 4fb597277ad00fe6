"""How far a trace from random probes may be off, told by the products themselves.

For z of independent signs and a symmetric R, the products d = z * (R z), entry by entry, have the
diagonal of R as their mean, and the variances of d's entries add up to F, the squared norm of R
off its diagonal; the trace z . R z has the variance 2 F. Every probe tells F from n entries, much
better than a few traces tell their own variance: no skewness hides in it, and for R with many
eigenvalues of a size it is as good as known. Cost: no products.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curvcli.linalg.probing import Known, Spread, widening

FIRST = 6
"""Pairs of probes that count as told beforehand."""

_COLUMNS = 1 << 18  # entries converted to float64 at a time


class Scatter:
    """The products d of the probes so far: sums over blocks, and squared distances from the mean.

    The i-th probe's distance from the mean of those before it tells of the variance without bias
    [Welford 1962, doi:10.1080/00401706.1962.10490022], as independently of the others as may be.
    """

    def __init__(self, blocks: Sequence[slice]) -> None:
        self.blocks = blocks
        self.mean: Tensor | None = None  # (n,) float64
        self.sums: list[Tensor] = []  # (b,) float64
        self.squares: list[Tensor] = []  # (b,) float64, none by the first probe
        self.inner: list[Tensor] = []  # (b,) float64, by pairs of probes
        self.noise: list[float] = []  # what of a block's variance is in one of them

    def __len__(self) -> int:
        return len(self.sums)

    def add(self, Z: Tensor, RZ: Tensor) -> None:
        """Take in probes (c, n) and their products (c, n)."""
        if self.mean is None:
            self.mean = torch.zeros(Z.shape[1], dtype=torch.float64, device=Z.device)
        k = len(self) + torch.arange(len(Z), device=Z.device).double().unsqueeze(1)  # (c, 1)
        sums = torch.zeros(len(Z), len(self.blocks), dtype=torch.float64, device=Z.device)
        squares = torch.zeros_like(sums)
        for i, cut in cuts(self.blocks):
            mean = self.mean[cut]
            d = Z[:, cut].double() * RZ[:, cut].double()
            sums[:, i] += d.sum(dim=1)
            total = len(self) * mean + d.cumsum(dim=0)
            gap = d - (total - d) / k.clamp_min(1)
            squares[:, i] += (k / (k + 1) * gap.square()).sum(dim=1)
            mean.copy_(total[-1] / (len(self) + len(Z)))
        self.squares += squares.cpu()[len(self.sums) == 0 :]
        self.sums += sums.cpu()
        if len(self) > 2:
            self._pair(Z, RZ)

    def _pair(self, Z: Tensor, RZ: Tensor) -> None:
        """Tell the squared norm of every block within R but for its diagonal.

        From every product z_i . R z_j is taken what the diagonal makes of it, which is estimated
        by the probes other than those two; that adds their variance.
        """
        assert self.mean is not None
        others = len(self) - 2
        C = coupled(self.blocks, Z, RZ)
        diagonal = len(self) * coupled(self.blocks, Z, self.mean * Z) - C - C.mT
        new = pairs(C - diagonal / others)
        self.inner += new
        self.noise += [1 / others] * len(new)

    def whole(self) -> tuple[Spread, float]:
        """Give the mean with its standard error, and what that has in degrees of freedom."""
        k = len(self)
        if k < 2:
            return (float(self.sums[0].sum()) if k else math.nan, math.inf), 0.0
        (variance,), (freedom,) = pooled(torch.stack(self.squares).sum(dim=1, keepdim=True))
        error = math.sqrt(2 * variance / k) * widening(freedom)
        return (float(torch.stack(self.sums).sum(dim=1).mean()), error), freedom

    def within(self) -> tuple[Spread, ...]:
        """Give the mean of every block's own trace and its standard error."""
        noise = sum(self.noise) / max(len(self.noise), 1)
        return by_block(self.blocks, self.sums, self.squares, self.inner, noise)


def coupled(blocks: Sequence[slice], Z: Tensor, RZ: Tensor) -> Tensor:
    """Multiply probes by products over every block: (b, c, c), of which [:, i, j] is z_i . R z_j.

    For independent probes x and z, (x . R z)(z . R x) over a block has the mean sum_ij r_ij^2.
    """
    C = torch.zeros(len(blocks), len(Z), len(Z), dtype=torch.float64, device=Z.device)
    for i, cut in cuts(blocks):
        C[i] += Z[:, cut].double() @ RZ[:, cut].double().T
    return C.cpu()


def pairs(C: Tensor) -> list[Tensor]:
    """Multiply every entry of C (b, c, c) below the diagonal by its mirror image: (b,) for each."""
    return [C[:, i, j] * C[:, j, i] for i in range(C.shape[1]) for j in range(i)]


def by_block(
    blocks: Sequence[slice],
    sums: list[Tensor],
    rows: list[Tensor],
    inner: list[Tensor],
    noise: float = 0.0,
) -> tuple[Spread, ...]:
    """Give the means of the blocks' traces `sums` (b,) each, and their standard errors.

    Of a block's variance, all of its rows of R count once, of which `rows` tell F, and what lies
    within the block once more, of which `inner` tell together with noise * F. That is F at most,
    and taken for as much by way of as many as FIRST of them: too little is told more often.
    """
    k = len(sums)
    if k < 2:
        return tuple(
            (m, math.inf) for m in (sums[0].tolist() if sums else [math.nan] * len(blocks))
        )
    means, parts = torch.stack(sums).mean(dim=0).tolist(), torch.stack(rows)
    twice = torch.stack(inner).mean(dim=0).tolist() if inner else [0.0] * len(blocks)
    told = len(inner) / (len(inner) + FIRST)
    found = []
    for mean, F, freedom, inside in zip(means, *pooled(parts), twice, strict=True):
        variance = F + told * min(max(inside - noise * F, 0.0), F) + (1 - told) * F
        found.append((mean, math.sqrt(variance / k) * widening(freedom)))
    return tuple(found)


def pooled(variances: Tensor) -> tuple[list[float], list[float]]:
    """Give means of variances (m, b) and their worth in degrees of freedom [Satterthwaite 1946].

    The worst is a single eigenvalue, of which a product knows a chi-squared with one degree, with
    relative variance 2: as much is assumed beside the first few.
    """
    m, mean = len(variances), variances.mean(dim=0)
    relative = torch.full_like(mean, 2.0)
    if m > 1:
        own = (variances / mean).var(dim=0).nan_to_num(2.0)  # nan where all are zero
        relative = (m * own + relative) / (m + 1)
    return mean.tolist(), (2 * m / relative).tolist()


def gathered(scatter: Scatter, exact: Tensor | None = None) -> Known:
    """Put together what probes have scattered about, with blocks' traces (b,) that are exact."""
    (mean, error), freedom = scatter.whole()
    add = [0.0] * len(scatter.blocks) if exact is None else exact.tolist()
    blocks = tuple((x + m, e) for x, (m, e) in zip(add, scatter.within(), strict=True))
    return Known((mean + sum(add), error), freedom, blocks, len(scatter))


def cuts(blocks: Sequence[slice]) -> list[tuple[int, slice]]:
    """Cut blocks into pieces that may be converted to float64 at a time."""
    return [
        (i, slice(begin, min(begin + _COLUMNS, s.stop)))
        for i, s in enumerate(blocks)
        for begin in range(s.start, s.stop, _COLUMNS)
    ]
