"""What one checkpoint of a run gave, and its row in the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from curvcli.report import Result, column


@dataclass(frozen=True)
class TrackRow:
    """One checkpoint; a figure that its analysis did not give is None."""

    step: float | None = column("step", "count")
    checkpoint: str = column("checkpoint")
    loss: float | None = column("loss", "real")
    heldout: float | None = column("held out", "real")
    accuracy: float | None = column("accuracy", "percent")
    heldout_accuracy: float | None = column("held out", "percent")
    sharpness: float | None = column("sharpness", "real", error="sharpness_error")
    sharpness_error: float | None = column("error", "relative", detail=True)
    share: float | None = column("of threshold", "percent")
    threshold: float | None = column("threshold", "real", detail=True)
    lambda_max: float | None = column("largest eigenvalue", "real", detail=True)
    trace: float | None = column("trace", "real", error="trace_error")
    trace_error: float | None = column("std. error", "relative", detail=True)
    ratio: float | None = column("next ratio", "relative")
    decades: float | None = column("gradient decades", "real", detail=True)
    dead: int | None = column("dead units", "count", detail=True)
    verdict: str = column("verdict")


FIGURES: Final = {
    "sharpness": ("stability", "sharpness"),
    "threshold": ("stability", "threshold"),
    "share": ("stability", "ratio"),
    "lambda_max": ("eig", "lambda_max"),
    "trace": ("trace", "trace"),
    "ratio": ("ratio", "next_median"),
    "decades": ("activations", "gradient_decades"),
    "dead": ("activations", "dead_units"),
}
"""Which metric of which analysis a column shows."""
ERRORS: Final = {"sharpness": "sharpness_error", "trace": "trace_error"}


@dataclass(frozen=True)
class Visit:
    """What one checkpoint gave."""

    row: TrackRow
    results: Mapping[str, Result]
    failed: Mapping[str, Exception]
    provenance: Mapping[str, Any]
