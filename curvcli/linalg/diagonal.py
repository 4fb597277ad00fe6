"""The diagonal of a symmetric operator, estimated from random probes.

Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003: for z of independent signs,
z * (A z) has the diagonal as its mean, with variance sum_(j != i) a_ij^2. Cost: a product a probe.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.operator import LinearOperator, rademacher
from curvcli.linalg.ritz import Watch


@dataclass(frozen=True)
class DiagonalEstimate:
    """Means over probes, entry by entry, and what is needed to sum them.

    mean, stderr: (n,) float64; samples: (probes, blocks) float64, each probe's sum over each block
    """

    mean: Tensor
    stderr: Tensor
    samples: Tensor
    probes: int
    interrupted: bool

    def block(self, index: int) -> tuple[float, float]:
        """Give a block's trace and its standard error; probes are independent, entries are not."""
        return mean_stderr(self.samples[:, index])

    def trace(self) -> tuple[float, float]:
        """Give the trace and its standard error."""
        return mean_stderr(self.samples.sum(dim=1))


def mean_stderr(samples: Tensor) -> tuple[float, float]:
    """Give the mean of independent samples (k,) and its standard error, inf for fewer than two."""
    k = len(samples)
    error = float(samples.std()) / math.sqrt(k) if k > 1 else math.inf
    return float(samples.mean()), error


def hutchinson_diagonal(
    A: LinearOperator,
    probes: int,
    rng: torch.Generator,
    blocks: list[slice],
    watch: Watch | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal from `probes` products, with a standard error for every entry."""
    n = A.size
    mean = torch.zeros(n, dtype=torch.float64, device=A.like.device)
    square = torch.zeros_like(mean)  # Welford's running sum of squared deviations
    samples: list[Tensor] = []
    interrupted = False
    try:
        for k in range(1, probes + 1):
            z = rademacher(A.like, rng)
            x = (z * A.matvec(z)).double()
            delta = x - mean
            mean = mean + delta / k
            square = square + delta * (x - mean)
            samples.append(torch.stack([x[b].sum() for b in blocks]).cpu())
            if watch:
                trace, error = mean_stderr(torch.stack(samples).sum(dim=1))
                watch(k, probes, trace, error)
    except KeyboardInterrupt:
        interrupted = True
    k = len(samples)
    variance = square / (k - 1) if k > 1 else torch.full_like(square, torch.inf)
    return DiagonalEstimate(
        mean=mean,
        stderr=(variance / max(k, 1)).sqrt(),
        samples=torch.stack(samples) if samples else torch.zeros(0, len(blocks)).double(),
        probes=k,
        interrupted=interrupted,
    )
