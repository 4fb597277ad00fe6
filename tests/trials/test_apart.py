"""Dependence of one example on another, means that are none, and targets out of their order."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import rng
from torch import Tensor, nn
from torch.nn import functional
from trained import digits
from zoo import ZOO, Words, drawn, posed, sentences, vectors

from curvcli.batches import Batch
from curvcli.load.loss import as_loss, custom, named
from curvcli.problem import Problem
from curvcli.trials.answers import answer
from curvcli.trials.apart import averaging, few, leak
from curvcli.trials.labels import constant, permuted
from curvcli.trials.subset import LONGER, Goal, contradicted, fit, groups, indistinct


@pytest.mark.parametrize("name", [n for n in ZOO if n != "convolution, train"])
def test_no_example_depends_on_another(name: str) -> None:
    p = ZOO[name]()
    with p.engaged():
        found = leak(p, few(p, rng()), rng())
    assert found is not None
    assert found.replaced == 0
    assert found.gradient in (None, 0)


class Leaking(nn.Module):
    """Adds a little of the batch's mean."""

    def __init__(self, size: float, detached: bool) -> None:
        super().__init__()
        self.a, self.size, self.detached = nn.Linear(4, 2), size, detached

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        mean = y.mean(0).detach() if self.detached else y.mean(0)
        out: Tensor = y + self.size * mean
        return out


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-9])
@pytest.mark.parametrize("detached", [True, False])
def test_a_leak_is_seen_whatever_its_size(size: float, detached: bool) -> None:
    p = posed(lambda: Leaking(size, detached), vectors(), (7,))
    with p.engaged():
        found = leak(p, few(p, rng()), rng())
    assert found is not None
    assert found.size > found.floor
    assert found.gradient is not None
    assert (found.gradient == 0) == detached
    assert 0.01 * size < found.size < 10 * size


def test_the_derivative_is_that_of_the_mean() -> None:
    p = posed(lambda: Leaking(1.0, False), vectors(), (7,))
    with p.engaged():
        found = leak(p, few(p, rng()), rng())
    # An example's own part is 1 + 1/7, another's 1/7.
    assert found is not None
    assert found.gradient == pytest.approx((1 / 7) / (8 / 7))


def test_only_others_have_the_gradient() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x).roll(1, 0)
            return out

    p = posed(Turned, vectors(), (7,))
    with p.engaged():
        found = leak(p, few(p, rng()), rng())
    assert found is not None
    assert found.gradient == 1


def test_masked_outputs_are_no_leak() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x) + torch.tensor([0.0, 0.0, -math.inf])
            return out

    p = posed(Masked, vectors(), (7,))
    with p.engaged():
        found = leak(p, few(p, rng()), rng())
    assert found is not None
    assert found.replaced == 0


def test_dropout_is_no_leak() -> None:
    p = posed(
        lambda: nn.Sequential(nn.Linear(4, 9), nn.Dropout(), nn.Linear(9, 2)), vectors(), (7,)
    )
    p = replace(p, mode="train")
    with p.engaged():
        found = leak(p, few(p, rng()), rng())
    assert found is not None
    assert found.size == 0


