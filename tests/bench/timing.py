"""How benchmarks measure: interleaved within one run, by medians, against what is promised.

Absolute times depend on the machine and on what else it does; those of calls that take turns within
one run bear the same load, so that their ratio can be held to a promise.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """What a benchmark runs on; `threads` is None where each one chooses for itself."""

    device: str = "cpu"
    threads: int | None = None
    repeats: int = 5


@dataclass(frozen=True)
class Measured:
    """One line of a benchmark's table, with what is promised of it, where something is."""

    what: str
    value: str
    promised: str = ""
    kept: bool = True


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> Times:
    """Time each call in seconds, `repeats` rounds in which all take turns; warm them up before.

    Every other round goes backwards, lest one always run in the other's wake.
    """
    found: Times = {name: [] for name in calls}
    for name in calls:
        _elapsed(calls[name], device)
    for done in range(repeats):
        for name in [*calls][:: -1 if done % 2 else 1]:
            found[name].append(_elapsed(calls[name], device))
    return found


def _elapsed(call: Callable[[], object], device: str) -> float:
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
    low, median, high = _quartiles(slow)
    first, middle, third = _quartiles(fast)
    return Ratio(median / middle, low / third, high / first)


def _quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def spread(times: Sequence[float]) -> str:
    """Write the median of some times, and their quartiles."""
    low, median, high = _quartiles(times)
    return f"{median:.3g} s ({low:.3g} to {high:.3g})"


def table(found: Mapping[str, Iterable[Measured]]) -> Table:
    """Lay out what the benchmarks of these names measured."""
    drawn = Table("benchmark", "measured", "value", "promised", "", box=None, pad_edge=False)
    for name, lines in found.items():
        for line in lines:
            said = ("kept" if line.kept else "[bold red]MISSED[/]") if line.promised else ""
            drawn.add_row(name, line.what, line.value, line.promised, said)
        drawn.add_section()
    return drawn
