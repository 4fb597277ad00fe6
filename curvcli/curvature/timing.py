"""Interleaved timings of products, their peak memory, and what they return."""

import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from curvcli.curvature.hessian import METHODS, reason
from curvcli.errors import CurvError
from curvcli.linalg.ritz import Watch
from curvcli.problem import Problem
from curvcli.work import Work


@dataclass
class Timed:
    """Something that is called again and again, and what was measured of it."""

    name: str
    call: Callable[[], Tensor]
    setup: float | None = None
    product: Tensor | None = None
    peak: int | None = None
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time of a call in seconds."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles in seconds."""
        if len(self.times) < 2:
            return 0.0
        quartiles = statistics.quantiles(self.times, n=4, method="inclusive")
        return (quartiles[2] - quartiles[0]) / 2


def trial(method: str, problem: Problem, work: Work, v: Tensor) -> Timed | str:
    """Set a method up and take one product; a line that says why where it does not work."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, about its own inner workings
            operator = METHODS[method](problem, work.memory)
        setup = _elapsed(start, v)
        product = operator.matvec(v)
    except CurvError as error:
        return "not on this model: " + error.message
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return "not on this model: " + reason(error)
    return Timed(method, lambda: operator.matvec(v), setup, product)


def interleave(timed: Sequence[Timed], rounds: int, watch: Watch) -> bool:
    """Call each in turn, `rounds` times; True where Ctrl-C cut it short."""
    try:
        for t in timed:
            t.peak = peak_bytes(t.call)
        for done in range(rounds):
            for t in timed:
                start = time.perf_counter()
                t.times.append(_elapsed(start, t.call()))
            watch(done + 1, rounds, None, None)
    except KeyboardInterrupt:
        return True
    return False


def _elapsed(start: float, result: Tensor) -> float:
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], Tensor]) -> int:
    """Measure the most bytes of tensors that a call holds beyond what was held before it."""
    if torch.cuda.is_available() and call().is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    with _Allocations() as seen:
        result = call()
    del result
    return int(seen.most)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.held = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_address(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and _address(t) not in {0, *given}:
                self._count(t.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.alive or not size:
            return
        self.alive[address] = size
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        self.held -= self.alive.pop(address)


def _address(t: Tensor) -> int:
    """Give where a tensor's memory is; 0 for the wrappers of functional transforms."""
    try:
        return int(t.untyped_storage().data_ptr())
    except RuntimeError:
        return 0
