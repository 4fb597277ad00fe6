"""curv.yaml: what it may say, where it is found, and how every mistake is told."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from cases import imports
from pydantic import ValidationError

from curvcli.errors import CurvError
from curvcli.options import Options, option
from curvcli.spec import (
    Answers,
    Csv,
    Drawn,
    Held,
    Layer,
    Layers,
    NamedLoss,
    Npy,
    Npz,
    Optimizer,
    OutputLoss,
    Pt,
    Run,
    Spec,
    Synthetic,
    Target,
    TargetLoss,
    configured,
    discover,
    load,
    schema,
)

EXAMPLE = """\
version: 1
checkpoint: digits_mlp.pt
model: {layers: [{Linear: [64, 128]}, Tanh, {Linear: [128, 10]}]}
python_path: [.]
data: {format: npz, path: digits.npz, x: images, y: labels, batch_size: 128, samples: 1024}
heldout: {samples: 512}
loss: cross_entropy
penalty: {l2: 1.0e-4, smooth: {target: "reg:tv", args: {power: 2}}}
optimizer: {class: SGD, lr: 1e-1, momentum: 0.9, grad_clip: 1.0}
run: {device: cpu, dtype: float32, seed: 3, mode: eval, budget: 5m, memory: 2GB}
analyses:
  gradcheck: {tolerance: 1e-5}
  eig: {top: 5}
  hvp:
