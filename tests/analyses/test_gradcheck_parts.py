"""`gradcheck` beyond the loss: penalties, fresh weights, replay, second order, allow-list."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from faults import BUGS, RIGHT, Spoiled, around
from questions import ask, classify, inputs, interrupted_at, mlp
from second_faults import WRONG
from torch import Tensor, nn
from torch.nn import functional
from zoo import Distances, posed, vectors

import curvcli
from curvcli.analyses.gradcheck import Gradcheck
from curvcli.batches import Terms
from curvcli.errors import CurvError
from curvcli.problem import Problem
from curvcli.report import Result
from curvcli.selftest import Of, op

FEW = Gradcheck(samples=12)


def verdicts(result: Result, part: str = "") -> dict[str, str]:
    return {str(r["tensor"]): str(r["verdict"]) for r in result.rows if r["part"] == part}


def small() -> Problem:
    return classify(mlp(6, 5, 3), inputs(20, 6))


class Halved(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return 0.5 * gradients[0]


def halved(x: Tensor) -> Tensor:
    out: Tensor = Halved.apply(x)  # type: ignore[no-untyped-call]
    return out


# --- penalties ---------------------------------------------------------------------------------


def weights_squared(model: nn.Module) -> Tensor:
    return torch.stack(
        [p.square().sum() for n, p in model.named_parameters() if "weight" in n]
    ).sum()


def test_each_penalty_is_checked_apart() -> None:
    wrong = lambda model: halved(weights_squared(model))  # noqa: E731
    p = replace(small(), penalties={"ridge": weights_squared, "odd": wrong})
    result = ask(FEW, p)
    assert set(verdicts(result).values()) == {"pass"}
    # What a penalty is not about is no finding.
    assert verdicts(result, "penalty ridge") == {"0.weight": "pass", "2.weight": "pass"}
    assert verdicts(result, "penalty odd") == {"0.weight": "fail", "2.weight": "fail"}
    assert result.status == "fail"
    failed = [c for c in result.checks if c.status == "fail"]
    assert {c.name for c in failed} == {"penalty odd: 0.weight", "penalty odd: 2.weight"}
    assert all("penalty odd" in c.advice for c in failed)


# --- fresh weights -----------------------------------------------------------------------------


def test_the_fresh_model_is_checked_too() -> None:
    p = replace(small(), fresh=lambda: mlp(6, 5, 3, seed=4))
    result = ask(Gradcheck(samples=12, also_init=True), p)
    assert set(verdicts(result, "fresh model").values()) == {"pass"}
    trained, fresh = ([r["numeric"] for r in result.rows if r["part"] == part]
                      for part in ("", "fresh model"))  # fmt: skip
    assert trained != fresh


class Saturating(nn.Module):
    """Right for large inputs only, which training has come to give it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.detach().abs().mean() > 1e3 else halved(x)


def test_a_bug_that_only_fresh_weights_show() -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 6), Saturating(), nn.Linear(6, 3))

    trained = made()
    with torch.no_grad():
        next(trained.parameters()).mul_(1e4)
    p = replace(classify(trained, inputs(20, 6)), fresh=made)
    assert ask(FEW, p).status == "pass"
    result = ask(Gradcheck(samples=12, also_init=True), p)
    assert verdicts(result, "fresh model")["0.weight"] == "fail"
    (culprit,) = [c for c in result.checks if c.name == "culprit"]
    assert culprit.message.startswith("1: Saturating")


def test_without_a_factory_there_is_no_fresh_model() -> None:
    with pytest.raises(CurvError) as refused:
        ask(Gradcheck(also_init=True), small())
    assert refused.value.code == "E_USAGE"


# --- replayed randomness -----------------------------------------------------------------------


def dropping(bug: nn.Module | None = None) -> Problem:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6), nn.Dropout(0.4), bug or nn.Tanh(), nn.Linear(6, 3)]
    p = classify(nn.Sequential(*layers), inputs(20, 6))
    return replace(p, mode="train")


