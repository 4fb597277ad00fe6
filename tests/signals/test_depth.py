"""The line through gradients by depth, and what chance explains of dead units."""

import math

import pytest
import torch
from oracles import rng

from curvcli.signals.dead import RARE, beyond_chance
from curvcli.signals.depth import trend


@pytest.mark.parametrize("slope", [-1.0, -0.1, 0.0, 0.3])
def test_a_straight_line_is_found(slope: float) -> None:
    found = trend([10 ** (slope * k - 2) for k in range(12)])
    assert found is not None
    assert found.slope == pytest.approx(slope, abs=1e-12)
    assert found.decades == pytest.approx(11 * slope, abs=1e-11)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.at(3) == pytest.approx(10 ** (3 * slope - 2))


def test_layers_out_of_line_do_not_move_it() -> None:
    norms: list[float | None] = [1.0] * 15
    norms[3], norms[9], norms[14], norms[5] = 1e-9, 1e6, 1e-4, None
    found = trend(norms)
    assert found is not None
    assert found.decades == 0


def test_what_is_zero_or_unknown_is_left_out() -> None:
    found = trend([0.0, None, 1e-3, 1e-2, 1e-1, 1.0])
    assert found is not None
    assert found.slope == pytest.approx(1.0)
    assert trend([1.0, 0.0, 2.0, None, 3.0]) is None


def test_the_interval_holds_the_slope() -> None:
    held, of = 0, 200
    for seed in range(of):
        noise = torch.randn(15, generator=rng(seed)).tolist()
        found = trend([10 ** (0.2 * k + e) for k, e in enumerate(noise)])
        assert found is not None
        held += abs(found.slope - 0.2) <= found.error
    # At least 95 of 100, less four standard errors of the count.
    assert held / of >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / of)


def test_rare_units_are_hardly_ever_called_dead() -> None:
    # One unit is off throughout with 0.9^n; the bound is above the truth, so below SURE.
    for units, examples in ((10, 20), (64, 50), (5, 7)):
        off = (1 - RARE) ** examples
        for dead in range(1, units + 1):
            if beyond_chance(dead, units, examples):
                tail = sum(
                    math.comb(units, k) * off**k * (1 - off) ** (units - k)
                    for k in range(dead, units + 1)
                )
                assert tail < 1e-3
    assert beyond_chance(32, 64, 50)
    assert not beyond_chance(5, 5, 7)
