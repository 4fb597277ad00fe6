"""A histogram whose bins suit numbers of any size and are fixed before the first one comes.

A bin is what shares the sign, the exponent and the first four bits of a float32: sixteen of equal
width between each two powers of two. Counts over parts of the data add up exactly, and a quantile
is known to within a sixteenth of its size.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from curvcli.signals.moments import PART

DROPPED = 19
"""Bits of the mantissa that do not count, of 23."""
BINS = 2 ** (32 - DROPPED)
FINITE = 255 * 16
"""Bins of either sign that hold finite numbers."""


@dataclass
class Histogram:
    """Counts by the leading bits of the numbers, the negative ones behind the positive ones."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    def add(self, t: Tensor) -> None:
        """Count every entry of a tensor; those that are not finite go into bins of their own."""
        for part in torch.split(t.detach().reshape(-1), PART):
            bits = part.float().contiguous().view(torch.int32)
            place = (bits >> DROPPED) & (BINS - 1)
            self.counts += torch.bincount(place, minlength=BINS).cpu()

    def merge(self, other: "Histogram") -> None:
        """Add the counts of other numbers."""
        self.counts += other.counts

    def quantile(self, share: float, low: float, high: float) -> float:
        """Find where this share of the finite numbers is below, given the extremes of all.

        It is nan where there are none.
        """
        counts, edges = self._ascending(low, high)
        if not len(counts):
            return math.nan
        cumulated = counts.cumsum(0)
        wanted = share * float(cumulated[-1])
        i = int((cumulated < wanted).sum().clamp_max(len(counts) - 1))
        before = float(cumulated[i]) - float(counts[i])
        inside = (wanted - before) / max(float(counts[i]), 1.0)
        return float(edges[i, 0] + inside * (edges[i, 1] - edges[i, 0]))

    def shares(self, grid: Tensor, low: float, high: float) -> Tensor:
        """Give the share of the numbers between each two places of an ascending grid (k,)."""
        counts, edges = self._ascending(low, high)
        a, b = edges[:, 0], edges[:, 1]
        inside = ((grid[:, None].double() - a) / (b - a)).clamp(0, 1)  # (k, b)
        # A bin without width is all on one side: that of zeros, and where all numbers are alike.
        inside = torch.where(a == b, (a < grid[:, None]).double(), inside)
        return (inside @ (counts / counts.sum().clamp_min(1))).diff()

    def _ascending(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Give the counts (b,) that are not zero, and where their bins begin and end (b, 2)."""
        positive, negative = self.counts[:FINITE], self.counts[BINS // 2 :][:FINITE]
        counts = torch.cat([negative[1:].flip(0), positive[:1] + negative[:1], positive[1:]])
        there = counts > 0
        return counts[there].double(), _edges()[there].clamp(low, high)


@cache
def _edges() -> Tensor:
    """List where each bin begins and ends, from the most negative on: (b, 2)."""
    starts = (torch.arange(FINITE + 1, dtype=torch.int32) << DROPPED).view(torch.float32).double()
    starts[-1] = torch.finfo(torch.float32).max
    # What is in the first bin is below any number that means something: it counts as zero.
    above = torch.stack([starts[1:-1], starts[2:]], 1)
    return torch.cat([-above.flip(0).flip(1), torch.zeros(1, 2, dtype=torch.float64), above])
