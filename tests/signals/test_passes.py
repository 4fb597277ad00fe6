"""What a pass hears, against statistics taken by hand; and that nothing is left behind."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from oracles import cut
from questions import classify, inputs, interrupted_at, mlp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, convolutional, drawn, images, posed, sequences, vectors

from curvcli.batches import joined
from curvcli.problem import Problem
from curvcli.signals.passes import Recording, record, unseen
from curvcli.signals.place import Place


def heard(problem: Problem) -> dict[str, Place]:
    return {p.name: p for p in record(problem).places}


def test_statistics_of_values_and_gradients_by_hand() -> None:
    p = classify(mlp(6, 8, 3).double(), inputs(20, 6).double(), cut=(9, 9, 2))
    x = torch.cat([b.inputs for b in p.batches])
    y = torch.cat([b.target for b in p.batches])
    model: nn.Module = p.model
    first, act, last = (model.get_submodule(n) for n in "012")
    a = first(x).detach().requires_grad_()
    h = act(a)
    loss = functional.cross_entropy(last(h), y)
    ga, gh = torch.autograd.grad(loss, [a, h])
    found, recording = heard(p), record(p)
    for name, value, g in (("0", a.detach(), ga), ("1", h.detach(), gh)):
        place = found[name]
        assert place.values.mean == pytest.approx(float(value.mean()), rel=1e-12)
        assert place.values.std == pytest.approx(float(value.std(correction=0)), rel=1e-12)
        truth = float((20 * g).square().sum(1).mean().sqrt())
        assert recording.norm(place) == pytest.approx(truth, rel=1e-12)
        assert place.gradient.mean == pytest.approx(float(g.mean()), rel=1e-9)
        assert place.calls == 3
    assert found["1"].judged == 160
    assert found["1"].flat == int((1 - h**2 < 0.05).sum())


@pytest.mark.parametrize("name", [n for n in ZOO if n != "convolution, train"])
def test_no_figure_depends_on_how_batches_are_cut(name: str) -> None:
    whole = ZOO[name]()
    for module in whole.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_buffer("num_batches_tracked", torch.tensor(1))
    one = replace(whole, batches=cut(joined(whole.batches), (7,)))
    for a, b in zip(record(whole).places, record(one).places, strict=True):
        assert (a.name, a.kind, a.flat, a.judged) == (b.name, b.kind, b.flat, b.judged)
        assert a.dead == b.dead
        assert a.values.mean == pytest.approx(b.values.mean, rel=1e-9, abs=1e-12)
        assert a.values.std == pytest.approx(b.values.std, rel=1e-9)
        assert a.gradient.power == pytest.approx(b.gradient.power, rel=1e-9)
        assert torch.equal(a.histogram.counts, b.histogram.counts)


def test_batch_norm_without_statistics_takes_the_batchs_own() -> None:
    eval_mode, train_mode = (ZOO[f"convolution, {m}"]() for m in ("eval", "train"))
    one = replace(eval_mode, batches=train_mode.batches)
    assert len(unseen(one)) == 1
    assert not unseen(train_mode)
    for a, b in zip(record(one).places, record(train_mode).places, strict=True):
        assert a.values == b.values
        assert a.gradient == b.gradient
    assert int(one.model.get_submodule("1").get_buffer("num_batches_tracked")) == 0


class Blocks(nn.Module):
    """Functions of every spelling, in a block that is called twice, and in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 5)
        self.block = _Block()
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.a(x), inplace=True)
        h = self.b(h).tanh()
        h = self.block(self.block(h))
        for _ in range(3):
            h = torch.sigmoid(h)
        h = h.clamp(min=0)
        out: Tensor = self.head(functional.leaky_relu(h))
        return out


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.mix(x))
        return functional.relu(self.mix(h))


def test_functions_are_named_by_the_module_around_them() -> None:
    p = posed(Blocks, vectors(), (7,))
    found = heard(p)
    calls = {n: q.calls for n, q in found.items()}
    assert calls == {
        "input": 1, "a": 1, "relu()": 1, "b": 1, "tanh()": 1, "block.mix": 4, "block: relu()": 2,
        "block: relu() 2": 2, "sigmoid()": 1, "sigmoid() 2": 1, "sigmoid() 3": 1, "relu() 2": 1,
        "leaky_relu()": 1, "head": 1,
    }  # fmt: skip
    assert found["relu()"].judged == 35
    assert found["leaky_relu()"].judged == 0
    assert [q.name for q in record(p).layers] == ["a", "b", "block.mix", "head"]


