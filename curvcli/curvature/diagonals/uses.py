"""How a model's layers are applied to a batch: what goes in, and what comes out as a node."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.curvature.diagonals.features import Dense, Features
from curvcli.curvature.diagonals.kinds import Kind, kind_of, spread
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

AGREE = 1e4
"""Units of rounding up to which two ways to compute one thing may differ: sums in other orders."""


@dataclass(frozen=True)
class Layer:
    """A module that is linear in its parameters, which are nobody else's.

    names: the problem's parameters among them, by the module's own names for them
    """

    module: nn.Module
    kind: Kind
    names: Mapping[str, str]


def layers_of(problem: Problem) -> dict[str, Layer]:
    """Find the layers by the paths of their modules."""
    names = {id(p): n for n, p in problem.params.items()}
    owners: dict[int, int] = {}
    for module in problem.model.modules():
        for p in module._parameters.values():
            owners[id(p)] = owners.get(id(p), 0) + 1
    found = {}
    for path, module in problem.model.named_modules():
        kind = kind_of(module)
        own = {k: p for k, p in module._parameters.items() if p is not None and id(p) in names}
        if kind and own and all(owners[id(p)] == 1 for p in own.values()):
            found[path] = Layer(module, kind, {k: names[id(p)] for k, p in own.items()})
    return found


@dataclass(frozen=True)
class Use:
    """One application of a layer to a batch of `examples`.

    folded: positions count as examples, which they may where they do not interact downstream
    """

    layer: Layer
    x: Tensor  # (N, ...), detached
    a: Tensor  # (N, ...), a node of the graph
    folded: bool = False

    @property
    def channels(self) -> int:
        """How many numbers come out at every position."""
        return self.layer.kind.channels(self.layer.module)

    @property
    def grid(self) -> int:
        """At how many positions of an example the layer is applied."""
        return self.a[0].numel() // self.channels

    @property
    def positions(self) -> int:
        """How many of them interact."""
        return 1 if self.folded else self.grid

    @cached_property
    def features(self) -> dict[str, Features]:
        """The features of each of the layer's parameters, by the problem's names."""
        found = {k: self._features(k) for k in self.layer.names}
        if self.folded:
            found = {k: f.folded() for k, f in found.items()}
        return {self.layer.names[k]: f for k, f in found.items()}

    def _features(self, key: str) -> Features:
        if key == "weight":
            return self.layer.kind.weight(self.layer.module, self.x, self.a.detach())
        ones = self.a.new_ones(()).expand(len(self.a), self.grid, 1, 1)
        return Dense(ones, self.channels, lambda rows: rows)

    def spread(self, s: Tensor) -> Tensor:
        """Lay (M, ...), shaped like the output, out as (M, T, channels)."""
        s = spread(s, self.layer.kind, self.channels)
        return s.flatten(0, 1).unsqueeze(1) if self.folded else s

    def columns(self, s: Tensor) -> Tensor:
        """Lay k tensors like the output, (k, N, ...), out as (k, N, T, channels)."""
        laid = self.spread(s.flatten(0, 1))
        return laid.view(len(s), -1, *laid.shape[1:])

    def half(self) -> tuple[Tensor, Tensor]:
        """Draw a direction (N, ...) that is zero outside a random half of what does not interact.

        The half is told as a mask (M, 1, 1) of what `spread` lays out.
        """
        rng = torch.Generator().manual_seed(0)
        size = len(self.a) * (self.grid if self.folded else 1)
        mask = torch.zeros(size, dtype=self.a.dtype)
        mask[torch.randperm(size, generator=rng)[: size // 2]] = 1
        mask = mask.to(self.a.device)
        shape = (len(self.a), -1, 1) if self.folded else (-1, 1, 1)
        spots = mask.view(shape)  # of (N, grid, channels)
        if self.layer.kind.first:
            spots = spots.transpose(1, 2)
            direction = normal(self.a, rng).view(len(self.a), self.channels, -1) * spots
        else:
            direction = normal(self.a, rng).view(len(self.a), -1, self.channels) * spots
        return direction.view(self.a.shape), mask.view(-1, 1, 1)

    def at(self, o: Tensor, values: Tensor) -> Tensor:
        """Put values (c, N, T) into channels o (c,) of what is shaped like c outputs."""
        c, n, grid = len(o), len(self.a), self.grid
        rows = torch.arange(c, device=o.device)
        values = values.reshape(-1, n, grid).expand(c, n, grid)
        if self.layer.kind.first:
            out = self.a.new_zeros(c, n, self.channels, grid)
            out[rows, :, o] = values
        else:
            out = self.a.new_zeros(c, n, grid, self.channels)
            out[rows, :, :, o] = values
        return out.view(c, *self.a.shape)

    def of(self, o: Tensor, h: Tensor) -> Tensor:
        """Take from c tensors like the output the channels o (c,): (c, N, T)."""
        c, n = len(o), len(self.a)
        rows = torch.arange(c, device=o.device)
        if self.layer.kind.first:
            found = h.reshape(c, n, self.channels, -1)[rows, :, o]
        else:
            found = h.reshape(c, n, -1, self.channels)[rows, :, :, o]
        return found.reshape(c, -1, 1) if self.folded else found


@contextmanager
def recording(layers: Mapping[str, Layer]) -> Iterator[dict[str, list[Use]]]:
    """Note every application of these layers for as long as the context is open."""
    uses: dict[str, list[Use]] = {path: [] for path in layers}

    def noting(path: str, layer: Layer) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            x = args[0] if args else kwargs["input"]
            uses[path].append(Use(layer, x.detach(), output))
            return output.clone()  # an activation in place must not overwrite what is recorded

        return hook

    handles = [
        layer.module.register_forward_hook(noting(path, layer), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def plain(uses: Sequence[Use], examples: int) -> bool:
    """Tell whether a layer is applied once, to all examples along the first axis."""
    return len(uses) == 1 and len(uses[0].a) == len(uses[0].x) == examples and uses[0].a.numel() > 0


def close(gap: Tensor, size: Tensor) -> bool:
    """Tell rounding from a difference."""
    about = torch.finfo(size.dtype)
    return bool(gap <= AGREE * about.eps * size + about.tiny)


def accounted(uses: Sequence[Use], slopes: Sequence[Tensor], own: Mapping[str, Tensor]) -> bool:
    """Decide whether parameters act through these uses alone: their gradients tell."""
    for name, found in own.items():
        rows = sum(
            (
                use.features[name].gradient(use.spread(s))
                for use, s in zip(uses, slopes, strict=True)
            ),
            start=torch.zeros((), dtype=found.dtype, device=found.device),
        )
        through = uses[0].features[name].restore(rows).reshape(found.shape)
        if not close((found - through).abs().max(), through.abs().max()):
            return False
    return True
