"""`diag` against the diagonal of the dense Hessian, and within its standard errors."""

from collections.abc import Callable

import pytest
import torch
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch import nn

from curvcli.analyses.diag import Diag
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


def test_ctrl_c_keeps_the_complete_tensors() -> None:
    p = conv()  # whose first tensor has 18 entries
    result = ask(Diag(method="exact"), p, announce=interrupted_at(19))
    assert result.interrupted
    assert 1 <= len(result.rows) < len(p.names)
    assert any("are complete" in note for note in result.notes)


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
    assert any("not a finite number" in c.message for c in result.checks)
