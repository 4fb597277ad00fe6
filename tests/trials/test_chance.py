"""What a loss comes to at chance and at best, against closed forms."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import rng
from torch import Tensor, nn
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.load.loss import as_loss, named
from curvcli.problem import Problem
from curvcli.trials import answers
from curvcli.trials.answers import Answers, answer, examine, judged, mean
from curvcli.trials.chance import chance, floor
from curvcli.trials.targets import class_axis

N, K = 60, 4
Y = torch.randint(K, (N,), generator=rng(1)).clamp_max(K - 2)


def pose(model: nn.Module, target: Tensor, loss: Any, width: int = 3) -> Problem:
    x = torch.randn(len(target), width, generator=rng(), dtype=torch.float64)
    found = as_loss(loss) if callable(loss) else named(*loss)
    return Problem.of(model.double(), found, [Batch(x, target, len(target))])


def parts(p: Problem) -> list[Answers]:
    with torch.no_grad():
        return [answer(p, b) for b in p.batches]


def entropy(y: Tensor, k: int = K) -> float:
    share = torch.bincount(y, minlength=k).double() / len(y)
    return float(-(share * share.clamp_min(1e-30).log()).sum())


Model = Callable[[], nn.Module]


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (lambda: nn.Linear(3, K), functional.cross_entropy),
        (lambda: nn.Sequential(nn.Linear(3, K), nn.LogSoftmax(1)), functional.nll_loss),
        (lambda: nn.Sequential(nn.Linear(3, K), nn.LogSoftmax(1)), functional.cross_entropy),
        (
            lambda: nn.Sequential(nn.Linear(3, K), nn.Softmax(1)),
            lambda out, y: functional.nll_loss(out.log(), y),
        ),
    ],
)
def test_classes_at_chance_are_their_number_and_their_entropy(model: Model, loss: Any) -> None:
    found = chance(p := pose(model(), Y, loss), parts(p))
    assert found is not None
    assert found.equal == pytest.approx(math.log(K))
    assert found.best == pytest.approx(entropy(Y), rel=1e-4)
    assert found.classes == K


def test_class_weights_and_left_out_targets_count() -> None:
    y = Y.clone()
    y[:20] = -100
    w = [1.0, 2.0, 0.5, 1.0]
    found = chance(p := pose(nn.Linear(3, K), y, ("cross_entropy", {"weight": w})), parts(p))
    mass = torch.tensor(w, dtype=torch.float64)[y[20:]]
    share = torch.zeros(K, dtype=torch.float64).index_add(0, y[20:], mass) / mass.sum()
    assert found is not None
    assert found.equal == pytest.approx(math.log(K))
    truth = -(share * share.clamp_min(1e-30).log()).sum()
    assert found.best == pytest.approx(float(truth), rel=1e-4)


def test_regression_at_chance_is_the_variance() -> None:
    y = 3 + torch.randn(N, 2, generator=rng(2), dtype=torch.float64)
    found = chance(p := pose(nn.Linear(3, 2), y, functional.mse_loss), parts(p))
    assert found is not None
    assert found.equal == pytest.approx(float(y.square().mean()))
    assert found.best == pytest.approx(float(y.var(0, correction=0).mean()), rel=1e-6)
    assert found.classes is None


@pytest.mark.parametrize("logits", [True, False])
def test_binary_targets(logits: bool) -> None:
    y = (torch.rand(N, 1, generator=rng(3), dtype=torch.float64) < 0.2).double()
    model: nn.Module = nn.Linear(3, 1)
    loss: Any = functional.binary_cross_entropy_with_logits
    if not logits:
        model, loss = nn.Sequential(model, nn.Sigmoid()), functional.binary_cross_entropy
    found = chance(p := pose(model, y, loss), parts(p))
    q = float(y.mean())
    assert found is not None
    assert found.equal == pytest.approx(math.log(2))
    truth = -q * math.log(q) - (1 - q) * math.log(1 - q)
    assert found.best == pytest.approx(truth, rel=1e-6)


def test_sequences_have_their_classes_last() -> None:
    y = Y.reshape(20, 3)
    x = torch.randn(20, 3, 3, generator=rng(), dtype=torch.float64)
    p = Problem.of(nn.Linear(3, K).double(), named("cross_entropy", {}), [Batch(x, y, 20)])
    found = chance(p, parts(p))
    assert found is not None
    assert found.best == pytest.approx(entropy(Y), rel=1e-4)


def test_a_loss_that_the_model_gives_has_no_chance() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, K)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = self.a(x)
            return {"logits": out, "loss": functional.cross_entropy(out, Y[: len(x)])}

    from curvcli.load.loss import returned

    p = replace(pose(Own(), Y, functional.cross_entropy), loss=returned("loss"))
    assert chance(p, parts(p)) is None
    assert judged(p, parts(p)[0]) == [False]


def test_the_floor_is_nothing_where_every_example_is_its_own() -> None:
    p = pose(nn.Linear(3, K), Y, functional.cross_entropy)
    least = floor(p, parts(p)[0], torch.arange(N))
    assert least is not None
    assert 0 <= least < 1e-3


def test_the_floor_of_contradicting_targets_is_their_entropy() -> None:
    p = pose(nn.Linear(3, K), Y, functional.cross_entropy)
    least = floor(p, parts(p)[0], torch.zeros(N, dtype=torch.long))
    assert least == pytest.approx(entropy(Y), rel=1e-4)


def test_label_smoothing_has_a_floor() -> None:
    p = pose(nn.Linear(3, K), Y, ("cross_entropy", {"label_smoothing": 0.1}))
    q = [0.9 + 0.1 / K, *[0.1 / K] * (K - 1)]
    truth = -sum(x * math.log(x) for x in q)
    assert floor(p, parts(p)[0], torch.arange(N)) == pytest.approx(truth, rel=1e-4)


def test_class_axes() -> None:
    y2, y1 = torch.zeros(5, 7, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    assert class_axis(torch.zeros(5, 3, 7), y2) == 1
    assert class_axis(torch.zeros(5, 7, 3), y2) == -1
    assert class_axis(torch.zeros(5, 3), y1) == 1
    assert class_axis(torch.zeros(5), y1) is None
    assert class_axis(torch.zeros(5, 3), torch.zeros(5)) is None


def test_groups_are_cut_from_the_data_and_not_from_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "PIECES", 13)
    p = pose(nn.Linear(3, K), Y, functional.cross_entropy)
    x = p.batches[0].inputs
    errors = []
    for size in (60, 7, 1):
        pairs = zip(torch.split(x, size), torch.split(Y, size), strict=True)
        cut = replace(p, batches=tuple(Batch(a, b, len(a)) for a, b in pairs))
        *_, found = examine(cut, cut.batches, 0, rng())
        errors.append(found.error)
    with torch.no_grad():
        terms = functional.cross_entropy(p.model(x), Y, reduction="none")
    groups = torch.stack([g.mean() for g in torch.split(terms, 5)])  # 13 at most: 12 of 5
    truth = float(groups.std()) / math.sqrt(12)
    assert errors == pytest.approx([truth] * 3)


def test_a_loss_that_refuses_one_example_has_no_standard_error() -> None:
    def squeezed(out: Tensor, y: Tensor) -> Tensor:
        if len(out) == 1:
            raise ValueError("more than one value is needed")
        return functional.cross_entropy(out, y)

    p = pose(nn.Linear(3, K), Y, squeezed)
    *_, found = examine(p, p.batches, 30, rng())
    assert found.error is None
    assert found.loss == pytest.approx(p.measure.loss)


@pytest.mark.parametrize("cut", [(60,), (25, 25, 10), (1,) * 60])
def test_loss_error_and_accuracy(cut: tuple[int, ...]) -> None:
    p = pose(nn.Linear(3, K), Y, functional.cross_entropy)
    x = p.batches[0].inputs
    pairs = zip(torch.split(x, list(cut)), torch.split(Y, list(cut)), strict=True)
    p = replace(p, batches=tuple(Batch(a, b, len(a)) for a, b in pairs))
    *_, found = examine(p, p.batches, 30, rng())
    with torch.no_grad():
        terms = functional.cross_entropy(p.model(x), Y, reduction="none")
        right = float((p.model(x).argmax(1) == Y).double().mean())
    assert found.loss == pytest.approx(float(terms.mean()))
    assert found.accuracy == pytest.approx(right)
    truth = float(terms.std()) / math.sqrt(N)
    assert found.error is not None
    assert found.error == pytest.approx(truth)
    assert found.majority == pytest.approx(int(torch.bincount(Y).max()) / N)
    assert sum(a.batch.size for a in found.kept) == 30
    assert len(found.kept) == 1
    assert mean(p, found.kept) == pytest.approx(found.loss, abs=4 * truth)
