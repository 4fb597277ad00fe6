"""Which way each parameter's exact diagonal is computed, decided on a few examples."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from curvcli.curvature.diagonals import roots, units
from curvcli.curvature.diagonals.parts import Part
from curvcli.curvature.diagonals.second import gradients
from curvcli.curvature.diagonals.squares import Pulled
from curvcli.curvature.diagonals.uses import Layer, Use, plain, recording
from curvcli.errors import CurvError
from curvcli.problem import Problem

PULL = 0.5
"""What a backward pass costs beside a second-order product."""


def plan(problem: Problem, layers: Mapping[str, Layer]) -> list[Part]:
    """Divide the parameters, each to the cheapest way that seems right on the first batch."""
    by_path = by_units(problem, layers)
    pulls, linear = _linear(problem, {path: layers[path] for path in by_path})
    saved = sum(part.products for path in linear for part in by_path[path])
    parts: list[Part] = []
    if linear and pulls * PULL <= saved:
        names = tuple(n for path in linear for n in layers[path].names.values())
        parts.append(Part(names, "gauss-newton", pulls, linear))
        by_path = {path: found for path, found in by_path.items() if path not in linear}
    parts += [part for found in by_path.values() for part in found]
    taken = {n: part for part in parts for n in part.names}
    sizes = {n: p.numel() for n, p in problem.params.items()}
    in_order = [taken.get(n) or Part((n,), "one-hot", size) for n, size in sizes.items()]
    return list(dict.fromkeys(in_order))


def by_units(problem: Problem, layers: Mapping[str, Layer]) -> dict[str, list[Part]]:
    """Plan products with the layers' outputs, where a layer is applied once to all examples."""
    return {path: _chosen(path, use) for path, use in _uses(problem, layers).items()}


def _chosen(path: str, use: Use) -> list[Part]:
    """Choose between products by positions, which all parameters share, and by fan-in."""
    by_unit = use.channels * use.positions
    by_input = {n: use.channels * f.fan_in for n, f in use.features.items()}
    if by_unit <= sum(by_input.values()):
        return [Part((*by_input,), "positions", by_unit, (path,), use.folded)]
    return [Part((n,), "fan-in", products, (path,), use.folded) for n, products in by_input.items()]


def _uses(problem: Problem, layers: Mapping[str, Layer]) -> dict[str, Use]:
    """Find the layers that are applied once to all examples, folded where that is right."""
    batch = problem.batches[0]
    with recording(layers) as uses:
        share = problem.share(batch)
    once = {p: found[0] for p, found in uses.items() if plain(found, batch.size)}
    once = {p: use for p, use in once.items() if use.a.requires_grad}
    slopes = gradients(share, [use.a for use in once.values()], create_graph=True)
    return {path: _folded(use, g) for (path, use), g in zip(once.items(), slopes, strict=True)}


def _folded(use: Use, g: Tensor | None) -> Use:
    if use.grid == 1 or g is None or not g.requires_grad:
        return use
    folded = replace(use, folded=True)
    return folded if units.apart(folded, g) else use


def _linear(problem: Problem, layers: Mapping[str, Layer]) -> tuple[int, tuple[str, ...]]:
    """Find the layers downstream of which the model is piecewise linear; columns to pull first."""
    if not layers:
        return 0, ()
    try:
        found = Pulled.of(problem, problem.batches[0], roots.gauss_newton, layers)
    except CurvError:
        return 0, ()
    linear = found.linear(problem, problem.batches[0])
    return found.columns.count, tuple(path for path in layers if path in linear)
