"""What a spec says beside the loss reaches the Problem: a fresh model, and penalties apart."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import project, small_model

from curvcli.errors import CurvError
from curvcli.load.assemble import Loaded, assemble
from curvcli.load.penalty import penalties
from curvcli.spec import Run, load

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, *sizes):
        torch.manual_seed(torch.initial_seed() + 7)
        super().__init__(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

widths = [3, 5]

def growing():
    w = widths.pop(0)
    return nn.Sequential(nn.Linear(4, w), nn.Tanh(), nn.Linear(w, 2))

def tv(model, power=2, scale=1.0):
    return scale * model[0].weight.diff(dim=0).abs().pow(power).sum()

def kept(model):
    return tv(model).reshape(1)

def number(model):
    return 3.0

def vector(model):
    return model[0].weight.square().sum(dim=0)

def count(model):
    return torch.tensor(3)

def raising(model):
    raise ValueError("no such layer")

def nothing(model):
    return tv(model) * float("nan")

constant = 3
"""


@pytest.fixture(autouse=True)
def _own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_for_tests.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("own_for_tests", None)


def assembled(run: Run | None = None, **changes: Any) -> Loaded:
    folder = project(Path(), python_path=["."], **changes)
    spec = load(folder / "curv.yaml")
    return assemble(spec, folder / "model.pt", run or Run(device="cpu"), None, None)


def own(name: str, **args: Any) -> dict[str, Any]:
    return {"target": f"own_for_tests:{name}", "args": args}


def refused(code: str, **changes: Any) -> str:
    with pytest.raises(CurvError) as failed:
        assembled(**changes)
    assert failed.value.code == code, str(failed.value)
    assert "\n" not in str(failed.value)
    return str(failed.value)


@pytest.mark.parametrize("dtype", ["auto", "float64"])
def test_a_fresh_model(dtype: Any) -> None:
    problem = assembled(Run(device="cpu", dtype=dtype)).problem
    first = problem.initial()
    assert first.names == problem.names
    assert first.like.dtype == problem.like.dtype
    assert torch.equal(first.vector(), problem.initial().vector())
    # The sample's seed is 0, as the seed of a fresh model is.
    assert torch.equal(first.vector(), problem.vector())
    made = assembled(model=own("Net")).problem
    assert not torch.equal(made.initial().vector(), made.vector())
    assert made.initial().measure.loss != made.measure.loss
    assert torch.equal(made.vector(), problem.vector().to(torch.float32))


def test_fresh_models_of_a_selection() -> None:
    run = Run(device="cpu", params=("2.*",))
    assert assembled(run, model=own("Net")).problem.initial().names == ("2.weight", "2.bias")


def test_making_a_fresh_model_changes_nothing() -> None:
    problem = assembled(model=own("Net")).problem
    theta, before = problem.vector(), torch.get_rng_state()
    problem.initial()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(problem.vector(), theta)


def test_a_factory_that_makes_another_model_later() -> None:
    problem = assembled(model={"target": "own_for_tests:growing"}).problem
    with pytest.raises(CurvError, match=r"0.weight of shape \(5, 4\), not \(3, 4\)") as failed:
        problem.initial()
    assert failed.value.code == "E_MODEL"


def test_penalties() -> None:
    plain = assembled().problem
    loaded = assembled(penalty={"l2": 0.5, "l1": 0.25, "smooth": own("tv", scale=3.0)})
    problem, theta = loaded.problem, plain.vector()
    assert problem.measure.loss == plain.measure.loss
    assert list(problem.penalties) == ["l2", "l1", "smooth"]
    l2, l1, smooth = (problem.penalised(name) for name in problem.penalties)
    assert torch.allclose(l2.gradient(), 0.5 * theta)  # as SGD's weight_decay=0.5 adds it
    assert torch.allclose(l1.gradient(), 0.25 * theta.sign())
    assert l2.measure.loss == pytest.approx(0.25 * float(theta.square().sum()))
    assert l1.measure.loss == pytest.approx(0.25 * float(theta.abs().sum()))
    weight = plain.params["0.weight"].detach()
    assert smooth.measure.loss == pytest.approx(3 * float(weight.diff(dim=0).square().sum()))
    assert smooth.unused() == ["0.bias", "2.weight", "2.bias"]
    for name in problem.penalties:
        said = f"penalty {name}: checked apart by gradcheck; no other figure includes it"
        assert said in loaded.notes
        assert problem.penalised(name).names == plain.names
        double = problem.to(torch.float64).penalised(name)
        assert double.measure.loss == pytest.approx(problem.penalised(name).measure.loss, rel=1e-6)
    assert loaded.provenance["notes"] is loaded.notes


def test_penalties_are_over_the_selected_parameters() -> None:
    run = Run(device="cpu", params=("2.*",))
    problem = assembled(run, penalty={"l2": 2.0}).problem.penalised("l2")
    assert problem.measure.loss == pytest.approx(float(problem.vector().square().sum()))
    assert torch.equal(problem.gradient(), 2 * problem.vector())


def test_a_penalty_of_fresh_weights() -> None:
    problem = assembled(model=own("Net"), penalty={"l2": 2.0}).problem
    fresh = problem.initial().penalised("l2")
    assert fresh.measure.loss == pytest.approx(float(fresh.vector().square().sum()))
    assert fresh.measure.loss != problem.penalised("l2").measure.loss


def test_a_penalty_without_weight_is_left_out() -> None:
    loaded = assembled(penalty={"l2": 0, "l1": 1})
    assert list(loaded.problem.penalties) == ["l1"]
    assert "penalty l2: its weight is 0, so it is left out" in loaded.notes


def test_a_number_in_a_tensor_is_a_number() -> None:
    problem = assembled(penalty={"kept": own("kept")}).problem.penalised("kept")
    assert problem.terms(problem.batches[0]).total.ndim == 0


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("number", "E_LOSS", "the penalty own (own_for_tests:number) returned a float"),
        ("vector", "E_LOSS", "(own_for_tests:vector) returned a tensor of float32 (4,)"),
        ("count", "E_LOSS", "returned a tensor of int64 ()"),
        ("raising", "E_LOSS", "the penalty own: ValueError: no such layer (own_for_tests.py:"),
        ("constant", "E_LOSS", "the penalty own: TypeError: 'int' object is not callable"),
        ("nothing", "E_NONFINITE", "the penalty own is nan"),
        ("nought", "E_IMPORT", "'nought' is not known here"),
    ],
)
def test_penalties_that_fail(name: str, code: str, said: str) -> None:
    assert said in refused(code, penalty={"own": own(name)})


def test_arguments_that_a_penalty_does_not_take() -> None:
    said = refused("E_LOSS", penalty={"own": own("tv", powr=2)})
    assert "the penalty own: TypeError: " in said
    assert "'powr'" in said


def test_norms_by_hand() -> None:
    model = small_model().double()
    found = penalties({"l1": 2.0, "l2": 3.0}, ["0.bias", "2.weight"])
    own = dict(model.named_parameters())
    chosen = torch.cat([own["0.bias"], own["2.weight"].flatten()])
    assert found["l1"](model).item() == pytest.approx(2 * chosen.abs().sum().item())
    assert found["l2"](model).item() == pytest.approx(1.5 * chosen.square().sum().item())
