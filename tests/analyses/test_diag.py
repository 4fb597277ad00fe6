"""`diag` against the diagonal of the dense Hessian, and within its standard errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch import nn
from torch.nn import functional

from curvcli.analyses.diag import Diag
from curvcli.curvature.diagonals import roots
from curvcli.curvature.diagonals.becker_lecun import BeckerLeCunDiagonal
from curvcli.curvature.diagonals.cost import operations
from curvcli.curvature.diagonals.exact import ExactDiagonal
from curvcli.curvature.diagonals.squares import SquaresDiagonal
from curvcli.errors import CurvError
from curvcli.problem import Problem


def problem() -> Problem:
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))


def conv() -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return classify(model, inputs(9, 1, 6, 6))


@pytest.mark.parametrize("make", [problem, conv])
def test_exact_traces_are_those_of_the_dense_hessian(make: Callable[[], Problem]) -> None:
    p = make()
    truth = p.layout.named(dense_hessian(p).diagonal())
    result = ask(Diag(method="exact"), p)
    assert [r["tensor"] for r in result.rows] == list(p.names)
    for row in result.rows:
        entries = truth[str(row["tensor"])]
        assert row["trace"] == pytest.approx(float(entries.sum()), rel=1e-4, abs=1e-6)
        assert row["most"] == pytest.approx(float(entries.max()), rel=1e-4, abs=1e-6)
        assert row["least"] == pytest.approx(float(entries.min()), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_estimate_is_within_four_standard_errors(seed: int) -> None:
    p = problem()
    trace = float(dense_hessian(p).trace())
    metric = ask(Diag(method="hutchinson", probes=60), p, seed).metrics["trace"]
    assert isinstance(metric.value, float)
    assert metric.error is not None
    assert 0 < metric.error < trace
    assert abs(metric.value - trace) <= 4 * metric.error


def test_over_budget_exact_is_refused_and_auto_estimates() -> None:
    with pytest.raises(CurvError, match="--method hutchinson") as refused:
        ask(Diag(method="exact"), conv(), budget=1e-9)
    assert refused.value.code == "E_BUDGET"
    result = ask(Diag(probes=3), conv(), budget=1e-9)
    assert {r["method"] for r in result.rows} == {"hutchinson"}
    assert any("estimated instead" in note for note in result.notes)


def test_many_operations_are_estimated_without_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {r["method"] for r in ask(Diag(), conv()).rows} == {"gauss-newton"}
    monkeypatch.setattr("curvcli.analyses.diag.PATIENCE", 1.0)
    result = ask(Diag(probes=3), conv())
    assert {r["method"] for r in result.rows} == {"hutchinson"}
    assert any("--method exact insists" in note for note in result.notes)
    assert {r["method"] for r in ask(Diag(method="exact"), conv()).rows} == {"gauss-newton"}


def test_the_count_of_operations_is_the_same_every_time() -> None:
    counts = [operations(ExactDiagonal(problem())) for _ in range(2)]
    assert counts[0] == counts[1] > 0
    more = classify(mlp(6, 16, 3), inputs(40, 6), cut=(17, 17, 6))
    assert operations(ExactDiagonal(more)) > counts[0]


@pytest.mark.parametrize("method", ["exact", "ggn", "hutchinson"])
def test_ctrl_c_keeps_the_complete_tensors(method: Any) -> None:
    p = problem()  # whose first tensors take 8 products, in each of three batches
    result = ask(Diag(method=method), p, announce=interrupted_at(25 if method == "exact" else 4))
    assert result.interrupted
    if method == "exact":
        assert [r["tensor"] for r in result.rows] == ["0.weight", "0.bias"]
        assert any("are complete" in note for note in result.notes)
        truth = p.layout.named(dense_hessian(p).diagonal())
        assert set(result.arrays) == {"0.weight", "0.bias"}
        for name, found in result.arrays.items():
            assert torch.allclose(torch.tensor(found).double(), truth[name], rtol=1e-3, atol=1e-6)
    if method == "ggn":  # whose sums are over all batches at once
        assert result.rows == ()


@pytest.mark.parametrize("budget", [None, 60.0])
def test_a_loss_without_curvature_of_its_own(budget: float | None) -> None:
    def distance(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.l1_loss(out, functional.one_hot(y, 3).to(out.dtype))

    p = classify(mlp(6, 8, 3, act=nn.ReLU), inputs(20, 6), loss=distance)
    result = ask(Diag(), p, budget=budget)
    assert {r["method"] for r in result.rows} == {"gauss-newton"}
    assert result.metrics["trace"].value == 0


def test_all_entries_are_handed_over() -> None:
    p = problem()
    truth = p.layout.named(dense_hessian(p).diagonal())
    exact = ask(Diag(method="exact"), p).arrays
    assert list(exact) == list(p.names)
    for name, found in exact.items():
        assert found.shape == tuple(p.params[name].shape)
        assert torch.allclose(torch.tensor(found).double(), truth[name], rtol=1e-3, atol=1e-6)
    for method in ("hutchinson", "xdiag"):
        found = ask(Diag(method=method, probes=20), p).arrays
        assert set(found) == {*p.names, *(f"{n}.stderr" for n in p.names)}
        for n in p.names:
            gap = torch.tensor(found[n]) - truth[n]
            assert bool((gap.abs() <= 6 * torch.tensor(found[f"{n}.stderr"]) + 1e-6).all())


def test_xdiag_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(CurvError, match="five vectors") as refused:
        ask(Diag(method="xdiag"), problem(), memory=1000.0)
    assert refused.value.code == "E_MEMORY"


@pytest.mark.parametrize("method", ["ggn", "empirical-fisher", "becker-lecun"])
def test_other_diagonals(method: Any) -> None:
    p = problem()
    result = ask(Diag(method=method), p)
    assert {r["method"] for r in result.rows} == {method}
    expected = {
        "ggn": lambda: SquaresDiagonal(p, roots.gauss_newton).compute(),
        "empirical-fisher": lambda: SquaresDiagonal(p, roots.scores).compute(),
        "becker-lecun": lambda: BeckerLeCunDiagonal(p).compute(),
    }[method]()
    for row in result.rows:
        assert row["trace"] == pytest.approx(float(expected[str(row["tensor"])].sum()), rel=1e-5)


def test_comparison() -> None:
    p = problem()
    H = dense_hessian(p).diagonal()
    result = ask(Diag(compare=True, probes=10), p)
    whole = {r["method"]: r for r in result.rows if r["tensor"] == "all"}
    assert list(whole) == [
        "exact", "ggn", "empirical-fisher", "becker-lecun", "hutchinson", "xdiag"
    ]  # fmt: skip
    assert whole["exact"]["error"] == 0
    assert [c.name for c in result.columns][:3] == ["method", "tensor", "error"]
    assert ask(Diag(compare=True, probes=10), p).rows == result.rows
    for method in list(whole)[1:]:
        parts = [result.arrays[f"{method}.{n}"] for n in p.names]
        found = torch.cat([torch.tensor(d).double().reshape(-1) for d in parts])
        row = whole[method]
        assert row["error"] == pytest.approx(float((found - H).norm() / H.norm()), rel=1e-3)
        table = torch.stack([found, H])
        assert row["correlation"] == pytest.approx(float(table.corrcoef()[0, 1]), rel=1e-3)
        off = float((found.sum() - H.sum()) / H.sum())
        assert row["trace_error"] == pytest.approx(off, rel=1e-2, abs=1e-4)
        assert len([r for r in result.rows if r["method"] == method]) == 1 + len(p.names)
    assert whole["becker-lecun"]["error"] < whole["empirical-fisher"]["error"]


def test_a_comparison_goes_on_without_what_is_refused() -> None:
    p = classify(UsedElsewhere(), inputs(20, 6))
    result = ask(Diag(compare=True, probes=5), p)
    methods = {r["method"] for r in result.rows}
    assert "becker-lecun" not in methods
    assert {"exact", "ggn", "xdiag"} <= methods
    assert any(note.startswith("becker-lecun: ") for note in result.notes)
    one = ask(Diag(compare=True, method="ggn"), p)
    assert {r["method"] for r in one.rows} == {"exact", "ggn"}


class UsedElsewhere(nn.Module):
    """A linear layer whose weight acts a second time, outside of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.fc(x).tanh()) * (1 + self.fc.weight[1].square().sum())
        return out


def test_a_weight_that_is_used_elsewhere_is_still_exact() -> None:
    torch.manual_seed(0)
    p = classify(UsedElsewhere(), inputs(20, 6))
    truth = p.layout.named(dense_hessian(p).diagonal())["fc.weight"]
    row = next(r for r in ask(Diag(method="exact"), p).rows if r["tensor"] == "fc.weight")
    assert row["trace"] == pytest.approx(float(truth.sum()), rel=1e-4)


def test_a_figure_that_is_no_number_is_undecided() -> None:
    class Kinked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w.abs() ** 1.5

    result = ask(Diag(method="exact"), classify(Kinked(), inputs(20, 6)))
    assert result.status == "undecided"
    assert any(c.message.startswith("no number: trace of w") for c in result.checks)
