"""The dense oracle of `eig`: what it lets pass, what it catches, and what it adds."""

from dataclasses import replace

import pytest
import torch
from oracles import rng, symmetric
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch import Tensor

from curvcli.analyses.dense import affordable
from curvcli.analyses.eig import Eig
from curvcli.analyses.oracle import Oracle
from curvcli.curvature.matrices import Matrix
from curvcli.errors import CurvError
from curvcli.linalg.lanczos import lanczos
from curvcli.linalg.operator import Dense
from curvcli.linalg.ritz import Ritz, Which
from curvcli.problem import Problem
from curvcli.report import Check, Result
from curvcli.work import Work

SPECTRUM = [9.0, 5.0, 4.0, 1.0, 0.5, *[0.1] * 20, 0.0, -0.5, -2.0]


def problem() -> Problem:
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))


def verdict(result: Result) -> Check | None:
    return next((c for c in result.checks if c.name == "oracle"), None)


def held(A: Tensor, ritz: Ritz, which: Which = "largest") -> Oracle:
    return Oracle.of(A, ritz, which, 3)


def estimate(A: Tensor, which: Which = "largest", dtype: torch.dtype = torch.float64) -> Ritz:
    return lanczos(Dense(A.to(dtype)), 3, 1e-3, rng(), which=which)


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("seed", [0, 1])
def test_right_estimates_pass_and_their_errors_are_told(which: Which, seed: int) -> None:
    p = problem()
    theta = torch.linalg.eigvalsh(dense_hessian(p))
    result = ask(Eig(top=3, which=which, tolerance=1e-3), p, seed)
    found = verdict(result)
    assert found is not None
    assert found.status == "pass"
    for row in result.rows:
        assert row["error"] <= row["radius"]
        nearest = float((theta - row["eigenvalue"]).abs().min())
        assert row["error"] == pytest.approx(nearest, rel=1e-3, abs=1e-9)
    assert not next(c for c in result.columns if c.name == "error").detail


@pytest.mark.parametrize("name", ["ggn", "fisher", "empirical-fisher"])
def test_other_matrices_have_their_own_oracle(name: Matrix) -> None:
    found = verdict(ask(Eig(matrix=name, top=3), problem(), seed=1))
    assert found is not None
    assert found.status == "pass"


def test_the_whole_spectrum_gives_signs_rank_and_condition() -> None:
    p = problem().to(torch.float64)
    theta = torch.linalg.eigvalsh(dense_hessian(p))
    m = ask(Eig(top=2), p).metrics
    zero = theta.abs() < 1e-12
    assert 0 < int(zero.sum()) < len(theta)
    assert m["rank"].value == int((~zero).sum())
    negative = theta[(theta < 0) & ~zero]
    assert m["negative"].value == len(negative) > 0
    assert m["negative_trace"].value == pytest.approx(float(negative.sum()))
    assert m["trace"].value == pytest.approx(float(theta.sum()))
    share = float(-negative.sum() / theta.abs().sum())
    assert m["negative_share"].value == pytest.approx(share)
    least = theta[(theta > 0) & ~zero].min()
    assert m["condition"].value == pytest.approx(float(theta[-1] / least), rel=1e-6)


def test_a_prescribed_spectrum_is_read_off() -> None:
    A = symmetric(SPECTRUM)
    m = held(A, estimate(A)).metrics()
    assert m["rank"].value == len(SPECTRUM) - 1
    assert m["negative"].value == 2
    assert m["negative_trace"].value == pytest.approx(-2.5)
    assert m["condition"].value == pytest.approx(90.0)
    assert m["condition"].error is not None


def test_a_matrix_of_zeros_has_no_condition() -> None:
    A = torch.zeros(6, 6, dtype=torch.float64)
    oracle = held(A, estimate(A))
    assert oracle.check().status == "pass"
    assert oracle.metrics()["rank"].value == 0
    assert not {"condition", "negative_share"} & set(oracle.metrics())


def without(ritz: Ritz, i: int) -> Ritz:
    """Lose a pair."""
    keep = [j for j in range(len(ritz.values)) if j != i]
    return replace(
        ritz,
        values=ritz.values[keep],
        vectors=ritz.vectors[keep],
        residuals=ritz.residuals[keep],
        radius=ritz.radius[keep],
    )


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
def test_a_missed_eigenvalue_fails(which: Which) -> None:
    A = symmetric(SPECTRUM)
    ritz = lanczos(Dense(A), 4, 1e-6, rng(), which=which)
    lost = without(ritz, 0)
    if which == "both":  # three from either end, the largest not among them
        lost = without(lost, 6)
    found = held(A, lost, which).check()
    assert found.status == "fail"
    true, other = float(ritz.values[0]), float(lost.values[0])
    assert f"missed, #1 is {true:.6g} and not {other:.6g}" in found.message


