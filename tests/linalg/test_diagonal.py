"""Hutchinson's diagonal and trace: right in the mean, and with standard errors that are true."""

import math
from typing import Any

import pytest
import torch
from oracles import Interrupting, rng, symmetric

from curvcli.linalg.diagonal import hutchinson_diagonal
from curvcli.linalg.operator import Dense, Mapped, rademacher
from curvcli.linalg.probing import widening
from curvcli.linalg.xdiag import xdiag

A = symmetric([-2.0, 0.1, 0.2, 0.5, 1.0, 3.0, 8.0, 20.0])
WHOLE = [slice(0, 3), slice(3, 8)]


def test_intervals_of_the_trace_cover_it() -> None:
    trace, covered = float(A.trace()), 0
    for seed in range(200):
        mean, error = hutchinson_diagonal(Dense(A), 60, rng(seed), WHOLE).trace()
        covered += abs(mean - trace) <= 1.96 * error
    assert 180 <= covered <= 198


def test_standard_errors_of_entries_are_true() -> None:
    truth = (A.square().sum(dim=1) - A.diagonal().square()).sqrt()  # of one probe
    found = hutchinson_diagonal(Dense(A), 4000, rng(), WHOLE)
    assert torch.allclose(found.stderr * math.sqrt(4000), truth, rtol=0.1)
    assert ((found.mean - A.diagonal()).abs() <= 4.5 * found.stderr).all()


def test_welford_against_the_two_pass_formula() -> None:
    shifted = A + 1e8 * torch.eye(8, dtype=torch.float64)  # the mean dwarfs the deviations
    found = hutchinson_diagonal(Dense(shifted), 30, rng(), WHOLE)
    source = rng()
    x = torch.stack([(z := rademacher(A[0], source)) * (shifted @ z) for _ in range(30)])
    assert torch.allclose(found.mean, x.mean(dim=0), rtol=1e-14)
    assert torch.allclose(found.stderr, x.std(dim=0) / math.sqrt(30) * widening(29), rtol=1e-6)
    assert torch.allclose(found.samples, torch.stack([x[:, b].sum(dim=1) for b in WHOLE]).T)


def test_blocks_sum_to_the_trace() -> None:
    found = hutchinson_diagonal(Dense(A), 50, rng(), WHOLE)
    assert found.block(0)[0] + found.block(1)[0] == pytest.approx(found.trace()[0])
    assert found.trace()[0] == pytest.approx(float(found.mean.sum()))
    # Entries of one probe are not independent: the error of the sum is no sum of squares.
    assert found.trace()[1] != pytest.approx(float(found.stderr.square().sum().sqrt()), rel=1e-3)


def test_a_diagonal_matrix_is_exact_at_once() -> None:
    d = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    found = hutchinson_diagonal(Mapped(lambda v: d * v, d), 2, rng(), [slice(0, 3)])
    assert torch.equal(found.mean, d)
    assert torch.equal(found.stderr, torch.zeros(3, dtype=torch.float64))


def test_one_probe_says_nothing_of_its_error() -> None:
    found = hutchinson_diagonal(Dense(A), 1, rng(), WHOLE)
    assert found.probes == 1
    assert found.trace()[1] == math.inf
    assert bool(found.stderr.isinf().all())


@pytest.mark.parametrize("at", [1, 2, 7])
def test_ctrl_c_gives_what_is_known(at: int) -> None:
    found = hutchinson_diagonal(Interrupting(Dense(A), at), 20, rng(), WHOLE)
    assert found.interrupted
    assert found.probes == at - 1 == len(found.samples)
    whole = hutchinson_diagonal(Dense(A), 20, rng(), WHOLE)
    assert torch.equal(found.samples, whole.samples[: at - 1])


def test_watching() -> None:
    seen: list[tuple[int, int | None]] = []
    hutchinson_diagonal(
        Dense(A), 3, rng(), WHOLE, lambda done, total, mean, error: seen.append((done, total))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


DECAYING = {
    "fast": [2.0**-k for k in range(40)],
    "slow": [1 / (1 + k) for k in range(40)],
    "flat": torch.linspace(-1, 1, 40).tolist(),
    "outliers": [50.0, 30.0, 20.0] + [1 - 0.05 * k for k in range(37)],
}


@pytest.mark.parametrize("probes", [2, 3, 5, 12])
@pytest.mark.parametrize("method", [hutchinson_diagonal, xdiag])
@pytest.mark.parametrize("spectrum", DECAYING)
def test_intervals_of_entries_cover_them(spectrum: str, method: Any, probes: int) -> None:
    H = symmetric(DECAYING[spectrum])
    covered, trace, entries = 0, 0, len(H)
    for seed in range(200):
        found = method(Dense(H), probes, rng(seed), [slice(0, entries)])
        floor = 1e-13  # below which there is rounding and nothing else
        gap = (found.mean - H.diagonal()).abs()
        covered += int((gap <= 1.96 * found.stderr + floor).sum())
        whole, error = found.trace()
        trace += abs(whole - float(H.trace())) <= 1.96 * error + floor
    assert 0.9 <= covered / (200 * entries) <= 0.99
    if probes > 2:  # the trace's own error is told by the rules of linalg.probing
        assert trace >= 176  # 190 are expected


def test_xdiag_has_the_numbers_of_curvlinops(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pytest.importorskip("curvlinops")
    sampling = pytest.importorskip("curvlinops.sampling")
    H = symmetric(DECAYING["slow"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = peer.xdiag(H, 12)
        torch.manual_seed(3)
        drawn = [sampling.random_vector(40, "rademacher", H.device, H.dtype) for _ in range(6)]
    signs = iter(drawn)
    monkeypatch.setattr("curvcli.linalg.xdiag.rademacher", lambda like, rng: next(signs))
    ours = xdiag(Dense(H), 6, rng(), [slice(0, 40)])
    assert ours.matvecs == 12
    assert torch.allclose(theirs, ours.mean, rtol=1e-10)


def test_xdiag_is_exact_for_a_matrix_of_low_rank() -> None:
    H = symmetric([3.0, -2.0, 1.0] + [0.0] * 17)
    found = xdiag(Dense(H), 6, rng(), [slice(0, 20)])
    assert torch.allclose(found.mean, H.diagonal(), atol=1e-12)
    assert float(found.stderr.max()) < 1e-12


def test_xdiag_beats_hutchinson_where_the_spectrum_decays() -> None:
    H = symmetric(DECAYING["fast"])
    errors = {xdiag: 0.0, hutchinson_diagonal: 0.0}
    for seed in range(20):
        for method, probes in ((xdiag, 10), (hutchinson_diagonal, 20)):
            found = method(Dense(H), probes, rng(seed), [slice(0, 40)])
            errors[method] += float((found.mean - H.diagonal()).norm())
            assert found.matvecs == 20
    assert errors[xdiag] < errors[hutchinson_diagonal] / 10


@pytest.mark.parametrize("at", [1, 3, 9])
def test_ctrl_c_leaves_hutchinson_of_the_products_that_there_are(at: int) -> None:
    found = xdiag(Interrupting(Dense(A), at), 6, rng(), WHOLE)
    assert found.interrupted
    simple = hutchinson_diagonal(Dense(A), min(at - 1, 6), rng(), WHOLE)
    assert torch.equal(found.mean, simple.mean)
    assert torch.equal(found.samples, simple.samples)
