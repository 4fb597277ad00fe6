"""At any width, in any encoding, people see every figure, and nothing in a name acts."""

import dataclasses
import re
from collections.abc import Iterator

import pytest
from rich.cells import cell_len

from curvcli.report import Check, Column, Metric, Report, Result
from curvcli.sinks.human import render
from curvcli.sinks.text import ascii_only, clean, number

WIDTHS = (16, 20, 40, 80, 120, None)
HOSTILE = (
    "[red]name[/red]",
    "[link=http://x]y[/link]",
    "\x1b[31mred\x1b[0m",
    "\u202egpj.exe",
    "first\nPASS  forged",
    "tab\tand\rreturn",
    ":smile:",
    "=cmd|' /C calc'!A0",
    "lone\udce9surrogate",
    "重み.層" * 12,
    "x" * 300,
    "a" + " " * 40 + "b",
    "",
)


def squeezed(text: str) -> str:
    """Leave out what layout may add."""
    return re.sub(r"[\s─]+", "", text)


def wanted(result: Result) -> Iterator[str]:
    """Everything that a table has to show of a result."""
    yield from (result.name, result.question, result.headline, *result.notes)
    for metric in result.metrics.values():
        yield from (metric.title, number(metric.value, metric.format, metric.error))
    for check in result.checks:
        if check.status != "pass":
            yield from (check.status.upper(), f"{check.name}: {check.message}", check.advice)
    errors = {c.error for c in result.columns}
    for c in result.columns:
        if c.detail:
            yield c.title
        elif c.name not in errors:
            for row in result.rows:
                error = row[c.error] if c.error else None
                yield number(row[c.name], c.format, error if isinstance(error, float) else None)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("plain", [False, True])
def test_nothing_is_lost_and_no_line_is_too_long(
    full: Report, width: int | None, plain: bool
) -> None:
    shown = render(full, width=width, color=False, plain=plain)
    flat = squeezed(shown) + _first_column(shown)
    for result in full.results.values():
        for text in wanted(result):
            assert squeezed(ascii_only(text) if plain else text) in flat, text
    for text in ("GPT, 124,439,808 parameters", "casts: 2 tensors", "12.1 GB are needed"):
        assert squeezed(text) in squeezed(shown)
    assert "\x1b" not in shown
    assert shown.count("…") == (0 if plain else 1), "the one in the fixture"
    assert shown.isascii() or not plain
    assert not re.search(r"[ \t]$", shown, flags=re.MULTILINE)
    if width is not None:
        assert max(map(cell_len, shown.split("\n"))) <= width


def _first_column(shown: str) -> str:
    """Read down the first column of the last table, where names are folded at 120 cells."""
    table = shown.rpartition("\n  tensor  ")[2].split("\n\n", maxsplit=1)[0]
    return "".join(line[2:23].strip() for line in table.splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_colour_changes_nothing_but_the_colour(full: Report, width: int | None) -> None:
    coloured = render(full, width=width, color=True)
    assert "\x1b[1;31mFAIL" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == render(full, width=width, color=False)


def test_the_environment_decides_nothing(full: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = render(full, width=80, color=False)
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "30"), ("JUPYTER_COLUMNS", "30")):
        monkeypatch.setenv(name, value)
    assert render(full, width=80, color=False) == usual
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" in render(full, width=80, color=True)


@pytest.mark.parametrize("width", [20, 40, 80, None])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name: str, width: int | None) -> None:
    shown = render(_hostile(name), width=width, color=False)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert squeezed(shown).count(squeezed(clean(name))) >= 10
    assert not re.search(r"^PASS  forged", shown, flags=re.MULTILINE)
    if width is not None:
        assert max(map(cell_len, shown.split("\n"))) <= width
    assert render(_hostile(name), width=width, color=True).count("\x1b]") == 0


def _hostile(name: str) -> Report:
    result = Result(
        name=name,
        question=name,
        headline=name,
        columns=(Column("name", name), Column("value", name, "real", "error")),
        rows=({"name": name, "value": 1.0, "error": name}, {"name": name, "value": name}),
        metrics={name: Metric(name, name, "text")},
        checks=(Check(name, "fail", name, name), Check(name, "pass", name)),
        notes=(name,),
    )
    return Report({"summary": {name: name}}, {name: result}, {name: name})


