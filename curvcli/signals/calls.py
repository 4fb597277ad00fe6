"""Which call of an activation is which in a forward pass, and what the places are named.

The units of an activation are those of the layer before it. So one module, or one line of code,
that is called after several layers is several places; and where a recurrent network comes back to
the same layer at every step, the calls after it are one. Between two layers calls are counted.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from curvcli.signals.place import Place

MOST = 16
"""Calls with no layer between them that are told apart; more are steps of a loop, and pooled."""


class Key(NamedTuple):
    """A module, or a function that its forward() calls at a line; after which layer, which time."""

    path: str
    function: str = ""
    line: str = ""
    after: str = ""
    nth: int = 1

    @property
    def label(self) -> str:
        """What it is called, by itself or with others."""
        if not self.function:
            return self.path
        return f"{self.path}: {self.function}()" if self.path else f"{self.function}()"


class Calls:
    """Tells the calls of activations apart while a forward pass goes on."""

    def __init__(self) -> None:
        self._after = ""
        self._seen: Counter[Key] = Counter()

    def enter(self, path: str, module: nn.Module) -> None:
        """Take note of a module that begins: with weights of its own, it is a layer."""
        if not path or is_parametrized(module) or any(True for _ in module.parameters(False)):
            self._after = path
            self._seen.clear()

    def key(self, path: str, function: str = "", line: str = "") -> Key:
        """Say which call of an activation this is; those beyond the most are one."""
        found = Key(path, function, line, self._after)
        self._seen[found] += 1
        return found._replace(nth=min(self._seen[found], MOST + 1))


def settled(places: Mapping[Key, Place]) -> tuple[Place, ...]:
    """Pool the calls of loops, and name the places in the order of their first call."""
    loops: dict[Key, list[Place]] = {}
    for key, place in places.items():
        loops.setdefault(key._replace(nth=1), []).append(place)
    found = [(place, key) for key, loop in loops.items() for place in _pooled(loop)]
    found.sort(key=lambda pair: pair[0].first)
    same: Counter[str] = Counter()
    for place, key in found:
        same[key.label] += 1
        place.number = same[key.label]
        place.name = key.label + (f" {place.number}" if place.number > 1 else "")
        place.after = key.after if place.function else ""
    return tuple(place for place, _ in found)


def _pooled(loop: list[Place]) -> list[Place]:
    """Make one place of calls that are too many, or whose number depends on the data."""
    if len(loop) <= MOST and len({place.batches for place in loop}) == 1:
        return loop
    first, *rest = loop
    # The same examples came by at every call.
    seen = max(place.seen for place in loop)
    for place in rest:
        first.merge(place)
    first.seen, first.pooled = seen, True
    return [first]
