"""The Hessian's diagonal of a layer's parameters from second derivatives by the layer's outputs.

With a[n,t,o] = sum_i W_oi x[n,t,i], the entry of W_oi is x^T (d^2L / da_o da_o) x, over positions
[Bishop 2006, PRML, eq. 5.79, where there is one of those]. By positions: a product with the unit
(t, o) of all examples at once, which do not interact, serves all inputs i. By fan-in: a product
along the features of input i serves all positions. So it takes out * min(positions, fan-in)
products, downstream of the layer, instead of out * fan-in through the whole model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from curvcli.curvature.diagonals.parts import Part
from curvcli.curvature.diagonals.second import products
from curvcli.curvature.diagonals.uses import Use, close


def by_positions(use: Use, g: Tensor, units: Tensor, total: dict[str, Tensor]) -> None:
    """Multiply by the units t * channels + o (c,), and add to rows (channels, fan-in) by name."""
    t, o = units // use.channels, units % use.channels
    if use.folded or use.grid == 1:
        values = use.a.new_ones(len(units), 1, 1)
    else:
        values = use.a.new_zeros(len(units), 1, use.grid)
        values[torch.arange(len(units)), 0, t] = 1
    h = use.of(o, products(g, use.a, use.at(o, values.expand(-1, len(use.a), use.grid))))
    for name, rows in total.items():
        rows.index_add_(0, o, use.features[name].paired(h, t, o))


def by_fan_in(use: Use, g: Tensor, units: Tensor, total: dict[str, Tensor]) -> None:
    """Multiply by the entries o * fan-in + i (c,), and add to rows (channels, fan-in) by name."""
    ((name, rows),) = total.items()
    features = use.features[name]
    o, i = units // features.fan_in, units % features.fan_in
    x = features.direction(o, i)  # (c, N, T)
    h = use.of(o, products(g, use.a, use.at(o, x)))
    rows[o, i] += (h * x).sum(dim=(1, 2))


WAYS: dict[str, Callable[[Use, Tensor, Tensor, dict[str, Tensor]], None]] = {
    "positions": by_positions,
    "fan-in": by_fan_in,
}


def apart(use: Use, g: Tensor) -> bool:
    """Decide whether examples (and positions, if folded) do not interact downstream of a layer.

    They do not where a product along half of them leaves the others alone.
    """
    direction, mask = use.half()
    found = use.spread(products(g, use.a, direction.unsqueeze(0))[0]).abs()
    return close((found * (1 - mask)).max(), found.max())


def count(use: Use, part: Part) -> int:
    """Say how many products a part takes on a batch, whose examples may have other positions."""
    if part.way == "positions":
        return use.channels * use.positions
    return use.channels * use.features[part.names[0]].fan_in
