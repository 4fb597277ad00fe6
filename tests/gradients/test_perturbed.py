"""L at displaced parameters: batched and looped evaluations are the same."""

import pytest
import torch
from oracles import rng
from torch import Tensor, nn
from zoo import ZOO, mlp, posed, vectors

from curvcli.gradients.perturbed import Perturbed
from curvcli.gradients.places import Places
from curvcli.problem import Problem

BATCHED = ("mlp", "convolution, eval", "layer norm", "fused attention", "tied, ignored tokens")


def directly(problem: Problem, name: str, displacement: Tensor) -> float:
    """Change the parameter itself and evaluate L as training would."""
    p = problem.params[name]
    saved = p.data
    p.data = saved + displacement
    try:
        total = weight = 0.0
        with problem.engaged(), torch.no_grad():
            for batch in problem.batches:
                terms = problem.terms(batch)
                total, weight = total + float(terms.total), weight + float(terms.weight)
    finally:
        p.data = saved
    return total / weight


def displaced(problem: Problem, name: str, count: int = 3) -> Tensor:
    shape = (count, *problem.params[name].shape)
    return 0.1 * torch.randn(shape, generator=rng(), dtype=torch.float64)


def moved(evaluate: Perturbed, name: str, d: Tensor) -> Tensor:
    """Evaluate at displacements (k, *shape)."""
    places = Places(d.shape[1:], d.reshape(len(d), -1), ())
    return evaluate.at(name, places, torch.arange(len(d)), torch.ones(len(d), dtype=torch.float64))


@pytest.mark.parametrize("name", ZOO)
def test_values(name: str) -> None:
    problem = ZOO[name]()
    with problem.engaged():
        evaluate = Perturbed(problem)
        for parameter in problem.names:
            d = displaced(problem, parameter)
            found = moved(evaluate, parameter, d)
            assert found.dtype == torch.float64
            expected = [directly(problem, parameter, each) for each in d]
            assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert evaluate.evaluations == 3 * len(problem.names)
    if name in BATCHED:
        assert evaluate.why_looped == ""


@pytest.mark.parametrize("memory", [0, 1e5, 1e12])
def test_the_memory_budget_changes_nothing(memory: float) -> None:
    problem = posed(mlp, vectors())
    d = displaced(problem, "0.weight", 150)
    with problem.engaged():
        whole = moved(Perturbed(problem), "0.weight", d)
        assert torch.allclose(moved(Perturbed(problem, memory), "0.weight", d), whole, rtol=1e-14)


class Deciding(nn.Module):
    """Branches on a value, which cannot be batched."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out if out.sum() > 0 else 2 * out


def test_what_cannot_be_batched_is_looped() -> None:
    problem = posed(Deciding, vectors())
    with problem.engaged():
        evaluate = Perturbed(problem)
        d = displaced(problem, "layer.weight")
        found = moved(evaluate, "layer.weight", d)
    assert "data-dependent control flow" in evaluate.why_looped
    assert found.tolist() == pytest.approx([directly(problem, "layer.weight", e) for e in d])


class Forgetful(nn.Module):
    """Keeps a number of its own under vmap: each evaluation sees the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        if torch._C._functorch.is_batchedtensor(out):
            out = out + 1e-6 * torch.arange(2)
        return out


def test_batched_values_that_differ_are_not_used() -> None:
    problem = posed(Forgetful, vectors())
    with problem.engaged():
        evaluate = Perturbed(problem)
        d = displaced(problem, "layer.weight")
        found = moved(evaluate, "layer.weight", d)
    assert evaluate.why_looped == "batched evaluations differ from plain ones"
    assert found.tolist() == pytest.approx(
        [directly(problem, "layer.weight", e) for e in d], rel=1e-14
    )


def test_parameters_are_left_alone() -> None:
    problem = posed(mlp, vectors())
    before = problem.vector()
    with problem.engaged():
        moved(Perturbed(problem), "0.bias", displaced(problem, "0.bias"))
    assert torch.equal(problem.vector(), before)
