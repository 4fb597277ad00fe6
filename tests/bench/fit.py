"""A power law through measured points: how a time grows."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Slope(NamedTuple):
    """The exponent of y = factor * x^value, and its standard error."""

    value: float
    error: float
    factor: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Fit log y = log factor + value * log x by least squares; needs three points or more."""
    if len(x) < 3:
        raise ValueError(f"a slope with an error needs three points, not {len(x)}")
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    n, mean, middle = len(u), sum(u) / len(u), sum(v) / len(v)
    wide = sum((a - mean) ** 2 for a in u)
    value = sum((a - mean) * (b - middle) for a, b in zip(u, v, strict=True)) / wide
    left = sum((b - middle - value * (a - mean)) ** 2 for a, b in zip(u, v, strict=True))
    error = math.sqrt(left / (n - 2) / wide)
    return Slope(value, error, math.exp(middle - value * mean))


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float | None:
    """Say at which x the falling y first is at `level`, by a power law between two points.

    None where it never is.
    """
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        if b <= level:
            if i == 0:
                return a
            before, above = x[i - 1], y[i - 1]
            share = math.log(above / level) / math.log(above / b)
            return float(before * (a / before) ** share)
    return None
