"""Documents and tables carry every bit of every float, and nothing that a spreadsheet would run."""

import csv
import dataclasses
import io
import json
import math
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curvcli.errors import CurvError, Exit
from curvcli.report import Check, Column, Metric, Report, Result, Value
from curvcli.sinks import FORMATS, files, format_of, render
from curvcli.sinks.data import to_csv, to_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, -0.0, 1e308, 0.1])


def bits(value: Value) -> object:
    """Make floats comparable to the last bit, all nan alike."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return value


def table(rows: list[dict[str, Value]]) -> Result:
    columns = (
        Column("name", "name"),
        Column("value", "value", "real", error="error"),
        Column("error", "error", "real"),
    )
    return Result("eig", "How?", "So.", columns, tuple(rows))


ROWS = st.lists(
    st.fixed_dictionaries(
        {"name": TEXT, "value": FLOATS | st.none(), "error": FLOATS | st.integers() | st.none()}
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(ROWS)
def test_json_gives_every_bit_back(rows: list[dict[str, Value]]) -> None:
    result = dataclasses.replace(
        table(rows), metrics={"m": Metric(rows[0]["value"], "title", "real", 5e-324)}
    )
    text = to_json(Report({"a": 1}, {"eig": result}))
    json.loads(text, parse_constant=pytest.fail)
    back = Report.from_json(text).results["eig"]
    assert [_bits(row) for row in back.rows] == [_bits(row) for row in rows]
    assert bits(back.metrics["m"].value) == bits(rows[0]["value"])


def _bits(row: Mapping[str, Value]) -> dict[str, object]:
    return {key: bits(value) for key, value in row.items()}


@settings(deadline=None)
@given(st.lists(FLOATS | st.none() | st.integers(), min_size=1, max_size=5))
@example([3, None])
@example([0.1 + 0.2, math.nan, None])
def test_csv_gives_every_bit_back(values: list[Value]) -> None:
    text = to_csv(table([{"name": "x", "value": v, "error": 0.1} for v in values]))
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["name", "value", "error"]
    for row, value in zip(rows, values, strict=True):
        assert row[2] == "0.1"
        if isinstance(value, float):
            assert bits(float(row[1])) == bits(value)
        else:
            assert row[1] == ("" if value is None else str(value))


def test_pandas_reads_the_same_table() -> None:
    rows: list[dict[str, Value]] = [{"name": "a,b", "value": 0.1 + 0.2, "error": 1e-310}]
    frame = pandas.read_csv(
        io.StringIO(to_csv(table(rows))), converters=dict.fromkeys(("value", "error"), float)
    )
    assert frame.to_dict("records") == rows


def test_a_report_survives_its_document(full: Report, eig: Report, swept: Report) -> None:
    for report in (full, eig, swept):
        back = Report.from_json(to_json(report))
        assert back == dataclasses.replace(report, provenance=_listed(report.provenance))
        assert to_json(back) == to_json(report)


def _listed(provenance: Mapping[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in provenance.items()}


def test_a_document_hides_no_character() -> None:
    hostile = "a\u202eb\u200b\x9b\udce9\U000e0041 λ"
    check = Check(hostile, "pass", hostile)
    report = Report({hostile: hostile}, {"x": Result("x", "?", hostile, checks=(check,))})
    text = to_json(report)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "λ" in text
    assert Report.from_json(text.encode().decode()) == report


def test_a_word_is_not_taken_for_a_number() -> None:
    metrics = {"m": Metric("NaN", "title", "text"), "n": Metric(math.inf, "title", "real")}
    back = Report.from_json(to_json(Report({}, {"x": Result("x", "?", "!", metrics=metrics)})))
    assert back.results["x"].metrics == metrics


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", r"'\x09=1"),
        ("\r=1", r"'\x0d=1"),
        ("a\nb", r"a\x0ab"),
        ("\x1b[31m", r"\x1b[31m"),
        ("lone\udce9", r"lone\udce9"),
        ('say "a, b"', 'say "a, b"'),
        ("layer.weight", "layer.weight"),
        (True, "True"),
        (-1.5, "-1.5"),
        (None, ""),
    ],
)
def test_csv_cells_are_data(cell: Value, written: str) -> None:
    text = to_csv(table([{"name": cell, "value": 1.0, "error": None}]))
    assert "\r" not in text
    assert next(csv.DictReader(io.StringIO(text)))["name"] == written


def test_csv_holds_the_metrics_where_there_are_no_rows(eig: Report) -> None:
    result = dataclasses.replace(eig.results["eig"], rows=(), columns=())
    assert to_csv(result).splitlines()[:4] == [
        "name,value,error",
        "lambda_max,12.3104,0.00098",
        "lambda_min,-1.234e-07,2e-10",
        "matvecs,1248,",
    ]
    assert to_csv(Result("x", "?", "!", (Column("a", "A"),))) == "a\n"


def test_csv_holds_every_column_of_the_rows(full: Report) -> None:
    result = full.results["gradcheck"]
    header, *rows = csv.reader(io.StringIO(to_csv(result)))
    assert header == [c.name for c in result.columns]
    assert len(rows) == 20


def test_csv_is_for_one_analysis(full: Report, eig: Report) -> None:
    assert render(eig, "csv").startswith("rank,value,residual,gap,converged\n1,12.3104,0.00098,")
    with pytest.raises(CurvError, match="csv holds one analysis; this report has 2") as caught:
        render(full, "csv")
    assert caught.value.exit_code == Exit.REFUSED
    assert "--out DIR/" in caught.value.hint


def test_a_suffix_names_its_format() -> None:
    assert {format_of(Path(f"a/b.c{sink.suffix}")) for sink in FORMATS.values()} == set(FORMATS)
    assert format_of(Path("A.JSON")) == "json"
    for name in ("report.xyz", "report", ".json"):
        with pytest.raises(CurvError, match="suffix") as caught:
            format_of(Path(name))
        assert ".txt, .csv, .json" in caught.value.hint


def test_an_unknown_format_is_refused(eig: Report) -> None:
    with pytest.raises(CurvError, match="no format 'yaml'"):
        render(eig, "yaml")


def test_a_folder_gets_every_form(full: Report, swept: Report) -> None:
    written = files(full)
    assert list(written) == ["report.json", "report.txt", "eig.csv", "gradcheck.csv"]
    assert list(files(swept))[2:] == [
        "gradcheck.csv", "gradcheck-sweep.svg", "gradcheck-density.svg",
    ]  # fmt: skip
    assert Report.from_json(written["report.json"]).results == full.results
    assert written["report.txt"] == render(full, "table")


def test_names_of_results_cannot_leave_the_folder() -> None:
    names = ("../../etc/passwd", "EIG", "eig", "a\x00b", "", ".", "CON/../x")
    report = Report({}, {name: Result(name, "?", "!") for name in names})
    written = [name for name in files(report) if name.endswith(".csv")]
    assert written == [
        "_etc_passwd.csv", "EIG.csv", "eig-2.csv", "a_b.csv", "_.csv", "_-2.csv", "CON_x.csv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [
        "[" * 100_000,
        "[]",
        '{"schema": "curv.report/1"}',
        '{"schema": "curv.report/1", "provenance": {}, "errors": {}, "run": {}, "results": [1]}',
    ],
)
def test_a_broken_document_is_refused(broken: str) -> None:
    with pytest.raises(CurvError) as caught:
        Report.from_json(broken)
    assert caught.value.code == "E_FORMAT"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("headline", 5),
        ("notes", [1]),
        ("rows", [{"rank": [1]}]),
        ("rows", [5]),
        ("columns", [{"name": "a", "title": "A", "format": "colour"}]),
        ("checks", [{"name": "a", "status": "maybe", "message": "", "advice": ""}]),
        ("metrics", {"a": {"value": {}, "title": "A", "format": "real", "error": None}}),
    ],
)
def test_a_document_with_other_types_is_refused(eig: Report, key: str, value: object) -> None:
    document = json.loads(to_json(eig))
    document["results"]["eig"][key] = value
    with pytest.raises(CurvError) as caught:
        Report.from_json(json.dumps(document))
    assert caught.value.code == "E_FORMAT"


def test_the_registry_starts_without_any_library() -> None:
    heavy = {"rich", "pandas", "torch", "matplotlib"}
    code = f"import sys, curvcli.sinks; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
