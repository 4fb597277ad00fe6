"""Results and the one document that holds them: typed rows, named metrics, checks, provenance.

A Report says everything that any sink shows, down to the titles and formats of its columns, so that
a saved document can be rendered again without the model, without torch and without the code that
made it.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from curvcli.errors import CurvError, Exit

SCHEMA = "curv.report/1"

Status = Literal["pass", "warn", "undecided", "fail"]
Format = Literal["text", "count", "real", "relative", "factor", "percent", "seconds", "bytes"]
Scale = Literal["linear", "log"]
Value = Any
"""float | int | str | bool | None; spelt Any so that one can be compared without a cast."""


@dataclass(frozen=True)
class Check:
    """A verdict on one thing, with the sentence that supports it."""

    name: str
    status: Status
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Metric:
    """One number of a result; `error` is its uncertainty in the same unit, where it has one."""

    value: Value
    title: str
    format: Format = "real"
    error: float | None = None


@dataclass(frozen=True)
class Column:
    """How one field of the rows is shown; `error` names the column that holds its uncertainty.

    A `detail` is evidence for those who look closer: CSV and JSON hold it, tables leave it out.
    """

    name: str
    title: str
    format: Format = "text"
    error: str | None = None
    detail: bool = False


def plus_minus(value: float, error: float) -> str:
    """Write a number for a headline: the error rounded up to one digit, covering the rounding."""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{value:.6g}"
    digits = math.floor(math.log10(error))
    unit = 10.0**digits
    rounded = round(value / unit) * unit
    error = math.ceil((error + abs(value - rounded)) / unit * (1 - 1e-12)) * unit
    places = max(-digits, 0)
    if places > 12 or abs(value) >= 1e12:
        return f"{value:.6g} ± {error:.0e}"
    return f"{rounded:.{places}f} ± {error:.{places}f}"


def column(
    title: str, format: Format = "text", error: str | None = None, *, detail: bool = False
) -> Any:
    """Declare one field of a row type, with its title and its format."""
    return field(metadata={"title": title, "format": format, "error": error, "detail": detail})


def columns(row: type) -> tuple[Column, ...]:
    """Read the columns off a row type, a dataclass whose fields are `column(...)`."""
    return tuple(Column(f.name, **f.metadata) for f in dataclasses.fields(row))


@dataclass(frozen=True)
class Axis:
    """One axis of a figure; the title has the unit."""

    title: str
    scale: Scale = "linear"


@dataclass(frozen=True)
class Level:
    """A value of an axis that a figure points out, such as a tolerance."""

    value: float
    label: str


Points = tuple[float | None, ...]


@dataclass(frozen=True)
class Line:
    """One curve, with a gap where a number is None or not finite.

    `band` is its uncertainty: the low ends and the high ends, at the same places.
    """

    label: str
    x: Points
    y: Points
    status: Status | None = None
    band: tuple[Points, Points] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where there is not a number for every place."""
        if {len(self.x)} != {len(points) for points in (self.y, *(self.band or ()))}:
            raise ValueError(f"as many x as y, in the line {self.label!r}")


@dataclass(frozen=True)
class Cells:
    """Numbers shown by colour: a row for every label, from above, and a column for every x."""

    labels: tuple[str, ...]
    x: Points
    values: tuple[Points, ...]
    key: Axis

    def __post_init__(self) -> None:
        """Raise ValueError where there is not a number for every place."""
        if len(self.labels) != len(self.values) or any(len(v) != len(self.x) for v in self.values):
            raise ValueError("as many values as places, in the cells of a figure")


@dataclass(frozen=True)
class Figure:
    """Curves over one pair of axes, or cells, as numbers: what draws them is a sink's affair.

    `levels` are values of y, drawn across the figure; `ticks` are values of x, drawn at its foot.
    A figure with `cells` has nothing else; y names what their rows are. One whose numbers are
    `in_rows` of the result need not be told in numbers too.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    ticks: tuple[Level, ...] = ()
    caption: str = ""
    cells: Cells | None = None
    in_rows: bool = False


@dataclass(frozen=True)
class Result:
    """The answer of one analysis."""

    name: str
    question: str
    headline: str
    columns: tuple[Column, ...] = ()
    rows: tuple[Mapping[str, Value], ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float | None = None
    """Wall time of the analysis; it belongs to the document's `run` block."""
    arrays: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """NumPy arrays by name, too large for the document: they go to a file of their own, `file`."""
    file: Path | None = field(default=None, compare=False)

    @property
    def status(self) -> Status:
        """The gravest status among the checks; undecided where the work was interrupted."""
        found: set[Status] = {c.status for c in self.checks}
        if self.interrupted:
            found.add("undecided")
        order: tuple[Status, ...] = ("fail", "undecided", "warn")
        return next((s for s in order if s in found), "pass")


