"""L does not depend on how the examples are cut, and what cannot be evaluated is named."""

from typing import Any

import pytest
import torch
from oracles import built, cut, gap, rng
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO, Words, classes, convolutional, drawn, images, mlp, posed, sentences, vectors

from curvcli.batches import Batch, as_batch, joined, select
from curvcli.errors import CurvError
from curvcli.load.loss import named
from curvcli.problem import Problem, unwrapped

CUTS = [(7,), (3, 3, 1), (1, 6), (1,) * 7]


@pytest.mark.parametrize("sizes", CUTS)
def test_the_cut_changes_nothing(sizes: tuple[int, ...]) -> None:
    whole, problem = posed(mlp, vectors(), (7,)), posed(mlp, vectors(), sizes)
    batch = vectors()
    torch_says = functional.cross_entropy(whole.model(batch.inputs), batch.target)
    assert problem.measure.loss == pytest.approx(torch_says.item(), rel=1e-14)
    assert problem.measure.weight == 7
    assert gap(problem.gradient(), whole.gradient()) < 1e-14
    grads = torch.autograd.grad(torch_says, list(whole.model.parameters()))
    assert gap(problem.gradient(), problem.layout.flatten(grads)) < 1e-14


@pytest.mark.parametrize("sizes", CUTS)
def test_ignored_tokens_count_nowhere(sizes: tuple[int, ...]) -> None:
    batch = sentences()
    problem = posed(Words, batch, sizes)  # the last batch of one holds ignored tokens only
    logits = problem.model(batch.inputs).flatten(0, 1)
    torch_says = functional.cross_entropy(logits, batch.target.flatten())
    assert problem.measure.loss == pytest.approx(torch_says.item(), rel=1e-14)
    assert problem.measure.weight == int((batch.target != -100).sum())
    grads = torch.autograd.grad(torch_says, list(problem.params.values()))
    assert gap(problem.gradient(), problem.layout.flatten(grads)) < 1e-13


@pytest.mark.parametrize("sizes", CUTS)
def test_class_weights(sizes: tuple[int, ...]) -> None:
    weight = [0.2, 5.0]
    problem = Problem.of(
        built(mlp), named("cross_entropy", {"weight": weight}), cut(vectors(), sizes)
    )
    torch_says = functional.cross_entropy(
        problem.model(vectors().inputs), vectors().target, torch.tensor(weight).double()
    )
    assert problem.measure.loss == pytest.approx(torch_says.item(), rel=1e-14)
    grads = torch.autograd.grad(torch_says, list(problem.params.values()))
    assert gap(problem.gradient(), problem.layout.flatten(grads)) < 1e-13


def test_shares_add_up() -> None:
    problem = posed(mlp, vectors())
    shares = [float(problem.share(b).detach()) for b in problem.batches]
    assert sum(shares) == pytest.approx(problem.measure.loss)
    moved = {n: p.detach() + 0.1 for n, p in problem.params.items()}
    assert float(problem.share(problem.batches[0], moved)) != pytest.approx(shares[0])


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_a_loss_that_is_not_finite_names_the_first_module() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Tanh(), Root()), nn.Linear(3, 2))

    problem = posed(model, vectors())
    with pytest.raises(CurvError) as failed:
        _ = problem.measure
    assert failed.value.code == "E_NONFINITE"
    assert failed.value.message == "the loss is nan at batch 0, first in 1.1 (Root)"
    assert not any(m._forward_hooks for m in problem.model.modules())


def test_a_loss_that_is_not_finite_by_itself() -> None:
    batch = Batch(drawn(7, 4), drawn(7, 1), 7)
    batch.target[5] = torch.inf
    with pytest.raises(CurvError, match="is inf at batch 1, in the loss itself: the model's out"):
        _ = posed(lambda: nn.Linear(4, 1), batch, loss="mse_loss").measure


def test_a_gradient_that_is_not_finite() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] * self.w.sqrt()

    with pytest.raises(CurvError) as failed:
        posed(Flat, vectors()).probe()
    assert failed.value.code == "E_NONFINITE"


def test_no_terms_at_all() -> None:
    batch = sentences()
    batch.target.fill_(-100)
    with pytest.raises(CurvError, match="no terms") as failed:
        _ = posed(Words, batch).measure
    assert failed.value.code == "E_DATA"


