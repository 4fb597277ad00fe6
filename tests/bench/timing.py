"""How benchmarks measure: interleaved within one run, by medians, against what is promised.

Absolute times depend on the machine and on what else it does; those of calls that take turns within
one run bear the same load, so that their ratio can be held to a promise.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """What a benchmark runs on; `threads` is None where each one chooses for itself.

    `out` is the folder for figures.
    """

    device: str = "cpu"
    threads: int | None = None
    repeats: int = 5
    out: str = "bench"


@dataclass(frozen=True)
class Measured:
    """One value of a benchmark's table, with what is promised of it, where something is.

    `of` is the column it belongs to, a model for instance, where there are several; a `detail` is
    shown in the CSV file only, unless it is missed.
    """

    what: str
    value: str
    promised: str = ""
    kept: bool = True
    of: str = ""
    detail: bool = False


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> Times:
    """Time each call in seconds, `repeats` rounds in which all take turns; warm them up before.

    Every other round goes backwards, lest one always run in the other's wake.
    """
    found: Times = {name: [] for name in calls}
    for name in calls:
        elapsed(calls[name], device)
    for done in range(repeats):
        for name in [*calls][:: -1 if done % 2 else 1]:
            found[name].append(elapsed(calls[name], device))
    return found


def elapsed(call: Callable[[], object], device: str = "cpu") -> float:
    """Time one call in seconds, on a GPU until its work is done."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Ratio:
    """How many times slower one call is than another: the ratio of the medians.

    It lies between `low` and `high`, the ratios of the far quartiles: the first of one call's times
    against the third of the other's.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Compare times of the same rounds."""
    low, median, high = quartiles(slow)
    first, middle, third = quartiles(fast)
    return Ratio(median / middle, low / third, high / first)


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Give the first quartile, the median and the third quartile."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def spread(times: Sequence[float]) -> str:
    """Write the median of some times, and their quartiles."""
    low, median, high = quartiles(times)
    return f"{median:.3g} s ({low:.3g} to {high:.3g})"
