"""The diagonal of the Hessian, exact or estimated, summed up tensor by tensor."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import option
from curvcli.report import Metric, Result, column, plus_minus

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.curvature.diagonal import ExactDiagonal, Part
    from curvcli.problem import Problem
    from curvcli.work import Work

PATIENCE = 3e10
"""Products times parameters times examples up to which `auto` is exact where no --budget is given.

From ten seconds to a minute on two cores, by the kind of layer. A count and no time, so that the
same inputs give the same answer.
"""


@dataclass(frozen=True)
class DiagRow:
    """The diagonal entries of one parameter tensor."""

    tensor: str = column("tensor")
    method: str = column("method")
    entries: int = column("entries", "count")
    trace: float = column("trace", "real", error="stderr")
    stderr: float | None = column("std. error", "relative")
    mean: float = column("mean", "real", detail=True)
    least: float | None = column("min", "real")
    most: float | None = column("max", "real")
    negative: float | None = column("negative", "percent")
    typical_stderr: float | None = column("std. error of an entry", "relative", detail=True)


class Diag(Analysis):
    """Which parameters does the loss bend along: the diagonal of the Hessian?

    Exact at the cost of the layer where the model's linear layers allow it, by one product per
    entry elsewhere, or estimated from random probes with a standard error. The sum over a tensor is
    its share of the trace.
    """

    name: ClassVar[str] = "diag"
    Row: ClassVar[type] = DiagRow

    method: Literal["auto", "exact", "hutchinson"] = option(
        "auto", "auto is exact where that fits the budget"
    )
    probes: int = option(100, "random probes of the estimate", ge=2)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Plan, then compute what the budget allows or what was asked for."""
        if self.method == "hutchinson":
            return self._estimate(problem, work, ())
        from curvcli.curvature.diagonal import ExactDiagonal
        from curvcli.curvature.hessian import doubts
        from curvcli.determinism import probe

        probe(problem)
        exact = ExactDiagonal(problem, work.memory)
        each = sum(p.products for p in exact.parts)
        plan = f"exact diagonal: {each:,} products for each batch"
        cost = each * problem.layout.size * problem.examples
        if self.method == "auto" and work.budget is None and cost > PATIENCE:
            note = f"{plan} are many: estimated instead; --method exact insists"
            return self._estimate(problem, work, (note,))
        seconds = exact.estimate()
        if work.budget is None or seconds <= work.budget:
            work.tell(f"{plan}, about {_time(seconds)}")
            result = self._exact(exact, work, each)
            return replace(result, checks=(*result.checks, *self.doubts(doubts(problem))))
        over = f"{plan}, about {_time(seconds)}, over the budget of {_time(work.budget)}"
        if self.method == "exact":
            cheaper = f"--method hutchinson takes {self.probes} products, or raise --budget"
            raise CurvError("E_BUDGET", over, cheaper)
        work.tell(over)
        note = f"{plan} are over the budget: estimated instead"
        return self._estimate(problem, work, (note,))

    def _exact(self, exact: "ExactDiagonal", work: "Work", products: int) -> Result:
        watch = work.announce("exact diagonal")
        done: dict[str, tuple[Part, Tensor]] = {}
        interrupted = False
        try:
            count, trace = 0, None
            total = products * len(exact.problem.batches)

            def tick(more: int) -> None:
                nonlocal count
                count += more
                watch(count, total, trace, None)

            for part in exact.parts:
                for name, d in exact.compute(part, tick).items():
                    done[name] = (part, d)
                trace = sum(float(d.double().sum()) for _, d in done.values())
        except KeyboardInterrupt:
            interrupted = True
        rows = [
            _row(name, done[name][0].method, done[name][1], None, None)
            for name in exact.problem.names
            if name in done
        ]
        notes = []
        if interrupted:
            notes.append(f"{len(rows)} of {len(exact.problem.names)} tensors are complete")
        return self._told(rows, None, products, notes, interrupted)

    def _estimate(self, problem: "Problem", work: "Work", notes: tuple[str, ...]) -> Result:
        from curvcli.curvature.hessian import TITLES, hessian
        from curvcli.linalg.diagonal import hutchinson_diagonal

        chosen = hessian(problem, work)
        slices = problem.layout.slices
        found = hutchinson_diagonal(
            chosen.operator, self.probes, work.rng, list(slices.values()),
            work.announce("trace by probes"),
        )  # fmt: skip
        if found.probes == 0:
            return self.result("nothing is known yet", notes=notes, interrupted=True)
        rows = [
            _row(n, "hutchinson", found.mean[s], found.block(i)[1], float(found.stderr[s].median()))
            for i, (n, s) in enumerate(slices.items())
        ]
        said = [f"products by {TITLES[chosen.method]}", *chosen.notes, *notes]
        return self._told(rows, found.trace()[1], found.probes, said, found.interrupted)

    def _told(
        self,
        rows: list[DiagRow],
        stderr: float | None,
        products: int,
        notes: list[str],
        interrupted: bool,
    ) -> Result:
        if not rows:
            return self.result("nothing is complete yet", notes=notes, interrupted=True)
        trace = sum(r.trace for r in rows)
        largest = max(rows, key=lambda r: abs(r.trace))
        share = largest.trace / trace if trace else 0.0
        label = "trace so far" if interrupted and stderr is None else "trace"
        return self.result(
            f"{label} {plus_minus(trace, stderr or 0.0)}, {share:.0%} of it in {largest.tensor}",
            rows=rows,
            metrics={
                "trace": Metric(trace, "trace", "real", stderr),
                **_extremes(rows),
                "products": Metric(products, "products for each pass over the data", "count"),
            },
            checks=self.doubts(notes),
            notes=notes,
            interrupted=interrupted,
        )


def _extremes(rows: list[DiagRow]) -> dict[str, Metric]:
    most = [r.most for r in rows if r.most is not None]
    least = [r.least for r in rows if r.least is not None]
    if not most or not least:
        return {}
    return {
        "largest": Metric(max(most), "largest entry", "real"),
        "least": Metric(min(least), "least entry", "real"),
    }


def _row(
    name: str, method: str, d: "Tensor", stderr: float | None, typical: float | None
) -> DiagRow:
    entries = d.double()
    return DiagRow(
        tensor=name,
        method=method,
        entries=d.numel(),
        trace=float(entries.sum()),
        stderr=stderr,
        mean=float(entries.mean()),
        # The extremes of noisy estimates are those of the noise.
        least=float(entries.min()) if stderr is None else None,
        most=float(entries.max()) if stderr is None else None,
        negative=float((entries < 0).double().mean()) if stderr is None else None,
        typical_stderr=typical,
    )


def _time(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
