"""L does not depend on how the examples are cut, and what cannot be evaluated is named."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from oracles import built, cut, gap, rng
from torch import Tensor, nn
from torch.nn import functional
from zoo import (
    ZOO,
    Extra,
    Words,
    classes,
    convolutional,
    drawn,
    images,
    mlp,
    posed,
    sentences,
    vectors,
)

from curvcli.batches import Batch, as_batch, joined, select
from curvcli.determinism import probe
from curvcli.errors import CurvError
from curvcli.load.loss import named
from curvcli.problem import Problem

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
    batch.target[5] = 1e200
    with pytest.raises(CurvError, match="is inf at batch 1, in the loss itself: the model's out"):
        _ = posed(lambda: nn.Linear(4, 1), batch, loss="mse_loss").measure


@pytest.mark.parametrize(("where", "value"), [("inputs", math.nan), ("target", -math.inf)])
def test_data_that_are_no_numbers_are_named(where: str, value: float) -> None:
    batch = Batch(drawn(7, 4), drawn(7, 2), 7)
    getattr(batch, where)[5, 1] = value
    with pytest.raises(CurvError) as failed:
        _ = posed(lambda: nn.Linear(4, 2), batch, loss="mse_loss").measure
    assert f"s hold {value} at [5, 1]" in failed.value.message
    assert failed.value.hint.startswith("clean the data: 1 of")


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_weights_that_are_no_numbers_are_named(name: str) -> None:
    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        made.state_dict()[name].view(-1)[:2] = math.nan
        return made

    with pytest.raises(CurvError, match=rf": 2 of \d+ entries of {name} are no") as failed:
        _ = posed(model, Batch(drawn(7, 4), drawn(7, 3), 7), loss="mse_loss").measure
    assert failed.value.hint == "the run has diverged: take an earlier checkpoint"


def test_a_gradient_that_is_not_finite() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] * self.w.sqrt()

    with pytest.raises(CurvError) as failed:
        probe(posed(Flat, vectors()))
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

    # Seeded, since seven channels are dropped alike twice in one of 128 draws.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with pytest.raises(CurvError) as failed:
            probe(posed(model, vectors(), mode="train"))
    assert failed.value.code == "E_NONDET"
    assert "1 (Dropout), 3 (Dropout1d)" in failed.value.message
    assert failed.value.hint == "use --mode eval, or curv gradcheck --replay-rng"
    probe(posed(model, vectors()))


def test_randomness_in_eval_mode() -> None:
    with pytest.raises(CurvError, match="two evaluations of one gradient differ") as failed:
        probe(posed(Rolling, vectors()))
    assert "--replay-rng" in failed.value.hint


@pytest.mark.parametrize("name", ZOO)
def test_deterministic_models_pass_the_probe(name: str) -> None:
    probe(ZOO[name]())


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
    assert failed.value.hint == "all are frozen or empty"
    with pytest.raises(CurvError, match="there are no examples"):
        Problem.of(built(mlp), named("cross_entropy", {}), [])


def test_parameters_without_entries_are_no_part_of_theta() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("none", nn.Parameter(torch.empty(0)))
    batch = Batch(torch.ones(2, 4), torch.tensor([0, 1]), 2)
    loss = named("cross_entropy", {})
    assert Problem.of(model, loss, [batch]).names == ("0.weight", "0.bias")
    with pytest.raises(CurvError, match="no trainable parameter matches 'none'"):
        Problem.of(model, loss, [batch], params=("none",))
    model.get_submodule("0").requires_grad_(False)
    with pytest.raises(CurvError) as failed:
        Problem.of(model, loss, [batch])
    assert failed.value.hint == "all are frozen or empty"


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


# --- the model's own initial weights ---------------------------------------------------------


def test_initial() -> None:
    problem = ZOO["frozen and unused"]()
    assert problem.fresh is None
    with pytest.raises(CurvError, match="there is no factory to make a fresh model") as failed:
        problem.initial()
    assert failed.value.code == "E_USAGE"
    # The factory freezes nothing: what is checked is what the checkpoint's problem selects.
    made = [built(Extra, seed=5).float().requires_grad_(True) for _ in range(2)]
    with_factory = replace(problem, fresh=lambda: nn.DataParallel(made.pop()))
    first = with_factory.initial()
    again = with_factory.initial()
    assert first.names == problem.names
    assert first.like.dtype == torch.float64
    assert torch.equal(first.vector(), again.vector())
    assert not torch.equal(first.vector(), problem.vector())
    assert first.measure.loss != problem.measure.loss
    assert first.layout.size == problem.layout.size == len(first.gradient())
    assert (first.batches, first.loss, first.mode) == (problem.batches, problem.loss, "eval")


def test_initial_in_another_precision() -> None:
    problem = posed(mlp, vectors(), fresh=lambda: built(mlp, seed=3))
    low = problem.to(torch.float32)
    assert low.initial().like.dtype == torch.float32
    assert low.initial().sampled(3, rng()).examples == 3
    assert problem.initial().measure.loss == pytest.approx(low.initial().measure.loss, rel=1e-5)


def test_a_factory_that_makes_another_model() -> None:
    def other(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

    problem = posed(mlp, vectors(), fresh=lambda: other(6))
    with pytest.raises(CurvError, match=r"0\.weight of shape \(6, 4\), not \(5, 4\)") as failed:
        problem.initial()
    assert failed.value.code == "E_MODEL"
    with pytest.raises(CurvError, match=r"a model without 0\.weight"):
        replace(problem, fresh=nn.Tanh).initial()


# --- penalties -------------------------------------------------------------------------------


def quartic(model: nn.Module) -> Tensor:
    return torch.stack([p.square().square().sum() for p in model.parameters()]).sum()


def first_layer(model: nn.Module) -> Tensor:
    assert isinstance(model, nn.Sequential)
    weight = model[0].weight
    assert isinstance(weight, Tensor)
    return weight.diff(dim=0).square().sum()


PENALTIES = {"quartic": quartic, "smooth": first_layer}


def test_penalties_are_no_part_of_the_loss() -> None:
    plain, problem = posed(mlp, vectors()), posed(mlp, vectors(), penalties=PENALTIES)
    assert problem.measure == plain.measure
    assert torch.equal(problem.gradient(), plain.gradient())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_penalty_alone(dtype: torch.dtype) -> None:
    whole = posed(mlp, vectors(), penalties=PENALTIES, heldout=cut(vectors(), (7,))).to(dtype)
    problem = whole.penalised("quartic")
    theta = whole.vector()
    assert problem.names == whole.names
    assert problem.heldout_loss is None
    assert problem.measure.loss == pytest.approx(float(theta.pow(4).sum()), rel=1e-5)
    assert gap(problem.gradient(), 4 * theta.pow(3)) < 1e-6
    assert problem.penalised("smooth").unused() == ["0.bias", "2.weight", "2.bias"]
    assert problem.unused() == []
    batch = problem.batches[0]
    moved = {"2.bias": torch.ones(2, dtype=dtype)}
    part = theta[problem.layout.slices["2.bias"]]
    expected = problem.measure.loss - float(part.pow(4).sum()) + 2
    assert problem.share(batch, moved).item() == pytest.approx(expected)
    with problem.displaced(moved):
        assert problem.share(batch).item() == pytest.approx(expected)
    assert problem.sampled(3, rng()).measure.loss == pytest.approx(problem.measure.loss)
    H = dense(lambda values: problem.share(batch, values), problem)
    assert gap(H, torch.diag(12 * theta.pow(2))) < 1e-6


def dense(f: Callable[[dict[str, Tensor]], Tensor], problem: Problem) -> Tensor:
    """Differentiate twice as a function of the parameters' vector."""
    theta = problem.vector()
    H: Tensor = torch.func.hessian(lambda t: f(problem.layout.named(t)))(theta)
    return H


