"""What a trace from random probes is, and what a way to estimate it has to offer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvcli.linalg.operator import Counted

Status = Literal["converged", "max_matvecs", "interrupted"]
Spread = tuple[float, float]

FLOOR = 0.1
"""A trace below this share of its parts' sizes is held against this share of them instead."""

QUANTILE = 1.959964
"""Of the normal distribution: 95 % lie within as many deviations."""

SURE = 1.2816
"""Normal quantile: with probability 90 % the deviation is not above the bound that must be met."""

CHUNK = 4
"""Vectors that are multiplied together: few enough to be no burden on memory."""


@dataclass(frozen=True)
class Estimate:
    """A trace and its standard error: mean ± 1.96 stderr holds the truth in 95 of 100 cases.

    stderr:  widened where probes are few or skewed; 0 where the trace is exact, inf where one
             probe cannot tell
    freedom: degrees of freedom of the standard error
    blocks:  mean and standard error of every block's own trace
    scale:   what the standard error was held against: the trace, or FLOOR of the parts' sizes
    parts:   the larger of the sum of the |blocks| and the Frobenius norm, both <= sum |lambda|
    matvecs: products used; `sketches` are directions taken out exactly
    by_entries: the diagonal was taken entry by entry, in random order
    """

    mean: float
    stderr: float
    freedom: float
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
        if self.stderr in (0, math.inf):
            return self.stderr
        return self.stderr * doubt(self.freedom) / widening(self.freedom)

    @property
    def relative(self) -> float:
        """The standard error in units of the scale."""
        return self.stderr / self.scale if self.scale > 0 else (math.inf if self.stderr else 0.0)


@dataclass(frozen=True)
class Known:
    """What the probes say of the whole and of every block, as means and standard errors."""

    whole: Spread
    freedom: float
    blocks: tuple[Spread, ...]
    probes: int


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


def widening(freedom: float) -> float:
    """Give Student's 97.5 % quantile over the normal's [Abramowitz and Stegun 1964, 26.7.5]."""
    x, v = QUANTILE, max(freedom, 2.0)  # the expansion is good to 1 % from two degrees on
    g1: float = (x**2 + 1) / 4
    g2 = (5 * x**4 + 16 * x**2 + 3) / 96
    g3 = (3 * x**6 + 19 * x**4 + 17 * x**2 - 15) / 384
    g4 = (79 * x**8 + 776 * x**6 + 1482 * x**4 - 1920 * x**2 - 945) / 92160
    return 1 + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def doubt(freedom: float) -> float:
    """Bound how far a deviation of such freedom may lie below the true one, as a factor.

    sqrt(v / chi2) at the lower 10 % quantile of chi2 [Wilson and Hilferty 1931].
    """
    v = max(freedom, 2.0)
    root = 1 - 2 / (9 * v) - SURE * math.sqrt(2 / (9 * v))
    return 1 / math.sqrt(root**3)


def drawn(
    draw: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    like: Tensor,
    rng: torch.Generator,
) -> Tensor:
    """Draw vectors of `like`'s kind, one after the other: (count, n)."""
    return torch.stack([draw(like, rng) for _ in range(count)])


class Method(ABC):
    """A way to spend products on samples whose mean is the trace.

    Ctrl-C may come at any time: a step notes nothing down before all of its products are there.
    """

    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        self.A = A
        self.rng = rng
        self.blocks = blocks
        self.squares: list[float] = []  # ||A z||^2, whose mean is ||A||_F^2

    @property
    def sketches(self) -> int:
        """Directions that are taken out exactly."""
        return 0

    @abstractmethod
    def step(self, matvecs: int) -> bool:
        """Spend some products, of `matvecs` that are left; False where those are too few."""

    @abstractmethod
    def known(self, *, last: bool) -> Known:
        """Say what is known; `last` asks for what is worth its time only at the end."""

    @property
    def frobenius(self) -> float:
        """Estimate ||A||_F from the products so far."""
        return math.sqrt(sum(self.squares) / len(self.squares)) if self.squares else 0.0
