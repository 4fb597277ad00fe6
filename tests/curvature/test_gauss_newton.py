"""Products with the Gauss-Newton matrix are J^T H J with both held whole, and leave no trace."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import by_products, cut, dense_gauss_newton, dense_hessian, gap, rng
from torch import Tensor, nn
from torch.nn import functional
from wild_modules import Reentrant
from zoo import ZOO, Bagged, Distances, classes, drawn, mlp, posed, sentences, unchecked, vectors

from curvcli.batches import Batch, Loss, Terms
from curvcli.curvature.fisher import EmpiricalFisher, Fisher
from curvcli.curvature.gauss_newton import GaussNewton
from curvcli.curvature.jacobian import Pullback
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.load.loss import custom, named, returned
from curvcli.problem import Problem

EXACT = 1e-12
MATRICES: dict[str, Callable[[Problem, float | None], Pullback]] = {
    "gauss-newton": GaussNewton,
    "fisher": lambda problem, memory: Fisher(problem, rng(3), 2, memory),
    "empirical fisher": EmpiricalFisher,
}


def over(loss: Loss, batch: Batch, make: Callable[[], nn.Module] = mlp) -> Problem:
    """Pose a loss over a model's outputs, in ragged batches."""
    return Problem.of(posed(make, vectors()).model, loss, cut(batch, (3, 3, 1)))


def three() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def log_probabilities() -> nn.Module:
    return nn.Sequential(three(), nn.LogSoftmax(dim=-1))


class Positions(nn.Module):
    """Classes on the second axis, before positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = three()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.stack([x, x.square()], dim=1)).movedim(-1, 1)
        return out


@pytest.mark.parametrize("name", ZOO)
def test_against_the_dense_matrix(name: str) -> None:
    G = dense_gauss_newton(unchecked(name))
    operator = GaussNewton(ZOO[name]())
    assert operator.notes == ()
    found = by_products(operator)
    assert gap(found, G) < EXACT
    assert gap(found, found.T) < EXACT
    assert float(torch.linalg.eigvalsh(found)[0]) > -EXACT * float(found.abs().max())
    v = normal(operator.like, rng())
    assert torch.equal(GaussNewton(ZOO[name](), 0).matvec(v), operator.matvec(v))


def test_linear_regression_in_closed_form() -> None:
    problem = ZOO["linear regression"]()
    X = torch.cat([b.inputs for b in problem.batches])
    X1 = torch.cat([X, torch.ones(7, 1).double()], dim=1)
    assert gap(by_products(GaussNewton(problem)), 2 * X1.T @ X1 / 7) < 1e-14


def test_logistic_regression_with_two_parameters_in_closed_form() -> None:
    x, y = drawn(7, 1), classes(2, 7).double()
    problem = posed(
        lambda: nn.Linear(1, 1), Batch(x, y, 7), loss="binary_cross_entropy_with_logits"
    )
    w, b = problem.vector()
    p = (w * x + b).sigmoid()
    X1 = torch.cat([x, torch.ones(7, 1).double()], dim=1)
    assert gap(by_products(GaussNewton(problem)), X1.T @ (p * (1 - p) * X1) / 7) < 1e-14


def index(*shape: int) -> Tensor:
    y = classes(3, 7, *shape)
    y[2:4] = -100
    return y


SHARES = drawn(7, 3, seed=5).softmax(dim=1)
LABELS = (drawn(7, 3, seed=5) > 0).double()
WEIGHT = [0.2, 1.0, 4.0]
LOSSES: list[tuple[str, dict[str, Any], Callable[[], nn.Module], Tensor]] = [
    ("cross_entropy", {}, three, classes(3, 7)),
    ("cross_entropy", {"weight": WEIGHT}, three, index()),
    ("cross_entropy", {"ignore_index": 1}, three, classes(3, 7)),
    ("cross_entropy", {"label_smoothing": 0.2}, three, index()),
    ("cross_entropy", {"weight": WEIGHT, "label_smoothing": 0.2}, Positions, index(2)),
    ("cross_entropy", {"weight": WEIGHT}, three, SHARES * drawn(7, 1, seed=6).abs()),
    ("binary_cross_entropy_with_logits", {}, three, LABELS),
    ("binary_cross_entropy_with_logits", {"pos_weight": WEIGHT}, three, LABELS),
    ("binary_cross_entropy_with_logits", {"weight": WEIGHT}, three, LABELS),
    ("mse_loss", {}, three, drawn(7, 3, seed=5)),
    ("huber_loss", {"delta": 0.3}, three, drawn(7, 3, seed=5)),
    ("poisson_nll_loss", {}, three, drawn(7, 3, seed=5).abs()),
    ("soft_margin_loss", {}, three, drawn(7, 3, seed=5).sign()),
    ("multilabel_soft_margin_loss", {}, three, LABELS),
]


@pytest.mark.parametrize(("name", "options", "make", "target"), LOSSES)
def test_losses(
    name: str, options: dict[str, Any], make: Callable[[], nn.Module], target: Tensor
) -> None:
    problem = over(named(name, options), Batch(drawn(7, 4), target, 7), make)
    assert gap(by_products(GaussNewton(problem)), dense_gauss_newton(problem)) < EXACT
    linear = over(named(name, options), Batch(drawn(7, 4), target, 7), lambda: nn.Linear(4, 3))
    if make is three:
        assert gap(by_products(GaussNewton(linear)), dense_hessian(linear)) < EXACT


def by_hand(output: Tensor, target: Tensor) -> Tensor:
    terms: Tensor = output.logsumexp(dim=1) - output.gather(1, target.unsqueeze(1))[:, 0]
    return terms


def bent(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(3 * output.tanh(), target, reduction="none")


def mixed(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    counts = (target == 0).double() + 0.5
    terms = functional.cross_entropy(output.float().double() * 2, target, reduction="none")
    return (terms * counts).sum() + 0.1 * output.pow(4).sum(), counts.sum()


def whole(output: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Couple the examples of a batch."""
    return functional.cross_entropy(output, target, reduction="sum").exp().sqrt(), 7.0


