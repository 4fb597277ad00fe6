"""Every way to a Hessian-vector product gives the dense Hessian's, and leaves no trace."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import by_products, dense_hessian, gap, rng
from torch import Tensor, nn
from zoo import (
    ZOO,
    Bagged,
    Distances,
    Recurrent,
    classes,
    convolutional,
    images,
    mlp,
    posed,
    sequences,
    unchecked,
    vectors,
)

from curvcli.batches import Batch, Terms
from curvcli.curvature.hessian import AGREE, METHODS, TITLES, hessian
from curvcli.curvature.memory import _Allocations as Allocations
from curvcli.curvature.products import Differences, Kept, Products
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.problem import Problem
from curvcli.work import Method, Work

# Tracing takes about a second each, so that it is tried on some kinds only.
TRACED = ("linear regression", "relu in place", "fused attention", "weight norm")
NO_FORWARD = ("convolution, train", "checkpointed")
EXACT = 1e-8
ROUGH = 1e-5


def check(operator: Products, H: Tensor, tolerance: float) -> None:
    for seed in range(3):
        v = normal(operator.like, rng(seed))
        assert gap(operator.matvec(v), H @ v) <= tolerance


@pytest.mark.parametrize("name", ZOO)
def test_every_method_against_the_dense_hessian(name: str) -> None:
    H = dense_hessian(unchecked(name))
    assert gap(H, H.T) < 1e-12
    problem = ZOO[name]()
    exact = ["kept", "rebuilt"]
    exact += [] if name in NO_FORWARD else ["forward"]
    exact += ["linearize"] if name in TRACED else []
    for method in exact:
        check(METHODS[method](problem, None), H, EXACT)
    check(Differences(problem), H, ROUGH)


STANDS_IN = {
    **dict.fromkeys(
        ("multihead attention", "transformer encoder", "fused attention"),
        "attention by matrix products and a softmax, not fused",
    ),
    **dict.fromkeys(
        ("gru", "lstm"), "recurrent layers by torch's own kernels, not cuDNN's or oneDNN's"
    ),
    "sparse embedding": "gradients of sparse embeddings as dense ones",
    "weight norm": "weight normalisation by its formula",
}


@pytest.mark.parametrize("name", ZOO)
def test_auto_works_on_every_kind(name: str) -> None:
    chosen = hessian(ZOO[name](), Work(rng()))
    assert chosen.method == "kept"
    assert chosen.notes == (STANDS_IN[name],) if name in STANDS_IN else not chosen.notes
    assert chosen.agreement is not None
    assert chosen.agreement <= AGREE
    H = dense_hessian(unchecked(name))
    assert gap(by_products(chosen.operator), H) <= EXACT


def test_linear_regression_in_closed_form() -> None:
    problem = ZOO["linear regression"]()
    X = torch.cat([b.inputs for b in problem.batches])
    X1 = torch.cat([X, torch.ones(7, 1).double()], dim=1)
    assert gap(by_products(Kept(problem)), 2 * X1.T @ X1 / 7) < 1e-14


@pytest.mark.parametrize("make", [Bagged, Distances])
def test_without_a_second_derivative(make: Callable[[], nn.Module]) -> None:
    batch = Batch(classes(5, 7, 4, seed=1), classes(2, 7), 7) if make is Bagged else vectors()
    chosen = hessian(posed(make, batch), Work(rng()))
    assert chosen.method == "differences"
    (why,) = (n for n in chosen.notes if n.startswith(f"not by {TITLES['kept']}: "))
    assert "is not implemented" in why
    assert "good to a few digits" in chosen.notes[-1]
    again = Differences(posed(make, batch), 1e-4)
    v = normal(again.like, rng())
    assert gap(chosen.operator.matvec(v), again.matvec(v)) < 1e-4
    with pytest.raises(CurvError, match="--hvp kept fails on this model") as failed:
        hessian(posed(make, batch), Work(rng(), method="kept"))
    assert failed.value.code == "E_NO_HVP"


class Cube(torch.autograd.Function):
    """x^3 with a right derivative and a wrong second one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x.detach() ** 2


