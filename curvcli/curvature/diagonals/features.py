"""What multiplies the entries of a layer's parameter: a[n,t,g,o] = sum_i W[g,o,i] x[n,t,g,i].

n counts examples, t the positions at which the parameter is applied to each of them, g groups of
outputs o that see the same inputs i. The channels of a layer's output are all (g, o), in order.
Everything that a diagonal needs of a layer is a sum over its features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 1 << 24
"""Numbers of an intermediate result up to which it is made at once: 64 MB in float32."""

Restore = Callable[[Tensor], Tensor]
"""From rows (channels, fan-in) to the shape of the parameter."""


class Features(ABC):
    """The features of one parameter; what is summed over them comes as rows (channels, fan-in)."""

    channels: int
    fan_in: int
    restore: Restore

    @abstractmethod
    def gradient(self, s: Tensor) -> Tensor:
        """Sum s x over examples and positions: s (N, T, channels)."""

    @abstractmethod
    def alone(self, h: Tensor) -> Tensor:
        """Sum h x^2 over examples and positions: h (N, T, channels)."""

    @abstractmethod
    def paired(self, h: Tensor, t: Tensor, o: Tensor) -> Tensor:
        """Sum h[n, t'] x[n, t] x[n, t'] over n and t', for every unit (t, o) of c.

        h: (c, N, T); the rows (c, fan-in) are parts of those of the channels o.
        """

    @abstractmethod
    def direction(self, o: Tensor, i: Tensor) -> Tensor:
        """Say how the output moves with the entries (o, i), in channel o: (c, N, T)."""

    @abstractmethod
    def folded(self) -> "Features":
        """Count positions as examples."""

    @abstractmethod
    def squares(self, s: Tensor, signs: Tensor) -> Tensor:
        """Sum signs (sum_t s x)^2 over columns and examples.

        s: (k, N, T, channels), signs: (k, N)
        ."""


class Dense(Features):
    """Features that are held as numbers x (N, T, groups, fan-in)."""

    def __init__(self, x: Tensor, channels: int, restore: Restore) -> None:
        self.x, self.channels, self.restore = x, channels, restore
        self.groups, self.fan_in = x.shape[2], x.shape[3]

    @cached_property
    def squared(self) -> Tensor:
        """The squares of all features."""
        return self.x.square()

    def gradient(self, s: Tensor) -> Tensor:
        """Sum s x."""
        return self._summed(s, self.x)

    def alone(self, h: Tensor) -> Tensor:
        """Sum h x^2."""
        return self._summed(h, self.squared)

    def _summed(self, s: Tensor, x: Tensor) -> Tensor:
        s = s.reshape(*s.shape[:-1], self.groups, -1)
        return torch.einsum("ntgo,ntgi->goi", s, x).flatten(0, 1)

    def paired(self, h: Tensor, t: Tensor, o: Tensor) -> Tensor:
        """Weigh pairs of positions, group by group."""
        rows = h.new_empty(len(h), self.fan_in)
        group = o // (self.channels // self.groups)
        for g in sorted(set(group.tolist())):
            own = group == g
            if self.x.shape[1] == 1:
                rows[own] = h[own, :, 0] @ self.squared[:, 0, g]
            else:
                x = self.x[:, :, g]  # (N, T, i)
                weighted = h[own].transpose(0, 1) @ x  # (N, c, i)
                rows[own] = (weighted * x[:, t[own]]).sum(dim=0)
        return rows

    def direction(self, o: Tensor, i: Tensor) -> Tensor:
        """Take the features themselves."""
        group = o // (self.channels // self.groups)
        return self.x[:, :, group, i].movedim(-1, 0)

    def folded(self) -> "Dense":
        """Count positions as examples."""
        return Dense(self.x.flatten(0, 1).unsqueeze(1), self.channels, self.restore)

    def squares(self, s: Tensor, signs: Tensor) -> Tensor:
        """Square the gradients of single examples, as many at a time as BLOCK holds."""
        if s.shape[2] == 1:
            return self.alone((signs[:, :, None, None] * s.square()).sum(dim=0))
        s = s.reshape(*s.shape[:-1], self.groups, -1)  # (k, N, T, g, o)
        total = s.new_zeros(self.channels, self.fan_in)
        for n in _slices(s.shape[1], len(s) * total.numel()):
            each = torch.einsum("kntgo,ntgi->kngoi", s[:, n], self.x[n])
            total += torch.einsum("kngoi,kn->goi", each.square_(), signs[:, n]).flatten(0, 1)
        return total


class Indexed(Features):
    """Features that are 1 at one place, index (N, T), and 0 elsewhere: words of a vocabulary."""

    def __init__(self, index: Tensor, live: Tensor, sizes: tuple[int, int], restore: Restore):
        self.index, self.live, self.restore = index, live, restore  # both (N, T); live is 0 or 1
        self.channels, self.fan_in = sizes

    def gradient(self, s: Tensor) -> Tensor:
        """Sum what stands at each word."""
        columns = s.new_zeros(self.fan_in, self.channels)
        counted = (s * self.live[..., None]).flatten(0, 1)
        return columns.index_add_(0, self.index.flatten(), counted).T

    def alone(self, h: Tensor) -> Tensor:
        """Sum what stands at each word: the square of 1."""
        return self.gradient(h)

    def paired(self, h: Tensor, t: Tensor, o: Tensor) -> Tensor:
        """Pair the positions of the same word."""
        index, live = self.index[:, t].T, self.live[:, t].T  # (c, N)
        same = (self.index == index[..., None]).to(h.dtype)
        weight = (h * same * self.live).sum(dim=-1) * live
        return h.new_zeros(len(h), self.fan_in).scatter_add_(1, index, weight)

    def direction(self, o: Tensor, i: Tensor) -> Tensor:
        """Mark the positions of word i."""
        return (self.index == i[:, None, None]) * self.live

    def folded(self) -> "Indexed":
        """Count positions as examples."""
        index, live = (t.flatten().unsqueeze(1) for t in (self.index, self.live))
        return Indexed(index, live, (self.channels, self.fan_in), self.restore)

    def squares(self, s: Tensor, signs: Tensor) -> Tensor:
        """Square the sums over the positions of the same word, once for each of them."""
        if s.shape[2] == 1:
            return self.alone((signs[:, :, None, None] * s.square()).sum(dim=0))
        k, _, T, d = s.shape
        weights = torch.empty_like(s[0])
        for n in _slices(s.shape[1], T * T + k * T * d):
            index = self.index[n]
            same = (index[:, :, None] == index[:, None, :]) * self.live[n, None]  # (n, T, T)
            weights[n] = (signs[:, n, None, None] * s[:, n] * (same @ s[:, n])).sum(dim=0)
        return self.gradient(weights)


def _slices(length: int, each: int) -> Iterator[slice]:
    """Cut a range so that a piece, of `each` numbers per index, has no more than BLOCK."""
    step = max(1, BLOCK // max(each, 1))
    return (slice(start, start + step) for start in range(0, length, step))