def test_penalties_of_many_displacements_at_once() -> None:
    problem = posed(mlp, vectors(), penalties=PENALTIES).penalised("smooth")
    _ = problem.measure
    batch, weight = problem.batches[0], problem.params["0.weight"].detach()
    moved = weight + drawn(5, *weight.shape)
    found = torch.func.vmap(lambda w: problem.share(batch, {"0.weight": w}))(moved)
    loop = torch.stack([m.diff(dim=0).square().sum() for m in moved])
    assert torch.allclose(found, loop)
    others = torch.func.vmap(lambda b: problem.share(batch, {"0.bias": b}))(drawn(3, 5))
    assert torch.allclose(others, first_layer(problem.model).expand(3))


def test_a_penalty_of_tied_parameters() -> None:
    problem = posed(Words, sentences(), penalties=PENALTIES).penalised("quartic")
    assert problem.measure.loss == pytest.approx(float(problem.vector().pow(4).sum()))
    values = problem.layout.named(problem.vector() * 2)
    found = float(problem.share(problem.batches[0], values))
    assert found == pytest.approx(16 * problem.measure.loss)


def test_penalties_that_there_are_none_of() -> None:
    with pytest.raises(CurvError, match="there is no penalty 'l2'") as failed:
        posed(mlp, vectors(), penalties=PENALTIES).penalised("l2")
    assert failed.value.hint == "known are quartic, smooth"
    with pytest.raises(CurvError) as failed:
        posed(mlp, vectors()).penalised("l2")
    assert failed.value.hint == "needs penalty: in the spec"
    problem = posed(mlp, vectors(), penalties={"root": lambda m: -quartic(m).log().log()})
    nothing = {n: torch.zeros_like(p) for n, p in problem.params.items()}
    with (
        problem.displaced(nothing),
        pytest.raises(CurvError, match="the penalty root is nan") as failed,
    ):
        _ = problem.penalised("root").measure
    assert failed.value.code == "E_NONFINITE"


