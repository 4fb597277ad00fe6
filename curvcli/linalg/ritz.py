"""Approximate eigenpairs, which of them are wanted, and how sure one may be of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvcli.linalg.basis import norm

Which = Literal["largest", "smallest", "both", "magnitude"]
Status = Literal["converged", "unverified", "inexact", "max_matvecs", "interrupted"]
Watch = Callable[[int, int | None, float | None, float | None], None]

FLOOR = 0.01
"""Below this share of the norm, residuals are held against this share of the norm."""

DOUBT = 0.05
"""The probability of a missed eigenvalue at which the search for one ends."""

SLACK = 0.05
"""By how much of its size an eigenvalue must lie beyond the last wanted one to count as missed."""


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs of a symmetric operator, most wanted first.

    values:    (k,) float64, Rayleigh quotients
    vectors:   (k, n), orthonormal
    residuals: (k,) float64, ||A y - theta y||: [theta - r, theta + r] contains an eigenvalue
    radius:    (k,) float64, half-widths of intervals that contain k different eigenvalues, one each
    doubt:     bound on the probability that one was missed: that the i-th eigenvalue lies more than
               SLACK of its size beyond the i-th value here (see missed.py)
    matvecs:   products used, verification included
    restarts:  how often the basis was cut back for want of room
    short_of:  what ended the work before it was done: products, or room for vectors
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    radius: Tensor
    doubt: float
    matvecs: int
    status: Status
    restarts: int = 0
    short_of: Literal["nothing", "matvecs", "vectors"] = "nothing"

    @property
    def converged(self) -> bool:
        """Whether every residual met the tolerance and the search for missed ones ended."""
        return self.status == "converged"

    @property
    def complete(self) -> bool:
        """Whether nothing beyond these was missed, but for the probability `doubt`."""
        return self.converged or (self.status == "inexact" and self.doubt <= DOUBT)


def wanted(theta: Tensor, top: int, which: Which) -> tuple[list[int], int]:
    """Say which of the ascending `theta` (m,) are asked for, most wanted first.

    The second number tells how many of them stand at the upper end of the spectrum.
    """
    m = len(theta)
    up, down = list(range(m - 1, -1, -1)), list(range(m))
    if which == "largest":
        return up[:top], min(top, m)
    if which == "smallest":
        return down[:top], 0
    if which == "both":
        first = up[:top]
        return first + [i for i in down[:top] if i not in first], len(first)
    chosen = sorted(range(m), key=lambda i: -abs(float(theta[i])))[:top]
    return chosen, sum(float(theta[i]) >= 0 for i in chosen)


def small(residuals: Tensor, theta: Tensor, norm: float, tolerance: float) -> bool:
    """Decide whether residuals are small against their eigenvalues (or against FLOOR * norm)."""
    return bool((residuals <= tolerance * theta.abs().clamp_min(FLOOR * norm)).all())


def radii(theta: Tensor, residuals: Tensor) -> Tensor:
    """Widen residuals to half-widths of intervals that hold k different eigenvalues, one each.

    A lone interval needs its own residual only. In a cluster of overlapping intervals, k Ritz
    values with an orthonormal basis lie within ||R||_2 <= ||r||_2 of k eigenvalues, one each
    [Parlett 1998, The Symmetric Eigenvalue Problem, theorem 11.5.1]. A cluster that reaches its
    neighbour once it is widened takes that in, too.
    """
    clusters: list[list[int]] = []
    for i in torch.argsort(theta).tolist():
        clusters.append([i])
        while len(clusters) > 1 and _overlap(theta, residuals, *clusters[-2:]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    out = residuals.clone()
    for cluster in clusters:
        out[cluster] = norm(residuals[cluster])
    return out


def _overlap(theta: Tensor, residuals: Tensor, low: list[int], high: list[int]) -> bool:
    gap = float(theta[high[0]] - theta[low[-1]])
    return gap <= norm(residuals[low]) + norm(residuals[high])
