"""Whether eigenvalues were missed: a random start in the complement of the pairs that were found.

Lanczos sees nothing that its start lacks, and one copy of a repeated eigenvalue. So once the wanted
pairs Y, Theta have converged, a run is begun at a vector drawn uniformly from the complement of Y,
where A is C = P A P. Two facts bound what it may have missed.

1. One was missed only if C has an eigenvalue that is too large. Let A Y = Y Theta + R. By the
   inertia of the Schur complement, A has as many eigenvalues above any x > C as
   Theta + R^T (x - C)^-1 R. There the i - 1 pairs above theta_i can add i - 1 (Cauchy); the others
   grow by rho_i^2 / (x - c) at most, where rho_i^2 is the sum of their squared residuals and
   C <= c. At x = theta_i + s_i: if rho_i^2 <= s_i (theta_i + s_i - c), then
   lambda_i <= theta_i + s_i. So no eigenvalue lies more than s_i beyond theta_i, for any i, if
   C <= c = min over i of theta_i + s_i - rho_i^2 / s_i. The lower end is the same for -A.
2. A random start rarely misses. After k products with C from a start that is uniform on the sphere
   of its space, of dimension n, the extreme Ritz value is off by more than epsilon times the spread
   of C's spectrum with at most the probability 1.648 sqrt(n) exp(-sqrt(epsilon) (2 k - 1))
   [Kuczynski and Wozniakowski 1992, doi:10.1137/0613066, theorem 4.2; Lanczos feels no shift].

What counts is that the start is independent of Y: one run serves any Y, also one that a block of
runs has found. And it is Lanczos with C only while it is orthogonal to Y, to nothing else, and to
all of its own vectors. So a basis is cut back to Y, and to what else has converged, before the run
begins, and never while it lasts. Where it has no room to last, several short ones may do: they are
independent of each other. Else the answer is unverified, with the doubt that is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.basis import norm as length
from curvcli.linalg.krylov import Krylov, Run
from curvcli.linalg.ritz import FLOOR, SLACK, Which, wanted


def ends(theta: Tensor, top: int, which: Which) -> tuple[list[float], list[float]]:
    """Give the ascending `theta`'s wanted values at the lower and at the upper end, edges included.

    An edge is the value beyond which one would be wanted. None stand at an end that nobody asked
    about, nan at one where fewer are known than are wanted.
    """
    chosen, upper = wanted(theta, top, which)
    values = theta[chosen].tolist()
    if which == "magnitude":
        edge = min(abs(v) for v in values) if len(values) == top else math.nan
        return [*(v for v in values if v < 0), -edge], [*(v for v in values if v >= 0), edge]
    low, high = values[upper:], values[:upper]
    if which in ("largest", "both") and len(high) < top:
        high = [math.nan]
    if which == "both":
        low = theta[:top].tolist() if len(theta) >= 2 * top else [math.nan]
    if which == "smallest" and len(low) < top:
        low = [math.nan]
    return low, high


def slack(value: float, norm: float) -> float:
    """Say by how much an eigenvalue must lie beyond a wanted value to count as missed."""
    return SLACK * max(abs(value), FLOOR * norm)


def levels(
    theta: Tensor, residuals: Tensor, top: int, which: Which, norm: float
) -> tuple[float, float]:
    """Say which values C must neither fall below nor exceed, if none is to have been missed.

    theta, residuals: (k,), those of all vectors to whose complement C belongs, values ascending.
    """
    low, high = ends(theta, top, which)
    return -_level(-theta, residuals, [-x for x in low], norm), _level(theta, residuals, high, norm)


def _level(theta: Tensor, residuals: Tensor, points: list[float], norm: float) -> float:
    level = math.inf
    for x in points:
        s = slack(x, norm)
        below = residuals[theta <= x]
        rho = length(below) if len(below) else 0.0
        at = x + s - (rho * (rho / s) if s > 0 else 0.0)
        if math.isnan(at):
            return at
        level = min(level, at)
    return level


def sharp(levels: tuple[float, float], theta: Tensor, top: int, which: Which, norm: float) -> bool:
    """Decide whether levels lie far enough beyond the edges to make a search worth its products."""
    for level, points, sign in zip(levels, ends(theta, top, which), (-1, 1), strict=True):
        if points:
            edge = min(sign * x for x in points)
            if not sign * level >= edge + slack(edge, norm) / 2:
                return False
    return True


@dataclass
class Hunt:
    """A run begun to look for what lies beyond the levels, alone or after others like it."""

    K: Krylov
    run: Run
    levels: tuple[float, float]
    least: float = math.inf  # the extreme Ritz values of all runs so far
    most: float = -math.inf
    before: tuple[int, ...] = ()  # how many products those others took

    @property
    def steps(self) -> tuple[int, ...]:
        """How many products every run has taken, this one last."""
        return (*self.before, len(self.K.Q) - self.run.begin)

    def look(self) -> bool:
        """Take note of what the run sees; True if that is something that was missed."""
        own = torch.linalg.eigvalsh(self.K.H[self.run.begin :, self.run.begin :])
        self.least, self.most = min(self.least, float(own[0])), max(self.most, float(own[-1]))
        low, high = self.levels
        # Written so that nan, too few values known before this run, counts as found.
        return not (self.most <= high and self.least >= low)

    @property
    def doubt(self) -> float:
        """Bound the probability that what is beyond the levels has escaped every run."""
        if not self.run.U:  # the run closed: it holds every value of the complement
            return 0.0
        n = self.K.A.size - self.run.begin
        return missed(self.steps, n, (self.least, self.most), self.levels)

    def again(self, run: Run) -> "Hunt":
        """Go on with another run where this one had no room left."""
        return Hunt(self.K, run, self.levels, self.least, self.most, self.steps)


def missed(
    steps: Sequence[int], n: int, found: tuple[float, float], levels: tuple[float, float]
) -> float:
    """Bound the probability that the spectrum of C, in R^n, is not within `levels`.

    `found` are the extreme Ritz values of runs of so many `steps` from random starts, within the
    levels. C's spread D is no more known than its ends are: where both are within epsilon D of what
    was found, D <= (found spread) / (1 - 2 epsilon). So the levels hold for epsilon = gap / (spread
    + 2 gap), unless one of the ends was misjudged: hence twice the bound. Runs miss independently.
    A stop chosen by what was seen changes nothing: a start misses by having too small a component,
    and the starts that miss after more products are among those that miss after fewer.
    """
    gap = min(levels[1] - found[1], found[0] - levels[0])
    if gap == math.inf or max(steps) >= n:  # nobody asked, or the whole space was seen
        return 0.0
    if not gap > 0:
        return 1.0
    epsilon = gap / (found[1] - found[0] + 2 * gap)
    logs = [math.log(1.648 * math.sqrt(n)) - math.sqrt(epsilon) * (2 * k - 1) for k in steps]
    return min(1.0, 2 * math.exp(sum(min(0.0, log) for log in logs)))
