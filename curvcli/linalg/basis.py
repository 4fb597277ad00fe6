"""An orthonormal basis in R^n that grows by one vector at a time; dot products in float64."""

import math

import torch
from torch import Tensor

from curvcli.linalg.operator import normal

_ROWS = 16  # vectors per block: growing copies nothing
_COLUMNS = 1 << 18  # entries converted to float64 at a time: no second basis in memory


class Basis:
    """Vectors of `like`'s kind, orthonormal to `like`'s rounding."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.blocks: list[Tensor] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.blocks[index // _ROWS][index % _ROWS]

    def append(self, v: Tensor) -> None:
        """Add a unit vector (n,) that is orthogonal to those before."""
        if self.count % _ROWS == 0:
            shape = (_ROWS, self.like.numel())
            self.blocks.append(torch.empty(shape, dtype=self.like.dtype, device=self.like.device))
        self.blocks[-1][self.count % _ROWS] = v
        self.count += 1

    def dots(self, w: Tensor) -> Tensor:
        """Multiply by the basis: w (n,) float64 to its coefficients (k,) float64, on the CPU."""
        found = torch.zeros(self.count, dtype=torch.float64, device=w.device)
        for rows, block in self._filled():
            for cut in _cuts(w.numel()):
                found[rows] += block[:, cut].double() @ w[cut]
        return found.cpu()

    def combine(self, coefficients: Tensor) -> Tensor:
        """Form the sum of the vectors times their coefficients (k,): a vector (n,) in float64."""
        coefficients = coefficients.to(self.like.device)
        n = self.like.numel()
        out = torch.zeros(n, dtype=torch.float64, device=self.like.device)
        for rows, block in self._filled():
            for cut in _cuts(n):
                out[cut] += coefficients[rows] @ block[:, cut].double()
        return out

    def remove(self, w: Tensor, last: Tensor | None = None) -> Tensor:
        """Orthogonalise w (n,) float64 in place; return the coefficients taken off.

        `last` is a vector that is about to be appended; its coefficient comes last. Twice is enough
        [Giraud et al. 2005, doi:10.1007/s00211-005-0615-4].
        """
        taken = torch.zeros(self.count + (last is not None), dtype=torch.float64)
        for _ in range(2):
            c = self.dots(w)
            w -= self.combine(c)
            taken[: self.count] += c
            if last is not None:
                own = last.double() @ w
                w -= own * last.double()
                taken[-1] += own.cpu()
        return taken

    def random(self, rng: torch.Generator) -> Tensor | None:
        """Draw a unit vector uniformly from the complement of the basis; None where it is full."""
        if self.count >= self.like.numel():
            return None
        w = normal(self.like, rng).double()
        before = w.norm()
        self.remove(w)
        # What is left of a draw when the complement is empty to rounding is rounding.
        if w.norm() <= 1e-6 * before:
            return None
        unit: Tensor = w / w.norm()
        return unit

    def _filled(self) -> list[tuple[slice, Tensor]]:
        ends = range(0, self.count, _ROWS)
        return [
            (slice(i, min(i + _ROWS, self.count)), block[: self.count - i])
            for i, block in zip(ends, self.blocks, strict=True)
        ]


def norm(w: Tensor) -> float:
    """Measure a vector's length, also where the squares of its entries leave float64's range."""
    largest = float(w.abs().max())
    return largest * float((w / largest).norm()) if 0 < largest < math.inf else largest


def _cuts(n: int) -> list[slice]:
    return [slice(i, i + _COLUMNS) for i in range(0, n, _COLUMNS)]
