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
from curvcli.linalg.missed import ends, escape, levels, sharp, slack
from curvcli.linalg.operator import Dense, Mapped
from curvcli.linalg.ritz import DOUBT, FLOOR, SLACK, Which


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lanczos_of(values: Tensor, steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Give the recurrence of a diagonal matrix from a random start: k entries on and off it."""
    q = torch.randn(len(values), generator=rng(seed), dtype=torch.float64)
    Q, alpha, beta = [q / q.norm()], [], []
    for _ in range(steps):
        w = values * Q[-1]
        alpha.append(float(w @ Q[-1]))
        for _ in range(2):
            for each in Q:
                w = w - (w @ each) * each
        beta.append(float(w.norm()))
        Q.append(w / w.norm())
    return alpha, beta


def test_more_steps_tell_more() -> None:
    values = torch.rand(500, generator=rng(), dtype=torch.float64)
    bounds = [escape(*lanczos_of(values, k, 1), 500, 1.2) for k in range(1, 20)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > 0.5
    assert bounds[-1] < 1e-5


def test_escape_by_hand() -> None:
    # One product: p_0 = 1 and p_1 = (level - alpha) / beta, so that chi = 1 / (1 + 9).
    assert escape([0.0], [1.0], 4, 3.0) == pytest.approx(math.sqrt(8 / math.pi / 10))
    assert escape([0.0], [1.0], 400, 3.0) == 1.0  # of 400 dimensions that tells nothing
    found = escape([0.0], [1e-3], 4, 3.0)
    assert found == pytest.approx(math.sqrt(8 / math.pi / (1 + 9e6)))
    assert escape([-0.5], [1e-3], 4, 2.5) == pytest.approx(found)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_escape_knows_no_unit(scale: float) -> None:
    values = torch.rand(500, generator=rng(), dtype=torch.float64)
    alpha, beta = lanczos_of(values, 12, 1)
    scaled = escape([a * scale for a in alpha], [b * scale for b in beta], 500, 1.2 * scale)
    assert scaled == pytest.approx(escape(alpha, beta, 500, 1.2))


def test_what_cannot_have_escaped() -> None:
    assert escape([0.0], [1.0], 100, math.inf) == 0.0  # nobody asked
    assert escape([0.0, 0.0], [1.0, 0.0], 100, 3.0) == 0.0  # the run closed
    assert escape([2.0], [1.0], 100, 1.0) == 1.0  # found beyond the level
    assert escape([2.0], [1.0], 100, math.nan) == 1.0


def test_the_mass_that_escapes_is_no_more_than_told() -> None:
    # The component of the start along every eigenvector beyond the level is bounded for certain.
    n = 300
    values = torch.cat([torch.rand(n - 1, generator=rng(), dtype=torch.float64), column([1.3])])
    for seed in range(50):
        alpha, beta = lanczos_of(values, 6, seed)
        q = torch.randn(n, generator=rng(seed), dtype=torch.float64)
        mass = float((q[-1] / q.norm()).square())
        for level in (1.05, 1.2, 1.3):
            chi = escape(alpha, beta, n, level) ** 2 * math.pi / (2 * n)
            assert mass <= chi * (1 + 1e-9) or chi >= math.pi / (2 * n) * (1 - 1e-9)


@pytest.mark.parametrize("steps", [3, 4, 5])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_bound_on_misses_holds(steps: int, low: float) -> None:
    # Whatever the runs have seen, the value of 1 may be believed to be less than 0.98 in no more of
    # them than the bound says, at any level of belief.
    values = column([1.0, low] + [0.6 * i / 200 for i in range(200)])
    believed = []
    for seed in range(300):
        believed.append(escape(*lanczos_of(values, steps, seed), len(values), 0.98))
    for doubt in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert sum(b <= doubt for b in believed) / 300 <= doubt
    assert min(believed) < 0.9


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
    missed_ones = 0
    for seed in range(100, 120):
        draws = 0
        # For one pair its own start would be trusted.
        ritz = lanczos(A, 2, 1e-3, rng(seed), max_vectors=room, block=block)
        assert ritz.converged
        missed_ones += float(ritz.values[0]) < 1.9
    assert missed_ones / 20 <= DOUBT


@pytest.mark.parametrize("which", ["largest", "both", "magnitude"])
def test_every_copy_of_a_repeated_eigenvalue_is_found(which: Which) -> None:
    missed_ones = 0
    for seed in range(20):
        A = symmetric([3.0, 3.0, 3.0, -3.0, -3.0, *[i / 40 for i in range(55)]], seed)
        ritz = lanczos(Dense(A), 2, 1e-2, rng(seed), which=which)
        assert ritz.converged
        missed_ones += int((ritz.values.abs() < 2.8).any())
    assert missed_ones / 20 <= DOUBT


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
def test_one_pair_is_bounded_by_its_own_run(which: Which) -> None:
    # A hundred starts at random: the run misses no more of them than it says, and saves the search.
    values = column([3.0, -2.0, *[1.5 * i / 400 for i in range(400)]])
    A, wrong = Mapped(lambda v: values * v, values), 0
    for seed in range(100):
        ritz = lanczos(A, 1, 1e-2, rng(seed), which=which)
        assert ritz.converged
        assert 0 < ritz.doubt <= DOUBT
        top = -2.0 if which == "smallest" else 3.0
        wrong += abs(float(ritz.values[0]) - top) > 0.05 * abs(top)
        if which == "both":
            wrong += abs(float(ritz.values[1]) + 2.0) > 0.1
    assert wrong / 100 <= DOUBT
