"""The cost of a curvature-vector product by every method that works on the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curvcli.analyses.base import Analysis
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.curvature.hessian import Chosen
    from curvcli.problem import Problem
    from curvcli.work import Work


@dataclass(frozen=True)
class HvpRow:
    """One method: its times over interleaved rounds, and how far its product is from another's."""

    method: str = column("method")
    note: str = column("note")
    seconds: float | None = column("median", "seconds", error="spread")
    spread: float | None = column("spread", "seconds")
    gradients: float | None = column("gradients", "factor")
    setup: float | None = column("set-up", "seconds", detail=True)
    peak_bytes: int | None = column("peak", "bytes")
    gap: float | None = column("gap to default", "relative")
    gap_differences: float | None = column("gap to differences", "relative", detail=True)


class Hvp(Analysis):
    """What does a Hessian-vector product cost, by every method, in gradients?

    Methods are timed in turns within one run, so that the machine's moods hit all of them alike;
    the figure is the median, the spread half the distance between the quartiles. The default is
    what `--hvp auto` takes; theory says 2 gradients where the graph is kept.
    """

    name: ClassVar[str] = "hvp"
    Row: ClassVar[type] = HvpRow

    rounds: int = option(9, "rounds of timing", ge=1)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Time gradients and products in turns."""
        import torch

        from curvcli.curvature.hessian import TITLES, hessian
        from curvcli.curvature.timing import Timed, interleave, trial
        from curvcli.linalg.operator import normal

        chosen = hessian(problem, work)
        v = normal(problem.like, work.rng)
        timed = [Timed("gradient", problem.gradient)]
        failed: dict[str, str] = {}
        methods = [chosen.method, *(m for m in TITLES if m != chosen.method)]
        for method in methods:
            made = trial(method, problem, work, v)
            if isinstance(made, str):
                failed[method] = made
            else:
                timed.append(made)
        watch = work.announce("timing products")
        interrupted = interleave(timed, self.rounds, watch, problem.like.device)
        rows = (
            []
            if chosen.method in failed
            else [_row(t, timed, chosen.method) for t in timed if t.times]
        )
        rows += [HvpRow(TITLES[m], "fails here", *[None] * 7) for m in failed]
        notes = [
            *chosen.notes,
            *(f"{TITLES[m]}: {why}" for m, why in failed.items() if m not in chosen.rejected),
        ]
        default = next((r for r in rows if r.method == TITLES[chosen.method]), None)
        if chosen.method in failed:
            why = Check("default works", "undecided", failed[chosen.method], "try another --hvp")
            said = "the default method fails on all the data"
            return self.result(said, rows=rows, checks=[why], notes=notes)
        if default is None or default.gradients is None:
            return self.result("nothing is timed yet", notes=notes, interrupted=True)
        return self.result(
            f"a product costs {default.gradients:.2f} gradients by {default.method}",
            rows=rows,
            metrics={
                "gradients": Metric(default.gradients, "gradients per product", "factor"),
                "method": Metric(chosen.method, "default method", "text"),
            },
            checks=[
                *_checks(rows, chosen, torch.finfo(problem.like.dtype).eps),
                *self.doubts(chosen.notes),
            ],
            notes=notes,
            interrupted=interrupted,
        )


def _row(t: Any, timed: list[Any], default: str) -> HvpRow:
    from curvcli.curvature.hessian import TITLES

    by_name = {other.name: other for other in timed}
    base = by_name["gradient"].median
    return HvpRow(
        method=TITLES.get(t.name, "gradient, to compare with"),
        seconds=t.median,
        spread=t.spread,
        gradients=t.median / base,
        setup=t.setup,
        peak_bytes=t.peak,
        gap=None if t.name in ("gradient", default) else _gap(t.product, by_name[default].product),
        gap_differences=None
        if t.name in ("gradient", "differences") or "differences" not in by_name
        else _gap(t.product, by_name["differences"].product),
        note="default" if t.name == default else "",
    )


def _gap(a: "Tensor | None", b: "Tensor | None") -> float | None:
    if a is None or b is None:
        return None
    size = float(b.double().norm())
    gap = float((a.double() - b.double()).norm())
    return gap / size if size else gap


def _checks(rows: list[HvpRow], chosen: "Chosen", eps: float) -> list[Check]:
    from curvcli.curvature.hessian import AGREE, TITLES

    checks = []
    trusted = [TITLES[m] for m in TITLES if m not in (*chosen.rejected, "differences")]
    exact = [r for r in rows if r.gap is not None and r.method in trusted]
    worst = max(exact, key=lambda r: r.gap or 0.0, default=None)
    # Sums in another order differ by rounding, amplified where a product cancels; with room.
    if worst is not None and worst.gap is not None and chosen.method != "differences":
        agree = worst.gap <= 3000 * eps
        checks.append(
            Check(
                "methods agree",
                "pass" if agree else "fail",
                f"the exact methods agree to {worst.gap:.1e}"
                if agree
                else f"{worst.method} differs from the default by {worst.gap:.1e}",
            )
        )
    if chosen.agreement is not None:
        right = chosen.agreement <= AGREE
        said = f"is within {chosen.agreement:.1e} of a difference of gradients"
        checks.append(
            Check(
                "agrees with gradients",
                "pass" if right else "fail",
                f"in float64 the product {said}",
                "" if right else "a backward of this model has a wrong derivative of its own",
            )
        )
    return checks