class Rolling(nn.Module):
    """Draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x + torch.rand(4, dtype=x.dtype))
        return out


def test_randomness_is_named() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2), nn.Dropout1d())

    with pytest.raises(CurvError) as failed:
        posed(model, vectors(), mode="train").probe()
    assert failed.value.code == "E_NONDET"
    assert "1 (Dropout), 3 (Dropout1d)" in failed.value.message
    assert failed.value.hint == "use --mode eval"
    posed(model, vectors()).probe()


def test_randomness_in_eval_mode() -> None:
    with pytest.raises(CurvError, match="two evaluations of one gradient differ") as failed:
        posed(Rolling, vectors()).probe()
    assert "forward()" in failed.value.hint


@pytest.mark.parametrize("name", ZOO)
def test_deterministic_models_pass_the_probe(name: str) -> None:
    ZOO[name]().probe()


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("*",), ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (("*.bias",), ["0.bias", "2.bias"]),
        (("2",), ["2.weight", "2.bias"]),
        (("2.bias", "0.*"), ["0.weight", "0.bias", "2.bias"]),
        (("[0-1].w*",), ["0.weight"]),
    ],
)
def test_selection(patterns: tuple[str, ...], names: list[str]) -> None:
    problem = posed(mlp, vectors(), params=patterns)
    assert list(problem.names) == names
    with problem.engaged():
        trainable = [n for n, p in problem.model.named_parameters() if p.requires_grad]
    assert trainable == names
    assert all(p.requires_grad for p in problem.model.parameters())
    assert problem.layout.size == sum(p.numel() for p in problem.params.values())
    whole = posed(mlp, vectors())
    kept = torch.cat([whole.gradient()[whole.layout.slices[n]] for n in names])
    assert gap(problem.gradient(), kept) < 1e-14


def test_a_selection_that_matches_nothing() -> None:
    with pytest.raises(CurvError, match=r"no trainable parameter matches '3\.\*'") as failed:
        posed(mlp, vectors(), params=("0.*", "3.*"))
    assert failed.value.hint == "the model's are 0.weight, 0.bias, 2.weight, 2.bias"
    frozen = built(mlp).requires_grad_(False)
    with pytest.raises(CurvError) as failed:
        Problem.of(frozen, named("cross_entropy", {}), [vectors()])
    assert failed.value.hint == "every parameter is frozen"
    with pytest.raises(CurvError, match="there are no examples"):
        Problem.of(built(mlp), named("cross_entropy", {}), [])


def test_tied_once_frozen_never_unused_named() -> None:
    assert ZOO["tied, ignored tokens"]().names == ("embedding.weight", "mix.weight", "mix.bias")
    problem = ZOO["frozen and unused"]()
    assert problem.names == ("unused", "last.weight", "last.bias")
    assert problem.unused() == ["unused"]
    assert torch.equal(problem.gradient()[problem.layout.slices["unused"]], torch.zeros(2).double())
    only = Problem.of(problem.model, problem.loss, problem.batches, params=("unused",))
    assert only.unused() == ["unused"]
    assert torch.equal(only.gradient(), torch.zeros(2).double())


def test_sparse_gradients_are_made_dense() -> None:
    sparse, dense = ZOO["sparse embedding"](), ZOO["embedding"]()
    assert gap(sparse.gradient(), dense.gradient()) < 1e-14
    assert sparse.unused() == []


def test_theta() -> None:
    problem = posed(mlp, vectors())
    theta = problem.vector()
    assert theta.shape == problem.like.shape == (37,)
    assert problem.like.untyped_storage().nbytes() == 8  # no storage of its own
    theta += 1
    assert float((problem.vector() - theta).abs().min()) == 1.0


@pytest.mark.parametrize("count", [1, 4, 7, 99])
def test_sampled(count: int) -> None:
    problem = ZOO["by keyword"]()
    found = problem.sampled(count, rng())
    again = problem.sampled(count, rng())
    (batch,), whole = found.batches, joined(problem.batches)
    assert batch.size == min(count, 7) == len(batch.target)
    assert torch.equal(batch.inputs["a"], again.batches[0].inputs["a"])
    # Rows stay together and in their order.
    rows = [int((whole.inputs["a"] == row).all(dim=1).nonzero()) for row in batch.inputs["a"]]
    assert rows == sorted(set(rows))
    assert torch.equal(batch.target, whole.target[rows])
    assert torch.equal(batch.inputs["b"], whole.inputs["b"][rows])


def test_one_batch_is_its_own_sample() -> None:
    problem = posed(mlp, vectors(), (7,))
    assert problem.sampled(7, rng()) is problem


def test_select_keeps_what_does_not_count_examples() -> None:
    batches = [Batch((drawn(n, 2), torch.tensor(5)), None, n) for n in (3, 2)]
    (batch,) = select(batches, torch.tensor([1, 4]))
    assert batch.size == 2
    assert int(batch.inputs[1]) == 5
    assert torch.equal(batch.inputs[0], torch.stack([drawn(3, 2)[1], drawn(2, 2)[1]]))


def test_examples_of_different_shapes_stay_apart() -> None:
    batches = [Batch(drawn(3, 4), classes(2, 3), 3), Batch(drawn(2, 5), classes(2, 2), 2)]
    first, second = select(batches, torch.tensor([0, 2, 3]))
    assert first.inputs.shape == (2, 4)
    assert second.inputs.shape == (1, 5)
    assert len(select(batches, torch.tensor([3, 4]))) == 1


def test_batch_norm_in_train_mode_takes_one_batch() -> None:
    posed(convolutional, images(), (7,), mode="train")
    with pytest.raises(CurvError, match="BatchNorm makes the loss depend on how the 2 batches"):
        posed(convolutional, images(), (4, 3), mode="train")


def test_another_precision() -> None:
    problem = posed(Words, sentences())
    low = problem.to(torch.float32)
    assert low.like.dtype == torch.float32
    assert low.batches[0].target.dtype == torch.int64
    assert problem.like.dtype == torch.float64
    assert low.measure.loss == pytest.approx(problem.measure.loss, rel=1e-5)
    assert low.names == problem.names


def test_displaced() -> None:
    problem = posed(mlp, vectors())
    theta, pointer = problem.vector(), problem.params["0.weight"].data_ptr()
    moved = problem.layout.named(theta + 1)

    def failing() -> None:
        with problem.displaced(moved):
            assert torch.equal(problem.vector(), theta + 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert torch.equal(problem.vector(), theta)
    assert problem.params["0.weight"].data_ptr() == pointer


def test_engaged_twice() -> None:
    problem = ZOO["convolution, train"]()
    buffers = {n: (b, b.clone()) for n, b in problem.model.named_buffers()}
    problem.model.eval()
    with problem.engaged():
        assert problem.model.training
        with problem.engaged():
            problem.terms(problem.batches[0])
        assert problem.model.training
        torch.rand(1)
        problem.terms(problem.batches[0])
    assert not problem.model.training
    for name, b in problem.model.named_buffers():
        assert b is buffers[name][0]
        assert torch.equal(b, buffers[name][1])


def test_heldout() -> None:
    problem = posed(mlp, vectors())
    assert problem.heldout_loss is None
    batch = Batch(drawn(5, 4, seed=9), classes(2, 5), 5)
    other = Problem.of(problem.model, problem.loss, problem.batches, heldout=cut(batch, (3, 2)))
    expected = functional.cross_entropy(problem.model(batch.inputs), batch.target)
    assert other.heldout_loss == pytest.approx(expected.item())
    assert other.measure.loss == problem.measure.loss


def test_unwrapping() -> None:
    model = built(mlp)
    assert unwrapped(nn.DataParallel(model)) is model
    wrapped = nn.Module()
    wrapped._orig_mod = model
    assert unwrapped(wrapped) is model
    assert unwrapped(model) is model


def test_as_batch() -> None:
    x, y = drawn(5, 4), classes(2, 5)
    batch = as_batch((x, y))
    assert batch.inputs is x
    assert batch.target is y
    assert batch.size == 5
    assert as_batch(batch) is batch
    assert as_batch([{"a": torch.tensor(1.0), "b": x}, None]).size == 5
    named_only = as_batch({"input_ids": y})
    assert named_only.target is None
    assert named_only.size == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3), "a batch is a Tensor"),
        ((torch.zeros(3),) * 3, "a batch is a tuple"),
        (7, "a batch is a int"),
        ((torch.tensor(3.0), None), "a batch has no tensor with examples"),
        (({}, None), "a batch has no tensor with examples"),
    ],
)
def test_what_is_no_batch(given: Any, message: str) -> None:
    with pytest.raises(CurvError, match=message) as failed:
        as_batch(given)
    assert failed.value.code == "E_DATA"