# --- replayed random numbers -----------------------------------------------------------------


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 2))


def replayed(seed: int | None = 11, **rest: Any) -> Problem:
    return posed(dropped, vectors(), mode="train", replay=seed, **rest)


def test_replayed_dropout_is_the_same_function() -> None:
    problem, batch = replayed(), vectors()
    with problem.engaged():
        first = problem.terms(batch).total
        torch.rand(5)
        assert torch.equal(problem.terms(batch).total, first)
        values = problem.layout.named(problem.vector())
        assert torch.equal(problem.terms(batch, values).total, first)
    assert problem.measure == replayed().measure
    assert torch.equal(problem.gradient(), problem.gradient())
    probe(problem)
    assert replayed(12).measure.loss != problem.measure.loss
    assert replace(problem, mode="eval").measure.loss != problem.measure.loss
    with replayed(None).engaged():
        assert replayed(None).measure.loss != problem.measure.loss


def test_replayed_dropout_is_dropout() -> None:
    problem, batch = replayed(), vectors()
    with problem.engaged():
        torch.manual_seed(11)
        output = problem.model(batch.inputs)
        expected = functional.cross_entropy(output, batch.target, reduction="sum")
        assert torch.allclose(problem.terms(batch).total, expected, rtol=1e-14)


def test_the_gradient_with_replayed_dropout() -> None:
    problem = replayed()
    g, theta, h = problem.gradient(), problem.vector(), 1e-6
    with problem.engaged():
        for d in drawn(4, len(theta)):
            above, below = (
                sum(float(problem.share(b, problem.layout.named(theta + s * d)))
                    for b in problem.batches) for s in (h, -h)
            )  # fmt: skip
            assert (above - below) / (2 * h) == pytest.approx(float(g @ d), rel=1e-7)


@pytest.mark.parametrize("name", ["0.weight", "4.bias"])
def test_replayed_dropout_of_many_displacements_at_once(name: str) -> None:
    problem, batch = replayed(), vectors()
    _ = problem.measure
    value = problem.params[name].detach()
    moved = value + drawn(6, *value.shape)
    with problem.engaged():
        evaluate = partial(at, problem, batch, name)
        found = torch.func.vmap(evaluate, randomness="same")(moved)
        assert torch.allclose(found, torch.stack([evaluate(m) for m in moved]), rtol=1e-14)


def at(problem: Problem, batch: Batch, name: str, value: Tensor) -> Tensor:
    return problem.share(batch, {name: value})


def test_replaying_leaves_the_generators_alone() -> None:
    problem = replayed()
    _ = problem.measure
    problem.model.train()
    before = torch.get_rng_state()
    problem.terms(vectors())
    problem.share(vectors(), problem.layout.named(problem.vector()))
    with problem.replaying():
        first = torch.rand(3)
    with problem.replaying():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(CurvError):
        problem.terms(images())
    assert torch.equal(torch.get_rng_state(), before)
    with replace(problem, replay=None).replaying():
        torch.rand(3)
    assert not torch.equal(torch.get_rng_state(), before)


def test_replayed_penalties() -> None:
    def noisy(model: nn.Module) -> Tensor:
        return quartic(model) * torch.rand((), dtype=torch.float64)

    problem = replayed(penalties={"noisy": noisy}).penalised("noisy")
    assert torch.equal(problem.gradient(), problem.gradient())
    probe(problem)


# --- targets that count nowhere --------------------------------------------------------------


def test_ignored() -> None:
    problem = posed(Words, sentences())
    assert problem.ignored() == int((sentences().target == -100).sum()) == 9
    assert problem.ignored() + problem.measure.weight == sentences().target.numel()
    assert posed(mlp, vectors()).ignored() == 0
    assert (
        posed(lambda: nn.Linear(4, 1), Batch(drawn(7, 4), drawn(7), 7), loss="mse_loss").ignored()
        == 0
    )
    assert replace(problem, penalties=PENALTIES).penalised("quartic").ignored() == 0


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
