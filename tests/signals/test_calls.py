"""Which calls of an activation are a place of their own, against dead units counted by hand."""

import pytest
import torch
from questions import classify, inputs
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from curvcli.signals.calls import MOST
from curvcli.signals.passes import record
from curvcli.signals.place import Place


class Shared(nn.Module):
    """One ReLU, a module or a line of code, after two layers of different widths."""

    def __init__(self, second: int, *, module: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = weight_norm(nn.Linear(6, 5, bias=False)), nn.Linear(5, second)
        self.head, self.act = nn.Linear(second, 3), nn.ReLU() if module else functional.relu
        with torch.no_grad():
            self.b.bias[:3] = -1e3

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            x = self.act(layer(x))
        out: Tensor = self.head(x)
        return out


def heard(model: nn.Module, x: Tensor, cut: tuple[int, ...] = ()) -> dict[str, Place]:
    return {p.name: p for p in record(classify(model, x, cut=cut)).places}


@pytest.mark.parametrize("second", [5, 8])
@pytest.mark.parametrize("module", [True, False])
def test_each_layer_before_an_activation_makes_a_place(second: int, module: bool) -> None:
    model, x = Shared(second, module=module), inputs(60, 6)
    found = heard(model, x, (25, 25, 10))
    first, again = ("act", "act 2") if module else ("relu()", "relu() 2")
    h = model.a(x).relu().detach()
    for name, value, layer in ((first, h, "a"), (again, model.b(h).relu().detach(), "b")):
        place = found[name]
        assert (place.after, place.calls, place.seen) == (layer, 3, 60)
        assert place.dead == int((value == 0).all(0).sum())
        assert place.flat == int((value == 0).sum())
        assert place.values.mean == pytest.approx(float(value.mean()), rel=1e-5)
    assert (found[again].dead or 0) >= 3


def test_branches_whose_activations_come_together_are_told_apart() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)
            nn.init.constant_(self.a.bias, -1e3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            out: Tensor = self.head(sum(functional.relu(h) for h in (a, b)))
            return out

    torch.manual_seed(0)
    found = heard(Branches(), inputs(60, 6))
    assert found["relu()"].dead == 5
    assert (found["relu() 2"].dead or 0) < 5


class Cell(nn.Module):
    """A recurrent step, by a layer or by weights of its own."""

    def __init__(self, *, layer: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4) if layer else nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h @ self.mix if isinstance(self.mix, Tensor) else self.mix(h))


@pytest.mark.parametrize("layer", [True, False])
def test_steps_of_a_recurrent_network_share_their_units(layer: bool) -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.cell, self.head = nn.Linear(6, 4), Cell(layer=layer), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for _ in range(3 * MOST):
                h = h + self.cell(h) / 50
            out: Tensor = self.head(h)
            return out

    torch.manual_seed(0)
    (place,) = [p for p in heard(Unrolled(), inputs(20, 6)).values() if p.function]
    assert (place.name, place.calls, place.units) == ("cell: relu()", 3 * MOST, 4)
    assert not place.pooled


class Loop(nn.Module):
    """Activations with no layer between them, as often as asked, on so many units."""

    def __init__(self, steps: list[int], *, narrowing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.steps = nn.Linear(6, 8), nn.Linear(8, 3), steps
        self.narrowing, self.passes = narrowing, 0

    def forward(self, x: Tensor) -> Tensor:
        h, more = self.stem(x), x.new_zeros(())
        # The pass before the recording measures the loss.
        steps = self.steps[self.passes % len(self.steps)]
        self.passes += 1
        for k in range(steps):
            more = more + torch.relu(h[:, : 8 - k % 3 if self.narrowing else 8] - k).sum()
        out: Tensor = self.head(h + more)
        return out


@pytest.mark.parametrize(
    ("steps", "places"), [([3], 3), ([MOST], MOST), ([MOST + 1], 1), ([200], 1), ([3, 5], 1)]
)
def test_calls_without_a_layer_between_are_places_if_few_and_always_so_many(
    steps: list[int], places: int
) -> None:
    model, x = Loop(steps), inputs(40, 6)
    p = classify(model, x, cut=(20, 20))
    _ = p.measure
    model.passes = 0
    found = [q for q in record(p).places if q.function]
    assert len(found) == places
    assert [q.pooled for q in found] == [places == 1] * places
    assert sum(q.calls for q in found) == sum(steps) * 2 // len(steps)
    assert {q.seen for q in found} == {40}
    off = [bool(((model.stem(x) - k) <= 0).all(0)[0]) for k in range(max(steps))]
    # Pooled calls have a dead unit where it is dead at all of them.
    known = [bool(q.alive is not None and not q.alive[0]) for q in found]
    assert known == ([all(off)] if places == 1 else off)


def test_units_of_a_loop_that_differ_in_number_are_not_judged() -> None:
    places = record(classify(Loop([MOST + 4], narrowing=True), inputs(20, 6))).places
    (place,) = [p for p in places if p.function]
    assert place.judged > 0
    assert place.dead is None
    assert not place.judgeable


def test_an_activation_knows_how_many_examples_it_met() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(self.a(x)))
            few = torch.relu(self.a(x[:2]))
            return out + functional.pad(few.sum(1, keepdim=True), (0, 2, 0, len(x) - 2))

    found = heard(Expert(), inputs(20, 6), (10, 10))
    assert found["relu()"].seen == 4
    assert not found["relu()"].judgeable
    assert found["tanh()"].seen == 20
    assert found["tanh()"].judgeable


def test_an_input_does_not_take_the_name_of_a_module() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.input(x)
            return out

    assert list(heard(Named(), inputs(20, 6))) == ["the input", "input"]
