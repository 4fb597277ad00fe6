"""Where a gradient is looked at: directions through a whole tensor, and single entries of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curvcli.problem import Problem


class Group(NamedTuple):
    """Entries of a flat tensor that move together, each with its weight."""

    entries: Tensor  # (m,) int64
    weights: Tensor  # (m,) float64


@dataclass(frozen=True)
class Places:
    """Directions in the space of one tensor: dense ones first, then unit vectors, then groups.

    dense:   (d, n) float64, on the CPU
    entries: indices into the flat tensor
    """

    shape: torch.Size
    dense: Tensor
    entries: tuple[int, ...] = ()
    groups: tuple[Group, ...] = ()

    def __len__(self) -> int:
        return len(self.dense) + len(self.entries) + len(self.groups)

    @property
    def names(self) -> list[str]:
        """Name each place as a reader does: `direction 1`, `[3, 0]`."""
        directions = [f"direction {k + 1}" for k in range(len(self.dense))]
        groups = [f"{len(i)} entries with {self.index(int(i[0]))}" for i, _ in self.groups]
        return directions + [self.index(i) for i in self.entries] + groups

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
        sums = [(flat[i] * w).sum() for i, w in self.groups]
        grouped = torch.stack(sums) if sums else flat[:0]
        return torch.cat([self.dense @ flat, flat[list(self.entries)], grouped])

    def moves(self, places: Tensor, steps: Tensor, like: Tensor) -> Tensor:
        """Form the displacements of signed steps (m,) at places (m,): (m, *shape), as `like`."""
        out = torch.zeros(len(places), self.shape.numel(), dtype=torch.float64)
        d, e = len(self.dense), len(self.entries)
        for row, place in enumerate(places.tolist()):
            if place < d:
                out[row] = steps[row] * self.dense[place]
            elif place < d + e:
                out[row, self.entries[place - d]] = steps[row]
            else:
                group = self.groups[place - d - e]
                out[row, group.entries] = steps[row] * group.weights
        return out.to(like).view(-1, *self.shape)


def padding(problem: Problem) -> dict[str, Tensor]:
    """Find the entries of embeddings' padding rows, which autograd leaves out on purpose."""
    found: dict[str, Tensor] = {}
    for module in problem.model.modules():
        row = getattr(module, "padding_idx", None)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and row is not None:
            width = module.weight.shape[1]
            mine = [n for n, p in problem.params.items() if p is module.weight]
            found |= dict.fromkeys(mine, torch.arange(row * width, (row + 1) * width))
    return found


def choose(
    g: Tensor,
    directions: int,
    entries: int | None,
    rng: torch.Generator,
    without: Tensor | None = None,
) -> Places:
    """Choose random directions, and entries of the gradient g: None leaves those to `grouped`.

    `without` are entries that are left alone.
    """
    flat = g.reshape(-1)
    dense = torch.randn(directions, len(flat), generator=rng, dtype=torch.float64)
    chosen = _entries(flat, entries or 0, rng)
    if without is not None:
        dense[:, without] = 0
        chosen = [i for i in chosen if i not in set(without.tolist())]
    return Places(g.shape, dense, tuple(chosen))


TOGETHER = 16
"""Entries that are looked at together: with more, more groups need a second look."""


def grouped(
    g: Tensor, rng: torch.Generator, without: Tensor | None = None
) -> tuple[Places, Tensor]:
    """Put all entries into groups of like size, and say how exact each group has to be.

    Entries move together by random weights of 1 to 2, in the gradient's own direction, so that the
    slope of a group is a sum of positive parts. Where it is right to within the tolerance of its
    smallest entry, no entry alone is off by more than its own tolerance, for it would show with a
    weight of 1 at least; several can only hide by cancelling one another to that accuracy, with
    weights that they do not know. The factors (k,) are what the tolerance is multiplied by.
    """
    flat = g.reshape(-1).double()
    order = flat.abs().argsort(descending=True)
    if without is not None:
        order = order[~torch.isin(order, without)]
    groups = []
    for i in torch.split(order, TOGETHER):
        size = 1 + torch.rand(len(i), generator=rng, dtype=torch.float64)
        groups.append(Group(i, torch.where(flat[i] < 0, -size, size)))
    places = Places(g.shape, torch.zeros(0, len(flat), dtype=torch.float64), (), tuple(groups))
    least = torch.stack([flat[i].abs().min() for i, _ in groups])
    slopes = places.slopes(g).abs()
    return places, torch.where(slopes > 0, least / slopes, 1.0)


def _entries(g: Tensor, count: int, rng: torch.Generator) -> Sequence[int]:
    """Choose entries of a flat gradient: the two largest, up to two zeros, the rest at random."""
    if count >= len(g):
        return range(len(g))
    largest = g.abs().topk(min(2, count, len(g))).indices.tolist()
    zeros = torch.nonzero(g == 0).flatten()
    zeros = zeros[torch.randperm(len(zeros), generator=rng)[: min(2, max(count - 2, 0))]]
    chosen = list(dict.fromkeys([*largest, *zeros.tolist()]))
    # Enough to have as many that are new; a permutation of all entries may be large.
    drawn = torch.randint(len(g), (8 * count + 8,), generator=rng).tolist()
    return list(dict.fromkeys([*chosen, *drawn]))[: max(count, len(chosen))]
