"""The figures of a run: what changes over its checkpoints."""

from collections.abc import Iterator, Sequence
from typing import Final

from curvcli.report import Axis, Cells, Figure, Line
from curvcli.track.rows import TrackRow, Visit

OVER_EXAMPLES = "Shaded: one standard error over the examples."
SHADED: Final = {
    "sharpness": "Shaded: an interval that holds it.",
    "loss": OVER_EXAMPLES,
    "accuracy": OVER_EXAMPLES,
    "trace": "Shaded: one standard error of the estimate.",
}
"""What the bands of a figure are."""


def figures(visits: Sequence[Visit]) -> Iterator[Figure]:
    """Draw what is known of sharpness, loss, accuracy, trace and steps."""
    rows = [v.row for v in visits]
    x, place = _places(rows)

    def line(label: str, key: str, error: str = "") -> Line:
        y = tuple(getattr(r, key) for r in rows)
        if not error:
            return Line(label, x, y)
        around = [(v, getattr(r, error) or 0.0) for v, r in zip(y, rows, strict=True)]
        low = tuple(None if v is None else v - e for v, e in around)
        return Line(label, x, y, band=(low, tuple(None if v is None else v + e for v, e in around)))

    def figure(name: str, title: str, y: Axis, *lines: Line) -> Iterator[Figure]:
        known = tuple(x for x in lines if any(v is not None for v in x.y))
        if known:
            shaded = SHADED[name] if any(line.band for line in known) else ""
            yield Figure(name, title, place, y, known, caption=shaded, in_rows=True)

    if any(r.sharpness is not None for r in rows):
        yield from figure(
            "sharpness",
            "Sharpness against the threshold",
            Axis("curvature"),
            line("sharpness, as the optimizer meets it", "sharpness", "sharpness_error"),
            line("threshold", "threshold"),
        )
    else:
        largest = line("largest eigenvalue", "lambda_max", "lambda_max_error")
        yield from figure("sharpness", "Sharpness", Axis("curvature"), largest)
    losses = (
        line("training data", "loss", "loss_error"),
        line("held out", "heldout", "heldout_error"),
    )
    yield from figure("loss", "Loss", Axis("loss", "log"), *losses)
    right = (
        line("training data", "accuracy", "accuracy_error"),
        line("held out", "heldout_accuracy", "heldout_accuracy_error"),
    )
    yield from figure("accuracy", "Accuracy", Axis("share of targets"), *right)
    traces = line("trace", "trace", "trace_error")
    yield from figure("trace", "Trace of the Hessian", Axis("trace"), traces)
    yield from _ratios(visits, x, place)


def _places(rows: Sequence[TrackRow]) -> tuple[tuple[float, ...], Axis]:
    """Place the checkpoints at their steps, or one after the other where one has none."""
    steps = tuple(r.step for r in rows if r.step is not None)
    if len(steps) == len(rows):
        return steps, Axis("step")
    return tuple(float(i + 1) for i in range(len(rows))), Axis("checkpoint")


def _ratios(visits: Sequence[Visit], x: tuple[float, ...], place: Axis) -> Iterator[Figure]:
    """Draw the next step of every tensor at every checkpoint."""
    tables = [
        {str(r["tensor"]): r["next"] for r in v.results["ratio"].rows if r["scope"] == "tensor"}
        if "ratio" in v.results
        else {}
        for v in visits
    ]
    names = tuple(dict.fromkeys(n for t in tables for n, value in t.items() if value is not None))
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
    yield Figure("ratio", title, place, Axis("tensor"), (), caption=caption, cells=cells)