@pytest.mark.parametrize("loss", [by_hand, bent, mixed, whole])
def test_losses_of_the_users(loss: Callable[..., Any]) -> None:
    problem = over(custom(loss, {}), vectors())
    tolerance = 1e-6 if loss is mixed else EXACT
    assert gap(by_products(GaussNewton(problem)), dense_gauss_newton(problem)) < tolerance


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 3.0]).double()])
def test_reductions_within_a_loss(reduction: str, weight: Tensor | None) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, weight, reduction=reduction)

    batch = vectors()
    batch.target[2] = -100
    problem = over(custom(loss, {}), batch)
    assert gap(by_products(GaussNewton(problem)), dense_gauss_newton(problem)) < EXACT


@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}])
def test_log_probabilities_count_as_logits(options: dict[str, Any]) -> None:
    batch = Batch(drawn(7, 4), index(), 7)
    problem = over(named("nll_loss", options), batch, log_probabilities)
    same = over(named("cross_entropy", options), batch, lambda: nn.Sequential(three()))
    assert gap(by_products(GaussNewton(problem)), dense_gauss_newton(same)) < EXACT
    # What is no log-probability is only linear.
    other = over(named("nll_loss", options), batch, three)
    assert not by_products(GaussNewton(other)).any()


class Everything(nn.Module):
    """Returns nested outputs of many kinds, one of them a function of another."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.other = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.body(x)
        return {
            "hidden": [(logits, torch.arange(len(x))), None, "name"],
            "probabilities": logits.softmax(dim=1),
            "other": {"value": self.other(x), "constant": torch.ones(len(x), 2).double()},
            "penalty": logits.square().mean(),
        }


def everything(output: Any, batch: Batch) -> Terms:
    logits = output["hidden"][0][0]
    terms = functional.cross_entropy(logits, batch.target, reduction="none")
    squares = (output["probabilities"] - output["other"]["constant"]).square().sum(dim=1)
    total = terms.sum() + squares.sum() + 3 * output["other"]["value"].sum() + output["penalty"]
    return Terms(total, float(batch.size))


def test_nested_outputs() -> None:
    problem = over(everything, vectors(), Everything)
    expected = torch.zeros(problem.layout.size, problem.layout.size).double()
    n = 37  # of the body
    for i, loss in enumerate(("cross_entropy", "mse_loss")):
        target = vectors().target if loss == "cross_entropy" else torch.ones(7, 2).double()
        inner: Callable[[], nn.Module] = [mlp, lambda: nn.Sequential(mlp(), nn.Softmax(1))][i]
        part = posed(inner, Batch(vectors().inputs, target, 7), loss=loss)
        expected[:n, :n] += dense_gauss_newton(part) * (1 if i == 0 else 2)
    assert gap(by_products(GaussNewton(problem)), expected) < EXACT


def test_linear_losses_give_zero() -> None:
    for loss in (lambda output, batch: Terms(output.sum(), 1.0), named("l1_loss", {})):
        problem = over(loss, Batch(drawn(7, 4), drawn(7, 2, seed=4), 7))
        assert not by_products(GaussNewton(problem)).any()


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": functional.cross_entropy(logits, y), "logits": logits}


@pytest.mark.parametrize("name", MATRICES)
def test_a_loss_that_the_model_returns_is_refused(name: str) -> None:
    batch = Batch({"x": vectors().inputs, "y": vectors().target}, None, 7)
    problem = over(returned("loss"), batch, WithLoss)
    with pytest.raises(CurvError, match="the model returns the loss itself") as failed:
        MATRICES[name](problem, None)
    assert failed.value.code == "E_LOSS"
    assert "loss: cross_entropy" in str(failed.value)


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"logits": logits, "aux": logits.square().mean()}


@pytest.mark.parametrize("name", ["cross_entropy", "by hand"])
def test_a_part_of_the_loss_that_the_model_returns_is_linear(name: str) -> None:
    def loss(output: Any, target: Tensor) -> Tensor:
        by: Callable[..., Tensor] = functional.cross_entropy if name != "by hand" else by_hand
        aux: Tensor = output["aux"]
        return by(output["logits"], target).mean() + aux

    operator = GaussNewton(over(custom(loss, {}), vectors(), Auxiliary))
    assert gap(by_products(operator), dense_gauss_newton(ZOO["mlp"]())) < EXACT


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x).sum()
        return out


def test_one_number_per_batch_may_be_an_output() -> None:
    loss = custom(lambda output, target: (output - 1.0).square(), {})
    problem = over(loss, vectors(), Energy)
    assert gap(by_products(GaussNewton(problem)), dense_gauss_newton(problem)) < EXACT


def test_a_loss_without_a_second_derivative_is_refused() -> None:
    problem = over(named("multi_margin_loss", {"p": 2}), vectors())
    with pytest.raises(CurvError, match="the loss cannot be differentiated twice") as failed:
        GaussNewton(problem).matvec(problem.vector())
    assert failed.value.code == "E_NO_HVP"


class Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"logits": self.body(x)})()


def test_outputs_that_are_not_found_are_refused() -> None:
    loss = custom(lambda output, target: functional.cross_entropy(output.logits, target), {})
    with pytest.raises(CurvError, match="returns a Output, in which no tensors are found"):
        GaussNewton(over(loss, vectors(), Returned))


@pytest.mark.parametrize("make", [Bagged, Distances])
def test_models_without_a_second_derivative(make: Callable[[], nn.Module]) -> None:
    batch = Batch(classes(5, 7, 4, seed=1), classes(2, 7), 7) if make is Bagged else vectors()
    problem = posed(make, batch)
    operator = GaussNewton(problem)
    assert "is not implemented" in operator.notes[0]
    assert "a difference of outputs, good to about" in operator.notes[1]
    assert gap(by_products(operator), dense_gauss_newton(problem)) < 1e-9
    rough = GaussNewton(problem.to(torch.float32))
    assert gap(by_products(rough).double(), dense_gauss_newton(problem)) < 1e-3


class Cube(torch.autograd.Function):
    """x^3 whose backward lets no derivative through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0].detach() * 3 * x**2


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