@pytest.mark.parametrize("seed", range(3))
def test_replayed_dropout_is_a_fixed_function(seed: int) -> None:
    with pytest.raises(CurvError, match=r"1 \(Dropout\)") as refused:
        ask(FEW, dropping(), seed)
    assert refused.value.code == "E_NONDET"
    replayed = Gradcheck(samples=12, replay_rng=True, second_order=True)
    result = ask(replayed, dropping(), seed)
    assert set(verdicts(result).values()) == {"pass"}
    assert set(verdicts(result, "Hessian").values()) == {"pass"}
    assert not [n for n in result.notes if "one by one" in n]


def test_replayed_dropout_does_not_hide_a_bug() -> None:
    p = dropping(BUGS["a factor 2"].make())
    result = ask(Gradcheck(samples=12, replay_rng=True), p)
    assert verdicts(result)["0.weight"] == "fail"
    (culprit,) = [c for c in result.checks if c.name == "culprit"]
    assert culprit.message.startswith("2: ")


# --- second order ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WRONG)
def test_no_wrong_second_derivative_passes(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    p = around(WRONG[name](), seed)
    assert ask(FEW, p, seed).status == "pass"  # the first derivative is right
    result = ask(Gradcheck(samples=12, second_order=True), p, seed)
    assert result.status == "fail"
    assert "fail" in verdicts(result, "Hessian").values()
    (culprit,) = [c for c in result.checks if c.name == "culprit"]
    assert culprit.message.startswith("1: ")
    assert "second derivative" in culprit.message


def test_a_second_derivative_that_is_missing_is_undecided() -> None:
    result = ask(Gradcheck(samples=7, second_order=True), posed(Distances, vectors()))
    (refused,) = [c for c in result.checks if c.name == "Hessian products"]
    assert "not implemented" in refused.message
    assert result.status == "undecided"


@pytest.mark.parametrize(
    "name", ["tanh", "wide relu", "layer norm", "attention", "gru", "weight norm", "tied"]
)
def test_no_right_second_derivative_fails(name: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        result = ask(
            Gradcheck(samples=12, second_order=True), around(RIGHT[name].make(), seed), seed
        )
        assert result.status in ("pass", "warn"), result.headline
        for part in ("Hessian", "Gauss-Newton"):
            assert "pass" in verdicts(result, part).values()


# --- the allow-list ----------------------------------------------------------------------------


class Quantizer(nn.Module):
    """Rounds, and passes gradients straight through."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


def quantized(*after: nn.Module) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(6, 6))
    model.add_module("quantizer", Quantizer())
    for i, module in enumerate(after):
        model.add_module(f"after{i}", module)
    model.add_module("head", nn.Linear(6, 3))
    return classify(model, 2 * inputs(20, 6))


def test_an_intended_gradient_is_excused_and_listed() -> None:
    assert ask(FEW, quantized()).status == "fail"
    allowed = Gradcheck(samples=12, ignore={"quantizer.*": "straight-through"})
    result = ask(allowed, quantized())
    assert result.status == "pass"
    found = verdicts(result)
    assert found["encoder.weight"] == found["encoder.bias"] == "ignored"
    assert found["head.weight"] == found["head.bias"] == "pass"
    assert any(n.startswith("ignored: encoder.weight") and "straight-through" in n
               for n in result.notes)  # fmt: skip
    assert result.metrics["ignored"].value == 2


class Nested(nn.Module):
    """An allowed module with a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Quantizer()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.round().detach() * self.scale + x - x.detach()) / self.scale
        return out


@pytest.mark.parametrize("seed", range(3))
def test_what_is_inside_an_allowed_module_goes_with_it(seed: int) -> None:
    torch.manual_seed(seed)
    allowed = Gradcheck(samples=12, ignore={"1.*": "straight-through"})
    assert ask(allowed, around(Nested(), seed), seed).status == "pass"


@pytest.mark.parametrize("seed", range(3))
def test_second_derivatives_are_excused_only_where_the_rest_is_right(seed: int) -> None:
    allowed = Gradcheck(samples=12, second_order=True, ignore={"quantizer": "straight-through"})
    result = ask(allowed, quantized(nn.Tanh()), seed)
    assert result.status == "pass", result.headline
    assert "ignored" in verdicts(result, "Hessian").values()
    result = ask(allowed, quantized(WRONG["a detached factor"]()), seed)
    assert result.status == "fail"
    assert "fail" in verdicts(result, "Hessian").values()


def test_the_allow_list_hides_nothing_else() -> None:
    allowed = Gradcheck(samples=12, ignore={"quantizer": "straight-through"})
    result = ask(allowed, quantized(BUGS["a factor 2"].make()))
    assert result.status == "fail"
    (culprit,) = [c for c in result.checks if c.name == "culprit"]
    assert culprit.message.startswith("after0: ")


class Block(nn.Module):
    """Holds a quantizer, and a bug of its own before, beside or behind it."""

    def __init__(self, bug: nn.Module, where: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.quantizer = Quantizer()
        self.f = bug.f
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        f: Any = self.f
        q = self.quantizer
        ways = {"before": lambda: q(f(h)), "beside": lambda: f(h) + q(h), "behind": lambda: f(q(h))}
        out: Tensor = ways[self.where]()
        return out


@pytest.mark.parametrize("where", ["before", "beside", "behind"])
@pytest.mark.parametrize("seed", range(3))
def test_the_allow_list_does_not_excuse_what_holds_the_module(where: str, seed: int) -> None:
    allowed = Gradcheck(samples=12, ignore={"1.quantizer": "straight-through"})
    torch.manual_seed(seed)
    right = around(Block(RIGHT["a Function"].make(), where), seed)
    result = ask(allowed, right, seed)
    assert result.status == "pass", result.headline
    assert verdicts(result)["1.encoder.weight"] == "ignored"
    wrong = around(Block(BUGS["a factor 2"].make(), where), seed)
    result = ask(allowed, wrong, seed)
    assert result.status == "fail"
    assert verdicts(result)["1.encoder.weight"] == "fail"


@pytest.mark.parametrize("type", [torch.bfloat16, torch.float16, torch.float32])
def test_a_part_in_low_precision_is_no_wrong_gradient(type: torch.dtype) -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(type).to(x.dtype)

    for seed in range(4):
        torch.manual_seed(seed)
        result = ask(FEW, around(Cast(), seed), seed)
        assert result.status == "undecided", result.headline
        assert any(str(type).removeprefix("torch.") in n for n in result.notes)


def test_an_entry_far_below_its_direction_does_not_pass() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        x = inputs(20, 6, seed=seed)
        x[:, 4] *= 1e-7
        result = ask(
            Gradcheck(samples=20, entries="all"), classify(Spoiled(3, (1, 4), 1.5), x), seed
        )
        assert verdicts(result)["w"] == "fail"
        assert result.rows[0]["at"] == "[1, 4]"


@pytest.mark.parametrize("seed", range(3))
def test_a_padding_row_is_left_out_on_purpose(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        model.get_parameter("0.weight").normal_()
    x = torch.randint(5, (20, 2), generator=torch.Generator().manual_seed(seed))
    every = Gradcheck(samples=20, entries="all", blame="always", second_order=True)
    result = ask(every, classify(model, x), seed)
    assert result.status == "pass", result.headline


@pytest.mark.parametrize("seed", range(4))
def test_an_allowed_estimator_is_excused_at_every_seed(seed: int) -> None:
    allowed = Gradcheck(samples=12, ignore={"quantizer": "straight-through"})
    assert ask(allowed, quantized(nn.Tanh()), seed).status == "pass"


def test_a_gradient_too_small_to_tell_is_not_called_zero() -> None:
    wrong = around(BUGS["a sign"].make(), 0)
    p = replace(wrong, loss=lambda out, batch: Terms(1e3 + 1e-9 * out.sum(), 1.0))
    result = ask(FEW, p)
    assert "vacuous" not in verdicts(result).values()
    assert result.status == "undecided"


def test_train_mode_from_python() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    batch = (inputs(12, 6), torch.arange(12) % 3)
    result = curvcli.gradcheck(
        model, functional.cross_entropy, [batch], mode="train", replay_rng=True
    )
    assert result.status == "pass"
    with pytest.raises(CurvError, match="Dropout"):
        curvcli.gradcheck(model, functional.cross_entropy, [batch], mode="train")


def test_a_backward_that_raises_is_the_models() -> None:
    def raising(x: Tensor) -> Tensor:
        y = x.exp()
        y += 1  # exp needs its result
        return y

    with pytest.raises(CurvError, match="the backward pass fails") as refused:
        ask(FEW, around(Of(raising), 0))
    assert refused.value.code == "E_MODEL"


def test_a_random_penalty_is_told_as_such() -> None:
    p = replace(small(), penalties={"odd": lambda model: torch.rand(()) * weights_squared(model)})
    with pytest.raises(CurvError, match="penalty odd") as refused:
        ask(FEW, p)
    assert refused.value.code == "E_NONDET"


def test_masks_and_children_that_need_their_parent_are_not_accused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = op(lambda ctx, x, m: (ctx.save_for_backward(m), x * m)[1],
                        lambda ctx, g: (g * ctx.saved_tensors[0], None))  # fmt: skip

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = self.f(x, mask)
            return out

    class Fed(nn.Module):
        """Needs what its parent sets."""

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x * self.__dict__.pop("scale")
            return out

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.masked, self.fed = Masked(), Fed()

        def forward(self, x: Tensor) -> Tensor:
            self.fed.__dict__["scale"] = 2.0
            out: Tensor = self.fed(self.masked(x, (x > 0).to(x)))
            return out

    torch.manual_seed(0)
    result = ask(Gradcheck(samples=12, blame="always"), around(Outer(), 0))
    assert result.status == "pass", [c for c in result.checks if c.status != "pass"]


def test_a_tensor_can_be_ignored_by_name() -> None:
    p = around(BUGS["a factor 2"].make(), 0)
    result = ask(Gradcheck(samples=12, ignore={"0.weight": "known", "0.bias": "known"}), p)
    assert verdicts(result)["0.weight"] == "ignored"


def test_an_entry_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(CurvError, match=r"'quantiser\.\*' matches no parameter and no module"):
        ask(Gradcheck(ignore={"quantiser.*": "straight-through"}), quantized())


def test_an_entry_that_excuses_nothing_is_told() -> None:
    result = ask(Gradcheck(samples=12, ignore={"2": "was wrong once"}), small())
    assert result.status == "pass"
    assert "ignore: '2' excused nothing here" in result.notes


@pytest.mark.parametrize("given", [["q.*"], {"q.*": " "}, [3], {"": "why"}])
def test_an_entry_needs_a_reason(given: Any) -> None:
    with pytest.raises(ValueError, match="reason"):
        Gradcheck(ignore=given)


@pytest.mark.parametrize("given", [["q.*=why not"], [{"q.*": "why not"}], {"q.*": "why not"}])
def test_spellings_of_the_allow_list(given: Any) -> None:
    assert Gradcheck(ignore=given).ignore == {"q.*": "why not"}


# --- the sweep, coverage, reach ----------------------------------------------------------------


def test_a_sweep_is_a_v_for_a_right_tensor_and_flat_for_a_wrong_one() -> None:
    p = around(BUGS["a factor 2"].make(), 0)
    (figure,) = ask(Gradcheck(samples=12, sweep=True), p).figures
    lines = {line.label: line for line in figure.lines}
    right = [y for y in lines["2.weight"].y if y is not None]
    assert min(right) < 1e-8
    assert right[0] > 1e3 * min(right)
    assert right[-1] > 1e3 * min(right)
    wrong = [y for y in lines["0.weight"].y if y is not None]
    assert min(wrong[4:]) > 0.1
    assert lines["0.weight"].status == "fail"
    assert [level.value for level in figure.levels] == [FEW.tolerance]


def test_what_is_not_exercised_is_told() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    with torch.no_grad():
        model.get_parameter("2.bias")[2] = -100.0  # a unit that never fires
    x = torch.randint(6, (20, 2), generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 3
    y[:4] = -100
    from curvcli.batches import Batch
    from curvcli.load.loss import named

    p = Problem.of(model, named("cross_entropy", {}), [Batch(x, y, 20)])
    notes = "\n".join(ask(Gradcheck(samples=20), p).notes)
    assert "4 of 10 of 0.weight" in notes
    assert "1 of 5 of 2.weight" in notes
    assert "targets left out by ignore_index: 4" in notes
    assert "depth: " in notes


def test_hooks_that_no_check_sees_are_told() -> None:
    p = small()
    p.params["0.bias"].register_post_accumulate_grad_hook(lambda p: None)  # type: ignore[no-untyped-call]
    assert "not checked: hooks after accumulation on 0.bias" in ask(FEW, p).notes


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:`torch.jit.script`")
def test_a_script_inside_the_model_is_no_obstacle() -> None:
    inner = torch.jit.script(nn.Linear(6, 6))
    result = ask(Gradcheck(samples=12, blame="always"), around(inner, 0))
    assert result.status == "pass"


def test_every_entry_can_be_checked() -> None:
    result = ask(Gradcheck(samples=12, entries="all", directions=1), small())
    assert [r["entries"] for r in result.rows] == [30, 5, 15, 3]
    assert {r["verdict"] for r in result.rows} == {"pass"}


def test_a_costly_model_gets_fewer_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    from curvcli.gradients import cost

    p = small()
    assert cost.plan(p, None, None, None) == (32, 2, 6)
    one = 2 * (6 * 5 + 5 * 3)  # operations of an example
    monkeypatch.setattr(cost, "OPERATIONS", one * 4 * 8 * 3)
    assert cost.plan(p, None, None, None) == (3, 2, 6)
    monkeypatch.setattr(cost, "OPERATIONS", one * 4 * 8 * 0.9)
    assert cost.plan(p, None, None, None) == (1, 1, 2)
    assert cost.plan(p, 5, None, 4) == (5, 1, 4)
    assert cost.plan(p, 5, 2, "all") == (5, 2, None)


def test_an_interruption_keeps_what_is_known() -> None:
    result = ask(FEW, small(), announce=interrupted_at(2))
    assert result.interrupted
    assert len(result.rows) == 2


def test_kinks_that_cancel_never_fail_a_right_gradient() -> None:
    # A row of zeros meets biases of zero: every unit is on its kink, some one way, some the other.
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
        with torch.no_grad():
            model.get_parameter("0.bias").zero_()
        x = inputs(20, 6, seed=seed)
        x[::2] = 0
        result = ask(
            Gradcheck(samples=20, blame="always", second_order=True), classify(model, x), seed
        )
        assert "fail" not in {c.status for c in result.checks}, result.headline


@pytest.mark.parametrize("seed", range(3))
def test_a_lone_wrong_entry_shows_in_its_group(seed: int) -> None:
    torch.manual_seed(seed)
    p = classify(Spoiled(9, (4, 1), 1.0001), inputs(20, 6, seed=seed), classes=9)
    result = ask(Gradcheck(samples=20, entries="all", directions=1), p, seed)
    (row,) = result.rows
    assert (row["verdict"], row["at"]) == ("fail", "[4, 1]")
    assert row["entries"] == 54
    assert row["relative"] == pytest.approx(1e-4, rel=0.1)


def test_groups_need_fewer_evaluations() -> None:
    result = ask(
        Gradcheck(samples=20, entries="all", directions=1), classify(mlp(6, 40, 3), inputs(20, 6))
    )
    assert result.metrics["evaluations"].value < result.rows[0]["entries"]
    assert result.rows[0]["entries"] == 240
    assert result.rows[0]["resolved"] == 241
