"""What is told and drawn of what was heard in a model: names, notes, figures."""

import math
from typing import TYPE_CHECKING, Any

from curvcli.errors import listed
from curvcli.report import Axis, Figure, Line, Tiles

if TYPE_CHECKING:
    from curvcli.signals.depth import Trend
    from curvcli.signals.passes import Recording
    from curvcli.signals.pictures import Pictures
    from curvcli.signals.place import Place

GRID = tuple((k - 16) / 4 - 0.125 for k in range(34))
"""Edges of the bins of a drawn histogram, in root mean squares; one is around zero."""

PICTURED, PIXELS = 60, 50_000
"""Pictures of weights that are drawn, and the numbers that they may have together."""

DRAWN = 24
"""Histograms that are drawn; those of more places are in the quantiles of the rows."""


def is_answer(place: "Place", heard: "Recording") -> bool:
    """Tell what makes probabilities of outputs: it saturates where the model is sure."""
    from curvcli.signals.slopes import BOUNDED

    return place.function in BOUNDED and heard.is_final(place)


def named(place: "Place") -> str:
    """Name a place for people."""
    return place.name or "the model"


def notes(heard: "Recording", mode: str, unseen: int) -> list[str]:
    """Say what the columns mean, and what was not heard."""
    said = [
        f"over {heard.examples:,} of {heard.of:,} examples, model in {mode} mode"
        if heard.interrupted
        else f"over all {heard.of:,} examples, model in {mode} mode",
        "flat: share of outputs where the activation's slope is below 1/20 of its steepest "
        "(saturated, or off: tanh beyond 0.975, ReLU at 0); dead: units flat on every example",
        "gradient: norm of d loss / d outputs of one example, root mean square over examples; "
        "zero: share of outputs where it is zero",
    ]
    if unseen:
        said.append(
            f"{unseen} batch normalisations have no statistics yet: each batch's own are taken"
        )
    return said + _rows_told(heard) + _units_told(heard)


def _rows_told(heard: "Recording") -> list[str]:
    """Say what the rows are that are not simply a module's outputs."""
    from torch import nn

    said = []
    again = next((p for p in heard.places if p.number > 1), None)
    if again:
        after = f", after {again.after}" if again.after else ""
        said.append(
            f"{again.name}: another call of the activation{after} (column after, in csv and json); "
            "calls that come back to one layer, as recurrent ones, share a row"
        )
    pooled = [named(p) for p in heard.places if p.pooled]
    if pooled:
        said.append(
            f"{listed(pooled)}: the calls of a loop as one, since they are many or differ in "
            "number; a unit is dead there only if it is at every call"
        )
    fused = [p.name for p in heard.places if p.kind != "input" and isinstance(p.module, nn.RNNBase)]
    if fused:
        said.append(
            f"{listed(fused)}: the sequence of outputs; the norm counts what comes back by the "
            "last states too; gates inside are not seen, since one kernel computes them"
        )
    return said


def _units_told(heard: "Recording") -> list[str]:
    """Say which units could not be judged, and why."""
    from curvcli.signals.dead import ENOUGH

    said = []
    unlike = [named(p) for p in heard.places if p.judged and p.alive is None]
    if unlike:
        said.append(
            f"dead units of {listed(unlike)} are not judged: their number differs from call to call"
        )
    few = [named(p) for p in heard.places if p.alive is not None and not p.judgeable]
    if few:
        said.append(
            f"dead units of {listed(few)} are not known: they met fewer than {ENOUGH} examples, "
            "on which a sound unit is off by chance"
        )
    return said


