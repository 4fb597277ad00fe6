"""An orthonormal basis in R^n that grows by one vector at a time; dot products in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curvcli.linalg.operator import normal

_ROWS = 16  # vectors per block: growing copies nothing
_COLUMNS = {"cpu": 1 << 16}
"""Entries converted to float64 at a time: what a processor's cache holds of a block."""
_MANY = 1 << 22
"""The same on other devices, where a call costs more than what it does; still no second basis."""


class Basis:
    """Vectors of `like`'s kind, orthonormal to `like`'s rounding; memory for `most` at most."""

    def __init__(self, like: Tensor, most: int | None = None) -> None:
        self.like = like
        self.most = most
        self.blocks: list[Tensor] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.blocks[index // _ROWS][index % _ROWS]

    def append(self, v: Tensor) -> None:
        """Add a unit vector (n,) that is orthogonal to those before."""
        if self.count == len(self.blocks) * _ROWS:
            rows = _ROWS if self.most is None else min(_ROWS, self.most - self.count)
            shape = (rows, self.like.numel())
            self.blocks.append(torch.empty(shape, dtype=self.like.dtype, device=self.like.device))
        self.blocks[-1][self.count % _ROWS] = v
        self.count += 1

    def dots(self, w: Tensor) -> Tensor:
        """Multiply by the basis: w (n,) float64 to its coefficients (k,) float64, on the CPU."""
        found = torch.zeros(self.count, dtype=torch.float64, device=w.device)
        for rows, block in self._filled():
            for cut in _cuts(w):
                found[rows] += block[:, cut].double() @ w[cut]
        return found.cpu()

    def combine(self, coefficients: Tensor) -> Tensor:
        """Form the sum of the vectors times their coefficients (k,): a vector (n,) in float64."""
        n = self.like.numel()
        out = torch.zeros(n, dtype=torch.float64, device=self.like.device)
        self._add(out, coefficients)
        return out

    def remove(self, w: Tensor, beside: Sequence[Tensor] = ()) -> Tensor:
        """Orthogonalise w (n,) float64 in place; return the coefficients taken off.

        `beside` are unit vectors that are orthogonal to the basis without being in it; their
        coefficients come last. Twice is enough [Giraud et al. 2005, doi:10.1007/s00211-005-0615-4].
        """
        taken = torch.zeros(self.count + len(beside), dtype=torch.float64)
        for _ in range(2):
            c = self.dots(w)
            self._add(w, -c)
            taken[: self.count] += c
            for i, v in enumerate(beside, self.count):
                taken[i] += _take_off(w, v)
        return taken

    def random(self, rng: torch.Generator, beside: Sequence[Tensor] = ()) -> Tensor | None:
        """Draw a unit vector uniformly from the complement of the basis; None where it is full."""
        if self.count + len(beside) >= self.like.numel():
            return None
        w = normal(self.like, rng).double()
        before = w.norm()
        self.remove(w, beside)
        # What is left of a draw when the complement is empty to rounding is rounding.
        if w.norm() <= 1e-6 * before:
            return None
        unit: Tensor = w / w.norm()
        return unit

    def gram(self) -> Tensor:
        """Multiply all vectors by each other: (k, k) float64 on the CPU, the identity, rounded."""
        out = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.like.device)
        for cut in _cuts(self.like):
            Q = torch.cat([block[:, cut].double() for _, block in self._filled()])
            out += Q @ Q.T
        return out.cpu()

    def rotate(self, S: Tensor) -> bool:
        """Replace the basis in place by its combinations, the orthonormal columns of S (m, k).

        Ctrl-C waits for the end, and is what is returned: a basis half rotated would be no answer.
        Cost: 2 m k n operations, and the memory of a block's and of k cuts.
        """
        S, k = S.to(self.like.device), S.shape[1]
        cuts = _cuts(self.like)
        made: Tensor | None = None
        done, late = 0, False
        while done < len(cuts):
            try:
                # A cut is formed whole before any of it is written, and writing may be repeated.
                if made is None:
                    made = self._combined(S, cuts[done])
                self._write(made, cuts[done])
                made, done = None, done + 1
            except KeyboardInterrupt:
                late = True
        self.truncate(k)
        return late

    def truncate(self, count: int) -> None:
        """Forget all vectors after the first `count`, and give back the memory of whole blocks."""
        self.count = count
        del self.blocks[-(-count // _ROWS) :]

    def _combined(self, S: Tensor, cut: slice) -> Tensor:
        width = self.like[cut].numel()
        out = torch.zeros(S.shape[1], width, dtype=torch.float64, device=self.like.device)
        for rows, block in self._filled():
            out += S[rows].T @ block[:, cut].double()
        return out

    def _write(self, made: Tensor, cut: slice) -> None:
        for i, block in zip(range(0, len(made), _ROWS), self.blocks, strict=False):
            part = made[i : i + _ROWS]
            block[: len(part), cut] = part.to(block.dtype)

    def _add(self, w: Tensor, coefficients: Tensor) -> None:
        coefficients = coefficients.to(self.like.device)
        for rows, block in self._filled():
            for cut in _cuts(w):
                w[cut] += coefficients[rows] @ block[:, cut].double()

    def _filled(self) -> list[tuple[slice, Tensor]]:
        ends = range(0, self.count, _ROWS)
        return [
            (slice(i, min(i + _ROWS, self.count)), block[: self.count - i])
            for i, block in zip(ends, self.blocks, strict=True)
        ]


def norm(w: Tensor) -> float:
    """Measure a vector's length, also where the squares of its entries leave float64's range."""
    w = w.reshape(-1)
    cuts = _cuts(w)
    largest = max((float(w[cut].abs().max()) for cut in cuts), default=0.0)
    if not 0 < largest < math.inf:
        return largest
    return largest * math.hypot(*(float((w[cut] / largest).norm()) for cut in cuts))


def unit(w: Tensor, length: float, dtype: torch.dtype) -> Tensor:
    """Divide w (n,) by its length, rounded to a type, without another vector of w's own."""
    out = torch.empty_like(w, dtype=dtype)
    for cut in _cuts(w):
        out[cut] = (w[cut] / length).to(dtype)
    return out


def _take_off(w: Tensor, v: Tensor) -> float:
    """Take the part along a unit vector off w (n,) float64, and return its length."""
    cuts = _cuts(w)
    along = float(sum((v[cut].double() @ w[cut] for cut in cuts), w.new_zeros(())))
    for cut in cuts:
        w[cut] -= along * v[cut].double()
    return along


def _cuts(w: Tensor) -> list[slice]:
    width = _COLUMNS.get(w.device.type, _MANY)
    return [slice(i, i + width) for i in range(0, w.numel(), width)]
