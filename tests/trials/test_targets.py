"""How many targets are met, and whether there is more than one."""

import pytest
import torch
from oracles import rng
from torch import Tensor, nn
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.load.loss import as_loss
from curvcli.problem import Problem
from curvcli.trials.answers import examine
from curvcli.trials.targets import Tally, same


def batches(target: Tensor, size: int = 4) -> list[Batch]:
    return [Batch(torch.zeros(len(t), 2), t, len(t)) for t in torch.split(target, size)]


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (torch.full((9,), 2), True),
        (torch.tensor([2] * 8 + [1]), False),
        (torch.tensor([-100, 2, -100, 2, 2]), True),
        (torch.full((5, 3), 4), True),
        (torch.tensor([[1, 1], [1, 2]]), False),
        (torch.full((9,), 0.5), True),
        (torch.tensor([[1.0, 2.0]] * 9), True),
        (torch.arange(9.0), False),
        (torch.full((4,), -100), None),
    ],
)
def test_targets_that_are_all_the_same(target: Tensor, verdict: bool | None) -> None:
    assert same(batches(target)) is verdict


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("size", [5, 30])
def test_accuracy_of_binary_targets_of_several_columns(logits: bool, size: int) -> None:
    x = torch.randn(30, 4, generator=rng(1))
    y = (torch.rand(30, 3, generator=rng(2)) < torch.tensor([0.1, 0.5, 0.8])).float()
    torch.manual_seed(0)
    last = nn.Linear(4, 3)
    model = last if logits else nn.Sequential(last, nn.Sigmoid())
    loss = (
        functional.binary_cross_entropy_with_logits if logits else functional.binary_cross_entropy
    )
    cut = [Batch(a, b, len(a)) for a, b in
           zip(torch.split(x, size), torch.split(y, size), strict=True)]  # fmt: skip
    p = Problem.of(model, as_loss(loss), cut)
    *_, found = examine(p, p.batches, 0, rng())
    with torch.no_grad():
        right = (last(x) > 0) == (y > 0.5)
    assert found.accuracy == pytest.approx(float(right.double().mean()))
    ones = y.mean(0)
    assert found.majority == pytest.approx(float(torch.maximum(ones, 1 - ones).mean()))


def test_squares_of_binary_targets_have_no_accuracy() -> None:
    y = (torch.rand(30, 1, generator=rng(2)) < 0.5).float()
    p = Problem.of(
        nn.Linear(4, 1), as_loss(functional.mse_loss),
        [Batch(torch.randn(30, 4, generator=rng(1)), y, 30)],
    )  # fmt: skip
    *_, found = examine(p, p.batches, 0, rng())
    assert found.accuracy is None
    assert found.majority is None


def test_two_classes_of_one_hot_targets_are_no_binary_ones() -> None:
    labels = torch.randint(2, (30,), generator=rng(0))
    hot = functional.one_hot(labels, 2).double()
    model = nn.Linear(2, 2).double()
    x = torch.randn(30, 2, generator=rng(1), dtype=torch.float64)
    p = Problem.of(model, as_loss(functional.cross_entropy), [Batch(x, hot, 30)])
    # Each output alone is on one side of zero; only their difference says the class.
    with torch.no_grad():
        model.bias.add_(40.0)
    *_, found = examine(p, p.batches, 0, rng(2))
    assert found.accuracy is None


def test_a_loss_that_works_in_place_is_examined() -> None:
    def clamped(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output.clamp_(-1, 1), target)

    y = torch.randint(3, (12,), generator=rng(0))
    p = Problem.of(nn.Linear(2, 3), as_loss(clamped), [Batch(torch.zeros(12, 2), y, 12)])
    *_, found = examine(p, p.batches, 0, rng(2))
    assert found.accuracy is not None


def test_batches_of_other_shapes_have_no_majority() -> None:
    one = Tally(1, 2, torch.ones(2, 1))
    other = Tally(1, 2, torch.ones(3, 1))
    whole = Tally().plus(one).plus(other).plus(one)
    assert (whole.right, whole.asked, whole.majority) == (3, 6, None)
    assert Tally().plus(one).plus(one).majority == 0.5
