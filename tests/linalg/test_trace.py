"""Traces: right in the mean, with intervals that cover the truth as often as they say."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import Interrupting, rng, symmetric
from scipy import stats

from curvcli.linalg.hutchpp import HutchPP
from curvcli.linalg.operator import Counted, Dense, Mapped, rademacher
from curvcli.linalg.probing import CHUNK, Estimate, doubt, widening
from curvcli.linalg.scatter import Scatter, pooled
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
    assert found.sketches == CHUNK
    assert found.probes == 80 - 2 * CHUNK


def test_few_vectors_limit_the_sketches() -> None:
    found = hutchpp(Dense(symmetric(SPECTRA["fast"])), NEVER, rng(), max_matvecs=60, vectors=16)
    assert (found.sketches, found.probes, found.matvecs) == (3, 54, 60)
    none = hutchpp(Dense(symmetric(SPECTRA["fast"])), NEVER, rng(), max_matvecs=60, vectors=2)
    assert (none.sketches, none.probes) == (0, 60)


def test_the_remainder_by_its_definition() -> None:
    A = symmetric(SPECTRA["slow"])
    found = HutchPP(Counted(Dense(A)), rng(), BLOCKS, 400)
    for _ in range(5):
        found.step(60)
    assert (found.sketches, len(found.Z)) == (2 * CHUNK, 3 * CHUNK)
    Q = torch.stack([found.Q[i] for i in range(found.sketches)])
    outside = torch.eye(N).double() - Q.T @ Q
    rest = outside @ A @ outside
    for i, row in enumerate(found.rest.sums):
        z = found.Z[i]
        truth = (A - rest).diagonal() + z * (rest @ z)
        by_hand = torch.stack([truth[b].sum() for b in BLOCKS])
        assert torch.allclose(found.exact + row, by_hand, rtol=1e-10)


def test_variances_by_their_definition() -> None:
    A = symmetric(SPECTRA["slow"])
    off = A - torch.diag(A.diagonal())
    found, source = Scatter(BLOCKS), rng()
    for _ in range(1000):
        Z = torch.stack([rademacher(A[0], source) for _ in range(CHUNK)])
        found.add(Z, Z @ A)
    (mean, error), freedom = found.whole()
    truth = 2 * float(off.square().sum()) / len(found)
    assert error**2 == pytest.approx(truth, rel=0.03)
    assert abs(mean - float(A.trace())) <= 4 * error
    assert freedom > 2000
    for (_, told), block in zip(found.within(), BLOCKS, strict=True):
        F, inner = float(off[block].square().sum()), float(off[block, block].square().sum())
        assert told**2 == pytest.approx((F + inner) / len(found), rel=0.1)


def test_what_few_probes_tell_of_variances_is_right_in_the_mean() -> None:
    A = symmetric(SPECTRA["slow"]) + torch.diag(torch.linspace(-2, 2, N, dtype=torch.float64))
    off = A - torch.diag(A.diagonal())
    inner, rows = torch.zeros(len(BLOCKS)).double(), torch.zeros(len(BLOCKS)).double()
    source, runs = rng(), 1500
    for _ in range(runs):
        found = Scatter(BLOCKS)
        Z = torch.stack([rademacher(A[0], source) for _ in range(CHUNK)])
        found.add(Z, Z @ A)
        F = torch.stack(found.squares).mean(dim=0)
        rows += F / runs
        inner += (torch.stack(found.inner).mean(dim=0) - found.noise[0] * F) / runs
    for i, block in enumerate(BLOCKS):
        whole, within = (float(part.square().sum()) for part in (off[block], off[block, block]))
        assert float(rows[i]) == pytest.approx(whole, rel=0.04)
        assert float(inner[i]) == pytest.approx(within, abs=0.1 * whole)


def test_xtrace_by_its_definition() -> None:
    A = symmetric(SPECTRA["slow"])
    k = 6
    found = XTrace(Counted(Dense(A)), rng(), [slice(0, N)])
    for matvecs in (2 * k, 2 * k - 2 * CHUNK):
        found.step(matvecs)
    Z = torch.stack([found.Omega[i] for i in range(k)])

    def alone(i: int, others: list[int]) -> tuple[float, float]:
        Q = torch.linalg.qr(A @ Z[others].T)[0]
        z, m = Z[i] - Q @ (Q.T @ Z[i]), N - len(others)
        z = z * math.sqrt(m) / z.norm()
        Bz = A @ z - Q @ (Q.T @ (A @ z))
        variance = 2 * m / (m + 2) * float(Bz @ Bz - (z @ Bz) ** 2 / m)
        return float((Q.T @ A @ Q).trace() + z @ A @ z), variance

    everyone = range(k)
    t = [alone(i, [j for j in everyone if j != i]) for i in everyone]
    known = found.known(last=True)
    assert known.whole[0] == pytest.approx(sum(mean for mean, _ in t) / k, rel=1e-10)
    d = [
        [
            t[i][0] - alone(i, [m for m in everyone if m not in (i, j)])[0] if i != j else 0
            for j in everyone
        ]
        for i in everyone
    ]
    both = sum(d[i][j] * d[j][i] for i in everyone for j in everyone)
    assert found.shared == pytest.approx(max(both / (k * (k - 1)), 0), rel=1e-8, abs=1e-12)
    (variance,), (freedom,) = pooled(torch.tensor([[v] for _, v in t], dtype=torch.float64))
    assert known.freedom == pytest.approx(freedom, rel=1e-8)
    error = math.sqrt(variance / k + found.shared) * widening(freedom)
    assert known.whole[1] == pytest.approx(error, rel=1e-8)


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
        done = CHUNK * (2 if method is xtrace else 1)  # a step's products are all or none
        whole = method(A, NEVER, rng(), max_matvecs=(at - 1) // done * done, blocks=BLOCKS)
        # Products of several vectors at once round differently from those of one.
        assert found.mean == pytest.approx(whole.mean, rel=1e-12) or method is hutchpp
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
    assert doubt(freedom) == pytest.approx(chi, rel=0.04)


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
