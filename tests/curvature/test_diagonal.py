"""The exact diagonal equals the dense Hessian's, by whichever way each layer is done."""

from collections.abc import Callable

import pytest
import torch
from diagonals import diagonal
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
from curvcli.curvature.diagonals.exact import ExactDiagonal
from curvcli.curvature.diagonals.parts import Part
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


class Padded(nn.Module):
    """Words of which one is padding, mixed over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3, padding_idx=2)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.words(x))
        out: Tensor = self.head(torch.tanh(h.cumsum(dim=1)))
        return out


def unbiased() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False))


CASES: dict[str, tuple[Model, Callable[[], Batch], set[str]]] = {
    "linear": (mlp, vectors, {"0.weight", "0.bias", "2.weight", "2.bias"}),
    "no bias": (unbiased, vectors, {"0.weight", "2.weight"}),
    "relu in place": (relu, vectors, {"0.weight", "0.bias", "2.weight", "2.bias"}),
    "called twice": (Twice, vectors, {"head.weight", "head.bias"}),
    "tied": (Tied, vectors, {"head.weight", "head.bias"}),
    "borrowed": (Borrowed, vectors, {"head.weight", "head.bias"}),
    "by hand": (ByHand, vectors, {"layer.weight", "layer.bias"}),
    "positions": (
        Mixing, lambda: sequences(4), {"layer.weight", "layer.bias", "head.weight", "head.bias"}
    ),
    "time first": (TimeFirst, lambda: sequences(4), {"head.weight", "head.bias"}),
    "convolution": (
        convolutional, images, {f"{i}.{name}" for i in (0, 1, 5) for name in ("weight", "bias")}
    ),
    "embedding": (
        lambda: Words(tied=False), lambda: sentences(ignored=False),
        {"embedding.weight", "mix.weight", "mix.bias", "head.weight"},
    ),
    "tied embedding": (Words, sentences, {"mix.weight", "mix.bias"}),
    "padding": (Padded, sentences, {"words.weight", "head.weight", "head.bias"}),
}  # fmt: skip


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (1, 6)])
@pytest.mark.parametrize("name", CASES)
def test_diagonal(name: str, sizes: tuple[int, ...]) -> None:
    make, batch, layered = CASES[name]
    problem = posed(make, batch(), sizes)
    found, ways = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12
    assert {n for n, way in ways.items() if way != "one-hot"} == layered


@pytest.mark.parametrize("name", ["lstm", "transformer encoder", "sparse embedding", "weight norm"])
def test_other_kinds(name: str) -> None:
    problem = ZOO[name]()
    found, _ = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


def test_examples_that_interact() -> None:
    problem = posed(Interacting, vectors(), (7,), mode="train")
    planned = {n: part.way for part in ExactDiagonal(problem).parts for n in part.names}
    found, ways = diagonal(problem)
    assert planned["layer.weight"] != "one-hot"  # it is noticed, and done otherwise
    assert ways["layer.weight"] == "one-hot"
    assert ways["norm.weight"] != "one-hot"  # what follows the statistics does not mix
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
    found, ways = diagonal(problem)
    assert ways["layer.weight"] != "one-hot"
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


@pytest.mark.parametrize("name", ["linear", "no bias", "relu in place", "positions", "embedding"])
def test_a_layer_takes_the_products_that_were_planned(name: str) -> None:
    make, batch, _ = CASES[name]
    problem = posed(make, batch())
    exact = ExactDiagonal(problem)
    for part in exact.parts:
        ticks: list[int] = []
        exact.compute(part, tick=ticks.append)
        assert sum(ticks) == part.products * len(problem.batches)


def test_a_layer_that_is_not_what_it_seems_is_done_by_entries() -> None:
    problem = posed(Borrowed, vectors(), (3, 3, 1))
    exact = ExactDiagonal(problem)
    part = next(p for p in exact.parts if p.layers == ("layer",))
    ticks: list[int] = []
    found = exact.compute(part, tick=ticks.append)
    assert {f.way for f in found.values()} == {"one-hot"}
    entries = sum(problem.params[n].numel() for n in part.names)
    assert sum(ticks) >= entries * len(problem.batches)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Flatten(), nn.Tanh(), nn.Linear(60, 7))


def test_plan() -> None:
    smooth = ExactDiagonal(posed(mlp, vectors())).parts
    assert smooth == [
        Part(("0.weight", "0.bias"), "positions", 5, ("0",)),
        Part(("2.weight", "2.bias"), "gauss-newton", 2, ("2",)),
    ]
    kinked = ExactDiagonal(posed(relu, vectors())).parts
    everything = ("0.weight", "0.bias", "2.weight", "2.bias")
    assert kinked == [Part(everything, "gauss-newton", 2, ("0", "2"))]
    over = ExactDiagonal(posed(Mixing, sequences(4))).parts
    assert over[0] == Part(("layer.weight", "layer.bias"), "positions", 9, ("layer",))


def test_the_cheaper_way_is_planned() -> None:
    batch = Batch(drawn(7, 10, 2), classes(7, 7), 7)  # 60 products by positions, 18 by fan-in
    parts = ExactDiagonal(posed(wide, batch)).parts
    assert parts[:2] == [
        Part(("0.weight",), "fan-in", 12, ("0",)),
        Part(("0.bias",), "fan-in", 6, ("0",)),
    ]


def test_positions_that_do_not_interact_count_as_examples() -> None:
    parts = ExactDiagonal(posed(lambda: Words(tied=False), sentences(ignored=False))).parts
    assert [p for p in parts if p.folded] == [
        Part(("embedding.weight",), "positions", 3, ("embedding",), folded=True),
        Part(("mix.weight", "mix.bias"), "positions", 3, ("mix",), folded=True),
        Part(("head.weight",), "positions", 5, ("head",), folded=True),
    ]


def test_more_classes_than_outputs_are_no_reason_to_pull() -> None:
    def narrow() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 9, bias=False))

    problem = posed(narrow, Batch(drawn(7, 4), classes(9, 7), 7), params=("0.*",))
    assert [p.way for p in ExactDiagonal(problem).parts] == ["positions"]
    found, _ = diagonal(problem)
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


def test_a_selection() -> None:
    whole = posed(mlp, vectors())
    some = posed(mlp, vectors(), params=("*.weight",))
    found, ways = diagonal(some)
    H = dense_hessian(whole).diagonal()
    kept = torch.cat([H[whole.layout.slices[n]] for n in some.names])
    assert gap(found, kept) < 1e-12
    assert set(ways) == {"0.weight", "2.weight"}


def test_an_unused_parameter_has_a_zero_diagonal() -> None:
    problem = ZOO["frozen and unused"]()
    found, _ = diagonal(problem)
    assert torch.equal(found[problem.layout.slices["unused"]], torch.zeros(2).double())
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


@pytest.mark.parametrize("memory", [0, 1e4, 1e12])
def test_the_memory_budget_changes_nothing(memory: float) -> None:
    problem = posed(mlp, vectors())
    exact = ExactDiagonal(problem, memory)
    found = [exact.compute(p)[n].diagonal.reshape(-1) for p in exact.parts for n in p.names]
    assert gap(torch.cat(found), dense_hessian(problem).diagonal()) < 1e-12


def test_more_examples_than_entries_are_checked_on() -> None:
    problem = posed(mlp, Batch(drawn(50, 4), classes(2, 50), 50), (20, 20, 10))
    found, ways = diagonal(problem)
    assert "one-hot" not in ways.values()
    assert gap(found, dense_hessian(problem).diagonal()) < 1e-12


def test_model_is_left_as_found() -> None:
    problem = posed(Interacting, vectors(), (7,), mode="train")
    before = {n: t.clone() for n, t in problem.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) for m in problem.model.modules())
    diagonal(problem)
    assert all(torch.equal(t, before[n]) for n, t in problem.model.state_dict().items())
    assert sum(len(m._forward_hooks) for m in problem.model.modules()) == hooks
    assert all(p.grad is None for p in problem.model.parameters())