def test_an_encoding_gets_only_what_it_can_hold(full: Report) -> None:
    for encoding in ("ascii", "latin-1", "cp1252", "utf-8"):
        shown = render(full, width=80, color=False, encoding=encoding)
        assert shown.encode(encoding)
        assert ("12.310 ± 0.001" in shown) == (encoding != "ascii")


def test_the_verdict_comes_first(eig: Report) -> None:
    lines = render(eig, width=80, color=False).splitlines()
    at = lines.index("eig — How sharp is the loss here?")
    assert lines[at + 1].startswith("UNDECIDED  The largest curvature is 12.310 ± 0.001;")
    assert lines[-1].startswith("  note: "), "one result needs no last word"


def test_a_table_that_is_too_wide_becomes_several() -> None:
    names = ("one", "two", "three", "four")
    columns = (Column("step", "step", "count"), Column("name", "name"),
               *(Column(n, f"column {n}", "real", "error") for n in names))  # fmt: skip
    rows = tuple(
        {"step": i // 2, "name": f"run{i}", "error": 1e-5, **dict.fromkeys(names, i + 0.123456)}
        for i in range(3)
    )
    report = Report({}, {"track": Result("track", "?", "!", columns=columns, rows=rows)})
    shown = render(report, width=60, color=False).splitlines()
    heads = [line for line in shown if line.startswith("  step  name")]
    assert len(heads) == 2  # steps alone do not tell the rows apart
    assert all("column" in line for line in heads)
    for i in range(3):
        lines = [line for line in shown if f" run{i} " in line]
        assert sum(line.count(f"{i}.12346 ± 0.00001") for line in lines) == 4
    assert max(map(cell_len, shown)) <= 60
    assert len([x for x in render(report, width=120, color=False).splitlines() if "run1" in x]) == 1
    assert "\n    column one:\n    1.12346 ±\n" in render(report, width=20, color=False)


def test_several_results_end_in_one_verdict(full: Report) -> None:
    last = render(full, width=80, color=False).splitlines()[-1]
    assert last == "FAIL  1 failed (gradcheck); 2 undecided (eig, hvp)"


def test_columns_stand_below_each_other(eig: Report) -> None:
    shown = render(eig, width=80, color=False)
    table = shown[shown.index("  rank") :].split("\n\n")[0].splitlines()
    assert table == [
        "  rank       eigenvalue  gap to next  converged",
        "  ─────────────────────────────────────────────",
        "     1  12.310 ± 0.001           4.1  yes",
        "     2  8.2101 ± 0.0031         2.75  yes",
        "     3   5.460 ± 0.012          1.02  yes",
        "     4    4.44 ± 0.13            0.3  yes",
        "     5   -0.02 ± 0.31              –  no",
    ]


def test_names_fold_at_their_dots_before_numbers_are_stacked(full: Report) -> None:
    only = dataclasses.replace(full, results={"gradcheck": full.results["gradcheck"]}, errors={})
    shown = render(only, width=120, color=False)
    assert "  transformer.h.10.        136,113 " in shown
    assert "\n  attn.c_attn.weight\n" in shown
    narrow = render(only, width=40, color=False)
    assert "\n    relative error: 8.1e-06\n" in narrow


def test_an_interrupted_result_says_so(eig: Report) -> None:
    partial = dataclasses.replace(eig.results["eig"], interrupted=True, checks=())
    shown = render(Report({}, {"eig": partial}), width=None, color=False)
    assert "UNDECIDED  interrupted: partial — The largest curvature" in shown


def test_columns_that_name_each_other_as_error_are_all_shown() -> None:
    columns = (Column("a", "A", "real", "b"), Column("b", "B", "real", "a"))
    result = Result("x", "?", "!", columns, ({"a": 1.25, "b": 2.5},))
    assert "1.2 ± 2.5" in render(Report({}, {"x": result}), width=80, color=False)


def test_a_report_of_nothing_is_empty() -> None:
    assert render(Report({}, {}), width=80, color=False) == ""
