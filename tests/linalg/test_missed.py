"""What may have been missed: the level that the complement must keep to, and a random start."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracles import rng, symmetric
from torch import Tensor

from curvcli.linalg.basis import Basis
from curvcli.linalg.lanczos import lanczos
from curvcli.linalg.missed import ends, levels, missed, sharp, slack
from curvcli.linalg.operator import Dense, Mapped
from curvcli.linalg.ritz import DOUBT, FLOOR, SLACK, Which

NONE = (-math.inf, math.inf)


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_more_steps_miss_less() -> None:
    bounds = [missed([k], 10_000, (0.0, 0.5), (-math.inf, 1.0)) for k in range(1, 60)]
    assert bounds[0] == 1.0
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1e-10
    # A gap of 0.5 beyond a spread of 0.5: epsilon = 0.5 / (0.5 + 2 * 0.5) = 1/3.
    by_hand = 2 * 1.648 * 100 * math.exp(-math.sqrt(1 / 3) * 39)
    assert missed([20], 10_000, (0.0, 0.5), (-math.inf, 1.0)) == pytest.approx(by_hand)
    assert missed([20], 10_000, (-0.5, 0.0), (-1.0, math.inf)) == pytest.approx(by_hand)
    assert missed([20], 10_000, (0.0, 0.5), (-0.5, 1.0)) == pytest.approx(by_hand)


def test_runs_miss_independently() -> None:
    one = missed([15], 10_000, (0.0, 0.5), (-math.inf, 1.0))
    assert 0 < one < 1
    assert missed([15, 15], 10_000, (0.0, 0.5), (-math.inf, 1.0)) == pytest.approx(one**2 / 2)
    # A run too short to promise anything takes nothing away from another.
    assert missed([15, 1], 10_000, (0.0, 0.5), (-math.inf, 1.0)) == one


def test_what_cannot_have_been_missed() -> None:
    assert missed([3], 100, (0.0, 0.5), NONE) == 0.0  # nobody asked
    assert missed([100], 100, (0.0, 0.5), (-1.0, 1.0)) == 0.0  # the whole space was seen
    assert missed([99], 100, (0.0, 1.5), (-math.inf, 1.0)) == 1.0  # found beyond the level
    assert missed([99], 100, (0.0, 0.5), (-math.inf, math.nan)) == 1.0


@pytest.mark.parametrize("steps", [3, 4, 5])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_bound_on_misses_holds(steps: int, low: float) -> None:
    # Whatever the runs have seen, the value of 1 may be believed to be less than 0.98 in no more of
    # them than the bound says, at any level of belief.
    values = column([1.0, low] + [0.6 * i / 200 for i in range(200)])
    n, believed, escaped = len(values), [], 0
    for seed in range(300):
        q = torch.randn(n, generator=rng(seed), dtype=torch.float64)
        V = torch.linalg.qr(torch.stack([values**k * q for k in range(steps)]).T)[0]
        own = torch.linalg.eigvalsh((V.T * values) @ V)
        level = (-math.inf, 0.98)
        escaped += float(own[-1]) < 0.98
        believed.append(missed([steps], n, (float(own[0]), float(own[-1])), level))
    assert escaped > 10
    for doubt in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert sum(b <= doubt for b in believed) / 300 <= doubt


@pytest.mark.parametrize(
    ("which", "low", "high"),
    [
        ("magnitude", [-5.0, -4.0], [4.0, 4.0]),
        ("largest", [], [4.0, 2.0]),
        ("smallest", [-5.0, -1.0], []),
        ("both", [-5.0, -1.0], [4.0, 2.0]),
    ],
)
def test_ends(which: Which, low: list[float], high: list[float]) -> None:
    assert ends(column([-5.0, -1.0, 0.0, 2.0, 4.0]), 2, which) == (low, high)


def test_ends_of_which_too_little_is_known() -> None:
    theta = column([-5.0, -1.0, 0.0, 2.0, 4.0])
    assert all(map(math.isnan, ends(theta, 6, "largest")[1]))
    assert all(map(math.isnan, ends(theta, 6, "smallest")[0]))
    assert all(map(math.isnan, ends(theta, 3, "both")[0]))
    assert math.isnan(ends(theta, 6, "magnitude")[1][-1])


def test_levels_of_exact_pairs_are_the_edges_with_slack() -> None:
    theta, none = column([-5.0, -1.0, 0.0, 2.0, 4.0]), torch.zeros(5).double()
    assert levels(theta, none, 2, "largest", 5.0) == pytest.approx((-math.inf, 2.1))
    assert levels(theta, none, 2, "both", 5.0) == pytest.approx((-1.05, 2.1))
    assert levels(theta, none, 2, "magnitude", 5.0) == pytest.approx((-4.2, 4.2))
    assert levels(theta, none, 3, "largest", 5.0)[1] == pytest.approx(SLACK * FLOOR * 5.0)
    assert slack(-4.0, 5.0) == pytest.approx(0.2)


def test_residuals_lower_the_level() -> None:
    theta = column([1.0, 10.0])
    # The larger pair's residual moves the other pair by nothing, only itself.
    assert levels(theta, column([0.0, 0.1]), 2, "largest", 10.0)[1] == pytest.approx(1.05)
    found = levels(theta, column([0.02, 0.0]), 2, "largest", 10.0)[1]
    assert found == pytest.approx(1.05 - 0.02**2 / 0.05)
    assert sharp((-math.inf, found), theta, 2, "largest", 10.0)
    assert not sharp((-math.inf, 1.02), theta, 2, "largest", 10.0)
    assert not sharp((-math.inf, math.nan), theta, 2, "largest", 10.0)


@pytest.mark.parametrize("seed", range(20))
def test_a_complement_within_its_levels_hides_nothing(seed: int) -> None:
    # Any orthonormal Y, diagonal Y^T A Y: if P A P is within the levels, no eigenvalue of A lies
    # beyond those of Y by more than the slack.
    n, k, top = 12, 4, 3
    values = [10.0, 6.0, 5.0, 4.6, *[i / 3 for i in range(n - 4)]]
    A = symmetric(values, seed)
    true, exact = torch.linalg.eigh(A)
    noise = torch.randn(n, n, generator=rng(seed), dtype=torch.float64)
    Q = torch.linalg.qr(exact.flip(1) + 0.03 * (seed % 5) * noise)[0]
    inner, S = torch.linalg.eigh(Q[:, :k].T @ A @ Q[:, :k])
    Y = Q[:, :k] @ S
    residuals = (A @ Y - Y * inner).norm(dim=0)
    level = levels(inner, residuals, top, "largest", 10.0)[1]
    C = torch.linalg.eigvalsh(Q[:, k:].T @ A @ Q[:, k:])
    held = (true.flip(0)[:top] <= inner.flip(0)[:top] * (1 + SLACK)).all()
    assert bool(held) or float(C[-1]) > level
    if seed % 5 == 0:
        assert float(C[-1]) <= level  # else nothing was tested


@pytest.mark.parametrize("room", [None, 26])
@pytest.mark.parametrize("block", [1, 2])
def test_what_the_first_start_lacks_is_found(
    room: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = column([2.0, 1.0, *[0.5 * i / 98 for i in range(98)]])
    draw, draws = Basis.random, 0

    def unlucky(self: Basis, *given: Any) -> Tensor | None:
        nonlocal draws
        w, draws = draw(self, *given), draws + 1
        assert w is not None
        w[0] *= draws > block
        unit: Tensor = w / w.norm()
        return unit

    monkeypatch.setattr(Basis, "random", unlucky)
    A = Mapped(lambda v: values * v, values)
    for seed in range(5):
        draws = 0
        ritz = lanczos(A, 1, 1e-3, rng(seed), max_vectors=room, block=block)
        assert ritz.converged
        assert float(ritz.values[0]) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("which", ["largest", "both", "magnitude"])
def test_every_copy_of_a_repeated_eigenvalue_is_found(which: Which) -> None:
    missed_ones = 0
    for seed in range(20):
        A = symmetric([3.0, 3.0, 3.0, -3.0, -3.0, *[i / 40 for i in range(55)]], seed)
        ritz = lanczos(Dense(A), 2, 1e-2, rng(seed), which=which)
        assert ritz.converged
        missed_ones += int((ritz.values.abs() < 2.8).any())
    assert missed_ones / 20 <= DOUBT
