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
from trained import FAULTS, HEALTHY, posed, untrained
from zoo import ZOO

import curvcli
from curvcli.analyses.sanity import Sanity
from curvcli.batches import Batch
from curvcli.load.loss import custom, returned
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
    assert set(verdicts(result).values()) == {"pass", "no verdict"}
    assert len(result.rows) == 16
    assert result.headline == "13 of 13 checks hold, 3 figures without a verdict"


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
    assert found["loss"] == "no verdict"
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
    assert row(result, "loss")["verdict"] in ("not below chance", "pass")
    scaled = posed(HEALTHY["relu"], 0)
    with torch.no_grad():
        scaled.model.get_submodule("4").get_parameter("weight").mul_(-3)
    assert verdicts(ask(Sanity(steps=0), scaled))["loss"] == "warn"


def test_no_steps_are_not_run() -> None:
    found = row(ask(Sanity(steps=0), posed(HEALTHY["relu"], 0)), "tiny subset overfitted")
    assert (found["verdict"], found["remark"]) == ("not run", "no steps are asked for")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["regression", "transformer", "logit"])
def test_labels_tell_nothing_of_fresh_weights(name: str, seed: int) -> None:
    found = row(ask(Sanity(steps=0), untrained(HEALTHY[name], seed)), "labels against permuted")
    # It is a pass where features that are drawn happen to go with the classes.
    assert found["verdict"] in ("not run", "pass")
    if found["verdict"] == "not run":
        assert "the model has not learned yet" in str(found["remark"])


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_targets_of_any_size_do_not_make_fresh_weights_look_trained(size: float) -> None:
    made = HEALTHY["regression"]
    p = untrained(made._replace(target=lambda y: size * made.target(y)), 0)
    assert verdicts(ask(Sanity(steps=0), p))["labels against permuted"] == "not run"


def test_constant_outputs_of_a_last_layer_that_begins_at_zero() -> None:
    fresh = untrained(HEALTHY["zero head"], 0)
    assert verdicts(ask(Sanity(steps=0), fresh))["labels against permuted"] == "not run"
    other = replace(fresh, fresh=posed(HEALTHY["relu"], 0).fresh)
    assert verdicts(ask(Sanity(steps=0), other))["labels against permuted"] == "warn"


@pytest.mark.parametrize("name", ["a sum over the batch", "softmax over the batch"])
def test_losses_of_different_batches_are_not_compared_where_they_are_no_means(name: str) -> None:
    result = ask(Sanity(steps=0), FAULTS[name].make(0))
    said = {r["check"]: r["remark"] for r in result.rows if r["verdict"] == "not run"}
    compared = {"fresh weights at chance", "equal outputs", "loss", "loss held out"}
    no_mean = "the loss is no mean over the examples"
    assert {c for c, why in said.items() if why == no_mean} == compared
    assert not {"loss", "heldout_loss", "gap"} & set(result.metrics)


def test_another_loss_than_cross_entropy_is_not_judged_at_equal_outputs() -> None:
    def focal(out: Tensor, y: Tensor) -> Tensor:
        terms = functional.cross_entropy(out, y, reduction="none")
        return ((1 - (-terms).exp()) ** 2 * terms).mean()

    p = replace(posed(HEALTHY["relu"], 0), loss=custom(focal, {}))
    found = row(ask(Sanity(steps=0), p), "equal outputs")
    assert found["verdict"] == "not run"
    assert f"{0.9**2 * math.log(10):.4g}, not 2.303" in str(found["remark"])


def test_a_leak_that_has_all_of_the_gradient_is_a_number() -> None:
    result = ask(Sanity(steps=0), FAULTS["outputs that mix examples by a reshape"].make(0))
    found = row(result, "examples apart")
    assert found["verdict"] == "warn"
    assert math.isfinite(float(str(found["found"])))
    assert result.status == "warn"


def test_dropout_in_train_mode_is_by_design() -> None:
    p = posed(HEALTHY["relu"], 0)
    dropping = nn.Sequential(nn.Dropout(0.5), p.model)
    p = Problem.of(dropping, p.loss, p.batches, mode="train")
    assert verdicts(ask(Sanity(steps=0), p))["repeatable"] == "not run"
    assert verdicts(ask(Sanity(steps=0), replace(p, mode="eval")))["repeatable"] == "pass"


