"""Models built from layers and from users' factories: the same every time, or one plain line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvcli.errors import CurvError
from curvcli.load.code import add_paths, call, find
from curvcli.load.model import build, rebuild
from curvcli.spec import Layers, Target

NAME = "factories_for_tests"
FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)

    class Inner(nn.Module):
        pass

def make(**options):
    return Net(**options)

def number():
    return 7

def broken():
    raise RuntimeError("out of\\nluck")

made = Net()

def same():
    return made

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)

    def tie_weights(self):
        self.b.weight = self.a.weight

def leaving():
    raise SystemExit(3)

value = 5
"""


@pytest.fixture(autouse=True)
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{NAME}.py").write_text(FACTORIES)
    (tmp_path / "failing_for_tests.py").write_text("import torch\n1 / 0\n")
    (tmp_path / "needy_for_tests.py").write_text("import there_is_no_such_module\n")
    (tmp_path / "garbled_for_tests.py").write_text("def f(:\n")
    (tmp_path / "stopping_for_tests.py").write_text("raise SystemExit\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    add_paths([tmp_path])
    yield
    for name in [n for n in sys.modules if n.endswith("_for_tests")]:
        del sys.modules[name]


def layers(*given: Any) -> Layers:
    return Layers.model_validate({"layers": list(given)})


def test_layers() -> None:
    model = build(layers(
        {"Linear": [4, 3]}, "Tanh",
        {"Sequential": [{"Linear": {"in_features": 3, "out_features": 2, "bias": False}}, "ReLU"]},
        {"Dropout": 0.25},
    ))  # fmt: skip
    assert isinstance(model, nn.Sequential)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.0.weight"]
    dropout = model[3]
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.25
    assert model(torch.zeros(5, 4)).shape == (5, 2)


def test_fresh_weights_depend_on_nothing() -> None:
    before = torch.random.get_rng_state()
    first = build(layers({"Linear": [4, 3]}))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    second = build(layers({"Linear": [4, 3]}))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["Linar"], r"model.layers\[0\]: 'Linar' is not known here — did you mean 'Linear'"),
        (["Tanh", {"Linear": [4]}], r"model.layers\[1\]: Linear\(4\): .*missing 1 required"),
        ([{"Linear": {"in": 4}}], r"Linear\(in=4\): .*unexpected keyword argument 'in'"),
        ([{"Sequential": [{"Linear": "x"}]}], r"layers\[0\].Sequential\[0\]: Linear\('x'\)"),
        (["Parameter"], "'Parameter' is not known"),
        (["functional"], "'functional' is not known"),
    ],
)
def test_layers_that_are_none(given: list[Any], message: str) -> None:
    with pytest.raises(CurvError, match=message) as failed:
        build(layers(*given))
    assert failed.value.code == "E_MODEL"
    assert "\n" not in str(failed.value)


def test_factories() -> None:
    for name in ("Net", "make"):
        model = build(Target(NAME, name, {"width": 5}))
        assert model.state_dict()["layer.weight"].shape == (5, 2)
        again = build(Target(NAME, name, {"width": 5}))
        assert torch.equal(model.state_dict()["layer.weight"], again.state_dict()["layer.weight"])
    assert type(build(Target(NAME, "Net.Inner"))).__name__ == "Inner"


def test_built_again() -> None:
    target = Target(NAME, "Net", {"width": 5})
    loaded = build(target)
    again = rebuild(target, loaded)
    assert again is not loaded
    assert torch.equal(again.state_dict()["layer.weight"], loaded.state_dict()["layer.weight"])
    tied = Target(NAME, "Tied")
    assert [n for n, _ in rebuild(tied, build(tied)).named_parameters()] == ["a.weight"]


def test_a_factory_that_keeps_its_model() -> None:
    target = Target(NAME, "same")
    with pytest.raises(CurvError, match="gives the parameters that were loaded") as failed:
        rebuild(target, build(target))
    assert failed.value.code == "E_MODEL"


@pytest.mark.parametrize(
    ("module", "name", "args", "refused", "message"),
    [
        (NAME, "mak", {}, "E_IMPORT", "'mak' is not known here — did you mean 'make'"),
        (NAME, "value.deeper", {}, "E_IMPORT", "'deeper' is not known"),
        (NAME, "number", {}, "E_MODEL", "gave a int, not a torch.nn.Module"),
        (NAME, "Net", {"depth": 1}, "E_MODEL", "TypeError: .*unexpected keyword argument 'depth'"),
        (NAME, "broken", {}, "E_MODEL", rf"RuntimeError: out of \({NAME}.py:\d+\)"),
        (NAME, "leaving", {}, "E_MODEL", "SystemExit: 3"),
        (NAME, "value", {}, "E_MODEL", "not callable"),
        ("nowhere_for_tests", "f", {}, "E_IMPORT", "there is no module 'nowhere_for_tests'"),
        (f"{NAME}.deeper", "f", {}, "E_IMPORT", "there is no module"),
        ("needy_for_tests", "f", {}, "E_IMPORT", "needs there_is_no_such_module"),
        ("failing_for_tests", "f", {}, "E_IMPORT", r"ZeroDivisionError.*failing_for_tests.py:2"),
        ("garbled_for_tests", "f", {}, "E_IMPORT", r"SyntaxError.*garbled_for_tests.py:1"),
        ("stopping_for_tests", "f", {}, "E_IMPORT", "SystemExit"),
    ],
)
def test_factories_that_fail(
    module: str, name: str, args: dict[str, Any], refused: str, message: str
) -> None:
    with pytest.raises(CurvError, match=message) as failed:
        build(Target(module, name, args))
    assert failed.value.code == refused
    assert "\n" not in str(failed.value)
    assert failed.value.hint


def test_paths_are_appended_once(tmp_path: Path) -> None:
    before = list(sys.path)
    add_paths([tmp_path / "a", tmp_path / "a"])
    assert sys.path == [*before, str(tmp_path / "a")]


def test_what_the_user_may_not_catch() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def refused() -> None:
        raise CurvError("E_DATA", "their own")

    with pytest.raises(KeyboardInterrupt):
        call("E_MODEL", "it", interrupted, (), {})
    with pytest.raises(CurvError, match="E_DATA: their own"):
        call("E_MODEL", "it", refused, (), {})
    assert find("math", "pi") == pytest.approx(3.14159, abs=1e-5)
