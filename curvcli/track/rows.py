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
    loss: float | None = column("loss", "real", error="loss_error")
    loss_error: float | None = column("std. error", "relative", detail=True)
    heldout: float | None = column("loss held out", "real", error="heldout_error")
    heldout_error: float | None = column("std. error", "relative", detail=True)
    accuracy: float | None = column("accuracy", "percent", error="accuracy_error")
    accuracy_error: float | None = column("std. error", "percent", detail=True)
    heldout_accuracy: float | None = column(
        "accuracy held out", "percent", error="heldout_accuracy_error"
    )
    heldout_accuracy_error: float | None = column("std. error", "percent", detail=True)
    sharpness: float | None = column("sharpness", "real", error="sharpness_error")
    sharpness_error: float | None = column("error", "relative", detail=True)
    share: float | None = column("of threshold", "percent", error="share_error")
    share_error: float | None = column("error", "percent", detail=True)
    threshold: float | None = column("threshold", "real", detail=True)
    lambda_max: float | None = column(
        "largest eigenvalue", "real", error="lambda_max_error", detail=True
    )
    lambda_max_error: float | None = column("error", "relative", detail=True)
    trace: float | None = column("trace", "real", error="trace_error")
    trace_error: float | None = column("std. error", "relative", detail=True)
    ratio: float | None = column("median next ratio", "relative")
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
ERRORS: Final = {n: f"{n}_error" for n in ("sharpness", "share", "lambda_max", "trace")}
"""Which column holds the uncertainty of such a metric."""


@dataclass(frozen=True)
class Visit:
    """What one checkpoint gave.

    `source` is the key that tells its step; `notes` are of what could not be found out.
    """

    row: TrackRow
    results: Mapping[str, Result]
    failed: Mapping[str, Exception]
    provenance: Mapping[str, Any]
    source: str = ""
    notes: tuple[str, ...] = ()