def test_what_is_random_is_named() -> None:
    result = ask(Sanity(steps=0), FAULTS["dropout in eval mode"].make(0))
    said = next(c.message for c in result.checks if c.name == "repeatable")
    assert "random: the model itself (Dropping)" in said


def test_the_least_that_probabilities_allow_is_told() -> None:
    p = FAULTS["softmax before cross-entropy"].make(0)
    result = ask(Sanity(), p)
    said = next(c.message for c in result.checks if c.name == "outputs are logits")
    # At one for the class and zero for the nine others.
    least = math.log(math.e + 9) - 1
    assert f"{least:.4g}" in said
    remark = str(row(result, "tiny subset overfitted")["remark"])
    assert f"the least that these outputs and targets allow is {least:.3g}"[:-1] in remark


def test_accuracy_stands_beside_the_most_frequent_class() -> None:
    for name in ("relu", "logit", "probability"):
        p = posed(HEALTHY[name], 0)
        y = torch.cat([b.target for b in p.batches]).flatten().long()
        found = row(ask(Sanity(steps=0), p), "accuracy")
        share = int(torch.bincount(y).max()) / len(y)
        assert found["expected"] == f"majority class {share:.3f}"
        assert float(str(found["found"])) > 0.9


def test_no_figure_depends_on_the_batches() -> None:
    p = posed(HEALTHY["relu"], 0)
    x, y = (torch.cat([getattr(b, n) for b in p.batches]) for n in ("inputs", "target"))
    found = []
    for size in (7, 400):
        pairs = zip(torch.split(x, size), torch.split(y, size), strict=True)
        cut = replace(p, batches=tuple(Batch(a, b, len(a)) for a, b in pairs))
        found.append(ask(Sanity(steps=20), cut).rows)
    for one, other in zip(*found, strict=True):
        assert (one["check"], one["verdict"]) == (other["check"], other["verdict"])
        for a, b in ((one[key], other[key]) for key in ("found", "error")):
            assert a == (b if b is None else pytest.approx(b, rel=1e-4, abs=1e-6)), one["check"]
    terms = functional.cross_entropy(p.model(x), y, reduction="none").detach()
    error = next(r["error"] for r in found[0] if r["check"] == "loss")
    assert error == pytest.approx(float(terms.std()) / math.sqrt(len(terms)), rel=1e-5)


def test_same_seed_same_answer() -> None:
    p = posed(HEALTHY["convolutional"], 0)
    assert ask(Sanity(steps=20), p).rows == ask(Sanity(steps=20), p).rows


def test_from_python() -> None:
    torch.manual_seed(0)
    x = inputs(60, 6)
    data = [(x, (x[:, 0] > 0).long())]
    result = curvcli.sanity(mlp(6, 8, 2), functional.cross_entropy, data, steps=200)
    assert verdicts(result)["tiny subset overfitted"] == "pass"


def test_fresh_weights_go_by_the_statistics_of_their_batch() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
        )  # fmt: skip

    # By the running statistics of fresh weights, which nothing has set, they would be far off.
    x = inputs(60, 6) * 200 + 500
    found = row(ask(Sanity(steps=0), replace(classify(make(), x), fresh=make)),
                "fresh weights at chance")  # fmt: skip
    y = torch.cat([b.target for b in classify(make(), x).batches])
    expected = functional.cross_entropy(make().train()(x), y).item()
    assert found["found"] == pytest.approx(expected, rel=1e-3)
    assert found["verdict"] == "pass"


def test_a_model_that_refuses_other_weights_is_no_reason_to_warn() -> None:
    class Factored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gram = nn.Parameter(torch.eye(3))
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.sigmoid(self.linear(x) @ torch.linalg.cholesky(self.gram))
            return out

    torch.manual_seed(0)
    result = ask(Sanity(steps=0), classify(Factored(), inputs(80, 6)))
    assert row(result, "equal outputs")["verdict"] != "not run"
    assert row(result, "labels against permuted")["verdict"] == "not run"
