"""Where a loss that is no number comes from."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvcli.batches import Batch
from curvcli.errors import CurvError
from curvcli.load.loss import named
from curvcli.problem import Problem

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Step(nn.Module):
    """Applies a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Masked(nn.Module):
    """Keeps a mask that is infinite by design, and a state of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 0}

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.softmax(self.linear(x).unsqueeze(1) + self.mask, -1).sum(1)
        return out


def told(model: nn.Module, x: Tensor = X, **rest: Any) -> str:
    batch = Batch(x, torch.zeros(len(x), 3), len(x))
    p = Problem.of(model, named("mse_loss", {}), [batch], **rest)
    with pytest.raises(CurvError) as failed:
        _ = p.measure, p.heldout_loss
    assert failed.value.code == "E_NONFINITE"
    assert failed.value.hint
    return failed.value.message


def test_a_mask_is_no_weight_that_diverged() -> None:
    spoiled = X.clone()
    spoiled[4, 1] = math.nan
    assert told(Masked(), spoiled).endswith("the inputs hold nan at [4, 1]")
    model = Masked()
    model.mask[0, 0] = math.nan  # type: ignore[operator]
    assert "1 of 9 entries of mask are no numbers" in told(model)


def test_what_is_infinite_by_design_is_not_to_blame() -> None:
    masked = Step(lambda x: x.masked_fill(torch.tensor([True, False, False]), -math.inf))
    model = nn.Sequential(
        nn.Linear(3, 3), masked, nn.Softmax(-1), nn.Sequential(Step(lambda x: (x - 2).log()))
    )
    assert told(model).endswith("first in 3.0 (Step)")


def test_what_hands_on_no_numbers_is_not_to_blame() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Step(lambda x: x / 0), nn.LayerNorm(3), nn.Tanh())
    assert told(model).endswith("first in 1 (Step)")


def test_what_is_held_out_is_named() -> None:
    bad = torch.full((2, 3), math.nan)
    held = (Batch(X, torch.zeros(6, 3), 6), Batch(bad, torch.zeros(2, 3), 2))
    said = told(nn.Linear(3, 3), heldout=held)
    assert said == "the held-out loss is nan at batch 1: the inputs hold nan at [6, 0]"
