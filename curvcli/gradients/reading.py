"""What differences say of one tensor's derivative, and the verdict that follows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvcli.linalg.differences import Comparison, Verdict


class Found(NamedTuple):
    """The comparison at one place, which stands for `size` entries, or for the whole tensor."""

    place: str
    whole: bool
    comparison: Comparison
    size: int = 1
    odd: bool = False
    """Whether it fails at these parameters, though not nearby."""

    def doubted(self) -> "Found":
        """Leave undecided what failed here, and only here."""
        if self.comparison.verdict != "fail":
            return self
        return self._replace(comparison=replace(self.comparison, verdict="unresolved"), odd=True)


@dataclass(frozen=True)
class Reading:
    """All comparisons of one tensor.

    zeros: entries of the claimed derivative that are exactly zero
    """

    tensor: str
    shape: torch.Size
    found: tuple[Found, ...]
    zeros: int

    @property
    def verdict(self) -> Verdict:
        """Judge the tensor: directions through the whole certify it, any place may condemn it.

        A single entry may be too small for differences to see; the directions have seen it all the
        same. A direction that is unresolved leaves the tensor unresolved.
        """
        anywhere = {f.comparison.verdict for f in self.found}
        whole = {f.comparison.verdict for f in self.found if f.whole} or anywhere
        order: tuple[Verdict, ...] = ("unresolved", "pass")
        if "fail" in anywhere:
            return "fail"
        if any(f.odd for f in self.found):
            return "unresolved"
        first = next((v for v in order if v in whole), None)
        return first or ("unresolved" if "unresolved" in anywhere else "vacuous")

    def doubted(self) -> "Reading":
        """Leave undecided what failed here, and only here."""
        return replace(self, found=tuple(f.doubted() for f in self.found))

    @property
    def worst(self) -> Found:
        """The place that says most against the tensor; of a wrong one an entry, if one is known."""
        entries = [f for f in self.found if not f.whole and f.comparison.verdict == "fail"]
        return max(entries or self.found, key=_gravity)

    @property
    def entries(self) -> int:
        """How many entries were looked at, alone or in groups."""
        return sum(f.size for f in self.found if not f.whole)

    @property
    def resolved(self) -> int:
        """How many directions and entries passed or failed."""
        return sum(f.size for f in self.found if f.comparison.verdict in ("pass", "fail"))


def _gravity(found: Found) -> tuple[int, float]:
    """Order places by how much they say against the tensor."""
    c = found.comparison
    order = ["vacuous", "pass", "unresolved", "fail"]
    if c.verdict == "unresolved" and not (found.whole or found.odd):
        return 0, c.relative
    return order.index(c.verdict), c.relative


def zeros(block: Tensor) -> int:
    """Count the entries that are exactly zero."""
    return block.numel() - int(torch.count_nonzero(block))


Grade = Literal["good", "fine", "doubtful", "wrong"]


def grade(relative: float) -> Grade:
    """Grade a relative error by the bands of the CS231n notes."""
    bands: Sequence[tuple[float, Grade]] = ((1e-7, "good"), (1e-4, "fine"), (1e-2, "doubtful"))
    return next((name for bound, name in bands if relative <= bound), "wrong")
