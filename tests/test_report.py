"""Headlines are intervals that hold what they stand for; figures survive their document."""

import json
import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.errors import CurvError
from curvcli.report import Axis, Figure, Level, Line, Report, Result, Status, plus_minus


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (1.26893, 3.2e-6, "1.268930 ± 0.000004"),
        (2.9872, 0.146, "3.0 ± 0.2"),
        (482.14, 35.2, "480 ± 40"),
        (8.2727, 0.0, "8.2727"),
    ],
)
def test_headlines(value: float, error: float, said: str) -> None:
    assert plus_minus(value, error) == said


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e5))
def test_the_printed_interval_holds_the_true_one(value: float, error: float) -> None:
    centre, _, radius = plus_minus(value, error).partition(" ± ")
    slack = 1e-9 * max(abs(value), 1.0)
    assert float(centre) - float(radius) <= value - error + slack
    assert float(centre) + float(radius) >= value + error - slack


def points(size: int) -> st.SearchStrategy[tuple[float | None, ...]]:
    extremes = st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, -0.0, 1e308, 0.1])
    return st.lists(
        st.floats() | extremes | st.integers(-(10**18), 10**18) | st.none(),
        min_size=size, max_size=size,
    ).map(tuple)  # fmt: skip


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    size = draw(st.integers(0, 4))
    band = draw(st.none() | st.tuples(points(size), points(size)))
    line = Line("a", draw(points(size)), draw(points(size)), draw(STATUS), band)
    level = Level(draw(st.floats()), draw(st.text(st.characters(exclude_categories=["Cs"]))))
    return Figure("f", "F", Axis("x", "log"), Axis("y"), (line, line), (level,), (level,), "said")


STATUS = st.sampled_from([None, *get_args(Status)])


def document(*found: Figure) -> str:
    return Report({}, {"x": Result("x", "?", "!", figures=found)}).to_json()


@settings(deadline=None)
@given(figures())
def test_figures_survive_their_document(figure: Figure) -> None:
    text = document(figure)
    json.loads(text, parse_constant=pytest.fail)
    (back,) = Report.from_json(text).results["x"].figures
    # As text: nan is not nan, but it is written the same.
    assert repr(back) == repr(figure)
    assert document(back) == text


def test_a_document_from_before_there_were_figures() -> None:
    plain = json.loads(document())
    del plain["results"]["x"]["figures"]
    assert Report.from_json(json.dumps(plain)).results["x"].figures == ()


FLAT = Figure(
    "f", "F", Axis("x"), Axis("y"), (Line("a", (1.0, 2.0), (3.0, None)),), (Level(1.0, "l"),)
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", 5),
        ("", {}),
        ("", "figure"),
        ("", [5]),
        ("", [{}]),
        ("0 name", 5),
        ("0 title", None),
        ("0 caption", ["a"]),
        ("0 colour", "red"),
        ("0 x", "x"),
        ("0 x title", 1),
        ("0 x scale", "cubic"),
        ("0 y scale", ["log"]),
        ("0 y unit", "m"),
        ("0 lines", {"label": "a"}),
        ("0 lines", 5),
        ("0 lines", {}),
        ("0 lines 0", "a"),
        ("0 lines 0 label", 1),
        ("0 lines 0 status", "maybe"),
        ("0 lines 0 width", 1),
        ("0 lines 0 x", [1.0]),
        ("0 lines 0 x", "ab"),
        ("0 lines 0 x", {"1": 1, "2": 2}),
        ("0 lines 0 y", [1.0, "2"]),
        ("0 lines 0 y", [1.0, True]),
        ("0 lines 0 y", [1.0, [2.0]]),
        ("0 lines 0 y", [1.0, 10**400]),
        ("0 lines 0 band", [[1.0, 2.0]]),
        ("0 lines 0 band", [[1.0, 2.0], [1.0]]),
        ("0 lines 0 band", [[1.0, 2.0], "ab"]),
        ("0 levels 0 value", None),
        ("0 levels 0 value", "high"),
        ("0 levels 0 label", {}),
        ("0 ticks", [{"value": 1.0}]),
    ],
)
def test_figures_of_other_types_are_refused(path: str, value: object) -> None:
    plain = json.loads(document(FLAT))
    place, keys = plain["results"]["x"], ["figures", *path.split()]
    for key in keys[:-1]:
        place = place[int(key) if key.isdigit() else key]
    place[int(keys[-1]) if keys[-1].isdigit() else keys[-1]] = value
    with pytest.raises(CurvError) as caught:
        Report.from_json(json.dumps(plain))
    assert caught.value.code == "E_FORMAT"


def test_a_line_has_a_number_for_every_place() -> None:
    for x, band in (((1.0,), None), ((1.0, 2.0), ((1.0,), (2.0, 3.0)))):
        with pytest.raises(ValueError, match="as many x as y, in the line 'a'"):
            Line("a", x, (1.0, 2.0), band=band)
