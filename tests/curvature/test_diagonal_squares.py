"""The diagonals of Gauss-Newton and empirical Fisher matrices, against dense ones."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diagonals import diagonal
from oracles import built, cut, dense_empirical, dense_gauss_newton, dense_hessian, gap
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO, classes, drawn, mlp, posed, unchecked, vectors

from curvcli.batches import Batch, Loss
from curvcli.curvature.diagonals import roots
from curvcli.curvature.diagonals.squares import SquaresDiagonal
from curvcli.errors import CurvError
from curvcli.load.loss import custom, named
from curvcli.problem import Problem

EXACT = 1e-11


def whole(problem: Problem, root: roots.Root) -> Tensor:
    found = SquaresDiagonal(problem, root).compute()
    return problem.layout.flatten(found[n] for n in problem.names)


def rows(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits, y = output.reshape(-1, output.shape[-1]), target.reshape(-1)
    return functional.cross_entropy(logits, y, reduction="none"), (y != -100).double()


def entries(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    values = functional.mse_loss(output, target.view(output.shape), reduction="none")
    return values, torch.ones_like(values)


@pytest.mark.parametrize("name", ZOO)
def test_gauss_newton(name: str) -> None:
    expected = dense_gauss_newton(unchecked(name)).diagonal()
    assert gap(whole(ZOO[name](), roots.gauss_newton), expected) < EXACT


@pytest.mark.parametrize("name", ZOO)
def test_empirical_fisher(name: str) -> None:
    terms = entries if name == "linear regression" else rows
    expected = dense_empirical(unchecked(name), terms).diagonal()
    assert gap(whole(ZOO[name](), roots.scores), expected) < EXACT


def three() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


def planes() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Conv1d(3, 3, 1))


def log_three() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.LogSoftmax(dim=-1))


def over(loss: Loss, make: Callable[[], nn.Module], target: Tensor) -> Problem:
    return Problem.of(built(make), loss, cut(Batch(drawn(7, 4), target, 7), (3, 3, 1)))


def ignored(*shape: int) -> Tensor:
    y = classes(3, 7, *shape)
    y[2:4] = -100
    return y


def cubic(output: Tensor, target: Tensor) -> Tensor:
    """Be neither a loss of torch's nor convex."""
    return (output.prod(dim=-1) * target).sin()


def beside(output: Tensor, target: Tensor) -> Tensor:
    """Add two losses of one output."""
    first = functional.cross_entropy(output[:, :2], target.clamp(0, 1), reduction="none")
    labels = target.double().clamp(0, 1)
    return first + functional.binary_cross_entropy_with_logits(
        output[:, 2], labels, reduction="none"
    )


LOSSES: dict[str, Callable[[], Problem]] = {
    "ignored": lambda: over(named("cross_entropy", {}), three, ignored()),
    "weighted": lambda: over(
        named("cross_entropy", {"weight": [0.2, 1.0, 4.0]}), three, classes(3, 7)
    ),
    "smoothed": lambda: over(named("cross_entropy", {"label_smoothing": 0.2}), three, ignored()),
    "classes second": lambda: over(named("cross_entropy", {}), planes, ignored(3)),
    "log-probabilities": lambda: over(named("nll_loss", {}), log_three, classes(3, 7)),
    "squares": lambda: over(named("mse_loss", {}), three, drawn(7, 3)),
    "binary": lambda: over(
        named("binary_cross_entropy_with_logits", {}), three, classes(2, 7, 3).double()
    ),
    "two at once": lambda: over(custom(beside, {}), three, classes(2, 7)),
    "huber": lambda: over(named("huber_loss", {"delta": 0.5}), three, drawn(7, 3)),
    "not convex": lambda: over(custom(cubic, {}), three, drawn(7)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gauss_newton_of_losses(name: str) -> None:
    problem = LOSSES[name]()
    # By itself nll_loss is linear; it counts as the cross-entropy of the same log-probabilities.
    same = over(named("cross_entropy", {}), log_three, classes(3, 7))
    expected = dense_gauss_newton(same if name == "log-probabilities" else problem).diagonal()
    assert gap(whole(problem, roots.gauss_newton), expected) < EXACT


@pytest.mark.parametrize("name", LOSSES)
def test_exact_diagonals_of_losses(name: str) -> None:
    problem = LOSSES[name]()
    found, ways = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < EXACT
    assert "one-hot" not in ways.values()


def test_losses_that_are_no_sum_of_terms_have_no_scores() -> None:
    with pytest.raises(CurvError, match="--method ggn") as refused:
        whole(LOSSES["not convex"](), roots.scores)
    assert refused.value.code == "E_LOSS"


def test_a_loss_that_compares_examples_is_refused() -> None:
    def contrasted(output: Tensor, target: Tensor) -> Tensor:
        return (output @ output.T).logsumexp(dim=1).mean()

    with pytest.raises(CurvError, match="mixes them") as refused:
        whole(over(custom(contrasted, {}), three, classes(2, 7)), roots.gauss_newton)
    assert refused.value.code == "E_LOSS"


def test_a_sure_prediction_keeps_its_digits() -> None:
    problem = over(named("cross_entropy", {}), three, classes(3, 7))
    with torch.no_grad():
        problem.params["2.bias"][0] = 30  # p is 1 but for 1e-13
    expected = dense_gauss_newton(problem.to(torch.float64)).diagonal()
    assert gap(whole(problem.to(torch.float32), roots.gauss_newton).double(), expected) < 1e-4


def test_products_are_the_columns_of_one_example() -> None:
    for root, products in ((roots.gauss_newton, 2), (roots.scores, 1)):
        found = SquaresDiagonal(posed(mlp, vectors()), root)
        ticks: list[int] = []
        found.compute(ticks.append)
        assert found.products == products
        assert sum(ticks) == 3 * products  # batches


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_diagonals_are_those_of_backpack(act: type[nn.Module]) -> None:
    peer: Any = pytest.importorskip("backpack")
    extensions: Any = pytest.importorskip("backpack.extensions")

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 5), act(), nn.Linear(5, 2))

    batch = vectors()
    problem = posed(make, batch)
    model, loss = peer.extend(built(make)), peer.extend(nn.CrossEntropyLoss())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with peer.backpack(extensions.DiagHessian(), extensions.DiagGGNExact()):
            loss(model(batch.inputs), batch.target).backward()
    flat = problem.layout.flatten
    exact = flat(p.diag_h for p in model.parameters())
    ggn = flat(p.diag_ggn_exact for p in model.parameters())
    assert gap(diagonal(problem)[0], exact) < EXACT
    assert gap(whole(problem, roots.gauss_newton), ggn) < EXACT
    if act is nn.ReLU:
        assert gap(ggn, exact) < EXACT


def test_a_loss_linear_in_the_outputs_has_no_curvature_by_them() -> None:
    def linear(output: Tensor, target: Tensor) -> Tensor:
        return (output * target).mean()

    p = over(custom(linear, {}), mlp, drawn(7, 2, seed=5))
    assert not whole(p, roots.gauss_newton).any()
    assert gap(diagonal(p)[0], dense_hessian(p).diagonal()) < 1e-9
