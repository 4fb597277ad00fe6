"""Whether units that were never on are more than chance explains on this many examples."""

import math

RARE = 0.1
"""A unit that is on for a tenth of the examples is a rare one, and no dead one."""

ENOUGH = 8
"""Examples of which all must be off: a unit that is on for half of them is so by 1 in 256."""

SURE = 1e-3
"""Chance that a layer of rare units is called dead."""


def beyond_chance(dead: int, units: int, examples: int) -> bool:
    """Tell whether that many of the units would hardly all be off by chance, were they rare.

    The chance that some choice of them is off throughout is at most the number of such choices
    times the chance for one.
    """
    choices = math.lgamma(units + 1) - math.lgamma(dead + 1) - math.lgamma(units - dead + 1)
    return choices + dead * examples * math.log1p(-RARE) < math.log(SURE)