def test_a_backward_that_cannot_be_differentiated_is_noticed() -> None:
    operator = GaussNewton(over(named("cross_entropy", {}), vectors(), Cubed))
    right = over(named("cross_entropy", {}), vectors(), lambda: Cubed(right=True))
    assert "from the transpose of J^T" in operator.notes[0]
    assert gap(by_products(operator), dense_gauss_newton(right)) < 1e-8


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_reentrant_checkpoints() -> None:
    operator = GaussNewton(over(named("cross_entropy", {}), vectors(), Reentrant))
    plain = over(named("cross_entropy", {}), vectors(), lambda: Reentrant(use=False))
    assert "use_reentrant" in operator.notes[0]
    assert gap(by_products(operator), dense_gauss_newton(plain)) < 1e-8


def test_a_penalty_is_refused() -> None:
    problem = replace(ZOO["mlp"](), penalties={"l2": lambda m: next(m.parameters()).norm()})
    with pytest.raises(CurvError, match="a penalty is no function of a model's outputs"):
        GaussNewton(problem.penalised("l2"))


@pytest.mark.parametrize("matrix", MATRICES)
def test_random_numbers_that_are_replayed(matrix: str) -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2))

    problem = replace(posed(dropping, vectors(), mode="train"), replay=3)
    kept, rebuilt = (MATRICES[matrix](problem, memory) for memory in (None, 0))
    v = normal(kept.like, rng())
    assert torch.equal(rebuilt.matvec(v), kept.matvec(v))
    assert torch.equal(rebuilt.matvec(v), rebuilt.matvec(v))


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", ["tied, ignored tokens", "convolution, eval", "lstm"])
def test_the_memory_budget_changes_nothing(name: str, matrix: str) -> None:
    problem = ZOO[name]()
    whole = MATRICES[matrix](problem, None)
    room = whole.bytes_per_batch
    v = normal(whole.like, rng())
    assert len(whole.graphs) == 3
    for memory, kept in ((0, 0), (room // 2, 0), (room, 1), (2.5 * room, 2), (1e12, 3)):
        operator = MATRICES[matrix](problem, memory)
        assert len(operator.graphs) == kept
        first = operator.matvec(v)
        assert torch.equal(first, whole.matvec(v))
        assert torch.equal(operator.matvec(v), first)
        assert not first.requires_grad


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("memory", [0, 1e12])
def test_products_leave_no_tensors_behind(matrix: str, memory: float) -> None:
    problem = ZOO["relu in place"]()
    _ = problem.measure
    empty = alive()
    operator = MATRICES[matrix](problem, memory)
    v = normal(operator.like, rng())
    operator.matvec(v)
    before = alive()
    for _ in range(20):
        operator.matvec(v)
    assert alive() == before
    del operator, v
    assert alive() == empty


def state(problem: Problem) -> list[Any]:
    """Take down what must not change."""
    model = problem.model
    tensors = [*model.parameters(), *model.buffers(), torch.random.get_rng_state()]
    return [
        [t.detach().clone() for t in tensors],
        [(id(p), p.data_ptr(), p.requires_grad, p.grad) for p in model.parameters()],
        [m.training for m in model.modules()],
    ]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", ["convolution, train", "frozen and unused", "sparse embedding"])
def test_everything_is_left_as_found(name: str, matrix: str) -> None:
    problem = ZOO[name]()
    for i, module in enumerate(problem.model.modules()):
        module.training = i % 2 == 0
    tensors, *others = state(problem)
    operator = MATRICES[matrix](problem, 0)
    operator.matvec(normal(operator.like, rng()))
    after, *rest = state(problem)
    assert rest == others
    assert all(torch.equal(a, b) for a, b in zip(after, tensors, strict=True))


@pytest.mark.parametrize("matrix", MATRICES)
def test_products_do_not_depend_on_the_batches(matrix: str) -> None:
    for make, batch in (
        (mlp, vectors()),
        (lambda: ZOO["tied, ignored tokens"]().model, sentences()),
    ):
        whole = by_products(MATRICES[matrix](posed(make, batch, (7,)), None))
        for sizes in ((3, 4), (6, 1), (1,) * 7):
            assert (
                gap(by_products(MATRICES[matrix](posed(make, batch, sizes), None)), whole) < 1e-13
            )


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_selection_is_the_block_of_the_whole(matrix: str) -> None:
    whole = posed(mlp, vectors())
    block = by_products(MATRICES[matrix](posed(mlp, vectors(), params=("2.*",)), None))
    rows = slice(whole.layout.slices["2.weight"].start, None)
    assert gap(block, by_products(MATRICES[matrix](whole, None))[rows, rows]) < EXACT


@pytest.mark.parametrize("matrix", MATRICES)
def test_parameters_that_no_output_depends_on(matrix: str) -> None:
    zoo = ZOO["frozen and unused"]()
    problem = Problem.of(zoo.model, zoo.loss, zoo.batches, params=("unused",))
    assert not by_products(MATRICES[matrix](problem, None)).any()


@pytest.mark.parametrize("matrix", MATRICES)
def test_single_precision(matrix: str) -> None:
    problem = ZOO["transformer encoder"]()
    v = normal(problem.like, rng())
    found = MATRICES[matrix](problem.to(torch.float32), None).matvec(v.float())
    assert found.dtype == torch.float32
    if matrix != "fisher":  # whose labels may differ by rounding
        assert gap(found.double(), MATRICES[matrix](problem, None).matvec(v)) < 1e-4


def test_a_product_that_is_not_finite() -> None:
    loss = custom(lambda output, target: (output - output.detach()).abs().pow(1.5).sum(dim=1), {})
    problem = over(loss, vectors())
    with pytest.raises(CurvError, match="not finite") as failed:
        GaussNewton(problem).matvec(problem.vector())
    assert failed.value.code == "E_NONFINITE"


@pytest.mark.parametrize("name", ["mlp", "layer norm", "linear regression", "convolution, eval"])
@pytest.mark.parametrize("matrix", ["gauss-newton", "empirical fisher"])
def test_another_implementation_agrees(name: str, matrix: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    problem = ZOO[name]()
    regression = name == "linear regression"
    theirs = (
        curvlinops.GGNLinearOperator if matrix == "gauss-newton" else curvlinops.EFLinearOperator
    )
    data = [(b.inputs, b.target[:, None] if regression else b.target) for b in problem.batches]
    loss = nn.MSELoss() if regression else nn.CrossEntropyLoss()
    with problem.engaged():
        other = theirs(problem.model, loss, list(problem.params.values()), data)
        dense = other @ torch.eye(problem.layout.size, dtype=torch.float64)
    assert gap(by_products(MATRICES[matrix](problem, None)), dense.detach()) < EXACT
