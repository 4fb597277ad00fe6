"""`eig` against dense spectra: every eigenvalue in its interval, one each, none missed."""

import pytest
import torch
from oracles import dense_empirical, dense_gauss_newton
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch.nn import functional

from curvcli.analyses.eig import Eig
from curvcli.curvature.matrices import Matrix
from curvcli.errors import CurvError
from curvcli.linalg.ritz import Which
from curvcli.problem import Problem


def problem() -> Problem:
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))


def wanted(theta: torch.Tensor, which: str, top: int) -> list[float]:
    descending = theta.flip(0).tolist()
    return {
        "largest": descending[:top],
        "smallest": theta.tolist()[:top],
        "both": descending[:top] + theta.tolist()[:top],
        "magnitude": sorted(descending, key=lambda t: -abs(t))[:top],
    }[which]


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_eigenvalue_lies_in_its_interval(which: Which, seed: int) -> None:
    p = problem()
    truth = wanted(torch.linalg.eigvalsh(dense_hessian(p)), which, 4)
    result = ask(Eig(top=4, which=which, tolerance=1e-3), p, seed)
    assert result.status == "pass"
    assert len(result.rows) == len(truth)
    for row, value in zip(result.rows, truth, strict=True):
        assert row["low"] <= value <= row["high"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["ggn", "empirical-fisher"])
def test_other_matrices_have_their_own_eigenvalues(name: Matrix, seed: int) -> None:
    p = problem().to(torch.float64)
    dense = dense_gauss_newton(p) if name == "ggn" else dense_empirical(p, terms)
    truth = wanted(torch.linalg.eigvalsh(dense), "largest", 4)
    result = ask(Eig(matrix=name, top=4, tolerance=1e-3), p, seed)
    assert result.status == "pass"
    for row, value in zip(result.rows, truth, strict=True):
        assert row["low"] <= value <= row["high"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_tensor_has_its_block(seed: int) -> None:
    p = problem()
    dense = dense_hessian(p)
    result = ask(Eig(top=2, per_layer=True, tolerance=1e-3), p, seed)
    assert result.status == "pass"
    assert [r["block"] for r in result.rows] == ["", "", *p.names]
    for row in result.rows[2:]:
        block = p.layout.slices[row["block"]]
        assert row["low"] <= float(torch.linalg.eigvalsh(dense[block, block])[-1]) <= row["high"]


def test_the_fisher_approaches_the_gauss_newton_matrix() -> None:
    p = problem()
    truth = float(torch.linalg.eigvalsh(dense_gauss_newton(p.to(torch.float64)))[-1])
    few, many = (ask(Eig(matrix="fisher", top=1, label_samples=s), p) for s in (1, 400))
    gaps = [abs(r.metrics["lambda_max"].value / truth - 1) for r in (few, many)]
    assert gaps[1] < min(0.05, gaps[0])


def test_a_method_of_the_hessian_beside_another_matrix_is_refused() -> None:
    with pytest.raises(CurvError, match="--hvp forward"):
        ask(Eig(matrix="ggn"), problem(), method="forward")


def terms(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = functional.cross_entropy(output, target, reduction="none")
    return found, torch.ones_like(found)


def test_power_iteration_finds_the_same_with_more_products() -> None:
    p = problem()
    by_power = ask(Eig(top=2, method="power", which="magnitude", tolerance=1e-2), p)
    by_lanczos = ask(Eig(top=2, which="magnitude", tolerance=1e-2), p)
    for a, b in zip(by_power.rows, by_lanczos.rows, strict=True):
        assert a["low"] <= b["high"]
        assert b["low"] <= a["high"]
    assert by_power.metrics["matvecs"].value > by_lanczos.metrics["matvecs"].value


def test_too_few_products_are_undecided_and_say_so() -> None:
    result = ask(Eig(top=5, tolerance=1e-6, max_matvecs=6), problem())
    assert result.status == "undecided"
    assert result.metrics["matvecs"].value <= 6
    assert any("raise --max-matvecs" in c.advice for c in result.checks)


def test_a_quadratic_has_its_own_curvature() -> None:
    # L = mean (w x)^2 / 1 over x = 1, 2: the second derivative is 2 (1 + 4) / 2 = 5.
    model = torch.nn.Linear(1, 1, bias=False)
    x = torch.tensor([[1.0], [2.0]])
    from curvcli.batches import Batch
    from curvcli.load.loss import as_loss

    loss = as_loss(torch.nn.functional.mse_loss)
    p = Problem.of(model, loss, [Batch(x, torch.zeros(2, 1), 2)])
    result = ask(Eig(top=1), p)
    assert result.metrics["lambda_max"].value == pytest.approx(5.0, rel=1e-5)


def test_ctrl_c_leaves_a_marked_partial_answer() -> None:
    result = ask(Eig(top=4), problem(), announce=interrupted_at(3))
    assert result.interrupted
    assert result.status == "undecided"
    assert result.rows


def test_power_cannot_do_both_ends() -> None:
    with pytest.raises(CurvError, match="both ends"):
        ask(Eig(method="power", which="both"), problem())


def test_products_too_inexact_for_the_tolerance_are_undecided() -> None:
    result = ask(Eig(top=1, tolerance=1e-9), problem(), method="differences")
    assert result.status == "undecided"
    assert any("too inexact" in c.message for c in result.checks)


def test_a_basis_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CurvError) as refused:
        ask(Eig(top=4), problem(), memory=100.0)
    assert refused.value.code == "E_MEMORY"