def test_a_near_tie_may_change_ranks_and_is_told() -> None:
    A = symmetric([9.0, 5.0, 4.0, 3.96, *[0.1] * 20])
    ritz = without(lanczos(Dense(A), 4, 1e-9, rng()), 2)
    found = held(A, ritz).check()
    assert found.status == "pass"
    assert "; #3 not of that rank, but within 5%" in found.message
    assert "4.0e-02" in found.message


def test_what_nobody_claimed_to_have_found_is_not_missed() -> None:
    A = symmetric(SPECTRUM)
    lost = without(lanczos(Dense(A), 4, 1e-6, rng()), 0)
    assert held(A, replace(lost, status="max_matvecs")).check().status == "pass"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interval_without_an_eigenvalue_fails(dtype: torch.dtype) -> None:
    A = symmetric(SPECTRUM)
    ritz = estimate(A, dtype=dtype)
    values = ritz.values.clone()
    values[1] += 0.1
    found = held(A, replace(ritz, values=values)).check()
    assert found.status == "fail"
    assert "the interval of #2" in found.message


def test_two_intervals_with_one_eigenvalue_between_them_fail() -> None:
    A = symmetric(SPECTRUM)
    ritz = estimate(A)
    values, vectors = ritz.values.clone(), ritz.vectors.clone()
    values[1], vectors[1] = values[0], vectors[0]
    assert held(A, replace(ritz, values=values, vectors=vectors)).check().status == "fail"


def test_inexact_products_are_told_from_wrong_intervals() -> None:
    A = symmetric(SPECTRUM)
    off = symmetric([1.0, *[0.0] * (len(SPECTRUM) - 1)], seed=5) * 1e-5  # of a norm of 9
    ritz = lanczos(Dense((A + off).float()), 3, 1e-7, rng())
    ritz = replace(ritz, radius=torch.full_like(ritz.radius, 1e-9))
    found = held(A, ritz).check()
    assert found.status == "warn"
    assert "float64" in found.advice
    in_float64 = held(A, replace(ritz, vectors=ritz.vectors.double())).check()
    assert in_float64.status == "fail", "rounding is no excuse there"


def test_a_map_that_is_not_symmetric_is_no_oracle() -> None:
    A = symmetric(SPECTRUM)
    B = A.clone()
    B[0, 1] += 0.01
    found = held(B, estimate(A)).check()
    assert found.status == "warn"
    assert "asymmetric" in found.message


def test_the_oracle_comes_unasked_only_where_it_is_cheap() -> None:
    work = Work(rng=rng())
    assert affordable(problem(), work)
    assert not affordable(classify(mlp(6, 200, 3), inputs(40, 6)), work), "2003 parameters"
    assert not affordable(classify(mlp(20, 30, 3), inputs(2000, 20)), work), "many examples"
    assert not affordable(classify(mlp(6, 8, 3), inputs(40, 6), cut=[1] * 40), work), "many batches"
    assert not affordable(problem(), Work(rng=rng(), memory=1000.0))


def test_the_size_decides_where_it_is_given() -> None:
    p = problem()
    assert verdict(ask(Eig(top=1, dense_below=p.layout.size), p)) is not None
    result = ask(Eig(top=1, dense_below=p.layout.size - 1), p)
    assert verdict(result) is None
    assert result.rows[0]["error"] is None
    assert "rank" not in result.metrics


def test_a_dense_matrix_that_does_not_fit_is_refused_before_the_work() -> None:
    began: list[str] = []

    def announce(doing: str) -> Work:
        began.append(doing)
        raise AssertionError

    with pytest.raises(CurvError, match="lower --dense-below") as refused:
        ask(Eig(top=1, dense_below=1000), problem(), memory=1e4, announce=announce)
    assert refused.value.code == "E_MEMORY"
    assert not began


def test_ctrl_c_while_the_matrix_is_formed_keeps_the_estimates() -> None:
    p = problem()
    result = ask(Eig(top=1, max_matvecs=40), p, announce=interrupted_at(p.layout.size))
    assert result.interrupted
    assert verdict(result) is None
    assert result.metrics["lambda_max"].value > 0
