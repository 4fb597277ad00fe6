"""Mean, spread, zeros and extremes of numbers that come in parts, as if they came at once.

The merging rule is Chan, Golub and LeVeque's (1983, doi:10.1080/00031305.1983.10483115): sums of
squared deviations, never differences of large sums. Cost: two passes over each part.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PART = 2**22
"""Numbers that are held in float64 at a time."""


@dataclass
class Moments:
    """What is kept of any amount of numbers; `squares` is the sum of squared deviations."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, t: Tensor) -> None:
        """Take in every entry of a tensor."""
        for part in torch.split(t.detach().reshape(-1), PART):
            if part.numel():
                n = part.numel()
                variance, mean = torch.var_mean(part.double(), correction=0)
                zeros = n - int(part.count_nonzero())
                low, high = part.aminmax()
                extremes = float(low), float(high)
                self.merge(Moments(n, float(mean), n * float(variance), zeros, *extremes))

    def merge(self, other: "Moments") -> None:
        """Take in what was kept of other numbers."""
        count = self.count + other.count
        if not other.count:
            return
        gap = other.mean - self.mean
        self.squares += other.squares + gap * gap * self.count * other.count / count
        self.mean += gap * other.count / count
        self.count = count
        self.zeros += other.zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def std(self) -> float:
        """The standard deviation of these numbers."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    @property
    def rms(self) -> float:
        """The root of their mean square."""
        return math.sqrt(self.power / self.count) if self.count else math.nan

    @property
    def power(self) -> float:
        """The sum of their squares."""
        return self.squares + self.count * self.mean * self.mean
