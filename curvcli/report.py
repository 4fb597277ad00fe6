"""Results and the one document that holds them: typed rows, named metrics, checks, provenance.

A Report says everything that any sink shows, down to the titles and formats of its columns, so that
a saved document can be rendered again without the model, without torch and without the code that
made it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from curvcli.errors import Exit

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
class Tiles:
    """Small pictures of one shape, (channels, height, width), side by side.

    The numbers of a picture go from left to right, row by row from above, channel by channel. One
    channel is shown by the colours of `key`; three are red, green and blue, and grey is zero.
    """

    labels: tuple[str, ...]
    shape: tuple[int, int, int]
    values: tuple[Points, ...]
    key: Axis

    def __post_init__(self) -> None:
        """Raise ValueError where there is not a number for every pixel, or no colour for it."""
        numbers = {len(picture) for picture in self.values}
        if min(self.shape) < 1 or numbers - {math.prod(self.shape)}:
            raise ValueError("as many numbers as pixels, in the pictures of a figure")
        if self.shape[0] not in (1, 3) or len(self.labels) != len(self.values):
            raise ValueError("one or three channels and a label each, in the pictures of a figure")


@dataclass(frozen=True)
class Figure:
    """Curves over one pair of axes, cells or tiles, as numbers: what draws them is a sink's affair.

    `levels` are values of y, drawn across the figure; `ticks` are values of x, drawn at its foot.
    A figure with `cells` or `tiles` has nothing else; y names what the rows of cells are. One whose
    numbers are `in_rows` of the result need not be told in numbers too.
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
    tiles: Tiles | None = None
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
        from curvcli.document import written

        return written(self)

    @classmethod
    def from_json(cls, text: str, origin: str = "the report") -> "Report":
        """Read a document back.

        Raises: CurvError (E_FORMAT) where it is not one of this version.
        """
        from curvcli.document import read

        return read(text, origin)
