"""The exact diagonal equals the dense Hessian's, by whichever way each layer is done."""

from collections.abc import Callable

import pytest
import torch
from oracles import built, dense_hessian, gap
from torch import Tensor, nn
from torch.nn import functional
from zoo import (
    ZOO,
    Words,
    classes,
    convolutional,
    drawn,
    images,
    mlp,
    posed,
    relu,
    sentences,
    sequences,
    vectors,
)

from curvcli.batches import Batch
from curvcli.curvature.diagonal import ExactDiagonal, Part
from curvcli.load.loss import named
from curvcli.problem import Problem

Model = Callable[[], nn.Module]


class Twice(nn.Module):
    """One linear layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))
        return out


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))
        return out


class Borrowed(nn.Module):
    """A linear layer one row of whose weight is also used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x))
        out: Tensor = self.head(h) + 0.3 * functional.linear(x, self.layer.weight[3:]).exp()
        return out


class ByHand(nn.Module):
    """A layer called by keyword, and one whose forward is called past its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.forward(torch.tanh(self.layer(input=x)))


class Mixing(nn.Module):
    """A linear layer over positions that the next layer mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.layer(x)).flatten(1))
        return out


class TimeFirst(Mixing):
    """The same with positions before examples while the layer is at work."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1)
        out: Tensor = self.head(h.flatten(1))
        return out


class Interacting(nn.Module):
    """Examples that interact through the batch's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.norm(self.layer(x))))
        return out


def unbiased() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False))


def diagonal(problem: Problem) -> tuple[Tensor, dict[str, str]]:
    """Compute the whole diagonal, and how each parameter was planned."""
    exact = ExactDiagonal(problem)
    found: dict[str, Tensor] = {}
    for part in exact.parts:
        found |= exact.compute(part)
    assert set(found) == set(problem.names)
    methods = {n: part.method for part in exact.parts for n in part.names}
    return problem.layout.flatten(found[n] for n in problem.names), methods


CASES: dict[str, tuple[Model, Callable[[], Batch], set[str]]] = {
    "linear": (mlp, vectors, {"0.weight", "0.bias", "2.weight", "2.bias"}),
    "no bias": (unbiased, vectors, {"0.weight", "2.weight"}),
    "relu in place": (relu, vectors, {"0.weight", "0.bias", "2.weight", "2.bias"}),
    "called twice": (Twice, vectors, {"head.weight", "head.bias"}),
    "tied": (Tied, vectors, {"head.weight", "head.bias"}),
    "borrowed": (Borrowed, vectors, {"layer.weight", "layer.bias", "head.weight", "head.bias"}),
    "by hand": (ByHand, vectors, {"layer.weight", "layer.bias"}),
    "positions": (
        Mixing, lambda: sequences(4), {"layer.weight", "layer.bias", "head.weight", "head.bias"}
    ),
    "time first": (TimeFirst, lambda: sequences(4), {"head.weight", "head.bias"}),
    "convolution": (convolutional, images, {"5.weight", "5.bias"}),
    "embedding": (lambda: Words(tied=False), lambda: sentences(ignored=False), set()),
    "tied embedding": (Words, sentences, set()),
}  # fmt: skip


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (1, 6)])
@pytest.mark.parametrize("name", CASES)
def test_diagonal(name: str, sizes: tuple[int, ...]) -> None:
    make, batch, layered = CASES[name]
    problem = posed(make, batch(), sizes)
    found, methods = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12
    if sizes != (3, 3, 1) or name != "time first":  # there as many positions as examples
        assert {n for n, method in methods.items() if method == "layer"} == layered


@pytest.mark.parametrize("name", ["lstm", "transformer encoder", "sparse embedding", "weight norm"])
def test_other_kinds(name: str) -> None:
    problem = ZOO[name]()
    found, _ = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


def test_examples_that_interact() -> None:
    problem = posed(Interacting, vectors(), (7,), mode="train")
    found, methods = diagonal(problem)
    assert methods["layer.weight"] == "layer"  # as planned; it is noticed and done otherwise
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


