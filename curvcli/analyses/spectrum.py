"""The spectral density of a curvature matrix, and what share of it lies where."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import option
from curvcli.report import Axis, Check, Figure, Level, Line, Metric, Result, column, plus_minus

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.linalg.averages import Estimate
    from curvcli.linalg.quadrature import Quadrature
    from curvcli.problem import Problem
    from curvcli.work import Work

GAP = 4.0
"""Smoothing widths without a node that set outliers apart: two Gaussians so far apart are two."""

FEW = 0.05
"""A group of eigenvalues is off the bulk where it holds less than this share of them."""

OPEN = 0.05
"""Shares that more steps may change by more than this are not known."""

INTEGRAL = 1e-3
"""How far from one the drawn density may integrate; truncating the Gaussians costs 1e-6."""

TICKS = 5
"""Ritz values marked at either end of the figure."""


@dataclass(frozen=True)
class SpectrumRow:
    """One quantity: a value in the eigenvalues' unit, or a share and a number of eigenvalues.

    Of an error, `sampling` is the standard error over probes, `steps` what more steps may change.
    """

    quantity: str = column("quantity")
    value: float | None = column("value", "real", error="error")
    error: float | None = column("error", "relative", detail=True)
    share: float | None = column("share", "percent", error="share_error")
    share_error: float | None = column("error of the share", "percent", detail=True)
    eigenvalues: int | None = column("eigenvalues", "count", error="eigenvalues_error")
    eigenvalues_error: int | None = column("error of their number", "count", detail=True)
    sampling: float | None = column("from probes", "relative", detail=True)
    steps: float | None = column("from steps", "relative", detail=True)


class Spectrum(Analysis):
    """How are the eigenvalues of the curvature distributed: negative, near zero, far out?

    Stochastic Lanczos quadrature: from every random probe, some steps of Lanczos give nodes and
    weights that stand for all eigenvalues. Errors are standard errors; 1.96 of them on either side
    hold the truth in 95 of 100 runs. Small matrices are formed whole, and are exact.
    """

    name: ClassVar[str] = "spectrum"
    Row: ClassVar[type] = SpectrumRow

    matrix: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = option(
        "hessian", "whose spectrum"
    )
    probes: int = option(8, "random probes; more make sampling errors smaller", ge=1)
    steps: int = option(60, "Lanczos steps for each probe; more tell eigenvalues apart", ge=2)
    width: float = option(
        0.01, "width of the smoothing Gaussian, relative to the spectrum's range", ge=1e-3, le=0.2
    )
    # What 60 steps resolve: on the sample digits_mlp.pt they leave the share within 1e-3 open by
    # 14 %, that within 1e-2 by 0.1 %.
    near_zero: float = option(
        1e-2, "eigenvalues up to this size, relative to the largest, count as zero; less needs "
        "more --steps", gt=0, lt=1,
    )  # fmt: skip
    label_samples: int = option(1, "labels drawn for each term by --matrix fisher", ge=1)

    @property
    def draws(self) -> bool:
        """Whether its answer has figures."""
        return True

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Run the probes and read off what they found."""
        from curvcli.curvature.matrices import described, matrix
        from curvcli.curvature.plan import planned
        from curvcli.linalg.slq import slq, whole

        self._fits(problem, work)
        chosen = matrix(self.matrix, problem, work, self.label_samples)
        small = whole(problem.layout.size, self.probes, self.steps)
        most = problem.layout.size if small else self.probes * self.steps
        A = planned(chosen.operator, work, most, vectors=0 if small else self.steps)
        q = slq(A, self.probes, self.steps, work.rng, work.announce("spectral density"))
        notes = described(self.matrix, chosen)
        if not q.probes:
            return self.result("no probe is finished yet", notes=notes, interrupted=True)
        if q.interrupted:
            notes.append(f"interrupted when {len(q.probes)} of {self.probes} probes were finished")
        if q.exact:
            notes.append(f"exact: the matrix was formed by {q.size} products, nothing is sampled")
        sigma, zero, gap = self.width * q.span, self.near_zero * q.largest, self._gap(q)
        notes += [
            f"near zero means within ±{zero:.3g}, {self.near_zero:g} of the largest in size",
            f"outliers are groups of less than {FEW:.0%} of the eigenvalues that a gap of more "
            f"than {gap:.3g} sets apart: {GAP:g} smoothing widths, or pi / steps of the range",
        ]
        rows = self._rows(q, zero, gap)
        figure, integral = self._figure(q, sigma)
        return self.result(
            self._headline(rows),
            rows=rows,
            metrics=self._metrics(rows, q),
            checks=[
                _integrates(integral),
                self._extremes(q, sigma),
                self._shares(rows),
                *self.doubts(chosen.notes),
            ],
            notes=notes,
            figures=[figure],
            interrupted=q.interrupted,
        )

    def _fits(self, problem: "Problem", work: "Work") -> None:
        """Raise CurvError (E_MEMORY) where the basis of one probe does not fit in memory."""
        from curvcli.curvature.memory import spare

        like = problem.like
        room = spare(like.device) if work.memory is None else work.memory
        steps = min(self.steps, like.numel())
        if steps * like.numel() * like.element_size() > room:
            raise CurvError(
                "E_MEMORY",
                f"{steps} vectors of {like.numel():,} entries need more than {room / 1e9:.2g} GB",
                "raise --memory, or choose fewer --steps or --params",
            )

    def _gap(self, q: "Quadrature") -> float:
        # Inside of a bulk, the nodes of m steps are about pi / 2m of its range apart.
        resolution = 0.0 if q.exact else math.pi / self.steps
        return max(GAP * self.width, resolution) * q.span

    def _rows(self, q: "Quadrature", zero: float, gap: float) -> list[SpectrumRow]:
        from curvcli.linalg.averages import below, mass, outliers, rank, trace

        total = trace(q)
        (low, below_by), (high, above_by) = q.ends
        return [
            _value(
                "trace", float(total.mean), total.error, float(total.stderr), float(total.drift)
            ),
            _value("largest", high, above_by, steps=above_by),
            _value("smallest", low, below_by, steps=below_by),
            _share("negative", below(q, -zero), q.size),
            _share("near zero", mass(q, -zero, zero), q.size),
            _share("rank", rank(q, zero).times(1 / q.size), q.size),
            _share("outliers", outliers(q, gap, FEW), q.size),
        ]

    def _headline(self, rows: list[SpectrumRow]) -> str:
        named = {r.quantity: r for r in rows}
        told = [
            f"{plus_minus(100 * (r.share or 0.0), 100 * (r.share_error or 0.0))} % {name}"
            for name in ("negative", "near zero")
            for r in [named[name]]
        ]
        count = named["outliers"].eigenvalues
        return f"{', '.join(told)}, {count} outlier{'s' * (count != 1)}"

    def _metrics(self, rows: list[SpectrumRow], q: "Quadrature") -> dict[str, Metric]:
        named = {r.quantity: r for r in rows}

        def value(row: str, title: str) -> Metric:
            return Metric(named[row].value, title, "real", named[row].error)

        def share(row: str, title: str) -> Metric:
            return Metric(named[row].share, title, "percent", named[row].share_error)

        def count(row: str, title: str) -> Metric:
            return Metric(named[row].eigenvalues, title, "count", named[row].eigenvalues_error)

        return {
            "trace": value("trace", "trace"),
            "lambda_max": value("largest", "largest Ritz value"),
            "lambda_min": value("smallest", "smallest Ritz value"),
            "negative": share("negative", "negative eigenvalues"),
            "near_zero": share("near zero", "eigenvalues near zero"),
            "rank": count("rank", "numerical rank"),
            "outliers": count("outliers", "eigenvalues off the bulk"),
            "matvecs": Metric(q.matvecs, "products used", "count"),
        }

    def _extremes(self, q: "Quadrature", sigma: float) -> Check:
        worst = max(residual for _, residual in q.ends)
        said = f"the extreme Ritz values are within {worst:.1e} of eigenvalues"
        # Half a width is what the eye cannot tell apart in the figure.
        if worst <= sigma / 2:
            return Check("sharp ends", "pass", f"{said}, the smoothing is {sigma:.1e} wide")
        return Check(
            "sharp ends",
            "undecided",
            f"{said} only, and the smoothing is {sigma:.1e} wide",
            "raise --steps or --width",
        )

    def _shares(self, rows: list[SpectrumRow]) -> Check:
        name, worst = max(
            ((r.quantity, r.steps or 0.0) for r in rows if r.share is not None), key=lambda x: x[1]
        )
        said = f"more steps would change the shares by about {worst:.2%} of the eigenvalues"
        if worst <= OPEN:
            return Check("enough steps", "pass", said)
        return Check(
            "enough steps",
            "undecided",
            f"{said}, most of all what is called {name}",
            "raise --steps or --near-zero",
        )

    def _figure(self, q: "Quadrature", sigma: float) -> tuple[Figure, float]:
        """Draw the density, and integrate what is drawn."""
        from curvcli.linalg.density import density, grid, peak

        x = grid(q, sigma)
        found = density(q, x, sigma)
        # Against a peak of height `peak`, fainter than this is nothing that the eye could use.
        foot = peak(q, sigma) / 100
        y = found.mean.clone()
        y[y < foot] = math.nan
        spread = 1.96 * found.stderr.hypot(found.drift)
        line = Line(
            "density",
            _points(x),
            _points(y),
            band=None if q.exact else (_points((y - spread).clamp_min(foot)), _points(y + spread)),
        )
        figure = Figure(
            name="density",
            title="density of the eigenvalues, as a share of them per unit",
            x=Axis("eigenvalue"),
            y=Axis("density", "log"),
            lines=(line,),
            ticks=tuple(_ticks(q, sigma)),
            caption=f"Every eigenvalue is a Gaussian of width {sigma:.2g}; one alone peaks at "
            f"{peak(q, sigma):.2g}."
            + ("" if q.exact else " The band holds the density in 95 of 100 runs, at each place."),
        )
        return figure, float(found.mean.sum()) * sigma / 4


