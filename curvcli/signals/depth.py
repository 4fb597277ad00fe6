"""How fast gradients shrink or grow with depth: a robust line through their logarithms.

Theil's slope, the median of the slopes between any two layers, with Sen's interval (1968,
doi:10.1080/01621459.1968.10480934): a few layers that are out of line, such as those before a
pooling or inside a branch, do not move it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

FEWEST = 4
"""Layers that make a trend; between fewer, a difference is one layer's own."""


@dataclass(frozen=True)
class Trend:
    """log10 of the norm at place k is about start + slope k, for k = 0 to layers - 1.

    `error` is half of what holds the slope in 95 of 100 cases, were the layers' scatter random.
    """

    start: float
    slope: float
    error: float
    layers: int

    @property
    def decades(self) -> float:
        """By how many powers of ten the norm grows from the first layer to the last."""
        return self.slope * (self.layers - 1)

    @property
    def decades_error(self) -> float:
        """The same of the error."""
        return self.error * (self.layers - 1)

    def at(self, k: float) -> float:
        """Give the norm on the line."""
        return float(10.0 ** (self.start + self.slope * k))


def trend(norms: Sequence[float | None]) -> Trend | None:
    """Lay a line through the norms by depth; None for too few that are known and not zero."""
    known = [(k, math.log10(x)) for k, x in enumerate(norms) if x and math.isfinite(x)]
    n = len(known)
    if n < FEWEST:
        return None
    slopes = sorted((v - u) / (k - j) for (j, u), (k, v) in combinations(known, 2))
    slope = median(slopes)
    start = median(v - slope * k for k, v in known)
    # The ranks between which the slope lies, by the variance of Kendall's statistic.
    reach = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(math.floor((len(slopes) - reach) / 2), 0)
    high = min(math.ceil((len(slopes) + reach) / 2), len(slopes) - 1)
    error = max(slope - slopes[low], slopes[high] - slope)
    return Trend(start, slope, error, len(norms))
