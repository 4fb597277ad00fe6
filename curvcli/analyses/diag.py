"""The diagonal of the Hessian, exact, estimated or approximated, summed up tensor by tensor."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import ArrayFile, option
from curvcli.report import Metric, Result, column, columns, plus_minus, rows_of

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.curvature.diagonals.methods import Diagonal, Method
    from curvcli.problem import Problem
    from curvcli.work import Work

PATIENCE = 2e12
"""Floating-point operations up to which `auto` is exact where no --budget is given.

About a minute on two cores. A count and no time, so that the same inputs give the same answer.
"""

APPROXIMATE: "tuple[Method, ...]" = (
    "ggn", "empirical-fisher", "becker-lecun", "hutchinson", "xdiag"
)  # fmt: skip


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


@dataclass(frozen=True)
class CompareRow:
    """How far one tensor's diagonal by one method is from the exact one."""

    method: str = column("method")
    tensor: str = column("tensor")
    error: float | None = column("rel. error", "relative")
    correlation: float | None = column("correlation", "real")
    trace_error: float | None = column("trace off by", "percent")
    products: int | None = column("products", "count")


class Diag(Analysis):
    """Which parameters does the loss bend along: the diagonal of the Hessian?

    Exact at the cost of the layers where they allow it, by one product per entry elsewhere, or
    estimated from random probes with a standard error (hutchinson, xdiag). The sum over a tensor is
    its share of the trace. Other diagonals stand in for it: the Gauss-Newton matrix's (ggn, the
    outer-product approximation of PRML 5.84), that of summed squared gradients (empirical-fisher),
    and that without off-diagonal terms in back-propagation (becker-lecun, PRML 5.81).
    """

    name: ClassVar[str] = "diag"
    Row: ClassVar[type] = DiagRow

    method: Literal[
        "auto", "exact", "hutchinson", "xdiag", "ggn", "empirical-fisher", "becker-lecun"
    ] = option("auto", "auto is exact where that fits the budget, else hutchinson")
    probes: int = option(100, "random probes of an estimate; xdiag takes two products each", ge=2)
    compare: bool = option(
        False, "hold --method, or every other where it is auto, against the exact diagonal"
    )
    entries: ArrayFile | None = option(
        None, "file for all entries, .safetensors or .csv", metavar="FILE"
    )

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Plan, then compute what the budget allows or what was asked for."""
        from curvcli.curvature.diagonals.methods import by_method
        from curvcli.determinism import probe

        if self.compare:
            return self._compare(problem, work)
        method: Method = "exact" if self.method == "auto" else self.method
        if method == "exact":
            return self._exact_or_estimated(problem, work)
        if method not in ("hutchinson", "xdiag"):  # which are probed with their products
            probe(problem)
        return self._told(by_method(method, problem, work, self.probes), ())

    def _exact_or_estimated(self, problem: "Problem", work: "Work") -> Result:
        from curvcli.curvature.diagonals.cost import operations, seconds
        from curvcli.curvature.diagonals.exact import ExactDiagonal
        from curvcli.curvature.diagonals.methods import by_method, by_parts
        from curvcli.curvature.hessian import doubts
        from curvcli.determinism import probe

        probe(problem)
        exact = ExactDiagonal(problem, work.memory)
        each = sum(p.products for p in exact.parts)
        plan = f"exact diagonal: {each:,} products for each batch"
        over = ""
        if self.method == "auto" and work.budget is None:
            over = "are many" if operations(exact) > PATIENCE else ""
        if not over:
            took = seconds(exact)
            said = f"{plan}, about {_time(took)}"
            if work.budget is None or took <= work.budget:
                work.tell(said)
                result = self._told(by_parts(exact, work), ())
                return replace(result, checks=(*result.checks, *self.doubts(doubts(problem))))
            over = "are over the budget"
            if self.method == "exact":
                cheaper = f"--method hutchinson takes {self.probes} products, or raise --budget"
                raise CurvError("E_BUDGET", _over(said, work.budget), cheaper)
            work.tell(_over(said, work.budget))
        insist = "; --method exact insists" if work.budget is None else ""
        note = f"{plan} {over}: estimated instead{insist}"
        return self._told(by_method("hutchinson", problem, work, self.probes), (note,))

    def _told(self, found: "Diagonal", notes: tuple[str, ...]) -> Result:
        rows = [_row(name, found) for name in found.entries]
        if not rows:
            return self.result(
                "nothing is complete yet", notes=[*found.notes, *notes], interrupted=True
            )
        trace, stderr = found.trace or (sum(r.trace for r in rows), None)
        largest = max(rows, key=lambda r: abs(r.trace))
        share = largest.trace / trace if trace else 0.0
        partial = found.interrupted and stderr is None
        said = [*found.notes, *notes]
        if partial:
            said.append(f"{len(rows)} tensors are complete")
        return self.result(
            f"{'trace so far' if partial else 'trace'} {plus_minus(trace, stderr or 0.0)}, "
            f"{share:.0%} of it in {largest.tensor}",
            rows=rows,
            metrics={
                "trace": Metric(trace, "trace", "real", stderr),
                **_extremes(rows),
                "products": Metric(found.products, "products for each pass over the data", "count"),
            },
            checks=self.doubts(said),
            notes=said,
            arrays=_arrays(found),
            interrupted=found.interrupted,
        )

    def _compare(self, problem: "Problem", work: "Work") -> Result:
        """Compute the exact diagonal and the others, and hold these against it."""
        from curvcli.curvature.diagonals.methods import by_method
        from curvcli.curvature.hessian import doubts
        from curvcli.determinism import probe

        probe(problem)
        truth = by_method("exact", problem, work, self.probes)
        method: Method = "exact" if self.method == "auto" else self.method
        asked = APPROXIMATE if method == "exact" else (method,)
        rows, notes, best = _compared("exact", truth, truth), [], {}
        done, interrupted = {"exact": truth}, truth.interrupted
        for name in asked:
            if interrupted:
                break
            try:
                found = by_method(name, problem, work, self.probes)
            except CurvError as error:
                notes.append(f"{name}: {error.message}")
                continue
            interrupted = found.interrupted
            if not interrupted:
                done[name] = found
                rows += _compared(name, found, truth)
                best[name] = rows[-1 - len(found.entries)].error
        ranked = sorted((e, m) for m, e in best.items() if e is not None)
        headline = f"{ranked[0][1]} is nearest, with a relative error of {ranked[0][0]:.2g}"
        result = self.result(
            headline if ranked else "nothing to compare",
            metrics={"products": Metric(truth.products, "products of the exact diagonal", "count")},
            checks=self.doubts(doubts(problem)),
            notes=notes,
            arrays={f"{m}.{n}": a for m, d in done.items() for n, a in _arrays(d).items()},
            interrupted=interrupted,
        )
        return replace(result, columns=columns(CompareRow), rows=rows_of(rows))


def _compared(method: str, found: "Diagonal", truth: "Diagonal") -> list[CompareRow]:
    from curvcli.curvature.diagonals.methods import compared, flat

    names = [n for n in truth.entries if n in found.entries]
    if not names:
        return []
    whole = compared(flat(found.entries), flat(truth.entries))
    rows = [CompareRow(method, "all", *whole, found.products)]
    for n in names:
        rows.append(CompareRow(method, n, *compared(found.entries[n], truth.entries[n]), None))
    return rows


def _arrays(found: "Diagonal") -> dict[str, Any]:
    def numbers(t: "Tensor") -> Any:
        return t.detach().cpu().numpy()

    errors = {f"{n}.stderr": numbers(e) for n, e in found.stderr.items()}
    return {n: numbers(d) for n, d in found.entries.items()} | errors


def _extremes(rows: list[DiagRow]) -> dict[str, Metric]:
    most = [r.most for r in rows if r.most is not None]
    least = [r.least for r in rows if r.least is not None]
    if not most or not least:
        return {}
    return {
        "largest": Metric(max(most), "largest entry", "real"),
        "least": Metric(min(least), "least entry", "real"),
    }


def _row(name: str, found: "Diagonal") -> DiagRow:
    entries, errors = found.entries[name].double(), found.stderr.get(name)
    sure = errors is None  # the extremes of noisy estimates are those of the noise
    return DiagRow(
        tensor=name,
        method=found.ways[name],
        entries=entries.numel(),
        trace=float(entries.sum()),
        stderr=found.blocks.get(name),
        mean=float(entries.mean()),
        least=float(entries.min()) if sure else None,
        most=float(entries.max()) if sure else None,
        negative=float((entries < 0).double().mean()) if sure else None,
        typical_stderr=None if errors is None else float(errors.median()),
    )


def _over(said: str, budget: float) -> str:
    return f"{said}, over the budget of {_time(budget)}"


def _time(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
