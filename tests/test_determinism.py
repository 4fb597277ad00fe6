"""A gradient that does not come out alike twice is refused, and what is random is named."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracles import built, cut
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from zoo import ZOO, posed, vectors

from curvcli.batches import Batch, Terms
from curvcli.determinism import probe
from curvcli.errors import CurvError
from curvcli.load.loss import custom
from curvcli.problem import Problem

BOTH = "use --mode eval, or curv gradcheck --replay-rng"
FORWARD = "seed or remove the randomness in forward()"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


class Applied(nn.Module):
    """Whatever a function does, as a module; it may use a linear layer of its own."""

    def __init__(self, function: Callable[["Applied", Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Block(nn.Module):
    """Random in two places: in a module of its own, and by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.dropout(self.drop(torch.tanh(self.layer(x))), training=self.training)


def noisy(_: Applied, x: Tensor) -> Tensor:
    return x + torch.rand(4, dtype=x.dtype)


def around(_: Applied, x: Tensor) -> Tensor:
    """Draw at random on the way into a module that repeats."""
    out: Tensor = _.layer(noisy(_, x))
    return out


def foreign(_: Applied, x: Tensor) -> Tensor:
    """Draw from a generator that is not torch's."""
    return x * random.random()


def foreign_in_training(_: Applied, x: Tensor) -> Tensor:
    return foreign(_, x) if _.training else x


def graphs_only(_: Applied, x: Tensor) -> Tensor:
    return noisy(_, x) if torch.is_grad_enabled() else x


def in_place(_: Applied, x: Tensor) -> Tensor:
    return functional.dropout(x.clone(), training=True, inplace=True)


def skipping(_: Applied, x: Tensor) -> Tensor:
    """Call a module, or not, at random."""
    out: Tensor = _.layer(x) if random.random() < 0.5 else x
    return out


def nested(_: Applied, x: Tensor) -> dict[str, Any]:
    return {"logits": x, "more": [(noisy(_, x), None, "text")]}