def _integrates(integral: float) -> Check:
    said = f"the drawn density integrates to {integral:.6f}"
    status: Literal["pass", "undecided"] = "pass" if abs(integral - 1) <= INTEGRAL else "undecided"
    return Check("integrates to one", status, said)


def _value(
    quantity: str, value: float, error: float, sampling: float | None = None, steps: float = 0.0
) -> SpectrumRow:
    return SpectrumRow(quantity, value, error, None, None, None, None, sampling, steps)


def _share(quantity: str, found: "Estimate", n: int) -> SpectrumRow:
    """Tell a share, and how many of n eigenvalues that is."""
    share, error = float(found.mean), found.error
    # Rounded up, unless it is as good as none.
    count, off = round(n * share), math.ceil(n * error - 0.05)
    parts = float(found.stderr), float(found.drift)
    return SpectrumRow(quantity, None, None, share, error, count, off, *parts)


def _ticks(q: "Quadrature", sigma: float) -> list[Level]:
    """Mark the extreme Ritz values of the probe that reaches farthest, where they are sharp."""
    best = max(q.probes, key=lambda p: float(p.rule.nodes[-1]))
    sharp = best.rule.nodes[best.residuals <= sigma / 2].tolist()
    ends = sharp if len(sharp) <= 2 * TICKS else sharp[:TICKS] + sharp[-TICKS:]
    return [Level(v, "extreme Ritz values") for v in ends]


def _points(values: "Tensor") -> tuple[float | None, ...]:
    return tuple(None if math.isnan(v) else v for v in values.tolist())
