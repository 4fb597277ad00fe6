"""`assert_gradients`: a test suite fails where a gradient is wrong, and says all that is known."""

import inspect
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import imports
from questions import inputs, mlp
from test_python_api import state, touched
from torch import Tensor, nn
from torch.nn import functional

import curvcli
from curvcli.errors import CurvError
from curvcli.report import Result
from curvcli.selftest import op
from curvcli.testing import assert_gradients

LOSS = functional.cross_entropy


def batch(features: int = 6, classes: int = 3, examples: int = 12) -> tuple[Tensor, Tensor]:
    y = torch.randint(classes, (examples,), generator=torch.Generator().manual_seed(7))
    return inputs(examples, features), y


class HalfTanh(nn.Module):
    """Its backward gives half of what is right."""

    def __init__(self) -> None:
        super().__init__()
        self.f = op(_forward, lambda ctx, g: g * (1 - ctx.saved_tensors[0] ** 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.f(x)
        return out


def _forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x.tanh())
    return x.tanh()


def wrong() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), HalfTanh(), nn.Linear(5, 3))


def said(*args: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_gradients(*args, **options)
    return str(caught.value)


def test_a_right_gradient_gives_the_result() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = assert_gradients(mlp(6, 5, 3), batch(), LOSS)
    assert isinstance(result, Result)
    assert result.status == "pass"
    assert [r["verdict"] for r in result.rows] == 4 * ["pass"]


def test_a_wrong_gradient_is_told_with_its_place_and_its_culprit() -> None:
    message = said(wrong(), batch(), LOSS)
    first = message.splitlines()[0]
    assert first.startswith("the gradient is wrong in 2 of 4 tensors, worst in 0.")
    assert first.endswith("the culprit is 1 (HalfTanh)")
    assert message.count(first) == 1
    rows = [line.split() for line in message.splitlines()]
    assert [row[:2] for row in rows if row and row[0][1:2] == "."] == [
        ["0.weight", "fail"], ["0.bias", "fail"], ["2.weight", "pass"], ["2.bias", "pass"]
    ]  # fmt: skip
    line = inspect.getsourcelines(HalfTanh)[1]
    assert f"culprit: 1: HalfTanh ({Path(__file__).name}:{line}), its derivative by" in message
    assert "FAIL  0.bias: at [" in message


@pytest.mark.parametrize("options", [{}, {"second_order": True, "samples": 5}, {"sweep": True}])
def test_the_message_is_ascii_and_does_not_depend_on_the_terminal(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for columns, color in (("20", ""), ("200", "1")):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("FORCE_COLOR", color)
        found.append(said(wrong(), batch(), LOSS, **options))
    assert found[0] == found[1]
    assert found[0].isascii()
    assert found[0].replace("\n", "").isprintable()


def test_names_are_spelled_out() -> None:
    model = wrong()
    model.register_module("größe" + 90 * "x", nn.Linear(3, 3))
    assert r"gr\xf6\xdfe" + 90 * "x" + ".weight  pass" in said(model, batch(), LOSS)


def test_what_cannot_be_decided_fails_and_says_so() -> None:
    message = said(mlp(6, 5, 3), batch(), LOSS, 1e-7, dtype="float32")
    assert message.startswith("whether the gradient is right could not be decided: ")
    assert "\nUNDECIDED\n" in message
    assert "0.weight  unresolved" in message
    assert "wrong" not in message


def test_nothing_to_check_is_undecided() -> None:
    message = said(nn.Linear(6, 3), batch(), lambda output, target: 0 * output.sum())
    assert message.startswith("whether the gradient is right could not be decided: ")
    assert "every gradient is zero on these examples" in message


def test_a_tensor_without_gradient_is_a_warning() -> None:
    model = mlp(6, 5, 3)
    model[0].register_parameter("spare", nn.Parameter(torch.ones(2)))
    with pytest.warns(UserWarning, match=r"^0\.spare: .*nothing was checked$") as caught:
        result = assert_gradients(model, batch(), LOSS)
    assert caught[0].filename == __file__
    assert result.status == "warn"


def test_options_are_those_of_the_analysis() -> None:
    result = assert_gradients(mlp(6, 5, 3), batch(), LOSS, samples=3, entries=2, seed=5)
    assert (result.options["samples"], result.options["tolerance"]) == (3, 1e-5)
    assert {r["entries"] for r in result.rows} == {2}
    same = curvcli.gradcheck(mlp(6, 5, 3), LOSS, [batch()], samples=3, entries=2, seed=5)
    assert same.rows == result.rows
    assert "culprit" not in said(wrong(), batch(), LOSS, blame="never")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tolerence": 1e-3}, "'tolerence' is not known here — did you mean 'tolerance'?"),
        ({"tolerance": -1}, "gradcheck(tolerance=): -1 should be greater than 0"),
        ({"entries": "most"}, "gradcheck(entries=)"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(CurvError) as caught:
        assert_gradients(mlp(6, 3), batch(), LOSS, **options)
    assert str(caught.value).startswith("E_USAGE: ")
    assert expected in str(caught.value)


def test_several_batches_are_refused() -> None:
    with pytest.raises(CurvError, match="E_DATA: a batch is a list — yield"):
        assert_gradients(mlp(6, 3), [batch(), batch(), batch()], LOSS)


@pytest.mark.parametrize("right", [True, False])
def test_the_model_is_left_as_it_was(right: bool) -> None:
    model = touched()
    if not right:
        model[3] = HalfTanh()
    given = inputs(12, 4), torch.randint(2, (12,))
    before = state(model)
    if right:
        assert_gradients(model, given, LOSS)
    else:
        said(model, given, LOSS)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


def test_ctrl_c_stops_the_suite() -> None:
    calls = iter(range(100))

    def interrupted(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == 12:
            raise KeyboardInterrupt
        return LOSS(output, target)

    with pytest.raises(KeyboardInterrupt):
        assert_gradients(mlp(6, 5, 3), batch(), interrupted)


SUITE = """
import torch
from torch import nn
from torch.nn import functional
from curvcli.testing import assert_gradients

class Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()
    @staticmethod
    def backward(ctx, g):
        return g

class Sine(nn.Module):
    def forward(self, x):
        return Forgetful.apply(x)

def test_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Sine(), nn.Linear(3, 2))
    assert_gradients(model, (torch.randn(9, 4), torch.randint(2, (9,))), functional.cross_entropy)
"""


def run(folder: Path, *arguments: str) -> Sequence[str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120,
        env={"OMP_NUM_THREADS": "1", "PATH": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return (done.stdout + done.stderr).splitlines()


def test_in_a_suite_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    lines = run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly")
    # The frames of curvcli are hidden: the error stands at the line of the suite.
    assert any(line.endswith(":22: AssertionError") for line in lines)
    assert any("culprit: 1: Sine (test_mine.py:15)" in line for line in lines)
    assert not any("testing.py" in line for line in lines)


def test_without_pytest(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SUITE + "\ntest_gradients()\n")
    lines = run(tmp_path, "mine.py")
    assert any(line.startswith("AssertionError: the gradient is wrong in 2 of 4") for line in lines)


def test_the_import_costs_no_torch() -> None:
    assert not imports("import curvcli.testing", "torch", "pytest")
