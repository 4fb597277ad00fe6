"""Where a gradient is looked at: directions through a whole tensor, and single entries of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Directions in the space of one tensor: dense ones first, then unit vectors.

    dense:   (d, n) float64, on the CPU
    entries: indices into the flat tensor
    """

    shape: torch.Size
    dense: Tensor
    entries: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.dense) + len(self.entries)

    @property
    def names(self) -> list[str]:
        """Name each place as a reader does: `direction 1`, `[3, 0]`."""
        directions = [f"direction {k + 1}" for k in range(len(self.dense))]
        return directions + [self.index(i) for i in self.entries]

    def index(self, entry: int) -> str:
        """Write the index of an entry of the flat tensor."""
        found: list[str] = []
        for width in reversed(self.shape):
            entry, index = divmod(entry, width)
            found.insert(0, str(index))
        return f"[{', '.join(found)}]"

    def slopes(self, block: Tensor) -> Tensor:
        """Take the derivatives at all places from a gradient of this shape: (k,) float64."""
        flat = block.detach().reshape(-1).cpu().double()
        return torch.cat([self.dense @ flat, flat[list(self.entries)]])

    def moves(self, places: Tensor, steps: Tensor, like: Tensor) -> Tensor:
        """Form the displacements of signed steps (m,) at places (m,): (m, *shape), as `like`."""
        out = torch.zeros(len(places), self.shape.numel(), dtype=torch.float64)
        d = len(self.dense)
        for row, place in enumerate(places.tolist()):
            if place < d:
                out[row] = steps[row] * self.dense[place]
        unit = torch.nonzero(places >= d)[:, 0]
        chosen = torch.tensor(self.entries, dtype=torch.int64)[places[unit] - d]
        out[unit, chosen] = steps[unit]
        return out.to(like).view(-1, *self.shape)


def choose(g: Tensor, directions: int, entries: int | None, rng: torch.Generator) -> Places:
    """Choose random directions, and entries of the gradient g: None means every one."""
    flat = g.reshape(-1)
    dense = torch.randn(directions, len(flat), generator=rng, dtype=torch.float64)
    chosen = range(len(flat)) if entries is None else _entries(flat, entries, rng)
    return Places(g.shape, dense, tuple(chosen))


def _entries(g: Tensor, count: int, rng: torch.Generator) -> Sequence[int]:
    """Choose entries of a flat gradient: the two largest, up to two zeros, the rest at random."""
    largest = g.abs().topk(min(2, count, len(g))).indices.tolist()
    zeros = torch.nonzero(g == 0).flatten()
    zeros = zeros[torch.randperm(len(zeros), generator=rng)[: min(2, max(count - 2, 0))]]
    chosen = list(dict.fromkeys([*largest, *zeros.tolist()]))
    for i in torch.randint(len(g), (4 * count,), generator=rng).tolist():
        if len(chosen) >= min(count, len(g)):
            break
        if i not in chosen:
            chosen.append(i)
    return chosen
