"""Numbers shown by colour in a figure."""

import json
import math

import pytest

from curvcli.errors import CurvError
from curvcli.report import Axis, Cells, Figure, Report, Result
from curvcli.sinks import cells as cellwise
from curvcli.sinks import figure


def drawn(cells: Cells) -> Figure:
    return Figure("map", "A map", Axis("step"), Axis("tensor"), (), cells=cells)


CELLS = Cells(
    ("first.weight", "a" * 90), (0.0, 10.0, 20.0),
    ((1e-3, None, 1e-1), (0.0, math.nan, 1e-2)), Axis("ratio", "log"),
)  # fmt: skip


def test_every_row_and_column_is_named() -> None:
    text = figure.svg([drawn(CELLS)])
    for word in ("first.weight", "a" * 17 + "…" + "a" * 18, ">20<", ">ratio<", "A map", "tensor"):
        assert word in text
    assert text == figure.svg([drawn(CELLS)])


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("value", [None, 0.0, 5.0, -1.0, math.inf])
def test_any_numbers_can_be_drawn(scale: str, value: float | None) -> None:
    cells = Cells(("a",), (1.0, 2.0), ((value, value),), Axis("v", scale))  # type: ignore[arg-type]
    assert "<svg" in figure.svg([drawn(cells)])
    assert "<svg" in figure.svg([drawn(Cells((), (), (), Axis("v")))])


def test_a_document_holds_them() -> None:
    result = Result("track", "?", "!", figures=(drawn(CELLS),))
    report = Report({}, {"track": result})
    again = Report.from_json(report.to_json())
    found = again.results["track"].figures[0].cells
    assert found is not None
    assert (found.labels, found.x, found.key) == (CELLS.labels, CELLS.x, CELLS.key)
    assert found.values[0] == CELLS.values[0]
    assert again.to_json() == report.to_json()
    figure.svg(again.results["track"].figures)


@pytest.mark.parametrize("spoiled", [{"labels": [1, 2]}, {"values": [[1.0]]}, {"x": 3}])
def test_cells_of_unknown_origin_are_refused(spoiled: dict[str, object]) -> None:
    document = json.loads(
        Report({}, {"t": Result("t", "?", "!", figures=(drawn(CELLS),))}).to_json()
    )
    document["results"]["t"]["figures"][0]["cells"] |= spoiled
    with pytest.raises(CurvError, match="garbles"):
        Report.from_json(json.dumps(document))


def test_a_number_for_every_place() -> None:
    with pytest.raises(ValueError, match="as many"):
        Cells(("a",), (1.0, 2.0), ((1.0,),), Axis("v"))


@pytest.mark.parametrize("high", [2.1e-3, 2.5e-3, 9e-3, 0.3, 5.0])
def test_the_key_of_any_span_has_numbers(high: float) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    axes = canvas.subplots()
    cells = Cells(("a",), (1.0, 2.0), ((2.0e-3, high),), Axis("v", "log"))
    cellwise.draw(axes, cells, ["a"])
    canvas.draw_without_rendering()
    (key,) = axes.child_axes
    low, top = key.get_ylim()
    said = [t.get_text() for t in key.get_yticklabels() if low <= t.get_position()[1] <= top]
    assert len(set(said)) == len(said) >= 2


def test_steps_are_written_in_full() -> None:
    wide = Cells(("a",), (12345678.0, 12345679.0), ((1.0, 2.0),), Axis("v"))
    assert ">12345679<" in figure.svg([drawn(wide)])
