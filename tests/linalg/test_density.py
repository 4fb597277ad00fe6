"""Densities of spectra known by construction: masses and moments within their errors."""

import math
from collections.abc import Sequence

import pytest
import torch
from oracles import Interrupting, rng, symmetric
from torch import Tensor

from curvcli.linalg.averages import below, mass, moment, outliers, rank, trace
from curvcli.linalg.density import density, grid, peak
from curvcli.linalg.operator import Counted, Dense, LinearOperator, Mapped
from curvcli.linalg.quadrature import Quadrature
from curvcli.linalg.slq import slq

N = 80
SPECTRA: dict[str, list[float]] = {
    "zero": [0.0] * N,
    "identity": [1.0] * N,
    "rank one and bulk": [9.0] + [i / N for i in range(N - 1)],
    "clustered": [-1.0] * 10 + [0.0] * 40 + [2.0, 2 + 1e-9] * 10 + [5.0] * 10,
    "plus and minus": [s * (1.0 + i % 4) for i in range(N // 2) for s in (1, -1)],
    "geometric": [2.0**-i for i in range(N)],
    "negative": [-1.0 - i / N for i in range(N)],
}
SMALL: dict[str, list[float]] = {
    **{name: values[::4] for name, values in SPECTRA.items()},
    "n = 1": [2.0],
    "n = 1, zero": [0.0],
    "n = 2": [1.0, -1.0],
    "n = 2, equal": [1.0, 1.0],
}
SCALES = (1.0, 1e-150, 1e150)


def diagonal(values: Sequence[float]) -> LinearOperator:
    """Stand for any matrix of this spectrum: probes are as likely in every direction."""
    d = torch.tensor(values, dtype=torch.float64)
    return Mapped(lambda v: d * v, d)


def sampled(values: Sequence[float], seed: int = 0, probes: int = 4, steps: int = 16) -> Quadrature:
    q = slq(diagonal(values), probes, steps, rng(seed))
    assert not q.exact
    return q


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spectrum", SMALL)
def test_small_matrices_are_exact(spectrum: str, scale: float) -> None:
    A = symmetric(SMALL[spectrum]) * scale
    q = slq(Dense(A), 3, 30, rng())
    true = torch.linalg.eigvalsh(A)
    assert q.exact
    assert q.matvecs == len(true)
    assert torch.allclose(q.rule.nodes, true, atol=1e-13 * q.largest)
    for found in (below(q, -0.3 * scale), mass(q, -0.3 * scale, 0.3 * scale)):
        assert float(found.stderr) == 0
        assert float(found.drift) <= 1e-20
    assert trace(q).error == 0
    assert float(trace(q).mean) == pytest.approx(float(A.trace()), abs=1e-12 * q.largest)
    expected = int((true.abs() > 0.3 * scale).sum())
    assert float(rank(q, 0.3 * scale).mean) == pytest.approx(expected)


def test_float32_and_a_basis_that_fills_the_space() -> None:
    A = symmetric(SMALL["plus and minus"], dtype=torch.float32)
    q = slq(Dense(A), 3, 30, rng())
    true = torch.linalg.eigvalsh(A.double())
    assert ((q.rule.nodes - true).abs() <= q.probes[0].residuals).all()
    assert float(q.probes[0].residuals.max()) < 1e-4


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_rules_are_probability_measures_near_eigenvalues(spectrum: str, scale: float) -> None:
    values = [scale * v for v in SPECTRA[spectrum]]
    q = sampled(values)
    true = torch.tensor(values, dtype=torch.float64)
    # Two values 1e-9 apart keep a run from closing; what it does beyond them is rounding.
    distinct = 16 if spectrum == "clustered" else len(set(SPECTRA[spectrum]))
    for p in q.probes:
        assert float(p.rule.weights.sum()) == pytest.approx(1, abs=1e-12)
        assert (p.rule.weights >= 0).all()
        assert len(p.rule.nodes) <= min(16, distinct)
        away = (p.rule.nodes[:, None] - true).abs().amin(1)
        assert (away <= p.residuals * (1 + 1e-9)).all()
    assert q.matvecs <= 4 * min(16, distinct)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_masses_and_moments_are_within_their_errors(spectrum: str, seed: int) -> None:
    values = SPECTRA[spectrum]
    q = sampled(values, seed)
    true = torch.tensor(values, dtype=torch.float64)

    def mean(x: Tensor) -> float:
        return float(x.double().mean())

    zero = 0.05 * q.largest
    for found, truth in (
        (below(q, -zero), mean(true < -zero)),
        (mass(q, -zero, zero), mean(true.abs() <= zero)),
        (mass(q, low=1.5), mean(true >= 1.5)),
        (moment(q, 1), mean(true)),
        (moment(q, 2), mean(true**2)),
        (moment(q, 3), mean(true**3)),
        (trace(q).times(1 / N), mean(true)),
        (rank(q, zero).times(1 / N), mean(true.abs() > zero)),
    ):
        assert abs(float(found.mean) - truth) <= 4 * found.error + 1e-12


def test_the_quadrature_has_the_moments_of_its_probe() -> None:
    # Of degree up to 2 m - 1 = 9, whatever the spectrum.
    values = torch.tensor(SPECTRA["rank one and bulk"], dtype=torch.float64)
    q = slq(Mapped(lambda v: values * v, values), 1, 5, rng(3))
    z = torch.randn(N, generator=rng(3), dtype=torch.float64)
    z = z / z.norm()
    for power in range(10):
        assert float(moment(q, power).mean) == pytest.approx(float(z**2 @ values**power))


def test_what_every_probe_sees_alike_has_no_error() -> None:
    for name in ("zero", "identity"):
        q = sampled(SPECTRA[name])
        assert trace(q).error <= 1e-12 * N
        assert float(trace(q).mean) == pytest.approx(sum(SPECTRA[name]))
        assert q.matvecs == 4


def test_a_continuous_spectrum_is_covered_too() -> None:
    # Not resolved by 12 steps: what the steps leave open has to cover it.
    values = torch.randn(200, generator=rng(5), dtype=torch.float64).tolist()
    outside = [0, 0, 0]
    for seed in range(60):
        q = sampled(values, seed, probes=8, steps=12)
        for i, (found, truth) in enumerate((
            (below(q, -0.02), sum(v < -0.02 for v in values)),
            (below(q, 0.5), sum(v < 0.5 for v in values)),
            (mass(q, -0.02, 0.02), sum(abs(v) <= 0.02 for v in values)),
        )):  # fmt: skip
            outside[i] += abs(float(found.mean) - truth / 200) > 1.96 * found.error
    assert max(outside) <= 6


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_density_integrates_to_one(spectrum: str, scale: float) -> None:
    q = sampled([scale * v for v in SPECTRA[spectrum]])
    for width in (1e-3, 0.01, 0.2):
        sigma = width * q.span
        found = density(q, grid(q, sigma), sigma)
        assert float(found.mean.sum()) * sigma / 4 == pytest.approx(1, abs=1e-5)
        assert (found.mean >= 0).all()
        assert (found.stderr >= 0).all()


def test_the_density_is_that_of_smoothed_eigenvalues() -> None:
    values = [-1.0] * 10 + [0.0] * 40 + [2.0] * 30
    x = torch.linspace(-2, 3, 41, dtype=torch.float64)
    by_hand = torch.zeros_like(x)
    for v in values:
        by_hand += torch.exp(-(((x - v) / 0.2) ** 2) / 2) / (0.2 * math.sqrt(2 * math.pi) * N)
    exact = slq(diagonal(values), 10, 10, rng())
    assert torch.allclose(density(exact, x, 0.2).mean, by_hand)
    found = density(sampled(values), x, 0.2)
    assert ((found.mean - by_hand).abs() <= 4 * found.stderr + 1e-12).all()


def test_what_nodes_leave_open_is_in_the_densitys_error() -> None:
    # Six steps do not tell the density of values spread over [-1, 1] at this width; sixty do.
    values = torch.linspace(-1, 1, 400, dtype=torch.float64).tolist()
    x = torch.linspace(-0.8, 0.8, 33, dtype=torch.float64)
    truth = density(slq(diagonal(values), 400, 400, rng()), x, 0.1).mean
    rough, fine = (sampled(values, 0, 4, steps) for steps in (6, 60))
    for q in (rough, fine):
        found = density(q, x, 0.1)
        error = found.stderr.hypot(found.drift)
        assert ((found.mean - truth).abs() <= 1.96 * error).double().mean() >= 0.85
    few, many = (density(q, x, 0.1) for q in (rough, fine))
    assert ((few.mean - truth).abs() <= 1.96 * few.stderr).double().mean() < 0.5
    assert float(many.drift.mean()) < 0.1 * float(few.drift.mean())


def test_a_lone_eigenvalue_has_the_height_of_a_peak() -> None:
    q = slq(diagonal([0.0] * 9 + [5.0]), 5, 5, rng())
    x = torch.tensor([5.0], dtype=torch.float64)
    assert float(density(q, x, 0.1).mean) == pytest.approx(peak(q, 0.1))


def test_outliers_are_small_groups_beyond_a_gap() -> None:
    values = [-3.0, 8.0, 8.1] + [i / N for i in range(N - 3)]
    q = slq(diagonal(values), 10, 10, rng())

    def count(q: Quadrature, gap: float, few: float = 0.05) -> float:
        return float(outliers(q, gap, few).mean) * q.size

    assert count(q, 1.0) == pytest.approx(3)
    assert count(q, 4.0) == pytest.approx(2)
    assert count(q, 10.0) == pytest.approx(0)
    assert count(q, 1.0, few=0.02) == pytest.approx(1)
    # Two halves are both bulk, and so is the one eigenvalue that there is.
    assert count(slq(diagonal([-1.0, 1.0] * 20), 5, 10, rng()), 0.1) == 0
    assert count(slq(diagonal([4.0]), 5, 10, rng()), 0.1) == 0


def test_outliers_that_have_been_seen_count_whatever_their_weight() -> None:
    values = [50.0, 60.0, 70.0] + [i / 4000 for i in range(397)]
    for seed in range(20):
        assert float(outliers(sampled(values, seed, 2, 20), 5.0, 0.05).mean) * 400 >= 3 - 1e-9


def test_a_group_near_the_limit_is_uncertain_as_a_whole() -> None:
    values = [9.0] * 20 + [i / 4000 for i in range(380)]  # a twentieth
    counts = [outliers(sampled(values, seed, 8, 20), 2.0, 0.05).times(400) for seed in range(20)]
    assert len({round(float(c.mean)) > 0 for c in counts}) == 2
    assert all(abs(float(c.mean)) <= 1.96 * c.error for c in counts)
    sure = outliers(sampled(values, 0, 8, 20), 2.0, 0.5).times(400)
    assert float(sure.mean) == pytest.approx(20, rel=0.3)
    assert sure.error < 4


@pytest.mark.parametrize(("at", "left"), [(1, 0), (16, 0), (17, 1), (40, 2), (64, 3)])
def test_ctrl_c_leaves_the_finished_probes(at: int, left: int) -> None:
    values = SPECTRA["rank one and bulk"]
    q = slq(Interrupting(diagonal(values), at), 4, 16, rng())
    assert q.interrupted
    assert len(q.probes) == left
    whole = sampled(values)
    for a, b in zip(q.probes, whole.probes[:left], strict=True):
        assert torch.equal(a.rule.nodes, b.rule.nodes)
    if left:
        assert trace(q).error > trace(whole).error > 0


def test_ctrl_c_while_a_small_matrix_is_formed() -> None:
    q = slq(Interrupting(diagonal([1.0, 2.0, 3.0]), 2), 4, 16, rng())
    assert q.interrupted
    assert q.probes == ()


def test_one_seed_one_answer() -> None:
    a, b, c = (sampled(SPECTRA["geometric"], seed).rule for seed in (7, 7, 8))
    assert torch.equal(a.nodes, b.nodes)
    assert torch.equal(a.weights, b.weights)
    assert not torch.equal(a.weights, c.weights)


def test_watching() -> None:
    seen: list[tuple[int, int | None, float | None, float | None]] = []
    A = Counted(diagonal(SPECTRA["rank one and bulk"]))
    q = slq(A, 4, 16, rng(), lambda *told: seen.append(told))
    assert [s[0] for s in seen] == list(range(1, 65))
    assert {s[1] for s in seen} == {64}
    assert A.matvecs == q.matvecs == 64
    assert all(s[2] is None for s in seen[:16])
    assert all(s[2] is not None and s[3] is not None and s[3] > 0 for s in seen[16:])