class Cubed(nn.Module):
    def __init__(self, right: bool = False) -> None:
        super().__init__()
        self.right = right
        self.inner, self.outer = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        cube: Any = Cube.apply
        out: Tensor = self.outer(h**3 if self.right else cube(h))
        return out


def test_a_wrong_second_derivative_is_noticed() -> None:
    H = dense_hessian(posed(lambda: Cubed(right=True), vectors()))
    chosen = hessian(posed(Cubed, vectors()), Work(rng()))
    assert chosen.method == "differences"
    assert "differs from a difference of gradients by" in chosen.notes[0]
    assert gap(by_products(chosen.operator), H) < ROUGH
    insisted = hessian(posed(Cubed, vectors()), Work(rng(), method="kept"))
    assert insisted.agreement is not None
    assert insisted.agreement > AGREE
    assert insisted.notes[0].startswith("this product is doubtful")


class Rooted(nn.Module):
    """|w|^1.5 is smooth once and not twice at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :2] * self.w.abs() ** 1.5).sum(dim=1)


def test_a_product_that_is_not_finite() -> None:
    problem = posed(Rooted, Batch(drawn := vectors().inputs, drawn[:, 0], 7), loss="mse_loss")
    with pytest.raises(CurvError, match="not finite") as failed:
        Kept(problem).matvec(torch.ones(2).double())
    assert failed.value.code == "E_NONFINITE"
    chosen = hessian(problem, Work(rng()))
    assert chosen.method == "differences"
    assert "not finite" in chosen.notes[0]


def test_loss_that_does_not_bend() -> None:
    problem = Problem.of(
        posed(lambda: nn.Linear(4, 1), vectors()).model,
        lambda output, batch: Terms(output.sum(), 1.0),
        [vectors()],
    )
    chosen = hessian(problem, Work(rng()))
    assert chosen.agreement == 0.0
    assert torch.equal(by_products(chosen.operator), torch.zeros(5, 5).double())


@pytest.mark.parametrize("name", ["tied, ignored tokens", "convolution, eval", "lstm"])
def test_the_memory_budget_changes_nothing(name: str) -> None:
    problem = ZOO[name]()
    whole = Kept(problem)
    room = whole.bytes_per_batch
    v = normal(whole.like, rng())
    assert len(whole.graphs) == 3
    for memory, kept in ((0, 0), (room // 2, 0), (room, 1), (2.5 * room, 2), (1e12, 3)):
        operator = Kept(problem, memory)
        assert len(operator.graphs) == kept
        assert torch.equal(operator.matvec(v), whole.matvec(v))


def test_what_is_not_kept_is_told() -> None:
    told: list[str] = []
    chosen = hessian(ZOO["mlp"](), Work(rng(), memory=0, tell=told.append))
    assert chosen.method == "kept"
    assert "graphs of 0 of 3 batches are kept" in told[0]
    assert chosen.notes == ()


@pytest.mark.parametrize("method", ["kept", "rebuilt", "forward", "differences"])
def test_two_products_are_equal_bit_for_bit(method: str) -> None:
    operator = METHODS[method](ZOO["transformer encoder"](), None)
    v = normal(operator.like, rng())
    first = operator.matvec(v)
    operator.matvec(2 * v)
    assert torch.equal(operator.matvec(v), first)
    assert not first.requires_grad


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


@pytest.mark.parametrize(
    ("method", "products"),
    [("kept", 1000), ("rebuilt", 50), ("forward", 50), ("linearize", 50), ("differences", 50)],
)
def test_products_leave_no_tensors_behind(method: str, products: int) -> None:
    operator = METHODS[method](ZOO["relu in place"](), 1e12)
    v = normal(operator.like, rng())
    operator.matvec(v)
    before = alive()
    for _ in range(products):
        operator.matvec(v)
    assert alive() == before


@pytest.mark.parametrize(
    ("method", "products"), [("kept", 1000), ("rebuilt", 50), ("differences", 50)]
)
def test_products_leave_no_storage_behind(method: str, products: int) -> None:
    problem = ZOO["relu in place"]()
    with Allocations() as seen:
        operator = METHODS[method](problem, 1e12)
        v = normal(operator.like, rng())
        operator.matvec(v)
        before = seen.held
        for _ in range(products):
            operator.matvec(v)
        assert seen.held == before
        assert seen.most > before
        del operator, v
        gc.collect()
        assert seen.held < before


def state(problem: Problem) -> list[Any]:
    """Take down everything that must not change."""
    model = problem.model
    return [
        [(id(p), p.data_ptr(), p.detach().clone(), p.requires_grad) for p in model.parameters()],
        [(id(b), b.detach().clone()) for b in model.buffers()],
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [set(vars(m)) for m in model.modules()],
        torch.random.get_rng_state(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch._C._get_flash_sdp_enabled(),
        [m.sparse for m in model.modules() if isinstance(m, nn.Embedding)],
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


KINDS = [
    "convolution, train", "lstm", "multihead attention", "sparse embedding", "frozen and unused",
    "weight norm",
]  # fmt: skip


def unusual(problem: Problem) -> Problem:
    """Put the model into a state that nobody would guess."""
    for i, module in enumerate(problem.model.modules()):
        module.training = i % 2 == 0
    first = next(iter(problem.params.values()))
    first.grad = torch.ones_like(first)
    return problem


@pytest.mark.parametrize("name", KINDS)
def test_everything_is_left_as_found(name: str) -> None:
    problem = unusual(ZOO[name]())
    before = state(problem)
    for method in ("kept", "differences") if name in NO_FORWARD else ("kept", "forward"):
        operator = METHODS[method](problem, 0)
        operator.matvec(normal(operator.like, rng()))
        assert same(state(problem), before)
    hessian(problem, Work(rng()))
    assert same(state(problem), before)


class Failing(Recurrent):
    """Fails at a given call of forward."""

    calls = 0
    fails_at = 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.dropped = torch.rand(3)  # a model that draws random numbers
        if self.calls >= self.fails_at:
            raise RuntimeError("out of luck")
        return super().forward(x)


@pytest.mark.parametrize("method", ["rebuilt", "forward", "differences"])
def test_everything_is_left_as_found_after_an_exception(method: Method) -> None:
    problem = unusual(posed(lambda: Failing(nn.LSTM), sequences(3)))
    operator = METHODS[method](problem, 0)
    operator.matvec(normal(operator.like, rng()))
    model = problem.model
    assert isinstance(model, Failing)
    model.fails_at = model.calls + 3
    before = state(problem)
    with pytest.raises(RuntimeError, match="out of luck"):
        operator.matvec(normal(operator.like, rng()))
    assert same(state(problem), before)


def test_statistics_in_train_mode_are_those_of_the_batch() -> None:
    problem = posed(convolutional, images(), (7,), mode="train")
    evaluated = posed(convolutional, images(), (7,))
    H, other = dense_hessian(problem), dense_hessian(evaluated)
    assert gap(H, other) > 0.01
    assert gap(by_products(Kept(problem)), H) < EXACT


def test_products_do_not_depend_on_the_batches() -> None:
    H = dense_hessian(posed(mlp, vectors(), (7,)))
    for sizes in ((3, 4), (6, 1), (1,) * 7):
        assert gap(by_products(Kept(posed(mlp, vectors(), sizes))), H) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_choose_a_step_that_suits(dtype: torch.dtype) -> None:
    H = dense_hessian(posed(mlp, vectors()))
    operator = Differences(posed(mlp, vectors()).to(dtype))
    found = by_products(operator).double()
    assert gap(found, H) < (1e-2 if dtype == torch.float32 else 1e-8)


def test_a_selection_is_the_block_of_the_whole() -> None:
    whole = posed(mlp, vectors())
    block = posed(mlp, vectors(), params=("2.*",))
    rows = slice(whole.layout.slices["2.weight"].start, None)
    H = dense_hessian(whole)[rows, rows]
    for method in ("kept", "forward", "differences"):
        assert gap(by_products(METHODS[method](block, None)), H) < ROUGH


def test_randomness_is_refused() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2))

    with pytest.raises(CurvError) as failed:
        hessian(posed(dropping, vectors(), mode="train"), Work(rng()))
    assert failed.value.code == "E_NONDET"
    assert "Dropout" in failed.value.message
    assert hessian(posed(dropping, vectors()), Work(rng())).method == "kept"
