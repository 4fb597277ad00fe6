"""Drawings say what the numbers say, the same bytes each time, and nothing in a name acts."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from cases import curv, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sinks.drawn import DENSITY, STEPS, figured, sweep

from curvcli.errors import CurvError
from curvcli.report import Axis, Figure, Level, Line, Report
from curvcli.sinks import files, render
from curvcli.sinks.figure import svg
from curvcli.sinks.strokes import hidden, strokes

HOSTILE = (
    "$\\frac{1}{0}$",
    "cost $5 or $6",
    "_orig_mod.weight",
    "<script>alert(1)</script>",
    "]]>&amp;<!--",
    "\x00\x1b[31m\u202ex",
    "first\nsecond",
    "重み.層" * 40,
    "x" * 5000,
    "",
)


def words(drawing: str) -> list[str]:
    """Read the text of a drawing off its XML."""
    root = ElementTree.fromstring(drawing)
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def height(drawing: str) -> float:
    found = re.search(r'height="([\d.]+)pt"', drawing)
    assert found
    return float(found[1])


def test_a_drawing_says_everything() -> None:
    said = words(svg([sweep()]))
    for text in (
        "relative error against the step", "relative error", "step", "tolerance: 1e-05",
        "bad.0 FAIL", "bad.1 FAIL", "h.0.weight", "h.4.weight", "1e-10", "0.01",
        "A right gradient makes a V, a wrong one stays flat.",
    ):  # fmt: skip
        assert text in said
    assert not any("$" in text for text in said)


def test_the_same_numbers_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = svg([sweep(), DENSITY])
    assert "date" not in first.lower()
    with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True, "svg.fonttype": "path"}):
        assert svg([sweep(), DENSITY]) == first
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_a_drawing_needs_nothing_from_elsewhere() -> None:
    drawing = svg([sweep()])
    assert drawing.startswith("<svg ")
    assert "<title>relative error against the step</title>" in drawing
    assert not re.search(r"<!DOCTYPE|<script|<image|@import|url\((?!#)", drawing)
    assert re.findall(r'href="(?!#)', drawing) == []
    assert "fill: #ffffff" in drawing, "a background of its own"


def test_figures_are_stacked() -> None:
    both = svg([sweep(), DENSITY])
    assert height(both) == pytest.approx(height(svg([sweep()])) + height(svg([DENSITY])))
    assert {"relative error against the step", "spectral density"} <= set(words(both))


def test_what_failed_differs_in_colour_and_in_style() -> None:
    looks = {stroke.label: stroke.look for stroke in strokes(sweep())}
    wrong, right = looks["bad.1 FAIL"], looks["h.0.weight"]
    assert (wrong["color"], wrong["linestyle"]) == ("#d55e00", "--")
    assert right["linestyle"] == "-"
    assert wrong["color"] not in {looks[f"h.{i}.weight"]["color"] for i in range(5)}
    assert len({looks[name]["marker"] for name in looks if name != "tolerance: 1e-05"}) == 7


@pytest.mark.parametrize(
    ("right", "wrong", "labels"),
    [
        (3, 1, ["bad.0 FAIL", "h.0.weight", "h.1.weight", "h.2.weight"]),
        (40, 1, ["bad.0 FAIL", *(f"h.{i}.weight" for i in range(5)), "35 others"]),
        (40, 9, [*(f"bad.{i} FAIL" for i in range(8, 2, -1)), "3 more that FAIL", "40 others"]),
        (0, 0, []),
    ],
)
def test_the_legend_is_short_and_begins_with_the_gravest(
    right: int, wrong: int, labels: list[str]
) -> None:
    assert [s.label for s in strokes(sweep(right, wrong))] == [*labels, "tolerance: 1e-05"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data(name: str) -> None:
    line = Line(name, STEPS, STEPS, "fail")
    axis, level = Axis(name, "log"), Level(1e-3, name)
    drawing = svg([Figure(name, name, axis, axis, (line,), (level,), (level,), name)])
    assert all(c.isprintable() or c == "\n" for c in drawing)
    said = "".join(words(drawing))
    if name.isprintable() and len(name) < 60:
        assert said.count(name.replace(" ", "")) + said.count(name) >= 5
    assert "<script" not in drawing
    assert height(drawing) < 3000 or len(name) > 1000


def test_ticks_of_one_label_share_an_entry() -> None:
    said = words(svg([DENSITY]))
    assert said.count("top eigenvalues") == 1
    alone = dataclasses.replace(DENSITY, ticks=(Level(4.9, "largest"),))
    assert "largest: 4.9" in words(svg([alone]))


def test_a_band_reaches_down_to_the_foot_and_has_gaps() -> None:
    band = ((0.5, -1.0, 0.0, None, math.nan), (2.0, 2.0, 2.0, 2.0, None))
    line = Line("a", (1, 2, 3, 4, 5), (1.0, 0.25, 1.0, 1.0, 1.0), band=band)
    (log,) = strokes(Figure("f", "F", Axis("x"), Axis("y", "log"), (line,)))
    (linear,) = strokes(Figure("f", "F", Axis("x"), Axis("y"), (line,)))
    assert log.band
    assert linear.band
    assert str(log.band[0]) == "[0.5, 0.25, 0.25, nan, nan]"
    assert str(linear.band[0]) == "[0.5, -1.0, 0.0, nan, nan]"
    assert str(log.band[1]) == str(linear.band[1]) == "[2.0, 2.0, 2.0, 2.0, nan]"


def test_levels_are_told_apart() -> None:
    levels = tuple(Level(v, f"level {v}") for v in (1.0, 2.0, 3.0, 4.0))
    figure = dataclasses.replace(sweep(1, 0), levels=levels)
    assert len({str(s.look["linestyle"]) for s in strokes(figure) if s.across}) == 4


def test_numbers_without_a_place_are_told() -> None:
    y = (0.0, -1.0, math.inf, math.nan, None, 1.0)
    x = tuple(map(float, range(6)))
    figure = Figure("f", "F", Axis("x"), Axis("y", "log"), (Line("a", x, y),), (Level(0.0, "l"),))
    assert hidden(figure) == 4
    assert "Without a place on these axes: 4 numbers." in words(svg([figure]))
    assert hidden(sweep()) == hidden(DENSITY) == 0


FLOATS = st.floats() | st.sampled_from(
    [None, 0.0, 5e-324, 1e-300, 1e300, 1e308, -1e308, math.nan, math.inf, 1.0, 1 + 1e-15, 10**300]
)
SCALES = st.sampled_from(["linear", "log"])


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS, FLOATS), max_size=5), SCALES, SCALES, st.floats())
def test_any_numbers_can_be_drawn(
    rows: list[tuple[float | None, ...]], across: str, up: str, value: float
) -> None:
    x, y, low, high = zip(*rows, strict=True) if rows else ((), (), (), ())
    line, level = Line("a", x, y, band=(low, high)), (Level(value, "l"),)
    axes = Axis("x", across), Axis("y", up)  # type: ignore[arg-type]
    drawing = svg([Figure("f", "F", *axes, (line, line), level, level)])
    assert words(drawing)
    assert "nan" not in re.sub(r">[^<]*<", "><", drawing).lower()


# --- where drawings go -----------------------------------------------------------------------


def test_a_report_is_drawn_whole(swept: Report) -> None:
    said = words(render(swept, "svg"))
    assert "gradcheck: relative error against the step" in said
    assert "gradcheck: spectral density" in said
    written = files(swept)
    assert words(written["gradcheck-density.svg"])[0] in said
    assert "gradcheck: relative error against the step" in words(written["gradcheck-sweep.svg"])


def test_names_of_figures_cannot_leave_the_folder() -> None:
    report = figured(*(dataclasses.replace(DENSITY, name=n) for n in ("../x", "a", "A", "")))
    assert [name for name in files(report) if name.endswith(".svg")] == [
        "gradcheck-_x.svg", "gradcheck-a.svg", "gradcheck-A-2.svg", "gradcheck-.svg",
    ]  # fmt: skip


def test_a_report_without_figures(eig: Report) -> None:
    with pytest.raises(CurvError, match="there is no figure here") as caught:
        render(eig, "svg")
    assert caught.value.code == "E_USAGE"
    assert "--sweep" in caught.value.hint


def test_render_draws(swept: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.json").write_text(swept.to_json(), encoding="utf-8")
    drawing = render(swept, "svg")
    assert curv("render", "report.json", "--format", "svg").out == drawing
    assert curv("render", "report.json", "--out", "x.svg").out == ""
    assert Path("x.svg").read_text(encoding="utf-8") == drawing
    assert curv("render", "report.json", "--out", "all/").code == 0
    assert {p.name: p.read_text(encoding="utf-8") for p in Path("all").iterdir()} == files(swept)


def test_render_without_figures(
    eig: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.json").write_text(eig.to_json(), encoding="utf-8")
    refused(curv("render", "report.json", "--out", "x.svg"), "E_USAGE", 2, "no figure")
    assert [p.name for p in Path().iterdir()] == ["report.json"]
    printed = curv("render", "report.json", "--format", "svg")
    assert printed.err.startswith("curv: E_USAGE: there is no figure here")
    assert printed.out == render(eig, "table"), "what was found is told all the same"
    assert printed.code == 2


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_only_a_drawing_needs_matplotlib(swept: Report, format: str) -> None:
    code = (
        "import sys; from curvcli.report import Report; from curvcli.sinks import render\n"
        f"print(render(Report.from_json(sys.stdin.read()), {format!r})[:0], end='')\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=swept.to_json(), capture_output=True,
        encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
