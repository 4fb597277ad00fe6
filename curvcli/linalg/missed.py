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
2. A random start rarely misses. Suppose that C, in R^n, has a unit eigenvector u with an eigenvalue
   at or beyond a level that lies beyond all Ritz values of the run. The spectral measure of the
   start q has the mass (u^T q)^2 there, and no measure with the run's moments has more than the
   Christoffel function chi = 1 / sum of p_j(level)^2, over the orthonormal polynomials p_0 .. p_k
   that the recurrence of k products gives [Akhiezer 1965, The Classical Moment Problem, chapter 2;
   Szego 1939, section 3.41]; it falls beyond the Ritz values. But for q uniform on the sphere,
   (u^T q)^2 <= t has at most the probability sqrt(2 n t / pi). So chi says with which probability
   what is there can have escaped. It feels how the spectrum is spread, and asks nothing of its
   other end: it takes three quarters of the products of the bound for any spectrum [Kuczynski and
   Wozniakowski 1992, doi:10.1137/0613066, theorem 4.2], and no stop chosen by what was seen can
   spoil it, since (u^T q)^2 <= chi holds at every step.

What counts is that the start is independent of Y: one run serves any Y, also one that a block of
runs has found. And it is Lanczos with C only while it is orthogonal to Y, to nothing else, and to
all of its own vectors. So a basis is cut back to Y, and to what else has converged, before the run
begins, and never while it lasts. Where it has no room to last, the answer is unverified, with the
doubt that is left.
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


def alone(K: Krylov) -> bool:
    """Tell whether the basis is one whole run from one random start.

    Where one pair is wanted from an end, no copy of it can be missed, so that such a run bounds
    what lies beyond its own extreme Ritz value: fact 2 with C = A, and nothing is left to Y.
    """
    whole = K.steps == len(K.Q) and not len(K.lost)
    return whole and len(K.runs) == 1 and K.runs[0].begin == 0 and len(K.runs[0].U) <= 1


@dataclass
class Hunt:
    """A run begun to look for what lies beyond the levels."""

    K: Krylov
    run: Run
    levels: tuple[float, float]

    @property
    def steps(self) -> int:
        """How many products this run has taken."""
        return len(self.K.Q) - self.run.begin

    def look(self) -> bool:
        """Tell whether the run sees something that was missed."""
        own = torch.linalg.eigvalsh(self.K.H[self.run.begin :, self.run.begin :])
        low, high = self.levels
        # Written so that nan, too few values known before this run, counts as found.
        return not (float(own[-1]) <= high and float(own[0]) >= low)

    @property
    def doubt(self) -> float:
        """Bound the probability that what is beyond the levels has escaped the run."""
        return escaped(self.K, self.run, self.levels)


def escaped(K: Krylov, run: Run, levels: tuple[float, float]) -> float:
    """Bound the probability that what is beyond the levels has escaped a run."""
    n = K.A.size - run.begin
    if not run.U or len(K.Q) - run.begin >= n:  # the run closed: it holds every value of C
        return 0.0
    T = K.H[run.begin :, run.begin :]
    alpha = T.diagonal().tolist()
    beta = [*T.diagonal(1).abs().tolist(), float(run.C[0, -1].abs())]
    low, high = levels
    below = escape([-a for a in alpha], beta, n, -low)
    return min(1.0, below + escape(alpha, beta, n, high))


def escape(alpha: Sequence[float], beta: Sequence[float], n: int, level: float) -> float:
    """Bound the probability that an eigenvalue of C, in R^n, at or above `level` escaped a run.

    From the k diagonal entries `alpha` of the recurrence and the k others `beta`, the last of
    which is the norm of the last remainder. p_j(level) is the product of d_i / beta_i,
    with d the pivots of level - T, all positive where the level is beyond every Ritz value.
    """
    if level == math.inf:  # nobody asked
        return 0.0
    logs, last = [0.0], 0.0
    for i, (a, b) in enumerate(zip(alpha, beta, strict=True)):
        pivot = level - a - (beta[i - 1] * (beta[i - 1] / last) if i else 0.0)
        if not pivot > 0:
            return 1.0
        if b == 0:
            return 0.0
        logs.append(logs[-1] + math.log(pivot) - math.log(b))
        last = pivot
    most = max(logs)
    size = most + math.log(sum(math.exp(2 * (x - most)) for x in logs)) / 2
    return math.exp(min(0.0, math.log(2 * n / math.pi) / 2 - size))
