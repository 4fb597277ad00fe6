"""What long work will take, told before it: seconds of a product, most products, bytes held.

Cost: nothing. The first products of the work itself are timed.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from curvcli.curvature.jacobian import Pullback
from curvcli.curvature.products import Kept
from curvcli.linalg.operator import LinearOperator
from curvcli.work import Work

TIMED = 2
"""Calls that are timed; the fastest counts, since the first also sets things up."""

TRIFLE = 1.0
"""Seconds in all of which nobody wants to be told."""


class Planned(LinearOperator):
    """The same map, which times its first products and then tells what the work may take."""

    def __init__(self, inner: LinearOperator, tell: Callable[[float], None]) -> None:
        self.inner = inner
        self.like = inner.like
        self.tell = tell
        self.times: list[float] = []  # seconds of a product, by call

    def matvec(self, v: Tensor) -> Tensor:
        """Apply the inner map."""
        return self._timed(lambda: self.inner.matvec(v), 1)

    def matmat(self, V: Tensor) -> Tensor:
        """Apply the inner map to every row."""
        return self._timed(lambda: self.inner.matmat(V), len(V))

    def _timed(self, call: Callable[[], Tensor], products: int) -> Tensor:
        if len(self.times) >= TIMED or not products:
            return call()
        start = time.perf_counter()
        out = call()
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        self.times.append((time.perf_counter() - start) / products)
        if len(self.times) == TIMED:
            self.tell(min(self.times))
        return out


def planned(
    A: LinearOperator, work: Work, products: int, *, vectors: int = 0, besides: str = ""
) -> LinearOperator:
    """Wrap a map so that the plan is told once its first products have been timed.

    `products` is the most that the work may take, `vectors` the most that it may hold at a time;
    `besides` says what else belongs to the products. The line is for people, who have no use for it
    where all of it takes no time; it is no part of a report, since times are not.
    """

    def tell(seconds: float) -> None:
        if products * seconds >= TRIFLE:
            held = _held(A, vectors)
            most = f"at most {products:,} products{besides}, about {duration(products * seconds)}"
            parts = [f"a product takes {duration(seconds)}", most, *([held] if held else [])]
            work.tell("; ".join(parts))

    return Planned(A, tell)


def _held(A: LinearOperator, vectors: int) -> str:
    """Say how many bytes the kept graphs take, and a basis at most."""
    parts = []
    if isinstance(A, Kept | Pullback) and A.graphs:
        parts.append(f"graphs {storage(len(A.graphs) * A.bytes_per_batch)}")
    if vectors:
        parts.append(f"basis up to {storage(vectors * A.size * A.like.element_size())}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a time to two digits, in the unit that suits it."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    if seconds >= 1:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{_two(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{_two(1e6 * seconds)} µs"


def storage(size: float) -> str:
    """Write a number of bytes to two digits, in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.1 * factor:
            return f"{_two(size / factor)} {unit}"
    return f"{size:.0f} B"


def _two(x: float) -> str:
    return f"{x:.2g}" if x < 100 else f"{x:.0f}"
