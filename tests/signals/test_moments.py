"""Statistics that come in parts are those of all numbers at once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import rng

from curvcli.signals import moments
from curvcli.signals.histogram import Histogram
from curvcli.signals.moments import Moments


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(0, 40))
def test_parts_make_a_whole(values: list[float], cut: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    found, rest = Moments(), Moments()
    found.add(x[:cut])
    rest.add(x[cut:])
    found.merge(rest)
    assert found.count == len(x)
    assert found.mean == pytest.approx(float(x.mean()), rel=1e-12, abs=1e-9)
    assert found.std == pytest.approx(float(x.std(correction=0)), rel=1e-9, abs=1e-9)
    assert found.rms == pytest.approx(float(x.square().mean().sqrt()), rel=1e-9, abs=1e-9)
    assert (found.low, found.high) == (float(x.min()), float(x.max()))
    assert found.zeros == int((x == 0).sum())


def test_a_large_mean_does_not_drown_the_spread() -> None:
    x = 1e8 + torch.randn(1000, generator=rng(), dtype=torch.float64)
    found = Moments()
    for part in torch.split(x, 10):
        found.add(part)
    assert found.std == pytest.approx(float(x.std(correction=0)), rel=1e-6)


def test_long_tensors_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "PART", 7)
    x = torch.randn(3, 5, 4, generator=rng(), dtype=torch.float16)
    found = Moments()
    found.add(x)
    assert found.mean == pytest.approx(float(x.double().mean()), rel=1e-12)
    assert found.count == 60


def test_nothing_has_no_spread() -> None:
    assert math.isnan(Moments().std)
    assert math.isnan(Moments().rms)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_quantiles_are_within_a_sixteenth(seed: int, scale: float) -> None:
    x = scale * torch.randn(4000, generator=rng(seed), dtype=torch.float64)
    found, other = Histogram(), Histogram()
    found.add(x[:1500])
    other.add(x[1500:])
    found.merge(other)
    for share in (0.01, 0.05, 0.3, 0.7, 0.95):
        q = found.quantile(share, float(x.min()), float(x.max()))
        assert q == pytest.approx(float(x.quantile(share)), rel=1 / 16)
    assert found.quantile(0.0, float(x.min()), float(x.max())) == float(x.min())
    assert found.quantile(1.0, float(x.min()), float(x.max())) == float(x.max())


def test_shares_are_those_of_a_histogram() -> None:
    x = torch.randn(20_000, generator=rng(), dtype=torch.float64)
    x[:8000] = 0
    x[8000:9000] = 1.0
    found = Histogram()
    found.add(x)
    grid = torch.linspace(-4.125, 4.125, 34, dtype=torch.float64)
    truth = torch.histogram(x, grid)[0] / len(x)
    shares = found.shares(grid, float(x.min()), float(x.max()))
    # Within a bin the numbers are taken as even: at most a bin's own are on the wrong side.
    assert float((shares - truth).abs().max()) < 0.01
    assert float(shares.sum()) == pytest.approx(float(((x > -4.125) & (x < 4.125)).double().mean()))


def test_all_at_one_place() -> None:
    found = Histogram()
    found.add(torch.ones(5))
    assert found.quantile(0.5, 1.0, 1.0) == 1.0
    grid = torch.tensor([0.0, 0.9, 1.1], dtype=torch.float64)
    assert found.shares(grid, 1.0, 1.0).tolist() == [0.0, 1.0]


def test_what_is_not_finite_is_left_out() -> None:
    found = Histogram()
    found.add(torch.tensor([math.nan, math.inf, -math.inf, 2.0, 2.0]))
    assert found.quantile(0.5, 2.0, 2.0) == 2.0


def test_no_finite_number_has_no_quantile() -> None:
    found = Histogram()
    found.add(torch.tensor([math.inf, -math.inf]))
    assert math.isnan(found.quantile(0.5, -math.inf, math.inf))
