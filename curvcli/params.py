"""Named tensors as one flat vector and back, and their selection by name pattern."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The order and the shapes in which named tensors lie in one vector of length n."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Layout":
        """Take names and shapes from `tensors`, in their order."""
        return cls(tuple(tensors), tuple(t.shape for t in tensors.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each tensor."""
        return tuple(shape.numel() for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """Entries of the whole vector, n."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the vector."""
        ends = accumulate(self.sizes)
        return {
            name: slice(end - size, end)
            for name, size, end in zip(self.names, self.sizes, ends, strict=True)
        }

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """Join tensors of these shapes into one vector."""
        return torch.cat([t.reshape(-1) for t in tensors])  # (n,)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Cut a vector (n,) into views of these shapes."""
        parts = torch.split(vector, list(self.sizes))
        return tuple(p.view(shape) for p, shape in zip(parts, self.shapes, strict=True))

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector (n,) into views by name."""
        return dict(zip(self.names, self.split(vector), strict=True))


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Select the names that any of the glob patterns matches, in the order of `names`.

    A pattern also selects everything below it: `encoder.0` is `encoder.0.*` too.
    """
    return [n for n in names if any(_matches(n, p) for p in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")
