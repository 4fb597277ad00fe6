"""Updates recovered from an optimizer's state, and the next one, against real training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import built, cut
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from zoo import mlp, vectors

from curvcli.load.loss import named
from curvcli.optimizer import Group, SavedOptimizer, classes
from curvcli.problem import Problem
from curvcli.updates import last_updates, next_updates


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False))


class Trained:
    """A model after some steps, with the weights before the last of them."""

    def __init__(self, kind: str, steps: int = 4, clip: Any = None, **options: Any) -> None:
        self.model = built(matrices if kind == "Muon" else mlp)
        make: Any = classes()[kind]
        self.optimizer: Optimizer = make(self.model.parameters(), **{"lr": 0.05, **options})
        self.clip: Callable[[Any], object] = clip or (lambda params: None)
        self.kind = kind
        for _ in range(steps):
            self.before = self.weights()
            self.step()

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def step(self) -> None:
        """Train on all of the data, as a training loop does."""

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(vectors().inputs), vectors().target)
            loss.backward()  # type: ignore[no-untyped-call]
            self.clip(self.model.parameters())
            return float(loss.detach())

        with torch.enable_grad():
            self.optimizer.step(closure)

    @property
    def saved(self) -> SavedOptimizer:
        names = [n for n, _ in self.model.named_parameters()]
        groups = tuple(
            Group(tuple(names), {k: v for k, v in g.items() if k != "params"})
            for g in self.optimizer.state_dict()["param_groups"]
        )
        state = {
            n: dict(self.optimizer.state[p])
            for n, p in self.model.named_parameters()
            if p in self.optimizer.state
        }
        return SavedOptimizer(self.kind, groups, state, "test", True)

    def problem(self, sizes: tuple[int, ...] = (7,), **training: Any) -> Problem:
        return Problem.of(
            self.model, named("cross_entropy", {}), cut(vectors(), sizes), training=training
        )


RECOVERED: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "betas": (0.5, 0.6)}),
    ("Adam", {"maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"eps": 1e-2}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.5, "amsgrad": True}),
    ("AdamW", {"weight_decay": 0.5, "maximize": True}),
    ("Adamax", {}),
    ("Adamax", {"weight_decay": 0.1, "maximize": True}),
    ("RAdam", {"betas": (0.9, 0.99)}),
    ("RAdam", {"weight_decay": 0.5, "decoupled_weight_decay": True, "betas": (0.5, 0.9)}),
    ("RAdam", {"weight_decay": 0.5, "maximize": True}),
    ("Rprop", {}),
    ("Rprop", {"maximize": True}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "maximize": True}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "maximize": True}),
]


@pytest.mark.parametrize(("kind", "options"), RECOVERED)
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_the_last_update(kind: str, options: dict[str, Any], steps: int) -> None:
    trained = Trained(kind, steps, **options)
    after = trained.weights()
    found = last_updates(trained.saved, after)
    assert set(found) == set(after)
    for name, update in found.items():
        assert update is not None
        true = after[name] - trained.before[name]
        assert float((update - true).norm()) <= 1e-6 * float(true.norm())


def test_the_last_update_of_a_capturable_tensor_rate() -> None:
    trained = Trained("Adam", lr=torch.tensor(0.05))
    after = trained.weights()
    for name, update in last_updates(trained.saved, after).items():
        assert update is not None
        assert torch.allclose(update, after[name] - trained.before[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {}),
        ("Adagrad", {}),
        ("NAdam", {}),
        ("LBFGS", {}),
    ],
)
def test_what_the_state_does_not_determine(kind: str, options: dict[str, Any]) -> None:
    trained = Trained(kind, **options)
    found = last_updates(trained.saved, trained.weights())
    assert set(found) == set(trained.weights())
    assert all(update is None for update in found.values())


def test_a_parameter_without_state() -> None:
    trained = Trained("Adam")
    saved = trained.saved
    del saved.state["0.bias"]
    found = last_updates(saved, trained.weights())
    assert found["0.bias"] is None
    assert found["0.weight"] is not None


def check_next(trained: Trained, problem: Problem) -> dict[str, Tensor]:
    before = trained.weights()
    saved = trained.saved
    updates, gradients = next_updates(problem, saved)
    assert all(torch.equal(t, before[n]) for n, t in trained.weights().items())
    assert all(p.grad is not None for p in trained.model.parameters())  # the trainer's own
    trained.step()
    for name, after in trained.weights().items():
        assert torch.equal(updates[name], after - before[name])
    return gradients


@pytest.mark.parametrize("kind", sorted(classes()))
def test_the_next_update_is_the_trainers(kind: str) -> None:
    trained = Trained(kind)
    problem = trained.problem()
    expected = problem.layout.named(problem.gradient())
    gradients = check_next(trained, problem)
    for name, g in gradients.items():
        assert torch.allclose(g, expected[name], rtol=1e-12)


@pytest.mark.parametrize("kind", sorted(classes()))
def test_the_first_update(kind: str) -> None:
    trained = Trained(kind, steps=0)
    updates, _ = next_updates(trained.problem(), trained.saved)
    before = trained.weights()
    trained.step()
    for name, after in trained.weights().items():
        assert torch.equal(updates[name], after - before[name])


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs(line_search: str | None) -> None:
    trained = Trained("LBFGS", steps=2, line_search_fn=line_search, max_iter=5)
    check_next(trained, trained.problem())


def test_clipping_by_norm() -> None:
    def clip(params: Any) -> None:
        nn.utils.clip_grad_norm_(params, 0.01)

    trained = Trained("SGD", clip=clip, momentum=0.9)
    gradients = check_next(trained, trained.problem(grad_clip=0.01))
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert float(norm) > 0.02  # the gradient itself is told, not the clipped one


def test_clipping_by_value() -> None:
    def clip(params: Any) -> None:
        nn.utils.clip_grad_value_(params, 0.005)

    trained = Trained("Adam", clip=clip)
    check_next(trained, trained.problem(grad_clip_value=0.005))


def test_batches_are_accumulated() -> None:
    trained = Trained("SGD", momentum=0.9)
    one, _ = next_updates(trained.problem(), trained.saved)
    cut_up, _ = next_updates(trained.problem((3, 3, 1)), trained.saved)
    assert all(torch.allclose(one[n], cut_up[n], rtol=1e-12) for n in one)


def test_a_frozen_parameter_of_the_model_does_not_move() -> None:
    trained = Trained("SGD")
    saved = trained.saved
    some = SavedOptimizer("SGD", (Group(("2.weight",), saved.groups[0].options),), {}, "test", True)
    updates, gradients = next_updates(trained.problem(), some)
    assert set(updates) == set(gradients) == {"2.weight"}
