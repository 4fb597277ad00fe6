"""The numbers of a figure as people read them: the gravest curves, as many as there is room for."""

import dataclasses

import pytest
from rich.cells import cell_len
from sinks.drawn import DENSITY, STEPS, figured, sweep

from curvcli.report import Axis, Column, Figure, Line, Report, Result
from curvcli.sinks.curves import gravest_first
from curvcli.sinks.human import render


def shown(figure: Figure, width: int | None = 80, *, plain: bool = False) -> list[str]:
    """Render a figure alone, less the verdict above it."""
    lines = render(figured(figure), width=width, color=False, plain=plain).splitlines()
    return lines[3:]


def test_a_figure_is_announced_and_its_numbers_stand_below() -> None:
    assert shown(sweep(1, 1))[:5] == [
        "  figure: relative error against the step (--out FILE.svg draws it)",
        "     step  bad.0 FAIL  h.0.weight",
        "  ───────────────────────────────",
        "  1.0e+00     5.0e-01     1.0e+00",
        "  1.0e-01     5.0e-01     1.0e-02",
    ]
    assert len(shown(sweep(1, 1))) == 3 + len(STEPS)


def test_in_ascii() -> None:
    plain = shown(sweep(1, 1), plain=True)
    assert plain[1:3] == ["     step  bad.0 FAIL  h.0.weight", "  1.0e+00     5.0e-01     1.0e+00"]
    assert "\n".join(plain).isascii()


@pytest.mark.parametrize("width", [16, 20, 40, 60, 80, 200, None])
def test_as_many_curves_as_there_is_room_for(width: int | None) -> None:
    figure = sweep(20, 2)
    lines = shown(figure, width)
    text = "\n".join(lines)
    assert "bad.1" in text, "the gravest is always there"
    assert "in svg and json:" in text
    if width is None:
        assert "bad.1 FAIL  bad.0 FAIL  h.0.weight  h.1.weight" in text
        assert lines[-1] == "  in svg and json: 14 more lines"
    else:
        assert max(map(cell_len, lines)) <= width
    if width == 40:
        assert lines[-1] == "  in svg and json: 19 more lines"


def test_long_names_fold_at_their_dots() -> None:
    names = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(4)]
    figure = Figure(
        "f", "F", Axis("step"), Axis("loss"), tuple(Line(n, (1, 2), (3.25, 4)) for n in names)
    )
    assert shown(figure)[1:] == [
        "        transformer.h.0.  transformer.h.1.  transformer.h.2.  transformer.h.3.",
        "            attn.c_attn.      attn.c_attn.      attn.c_attn.      attn.c_attn.",
        "  step            weight            weight            weight            weight",
        "  ────────────────────────────────────────────────────────────────────────────",
        "     1              3.25              3.25              3.25              3.25",
        "     2                 4                 4                 4                 4",
    ]


def test_only_the_announcement_where_there_is_no_compact_table() -> None:
    apart = dataclasses.replace(sweep(), lines=(*sweep().lines, Line("c", (1.0,), (2.0,))))
    empty = dataclasses.replace(sweep(), lines=())
    for figure in (DENSITY, apart, empty):
        assert shown(figure) == [f"  figure: {figure.title} (--out FILE.svg draws it)"]


def test_the_order_of_curves() -> None:
    low = Line("low", (1, 2), (0.1, 9.0), "pass")
    high = Line("high", (1, 2), (0.5, 0.6), "pass")
    gap = Line("gap", (1, 2), (None, 0.3), "pass")
    none = Line("none", (1, 2), (None, float("nan")), "pass")
    failed = Line("failed", (1, 2), (0.0, 0.0), "fail")
    warned = Line("warned", (1, 2), (0.0, 0.0), "warn")
    found = gravest_first([none, low, warned, gap, high, failed])
    assert [line.label for line in found] == ["failed", "warned", "high", "gap", "low", "none"]
    unjudged = [dataclasses.replace(line, status=None) for line in (none, low, gap, high)]
    assert gravest_first(unjudged) == unjudged


@pytest.mark.parametrize("empty", ["", None])
def test_a_column_of_empty_texts_is_left_out(empty: str | None) -> None:
    columns = (Column("part", "of"), Column("tensor", "tensor"), Column("n", "entries", "count"))
    rows = tuple({"part": empty, "tensor": t, "n": None} for t in "ab")
    result = Result("x", "?", "!", columns, rows)

    def titles(result: Result) -> list[str]:
        text = render(Report({}, {"x": result}), width=80, color=False, plain=True)
        return text.splitlines()[3].split()

    assert titles(result) == ["tensor", "entries"]
    said = dataclasses.replace(result, rows=(*rows, {"part": "loss", "tensor": "c", "n": 1}))
    assert titles(said) == ["of", "tensor", "entries"]
