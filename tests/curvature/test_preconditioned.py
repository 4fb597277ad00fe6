"""The curvature that an optimizer meets, against dense matrices put together by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import by_products, dense_hessian, gap, rng
from torch import Tensor
from zoo import unchecked

from curvcli.curvature.preconditioned import preconditioned
from curvcli.curvature.products import Kept
from curvcli.dynamics.laws import Stepped, reference, stepped
from curvcli.load.optimizer import resolve
from curvcli.problem import Problem

MODELS = ("mlp", "convolution, eval", "fused attention", "tied, ignored tokens")


def trained(problem: Problem, kind: str, split: bool, **options: Any) -> dict[str, Stepped]:
    """Take steps along random gradients, with the last tensor in a group of its own."""
    params = list(problem.params.values())
    groups: list[dict[str, Any]] = [{"params": params}]
    if split:
        groups = [{"params": params[:-1]}, {"params": params[-1:], "lr": 0.03, "weight_decay": 0.4}]
    make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    optimizer = make(groups, **{"lr": 0.01, **options})
    before = [p.detach().clone() for p in params]
    for seed in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=rng(seed), dtype=torch.float64)
        optimizer.step()
    for p, value in zip(params, before, strict=True):
        p.data.copy_(value)
        p.grad = None
    return stepped(resolve(optimizer.state_dict(), problem.model, {"class": kind}))


@pytest.mark.parametrize("split", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
        ("Adam", {"weight_decay": 0.2, "eps": 1e-3}),
        ("AdamW", {"weight_decay": 0.2}),
        ("RMSprop", {"weight_decay": 0.2, "momentum": 0.5, "centered": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_matrix_is_the_one_put_together_by_hand(
    name: str, kind: str, options: dict[str, Any], split: bool
) -> None:
    problem = unchecked(name)
    laws = trained(problem, kind, split, **options)
    strongest = reference(laws)
    P, relative, coupled, decay = [], [], [], []
    for key, p in problem.params.items():
        law, found = laws[key].law, laws[key].preconditioner
        P.append(torch.ones_like(p).flatten() if found is None else found.flatten())
        relative += [law.scale / strongest.scale] * p.numel()
        coupled += [law.coupled] * p.numel()
        decay += [law.decay / strongest.scale] * p.numel()
    half = (diagonal(relative) @ torch.diag(1 / torch.cat(P))).sqrt()
    sign = -1 if options.get("maximize") else 1
    expected = half @ (sign * dense_hessian(problem) + diagonal(coupled)) @ half + diagonal(decay)
    operator = preconditioned(Kept(problem), problem.layout, laws)
    assert gap(by_products(operator), expected.detach()) < 1e-10


def diagonal(entries: list[float]) -> Tensor:
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def test_a_gradient_that_is_a_sum_counts_as_often() -> None:
    problem = unchecked("mlp")
    laws = trained(problem, "SGD", False, weight_decay=0.5)
    one, four = (
        by_products(preconditioned(Kept(problem), problem.layout, laws, n)) for n in (1.0, 4.0)
    )
    half = 0.5 * torch.eye(len(one), dtype=torch.float64)
    assert gap(four - half, 4 * (one - half)) < 1e-12


def test_learning_rates_of_zero_are_taken_for_equal() -> None:
    problem = unchecked("mlp")
    laws = trained(problem, "SGD", False, lr=0.0)
    operator = preconditioned(Kept(problem), problem.layout, laws)
    assert gap(by_products(operator), dense_hessian(problem)) < 1e-12
