"""The diagonal of a symmetric operator, estimated from random probes.

Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003: for z of independent signs,
z * (A z) has the diagonal as its mean, with variance sum_(j != i) a_ij^2. Cost: a product a probe.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.operator import LinearOperator, rademacher
from curvcli.linalg.probing import Spread, spreads, widening
from curvcli.linalg.ritz import Watch

PAIR = 12.7062 / 1.959964
"""Student's 97.5 % quantile over the normal's for two samples, where expansions do not reach."""


@dataclass(frozen=True)
class DiagonalEstimate:
    """Means over probes, entry by entry, and what is needed to sum them.

    mean, stderr: (n,) float64; mean ± 1.96 stderr holds an entry in 95 of 100 cases
    samples: (probes, blocks) float64, each probe's sum over each block
    shared:  (blocks + 1,), covariances of two probes' sums over each block, and over all
    matvecs: products used
    """

    mean: Tensor
    stderr: Tensor
    samples: Tensor
    shared: Tensor
    matvecs: int
    interrupted: bool

    @property
    def probes(self) -> int:
        """How many probes there were."""
        return len(self.samples)

    def block(self, index: int) -> Spread:
        """Give a block's trace and its standard error; probes are independent, entries are not."""
        return _summed(self.samples[:, index], float(self.shared[index]))

    def trace(self) -> Spread:
        """Give the trace and its standard error."""
        return _summed(self.samples.sum(dim=1), float(self.shared[-1]))


def _summed(samples: Tensor, shared: float) -> Spread:
    """Judge the mean of samples (k,) of which two have the covariance `shared`."""
    ((mean, stderr),) = spreads(samples.unsqueeze(1))
    alone = float(samples.var()) / len(samples) if len(samples) > 1 else 0.0
    return mean, stderr * math.sqrt(1 + shared / alone) if alone else stderr


class Moments:
    """Means and squared deviations of vectors (n,) that come one by one [Welford 1962]."""

    def __init__(self, like: Tensor, blocks: list[slice]) -> None:
        self.mean = torch.zeros(like.numel(), dtype=torch.float64, device=like.device)
        self.square = torch.zeros_like(self.mean)
        self.blocks = blocks
        self.samples: list[Tensor] = []

    def add(self, x: Tensor) -> Spread:
        """Take one more in float64, and tell what is known of the sum of all entries."""
        delta = x - self.mean
        self.mean = self.mean + delta / (len(self.samples) + 1)
        self.square = self.square + delta * (x - self.mean)
        self.samples.append(torch.stack([x[b].sum() for b in self.blocks]).cpu())
        return spreads(torch.stack(self.samples).sum(dim=1, keepdim=True))[0]

    def estimate(self, matvecs: int, interrupted: bool) -> DiagonalEstimate:
        """Judge the entries by Student's t: few probes know little of their deviation."""
        k, blocks = len(self.samples), len(self.blocks)
        stderr = torch.full_like(self.square, torch.inf)
        if k > 1:
            wider = widening(k - 1) if k > 2 else PAIR
            stderr = (self.square / (k - 1) / k).sqrt() * wider
        samples = torch.stack(self.samples) if k else torch.zeros(0, blocks).double()
        shared = torch.zeros(blocks + 1).double()
        return DiagonalEstimate(self.mean, stderr, samples, shared, matvecs, interrupted)


def hutchinson_diagonal(
    A: LinearOperator,
    probes: int,
    rng: torch.Generator,
    blocks: list[slice],
    watch: Watch | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal from `probes` products, with a standard error for every entry."""
    moments = Moments(A.like, blocks)
    interrupted = False
    try:
        for k in range(1, probes + 1):
            z = rademacher(A.like, rng)
            known = moments.add((z * A.matvec(z)).double())
            if watch:
                watch(k, probes, *known)
    except KeyboardInterrupt:
        interrupted = True
    return moments.estimate(len(moments.samples), interrupted)
