"""`activations`: rows, verdicts, figures and pictures."""

import math
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from cases import curv, project
from questions import ask, classify, inputs, interrupted_at, mlp
from safetensors.numpy import load_file
from torch import nn
from trained import HEALTHY, posed
from zoo import ZOO, drawn

import curvcli
from curvcli.analyses.activations import Activations
from curvcli.report import Report, Result

SAMPLES = Path(__file__).parents[2] / "sample_models"
THREE = ("digits_mlp", "digits_cnn", "modular_transformer")


@pytest.mark.parametrize("name", [*THREE, "broken"])
def test_no_sample_is_warned_of(name: str) -> None:
    found = curv("activations", SAMPLES / f"{name}.pt", "--format", "json")
    assert found.code == 0
    assert found.report.results["activations"].status == "pass"


@pytest.mark.parametrize("name", THREE)
def test_no_figure_depends_on_the_batch_size(name: str) -> None:
    figures = []
    for size in ("1797", "100"):
        common = ("--batch-size", size, "--samples", "300", "--dtype", "float64")
        found = curv("activations", SAMPLES / f"{name}.pt", *common, "--format", "json")
        rows = found.report.results["activations"].rows
        # What all examples share is computed once for each batch.
        rows = tuple(r for r in rows if r["module"] != "wpe")
        keys = ("mean", "std", "flat", "dead", "gradient", "zero_gradient", "q05")
        figures.append([r[k] for r in rows for k in keys if r[k] is not None])
    assert figures[1] == pytest.approx(figures[0], rel=1e-6, abs=1e-12)


def test_a_row_says_what_is_wrong() -> None:
    model = mlp(6, 40, 40, 3, act=nn.ReLU)
    with torch.no_grad():
        model.get_submodule("2").get_parameter("bias")[:30] = -1e3
    result = ask(Activations(), classify(model, inputs(60, 6)))
    rows = {str(r["module"]): r for r in result.rows}
    assert rows["3"]["remark"] == "dead units"
    assert rows["3"]["dead"] >= 30
    assert result.metrics["dead_units"].value == sum(r["dead"] or 0 for r in result.rows)
    (check,) = [c for c in result.checks if c.status == "warn"]
    assert check.name == "dead units"
    assert "of 40 units of 3" in check.message


def test_the_threshold_of_dead_units_is_an_option() -> None:
    model = mlp(6, 40, 3, act=nn.ReLU)
    with torch.no_grad():
        model.get_submodule("0").get_parameter("bias")[:10] = -1e3
    p = classify(model, inputs(60, 6))
    assert ask(Activations(), p).status == "pass"
    assert ask(Activations(dead=0.2), p).status == "warn"


def test_a_sigmoid_that_gives_the_answer_may_saturate() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Sigmoid())
    with torch.no_grad():
        model.get_submodule("2").get_parameter("weight").mul_(50)
    result = ask(Activations(), classify(model, inputs(60, 6)))
    assert result.status == "pass"
    assert result.rows[-1]["flat"] > 0.5


