"""`trace` against dense matrices, whole and tensor by tensor."""

from typing import Any, Literal

import pytest
import torch
from oracles import dense_gauss_newton
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch import Tensor, nn

from curvcli.analyses.trace import Trace
from curvcli.problem import Problem
from curvcli.report import Result

MATRICES: dict[Literal["hessian", "ggn"], Any] = {
    "hessian": dense_hessian,
    "ggn": lambda p: dense_gauss_newton(p.to(torch.float64)),
}
METHODS: tuple[Literal["auto", "hutchinson", "xtrace"], ...] = ("auto", "hutchinson", "xtrace")


def problem() -> Problem:
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))  # 83 parameters


def within(result: Result, p: Problem, dense: Tensor, errors: float) -> None:
    diagonal = p.layout.named(dense.diagonal())
    metric = result.metrics["trace"]
    assert metric.error is not None
    assert abs(metric.value - float(dense.trace())) <= errors * metric.error + 1e-4
    assert [r["tensor"] for r in result.rows] == list(p.names)
    for row in result.rows:
        truth = float(diagonal[row["tensor"]].sum())
        assert abs(row["trace"] - truth) <= errors * row["stderr"] + 1e-4
        assert row["mean"] == pytest.approx(row["trace"] / row["entries"])


@pytest.mark.parametrize("matrix", MATRICES)
def test_exact_where_products_reach_the_parameters(matrix: Literal["hessian", "ggn"]) -> None:
    p = problem()
    result = ask(Trace(matrix=matrix), p)
    within(result, p, MATRICES[matrix](p), 0)
    assert result.status == "pass"
    assert result.metrics["matvecs"].value == 83
    assert sum(r["share"] for r in result.rows) == pytest.approx(1)
    mean = result.metrics["mean_eigenvalue"].value
    assert mean == pytest.approx(result.metrics["trace"].value / 83)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_within_their_errors(
    matrix: Literal["hessian", "ggn"], method: Literal["auto", "hutchinson", "xtrace"]
) -> None:
    p = problem()
    dense = MATRICES[matrix](p)
    for seed in range(3):
        result = ask(Trace(matrix=matrix, method=method, max_matvecs=60, tolerance=0.1), p, seed)
        within(result, p, dense, 4.5)
        assert (result.status == "pass") == ("below 0.1 of the trace" in result.checks[0].message)
    assert ("whole only" in " ".join(result.notes)) == (method == "xtrace")


def test_too_few_products_are_undecided_with_advice() -> None:
    result = ask(Trace(method="hutchinson", max_matvecs=20, tolerance=1e-3), problem())
    assert result.status == "undecided"
    assert "after 20 products" in result.checks[0].message
    assert "--max-matvecs (to about" in result.checks[0].advice


def test_the_methods_name_themselves() -> None:
    found = [" ".join(ask(Trace(method=m, max_matvecs=50), problem()).notes) for m in METHODS]
    for said, name in zip(found, ["Hutch++", "Hutchinson", "XTrace"], strict=True):
        assert name in said
    assert "one by one" in " ".join(ask(Trace(), problem()).notes)


class Saddle(nn.Module):
    """The loss u^2 - v^2, whose traces cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.ones(50))
        self.v = nn.Parameter(torch.ones(50))

    def forward(self, x: Tensor) -> Tensor:
        return (self.u.square().sum() - self.v.square().sum()) * torch.ones(len(x))


def test_a_trace_that_cancels() -> None:
    p = classify(Saddle(), inputs(4, 2), loss=lambda output, target: output.mean())
    for limit in (60, 300):
        result = ask(Trace(max_matvecs=limit), p)
        assert result.status == "pass"
        assert result.metrics["trace"].value == pytest.approx(0, abs=1e-4)
        assert [r["trace"] for r in result.rows] == pytest.approx([100, -100])
        assert {r["share"] for r in result.rows} == {None}
        assert ("nearly cancels" in result.checks[0].message) == (limit == 60)


@pytest.mark.parametrize("limit", [60, 300])
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c(method: Literal["auto", "hutchinson", "xtrace"], limit: int) -> None:
    p = problem()
    asked = Trace(method=method, max_matvecs=limit, tolerance=1e-6)
    result = ask(asked, p, announce=interrupted_at(30))
    assert result.interrupted
    assert result.status == "undecided"
    assert 30 <= result.metrics["matvecs"].value <= 32
    metric = result.metrics["trace"]
    assert metric.error is not None
    assert abs(metric.value - float(dense_hessian(p).trace())) <= 5 * metric.error
    assert ask(asked, p, announce=interrupted_at(1)).interrupted


def test_a_seed_determines_the_answer() -> None:
    asked = Trace(max_matvecs=60)
    assert ask(asked, problem(), 1).rows == ask(asked, problem(), 1).rows
    assert ask(asked, problem(), 1).rows != ask(asked, problem(), 2).rows


def test_memory_limits_the_sketches() -> None:
    p = problem()
    room = 83 * 4 * 20.0
    result = ask(Trace(max_matvecs=60, tolerance=1e-4), p, memory=room)
    assert any("Hutch++, 4 sketches" in n for n in result.notes)


@pytest.mark.parametrize("matrix", ["fisher", "empirical-fisher"])
def test_the_fishers(matrix: Literal["fisher", "empirical-fisher"]) -> None:
    result = ask(Trace(matrix=matrix, label_samples=2), problem())
    assert result.status == "pass"
    assert all(r["trace"] >= 0 for r in result.rows)
    assert any("--label-samples" in n for n in result.notes) == (matrix == "fisher")
