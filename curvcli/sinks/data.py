"""Reports for programs: the JSON document, and one CSV table per analysis; no digit is lost."""

from collections.abc import Mapping, Sequence

from curvcli.report import Report, Result, Value
from curvcli.sinks.text import clean

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A text cell that starts so is run as a formula by spreadsheets."""


def to_json(report: Report) -> str:
    """Write the whole document."""
    return report.to_json()


def to_csv(result: Result) -> str:
    """Write the rows, error columns included; the metrics where there are no rows.

    None is an empty cell, a number that is none is `nan`.
    """
    if result.rows or not result.metrics:
        return _csv([c.name for c in result.columns], result.rows)
    figures = [
        {"name": name, "value": m.value, "error": m.error} for name, m in result.metrics.items()
    ]
    return _csv(["name", "value", "error"], figures)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Value]]) -> str:
    import pandas

    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    header = [guarded(name) for name in names]
    # As objects: pandas would make 3.0 of a 3 that shares its column with None.
    frame = pandas.DataFrame(cells, columns=header, dtype=object)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _cell(value: Value) -> Value:
    if isinstance(value, str):
        return guarded(value)
    # pandas writes None and nan alike.
    return repr(float(value)) if isinstance(value, float) else value


def guarded(text: str) -> str:
    """Make a text cell of text from anywhere, which no spreadsheet takes for a formula."""
    return ("'" if text.startswith(FORMULA) else "") + clean(text)
