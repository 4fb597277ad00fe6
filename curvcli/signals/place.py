"""A place in a model, a leaf module or a function that one calls, and what was seen there."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.signals.dead import ENOUGH
from curvcli.signals.histogram import Histogram
from curvcli.signals.moments import Moments


@dataclass
class Place:
    """What one place gave and what came back to it.

    first, last:   when it was called, among all calls of a pass
    after:         the layer before, whose units are its own, where it is an activation
    depth:         whether it holds parameters, and so counts as a layer
    function:      the activation that it is, where it is one
    number:        which it is of the places that are called alike
    values:        of its outputs; gradient: of the loss by them
    beside:        sum of squares of the gradient by what else it returned, such as states
    hooked:        entries of outputs that a gradient could reach
    flat, judged:  entries at which the activation is flat, and all that it took
    alive:         units (k,) that were off the flat part at least once; None where not comparable
    seen:          examples that its units were judged on; batches: those that it was called in
    pooled:        whether it is all the calls of a loop
    """

    name: str
    kind: str
    first: int
    module: nn.Module
    layered: bool = False
    after: str = ""
    function: str = ""
    number: int = 1
    last: int = 0
    calls: int = 0
    values: Moments = field(default_factory=Moments)
    histogram: Histogram = field(default_factory=Histogram)
    gradient: Moments = field(default_factory=Moments)
    beside: float = 0.0
    hooked: int = 0
    flat: int = 0
    judged: int = 0
    alive: Tensor | None = None
    seen: int = 0
    batches: int = 1
    pooled: bool = False
    _comparable: bool = True

    def give(self, t: Tensor) -> None:
        """Take in what it gave."""
        self.values.add(t)
        self.histogram.add(t)

    def receive(self, gradient: Tensor) -> None:
        """Take in what came back to it."""
        if plain(gradient):
            self.gradient.add(gradient)

    def receive_beside(self, gradient: Tensor) -> None:
        """Take in what came back to something else that it returned."""
        if plain(gradient):
            self.beside += float(gradient.detach().double().square().sum())

    def judge(self, off: Tensor, axis: int) -> None:
        """Take in at which entries the activation is flat; its units lie along an axis."""
        self.flat += int(off.sum())
        self.judged += off.numel()
        on = off.logical_not()
        on = on.movedim(axis, -1).flatten(0, -2) if on.ndim > 1 else on.reshape(-1, 1)  # (n, k)
        self.seen += len(on)
        self._combine(on.any(0).cpu())

    def _combine(self, alive: Tensor) -> None:
        if self._comparable and (self.alive is None or self.alive.shape == alive.shape):
            self.alive = alive if self.alive is None else self.alive | alive
        else:
            # Units whose number changes from call to call, such as positions, are none.
            self._comparable, self.alive = False, None

    def merge(self, other: "Place") -> None:
        """Take in what was seen of the same place on other examples."""
        self.last, self.calls = max(self.last, other.last), self.calls + other.calls
        self.seen, self.batches = self.seen + other.seen, self.batches + other.batches
        self.values.merge(other.values)
        self.histogram.merge(other.histogram)
        self.gradient.merge(other.gradient)
        self.beside += other.beside
        self.hooked += other.hooked
        self.flat, self.judged = self.flat + other.flat, self.judged + other.judged
        if not other._comparable:
            self._comparable, self.alive = False, None
        elif other.alive is not None:
            self._combine(other.alive)

    @property
    def judgeable(self) -> bool:
        """Whether its units can be told apart, and were seen often enough to call one dead."""
        return self.alive is not None and self.seen >= ENOUGH

    @property
    def units(self) -> int:
        """How many units it has; 0 where they are not told apart."""
        return 0 if self.alive is None else len(self.alive)

    @property
    def dead(self) -> int | None:
        """How many units were flat throughout."""
        return None if self.alive is None else int((~self.alive).sum())

    @property
    def zero_gradient(self) -> float | None:
        """The share of its outputs' entries that got no gradient; None where none was asked."""
        if not self.hooked:
            return None
        # What the backward pass does not reach has no gradient either.
        return 1 - (self.gradient.count - self.gradient.zeros) / self.hooked


def axis_of(module: nn.Module) -> int | None:
    """Say along which axis a layer has its units; None for a module that says nothing of it."""
    spatial = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
    if isinstance(module, spatial):
        return 1
    flat = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
    return -1 if isinstance(module, flat) else None


def plain(t: Any) -> bool:
    """Tell the tensors of real numbers that statistics can be taken of."""
    return (
        isinstance(t, Tensor)
        and t.is_floating_point()
        and t.layout is torch.strided
        and not (t.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(t))
    )
