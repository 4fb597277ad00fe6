"""`hvp`: what is timed is checked, and what does not work on a model is said."""

from typing import Any

import pytest
import torch
from questions import ask, classify, inputs, interrupted_at, mlp
from torch import Tensor, nn

from curvcli.analyses.hvp import Hvp
from curvcli.curvature.hessian import TITLES


def test_every_method_is_measured_and_agrees() -> None:
    result = ask(Hvp(rounds=3), classify(mlp(6, 8, 3).double(), inputs(20, 6).double()))
    rows = {str(r["method"]): r for r in result.rows}
    assert set(TITLES.values()) < set(rows)
    assert result.status == "pass"
    for title in TITLES.values():
        row = rows[title]
        assert isinstance(row["seconds"], float)
        assert row["seconds"] > 0
        assert isinstance(row["peak_bytes"], int)
        assert row["peak_bytes"] > 0
        if title != TITLES["differences"]:
            assert isinstance(row["gap_differences"], float)
            assert row["gap_differences"] < 1e-6
    assert result.metrics["method"].value == "kept"


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        out: Tensor = g * (1 - y * y)
        return out


class OldTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Old.apply(x)  # type: ignore[no-untyped-call]
        return out


def test_a_method_that_fails_leaves_its_reason() -> None:
    model = nn.Sequential(nn.Linear(4, 5), OldTanh(), nn.Linear(5, 3))
    result = ask(Hvp(rounds=1), classify(model, inputs(9, 4)))
    row = next(r for r in result.rows if r["method"] == TITLES["forward"])
    assert row["seconds"] is None
    assert row["note"] == "fails here"
    assert any(n.startswith(f"{TITLES['forward']}: ") for n in result.notes)
    assert result.metrics["method"].value == "kept"


class WrongTwice(torch.autograd.Function):
    """A right backward that hides a factor from the second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        out: Tensor = g * (1 - y.detach() ** 2)
        return out


class WrongTwiceTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = WrongTwice.apply(x)  # type: ignore[no-untyped-call]
        return out


def test_a_wrong_second_derivative_is_not_the_default() -> None:
    model = nn.Sequential(nn.Linear(4, 5), WrongTwiceTanh(), nn.Linear(5, 3))
    result = ask(Hvp(rounds=1), classify(model, inputs(9, 4)))
    assert result.metrics["method"].value == "differences"
    assert any("differs from a difference of gradients" in c.message for c in result.checks)
    assert result.status == "warn"
    assert {c.name for c in result.checks} == {"second derivative"}


def test_ctrl_c_is_marked() -> None:
    result = ask(Hvp(rounds=5), classify(mlp(4, 5, 3), inputs(9, 4)), announce=interrupted_at(1))
    assert result.interrupted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    result = ask(Hvp(rounds=3), classify(mlp(6, 8, 3).cuda(), inputs(20, 6).cuda()))
    assert result.status == "pass"
