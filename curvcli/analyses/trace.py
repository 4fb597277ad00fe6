"""The trace of a curvature matrix, whole and tensor by tensor, with standard errors."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column, plus_minus

if TYPE_CHECKING:
    from curvcli.linalg.operator import LinearOperator
    from curvcli.linalg.probing import Estimate
    from curvcli.problem import Problem
    from curvcli.work import Work


@dataclass(frozen=True)
class TraceRow:
    """The trace of one tensor's diagonal block."""

    tensor: str = column("tensor")
    trace: float = column("trace", "real", error="stderr")
    stderr: float | None = column("std. error", "relative")
    share: float | None = column("share", "percent")
    mean: float = column("per entry", "real")
    entries: int = column("entries", "count", detail=True)


class Trace(Analysis):
    """How much curvature is there in all: the trace of the Hessian, or of another matrix?

    Random probes until the standard error is small enough, with a share for every tensor from the
    same products; exact where the budget of products reaches the number of parameters. The value
    ± 1.96 standard errors holds the truth in 95 of 100 cases.
    """

    name: ClassVar[str] = "trace"
    Row: ClassVar[type] = TraceRow

    matrix: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = option(
        "hessian", "Hessian, Gauss-Newton matrix, Fisher of the model's own labels, of the data's"
    )
    method: Literal["auto", "hutchinson", "hutchpp", "xtrace"] = option(
        "auto", "auto is hutchpp, which sketches only as long as that pays"
    )
    tolerance: float = option(1e-2, "relative standard error at which to stop", gt=0, le=0.5)
    max_matvecs: int = option(300, "products after which to give up", ge=2)
    label_samples: int = option(1, "labels drawn for each term of the Fisher", ge=1)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Estimate, and hold the standard error against what was asked."""
        from curvcli.curvature.matrices import described, matrix

        chosen = matrix(self.matrix, problem, work, self.label_samples)
        found = self._estimate(chosen.operator, problem, work)
        notes = [*described(self.matrix, chosen), *self._notes(found)]
        if not math.isfinite(found.mean) and found.status == "interrupted":
            return self.result("nothing is known yet", notes=notes, interrupted=True)
        rows = [
            TraceRow(
                tensor=name,
                trace=mean,
                stderr=stderr if math.isfinite(stderr) else None,
                # A share of what cancels says nothing.
                share=mean / found.mean if abs(found.mean) >= found.scale > 0 else None,
                mean=mean / size,
                entries=size,
            )
            for name, size, (mean, stderr) in zip(
                problem.names, problem.layout.sizes, found.blocks, strict=True
            )
            if math.isfinite(mean) or found.status != "interrupted"
        ]
        return self.result(
            self._headline(found, rows),
            rows=rows,
            metrics=self._metrics(found, problem.layout.size),
            checks=[self._convergence(found), *self.doubts(chosen.notes)],
            notes=notes,
            interrupted=found.status == "interrupted",
        )

    def _estimate(self, A: "LinearOperator", problem: "Problem", work: "Work") -> "Estimate":
        from curvcli.curvature.plan import planned
        from curvcli.linalg.hutchpp import HELD
        from curvcli.linalg.trace import hutchinson, hutchpp, xtrace

        blocks, watch = list(problem.layout.slices.values()), work.announce("trace")
        room, most = self._room(problem, work), min(self.max_matvecs, A.size)
        if self.method == "xtrace" and most < A.size:
            most = min(most, _held(A.size, room))
        held = {"hutchinson": 0, "xtrace": 3 * most // 2}.get(
            self.method, min(room, HELD * most // 3)
        )
        timed = planned(A, work, most, vectors=held if most < A.size else 0)
        args = (timed, self.tolerance, work.rng)
        if self.method == "hutchinson":
            return hutchinson(*args, max_matvecs=most, blocks=blocks, watch=watch)
        if self.method == "xtrace":
            return xtrace(*args, max_matvecs=most, blocks=blocks, watch=watch)
        return hutchpp(*args, max_matvecs=most, blocks=blocks, watch=watch, vectors=room)

    def _room(self, problem: "Problem", work: "Work") -> int:
        """Say how many vectors fit in memory."""
        from curvcli.curvature.memory import spare

        like = problem.like
        room = spare(like.device) if work.memory is None else work.memory
        return int(room // (like.numel() * like.element_size()))

    def _notes(self, found: "Estimate") -> list[str]:
        if found.by_entries:
            way = f"diagonal entries one by one, {found.probes}"
        elif self.method == "hutchinson":
            way = f"Hutchinson, {found.probes} probes"
        elif self.method == "xtrace":
            way = f"XTrace, {found.probes} probes"
        else:
            way = f"Hutch++, {found.sketches} sketches taken out exactly, {found.probes} probes"
        notes = [f"method: {way}"]
        if self.method == "xtrace" and not found.by_entries:
            notes.append(
                "XTrace estimates the whole only: tensors are Hutchinson's, less exact, and need "
                "not sum to it"
            )
        if self.matrix == "fisher":
            notes.append(
                "standard errors are those of the probes: the labels drawn add their own, less "
                "with more --label-samples"
            )
        return notes

    def _headline(self, found: "Estimate", rows: list[TraceRow]) -> str:
        said = f"trace {plus_minus(found.mean, found.stderr)}"
        most = max(rows, key=lambda r: abs(r.trace), default=None)
        if most is None or most.share is None:
            return said
        return f"{said}, {most.share:.0%} of it in {most.tensor}"

    def _metrics(self, found: "Estimate", size: int) -> dict[str, Metric]:
        error = found.stderr if math.isfinite(found.stderr) else None
        mean_error = None if error is None else error / size
        return {
            "trace": Metric(found.mean, "trace", "real", error),
            "mean_eigenvalue": Metric(
                found.mean / size, "mean eigenvalue, trace / n", "real", mean_error
            ),
            "matvecs": Metric(found.matvecs, "products used", "count"),
        }

    def _convergence(self, found: "Estimate") -> Check:
        if found.exact:
            return Check("converged", "pass", "exact: every diagonal entry has been computed")
        beside = "the trace"
        if abs(found.mean) < found.scale:
            beside = (
                "a tenth of the larger of the tensors' |traces| together and the Frobenius norm, "
                "beside which the trace nearly cancels"
            )
        if found.status == "converged":
            return Check(
                "converged", "pass", f"the standard error is below {self.tolerance:g} of {beside}"
            )
        return Check(
            "converged",
            "undecided",
            f"after {found.matvecs} products the standard error is {found.relative:.2g} of "
            f"{beside}, not surely below {self.tolerance:g}",
            self._advice(found),
        )

    def _advice(self, found: "Estimate") -> str:
        if found.status == "interrupted" or not math.isfinite(found.relative):
            return "let it run on, with enough --max-matvecs"
        need = math.ceil(found.matvecs * (found.relative / self.tolerance) ** 2 * 1.2)
        return f"raise --max-matvecs (to about {need:,} at most) or --tolerance"


def _held(size: int, room: int) -> int:
    """Say how many products XTrace may take, every two of which add three vectors to what it holds.

    Raises: CurvError (E_MEMORY) where those that give an error do not fit.
    """
    from curvcli.linalg.xtrace import HELD

    fits = 2 * (room // HELD)
    if fits < 6:
        raise CurvError(
            "E_MEMORY",
            f"xtrace holds three vectors of {size:,} entries for every two products",
            "raise --memory, or use --method hutchinson",
        )
    return fits
