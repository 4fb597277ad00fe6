"""What is told of a run: a row for each checkpoint, the checks over all of them, and figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError, bug
from curvcli.report import (
    Axis,
    Cells,
    Check,
    Figure,
    Line,
    Metric,
    Result,
    Status,
    columns,
    rows_of,
)
from curvcli.track.rows import TrackRow, Visit

QUESTION: Final = "How did curvature, loss and steps change over this run?"


def told(
    visits: Sequence[Visit],
    refused: Mapping[str, CurvError],
    analyses: Sequence[Analysis],
    interrupted: bool,
) -> Result:
    """Put the answer together; `refused` are the files that could not be read, by name."""
    rows = [v.row for v in visits]
    return Result(
        name="track",
        question=QUESTION,
        headline=_headline(rows),
        columns=columns(TrackRow),
        rows=rows_of(rows),
        metrics=dict(_metrics(rows)),
        checks=(*_unread(refused), *_checks(visits)),
        notes=tuple(dict.fromkeys(n for v in visits for n in v.provenance["notes"])),
        figures=tuple(_drawn(visits)),
        options={a.name: a.model_dump() for a in analyses},
        interrupted=interrupted,
    )


def _headline(rows: Sequence[TrackRow]) -> str:
    if not rows:
        return "nothing is known yet"
    said = f"{len(rows)} checkpoints"
    first, last = rows[0], rows[-1]
    if first.step is not None and last.step is not None:
        said += f" from step {first.step:g} to {last.step:g}"
    said += f"; loss {first.loss:.4g} to {last.loss:.4g}"
    shares = [r.share for r in rows if r.share is not None]
    if shares:
        said += f"; sharpness {shares[0]:.0%} of the threshold at first, {shares[-1]:.0%} at last"
        said += f", {max(shares):.0%} at most"
    return said


def _metrics(rows: Sequence[TrackRow]) -> Iterator[tuple[str, Metric]]:
    yield "checkpoints", Metric(len(rows), "checkpoints", "count")
    sharp = [r for r in rows if r.sharpness is not None]
    if sharp:
        top = max(sharp, key=lambda r: r.sharpness or -math.inf)
        yield (
            "sharpness_max",
            Metric(top.sharpness, "largest sharpness", "real", top.sharpness_error),
        )
    shares = [r.share for r in rows if r.share is not None]
    if shares:
        yield "share_max", Metric(max(shares), "largest share of the threshold", "percent")


def _unread(refused: Mapping[str, CurvError]) -> Iterator[Check]:
    for name, error in refused.items():
        said = f"passed over: {error.code}: {error.message}"
        yield Check(f"checkpoint {name}", "undecided", said, error.hint)


def _checks(visits: Sequence[Visit]) -> Iterator[Check]:
    """Gather the checks that did not pass, over the checkpoints where they did not."""
    found: dict[tuple[str, Status], list[tuple[TrackRow, Check]]] = {}
    for visit in visits:
        for name, result in visit.results.items():
            for check in result.checks:
                if check.status != "pass":
                    place = (f"{name}: {check.name}", check.status)
                    found.setdefault(place, []).append((visit.row, check))
        for name, error in visit.failed.items():
            told = error if isinstance(error, CurvError) else bug(error)
            check = Check(name, "undecided", f"{told.code}: {told.message}", told.hint)
            found.setdefault((name, "undecided"), []).append((visit.row, check))
    for (name, status), cases in found.items():
        row, check = cases[-1]
        said = f"at {len(cases)} of {len(visits)} checkpoints, last {_at(row)}: {check.message}"
        yield Check(name, status, said, check.advice)
    if not found and visits:
        yield Check("every checkpoint", "pass", "every check of every checkpoint passed")


def _at(row: TrackRow) -> str:
    return row.checkpoint if row.step is None else f"at step {row.step:g}"


def _drawn(visits: Sequence[Visit]) -> Iterator[Figure]:
    rows = [v.row for v in visits]
    x = tuple(r.step if r.step is not None else float(i) for i, r in enumerate(rows))
    step = Axis("step")

    def line(label: str, key: str, error: str = "") -> Line:
        y = tuple(getattr(r, key) for r in rows)
        if not error:
            return Line(label, x, y)
        around = [(v, getattr(r, error) or 0.0) for v, r in zip(y, rows, strict=True)]
        low = tuple(None if v is None else v - e for v, e in around)
        return Line(label, x, y, band=(low, tuple(None if v is None else v + e for v, e in around)))

    def known(*lines: Line) -> tuple[Line, ...]:
        return tuple(x for x in lines if any(v is not None for v in x.y))

    sharp = known(
        line("sharpness, as the optimizer meets it", "sharpness", "sharpness_error"),
        line("threshold", "threshold"),
    )
    if sharp:
        yield Figure(
            "sharpness",
            "Sharpness against the threshold",
            step,
            Axis("curvature"),
            sharp,
            in_rows=True,
        )
    elif eigenvalues := known(line("largest eigenvalue", "lambda_max")):
        yield Figure("sharpness", "Sharpness", step, Axis("curvature"), eigenvalues, in_rows=True)
    losses = known(line("training data", "loss"), line("held out", "heldout"))
    yield Figure("loss", "Loss", step, Axis("loss", "log"), losses, in_rows=True)
    right = known(line("training data", "accuracy"), line("held out", "heldout_accuracy"))
    if right:
        yield Figure("accuracy", "Accuracy", step, Axis("share of targets"), right, in_rows=True)
    if traces := known(line("trace", "trace", "trace_error")):
        yield Figure("trace", "Trace of the Hessian", step, Axis("trace"), traces, in_rows=True)
    yield from _ratios(visits, x)


def _ratios(visits: Sequence[Visit], x: tuple[float, ...]) -> Iterator[Figure]:
    """Draw the next step of every tensor at every checkpoint."""
    tables = [
        {str(r["tensor"]): r["next"] for r in v.results["ratio"].rows}
        if "ratio" in v.results
        else {}
        for v in visits
    ]
    names = tuple(dict.fromkeys(n for t in tables for n in t))
    if not names:
        return
    cells = Cells(
        labels=names,
        x=x,
        values=tuple(tuple(t.get(n) for t in tables) for n in names),
        key=Axis("update / parameter", "log"),
    )
    title = "How far the next step moves each tensor"
    caption = "Norm of the update over that of the parameter; near 1e-3 is a healthy guide."
    yield Figure("ratio", title, Axis("step"), Axis("tensor"), (), caption=caption, cells=cells)
