"""Diagonal blocks equal those of the dense matrix, differentiate less, and leave no trace."""

import gc
from collections.abc import Callable

import pytest
import torch
from oracles import by_products, dense_gauss_newton, dense_hessian, gap, rng
from torch import Tensor
from zoo import ZOO, Distances, mlp, posed, unchecked, vectors

from curvcli.curvature.blocks import Block, restricted
from curvcli.curvature.fisher import EmpiricalFisher
from curvcli.curvature.gauss_newton import GaussNewton
from curvcli.curvature.hessian import METHODS
from curvcli.curvature.products import ByBatch, Kept
from curvcli.linalg.operator import LinearOperator, Mapped, Restricted, normal
from curvcli.problem import Problem

EXACT = 1e-9


def dense_block(matrix: Tensor, problem: Problem, names: list[str]) -> Tensor:
    rows = torch.cat([torch.arange(matrix.shape[0])[problem.layout.slices[n]] for n in names])
    return matrix[rows][:, rows]


def near(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    """Compare a block by the size of the whole: that of a tensor that hardly matters is tiny."""
    return float((a - b).abs().max()) < EXACT * float(scale.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_every_block_of_the_zoo(name: str) -> None:
    problem = ZOO[name]()
    H, G = dense_hessian(unchecked(name)), dense_gauss_newton(unchecked(name))
    kept, rebuilt, ggn = Kept(problem), Kept(problem, 0), GaussNewton(problem)
    for chosen in problem.names:
        block = restricted(kept, problem, [chosen])
        assert isinstance(block, Block)
        found = by_products(block)
        assert near(found, dense_block(H, problem, [chosen]), H)
        v = normal(block.like, rng())
        assert torch.equal(restricted(rebuilt, problem, [chosen]).matvec(v), block.matvec(v))
        found = by_products(restricted(ggn, problem, [chosen]))
        assert near(found, dense_block(G, problem, [chosen]), G)


@pytest.mark.parametrize("method", ["kept", "forward", "linearize", "differences"])
@pytest.mark.parametrize("names", [["2.weight", "0.weight"], ["0.bias", "2.weight"], ["2.bias"]])
def test_several_parameters_in_any_order(method: str, names: list[str]) -> None:
    problem = ZOO["mlp"]()
    H = dense_block(dense_hessian(problem), problem, names)
    block = restricted(METHODS[method](problem, None), problem, names)
    assert isinstance(block, Restricted if method == "differences" else LinearOperator)
    assert block.size == len(H)
    assert gap(by_products(block), H) < (1e-6 if method == "differences" else EXACT)


def test_other_operators() -> None:
    problem = ZOO["mlp"]()
    H = dense_hessian(problem)
    whole = Mapped(lambda v: H @ v, problem.like)
    for names in (["0.bias", "2.weight"], ["2.bias", "0.bias"]):
        found = by_products(restricted(whole, problem, names))
        assert gap(found, dense_block(H, problem, names)) < 1e-15


def test_outputs_that_are_differenced() -> None:
    problem = posed(Distances, vectors())
    found = by_products(restricted(GaussNewton(problem), problem, ["centres"]))
    assert gap(found, dense_gauss_newton(problem)) < 1e-6


def deep() -> Problem:
    def make() -> torch.nn.Module:
        layers = [mlp() for _ in range(4)]
        return torch.nn.Sequential(*(torch.nn.Sequential(m, torch.nn.Linear(2, 4)) for m in layers))

    return posed(make, vectors())


def nodes(call: Callable[[], Tensor]) -> int:
    """Count the operations of a product."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(e.count for e in seen.key_averages() if e.key.startswith("aten::"))


@pytest.mark.parametrize("make", [Kept, GaussNewton, EmpiricalFisher])
def test_the_last_layer_costs_its_own_paths(make: Callable[[Problem], ByBatch]) -> None:
    problem = deep()
    whole = make(problem)
    block = restricted(whole, problem, problem.names[-2:])
    v, u = normal(whole.like, rng()), normal(block.like, rng())
    assert nodes(lambda: block.matvec(u)) < nodes(lambda: whole.matvec(v)) / 4


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


@pytest.mark.parametrize("make", [Kept, GaussNewton, EmpiricalFisher])
def test_a_thousand_products_leave_no_tensors_behind(make: Callable[[Problem], ByBatch]) -> None:
    problem = posed(mlp, vectors(), (7,))
    whole = make(problem)
    for operator in (whole, restricted(whole, problem, ["2.weight"])):
        v = normal(operator.like, rng())
        operator.matvec(v)
        before = alive()
        for _ in range(1000):
            operator.matvec(v)
        assert alive() == before
