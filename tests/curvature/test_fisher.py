"""Fisher matrices: the model's labels give the Gauss-Newton matrix on average, the data's g g^T."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import by_products, cut, dense_empirical, dense_gauss_newton, gap, rng
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO, classes, drawn, mlp, posed, unchecked, vectors

from curvcli.batches import Batch, Loss
from curvcli.curvature.fisher import PREDICTIONS, EmpiricalFisher, Fisher
from curvcli.curvature.gauss_newton import CURVATURE, GaussNewton
from curvcli.curvature.terms import Terms
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.load.loss import as_loss, custom, named
from curvcli.problem import Problem

EXACT = 1e-12
SEEDS = 200
SURE = 5.0
"""Standard errors that none of some hundred means is off by."""


def line() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3))


def log_line() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=-1))


def tokens(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Let a model make a sequence of two from every example."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(torch.stack([x, x.square(), -x, x.cos()], dim=1))
            return out

    return Tokens


def over(
    loss: Loss, make: Callable[[], nn.Module], target: Tensor, sizes: Any = (3, 3, 1)
) -> Problem:
    return Problem.of(posed(make, vectors()).model, loss, cut(Batch(drawn(7, 4), target, 7), sizes))


def index(*shape: int) -> Tensor:
    y = classes(3, 7, *shape)
    y[2:4] = -100
    return y


def twice(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh the examples, as users do, and hand logits on as they like."""
    counts = target.clamp_min(0).double() + 0.5
    terms = functional.cross_entropy((2 * output).contiguous(), target, reduction="none")
    return (terms * counts).sum(), counts.sum()


def heads(output: Tensor, target: Tensor) -> Tensor:
    """Add two losses of one output."""
    first = functional.cross_entropy(output[:, :2], target.clamp(0, 1), reduction="none")
    labels = target.double().clamp(0, 1)
    return first + functional.binary_cross_entropy_with_logits(
        output[:, 2], labels, reduction="none"
    )