"""


class Eig(Options):
    top: int = option(1, "how many", ge=1)
    matrix: Literal["hessian", "ggn"] = option("hessian", "which matrix")


class Hvp(Options):
    repeats: int = option(3, "how often")


A = Path("a")
KINDS: dict[str, type[Options]] = {"hvp": Hvp, "eig": Eig}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spec(text: str, name: str = "curv.yaml") -> Spec:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return load(path)


def body(text: str) -> Spec:
    return spec("version: 1\n" + text)


def refusal(text: str) -> str:
    with pytest.raises(CurvError) as caught:
        configured(body(text), KINDS)
    said = str(caught.value)
    assert "\n" not in said
    assert "value_error" not in said
    return said


def test_example() -> None:
    read = spec(EXAMPLE)
    assert read.checkpoint == Path("digits_mlp.pt")
    assert read.model == Layers(
        layers=(Layer("Linear", (64, 128)), Layer("Tanh"), Layer("Linear", (128, 10)))
    )
    assert read.python_path == (Path("."),)
    data = Npz(
        format="npz", path=Path("digits.npz"), x="images", y="labels", batch_size=128, samples=1024
    )
    assert read.data == data
    assert read.heldout == Held(samples=512)
    assert read.loss == NamedLoss("cross_entropy")
    assert read.penalty == {"l2": 1e-4, "smooth": Target("reg", "tv", {"power": 2})}
    assert read.optimizer is not None
    assert (read.optimizer.kind, read.optimizer.grad_clip) == ("SGD", 1.0)
    assert read.optimizer.options == {"lr": 0.1, "momentum": 0.9}
    assert read.optimizer.block == {"class": "SGD", "lr": 0.1, "momentum": 0.9}
    assert (read.run.device, read.run.seed, read.run.budget, read.run.memory) == (
        "cpu",
        3,
        300,
        2e9,
    )
    assert read.analyses == {"gradcheck": {"tolerance": 1e-5}, "eig": {"top": 5}, "hvp": {}}
    assert read.path == Path("curv.yaml")
    assert read.where("analyses", "eig", "top") == "curv.yaml:13: analyses.eig.top"


def test_the_least_spec() -> None:
    read = spec("version: 1")
    assert (read.model, read.data, read.loss, read.optimizer, read.analyses) == (*[None] * 4, {})
    assert (read.run.params, read.run.dtype, read.run.hvp) == (("*",), "auto", "auto")
    assert body("run:\nanalyses:\n").model_dump() == read.model_dump()


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = f"""version: 1
checkpoint: a.pt
python_path: [., ../src]
data: {{format: npy, x: d/x.npy, y: {tmp_path}/y.npy}}
"""
    read = spec(text, "deep/er/curv.yaml")
    assert read.checkpoint == Path("deep/er/a.pt")
    assert read.python_path == (Path("deep/er"), Path("deep/er/../src"))
    assert read.data is not None
    assert read.data.x == Path("deep/er/d/x.npy")
    assert read.data.y == tmp_path / "y.npy"
    assert load(tmp_path / "deep/er/curv.yaml").checkpoint == Path("deep/er/a.pt")


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("Tanh", Layer("Tanh")),
        ("{Tanh: }", Layer("Tanh")),
        ("{Tanh: []}", Layer("Tanh")),
        ("{Dropout: 0.1}", Layer("Dropout", (0.1,))),
        ("{Linear: [3, 4]}", Layer("Linear", (3, 4))),
        ("{Conv2d: [1, 8, [3, 3]]}", Layer("Conv2d", (1, 8, [3, 3]))),
        ("{Flatten: {start_dim: 2}}", Layer("Flatten", (), {"start_dim": 2})),
        (
            "{Sequential: [Tanh, {Sequential: [{ReLU: {inplace: true}}]}]}",
            Layer("Sequential", layers=(
                Layer("Tanh"),
                Layer("Sequential", layers=(Layer("ReLU", kwargs={"inplace": True}),)),
            )),
        ),
    ],
)  # fmt: skip
def test_layers(text: str, layer: Layer) -> None:
    model = body(f"model: {{layers: [{text}]}}").model
    assert isinstance(model, Layers)
    assert model.layers == (layer,)


@pytest.mark.parametrize(
    "text",
    [
        "{target: 'pkg.tiny:GPT', args: {d: 64}}",
        "{class_path: pkg.tiny.GPT, init_args: {d: 64}}",
        "{class_path: 'pkg.tiny:GPT', init_args: {d: 64}}",
        "{_target_: pkg.tiny.GPT, d: 64}",
    ],
)
def test_targets_in_every_spelling(text: str) -> None:
    assert body(f"model: {text}").model == Target("pkg.tiny", "GPT", {"d": 64})
    assert body(f"loss: {text}").loss == TargetLoss("pkg.tiny", "GPT", {"d": 64})
    own = {"own": Target("pkg.tiny", "GPT", {"d": 64})}
    assert body(f"penalty: {{own: {text}}}").penalty == own


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("mse_loss", NamedLoss("mse_loss")),
        ("{name: nll_loss, args: {ignore_index: -1}}", NamedLoss("nll_loss", {"ignore_index": -1})),
        ("{output: loss}", OutputLoss("loss")),
        ("{output: 0}", OutputLoss(0)),
        ("{target: 'm:f'}", TargetLoss("m", "f")),
    ],
)
def test_losses(text: str, loss: object) -> None:
    assert body(f"loss: {text}").loss == loss


@pytest.mark.parametrize(
    ("text", "penalty"),
    [
        ("", {}),
        ("{l1: 1, l2: 0}", {"l1": 1.0, "l2": 0.0}),
        ("{l2: 1e-4}", {"l2": 1e-4}),
        ("{l2: {target: 'm:f'}}", {"l2": Target("m", "f")}),
        ("\n  a: {target: 'm:f'}\n  b: {target: 'm:f', args: {k: 1}}",
         {"a": Target("m", "f"), "b": Target("m", "f", {"k": 1})}),
    ],
)  # fmt: skip
def test_penalties(text: str, penalty: dict[str, float | Target]) -> None:
    assert body(f"penalty: {text}").penalty == penalty
    assert Spec(version=1, penalty=penalty).penalty == penalty


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("{format: npz, path: a, x: [p, q], y: }",
         Npz(format="npz", path=A, x=("p", "q"), y=None)),
        ("{format: npz, path: a, x: {p: q}}", Npz(format="npz", path=A, x={"p": "q"})),
        ("{format: pt, path: a, x: 0, y: 1, scale: 0.5}",
         Pt(format="pt", path=A, x=0, y=1, scale=0.5)),
        ("{format: pt, path: a, x: [0, m]}", Pt(format="pt", path=A, x=(0, "m"))),
        ("{format: csv, path: a, y: t, header: false}",
         Csv(format="csv", path=A, y="t", header=False)),
        ("{format: synthetic, samples: 8, x: {shape: [2, 3]}, y: {classes: 4}}",
         Synthetic(format="synthetic", samples=8, x=Drawn(shape=(2, 3)), y=Answers(classes=4))),
        ("{format: synthetic, samples: 8, x: {shape: {shape: []}, ids: {shape: [5], kind: integers,"
         " high: 9}}, y: {shape: []}, seed: 2}",
         Synthetic(format="synthetic", samples=8, seed=2, y=Answers(shape=()), x={
             "shape": Drawn(shape=()), "ids": Drawn(shape=(5,), kind="integers", high=9)})),
    ],
)  # fmt: skip
def test_data(text: str, data: Any) -> None:
    assert body(f"data: {text}").data == data
    assert body(f"heldout: {text}").heldout == data


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: 3", "2: 'modle' is not known here — did you mean 'model'?"),
        ("sha256: abc", "2: sha256: 'abc' is not a SHA-256 digest of 64 hexadecimal digits"),
        ("checkpoint: ''", "2: checkpoint: '' is not a path"),
        ("checkpoint: \"a\\0b\"", "2: checkpoint: 'a\\x00b' is not a path"),
        ("python_path: [., 3]", "2: python_path.1: 3 should be a path"),
        ("model: 3", "2: model: 3 should be a mapping with layers: [...] or target:"),
        ("model: {}", "2: model: needs layers: [...] or target: module:function"),
        ("model: {args: {}}", "2: model: needs layers: [...] or target: module:function"),
        ("model: {layrs: []}", "2: model: 'layrs' is not known here — did you mean 'layers'?"),
        ("model: {layers: [a], target: b}", "2: model: has both layers: and a target:"),
        ("model: {layers: []}", "2: model.layers: should not be empty"),
        ("model: {layers: Tanh}", "2: model.layers: 'Tanh' should be a list"),
        ("model:\n  layers:\n  - Tanh\n  - 3", "5: model.layers.1: 3 is not a class of torch.nn"),
        ("model: {layers: [nn.Tanh]}", "2: model.layers.0: 'nn.Tanh' is not a class of torch.nn"),
        ("model:\n  layers:\n  - Sequential:\n    - Tanh\n    - {A: 1, B: 2}",
         "6: model.layers.0.Sequential.1: a layer is one {Name: arguments}, not 2 keys: A, B"),
        ("model: {target: tiny.GPT}", "2: model.target: 'tiny.GPT' should be written module:funct"),
        ("model: {target: 3}", "2: model.target: 3 should be written module:function"),
        ("model: {target: 'a.py:f'}", "2: model.target: 'a.py:f' should be written module:funct"),
        ("model: {target: 'a/b.py:f'}", "2: model.target: 'a/b.py:f' should be written module:f"),
        ("model: {target: a:b, arg: 3}", "2: model: 'arg' is not known here — did you mean 'args"),
        ("model: {target: a:b, args: 3}", "2: model.args: 3 should be a mapping of argument names"),
        ("model: {class_path: a}", "2: model.class_path: 'a' should be written module:function"),
        ("model: {_target_: a.b, _partial_: 1}", "2: model._partial_: this key is not supported"),
        ("data: 3", "2: data: 3 should be a mapping"),
        ("data: {path: a}", "2: data.format: this key is required"),
        ("data: {format: nzp}", "2: data.format: 'nzp' is not known here — did you mean 'npz'?"),
        ("data: {format: npz}", "2: data.path: this key is required"),
        ("data:\n  format: npz\n  path: 3", "4: data.path: 3 should be a path"),
        ("data:\n  format: npz\n  path: a\n  x: 3", "5: data.x: 3 should be text, a list or a map"),
        ("data: {format: npz, path: a, x: [3]}", "2: data.x.0: 3 should be text"),
        ("data: {format: npz, path: a, sed: 3}", "2: data: 'sed' is not known here — known are "
         "batch_size, format, path, samples, scale, x, y"),
        ("data: {format: csv, csv: 1}", "2: data: 'csv' is not known here — known are batch_size"),
        ("data: {format: npz, path: a, batch_size: 0}", "2: data.batch_size: 0 should be greater"),
        ("data: {format: synthetic, x: {shape: [3]}}", "2: data.samples: this key is required"),
        ("data: {format: synthetic, samples: 3, x: {shape: [0]}}", "2: data.x.shape.0: 0 should"),
        ("data: {format: synthetic, samples: 3, x: {shape: [2], kind: integers}}",
         "2: data.x: needs high: N"),
        ("data: {format: synthetic, samples: 3, x: {shape: [2], high: 2}}",
         "2: data.x.high: 2 goes only with kind: integers"),
        ("data: {format: synthetic, samples: 3, x: {a: {shape: [2], hihg: 2}}}",
         "2: data.x.a: 'hihg' is not known here — did you mean 'high'?"),
        ("data: {format: synthetic, samples: 3, x: {shape: [2]}, y: {}}",
         "2: data.y: needs classes: K or shape: [...]"),
        ("heldout: {smaples: 3}", "2: heldout: 'smaples' is not known here — did you mean 'sampl"),
        ("heldout: {path: a}", "2: heldout.format: this key is required"),
        ("heldout: {format: npz, path: a, q: 1}", "2: heldout: 'q' is not known here"),
        ("loss: 3", "2: loss: 3 should be a function of torch.nn.functional, or a mapping"),
        ("loss: nn.L1Loss", "2: loss: 'nn.L1Loss' is not a function of torch.nn.functional"),
        ("loss: {}", "2: loss: needs name:, output: or target:"),
        ("loss: {name: 3}", "2: loss.name: 3 is not a function of torch.nn.functional"),
        ("loss: {output: true}", "2: loss.output: true should be a key or an index"),
        ("penalty: 3", "2: penalty: 3 should be a mapping"),
        ("penalty: [l2]", "2: penalty: should be a mapping"),
        ("penalty:\n  l1: 1\n  l2: -1", "4: penalty.l2: -1 should be finite and not negative"),
        ("penalty: {l2: .inf}", "2: penalty.l2: inf should be finite and not negative"),
        ("penalty: {l2: .nan}", "2: penalty.l2: nan should be finite and not negative"),
        ("penalty: {l2: true}", "2: penalty.l2: true should be a number, the penalty's weight, or"),
        ("penalty: {l2: '1'}", "2: penalty.l2: '1' should be a number, the penalty's weight, or a"),
        ("penalty: {l2: }", "2: penalty.l2: null should be a number, the penalty's weight, or a m"),
        ("penalty: {l2: [1]}", "2: penalty.l2: should be a number, the penalty's weight, or a map"),
        ("penalty:\n  l1: 1\n  l3: 1", "4: penalty: 'l3' is not known here — known are l1, l2, y"),
        ("penalty: {smooth: 1}", "2: penalty: 'smooth' is not known here — known are l1, l2, your "
         "own as {target: module:function}"),
        ("penalty: {smooth: {}}", "2: penalty.smooth: needs target: module:function"),
        ("penalty: {smooth: {args: {}}}", "2: penalty.smooth: needs target: module:function"),
        ("penalty: {smooth: {tagret: a:b}}",
         "2: penalty.smooth: 'tagret' is not known here — did you mean 'target'?"),
        ("penalty: {smooth: {target: a.b}}",
         "2: penalty.smooth.target: 'a.b' should be written module:function"),
        ("penalty: {smooth: {target: a:b, arg: 3}}",
         "2: penalty.smooth: 'arg' is not known here — did you mean 'args'"),
        ("penalty: {smooth: {target: a:b, args: 3}}",
         "2: penalty.smooth.args: 3 should be a mapping of argument names"),
        ("penalty: {l2: 1, smooth: {_target_: a.b, _partial_: 1}}",
         "2: penalty.smooth._partial_: this key is not supported"),
        ("optimizer: {lr: {a: 1}}", "2: optimizer.lr: should be a number, text, true, false or a"),
        ("optimizer: {lr: .nan}", "2: optimizer.lr: nan should be finite"),
        ("optimizer: {groups: [a]}", "2: optimizer.groups.0: 'a' should be a list"),
        ("optimizer: {grad_clip: 0}", "2: optimizer.grad_clip: 0 should be greater than 0"),
        ("run: {device: gpu}", "2: run.device: 'gpu' is not a device; known are auto, cpu, cuda,"),
        ("run: {mode: evl}", "2: run.mode: 'evl' should be 'auto', 'eval', 'train' or 'batchnorm'"),
        ("run: {seed: -1}", "2: run.seed: -1 should be greater than or equal to 0"),
        ("run: {budget: soon}", "2: run.budget: 'soon' is not a quantity such as 60s, 5m or 1.5h"),
        ("analyses: [eig]", "2: analyses: should be a mapping"),
        ("analyses: {eig: 3}", "2: analyses.eig: 3 should be a mapping"),
        ("analyses:\n  eig:\n    top: 3\n  hpv: {}",
         "5: analyses: 'hpv' is not known here — did you mean 'hvp'?"),
        ("analyses:\n  eig:\n    matrix: ggn\n    topp: 3",
         "5: analyses.eig: 'topp' is not known here — did you mean 'top'?"),
        ("analyses:\n  eig:\n    top: 0", "4: analyses.eig.top: 0 should be greater than or equal"),
        ("analyses: {eig: {matrix: gnn}}",
         "2: analyses.eig.matrix: 'gnn' should be 'hessian' or 'ggn' — did you mean 'ggn'?"),
    ],
)  # fmt: skip
def test_mistakes_name_line_and_key(text: str, said: str) -> None:
    assert refusal(text).startswith(f"E_SPEC: curv.yaml:{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "E_SPEC: curv.yaml:1: version: this key is required"),
        ("[]", "E_SPEC: curv.yaml:1: should be a mapping"),
        ("loss: mse_loss\n", "E_SPEC: curv.yaml:1: version: this key is required"),
        ("loss: a\nversion: 2\n", "E_SPEC: curv.yaml:2: version: 2 should be 1"),
        ("version: true", "E_SPEC: curv.yaml:1: version: true should be a number"),
        ("version: 1\nloss: [a", "E_YAML: curv.yaml:"),
        ("version: 1\nloss: a\nloss: b", "E_YAML: curv.yaml:3:1: loss is given twice, first in"),
    ],
)
def test_files_that_are_no_spec(text: str, said: str) -> None:
    with pytest.raises(CurvError) as caught:
        spec(text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices(device: str) -> None:
    assert body(f"run: {{device: '{device}', params: '*.weight'}}").run.device == device


def test_configured_keeps_the_order_of_the_spec() -> None:
    chosen = configured(body("analyses: {hvp: , eig: {top: 2}}"), KINDS)
    assert list(chosen.items()) == [("hvp", Hvp()), ("eig", Eig(top=2))]
    assert list(configured(body("analyses: {eig: {}, hvp: {}}"), KINDS)) == ["eig", "hvp"]


def test_a_spec_made_in_python() -> None:
    made = Spec(version=1, checkpoint=Path("a.pt"), analyses={"eig": {"topp": 1}})
    assert (made.checkpoint, made.path) == (Path("a.pt"), None)
    with pytest.raises(CurvError, match=r"analyses\.eig: 'topp' is not known here"):
        configured(made, KINDS)
    with pytest.raises(ValidationError, match="frozen"):
        made.version = 1


def test_the_place_is_relative_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "sub" / "curv.yaml"
    bad.parent.mkdir()
    bad.write_text("version: 3")
    with pytest.raises(CurvError, match=r"^E_SPEC: sub/curv\.yaml:1: version"):
        load(bad)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(CurvError) as caught:
        load(bad)
    assert caught.value.message.startswith(f"{bad}:1: version")


def test_files_that_cannot_be_read() -> None:
    Path("folder").mkdir()
    Path("latin.yaml").write_bytes(b"version: 1\nloss: caf\xe9\n")
    Path("large.yaml").write_bytes(b"#" * 1_000_001)
    Path("gone.yaml").symlink_to("nowhere")
    os.mkfifo("pipe.yaml")
    expected = {
        "folder": "E_DIRECTORY: folder is a directory",
        "missing.yaml": "E_NOT_FOUND: missing.yaml does not exist",
        "gone.yaml": "E_NOT_FOUND: gone.yaml does not exist",
        "large.yaml/x": "E_NOT_FOUND: large.yaml/x cannot be read: Not a directory",
        "latin.yaml": "E_YAML: latin.yaml: byte 20 is not UTF-8",
        "large.yaml": "E_TOO_LARGE: large.yaml has 1,000,001 bytes",
        "pipe.yaml": "E_NOT_REGULAR: pipe.yaml is not a regular file",
        "x" * 300: "E_NOT_FOUND: xxx",
    }
    for name, said in expected.items():
        with pytest.raises(CurvError) as caught:
            load(Path(name))
        assert str(caught.value).startswith(said)
        assert "\n" not in str(caught.value)


def test_discovery_takes_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Path("a/b/c")
    deep.mkdir(parents=True)
    model = deep / "model.pt"
    with monkeypatch.context() as patched:
        patched.setattr("curvcli.spec.NAME", "in-no-folder.yaml")
        assert discover(None, model, deep) is None
    Path("curv.yaml").touch()
    assert discover(None, model, deep) == Path("curv.yaml")
    Path("a/b/curv.yaml").touch()
    assert discover(None, None, deep) == Path("a/b/curv.yaml")
    (deep / "model.yaml").touch()
    assert discover(None, model, deep) == deep / "model.yaml"
    assert discover(None, None, deep) == Path("a/b/curv.yaml")
    assert discover(Path("curv.yaml"), model, deep) == Path("curv.yaml")


def test_a_named_spec_must_exist() -> None:
    Path("curv.yaml").touch()
    Path("digits.yaml").touch()
    with pytest.raises(CurvError) as caught:
        discover(Path("digit.yaml"), None, Path())
    assert str(caught.value) == (
        "E_NOT_FOUND: --spec digit.yaml does not exist — did you mean 'digits.yaml'?"
    )
    with pytest.raises(CurvError, match="nowhere/x"):
        discover(Path("nowhere/x.yaml"), None, Path())
    with pytest.raises(CurvError, match="is a directory"):
        discover(Path(), None, Path())


def test_schema() -> None:
    drawn = schema(KINDS)
    assert drawn["required"] == ["version"]
    assert drawn["additionalProperties"] is False
    assert set(drawn["properties"]) == set(Spec.model_fields)
    assert set(drawn["$defs"]["Analyses"]["properties"]) == set(KINDS)
    assert drawn["$defs"]["Eig"]["properties"]["top"]["minimum"] == 1
    memory = drawn["$defs"]["Run"]["properties"]["memory"]
    assert "{'type': 'string'}" in str(memory)
    assert "metavar" not in str(drawn)
    penalty = drawn["properties"]["penalty"]
    assert set(penalty["properties"]) == {"l1", "l2"}
    assert {"type": "number", "minimum": 0} in penalty["properties"]["l2"]["anyOf"]
    assert "target" in penalty["additionalProperties"]["anyOf"][0]["properties"]
    assert "analyses" in schema()["properties"]


OPTIONS = (
    Spec, Layers, Npz, Npy, Pt, Csv, Synthetic, Drawn, Answers, Held, Optimizer, Run,
)  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_help_texts_read_well(kind: type[Options]) -> None:
    for name, field in kind.model_fields.items():
        text = field.description or ""
        assert text[:1].islower(), name
        assert not text.endswith("."), name


def test_torch_is_not_imported() -> None:
    assert not imports("import curvcli.spec", "torch", "pandas")
