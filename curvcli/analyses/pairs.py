"""What is told of eigenpairs: a row for each, and the figures and verdicts that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curvcli.report import Check, Metric, column, plus_minus

if TYPE_CHECKING:
    from curvcli.curvature.alignment import Alignment
    from curvcli.linalg.ritz import Ritz, Which
    from curvcli.params import Layout


@dataclass(frozen=True)
class EigRow:
    """One eigenvalue: [low, high] holds it; `residual` is ||H y - theta y||.

    `block` names the tensor or module whose diagonal block it belongs to, and is empty for the
    whole; `end` is told where both ends of the spectrum were asked for. `sampling` is the standard
    error over the examples, with the eigenvector kept; `error` is the distance to the eigenvalue of
    the dense float64 matrix, where that was formed.
    """

    block: str = column("block")
    index: int = column("#", "count")
    eigenvalue: float = column("eigenvalue", "real", error="radius")
    radius: float = column("radius", "relative")
    low: float = column("low", "real", detail=True)
    high: float = column("high", "real", detail=True)
    end: str = column("end")
    residual: float = column("residual", "relative")
    sampling: float | None = column("± sampling", "relative")
    error: float | None = column("true error", "relative", detail=True)


def pair_rows(
    ritz: "Ritz",
    which: "Which",
    top: int,
    *,
    block: str = "",
    sampling: Sequence[float] | None = None,
    errors: Sequence[float] | None = None,
) -> list[EigRow]:
    """Make the rows of one matrix: `top` pairs from an end, in their order."""
    theta, radius, residuals = (t.tolist() for t in (ritz.values, ritz.radius, ritz.residuals))
    return [
        EigRow(
            block=block,
            index=i + 1,
            eigenvalue=t,
            radius=r,
            low=t - r,
            high=t + r,
            end=("largest" if i < top else "smallest") if which == "both" else "",
            residual=residuals[i],
            sampling=sampling[i] if sampling else None,
            error=errors[i] if errors else None,
        )
        for i, (t, r) in enumerate(zip(theta, radius, strict=True))
    ]


def headline(
    rows: Sequence[EigRow], which: "Which", blocks: Sequence[EigRow] = (), *, complete: bool = True
) -> str:
    """Say the extreme eigenvalues in one line.

    The largest Rayleigh quotient of a search that is not `complete` is a lower bound.
    """
    if which == "largest" and not complete:
        return f"largest eigenvalue at least {rows[0].eigenvalue:.4g}"
    titles = {"smallest": "smallest eigenvalue", "magnitude": "eigenvalue largest in size"}
    said = f"{titles.get(which, 'largest eigenvalue')} {_told(rows[0])}"
    if which == "both":
        least = next((r for r in rows if r.end == "smallest"), rows[-1])
        said += f", smallest {_told(least)}"
    if blocks and which in ("largest", "both"):
        said += f"; sharpest block {max(blocks, key=lambda r: r.eigenvalue).block}"
    return said


def _told(row: EigRow) -> str:
    return plus_minus(row.eigenvalue, row.radius)


def extremes(rows: Sequence[EigRow], which: "Which") -> dict[str, Metric]:
    """Give the ends of the spectrum that were asked for, and how far the first stands apart."""
    most = max(rows, key=lambda r: r.eigenvalue)
    least = min(rows, key=lambda r: r.eigenvalue)
    found = {}
    if which in ("largest", "both"):
        found["lambda_max"] = Metric(most.eigenvalue, "largest eigenvalue", "real", most.radius)
    if which in ("smallest", "both"):
        found["lambda_min"] = Metric(least.eigenvalue, "smallest eigenvalue", "real", least.radius)
    if which == "magnitude":
        size = abs(rows[0].eigenvalue)
        found["spectral_norm"] = Metric(size, "spectral norm", "real", rows[0].radius)
    if len(rows) > 1 and rows[1].end != "smallest":
        first, second = (abs(r.eigenvalue) if which == "magnitude" else r.eigenvalue
                         for r in rows[:2])  # fmt: skip
        error = rows[0].radius + rows[1].radius
        found["gap"] = Metric(abs(first - second), "gap to the next", "real", error)
    return found


def signs(rows: Sequence[EigRow], which: "Which", size: int) -> dict[str, Metric]:
    """Count what is certainly negative, and give the condition number where it is known.

    It is where the smallest eigenvalue is certainly positive, or where all `size` eigenvalues are
    there and none has an interval that reaches across zero.
    """
    found = {}
    if which != "largest":
        seen = sum(r.high < 0 for r in rows)
        found["negative_seen"] = Metric(seen, "negative eigenvalues seen", "count")
    positive = [r for r in rows if r.low > 0]
    both = which == "both" and len(positive) == len(rows)
    every = len(rows) == size and not any(r.low <= 0 <= r.high for r in rows)
    if positive and (both or every):
        most = max(positive, key=lambda r: r.eigenvalue)
        least = min(positive, key=lambda r: r.eigenvalue)
        value = most.eigenvalue / least.eigenvalue
        error = max(most.high / least.low - value, value - most.low / least.high)
        found["condition"] = Metric(value, CONDITION, "real", error)
    return found


def along_gradient(aligned: "Alignment", count: int) -> dict[str, Metric]:
    """Say how sharp the loss is along its gradient, and where the gradient lies."""
    share = "share of the gradient in " + ("it" if count == 1 else f"these {count}")
    return {
        "gradient_curvature": Metric(aligned.quotient, "curvature along the gradient", "real"),
        "gradient_cosine": Metric(aligned.cosine, "gradient's cosine with the first", "real"),
        "gradient_share": Metric(aligned.share, share, "percent"),
    }


CONDITION = "condition number of the positive part"


def convergence(ritz: "Ritz", tolerance: float) -> Check:
    """Say whether every pair asked for is as exact as was asked."""
    name = "converged"
    if ritz.status in ("converged", "unverified"):
        return Check(name, "pass", f"every residual is below {tolerance:g} of its eigenvalue")
    if ritz.status == "inexact":
        return Check(
            name,
            "undecided",
            "the recurrence converged, but a true product leaves a residual of "
            f"{float(ritz.residuals.max()):.1e}: products are too inexact for this tolerance",
            "use --dtype float64, another --hvp, or a larger --tolerance",
        )
    return Check(
        name,
        "undecided",
        f"not every residual fell below {tolerance:g} of its eigenvalue in {ritz.matvecs} products",
        advised(ritz, "raise --max-matvecs or --tolerance, or ask for fewer"),
    )


def search(ritz: "Ritz") -> Check:
    """Say whether an eigenvalue beyond those found may have been missed."""
    if ritz.complete:
        return Check(
            "none missed",
            "pass",
            "an independent random start found no further eigenvalue beyond these "
            f"(chance of a miss by more than 5 %: at most {ritz.doubt:.1%})",
        )
    return Check(
        "none missed",
        "undecided",
        "the search for a missed eigenvalue did not end",
        advised(ritz, "raise --max-matvecs"),
    )


def advised(ritz: "Ritz", advice: str) -> str:
    """Give the advice, or another where it was room that the work was short of."""
    return "raise --memory, or ask for fewer" if ritz.short_of == "vectors" else advice


def vector_arrays(ritz: "Ritz", layout: "Layout") -> dict[str, Any]:
    """Give the eigenvectors as NumPy arrays, one for each parameter, with their certificates."""
    import torch

    # NumPy has no bfloat16.
    narrow = ritz.vectors.dtype == torch.bfloat16
    vectors = (ritz.vectors.float() if narrow else ritz.vectors).cpu()
    arrays = {
        f"eigenvector.{i}.{name}": part.numpy()
        for i, y in enumerate(vectors, 1)
        for name, part in layout.named(y).items()
    }
    beside = {"eigenvalues": ritz.values, "radius": ritz.radius, "residuals": ritz.residuals}
    return arrays | {name: values.cpu().numpy() for name, values in beside.items()}
