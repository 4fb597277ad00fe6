"""Renderings of a report by the name of their format: table, csv, json, svg."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from curvcli.errors import CurvError
from curvcli.report import Figure, Report, Result


@dataclass(frozen=True)
class Look:
    """What the place where a report is read can show."""

    width: int | None = None
    color: bool = False
    plain: bool = False
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Sink:
    """One format: the suffix of its files, and how a report is written in it."""

    suffix: str
    write: Callable[[Report, Look], str]


# rich, pandas and matplotlib are imported where they are used: `curv --help` needs no sink.


def _table(report: Report, look: Look) -> str:
    from curvcli.sinks import human

    return human.render(
        report, width=look.width, color=look.color, plain=look.plain, encoding=look.encoding
    )


def _csv(report: Report, look: Look) -> str:
    from curvcli.sinks import data

    holds("csv", len(report.results), draws=False)
    (result,) = report.results.values()
    return data.to_csv(result)


def _json(report: Report, look: Look) -> str:
    from curvcli.sinks import data

    return data.to_json(report)


def _svg(report: Report, look: Look) -> str:
    from curvcli.sinks import figure

    found = [_titled(result, f) for result in report.results.values() for f in result.figures]
    holds("svg", len(report.results), draws=bool(found))
    return figure.svg(found)


def _titled(result: Result, figure: Figure) -> Figure:
    """Say in a figure that leaves its report of which analysis it is."""
    return replace(figure, title=f"{result.name}: {figure.title}")


FORMATS: Final[dict[str, Sink]] = {
    "table": Sink(".txt", _table),
    "csv": Sink(".csv", _csv),
    "json": Sink(".json", _json),
    "svg": Sink(".svg", _svg),
}


def render(
    report: Report,
    format: str,
    *,
    width: int | None = None,
    color: bool = False,
    plain: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Write a report in one of FORMATS; all but the table look the same everywhere.

    Raises: CurvError (E_USAGE) where the format is unknown, is csv and the report has not exactly
    one result, or is svg and the report has no figure.
    """
    if format not in FORMATS:
        raise CurvError("E_USAGE", f"no format {format!r}", f"choose from {', '.join(FORMATS)}")
    return FORMATS[format].write(report, Look(width, color, plain, encoding))


def holds(format: str, count: int, *, draws: bool) -> None:
    """Refuse a format that cannot hold a report of `count` results; does one of them draw?

    Raises: CurvError (E_USAGE) for csv, which holds one, and svg, which holds figures.
    """
    if format == "svg" and not draws:
        raise CurvError(
            "E_USAGE",
            "there is no figure here, and svg holds nothing else",
            "choose json or csv; activations, spectrum, track and gradcheck --sweep draw",
        )
    if format == "csv" and count != 1:
        raise CurvError(
            "E_USAGE",
            f"csv holds one analysis; this report has {count}",
            "write them with --out DIR/",
        )


def format_of(path: Path) -> str:
    """Name the format that a file's suffix asks for.

    Raises: CurvError (E_USAGE) where no format has that suffix.
    """
    for name, sink in FORMATS.items():
        if path.suffix.lower() == sink.suffix:
            return name
    known = ", ".join(sink.suffix for sink in FORMATS.values())
    raise CurvError(
        "E_USAGE",
        f"{str(path)!r} ends in no suffix of a format",
        f"use one of {known}",
    )


def files(report: Report) -> dict[str, str]:
    """Write what a folder gets: the document, the table, a CSV per result, an SVG per figure."""
    from curvcli.sinks import data, figure

    written = {
        "report.json": FORMATS["json"].write(report, Look()),
        "report.txt": FORMATS["table"].write(report, Look()),
    }
    for name, result in report.results.items():
        written[_free(name, ".csv", written)] = data.to_csv(result)
        for f in result.figures:
            written[_free(f"{name}-{f.name}", ".svg", written)] = figure.svg([_titled(result, f)])
    return written


def _free(name: str, suffix: str, taken: dict[str, str]) -> str:
    """Make a file name of a name that a document may have from anywhere."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:100] or "_"
    candidate, count = f"{stem}{suffix}", 1
    while candidate.lower() in (t.lower() for t in taken):
        count += 1
        candidate = f"{stem}-{count}{suffix}"
    return candidate