def test_batches_of_different_lengths() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(self.layer(x)).mean(dim=1))
            return out

    batches = [Batch(drawn(3, t, 4, seed=t), classes(2, 3, seed=t), 3) for t in (1, 4, 2)]
    problem = Problem.of(built(Averaging), named("cross_entropy", {}), batches)
    found, methods = diagonal(problem)
    assert methods["layer.weight"] == "layer"
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


@pytest.mark.parametrize("name", ["linear", "no bias", "relu in place", "positions"])
def test_a_layer_takes_the_products_that_were_planned(name: str) -> None:
    make, batch, _ = CASES[name]
    problem = posed(make, batch())
    exact = ExactDiagonal(problem)
    for part in exact.parts:
        ticks: list[int] = []
        exact.compute(part, tick=ticks.append)
        assert sum(ticks) == part.products * len(problem.batches)


@pytest.mark.parametrize("name", ["borrowed", "time first"])
def test_a_layer_that_is_not_what_it_seems_is_done_by_entries(name: str) -> None:
    make, batch, _ = CASES[name]
    problem = posed(make, batch(), (3, 3, 1))
    exact = ExactDiagonal(problem)
    part = next(p for p in exact.parts if p.layer == "layer")
    ticks: list[int] = []
    exact.compute(part, tick=ticks.append)
    entries = sum(problem.params[n].numel() for n in part.names)
    assert sum(ticks) >= entries * len(problem.batches)


def test_plan() -> None:
    parts = ExactDiagonal(posed(mlp, vectors())).parts
    assert parts == [
        Part(("0.weight", "0.bias"), "0", 5),
        Part(("2.weight", "2.bias"), "2", 2),
    ]
    over = ExactDiagonal(posed(Mixing, sequences(4))).parts
    assert over[0] == Part(("layer.weight", "layer.bias"), "layer", 9)


def test_the_cheaper_way_is_planned() -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 6), nn.Flatten(), nn.Tanh(), nn.Linear(60, 2))

    batch = Batch(drawn(7, 10, 2), classes(2, 7), 7)  # 60 products by layer, 18 by entry
    parts = ExactDiagonal(posed(wide, batch)).parts
    assert parts[:2] == [Part(("0.weight",), None, 12), Part(("0.bias",), None, 6)]
    assert parts[2].method == "layer"


def test_a_selection() -> None:
    whole = posed(mlp, vectors())
    some = posed(mlp, vectors(), params=("*.weight",))
    found, methods = diagonal(some)
    H = dense_hessian(whole).diagonal()
    kept = torch.cat([H[whole.layout.slices[n]] for n in some.names])
    assert gap(found, kept) < 1e-12
    assert set(methods) == {"0.weight", "2.weight"}


def test_an_unused_parameter_has_a_zero_diagonal() -> None:
    problem = ZOO["frozen and unused"]()
    found, _ = diagonal(problem)
    assert torch.equal(found[problem.layout.slices["unused"]], torch.zeros(2).double())
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


@pytest.mark.parametrize("memory", [0, 1e4, 1e12])
def test_the_memory_budget_changes_nothing(memory: float) -> None:
    problem = posed(mlp, vectors())
    exact = ExactDiagonal(problem, memory)
    found = torch.cat([exact.compute(p)[n].reshape(-1) for p in exact.parts for n in p.names])
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


def test_single_entries() -> None:
    problem = posed(mlp, vectors())
    exact = ExactDiagonal(problem)
    with exact.engaged():
        some = exact.one_hot("2.weight", torch.tensor([0, 7, 3]))
        whole = exact.one_hot("2.weight")
    assert torch.equal(some, whole.reshape(-1)[[0, 7, 3]])


def test_model_is_left_as_found() -> None:
    problem = posed(Interacting, vectors(), (7,), mode="train")
    before = {n: t.clone() for n, t in problem.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) for m in problem.model.modules())
    diagonal(problem)
    assert all(torch.equal(t, before[n]) for n, t in problem.model.state_dict().items())
    assert sum(len(m._forward_hooks) for m in problem.model.modules()) == hooks
    assert all(p.grad is None for p in problem.model.parameters())
