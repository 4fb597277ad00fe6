"""Steps are taken, and judged, with batch normalisation as training has it."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import curv, project
from questions import ask, classify, inputs
from torch import Tensor, nn
from torch.nn import functional

import curvcli
from curvcli.analyses.ratio import Ratio
from curvcli.analyses.stability import Stability
from curvcli.batches import Batch
from curvcli.errors import CurvError
from curvcli.load.optimizer import resolve
from curvcli.optimizer import SavedOptimizer
from curvcli.problem import Problem
from curvcli.training import as_trained
from curvcli.work import Work

NORMALISED = {"layers": [{"Linear": [4, 6]}, {"BatchNorm1d": 6}, "Tanh", {"Linear": [6, 2]}]}


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def full_batch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Compute the loss of training, but for dropout."""
    model.train()
    model.get_submodule("3").eval()
    return functional.cross_entropy(model(x), y)


def trained(
    kind: type[torch.optim.Optimizer], cut: tuple[int, ...] = ()
) -> tuple[Problem, nn.Module, torch.optim.Optimizer]:
    """Train three steps; give the problem, and what the trainer goes on with."""
    model = normalised()
    x = inputs(24, 5).double() * 3 + 1
    p = classify(model, x, cut=cut)
    optimizer = kind(model.parameters(), lr=0.01)  # type: ignore[call-arg]
    for _ in range(3):
        step(p, model, optimizer)
    saved = resolve(optimizer.state_dict(), model, {})
    return (
        replace(p, model=copy.deepcopy(model), optimizer=lambda: saved, free=True),
        model,
        optimizer,
    )


def step(p: Problem, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    x, y = (
        torch.cat(parts) for parts in zip(*((b.inputs, b.target) for b in p.batches), strict=True)
    )
    torch.autograd.backward(full_batch(model, x, y))
    optimizer.step()


@pytest.mark.parametrize("cut", [(24,), (7, 7, 7, 3)])
def test_the_next_step_is_the_trainers(cut: tuple[int, ...]) -> None:
    p, model, optimizer = trained(torch.optim.Adam, cut)
    rows = ask(Ratio(), p).rows
    before = {n: t.detach().clone() for n, t in model.named_parameters()}
    step(p, model, optimizer)
    for row in rows:
        moved = model.get_parameter(str(row["tensor"])).detach() - before[str(row["tensor"])]
        assert row["next_update"] == pytest.approx(float(moved.norm()), rel=1e-9)
    # A bias before BatchNorm has no gradient in training; by running statistics it has.
    assert rows[1]["gradient"] < 1e-12
    assert rows[1]["remark"] in ("", "cancelled")
    assert ask(Ratio(), replace(p, free=False)).rows[1]["gradient"] > 1e-3


@pytest.mark.parametrize("cut", [(24,), (7, 7, 7, 3)])
def test_sharpness_is_that_of_the_loss_in_training(cut: tuple[int, ...]) -> None:
    p, model, _ = trained(torch.optim.SGD, cut)
    whole = as_trained(p)
    (batch,) = whole.batches
    theta = whole.vector()

    def loss(flat: Tensor) -> Tensor:
        values = whole.layout.named(flat)
        twin = copy.deepcopy(model).train()
        twin.get_submodule("3").eval()
        return functional.cross_entropy(
            torch.func.functional_call(twin, values, (batch.inputs,)), batch.target
        )

    dense = torch.autograd.functional.hessian(loss, theta)  # type: ignore[no-untyped-call]
    top = float(torch.linalg.eigvalsh(dense)[-1])
    buffers = copy.deepcopy(dict(p.model.named_buffers()))
    result = ask(Stability(tolerance=1e-6), p)
    assert result.metrics["sharpness"].value == pytest.approx(top, rel=1e-6)
    torch.testing.assert_close(dict(p.model.named_buffers()), buffers, rtol=0, atol=0)
    assert "statistics of all 24 examples, dropout off" in " ".join(result.notes)


def test_what_batchnorm_cancels_is_not_called_low() -> None:
    p, *_ = trained(torch.optim.SGD)
    result = ask(Ratio(), p)
    assert [r["remark"] for r in result.rows if r["tensor"] == "0.bias"] == ["cancelled"]
    assert any(note.startswith("cancelled: BatchNorm takes out") for note in result.notes)
    assert not any("0.bias" in check.message for check in result.checks)


@pytest.mark.parametrize("mode", ["train", "batchnorm"])
def test_what_is_held_out_does_not_depend_on_its_cut(mode: str) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    held = classify(model, inputs(27, 5), cut=(13, 13, 1)).batches
    p = classify(model, inputs(20, 5))
    losses = [
        Problem.of(model, p.loss, p.batches, mode=mode, heldout=h).heldout_loss
        for h in (held, classify(model, inputs(27, 5)).batches)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_mode_that_was_asked_for_is_kept() -> None:
    p, *_ = trained(torch.optim.SGD)
    assert as_trained(replace(p, free=False)).mode == "eval"
    assert as_trained(p).mode == "batchnorm"
    plain = classify(nn.Sequential(nn.Linear(5, 3)), inputs(9, 5))
    assert as_trained(replace(plain, free=True)).batches is plain.batches
    assert (
        as_trained(replace(p, batches=(Batch(torch.ones(1, 5), torch.ones(1), 1),))).mode == "eval"
    )


def test_examples_of_different_shapes_stay_in_their_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 3))
    y = torch.tensor([0, 1, 2])
    batches = tuple(Batch(torch.randn(3, 2, k), y, 3) for k in (4, 5))
    p = Problem.of(model, classify(model, torch.randn(3, 2, 4)).loss, batches, free=True)
    assert as_trained(p).mode == "eval"


def test_what_does_not_fit_is_refused() -> None:
    p, *_ = trained(torch.optim.SGD, (8, 8, 8))
    with pytest.raises(CurvError, match="all 24 examples at once") as refused:
        Ratio().run(p, Work(rng=torch.Generator(), memory=2_000))
    assert refused.value.code == "E_MEMORY"
    assert as_trained(p, memory=1e9).mode == "batchnorm"


def test_modes_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    monkeypatch.chdir(project(tmp_path, model=NORMALISED))
    torch.save(model.state_dict(), "model.pt")

    def gradient(*arguments: str) -> float:
        rows = curv("ratio", "-q", "-f", "json", *arguments).report.results["ratio"].rows
        return float(rows[1]["gradient"])

    assert gradient() < 1e-6 < gradient("--mode", "eval")
    assert gradient("--mode", "batchnorm", "--batch-size", "12") == gradient()
    done = curv("ratio", "--mode", "batchnorm", "--batch-size", "5")
    assert "in batchnorm mode BatchNorm makes the loss depend" in done.err


def test_from_python() -> None:
    p, model, optimizer = trained(torch.optim.SGD, (8, 8, 8))
    data = [(b.inputs, b.target) for b in p.batches]
    asked = {"optimizer": optimizer}
    found = curvcli.ratio(model, functional.cross_entropy, data, **asked)
    fixed = curvcli.ratio(model, functional.cross_entropy, data, mode="eval", **asked)
    assert float(found.rows[1]["gradient"]) < 1e-12 < float(fixed.rows[1]["gradient"])
    assert isinstance(p.optimizer(), SavedOptimizer)
