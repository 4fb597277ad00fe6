"""What people have works: exact products with every matrix, block by block, and whole analyses."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import by_products, dense_gauss_newton, dense_hessian, gap, rng
from torch import Tensor, nn
from torch.nn import functional
from wild import LOSSES, WILD, lossy, over, tokens
from zoo import ZOO, mlp, vectors

from curvcli.analyses.eig import Eig
from curvcli.batches import Batch
from curvcli.curvature.bags import bagged
from curvcli.curvature.gauss_newton import GaussNewton
from curvcli.curvature.hessian import TITLES, hessian
from curvcli.linalg.operator import normal
from curvcli.load.loss import custom, named
from curvcli.problem import Problem
from curvcli.work import Work

pytestmark = pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad:UserWarning",
    "ignore:Lazy modules are a new feature:UserWarning",
)
EXACT = 1e-9


def plain(name: str) -> Problem:
    kind = WILD[name]
    return (kind.plain or kind.problem)()


@pytest.mark.parametrize("name", WILD)
def test_the_hessian(name: str) -> None:
    kind = WILD[name]
    problem = kind.problem()
    buffers = [b.clone() for b in problem.model.buffers()]
    chosen = hessian(problem, Work(rng()))
    assert chosen.method == kind.method
    assert any(kind.said in n for n in ("", *chosen.notes))
    if name != "ctc":
        assert gap(by_products(chosen.operator), dense_hessian(plain(name))) < kind.tolerance
    v = normal(problem.like, rng())
    assert torch.equal(chosen.operator.matvec(v), chosen.operator.matvec(v))
    assert all(torch.equal(a, b) for a, b in zip(problem.model.buffers(), buffers, strict=True))


@pytest.mark.parametrize("name", [n for n, kind in WILD.items() if kind.gauss_newton])
def test_the_gauss_newton_matrix(name: str) -> None:
    kind = WILD[name]
    if name == "nested outputs":
        pytest.skip("the oracle knows one output; tested beside the Gauss-Newton matrix")
    found = by_products(GaussNewton(kind.problem()))
    assert gap(found, dense_gauss_newton(plain(name))) < kind.tolerance


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    problem = lossy(name)
    chosen = hessian(problem, Work(rng()))
    assert chosen.method == "kept"
    H = dense_hessian(problem)
    assert gap(by_products(chosen.operator), H) < EXACT
    if name == "negative log likelihood":  # of log-probabilities, which count as logits
        return
    G = dense_gauss_newton(problem)
    assert gap(by_products(GaussNewton(problem)), G) < EXACT


@pytest.mark.parametrize("name", [n for n, kind in WILD.items() if kind.method == "kept"])
def test_whole_analyses(name: str) -> None:
    """The eigenvalues that are found are within the radii that are said."""
    result = Eig(top=2, tolerance=1e-3).answer(WILD[name].problem(), Work(rng()))
    assert any(TITLES["kept"] in n for n in result.notes)
    true = torch.linalg.eigvalsh(dense_hessian(plain(name)))
    for row in result.rows:
        assert float((true - float(row["eigenvalue"])).abs().min()) <= float(row["radius"]) + 1e-9


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Be the only member of a process group."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel() -> None:
    wrap = torch.nn.parallel.DistributedDataParallel
    problem = over(mlp, named("cross_entropy", {}), vectors(), wrap)
    chosen = hessian(problem, Work(rng()))
    assert chosen.method == "kept"
    H = dense_hessian(over(mlp, named("cross_entropy", {}), vectors()))
    assert gap(by_products(chosen.operator), H) < EXACT


def transformed(kind: str) -> nn.Module:
    """Build a tiny model of the library's from its configuration."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=7, n_positions=4, n_embd=4, n_layer=1, n_head=2, n_inner=6
            )
            return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]
        config = transformers.BertConfig(
            vocab_size=7, max_position_embeddings=4, hidden_size=4, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=6, num_labels=2,
        )  # fmt: skip
        return transformers.BertForSequenceClassification(config)  # type: ignore[no-any-return]


def of_tokens(output: Any, target: Tensor) -> Tensor:
    logits = getattr(output, "logits", output)  # the oracle hands over the one output
    return functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")


def of_classes(output: Any, target: Tensor) -> Tensor:
    return functional.cross_entropy(getattr(output, "logits", output), target, reduction="none")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_models_of_transformers(kind: str) -> None:
    x = tokens()
    inputs = {"input_ids": x, "attention_mask": torch.ones_like(x)}
    y, loss = (x.roll(1, 1), of_tokens) if kind == "gpt2" else (x[:, 0] % 2, of_classes)
    batch = Batch(inputs, y, len(x))
    problem = over_whole(lambda: transformed(kind), custom(loss, {}), batch)
    chosen = hessian(problem, Work(rng()))
    assert chosen.method == "kept"
    assert any("attention by matrix products" in n for n in chosen.notes)
    H = dense_hessian(problem)
    for seed in range(3):
        v = normal(problem.like, rng(seed))
        assert gap(chosen.operator.matvec(v), H @ v) < 1e-6
    G = GaussNewton(problem)
    assert gap(by_products(G), dense_gauss_newton(problem)) < 1e-6


def over_whole(make: Callable[[], nn.Module], loss: Any, batch: Batch) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Problem.of(make().double(), loss, [batch])


@pytest.mark.parametrize("name", ["mlp", "convolution, eval", "transformer encoder"])
def test_bfloat16_as_it_is(name: str) -> None:
    """Products of half precision keep about two digits of a product's size, and are repeatable."""
    problem = ZOO[name]().to(torch.bfloat16)
    H = dense_hessian(problem.to(torch.float64))
    operator = hessian(problem, Work(rng())).operator
    v = normal(problem.like, rng())
    found, true = operator.matvec(v), H @ v.double()
    assert found.dtype == torch.bfloat16
    assert float((found.double() - true).norm() / true.norm()) < 0.1
    assert torch.equal(operator.matvec(v), found)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("make", [hessian, GaussNewton])
def test_two_products_are_equal_bit_for_bit(name: str, make: Any) -> None:
    problem = ZOO[name]()
    operator = make(problem, Work(rng())).operator if make is hessian else make(problem)
    v = normal(operator.like, rng())
    first = operator.matvec(v)
    operator.matvec(2 * v)
    assert torch.equal(operator.matvec(v), first)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("ends", [False, True])
def test_bags_are_those_of_torch(mode: str, padding: int | None, ends: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options: Any = {"padding_idx": padding, "include_last_offset": ends}
        m = nn.EmbeddingBag(6, 4, mode=mode, **options).double()
        line, table = torch.randint(6, (9,)), torch.randint(6, (5, 3))
        weights = torch.rand(9).double()
    starts = torch.tensor([0, 2, 2, 6] + [9] * ends)
    calls: list[tuple[Any, ...]] = [(table,), (line, starts), (line.int(), starts.int())]
    calls += [(line, starts, weights)] if mode == "sum" else []
    for arguments in calls:
        ours, torchs = bagged(m, *arguments), m(*arguments)
        assert gap(ours.detach(), torchs.detach()) < 1e-14
        along = torch.arange(ours.numel()).double().view_as(ours).cos()
        slopes = [torch.autograd.grad(t, m.weight, along)[0] for t in (ours, torchs)]
        assert gap(*slopes) < 1e-14


def test_differences_that_do_not_settle_judge_nothing() -> None:
    problem = WILD["orthogonal"].problem()  # by torch's rounding of a diagonal to integers
    chosen = hessian(problem, Work(rng()))
    assert chosen.agreement is None
    assert any("do not settle" in n for n in chosen.notes)