class Twice(nn.Module):
    """One dropout, called on nothing first, and then on something."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.drop(torch.zeros_like(x)) + x)
        return out


def series(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 4), *modules, nn.Linear(4, 2))


def refusal(make: Callable[[], nn.Module], mode: str = "train", **rest: Any) -> tuple[str, str]:
    return refused(posed(make, vectors(), mode=mode, **rest))


def refused(problem: Problem) -> tuple[str, str]:
    before = torch.get_rng_state()
    with pytest.raises(CurvError) as failed:
        probe(problem)
    assert failed.value.code == "E_NONDET"
    assert torch.equal(torch.get_rng_state(), before)
    for m in problem.model.modules():
        assert not m._forward_hooks
        assert not m._forward_pre_hooks
    said = failed.value.message
    assert said.startswith("two evaluations of one gradient differ by ")
    return said.partition("; ")[2], failed.value.hint


@pytest.mark.parametrize("name", ZOO)
def test_what_repeats_passes(name: str) -> None:
    probe(ZOO[name]())


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ([nn.Dropout()], "1 (Dropout)"),
        ([nn.Dropout(), nn.Tanh(), nn.Dropout1d()], "1 (Dropout), 3 (Dropout1d)"),
        ([Applied(noisy) for _ in range(5)], "1 (Applied), 2 (Applied), 3 (Applied) and 2 more"),
        ([nn.Sequential(nn.Sigmoid(), nn.Sequential(nn.Identity(), nn.Dropout()))],
         "1.1.1 (Dropout)"),
        ([Block()], "1.drop (Dropout), 1 (Block)"),
        ([Applied(noisy)], "1 (Applied)"),
        ([Applied(around)], "1 (Applied)"),
        ([Applied(in_place), nn.ReLU(inplace=True), nn.Dropout()], "1 (Applied), 3 (Dropout)"),
        ([Applied(graphs_only), nn.Dropout(0.0)], "1 (Applied)"),
        ([Twice()], "1.drop (Dropout)"),
    ],
)  # fmt: skip
def test_random_modules_are_named(modules: list[nn.Module], names: str) -> None:
    said, _ = refusal(series(*modules))
    assert said == f"random: {names}"


def test_the_model_itself() -> None:
    class Rolling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand(4, dtype=x.dtype))

    said, hint = refusal(lambda: Rolling(4, 2), "eval")
    assert said == "random: the model itself (Rolling)"
    assert hint == "use curv gradcheck --replay-rng"


def test_outputs_in_a_nest() -> None:
    class Reads(nn.Linear):
        def forward(self, x: Any) -> Tensor:
            return super().forward(x["more"][0][0])

    said, _ = refusal(lambda: nn.Sequential(Applied(nested), Reads(4, 2)))
    assert said == "random: 0 (Applied)"


@dataclass
class Opaque:
    x: Tensor


def test_what_cannot_be_looked_into_is_told_by_what_holds_it() -> None:
    class Wraps(nn.Module):
        def forward(self, x: Tensor) -> Opaque:
            return Opaque(noisy(Applied(noisy), x))

    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Wraps()

        def forward(self, x: Tensor) -> Tensor:
            found: Opaque = self.inner(x)
            return found.x

    assert refusal(series(Holds()))[0] == "random: 1 (Holds)"


@pytest.mark.parametrize(
    ("function", "mode", "hint"),
    [
        (noisy, "train", "use curv gradcheck --replay-rng"),
        (noisy, "eval", "use curv gradcheck --replay-rng"),
        (foreign, "train", FORWARD),
        (foreign, "eval", FORWARD),
        (foreign_in_training, "train", "use --mode eval"),
    ],
)
def test_advice_is_what_was_tried(function: Any, mode: str, hint: str) -> None:
    assert refusal(series(Applied(function)), mode) == ("random: 1 (Applied)", hint)


def test_advice_for_dropout() -> None:
    assert refusal(series(nn.Dropout()))[1] == BOTH
    assert refusal(series(nn.Dropout(), Applied(foreign)))[1] == FORWARD
    problem = posed(series(Applied(foreign)), vectors(), mode="train", replay=3)
    assert refused(problem) == ("random: 1 (Applied)", FORWARD)


def test_calls_that_come_and_go() -> None:
    said, _ = refusal(series(*(Applied(skipping) for _ in range(12))), "eval")
    assert "(Applied)" in said
    assert "layer" not in said


def test_state_that_changes_with_every_call() -> None:
    said, hint = refusal(series(spectral_norm(nn.Linear(4, 4))))
    assert said == "random: 1.parametrizations.weight.0 (_SpectralNorm)"
    assert hint == "use --mode eval"


def test_what_is_seldom_random_is_found_all_the_same() -> None:
    def seldom(_: Applied, x: Tensor) -> Tensor:
        return x * (1.0 if next(turns) % 7 else 2.0)

    # The gradient's two evaluations, then pairs of passes that agree, then one that does not.
    turns = iter(range(7, 1000))
    assert refusal(series(Applied(seldom)), "eval")[0] == "random: 1 (Applied)"


def test_replayed_dropout_repeats() -> None:
    problem = posed(series(nn.Dropout(), Block()), vectors(), mode="train", replay=3)
    probe(problem)


def test_a_random_loss() -> None:
    def loss(output: Tensor, _: Tensor) -> Tensor:
        return output.square() * torch.rand(2, dtype=output.dtype)

    def other(output: Tensor, _: Tensor) -> Tensor:
        return output.square() * random.random()

    def problem(function: Any) -> Problem:
        return Problem.of(built(series()), custom(function, {}), cut(vectors(), (3, 4)))

    assert refused(problem(loss)) == (
        "random: the loss function",
        "use curv gradcheck --replay-rng",
    )
    said = "seed or remove the randomness in the loss function"
    assert refused(problem(other)) == ("random: the loss function", said)


def test_a_random_penalty() -> None:
    def penalty(model: nn.Module) -> Tensor:
        return torch.stack([p.square().sum() for p in model.parameters()]).sum() * random.random()

    problem = posed(series(nn.Dropout()), vectors(), mode="train", penalties={"smooth": penalty})
    said, hint = refused(problem.penalised("smooth"))
    assert said == "random: the penalty smooth"
    assert hint == "seed or remove the randomness in the penalty smooth"


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * torch.rand((), dtype=grads[0].dtype)


def test_a_random_backward() -> None:
    made = Applied(lambda _, x: Backward.apply(x))  # type: ignore[no-untyped-call]
    said, hint = refusal(series(made), "eval")
    assert said == "random in a backward: the forward pass repeats"
    assert hint == "seed or remove the randomness in backward()"


def test_a_gradient_that_is_not_finite() -> None:
    def root(output: Tensor, batch: Batch) -> Terms:
        return Terms((output * 0).abs().sqrt().sum(), float(batch.size))

    problem = Problem.of(built(series()), root, [vectors()])
    with pytest.raises(CurvError, match="gradient of the first batch is not finite") as failed:
        probe(problem)
    assert failed.value.code == "E_NONFINITE"


def test_nan_inside_a_model_is_no_randomness() -> None:
    def masked(_: Applied, x: Tensor) -> Tensor:
        return torch.where(x < 0, torch.nan, x.detach())

    def made() -> nn.Module:
        clean = Applied(lambda _, x: x.nan_to_num(0))
        return nn.Sequential(nn.Linear(4, 4), Applied(masked), clean, nn.Dropout(), nn.Linear(4, 2))

    assert refusal(made)[0] == "random: 3 (Dropout)"
