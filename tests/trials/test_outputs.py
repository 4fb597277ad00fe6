"""Whether outputs are logits or probabilities, and of the shape of their targets."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import rng
from torch import Tensor, nn
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.load.loss import as_loss, custom
from curvcli.problem import Problem
from curvcli.trials.answers import Answers, answer
from curvcli.trials.outputs import Kind, Shapes, confined, kind, shapes

N, K = 40, 4
X = torch.randn(N, 6, generator=rng(1))
CLASSES = torch.randint(K, (N,), generator=rng(2))
ONES = (torch.rand(N, generator=rng(3)) < 0.3).float()


def pose(model: nn.Module, target: Tensor, loss: Callable[..., Any]) -> Problem:
    return Problem.of(model, as_loss(loss), [Batch(X, target, len(X))])


def answers(p: Problem) -> Answers:
    with torch.no_grad():
        return answer(p, p.batches[0])


def linear(out: int, *more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, out), *more)


def found(model: nn.Module, target: Tensor, loss: Callable[..., Any]) -> Kind | None:
    p = pose(model, target, loss)
    return kind(p, answers(p))


def test_softmax_before_cross_entropy() -> None:
    seen = found(linear(K, nn.Softmax(1)), CLASSES, functional.cross_entropy)
    assert seen is not None
    assert seen.probabilities
    assert seen.least == pytest.approx(math.log(math.e + K - 1) - 1)


def test_sigmoid_before_a_loss_of_logits() -> None:
    loss = functional.binary_cross_entropy_with_logits
    seen = found(linear(1, nn.Sigmoid(), nn.Flatten(0)), ONES, loss)
    assert seen is not None
    assert seen.probabilities
    q = float(ONES.mean())
    assert seen.least == pytest.approx(
        q * math.log(1 + math.exp(-1)) + (1 - q) * math.log(2), rel=1e-6
    )


@pytest.mark.parametrize("model", [linear(K), linear(K, nn.LogSoftmax(1)), linear(K, nn.ReLU())])
def test_logits_are_no_probabilities(model: nn.Module) -> None:
    seen = found(model, CLASSES, functional.cross_entropy)
    assert seen is not None
    assert not seen.probabilities


def test_losses_that_take_no_logits_are_not_judged() -> None:
    logs = linear(K, nn.LogSoftmax(1))
    assert found(logs, CLASSES, functional.nll_loss) is None
    assert (
        found(linear(1, nn.Sigmoid(), nn.Flatten(0)), ONES, functional.binary_cross_entropy) is None
    )
    assert found(linear(1, nn.Flatten(0)), ONES, functional.mse_loss) is None
    own = lambda out, y: functional.nll_loss((out + 1e-6).log(), y)  # noqa: E731
    assert found(linear(K, nn.Softmax(1)), CLASSES, own) is None


@pytest.mark.parametrize("seed", range(5))
def test_logits_that_lie_between_0_and_1_are_not_confined_there(seed: int) -> None:
    torch.manual_seed(seed)
    last = nn.Linear(8, 2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), last)
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.fill_(0.5)
    p = pose(model, torch.zeros(N, 2), functional.mse_loss)
    given = answers(p)
    assert bool(((given.output >= 0) & (given.output <= 1)).all())
    before = p.vector()
    assert confined(p, given) == [False]
    assert torch.equal(p.vector(), before)
    held = pose(nn.Sequential(model, nn.Sigmoid()), torch.zeros(N, 2), functional.mse_loss)
    assert confined(held, answers(held)) == [True]


def test_outputs_that_begin_at_zero_are_not_confined() -> None:
    model = linear(2)
    for w in model.parameters():
        nn.init.zeros_(w)
    p = pose(model, torch.zeros(N, 2), functional.mse_loss)
    assert confined(p, answers(p)) == [False]


# --- shapes ------------------------------------------------------------------------------------


def compared(model: nn.Module, target: Tensor, loss: Any) -> Shapes:
    p = Problem.of(model, loss, [Batch(X, target, N)])
    seen = shapes(p, answers(p))
    assert seen is not None
    return seen


@pytest.mark.parametrize(
    "loss", [functional.mse_loss, functional.l1_loss, functional.huber_loss, nn.MSELoss()]
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_column_against_a_row_is_what_torch_broadcasts(loss: Callable[..., Any]) -> None:
    y = torch.randn(N, generator=rng(4))
    seen = compared(linear(1), y, as_loss(loss))
    assert (seen.output, seen.target, seen.wide) == ((N, 1), (N,), (N, N))
    out = linear(1)(X).detach()
    assert seen.torch == pytest.approx(float(loss(out, y)), rel=1e-5)
    assert seen.loss == pytest.approx(float(loss(out[:, 0], y)), rel=1e-5)


def test_one_shape_is_alike() -> None:
    assert compared(linear(1), torch.zeros(N, 1), as_loss(functional.mse_loss)).wide is None
    assert compared(linear(3), torch.zeros(N, 3), as_loss(functional.mse_loss)).wide is None


def test_what_torch_refuses_was_not_trained_with() -> None:
    loss = functional.binary_cross_entropy_with_logits
    with pytest.raises(ValueError, match="must be the same as"):
        loss(torch.zeros(N, 1), ONES)
    seen = compared(linear(1), ONES, as_loss(loss))
    assert seen.refused
    assert seen.wide is None


def test_own_losses_are_judged_by_what_they_do() -> None:
    y = torch.randn(N, generator=rng(4))
    spread = custom(lambda out, y: (out - y).square().mean(), {})
    lined_up = custom(lambda out, y: (out[:, 0] - y).square().mean(), {})
    assert compared(linear(1), y, spread).wide == (N, N)
    assert compared(linear(1), y, lined_up).wide is None