def rows_of(rows: Iterable[Any]) -> tuple[dict[str, Value], ...]:
    """Turn row objects into plain mappings."""
    return tuple({f.name: getattr(row, f.name) for f in dataclasses.fields(row)} for row in rows)


@dataclass(frozen=True)
class Report:
    """Results by name, with where they come from.

    `provenance` and the results are the same for the same inputs and seed; what may differ from
    run to run (times, dates) is in `run`. Analyses that failed before they had a result are in
    `errors`, by name, as the one line that says why.
    """

    provenance: Mapping[str, Any]
    results: Mapping[str, Result]
    errors: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The gravest status among the results."""
        found = {r.status for r in self.results.values()}
        if self.errors:
            found.add("undecided")
        order: tuple[Status, ...] = ("fail", "undecided", "warn")
        return next((s for s in order if s in found), "pass")

    def exit_code(self, *, strict: bool = False, exit_zero: bool = False) -> Exit:
        """Give the exit code of the command line, by the public table."""
        if any(r.interrupted for r in self.results.values()):
            return Exit.INTERRUPTED
        if any(e.startswith("E_INTERNAL") for e in self.errors.values()):
            return Exit.BUG
        found = {c.status for r in self.results.values() for c in r.checks}
        if "fail" in found and not exit_zero:
            return Exit.FAILED
        undecided = self.errors or "undecided" in found or (strict and "warn" in found)
        return Exit.UNDECIDED if undecided else Exit.OK

    def to_json(self) -> str:
        """Write the document; floats keep all their digits, the order of keys is fixed."""
        document = {
            "schema": SCHEMA,
            "status": self.status,
            "provenance": self.provenance,
            "results": {name: _result_out(r) for name, r in self.results.items()},
            "errors": self.errors,
            "run": {
                **self.run,
                "seconds": {n: r.seconds for n, r in self.results.items() if r.seconds is not None},
            },
        }
        text = json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False)
        # UTF-8 has no lone surrogates; and what leaves no ink must not hide in a document either.
        return re.sub(r"[^\n -~]", _visible, text) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "the report") -> "Report":
        """Read a document back.

        Raises: CurvError (E_FORMAT) where it is not one of this version.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CurvError("E_FORMAT", f"{origin} is not JSON: {error}") from None
        found = document.get("schema") if isinstance(document, dict) else None
        if found != SCHEMA:
            raise CurvError(
                "E_FORMAT",
                f"{origin} has schema {found!r}, not {SCHEMA!r}",
                "pass a file written by curv --format json",
            )
        try:
            run = dict(document["run"])
            seconds = run.pop("seconds", {})
            return cls(
                provenance=document["provenance"],
                results={
                    name: _result_in(name, r, seconds.get(name))
                    for name, r in document["results"].items()
                },
                errors=document["errors"],
                run=run,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CurvError(
                "E_FORMAT", f"{origin} says {SCHEMA!r} but lacks or garbles {error}"
            ) from None


def _result_out(result: Result) -> dict[str, Any]:
    # Not dataclasses.asdict: it would copy every row three times over.
    plain = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    del plain["name"], plain["seconds"], plain["arrays"], plain["file"]
    plain["status"] = result.status
    for key in ("columns", "checks", "figures"):
        plain[key] = [dataclasses.asdict(x) for x in plain[key]]
    plain["metrics"] = {k: dataclasses.asdict(m) for k, m in result.metrics.items()}
    return plain


def _result_in(name: str, plain: Mapping[str, Any], seconds: float | None) -> Result:
    _refuse_others(plain)
    return Result(
        name=name,
        question=plain["question"],
        headline=plain["headline"],
        columns=tuple(Column(**c) for c in plain["columns"]),
        rows=tuple(_rows_in(plain["rows"], plain["columns"])),
        metrics={k: _metric_in(m) for k, m in plain["metrics"].items()},
        checks=tuple(Check(**c) for c in plain["checks"]),
        notes=tuple(plain["notes"]),
        # Documents written before there were figures have none.
        figures=tuple(_figure_in(f) for f in _list(plain.get("figures", []))),
        options=plain["options"],
        interrupted=plain["interrupted"],
        seconds=seconds,
    )


CELL = float | int | str | bool | None


def _refuse_others(plain: Mapping[str, Any]) -> None:
    """Raise TypeError where a document of unknown origin has other types than a Result."""
    columns, metrics, checks = plain["columns"], plain["metrics"].values(), plain["checks"]
    texts = [plain["question"], plain["headline"], *plain["notes"]]
    texts += [x["title"] for x in (*columns, *metrics)] + [c["name"] for c in columns]
    texts += [c[key] for c in checks for key in ("name", "message", "advice")]
    cells = [value for row in plain["rows"] for value in row.values()]
    cells += [m[key] for m in metrics for key in ("value", "error")]
    for values, types in ((texts, str), (cells, CELL)):
        for value in values:
            if not isinstance(value, types):
                raise TypeError(f"a {type(value).__name__} where text or a number belongs")
    _among(get_args(Format), [x["format"] for x in (*columns, *metrics)])
    _among(get_args(Status), [c["status"] for c in checks])


def _among(known: tuple[str, ...], values: Iterable[Any]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"{value!r}, which is none of {', '.join(known)}")


def _figure_in(plain: Mapping[str, Any]) -> Figure:
    """Read a figure, or raise TypeError or ValueError where a Figure has other types."""
    lines, levels, ticks = (_list(plain[key]) for key in ("lines", "levels", "ticks"))
    texts = [plain[key] for key in ("name", "title", "caption")]
    texts += [plain[axis]["title"] for axis in "xy"]
    texts += [x["label"] for x in (*lines, *levels, *ticks)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"text in the figure {plain['name']!r}")
    if not isinstance(plain.get("in_rows", False), bool):
        raise TypeError(f"in_rows in the figure {plain['name']!r}")
    _among(get_args(Scale), [plain[axis]["scale"] for axis in "xy"])
    _among(get_args(Status), [x["status"] for x in lines if x["status"] is not None])
    read = {
        "x": Axis(**plain["x"]),
        "y": Axis(**plain["y"]),
        "lines": tuple(Line(**x | _points_in(x)) for x in lines),
        "levels": tuple(Level(**x | {"value": _number_in(x["value"])}) for x in levels),
        "ticks": tuple(Level(**x | {"value": _number_in(x["value"])}) for x in ticks),
        "cells": _cells_in(plain.get("cells")),
    }
    return Figure(**{**plain, **read})


def _cells_in(plain: Mapping[str, Any] | None) -> Cells | None:
    if plain is None:
        return None
    labels = tuple(_list(plain["labels"]))
    if not all(isinstance(text, str) for text in (*labels, plain["key"]["title"])):
        raise TypeError("text in the cells of a figure")
    _among(get_args(Scale), [plain["key"]["scale"]])
    values = tuple(_series_in(row) for row in _list(plain["values"]))
    return Cells(labels, _series_in(plain["x"]), values, Axis(**plain["key"]))


def _points_in(line: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {key: _series_in(line[key]) for key in ("x", "y")}
    if line["band"] is not None:
        low, high = line["band"]
        read["band"] = (_series_in(low), _series_in(high))
    return read


def _series_in(values: Any) -> Points:
    return tuple(None if value is None else _number_in(value) for value in _list(values))


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"a {type(values).__name__} where a list belongs")
    return values


def _number_in(value: Any) -> float:
    number: Any = NONFINITE.get(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, float | int):
        raise TypeError(f"a {type(value).__name__} where a number belongs")
    # JSON has whole numbers of any length; a figure has none that is no float.
    if isinstance(number, int) and abs(number) > sys.float_info.max:
        raise ValueError("a number that is too large")
    return number


def _metric_in(plain: Mapping[str, Any]) -> Metric:
    numeric = ("error",) if plain["format"] == "text" else ("value", "error")
    return Metric(**_numbers(plain, numeric))


def _rows_in(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Value]]:
    numeric = [c["name"] for c in columns if c["format"] != "text"]
    for row in rows:
        yield _numbers(row, numeric)


NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _numbers(plain: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Turn the words that stand for non-finite numbers back into numbers, at `keys`."""
    read = dict(plain)
    for key in keys:
        if isinstance(read.get(key), str):
            read[key] = NONFINITE.get(read[key], read[key])
    return read


def _visible(found: re.Match[str]) -> str:
    """Write a character that does not print as JSON's escape of it."""
    character = found.group()
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _plain(value: Any) -> Any:
    """Make JSON of it: JSON has no NaN and no infinity, so those become words."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable):
        return [_plain(v) for v in value]
    return str(value)
