"""A trace from random probes until its standard error is small enough, whatever the probes are.

A method spends products on samples; here they are averaged, judged and stopped. Where the budget
reaches n, n products with unit vectors give the trace exactly.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import Watch

Status = Literal["converged", "max_matvecs", "interrupted"]
Spread = tuple[float, float]

FLOOR = 0.1
"""A trace below this share of its parts' sizes is held against this share of them instead."""

SURE = 1.2816
"""Normal quantile: with probability 90 % the deviation is not above the bound that must be met."""

QUANTILE = 1.959964
"""Of the normal distribution: 95 % lie within as many deviations."""

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
class Samples:
    """What the probes say: the whole (k,) and the blocks (k, b), float64 on the CPU."""

    whole: Tensor
    blocks: Tensor
    frobenius: float  # an estimate of ||A||_F
    shared: float = 0.0  # covariance of two of the whole's samples


class Method(ABC):
    """A way to spend products on samples whose mean is the trace.

    Ctrl-C may come at any time: a step notes nothing down before all of its products are there.
    """

    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        self.A = A
        self.rng = rng
        self.blocks = blocks
        self.cuts = [(i, cut) for i, s in enumerate(blocks) for cut in _cuts(s)]
        self.squares: list[float] = []  # ||A z||^2, whose mean is ||A||_F^2

    least: int
    """Probes before a deviation is trusted to end the search; single ones are skewed."""

    @property
    def sketches(self) -> int:
        """Directions that are taken out exactly."""
        return 0

    @property
    @abstractmethod
    def cost(self) -> int:
        """Products of the next step."""

    @abstractmethod
    def step(self) -> None:
        """Spend them."""

    @abstractmethod
    def samples(self, last: bool) -> Samples:
        """Give what is known; `last` asks for what is worth its time only at the end."""

    def by_block(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum the products of entries over every block: (b,)."""
        xy = x.double() * y.double()
        return torch.stack([xy[s].sum() for s in self.blocks]).cpu()

    @property
    def frobenius(self) -> float:
        """Estimate ||A||_F from the products so far."""
        return math.sqrt(sum(self.squares) / len(self.squares)) if self.squares else 0.0


def _cuts(s: slice) -> list[slice]:
    ends = range(s.start, s.stop, _COLUMNS)
    return [slice(i, min(i + _COLUMNS, s.stop)) for i in ends]


def search(
    method: Callable[[Counted, torch.Generator, Sequence[slice]], Method],
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


def _judged(ways: Method, *, last: bool) -> Estimate:
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
