"""What an analysis may spend and whom it tells: randomness, method, memory, time, progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Method = Literal["auto", "kept", "rebuilt", "forward", "linearize", "differences"]

Watch = Callable[[int, int | None, float | None, float | None], None]
"""Called as watch(done, total, estimate, error) after each unit of work."""


def silent(done: int, total: int | None, estimate: float | None, error: float | None) -> None:
    """Watch nothing."""


def unwatched(doing: str) -> Watch:
    """Announce nothing, watch nothing."""
    return silent


@dataclass(frozen=True)
class Work:
    """The means of one analysis.

    rng:      fresh for each analysis, so that an answer does not depend on what ran before
    method:   how curvature products are computed
    memory:   bytes that kept graphs may hold; None measures what is free
    budget:   seconds that the analysis may take; None is without limit
    announce: names a stretch of work and returns what watches it
    tell:     hands over a line for the user, such as the plan before long work
    """

    rng: "torch.Generator"
    method: Method = "auto"
    memory: float | None = None
    budget: float | None = None
    announce: Callable[[str], Watch] = unwatched
    tell: Callable[[str], None] = lambda line: None
