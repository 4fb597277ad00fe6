"""Hutchinson's diagonal and trace: right in the mean, and with standard errors that are true."""

import math

import pytest
import torch
from oracles import Interrupting, rng, symmetric

from curvcli.linalg.diagonal import hutchinson_diagonal, mean_stderr
from curvcli.linalg.operator import Dense, Mapped, rademacher

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
    assert torch.allclose(found.stderr, x.std(dim=0) / math.sqrt(30), rtol=1e-6)
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
    assert mean_stderr(torch.tensor([2.0])) == (2.0, math.inf)


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