class Nested(nn.Module):
    """Modules that return tuples and dicts, integers, and a parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.scale = _Pair(), _Scale()

    def forward(self, x: Tensor) -> Tensor:
        found = self.pair(x)
        out: Tensor = found["values"][0][:, :2] * self.scale()
        return out


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> dict[str, object]:
        y = x @ self.weight
        return {"values": (y, y.argmax(1)), "name": "pair", "none": None}


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self) -> Tensor:
        return self.scale


def test_nested_outputs_and_integers() -> None:
    p = posed(Nested, vectors(), (3, 3, 1))
    found = heard(p)
    assert found["pair"].values.count == 28
    assert found["pair"].zero_gradient == 0.5
    assert not list(p.model.parameters())[1]._backward_hooks


def test_in_place_activations_leave_what_came_before_as_it_was() -> None:
    p = posed(convolutional, images(), (7,))
    outside = replace(p, model=p.model)
    for module in outside.model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    truth = {q.name: q for q in record(outside).places}
    for module in p.model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    for name, place in heard(p).items():
        assert place.values == truth[name].values
        assert place.gradient == truth[name].gradient
        assert place.flat == truth[name].flat


# A forward pass without a graph has nothing to differentiate, which torch says.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_are_heard_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = checkpoint(self.body, self.stem(x), use_reentrant=reentrant)
            out: Tensor = self.head(h)
            return out

    recording = record(posed(Checkpointed, vectors(), (7,)))
    places = {q.name: q for q in recording.places}
    assert places["body.0"].values.count == 21
    assert places["body.0"].calls == 1
    norm = recording.norm(places["stem"])
    assert norm is not None
    assert norm > 0
    # The first pass of a reentrant one has no graph, so there is nothing to hear inside.
    assert (recording.norm(places["body.0"]) is None) == reentrant


def test_dead_units_are_those_that_are_never_on() -> None:
    model = mlp(4, 6, 2, act=nn.ReLU).double()
    with torch.no_grad():
        model.get_submodule("0").get_parameter("bias")[:2] = -1e3
    x = drawn(50, 4)
    place = heard(classify(model, x, classes=2, cut=(20, 20, 10)))["1"]
    on = (model[0](x) > 0).any(0)
    assert place.dead == int((~on).sum())
    assert place.dead is not None
    assert place.dead >= 2


def test_dead_channels_lie_along_the_second_axis() -> None:
    p = posed(convolutional, images(), (3, 4))
    with torch.no_grad():
        p.model.get_submodule("1").get_parameter("bias")[1] = -1e3
    place = heard(p)["2"]
    assert place.units == 3
    assert place.dead == 1


def test_frozen_layers_are_heard_too() -> None:
    model = mlp(4, 6, 2).double()
    model[0].requires_grad_(False)
    p = classify(model, drawn(9, 4), classes=2)
    before = [q.requires_grad for q in model.parameters()]
    recording = record(p)
    assert all(recording.norm(q) for q in recording.places if q.kind != "input")
    assert [q.requires_grad for q in model.parameters()] == before


def state(problem: Problem) -> list[object]:
    model = problem.model
    return [
        {n: t.clone() for n, t in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.random.get_rng_state(),
    ]


def same(a: list[object], b: list[object]) -> bool:
    assert str(a) == str(b)
    assert all(torch.equal(x, y) for x, y in zip(a[0].values(), b[0].values(), strict=True))  # type: ignore[attr-defined]
    return torch.equal(a[-1], b[-1])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["convolution, train", "lstm", "checkpointed", "relu in place"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    p = ZOO[name]()
    before = state(p)
    record(p)
    assert same(before, state(p))


def test_ctrl_c_leaves_the_batches_before() -> None:
    p = ZOO["mlp"]()
    before = state(p)
    found = record(p, interrupted_at(6)("pass"))
    assert found.interrupted
    assert found.examples == 6
    two = record(replace(p, batches=p.batches[:2]))
    assert [q.values for q in found.places] == [q.values for q in two.places]
    assert same(before, state(p))


def test_an_exception_in_forward_leaves_no_hooks() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)
            self.fail = False

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x)
            if self.fail:
                raise RuntimeError("no")
            return out

    p = posed(Failing, vectors(), (7,))
    _ = p.measure
    p.model.fail = True  # type: ignore[assignment]
    before = state(p)
    with pytest.raises(RuntimeError, match="no"):
        record(p)
    assert same(before, state(p))


def test_what_all_examples_share_has_no_gradient_of_one() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.head = nn.Embedding(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head((x + self.places(torch.arange(3))).mean(1))
            return out

    recording: Recording = record(posed(Positions, sequences(4), (7,)))
    assert [recording.norm(q) is None for q in recording.layers] == [True, False]


def test_depth_of_a_chain_is_exact() -> None:
    # |d loss / d h| shrinks by the factor of each layer, exactly.
    factors = [0.5, 0.25, 0.125, 0.5, 0.5]

    def chain() -> nn.Module:
        layers = [nn.Linear(4, 4, bias=False) for _ in factors]
        for layer, factor in zip(layers, factors, strict=True):
            nn.init.eye_(layer.weight).data.mul_(factor)
        return nn.Sequential(*layers)

    recording = record(posed(chain, vectors(), (7,)))
    norms = [recording.norm(q) for q in recording.layers]
    for k, (a, b) in enumerate(pairwise(norms)):
        assert a is not None
        assert b is not None
        assert a / b == pytest.approx(factors[k + 1])
    assert math.isfinite(norms[0] or math.nan)
