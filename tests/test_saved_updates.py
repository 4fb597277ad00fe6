"""Trained, saved, reloaded: the next update is the trainer's bit for bit, the last one is right."""

import io
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import built
from torch import Tensor, nn
from torch.nn import functional
from zoo import Words, convolutional, images, mlp, sentences, vectors

from curvcli.batches import Batch
from curvcli.errors import CurvError
from curvcli.load.loss import named
from curvcli.load.optimizer import resolve
from curvcli.optimizer import classes
from curvcli.problem import Problem
from curvcli.updates import last_updates, next_updates

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "mlp": (mlp, vectors),
    "convolution": (convolutional, images),
    "tied tokens": (Words, sentences),
}
Groups = list[dict[str, Any]]


def split(model: nn.Module, first: Callable[[str, Tensor], bool], *decays: float) -> Groups:
    pairs = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    parts = [[p for n, p in pairs if first(n, p)], [p for n, p in pairs if not first(n, p)]]
    return [{"params": part, "weight_decay": w} for part, w in zip(parts, decays, strict=True)]


def shuffled(model: nn.Module) -> Groups:
    params = list(model.parameters())
    random.Random(3).shuffle(params)
    return [{"params": params}]


ORDERS: dict[str, Callable[[nn.Module], Groups]] = {
    "single": lambda model: [{"params": list(model.parameters())}],
    "nanoGPT": lambda model: split(model, lambda n, p: p.ndim >= 2, 0.1, 0.0),
    "HF": lambda model: split(model, lambda n, p: p.ndim > 1 or "bias" not in n, 0.1, 0.0),
    "timm": lambda model: split(model, lambda n, p: p.ndim <= 1, 0.0, 0.1),
    "shuffled": shuffled,
}
DETERMINED: dict[str, dict[str, Any]] = {
    "Adam": {}, "AdamW": {}, "Adamax": {}, "RAdam": {}, "Rprop": {},
    "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9},
}  # fmt: skip


class Trainer:
    """A training loop in float32, as people write it."""

    def __init__(self, kind: str, name: str, order: str, frozen: bool = False) -> None:
        make, batch = MODELS[name]
        self.make, self.name, self.kind, self.frozen = make, name, kind, frozen
        self.batch = batch().map(lambda t: t.float() if t.is_floating_point() else t)
        self.model = self.fresh()
        groups = ORDERS[order](self.model)
        if kind == "Muon":
            groups = [{"params": [p for p in self.model.parameters() if p.ndim == 2]}]
        if kind == "Rprop":
            groups = [{"params": g["params"]} for g in groups]
        build: Any = classes()[kind]
        options: dict[str, Any] = DETERMINED.get(kind, {})
        self.optimizer: torch.optim.Optimizer = build(groups, lr=0.01, **options)
        for _ in range(3):
            self.before = self.weights()
            self.step()

    def fresh(self) -> nn.Module:
        model = built(self.make).float().eval()
        if self.frozen:
            next(iter(model.parameters())).requires_grad_(False)
        return model

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def step(self) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            output = self.model(self.batch.inputs)
            if self.name == "tied tokens":
                output = output.flatten(0, -2)
            loss = functional.cross_entropy(output, self.batch.target.flatten())
            torch.autograd.backward(loss)
            return loss

        with torch.enable_grad():
            self.optimizer.step(closure)  # type: ignore[arg-type]

    def reloaded(self, **spec: Any) -> Problem:
        """Save and load everything, and find the parameters of the optimizer's state."""
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        model = self.fresh()
        model.load_state_dict(weights)
        saved = resolve(state, model, spec)
        return Problem.of(model, named("cross_entropy", {}), [self.batch], optimizer=lambda: saved)


def check(trainer: Trainer, problem: Problem) -> None:
    saved = problem.optimizer()
    assert saved is not None
    assert saved.kind == trainer.kind
    now = trainer.weights()
    for name, update in last_updates(saved, now).items():
        true = now[name].double() - trainer.before[name].double()
        if trainer.kind in DETERMINED:
            assert update is not None
            # In float32 the difference of the weights is itself good to their last bit.
            room = 1e-6 * float(true.norm()) + 1e-7 * float(now[name].norm())
            assert float((update - true).norm()) <= room
        else:
            assert update is None
    updates, _ = next_updates(problem, saved)
    trainer.step()
    for name, after in trainer.weights().items():
        moved = updates[name] if name in updates else torch.zeros_like(after)
        assert torch.equal(moved, after - now[name]), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", sorted(classes()))
def test_every_optimizer(kind: str, name: str) -> None:
    trainer = Trainer(kind, name, "single")
    check(trainer, trainer.reloaded())


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
@pytest.mark.parametrize("order", ["nanoGPT", "HF", "timm"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop", "NAdam"])
def test_every_trainers_order(kind: str, name: str, order: str, frozen: bool) -> None:
    trainer = Trainer(kind, name, order, frozen)
    check(trainer, trainer.reloaded())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_shuffled_on_purpose(kind: str, name: str) -> None:
    trainer = Trainer(kind, name, "shuffled")
    with pytest.raises(CurvError) as refused:
        trainer.reloaded()
    assert refused.value.code == "E_OPTIMIZER"
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    order = [names[id(p)] for p in trainer.optimizer.param_groups[0]["params"]]
    check(trainer, trainer.reloaded(groups=[order]))


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "LBFGS"])
def test_micro_batches_that_are_summed(kind: str) -> None:
    """A loop that does not divide by their number takes a gradient that many times as large."""
    trainer = Trainer(kind, "mlp", "single")
    problem = replace(trainer.reloaded(), training={"accumulate": 4})
    saved = problem.optimizer()
    assert saved is not None
    _, one = next_updates(trainer.reloaded(), saved)
    updates, gradients = next_updates(problem, saved)
    before = trainer.weights()

    def closure() -> Tensor:
        trainer.optimizer.zero_grad()
        total = torch.zeros(())
        for _ in range(4):  # the same examples every time stand for any of the same gradient
            output = trainer.model(trainer.batch.inputs)
            loss = functional.cross_entropy(output, trainer.batch.target)
            torch.autograd.backward(loss)
            total = total + loss.detach()
        return total

    with torch.enable_grad():
        trainer.optimizer.step(closure)  # type: ignore[arg-type]
    for name, after in trainer.weights().items():
        assert torch.allclose(gradients[name], 4 * one[name], rtol=1e-5)
        assert torch.allclose(updates[name], after - before[name], rtol=1e-3, atol=1e-6)
