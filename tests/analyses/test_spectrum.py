"""`spectrum` against dense spectra: exact where small, within its errors elsewhere."""

import math

import pytest
import torch
from oracles import dense_gauss_newton
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch import Tensor

from curvcli.analyses.spectrum import Spectrum
from curvcli.errors import CurvError
from curvcli.problem import Problem
from curvcli.report import Result


def problem() -> Problem:  # of 83 parameters
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))


def truths(theta: Tensor, near_zero: float) -> dict[str, float]:
    zero = near_zero * float(theta.abs().max())
    return {
        "trace": float(theta.sum()),
        "lambda_max": float(theta[-1]),
        "lambda_min": float(theta[0]),
        "negative": float((theta < -zero).double().mean()),
        "near_zero": float((theta.abs() <= zero).double().mean()),
        "rank": float((theta.abs() > zero).sum()),
    }


def check(result: Result, theta: Tensor, errors: float, slack: float) -> None:
    for name, truth in truths(theta, result.options["near_zero"]).items():
        metric = result.metrics[name]
        assert metric.error is not None
        assert abs(metric.value - truth) <= errors * metric.error + slack * abs(truth) + 1e-9, name


def test_small_models_are_exact() -> None:
    p = problem()
    result = ask(Spectrum(), p)
    assert result.status == "pass"
    assert result.metrics["matvecs"].value == p.layout.size
    assert result.metrics["trace"].error == pytest.approx(0, abs=1e-9)
    check(result, torch.linalg.eigvalsh(dense_hessian(p)), 1.0, 1e-4)
    assert any("exact" in note for note in result.notes)


@pytest.mark.parametrize("seed", range(5))
def test_sampled_answers_are_within_four_errors(seed: int) -> None:
    p = problem()
    result = ask(Spectrum(probes=2, steps=30), p, seed)
    assert result.metrics["matvecs"].value == 60
    check(result, torch.linalg.eigvalsh(dense_hessian(p)), 4.0, 1e-4)


def test_the_gauss_newton_matrix_has_no_negative_eigenvalues() -> None:
    p = problem().to(torch.float64)
    result = ask(Spectrum(matrix="ggn"), p)
    check(result, torch.linalg.eigvalsh(dense_gauss_newton(p)), 1.0, 1e-6)
    assert result.metrics["negative"].value == 0
    for matrix in ("fisher", "empirical-fisher"):
        other = ask(Spectrum(matrix=matrix), p)
        assert other.metrics["negative"].value == 0
        assert other.metrics["trace"].value > 0


def test_the_figure_draws_all_of_the_density() -> None:
    p = problem()
    for analysis in (Spectrum(), Spectrum(probes=2, steps=30)):
        (figure,) = ask(analysis, p).figures
        (line,) = figure.lines
        theta = torch.linalg.eigvalsh(dense_hessian(p))
        xs = [x for x in line.x if x is not None]
        ys = [y for y in line.y if y is not None]
        assert xs == sorted(xs)
        assert min(xs) < float(theta[0])
        assert max(xs) > float(theta[-1])
        assert all(math.isfinite(y) and y > 0 for y in ys)
        assert (line.band is None) == (analysis.probes == 8)
        assert max(t.value for t in figure.ticks) == pytest.approx(float(theta[-1]), rel=1e-4)
        # The smoothing is 1 % of the range that holds zero; the drawn curve holds all of the mass.
        sigma = 0.01 * (max(float(theta[-1]), 0) - min(float(theta[0]), 0))
        assert sum(ys) * sigma / 4 == pytest.approx(1, rel=0.02)


def test_few_steps_are_undecided_and_say_so() -> None:
    result = ask(Spectrum(probes=2, steps=4), problem())
    assert result.status == "undecided"
    assert any("raise --steps" in c.advice for c in result.checks)


def test_ctrl_c_leaves_the_finished_probes() -> None:
    result = ask(Spectrum(probes=4, steps=20), problem(), announce=interrupted_at(45))
    assert result.interrupted
    assert result.status == "undecided"
    assert result.rows
    assert any("2 of 4 probes" in note for note in result.notes)
    nothing = ask(Spectrum(probes=4, steps=20), problem(), announce=interrupted_at(3))
    assert nothing.interrupted
    assert not nothing.rows


def test_one_seed_one_answer() -> None:
    a, b, c = (ask(Spectrum(probes=2, steps=20), problem(), s).metrics["trace"] for s in (3, 3, 4))
    assert a == b
    assert a != c


def test_a_flat_loss() -> None:
    p = classify(mlp(3, 3), torch.zeros(4, 3))
    p = p.to(torch.float64)
    result = ask(Spectrum(), p)
    theta = torch.linalg.eigvalsh(dense_hessian(p))
    check(result, theta, 1.0, 1e-9)
    assert all(c.status == "pass" for c in result.checks)


def test_a_basis_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CurvError) as refused:
        ask(Spectrum(), problem(), memory=100.0)
    assert refused.value.code == "E_MEMORY"
