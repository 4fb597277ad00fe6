"""Traces: right in the mean, with intervals that cover the truth as often as they say."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import Interrupting, rng, symmetric
from scipy import stats
from torch import Tensor

from curvcli.linalg import hutchpp as sketched
from curvcli.linalg import probing
from curvcli.linalg.operator import Counted, Dense, Mapped, rademacher
from curvcli.linalg.probing import Estimate, widening
from curvcli.linalg.trace import hutchinson, hutchpp, xtrace
from curvcli.linalg.xtrace import XTrace

Method = Callable[..., Estimate]
METHODS = pytest.mark.parametrize("method", [hutchinson, hutchpp, xtrace])
SEEDS = 200
N = 90
NEVER = 1e-14  # a tolerance that no estimate meets

SPECTRA = {
    "fast": [100 * 0.7**i for i in range(N)],
    "slow": [(i + 1) ** -0.5 for i in range(N)],
    "squares": [(i + 1) ** -2.0 for i in range(N)],
    "flat": [1 + 0.5 * math.sin(i) for i in range(N)],
    "pairs": [(-1.0) ** i for i in range(N)],
}
BLOCKS = [slice(0, 20), slice(20, 21), slice(21, N)]


def many(method: Method, A: Tensor, tolerance: float, max_matvecs: int) -> list[Estimate]:
    seeds = range(SEEDS)
    B, limit = Dense(A), max_matvecs
    return [method(B, tolerance, rng(s), max_matvecs=limit, blocks=BLOCKS) for s in seeds]


@METHODS
@pytest.mark.parametrize("spectrum", ["squares", "pairs"])
def test_intervals_cover_and_the_mean_is_right(method: Method, spectrum: str) -> None:
    A = symmetric(SPECTRA[spectrum])
    found = many(method, A, NEVER, 30)
    wholes = [(e.mean, e.stderr) for e in found]
    covers(wholes, float(A.trace()), 0.9, 0.99)
    for i, block in enumerate(BLOCKS):
        covers([e.blocks[i] for e in found], float(A.diagonal()[block].sum()), 0.88, 1.0)


def covers(found: list[tuple[float, float]], truth: float, least: float, most: float) -> None:
    gaps = torch.tensor([mean - truth for mean, _ in found])
    covered = sum(abs(mean - truth) <= 1.96 * error for mean, error in found) / len(found)
    assert least <= covered <= most
    assert abs(gaps.mean()) <= 5 * gaps.std() / math.sqrt(len(found))


@METHODS
@pytest.mark.parametrize(("spectrum", "tolerance"), [("fast", 0.2), ("flat", 0.02)])
def test_intervals_cover_when_the_search_ends_by_itself(
    method: Method, spectrum: str, tolerance: float
) -> None:
    A = symmetric(SPECTRA[spectrum])
    found = many(method, A, tolerance, N - 1)
    ended = sum(e.status == "converged" for e in found)
    assert method is hutchinson or ended >= 0.9 * SEEDS
    covered = sum(abs(e.mean - float(A.trace())) <= 1.96 * e.stderr for e in found)
    assert 0.9 * SEEDS <= covered <= 0.99 * SEEDS
    met = sum(abs(e.mean - float(A.trace())) <= 2 * tolerance * float(A.trace()) for e in found)
    assert met >= 0.93 * ended


@pytest.mark.parametrize("method", [hutchinson, hutchpp])
def test_blocks_sum_to_the_whole(method: Method) -> None:
    found = method(Dense(symmetric(SPECTRA["fast"])), NEVER, rng(), max_matvecs=60, blocks=BLOCKS)
    assert sum(m for m, _ in found.blocks) == pytest.approx(found.mean, rel=1e-12)


@pytest.mark.parametrize("method", [hutchpp, xtrace])
@pytest.mark.parametrize("spectrum", ["fast", "squares"])
def test_decay_is_used(method: Method, spectrum: str) -> None:
    A = symmetric(SPECTRA[spectrum])

    def error(which: Method) -> float:
        found = [which(Dense(A), NEVER, rng(s), max_matvecs=60) for s in range(10)]
        assert {e.matvecs for e in found} <= {59, 60}
        return math.sqrt(sum((e.mean - float(A.trace())) ** 2 for e in found) / 10)

    assert error(method) < 0.1 * error(hutchinson)


def test_a_flat_spectrum_is_left_to_the_probes() -> None:
    found = hutchpp(Dense(symmetric(SPECTRA["pairs"])), NEVER, rng(), max_matvecs=80)
    assert found.sketches == sketched.TRIALS
    assert found.probes == 80 - 2 * sketched.TRIALS


def test_few_vectors_limit_the_sketches() -> None:
    found = hutchpp(Dense(symmetric(SPECTRA["fast"])), NEVER, rng(), max_matvecs=60, vectors=10)
    assert (found.sketches, found.probes, found.matvecs) == (3, 54, 60)


def test_the_remainder_by_its_definition() -> None:
    A = symmetric(SPECTRA["slow"])
    found = sketched.HutchPP(Counted(Dense(A)), rng(), BLOCKS, 60, 60)
    for _ in range(6):
        found.step()
    Q = torch.stack([found.Q[i] for i in range(6)])
    outside = torch.eye(N).double() - Q.T @ Q
    rest = outside @ A @ outside
    source, samples = rng(), found.samples(True)
    for row in samples.blocks:
        torch.randn(N, generator=source, dtype=torch.float64)  # the sketch
        z = rademacher(A[0], source)
        truth = (A - rest).diagonal() + z * (rest @ z)
        assert torch.allclose(row, torch.stack([truth[b].sum() for b in BLOCKS]), rtol=1e-10)


def test_xtrace_by_its_definition() -> None:
    A = symmetric(SPECTRA["slow"])
    k = 6
    found = XTrace(Counted(Dense(A)), rng(), [slice(0, N)])
    for _ in range(k):
        found.step()
    Z = torch.stack([found.Omega[i] for i in range(k)])

    def alone(i: int, others: list[int]) -> float:
        Q = torch.linalg.qr(A @ Z[others].T)[0]
        z = Z[i] - Q @ (Q.T @ Z[i])
        z = z * math.sqrt(N - len(others)) / z.norm()
        return float((Q.T @ A @ Q).trace() + z @ A @ z)

    everyone = range(k)
    t = [alone(i, [j for j in everyone if j != i]) for i in everyone]
    known = found.samples(True)
    assert known.whole.tolist() == pytest.approx(t, rel=1e-10)
    d = [
        [
            t[i] - alone(i, [m for m in everyone if m not in (i, j)]) if i != j else 0
            for j in everyone
        ]
        for i in everyone
    ]
    pairs = sum(d[i][j] * d[j][i] for i in everyone for j in everyone)
    assert known.shared == pytest.approx(max(pairs / (k * (k - 1)), 0), rel=1e-8, abs=1e-12)


@METHODS
@pytest.mark.parametrize("n", [1, 2, 30])
def test_enough_products_are_exact(method: Method, n: int) -> None:
    A = symmetric([(-1.5) ** i for i in range(n)])
    blocks = [slice(0, n // 2), slice(n // 2, n)] if n > 1 else [slice(0, 1)]
    found = method(Dense(A), 0.01, rng(), max_matvecs=30, blocks=blocks)
    assert found.exact
    assert (found.matvecs, found.stderr, found.status) == (n, 0.0, "converged")
    assert found.mean == pytest.approx(float(A.trace()), rel=1e-12)
    for (mean, error), block in zip(found.blocks, blocks, strict=True):
        assert mean == pytest.approx(float(A.diagonal()[block].sum()))
        assert error == 0


@METHODS
def test_zero(method: Method) -> None:
    found = method(Mapped(torch.zeros_like, torch.ones(N)), 0.01, rng(), max_matvecs=60)
    assert (found.mean, found.stderr, found.relative, found.status) == (0, 0, 0, "converged")


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_and_low_rank_are_known_to_rounding(method: Method, dtype: torch.dtype) -> None:
    found = method(
        Mapped(lambda v: 1.0 * v, torch.ones(N, dtype=dtype)), 0.01, rng(), max_matvecs=80
    )
    assert found.status == "converged"
    assert abs(found.mean - N) <= 4 * found.stderr <= 1e-4 * N
    A = symmetric([5.0, -3.0, 1.0] + [0.0] * (N - 3), dtype=dtype)
    if method is not hutchinson:
        low = method(Dense(A), 1e-4, rng(), max_matvecs=80)
        assert low.status == "converged"
        assert low.mean == pytest.approx(3, rel=1e-5)


@METHODS
def test_a_trace_that_cancels_is_held_against_its_parts(method: Method) -> None:
    join: Any = torch.block_diag
    A = join(
        symmetric([1.0 + 0.1 * (i % 3) for i in range(45)], 1),
        -symmetric([1.0 + 0.1 * (i % 3) for i in range(45)], 2),
    )
    halves = [slice(0, 45), slice(45, N)]
    found = method(Dense(A), 0.2, rng(), max_matvecs=80, blocks=halves)
    assert found.status == "converged"
    assert abs(found.mean) < found.scale == pytest.approx(9.9, rel=0.6)
    assert found.stderr < 0.2 * found.scale
    # Where nothing but the Frobenius norm is there to compare with, that takes more.
    pairs = method(Dense(symmetric(SPECTRA["pairs"])), 0.01, rng(), max_matvecs=80)
    assert pairs.status == "max_matvecs"


@METHODS
@pytest.mark.parametrize("at", [1, 2, 7, 30])
def test_ctrl_c_gives_what_is_known(method: Method, at: int) -> None:
    A = Dense(symmetric(SPECTRA["squares"]))
    found = method(Interrupting(A, at), NEVER, rng(), max_matvecs=60, blocks=BLOCKS)
    assert found.status == "interrupted"
    if found.probes:
        whole = method(A, NEVER, rng(), max_matvecs=at - 1, blocks=BLOCKS)
        assert found.mean == whole.mean or method is hutchpp
    else:
        assert math.isnan(found.mean)


def test_ctrl_c_among_the_entries_leaves_a_sample_of_them() -> None:
    A = symmetric(SPECTRA["slow"])
    covered = 0
    for seed in range(SEEDS):
        found = hutchinson(Interrupting(Dense(A), 61), 0.1, rng(seed), max_matvecs=N, blocks=BLOCKS)
        assert (found.probes, found.status, found.exact) == (60, "interrupted", False)
        covered += abs(found.mean - float(A.trace())) <= 1.96 * found.stderr
    assert 0.9 * SEEDS <= covered <= 0.99 * SEEDS


@METHODS
def test_a_seed_determines_the_answer(method: Method) -> None:
    A = Dense(symmetric(SPECTRA["slow"]))
    assert method(A, 0.02, rng(3)) == method(A, 0.02, rng(3))
    assert method(A, NEVER, rng(3), max_matvecs=50) != method(A, NEVER, rng(4), max_matvecs=50)


@METHODS
def test_watching(method: Method) -> None:
    seen: list[tuple[int, int | None]] = []

    def watch(done: int, total: int | None, mean: float | None, error: float | None) -> None:
        seen.append((done, total))

    found = method(Dense(symmetric(SPECTRA["slow"])), NEVER, rng(), max_matvecs=20, watch=watch)
    assert seen[-1] == (found.matvecs, 20)
    assert found.matvecs >= 18


@pytest.mark.parametrize("freedom", [2, 3, 5, 9, 19, 99])
def test_quantiles(freedom: int) -> None:
    assert widening(freedom) == pytest.approx(stats.t.ppf(0.975, freedom) / 1.959964, rel=0.01)
    chi = math.sqrt(freedom / stats.chi2.ppf(0.1, freedom))
    assert probing._bound(freedom) == pytest.approx(chi, rel=0.04)


@pytest.mark.parametrize(("method", "name"), [(hutchpp, "hutchpp_trace"), (xtrace, "xtrace")])
def test_as_exact_as_the_peer(method: Method, name: str) -> None:
    peer: Any = getattr(pytest.importorskip("curvlinops"), name)
    A = symmetric(SPECTRA["squares"])
    ours = [method(Dense(A), NEVER, rng(s), max_matvecs=48).mean for s in range(20)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [float(peer(A, 48, distribution="normal")) for _ in range(20)]

    def error(found: list[float]) -> float:
        return math.sqrt(sum((x - float(A.trace())) ** 2 for x in found) / len(found))

    assert error(ours) < 2 * error(theirs)
