"""The one JSON document of a report: written with every digit, read with nothing taken on trust."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, get_args

from curvcli.errors import CurvError
from curvcli.report import (
    Axis,
    Cells,
    Check,
    Column,
    Figure,
    Format,
    Level,
    Line,
    Metric,
    Points,
    Report,
    Result,
    Scale,
    Status,
    Tiles,
    Value,
)

SCHEMA: Final = "curv.report/1"


def written(report: Report) -> str:
    """Write the document; floats keep all their digits, the order of keys is fixed."""
    document = {
        "schema": SCHEMA,
        "status": report.status,
        "provenance": report.provenance,
        "results": {name: _result_out(r) for name, r in report.results.items()},
        "errors": report.errors,
        "run": {
            **report.run,
            "seconds": {n: r.seconds for n, r in report.results.items() if r.seconds is not None},
        },
    }
    text = json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    # UTF-8 has no lone surrogates; and what leaves no ink must not hide in a document either.
    return re.sub(r"[^\n -~]", _visible, text) + "\n"


def read(text: str, origin: str) -> Report:
    """Read a document back; `origin` names it in a refusal.

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
        return Report(
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
        "tiles": _tiles_in(plain.get("tiles")),
    }
    return Figure(**{**plain, **read})


def _cells_in(plain: Mapping[str, Any] | None) -> Cells | None:
    if plain is None:
        return None
    return Cells(**{**plain, **_colours_in(plain), "x": _series_in(plain["x"])})


def _tiles_in(plain: Mapping[str, Any] | None) -> Tiles | None:
    if plain is None:
        return None
    channels, height, width = _list(plain["shape"])
    if not all(isinstance(n, int) for n in (channels, height, width)):
        raise TypeError("numbers of pixels in the pictures of a figure")
    return Tiles(**{**plain, **_colours_in(plain), "shape": (channels, height, width)})


def _colours_in(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Read what numbers shown by colour have in common."""
    labels = tuple(_list(plain["labels"]))
    if not all(isinstance(text, str) for text in (*labels, plain["key"]["title"])):
        raise TypeError("text beside the colours of a figure")
    _among(get_args(Scale), [plain["key"]["scale"]])
    values = tuple(_series_in(row) for row in _list(plain["values"]))
    return {"labels": labels, "values": values, "key": Axis(**plain["key"])}


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
