"""Headline figures: what is printed is an interval that holds the one it stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvcli.report import plus_minus


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (1.26893, 3.2e-6, "1.268930 ± 0.000004"),
        (2.9872, 0.146, "3.0 ± 0.2"),
        (482.14, 35.2, "480 ± 40"),
        (8.2727, 0.0, "8.2727"),
    ],
)
def test_headlines(value: float, error: float, said: str) -> None:
    assert plus_minus(value, error) == said


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e5))
def test_the_printed_interval_holds_the_true_one(value: float, error: float) -> None:
    centre, _, radius = plus_minus(value, error).partition(" ± ")
    slack = 1e-9 * max(abs(value), 1.0)
    assert float(centre) - float(radius) <= value - error + slack
    assert float(centre) + float(radius) >= value + error - slack
