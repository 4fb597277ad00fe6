"""Small pictures of a figure, side by side, each under its label; one key for all of them."""

import math
from typing import TYPE_CHECKING, Any, Final

from curvcli.report import Tiles
from curvcli.sinks.cells import key
from curvcli.sinks.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In points.
ABREAST: Final = 12
LARGEST: Final = 80
"""From one picture to the next, where there are few."""
GAP: Final = 4
LABEL, LETTERS = 10, 7
SHARPEST: Final = 96
"""A picture of fewer pixels is handed on with each of them repeated: some viewers blur."""


def pitch(tiles: Tiles, room: float) -> tuple[float, float]:
    """Give the distances from one picture to the next, across and down."""
    _, height, width = tiles.shape
    across = min(room / min(max(len(tiles.labels), 1), ABREAST), LARGEST)
    return across, (across - GAP) * height / width + GAP + LABEL


def size(tiles: Tiles, room: float) -> float:
    """Give the height of all of them."""
    return pitch(tiles, room)[1] * max(-(-len(tiles.labels) // ABREAST), 1)


def draw(axes: "Axes", tiles: Tiles, room: float) -> None:
    """Draw them on one scale, about zero; a number that is none is grey, or black in colours."""
    import numpy
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    across, down = pitch(tiles, room)
    axes.set_axis_off()
    axes.set(xlim=(0, room), ylim=(size(tiles, room), 0))
    array = numpy.array([[math.nan if v is None else v for v in p] for p in tiles.values])
    pictures = array.reshape(-1, *tiles.shape).transpose(0, 2, 3, 1)
    known = numpy.abs(array[numpy.isfinite(array)])
    most = float(known.max(initial=0.0)) or 1.0
    colors = colormaps["RdBu_r"].with_extremes(bad="#d9d9d9")
    look: Any = {"norm": Normalize(-most, most), "cmap": colors}
    fine = -(-SHARPEST // max(tiles.shape[1:]))
    for i, (label, picture) in enumerate(zip(tiles.labels, pictures, strict=True)):
        left, top = across * (i % ABREAST), down * (i // ABREAST)
        axes.text(left, top, clean(label), va="top", size=LETTERS, color="#555555")
        box = (left, left + across - GAP, top + down - GAP, top + LABEL)
        pixels = picture.repeat(fine, 0).repeat(fine, 1)
        shown: Any = numpy.ma.masked_invalid(pixels[:, :, 0])
        if tiles.shape[0] == 3:
            shown = numpy.nan_to_num((pixels / most + 1) / 2, nan=0.0, posinf=0.0, neginf=0.0)
        axes.imshow(shown, extent=box, aspect="auto", interpolation="none", **look)
    if tiles.shape[0] == 1:
        key(axes, ScalarMappable(**look), tiles.key)