WEIGHT = [0.2, 1.0, 4.0]
LABELS = (drawn(7, 3, seed=5) > 0).double()
CASES: dict[str, Callable[..., Problem]] = {
    "classes": lambda **k: over(named("cross_entropy", {}), mlp, classes(2, 7), **k),
    "weights": lambda **k: over(
        named("cross_entropy", {"weight": WEIGHT, "label_smoothing": 0.1}), line, index(), **k
    ),
    "tokens": lambda **k: over(
        named("cross_entropy", {"weight": WEIGHT}), tokens(line), index(4), **k
    ),
    "shares": lambda **k: over(
        as_loss(nn.CrossEntropyLoss()), line, drawn(7, 3, seed=5).softmax(1), **k
    ),
    "log-probabilities": lambda **k: over(named("nll_loss", {}), log_line, index(), **k),
    "log-probabilities of tokens": lambda **k: over(
        named("nll_loss", {"weight": WEIGHT}), tokens(log_line), index(4), **k
    ),
    "labels": lambda **k: over(
        named("binary_cross_entropy_with_logits", {"pos_weight": WEIGHT}), line, LABELS, **k
    ),
    "weighted entries": lambda **k: over(
        named("binary_cross_entropy_with_logits", {"weight": WEIGHT}), line, LABELS, **k
    ),
    "numbers": lambda **k: over(named("mse_loss", {}), line, drawn(7, 3, seed=5), **k),
    "a user's": lambda **k: over(custom(twice, {}), line, classes(3, 7), **k),
    "two heads": lambda **k: over(custom(heads, {}), line, classes(3, 7), **k),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_labels_is_the_gauss_newton_matrix(name: str) -> None:
    problem = CASES[name](sizes=(7,))
    G = GaussNewton(problem)
    v = normal(G.like, rng(1))
    drawn = torch.stack([Fisher(problem, rng(seed), memory=0).matvec(v) for seed in range(SEEDS)])
    error = drawn.std(dim=0) / SEEDS**0.5
    off = (drawn.mean(dim=0) - G.matvec(v)).abs()
    assert bool((off <= SURE * error + EXACT).all())
    # The errors are small enough for that to say something.
    assert float(error.norm()) < 0.25 * float(G.matvec(v).norm())
    more = torch.stack([Fisher(problem, rng(s), 16, 0).matvec(v) for s in range(40)])
    ratio = float((more.var(dim=0).sum() / drawn.var(dim=0).sum()).sqrt())
    assert ratio == pytest.approx(1 / 4, rel=0.4)


def terms(kind: Any, x: Tensor, axis: int | None, weights: Tensor | float = 1.0) -> Terms:
    """Make terms of these weights in L."""
    values = x.sum(1) if axis else x
    masses = {functional.cross_entropy: math.log(4), functional.mse_loss: 1}.get(kind, math.log(2))
    return Terms(kind, lambda x: masses * torch.ones_like(values), x, x, axis, values,
                 weights * torch.ones_like(values))  # fmt: skip


def test_expected_scores_are_second_derivatives() -> None:
    x, t = 3 * drawn(6, 4), drawn(6, 4, seed=3)
    kind: Any = functional.cross_entropy
    products = [
        PREDICTIONS[kind].product(terms(kind, x, 1, p), torch.full((6, 1), y), t)
        for y, p in enumerate(x.softmax(1).T)
    ]
    assert gap(sum(products, torch.zeros_like(x)), CURVATURE[kind](x, t, 1)) < EXACT
    kind = functional.binary_cross_entropy_with_logits
    products = [
        PREDICTIONS[kind].product(terms(kind, x, None, p), torch.full((6, 4, 1), y), t)
        for y, p in ((0.0, (-x).sigmoid()), (1.0, x.sigmoid()))
    ]
    assert gap(sum(products, torch.zeros_like(x)), CURVATURE[kind](x, t, 1)) < EXACT
    # Evenly spaced numbers in the place of uniform ones integrate the normal distribution.
    u = ((torch.arange(200_000).double() + 0.5) / 200_000).expand(6, 4, -1)
    kind = functional.mse_loss
    found = terms(kind, x, None)
    product = PREDICTIONS[kind].product(found, PREDICTIONS[kind].draw(found, u), t)
    assert gap(product, CURVATURE[kind](x, t, 1)) < 1e-4


def test_labels_come_as_often_as_predicted() -> None:
    x = torch.tensor([[0.0, 1.0, -2.0], [5.0, -float("inf"), 5.0]]).double()
    found = terms(functional.cross_entropy, x, 1)
    u = torch.rand(2, 20_000, generator=rng(), dtype=torch.float64)
    u[:, :2] = torch.tensor([0.0, 1 - 2.0**-53]).double()
    y = PREDICTIONS[found.kind].draw(found, u)
    for k in range(3):
        p = x.softmax(1)[:, k]
        often = (y == k).double().mean(dim=1)
        assert bool(((often - p).abs() <= 4 * (p * (1 - p) / 20_000).sqrt()).all())


# Of two losses' labels, those of the first are drawn for a whole batch before the second's.
@pytest.mark.parametrize("name", [name for name in CASES if name != "two heads"])
def test_one_fixed_matrix_whatever_the_batches(name: str) -> None:
    whole = by_products(Fisher(CASES[name](sizes=(7,)), rng(), 3))
    assert gap(whole, whole.T) < EXACT
    assert float(torch.linalg.eigvalsh(whole)[0]) > -EXACT
    for sizes in ((3, 3, 1), (1,) * 7):
        assert gap(by_products(Fisher(CASES[name](sizes=sizes), rng(), 3)), whole) < EXACT
    assert gap(by_products(Fisher(CASES[name](), rng(1), 3)), whole) > 1e-3


@pytest.mark.parametrize("name", ZOO)
def test_samples_average_on_every_kind(name: str) -> None:
    operator = Fisher(ZOO[name](), rng(), 3000)
    v = normal(operator.like, rng(1))
    G = dense_gauss_newton(unchecked(name))
    assert operator.notes == ()
    assert float((operator.matvec(v) - G @ v).norm() / (G @ v).norm()) < 0.15


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    Fisher(ZOO["mlp"](), rng(), 2)
    assert torch.equal(torch.random.get_rng_state(), before)


def rows(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Take cross-entropy apart into tokens; with ignored ones."""
    flat, labels = output.reshape(-1, output.shape[-1]), target.reshape(-1)
    return functional.cross_entropy(flat, labels, reduction="none"), (labels != -100).double()


def squares(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    values = (output.reshape(target.shape) - target).square()
    return values, torch.ones_like(values)


@pytest.mark.parametrize("name", ZOO)
def test_empirical_is_the_sum_over_terms(name: str) -> None:
    expected = dense_empirical(unchecked(name), squares if name == "linear regression" else rows)
    found = by_products(EmpiricalFisher(ZOO[name]()))
    assert gap(found, expected) < EXACT
    assert gap(found, found.T) < EXACT


def weighted(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    values, counts = rows(output, target)
    return values, counts * torch.tensor(WEIGHT).double()[target.reshape(-1).clamp_min(0)]


def users(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return functional.cross_entropy(2 * output, target, reduction="none"), target.double() + 0.5


def by_entry(function: Any, **options: Any) -> Any:
    def entries(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        values = function(output, target, reduction="none", **options)
        return values, torch.ones_like(values)

    return entries


EMPIRICAL: list[tuple[Problem, Any]] = [
    (CASES["tokens"](), weighted),
    (CASES["log-probabilities of tokens"](), weighted),
    (CASES["a user's"](), users),
    (CASES["numbers"](), by_entry(functional.mse_loss)),
    (CASES["shares"](), by_entry(functional.cross_entropy)),
    (
        over(named("cross_entropy", {"label_smoothing": 0.1}), line, classes(3, 7)),
        by_entry(functional.cross_entropy, label_smoothing=0.1),
    ),
    (
        over(named("huber_loss", {"delta": 0.3}), line, drawn(7, 3, seed=5)),
        by_entry(functional.huber_loss, delta=0.3),
    ),
    (
        over(named("multi_margin_loss", {}), line, classes(3, 7)),
        by_entry(functional.multi_margin_loss),
    ),
    (
        over(named("nll_loss", {"weight": WEIGHT}), line, classes(3, 7)),
        lambda o, y: (-o.gather(1, y[:, None])[:, 0], torch.tensor(WEIGHT).double()[y]),
    ),
]


@pytest.mark.parametrize(("problem", "values"), EMPIRICAL)
def test_empirical_of_other_losses(problem: Problem, values: Any) -> None:
    assert gap(by_products(EmpiricalFisher(problem)), dense_empirical(problem, values)) < EXACT


def by_hand(output: Tensor, target: Tensor) -> Tensor:
    terms: Tensor = output.logsumexp(dim=1) - output.gather(1, target.unsqueeze(1))[:, 0]
    return terms


def focal(output: Tensor, target: Tensor) -> Tensor:
    terms = functional.cross_entropy(output, target, reduction="none")
    return (1 - (-terms).exp()) * terms


def penalised(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target) + output.square().mean()


@pytest.mark.parametrize("loss", [by_hand, focal, penalised])
@pytest.mark.parametrize("matrix", [lambda p: Fisher(p, rng()), EmpiricalFisher])
def test_losses_that_are_no_sum_of_terms_are_refused(loss: Any, matrix: Any) -> None:
    problem = over(custom(loss, {}), line, classes(3, 7))
    with pytest.raises(CurvError, match="needs a loss that is a weighted sum of terms") as failed:
        matrix(problem)
    assert failed.value.code == "E_LOSS"


@pytest.mark.parametrize(
    ("name", "make", "target"),
    [("huber_loss", line, drawn(7, 3, seed=5)), ("nll_loss", line, classes(3, 7))],
)
def test_losses_without_a_prediction_are_refused(
    name: str, make: Callable[[], nn.Module], target: Tensor
) -> None:
    with pytest.raises(CurvError, match=f"{name} predicts no labels") as failed:
        Fisher(over(named(name, {}), make, target), rng())
    assert failed.value.code == "E_LOSS"
    assert "cross_entropy, binary_cross_entropy_with_logits, mse_loss" in str(failed.value)
