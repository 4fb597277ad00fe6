"""Interleaved timings of products, their peak memory, and what they return."""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvcli.curvature.hessian import METHODS, reason
from curvcli.curvature.memory import peak_bytes
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
    except (RuntimeError, TypeError, ValueError) as error:
        return reason(error)
    return Timed(method, lambda: operator.matvec(v), setup, product)


def interleave(timed: Sequence[Timed], rounds: int, watch: Watch, device: torch.device) -> bool:
    """Call each in turn, `rounds` times; True where Ctrl-C cut it short."""
    try:
        for t in timed:
            t.peak = peak_bytes(t.call, device)
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
