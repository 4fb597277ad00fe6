"""PRML 5.81 by hand, what it is exact for, and what it is refused for."""

from collections.abc import Callable

import pytest
import torch
from oracles import dense_hessian, gap
from torch import Tensor, nn
from zoo import ZOO, classes, drawn, images, mlp, posed, vectors

from curvcli.batches import Batch
from curvcli.curvature.diagonals.becker_lecun import BeckerLeCunDiagonal
from curvcli.errors import CurvError
from curvcli.problem import Problem


def whole(problem: Problem) -> Tensor:
    found = BeckerLeCunDiagonal(problem).compute()
    return problem.layout.flatten(found[n] for n in problem.names)


def test_by_hand() -> None:
    """Two layers of tanh, written out as the book has them, with squared error."""

    def make() -> nn.Module:
        layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)]
        return nn.Sequential(*layers)

    x, y = drawn(7, 4), drawn(7, 2, seed=5)
    problem = posed(make, Batch(x, y, 7), loss="mse_loss")
    W = [problem.params[f"{i}.weight"].detach() for i in (0, 2, 4)]
    bias = [problem.params[f"{i}.bias"].detach() for i in (0, 2, 4)]
    z, a = [x], []
    for k in range(3):
        a.append(z[k] @ W[k].T + bias[k])
        z.append(a[k].tanh())
    delta, b = 2 * (a[2] - y) / 14, torch.full_like(y, 2 / 14)
    expected: list[Tensor] = []
    for k in (2, 1, 0):
        expected[:0] = [b.T @ z[k].square(), b.sum(0)]
        if k:
            first = 1 - z[k].square()
            second = -2 * z[k] * first
            b = first.square() * (b @ W[k].square()) + second * (delta @ W[k])
            delta = first * (delta @ W[k])
    assert gap(whole(problem), problem.layout.flatten(expected)) < 1e-12


def units_apart() -> nn.Module:
    """A chain in which no layer mixes units, but the last one, which has one output."""
    return nn.Sequential(
        nn.BatchNorm1d(4), nn.Softplus(), nn.Conv1d(4, 4, 1, groups=4), nn.Tanh(), nn.Flatten()
    )  # fmt: skip


EXACT: dict[str, Callable[[], Problem]] = {
    "one layer": lambda: posed(lambda: nn.Linear(4, 3), vectors_of(3)),
    "one output after one layer": lambda: posed(
        lambda: nn.Sequential(nn.Linear(4, 1), nn.GELU(), nn.Linear(1, 1), nn.Sigmoid()),
        Batch(drawn(7, 4), drawn(7, 1, seed=3), 7), loss="mse_loss",
    ),
    "no layer mixes": lambda: posed(
        lambda: nn.Sequential(nn.Unflatten(1, (4, 1)), units_apart()),
        Batch(drawn(7, 4), drawn(7, 4, seed=3), 7), loss="mse_loss",
    ),
}  # fmt: skip


def vectors_of(high: int) -> Batch:
    return Batch(drawn(7, 4), classes(high, 7), 7)


@pytest.mark.parametrize("name", EXACT)
def test_exact_where_no_layer_mixes_units(name: str) -> None:
    problem = EXACT[name]()
    assert gap(whole(problem), dense_hessian(problem).diagonal()) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "relu in place", "convolution, eval"])
def test_the_last_layer_is_exact_and_the_others_are_near(name: str) -> None:
    problem = ZOO[name]()
    found, H = whole(problem), dense_hessian(problem).diagonal()
    last = slice(problem.layout.slices[problem.names[-2]].start, None)
    assert gap(found[last], H[last]) < 1e-12
    x, y = found - found.mean(), H - H.mean()
    assert float(x @ y / x.norm() / y.norm()) > 0.5
    assert gap(found, H) > 1e-6


def pooled(pool: nn.Module, size: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.Tanh(), pool, nn.Flatten(), nn.Linear(size, 2)
    )


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AvgPool2d(2, 1)])
def test_means_are_linear_layers(pool: nn.Module) -> None:
    """A mean passes on what the convolution of the same values does."""
    stride = 1 if getattr(pool, "stride", 2) == 1 else 2

    class Convolved(nn.Conv2d):
        pass

    mean = Convolved(3, 3, 2, stride, groups=3, bias=False)
    nn.init.constant_(mean.weight, 0.25)
    size = 27 if stride == 1 else 12
    wanted = ("0.*",)
    by_pool = posed(pooled(pool, size), images(), params=wanted)
    by_layer = posed(pooled(mean, size), images(), params=wanted)
    by_layer.model.load_state_dict(by_pool.model.state_dict(), strict=False)
    assert gap(whole(by_pool), whole(by_layer)) < 1e-12


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x + self.first(x))
        return out


class Functional(Skip):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).tanh())
        return out


REFUSED: dict[str, tuple[Callable[[], Problem], str]] = {
    "skip": (lambda: posed(Skip, vectors()), "more than what goes before"),
    "functions between": (lambda: posed(Functional, vectors()), "more than what goes before"),
    "normalised": (ZOO["layer norm"], "LayerNorm"),
    "recurrent": (ZOO["gru"], "no weight or bias of a layer"),
    "softmax": (
        lambda: posed(lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), vectors()), "Softmax"
    ),
    "uneven means": (
        lambda: posed(pooled(nn.AdaptiveAvgPool2d(3), 27), images()), "different sizes"
    ),
    "train mode": (ZOO["convolution, train"], "BatchNorm2d"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(CurvError, match=said) as refused:
        whole(make())
    assert refused.value.code == "E_MODEL"
    assert "--method exact" in str(refused.value.hint)


def test_the_model_is_left_as_found() -> None:
    problem = posed(mlp, vectors())
    whole(problem)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in problem.model.modules())
    assert all(p.grad is None for p in problem.model.parameters())


class Scaled(nn.Module):
    """Works in place between its layers, where no module sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).mul_(3))
        return out


def test_what_is_done_in_place_between_modules_is_refused() -> None:
    with pytest.raises(CurvError, match="more than what goes before"):
        whole(posed(Scaled, vectors()))