def histograms(heard: "Recording") -> Figure:
    """Draw the places with the most that is flat first; all on one scale, their own size."""
    import torch

    def flatness(place: "Place") -> float:
        return place.flat / place.judged if place.judged else -1.0

    chosen = sorted(heard.places, key=flatness, reverse=True)[:DRAWN]
    grid = torch.tensor(GRID, dtype=torch.float64)
    centres = tuple(x + 0.125 for x in GRID[:-1])
    lines = []
    for place in chosen:
        v = place.values
        if v.rms > 0:
            found = place.histogram.shares(grid * v.rms, v.low, v.high)
            lines.append(Line(named(place), centres, tuple(round(x, 6) for x in found.tolist())))
    return Figure(
        name="histograms",
        title="what the places give: share of the values by size",
        x=Axis("value, in root mean squares of its place"),
        y=Axis("share of the values"),
        lines=tuple(lines),
        caption="A peak at zero is what is off, peaks at both ends are what is saturated."
        + (f" The {DRAWN} flattest of {len(heard.places)}." if heard.places[DRAWN:] else ""),
    )


def picture_book(found: "Pictures") -> Figure | None:
    """Draw what the first layer looks for; None where a picture is too large for a document.

    A colour needs no more than four digits; `--weights` has them all.
    """
    pixels = found.pixels.double().cpu()
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.flatten(0, 1).unsqueeze(1)
    of, *shape = pixels.shape
    fitting = min(of, PICTURED, PIXELS // max(math.prod(shape), 1))
    if not fitting:
        return None
    chosen = pixels.flatten(1).norm(dim=1).topk(fitting).indices.sort().values.tolist()
    channels, height, width = shape
    per = of // len(found.pixels)
    where = found.layer or "the model"
    caption = "Red is positive, blue is negative." if channels == 1 else "Grey is zero."
    if fitting < of:
        caption += f" The {fitting} largest of {of}."
    return Figure(
        name="weights",
        title=f"weights of {where}, {width} x {height} for each unit",
        x=Axis(""),
        y=Axis("units by number" if per == 1 else "units and channels by number"),
        lines=(),
        caption=caption,
        tiles=Tiles(
            tuple(str(i) if per == 1 else f"{i // per}.{i % per}" for i in chosen),
            (channels, height, width),
            tuple(tuple(float(f"{v:.4g}") for v in pixels[i].flatten().tolist()) for i in chosen),
            Axis("weight"),
        ),
    )


def by_depth(heard: "Recording", line: "Trend | None") -> list[Figure]:
    """Draw the gradient's norm over the layers, with the line through it."""
    layers = heard.layers
    if line is None:
        return []
    depths = tuple(float(k + 1) for k in range(len(layers)))
    norms = tuple(heard.norm(p) for p in layers)
    ends = (1.0, float(len(layers)))
    fitted = Line("trend", ends, (line.at(0), line.at(len(layers) - 1)))
    return [
        Figure(
            name="depth",
            title="norm of the gradient by the outputs of each layer",
            x=Axis("layer, from the input on"),
            y=Axis("gradient of one example's loss", "log"),
            lines=(Line("gradient", depths, norms), fitted),
            caption="A trend downward to the left is vanishing, one upward is exploding.",
        )
    ]


def of_pictures(
    heard: "Recording", found: "Pictures | None", *, asked: bool, drawn: bool
) -> list[str]:
    """Say what became of the first layer's weights; `asked` for a file of them, or `drawn`."""
    if found is None:
        first = f", {named(heard.layers[0])}," if heard.layers else ""
        said = (
            f"--weights: no file is written, since the first layer{first} does not look at "
            "pictures (a Conv2d does, or a Linear of images or of a square number of inputs)"
        )
        return [said] if asked else []
    size = "x".join(map(str, found.pixels.shape[1:]))
    where = "are drawn as a figure" if drawn else "are too large for a figure"
    square = "; its rows of inputs were taken for squares" if found.guessed else ""
    name = found.layer or "the model"
    return [
        f"the weights of {name}, {len(found.pixels)} pictures of {size}, {where}; "
        f"--weights FILE takes them as arrays{square}"
    ]


def arrays(found: "Pictures") -> dict[str, Any]:
    """Give the pictures as a NumPy array, by the weight's name."""
    array = found.pixels.float().cpu().numpy().copy()
    return {f"{found.layer}.weight".lstrip("."): array}