LOSSES: dict[str, tuple[Callable[..., Any], bool]] = {
    "mean": (functional.cross_entropy, True),
    "terms": (lambda out, y: functional.cross_entropy(out, y, reduction="none"), True),
    "sum": (lambda out, y: functional.cross_entropy(out, y, reduction="sum"), False),
    "softmax over the batch": (
        lambda out, y: -out.log_softmax(0)[torch.arange(len(y)), y].mean(), False,
    ),
    "root of a mean": (lambda out, y: functional.cross_entropy(out, y).sqrt(), False),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_means_over_examples(name: str) -> None:
    loss, right = LOSSES[name]
    p = replace(posed(lambda: nn.Linear(4, 2), vectors(), (7,)), loss=custom(loss, {}))
    with p.engaged():
        found = averaging(p, few(p, rng()))
    assert found is not None
    assert (found.relative < 1e-12) == right
    if name == "sum":
        assert found.batch == pytest.approx(7 * found.examples)


@pytest.mark.parametrize("name", ZOO)
def test_torchs_losses_are_means_over_examples(name: str) -> None:
    p = ZOO[name]()
    with p.engaged():
        found = averaging(p, few(p, rng()))
    assert found is not None
    assert found.relative < 1e-12


def outputs_given(signal: float, n: int, seed: int) -> Problem:
    """Give logits that know the class to some degree."""
    y = torch.randint(3, (n,), generator=rng(seed))
    x = signal * functional.one_hot(y, 3) + torch.randn(n, 3, generator=rng(seed + 50))
    model = nn.Linear(3, 3, bias=False)
    nn.init.eye_(model.weight)
    return Problem.of(model, named("cross_entropy", {}), [Batch(x, y, n)])


def test_z_is_a_normal_deviate_where_labels_mean_nothing() -> None:
    z = []
    for seed in range(60):
        p = outputs_given(0.0, 80, seed)
        with torch.no_grad():
            parts = [answer(p, p.batches[0])]
        z.append(permuted(p, parts, 60, rng(seed)).z)
    found = torch.tensor(z)
    # Mean 0 and spread 1, each to four standard errors (and 60 rounds widen z by one per cent).
    assert abs(float(found.mean())) < 4 / math.sqrt(60)
    assert abs(float(found.std()) - 1) < 4 / math.sqrt(120)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_z_is_large_where_labels_belong(seed: int) -> None:
    p = outputs_given(2.0, 200, seed)
    with torch.no_grad():
        parts = [answer(p, p.batches[0])]
    found = permuted(p, parts, 100, rng(seed))
    assert found.z > 10
    assert found.error == pytest.approx(math.sqrt((1 + found.z**2 / 2) / 100))
    assert not constant(parts)


def test_the_stake_of_squares_is_the_variance_of_the_outputs() -> None:
    x = torch.randn(400, 3, generator=rng(3))
    y = torch.randn(400, 1, generator=rng(4))
    p = Problem.of(nn.Linear(3, 1), named("mse_loss", {}), [Batch(x, y, 400)])
    with torch.no_grad():
        parts = [answer(p, p.batches[0])]
        found = permuted(p, parts, 2000, rng())
    variance = float(parts[0].output.var(correction=0))
    # The mean over permutations has a standard error.
    assert found.stake == pytest.approx(variance, abs=4 * found.std / math.sqrt(2000))


@pytest.mark.parametrize("log", [False, True])
def test_the_stake_is_the_same_for_logits_and_for_their_log_softmax(log: bool) -> None:
    p = outputs_given(2.0, 200, 0)
    if log:
        model = nn.Sequential(p.model, nn.LogSoftmax(1))
        p = Problem.of(model, named("nll_loss", {}), p.batches)
    with torch.no_grad():
        parts = [answer(p, p.batches[0])]
    found = permuted(p, parts, 100, rng())
    # By hand: the loss of every output with every target, less that of the mean logits.
    logits, y = outputs_given(2.0, 200, 0).batches[0].inputs, p.batches[0].target
    share = torch.bincount(y, minlength=3) / len(y)
    every = -(logits.log_softmax(1).mean(0) * share).sum()
    level = -(logits.mean(0).log_softmax(0) * share).sum()
    assert found.stake == pytest.approx(float(every - level), abs=4 * found.std / 10)
    assert found.stake > 0.3


def test_constant_outputs_are_seen() -> None:
    p = outputs_given(1.0, 60, 0)
    with torch.no_grad():
        for w in p.model.parameters():
            w.zero_()
        parts = [answer(p, p.batches[0])]
    assert constant(parts)
    assert math.isnan(permuted(p, parts, 20, rng()).z)


# --- a handful of examples -----------------------------------------------------------------------


def handful(model: nn.Module, n: int = 20) -> Problem:
    x, y = digits()
    return Problem.of(model, as_loss(functional.cross_entropy), [Batch(x[:n], y[:n], n)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_perceptron_learns_a_handful_by_heart(seed: int) -> None:
    torch.manual_seed(seed)
    p = handful(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    before = p.vector()
    grads = [q.grad for q in p.model.parameters()]
    with p.engaged():
        found = fit(p, p.batches[0], Goal(300, 0.05))
    assert found.share <= 0.05
    assert found.loss < found.start
    assert found.steps < 200
    assert torch.equal(p.vector(), before)
    assert [q.grad for q in p.model.parameters()] == grads


def test_training_ends_where_it_is_told_to() -> None:
    p = handful(nn.Linear(64, 10))
    with p.engaged():
        found = fit(p, p.batches[0], Goal(3, 1e-6))
    assert found.steps == 3 * LONGER
    assert found.falling
    assert found.share > 1e-6


def test_a_loss_that_still_falls_is_followed() -> None:
    p = handful(nn.Sequential(nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10)))
    with p.engaged():
        short = fit(p, p.batches[0], Goal(12, 0.05))
    assert short.share <= 0.05
    assert 12 < short.steps <= 12 * LONGER


def test_a_loss_that_does_not_fall_is_not_followed() -> None:
    steps = 0

    def count(done: int, total: int | None, value: float | None, error: float | None) -> None:
        nonlocal steps
        steps += 1

    first = nn.Linear(64, 10)
    with torch.no_grad():
        first.weight.zero_()
        first.bias.copy_(torch.tensor([200.0, *[0.0] * 9]))
    p = handful(nn.Sequential(first, nn.Softmax(1)))
    with p.engaged():
        found = fit(p, p.batches[0], Goal(10, 0.05), count)
    assert found.share > 0.05
    assert not found.falling
    assert steps <= 3 * 11


def test_ctrl_c_gives_the_weights_back() -> None:
    p = handful(nn.Linear(64, 10))
    before = p.vector()

    def stop(done: int, total: int | None, value: float | None, error: float | None) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), p.engaged():
        fit(p, p.batches[0], Goal(50, 1e-6), stop)
    assert torch.equal(p.vector(), before)


def test_equal_inputs_with_different_targets_contradict() -> None:
    x = drawn(6, 3)
    x[4], x[5] = x[0], x[1]
    y = torch.tensor([0, 1, 2, 0, 1, 1])
    batch = Batch(x, y, 6)
    same = groups(batch)
    assert same.tolist() == [0, 1, 2, 3, 0, 1]
    p = Problem.of(nn.Linear(3, 3).double(), named("cross_entropy", {}), [batch])
    with torch.no_grad():
        assert contradicted(answer(p, batch), same) == 2


def test_tokens_that_a_model_cannot_tell_apart() -> None:
    batch = sentences(ignored=False)
    p = posed(lambda: Words(tied=False), batch, (7,))
    with torch.no_grad():
        same = indistinct(answer(p, batch))
    assert same is not None
    first = [int((batch.inputs == t).nonzero()[0][0]) for t in range(5)]
    assert len(first) == 5
    for a in range(5):
        assert len(same[batch.inputs == a].unique()) == 1  # type: ignore[no-untyped-call]
    assert len(same.unique()) == len(batch.inputs.unique())  # type: ignore[no-untyped-call]
