"""`sanity`: what every check says, and what it leaves as it was."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import curv, project
from questions import ask, classify, inputs, interrupted_at, mlp
from torch import Tensor, nn
from torch.nn import functional
from trained import FAULTS, HEALTHY, posed
from zoo import ZOO

import curvcli
from curvcli.analyses.sanity import Sanity
from curvcli.load.loss import returned
from curvcli.problem import Problem
from curvcli.report import Result

SAMPLES = Path(__file__).parents[2] / "sample_models"


def verdicts(result: Result) -> dict[str, str]:
    return {str(r["check"]): str(r["verdict"]) for r in result.rows}


def row(result: Result, check: str) -> dict[str, object]:
    return dict(next(r for r in result.rows if r["check"] == check))


@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "modular_transformer", "broken"])
def test_no_sample_is_warned_of(name: str, seed: str) -> None:
    found = curv("sanity", SAMPLES / f"{name}.pt", "--seed", seed, "--format", "json")
    assert found.code == 0
    result = found.report.results["sanity"]
    assert set(verdicts(result).values()) == {"pass", "known"}
    assert len(result.rows) == 13


def test_fresh_weights_are_at_chance_within_their_error() -> None:
    result = ask(Sanity(steps=0), posed(HEALTHY["relu"], 0))
    found = row(result, "fresh weights at chance")
    assert found["found"] == pytest.approx(math.log(10), abs=0.05)
    y = torch.cat([b.target for b in posed(HEALTHY["relu"], 0).batches])
    share = torch.bincount(y, minlength=10) / len(y)
    entropy = -float((share * share.log()).sum())
    assert found["expected"] == f"2.303 (log 10), {entropy:.4g} (best constant)"
    assert 0 < float(str(found["error"])) < 0.05


def test_a_factory_that_loads_trained_weights_is_seen() -> None:
    p = posed(HEALTHY["relu"], 0)
    trained = p.model
    result = ask(Sanity(steps=0), replace(p, fresh=lambda: trained))
    assert verdicts(result)["fresh weights at chance"] == "warn"


def test_the_numbers_are_those_of_the_problem() -> None:
    p = posed(HEALTHY["tanh"], 1)
    result = ask(Sanity(steps=0), p)
    assert result.metrics["loss"].value == pytest.approx(p.measure.loss, rel=1e-6)
    assert result.metrics["heldout_loss"].value == pytest.approx(p.heldout_loss, rel=1e-6)
    gap = (p.heldout_loss or 0) - p.measure.loss
    assert result.metrics["gap"].value == pytest.approx(gap, rel=1e-5)
    held = p.heldout[0]
    with torch.no_grad():
        right = float((p.model(held.inputs).argmax(1) == held.target).double().mean())
    assert result.metrics["heldout_accuracy"].value == pytest.approx(right)
    assert result.metrics["heldout_accuracy"].error == pytest.approx(
        math.sqrt(right * (1 - right) / 200)
    )


def test_without_a_factory_the_subset_is_fitted_from_the_checkpoint() -> None:
    result = ask(Sanity(), replace(posed(HEALTHY["relu"], 0), fresh=None))
    assert verdicts(result)["fresh weights at chance"] == "not run"
    assert "from the checkpoint" in str(row(result, "tiny subset overfitted")["remark"])
    assert result.status == "pass"


def test_a_model_that_gives_its_loss_is_told_what_can_be() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = self.a(x)
            return {"loss": functional.cross_entropy(out, (x[:, 0] > 0).long())}

    torch.manual_seed(0)
    p = replace(classify(Own(), inputs(60, 6)), loss=returned("loss"))
    result = ask(Sanity(), p)
    found = verdicts(result)
    assert result.status == "pass"
    assert found["mean over examples"] == "pass"
    assert found["loss"] == "known"
    assert found["examples apart"] == found["labels against permuted"] == "not run"


def test_few_examples_decide_nothing_about_labels() -> None:
    found = ask(Sanity(steps=0), classify(mlp(6, 8, 3), inputs(20, 6)))
    assert verdicts(found)["labels against permuted"] == "not run"
    assert "20 examples are too few" in str(row(found, "labels against permuted")["remark"])


def test_a_model_that_refuses_other_batch_sizes_is_no_bug() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x.view(60, 6))
            return out

    result = ask(Sanity(steps=1), classify(Fixed(), inputs(60, 6)))
    assert verdicts(result)["examples apart"] == "not run"
    assert row(result, "loss")["found"] == pytest.approx(result.metrics["loss"].value)


def test_regression_with_fewer_parameters_than_targets_is_not_judged() -> None:
    result = ask(Sanity(), ZOO["linear regression"]())
    found = row(result, "tiny subset overfitted")
    assert found["verdict"] == "not run"
    assert found["remark"] == "5 parameters cannot meet 7 real targets"


@pytest.mark.parametrize("name", ["a penalty of the wrong sign", "a detached penalty"])
def test_penalties_are_judged_by_value_and_gradient(name: str) -> None:
    result = ask(Sanity(steps=0), FAULTS[name].make(0))
    assert verdicts(result)["penalty own"] == "warn"


def test_a_sound_penalty_adds_its_value(tmp_path: Path) -> None:
    project(tmp_path, penalty={"l2": 0.1})
    found = curv("sanity", "--spec", tmp_path / "curv.yaml", "--format", "json")
    result = found.report.results["sanity"]
    squares = sum(float(t.square().sum()) for t in torch.load(tmp_path / "model.pt").values())
    assert row(result, "penalty l2")["found"] == pytest.approx(0.05 * squares, rel=1e-6)
    assert verdicts(result)["penalty l2"] == "pass"


def left(p: Problem) -> list[object]:
    return [
        {n: t.clone() for n, t in p.model.state_dict().items()},
        [(q.grad, q.requires_grad) for q in p.model.parameters()],
        [m.training for m in p.model.modules()],
        torch.random.get_rng_state(),
    ]


@pytest.mark.parametrize("stop", [None, 0, 1, 3, 6, 9])
@pytest.mark.parametrize("name", ["convolutional", "transformer"])
def test_the_model_is_left_as_it_was_also_after_ctrl_c(name: str, stop: int | None) -> None:
    p = posed(HEALTHY[name]._replace(steps=3), 0)
    before = left(p)
    result = ask(Sanity(steps=5), p, announce=interrupted_at(10**9 if stop is None else stop))
    assert result.interrupted == (stop is not None)
    after = left(p)
    assert str(before[:3]) == str(after[:3])
    assert torch.equal(before[3], after[3])  # type: ignore[arg-type]


def test_ctrl_c_gives_the_checks_that_are_done() -> None:
    p = posed(HEALTHY["relu"], 0)
    whole = ask(Sanity(steps=0), p)

    def announce(doing: str):  # type: ignore[no-untyped-def]
        return (
            interrupted_at(4)(doing) if doing == "sanity checks" else interrupted_at(10**9)(doing)
        )

    found = ask(Sanity(steps=0), p, announce=announce)
    assert found.interrupted
    assert found.rows == whole.rows[:4]


def test_a_loss_near_chance_is_neither_passed_nor_warned_of() -> None:
    result = ask(Sanity(steps=0), posed(HEALTHY["relu"]._replace(steps=0), 0))
    assert row(result, "loss")["verdict"] in ("not below", "pass")
    scaled = posed(HEALTHY["relu"], 0)
    with torch.no_grad():
        scaled.model.get_submodule("4").get_parameter("weight").mul_(-3)
    assert verdicts(ask(Sanity(steps=0), scaled))["loss"] == "warn"


def test_same_seed_same_answer() -> None:
    p = posed(HEALTHY["convolutional"], 0)
    assert ask(Sanity(steps=20), p).rows == ask(Sanity(steps=20), p).rows


def test_from_python() -> None:
    torch.manual_seed(0)
    x = inputs(60, 6)
    data = [(x, (x[:, 0] > 0).long())]
    result = curvcli.sanity(mlp(6, 8, 2), functional.cross_entropy, data, steps=200)
    assert verdicts(result)["tiny subset overfitted"] == "pass"
