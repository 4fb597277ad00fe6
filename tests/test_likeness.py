"""A state that is another tensor's is told where shapes do not, and a right one is not."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from questions import ask, classify, inputs, mlp
from torch import Tensor, nn

from curvcli.analyses.ratio import Ratio
from curvcli.analyses.stability import Stability
from curvcli.likeness import swapped
from curvcli.load.optimizer import resolve
from curvcli.optimizer import Group, SavedOptimizer
from curvcli.problem import Problem

OPTIMIZERS = [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax]


def trained(
    kind: type[torch.optim.Optimizer], seed: int, backwards: bool, steps: int = 20
) -> Problem:
    """Train an MLP with three hidden layers of one shape, given to its optimizer in some order."""
    model = mlp(24, 24, 24, 24, 3, act=nn.ReLU, seed=seed)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    order: Iterable[nn.Module] = reversed(layers[:3]) if backwards else layers[:3]
    params = [p for m in (*order, layers[3]) for p in m.parameters()]
    optimizer = kind(params, lr=1e-3)  # type: ignore[call-arg]
    p = classify(model, inputs(200, 24, seed=seed))
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = p.sampled(32, rng)
        optimizer.zero_grad()
        torch.autograd.backward(chosen.share(chosen.batches[0]))
        optimizer.step()
    saved = resolve(optimizer.state_dict(), model, {})
    return replace(p, optimizer=lambda: saved)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_reversed_order_is_undecided(kind: type[torch.optim.Optimizer], seed: int) -> None:
    right, wrong = (ask(Ratio(), trained(kind, seed, backwards)) for backwards in (False, True))
    assert not [c for c in right.checks if c.name == "optimizer state"]
    assert any("only their order in the file" in note for note in right.notes)
    (check,) = [c for c in wrong.checks if c.name == "optimizer state"]
    assert check.status == "undecided"
    assert "0.weight and 4.weight" in check.message


def test_stability_doubts_it_too() -> None:
    right, wrong = (
        ask(Stability(top=1), trained(torch.optim.Adam, 0, backwards, steps=200))
        for backwards in (False, True)
    )
    assert [c.name for c in wrong.checks if c not in right.checks].count("optimizer state") == 1


def state(*squares: Tensor) -> SavedOptimizer:
    names = tuple("abc"[: len(squares)])
    entries = {n: {"exp_avg_sq": s} for n, s in zip(names, squares, strict=True)}
    return SavedOptimizer("Adam", (Group(names, {}),), entries, "test", True, alike=(names,))


def test_only_two_that_fit_each_other_are_swapped() -> None:
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(20, 20, generator=g) for _ in range(3))
    assert swapped(state(a**2, b**2, c**2), {"a": a, "b": b, "c": c}) == []
    assert swapped(state(b**2, a**2, c**2), {"a": a, "b": b, "c": c}) == [("a", "b")]
    # Ranks know no scale, and no outlier.
    assert swapped(state(1e-9 * b**4, 1e9 * a**2, c**2), {"a": a, "b": b, "c": c}) == [("a", "b")]
    # Neither fits anything: there is nothing to say.
    assert swapped(state(c**2, (a * b) ** 2), {"a": a, "b": b}) == []
    assert swapped(state(b[:7, :7] ** 2, a[:7, :7] ** 2), {"a": a[:7, :7], "b": b[:7, :7]}) == []
    assert swapped(replace(state(b**2, a**2), alike=()), {"a": a, "b": b}) == []
    assert swapped(state(b**2, a**2), {"a": a}) == []


def test_what_says_little_of_past_gradients_is_not_compared() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, 20, generator=g) for _ in range(2))
    wrong, gradients = state(b**2, a**2), {"a": a, "b": b}
    for kind, options, step, found in (
        ("Adam", {"weight_decay": 0.0}, 5, 1),
        ("Adam", {"weight_decay": 0.1}, 5, 0),
        ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, 5, 1),
        ("AdamW", {"weight_decay": 0.1}, 5, 1),
        ("AdamW", {"weight_decay": 0.1}, 4, 0),
    ):
        entries = {n: {**s, "step": torch.tensor(float(step))} for n, s in wrong.state.items()}
        groups = (Group(("a", "b"), options),)
        said = swapped(replace(wrong, kind=kind, groups=groups, state=entries), gradients)
        assert len(said) == found, (kind, options, step)


def test_states_without_a_pattern() -> None:
    zero = torch.zeros(10, 10)
    assert swapped(state(zero, zero), {"a": zero, "b": zero}) == []
    assert swapped(SavedOptimizer("SGD", (), {}, "test", False, alike=(("a", "b"),)), {}) == []