class OneSigmoid(nn.Module):
    """One sigmoid for the hidden layer and for the answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.act = nn.Linear(6, 8), nn.Linear(8, 3), nn.Sigmoid()
        nn.init.normal_(self.a.weight, std=100.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.b(self.act(self.a(x))))
        return out


def test_the_hidden_call_of_a_sigmoid_is_not_excused_by_the_last() -> None:
    result = ask(Activations(), classify(OneSigmoid(), inputs(60, 6)))
    assert [r["remark"] for r in result.rows if r["kind"] == "Sigmoid"] == ["saturated", ""]
    assert "act 2: another call of the activation, after b" in " ".join(result.notes)


def tanh_like(kind: type[nn.Module], std: float) -> Result:
    """Ask of an activation whose inputs are normal, exactly N(0, std^2)."""
    first, weight = nn.Linear(6, 50, bias=False), inputs(50, 6, seed=0)
    first.weight = nn.Parameter(std * weight / weight.norm(dim=1, keepdim=True))
    model = nn.Sequential(first, kind(), nn.Linear(50, 3))
    return ask(Activations(), classify(model, inputs(400, 6)))


@pytest.mark.parametrize(
    ("kind", "std", "flat", "status"),
    [
        # P(|N| > corner / std), and for tanh the corner is 2.178.
        (nn.Hardtanh, 2.6, 0.70, "pass"),
        (nn.Hardtanh, 8.0, 0.90, "warn"),
        (nn.Hardsigmoid, 4.5, 0.505, "pass"),
        (nn.Hardsigmoid, 24.0, 0.90, "warn"),
        (nn.Tanh, 2.6, 0.402, "pass"),
        (nn.Tanh, 4.0, 0.586, "warn"),
    ],
)
def test_a_hard_activation_may_be_flat_more_often(
    kind: type[nn.Module], std: float, flat: float, status: str
) -> None:
    result = tanh_like(kind, std)
    (row,) = [r for r in result.rows if r["kind"] == kind.__name__]
    assert row["flat"] == pytest.approx(flat, abs=0.03)
    (check,) = [c for c in result.checks if c.name == "saturation"]
    assert check.status == status
    assert ("85%" in check.message) == (kind is not nn.Tanh and status == "pass")


@pytest.mark.parametrize(("examples", "known"), [(1, False), (7, False), (8, True)])
def test_few_examples_do_not_tell_dead_units(examples: int, known: bool) -> None:
    model = mlp(6, 40, 3, act=nn.ReLU)
    result = ask(Activations(), classify(model, inputs(examples, 6)))
    (row,) = [r for r in result.rows if r["kind"] == "ReLU"]
    off = int((model[:2](inputs(examples, 6)) == 0).all(0).sum())
    assert row["dead"] == (off if known else None)
    assert ("dead_units" in result.metrics) == known
    assert ("dead units" in {c.name for c in result.checks}) == known
    assert ("fewer than 8 examples" in " ".join(result.notes)) != known
    assert result.status == "pass"


class Widths(nn.Module):
    """A loop over activations of different widths, after an activation that can be judged."""

    def __init__(self, *, judged: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.judged = nn.Linear(6, 20), nn.Linear(20, 3), judged

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = torch.tanh(h) if self.judged else h
        for k in range(1, 20):
            h = h + torch.relu(h[:, :k]).sum(1, keepdim=True) / 20
        out: torch.Tensor = self.b(h)
        return out


@pytest.mark.parametrize("judged", [True, False])
def test_what_is_not_judged_does_not_pass(judged: bool) -> None:
    result = ask(Activations(), classify(Widths(judged=judged), inputs(30, 6)))
    said = [c.message for c in result.checks if c.name == "dead units"]
    assert said == (["0 of 20 units in 1 activations; not judged: relu()"] if judged else [])
    notes = " ".join(result.notes)
    assert "dead units of relu() are not judged" in notes
    assert "relu(): the calls of a loop as one" in notes


def test_inputs_that_are_not_scaled_are_seen() -> None:
    x = 1000 * inputs(60, 6) + 500
    result = ask(Activations(), classify(mlp(6, 8, 3), x))
    first = result.rows[0]
    assert (first["module"], first["kind"], first["gradient"]) == ("input", "input", None)
    assert first["mean"] == pytest.approx(float(x.mean()), rel=1e-5)
    assert first["std"] == pytest.approx(float(x.std(correction=0)), rel=1e-5)
    assert result.headline.startswith("3 places")


def test_a_layer_without_gradient_is_named() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.a(x).detach() + self.b(x))
            return out

    torch.manual_seed(0)
    result = ask(Activations(), classify(Detached(), inputs(20, 6)))
    (check,) = [c for c in result.checks if c.status == "warn"]
    assert check.message == "none reaches a"


def test_the_trend_is_drawn_over_the_layers() -> None:
    result = ask(Activations(), posed(HEALTHY["residual"]._replace(steps=0), 0))
    histograms, depth, _ = result.figures
    assert [line.label for line in depth.lines] == ["gradient", "trend"]
    assert len(depth.lines[0].x) == 39
    assert all(0.8 < sum(y or 0 for y in line.y) <= 1 + 1e-4 for line in histograms.lines)
    again = Report.from_json(Report({}, {"activations": result}).to_json())
    assert again.results["activations"].figures == result.figures
    assert len(Report({}, {"activations": result}).to_json()) < 200_000


def test_histograms_show_what_is_off_and_what_is_saturated() -> None:
    model = mlp(6, 40, 40, 3)
    with torch.no_grad():
        model.get_submodule("0").get_parameter("weight").mul_(1e3)
    result = ask(Activations(), classify(model, inputs(60, 6)))
    tanh = next(line for line in result.figures[0].lines if line.label == "1")
    # All of it is at plus and minus one root mean square.
    ends = sum(y or 0 for x, y in zip(tanh.x, tanh.y, strict=True) if abs(abs(x or 0) - 1) < 0.3)
    assert ends > 0.95


def test_first_weights_are_pictures(tmp_path: Path) -> None:
    for name, layer, shape in (
        ("digits_cnn", "stem.weight", (16, 1, 3, 3)),
        ("digits_mlp", "0.weight", (128, 1, 8, 8)),
    ):
        out = tmp_path / f"{name}.safetensors"
        assert curv("activations", SAMPLES / f"{name}.pt", "--weights", out).code == 0
        (found,) = load_file(out).items()
        assert found[0] == layer
        assert found[1].shape == shape
        saved = torch.load(SAMPLES / f"{name}.pt", weights_only=True)
        weights = next(v for k, v in saved.items() if k.endswith("state_dict"))
        numpy.testing.assert_array_equal(found[1].reshape(-1), weights[layer].flatten().numpy())


@pytest.mark.parametrize(
    ("first", "shape", "drawn", "labels"),
    [
        (nn.Conv2d(3, 70, 3), (3, 9, 9), (3, 3, 3), 60),
        (nn.Conv2d(1, 4, (2, 3)), (1, 9, 9), (1, 2, 3), 4),
        (nn.Conv2d(2, 4, 3), (2, 9, 9), (1, 3, 3), 8),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 5)), (3, 4, 5), (3, 4, 5), 5),
        (nn.Sequential(nn.Flatten(), nn.Linear(28 * 30, 99)), (28, 30), (1, 28, 30), 59),
    ],
)
def test_pictures_are_drawn(
    first: nn.Module, shape: tuple[int, ...], drawn: tuple[int, ...], labels: int
) -> None:
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    weight = next(p for p in first.parameters() if p.ndim > 1)
    model = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    model(x)
    result = ask(Activations(), classify(model, x))
    (tiles,) = [f.tiles for f in result.figures if f.name == "weights"]
    assert tiles is not None
    assert (tiles.shape, len(tiles.labels)) == (drawn, labels)
    pictures = weight.detach().reshape(-1, math.prod(drawn)).numpy()
    numbers = [label.split(".") for label in tiles.labels]
    at = [int(n[0]) * (len(pictures) // len(weight)) + int(n[1] if n[1:] else 0) for n in numbers]
    numpy.testing.assert_allclose(numpy.array(tiles.values, float), pictures[at], rtol=1e-3)
    left = numpy.delete(numpy.linalg.norm(pictures, axis=1), at)
    assert left.max(initial=0) <= numpy.linalg.norm(pictures[at], axis=1).min()


def test_pictures_too_large_for_a_figure_are_told() -> None:
    x = inputs(3, 230 * 230).reshape(3, 230, 230)
    model = nn.Sequential(nn.Flatten(), nn.Linear(230 * 230, 3))
    result = ask(Activations(), classify(model, x))
    assert not [f for f in result.figures if f.tiles]
    assert "3 pictures of 1x230x230, are too large for a figure" in " ".join(result.notes)
    assert result.arrays["1.weight"].shape == (3, 1, 230, 230)


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    out = tmp_path / "w.csv"
    said = curv("activations", SAMPLES / "modular_transformer.pt", "--weights", out).out
    assert "no file is written, since the first layer, wte, does not look at pictures" in said
    assert not out.exists()


def test_ctrl_c_gives_what_is_known() -> None:
    p = classify(mlp(6, 8, 3), inputs(20, 6), cut=(8, 8, 4))
    result = ask(Activations(), p, announce=interrupted_at(8))
    assert result.interrupted
    assert "over 8 of 20 examples, model in eval mode" in result.notes
    assert len(result.rows) == 4
    nothing = ask(Activations(), p, announce=interrupted_at(0))
    assert nothing.interrupted


def test_dropout_draws_the_same_every_time() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
    p = replace(classify(model, inputs(20, 6)), mode="train")
    first, second = (ask(Activations(), p).rows for _ in range(2))
    assert first == second
    assert ask(Activations(), p, seed=1).rows != first


def test_from_python_and_from_the_command_line(tmp_path: Path) -> None:
    model = mlp(4, 3, 2)
    result = curvcli.activations(
        model, nn.functional.cross_entropy, [(drawn(9, 4).float(), torch.zeros(9).long())]
    )
    assert [r["kind"] for r in result.rows] == ["input", "Linear", "Tanh", "Linear"]
    project(tmp_path, analyses={"activations": {"decades": 2}})
    assert curv("activations", "--spec", tmp_path / "curv.yaml").code == 0


def test_every_number_is_finite() -> None:
    for name in ZOO:
        for row in ask(Activations(), ZOO[name]()).rows:
            assert all(math.isfinite(x) for x in row.values() if isinstance(x, float)), name


class Masked(nn.Module):
    """Looks at tokens through leaves that give whole numbers, and a mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mask = nn.Identity(), nn.Identity()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.embedding(self.tokens(x))
        found = found.masked_fill(self.mask(torch.full((4,), -math.inf)) > 0, 0.0)
        out: torch.Tensor = self.head(found)
        return out


def test_leaves_without_finite_numbers_are_passed_over_or_told() -> None:
    torch.manual_seed(0)
    result = ask(Activations(), classify(Masked(), torch.arange(20) % 5))
    rows = {r["module"]: r for r in result.rows}
    assert list(rows) == ["embedding", "mask", "head"]  # the inputs are whole numbers too
    assert math.isnan(float(rows["mask"]["median"]))
    assert rows["mask"]["low"] == -math.inf
    assert Report.from_json(Report({}, {"activations": result}).to_json())
