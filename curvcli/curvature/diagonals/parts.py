"""A part of an exact diagonal: parameters that are done together, and the way it is done."""

from dataclasses import dataclass
from typing import Literal

Way = Literal["gauss-newton", "positions", "fan-in", "one-hot"]


@dataclass(frozen=True)
class Part:
    """Parameters whose diagonals are computed together, and how.

    layers:   the paths of the layers that they belong to; none for one-hot products
    products: per batch
    folded:   positions do not interact downstream
    """

    names: tuple[str, ...]
    way: Way
    products: int
    layers: tuple[str, ...] = ()
    folded: bool = False
