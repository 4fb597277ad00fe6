"""How far an optimizer step moves each parameter tensor, relative to its size."""

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.optimizer import SavedOptimizer
    from curvcli.problem import Problem
    from curvcli.work import Work


@dataclass(frozen=True)
class RatioRow:
    """One parameter tensor: norms of it, of its gradient and of its last and next update."""

    tensor: str = column("tensor")
    norm: float = column("norm", "real")
    gradient: float | None = column("gradient", "real")
    last: float | None = column("last ratio", "relative")
    next: float | None = column("next ratio", "relative")
    remark: str = column("remark")
    last_update: float | None = column("last update", "relative", detail=True)
    next_update: float | None = column("next update", "relative", detail=True)
    group: int = column("group", "count", detail=True)
    lr: float | None = column("learning rate", "relative", detail=True)


class Ratio(Analysis):
    """How far does a step move each tensor: the update/parameter ratio?

    ||Delta theta|| / ||theta|| of the last update, recovered from the optimizer's saved state where
    that determines it, and of the next one, by one real step of torch's own optimizer on copies
    with the gradient over this data. Near 1e-3 is a healthy guide (CS231n): far more and the
    learning rate is too high for the tensor, far less and it hardly learns.
    """

    name: ClassVar[str] = "ratio"
    Row: ClassVar[type] = RatioRow

    low: float = option(1e-5, "a next ratio below this is remarked on", gt=0)
    high: float = option(1e-2, "a next ratio above this is remarked on", gt=0)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Recover the last update and take the next one."""
        from curvcli.determinism import probe
        from curvcli.updates import last_updates, next_updates

        saved = problem.optimizer()
        if saved is None:
            raise CurvError(
                "E_OPTIMIZER",
                "the checkpoint holds no optimizer state, and the spec does not say class and lr",
                "save optimizer.state_dict() too, or write optimizer: {class: SGD, lr: 0.1}",
            )
        probe(problem)
        params: dict[str, Tensor] = dict(problem.model.named_parameters())
        last = last_updates(saved, params)
        following, gradients = next_updates(problem, saved)
        rows = [
            self._row(n, g, group.options, params, gradients, last, following)
            for g, group in enumerate(saved.groups)
            for n in group.names
            if n in problem.names
        ]
        order = {n: i for i, n in enumerate(problem.names)}
        rows.sort(key=lambda r: order[r.tensor])
        return self.result(
            self._headline(rows),
            rows=rows,
            metrics=self._metrics(rows),
            checks=self._checks(rows),
            notes=self._notes(problem, saved, last),
        )

    def _row(
        self,
        name: str,
        group: int,
        options: dict[str, Any],
        params: "dict[str, Tensor]",
        gradients: "dict[str, Tensor]",
        last: "dict[str, Tensor | None]",
        following: "dict[str, Tensor]",
    ) -> RatioRow:
        norm = _norm(params[name])
        before, after = _norm(last.get(name)), _norm(following[name])
        ratio = _ratio(after, norm)
        assert norm is not None
        return RatioRow(
            tensor=name,
            norm=norm,
            gradient=_norm(gradients.get(name)),
            last=_ratio(before, norm),
            next=ratio,
            remark=self._remark(norm, ratio),
            last_update=before,
            next_update=after,
            group=group,
            lr=None if options.get("lr") is None else float(options["lr"]),
        )

    def _remark(self, norm: float, ratio: float | None) -> str:
        if norm == 0:
            return "all zero"
        if ratio is not None and not math.isfinite(ratio):
            return "not finite"
        if ratio is None or ratio == 0:
            return "does not move"
        return "high" if ratio > self.high else "low" if ratio < self.low else ""

    def _headline(self, rows: list[RatioRow]) -> str:
        known = sorted(r.next for r in rows if r.next is not None)
        if not known:
            return "no tensor moves"
        middle = statistics.median(known)
        return (
            f"the next step moves tensors by {known[0]:.1e} to {known[-1]:.1e} of their norm, "
            f"median {middle:.1e} (guide: 1e-03)"
        )

    def _metrics(self, rows: list[RatioRow]) -> dict[str, Metric]:
        found = {}
        for key in ("last", "next"):
            known = sorted(x for r in rows if (x := getattr(r, key)) is not None)
            if known:
                title = f"{key} update/parameter ratio"
                found[f"{key}_median"] = Metric(
                    statistics.median(known), f"median {title}", "relative"
                )
                found[f"{key}_max"] = Metric(known[-1], f"largest {title}", "relative")
        return found

    def _checks(self, rows: list[RatioRow]) -> list[Check]:
        checks = []
        for remark, bound, advice in (
            ("high", f"above {self.high:g}", "lower the learning rate, or warm it up"),
            ("low", f"below {self.low:g}", "raise the learning rate, unless training has ended"),
            ("does not move", "zero", "is it frozen, unused, or behind dead units?"),
            ("all zero", "undefined: the tensor is all zero", ""),
        ):
            names = [r.tensor for r in rows if r.remark == remark]
            if names:
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
                checks.append(Check(f"ratio {remark}", "warn", f"{bound} in {shown}", advice))
        return checks or [
            Check("ratio", "pass", f"every next ratio is between {self.low:g} and {self.high:g}")
        ]

    def _notes(
        self, problem: "Problem", saved: "SavedOptimizer", last: "dict[str, Tensor | None]"
    ) -> list[str]:
        notes = [
            f"{saved.kind}, state matched to parameters by {saved.rule}"
            + ("" if saved.verified else " (unverified: this optimizer saves nothing to compare)")
        ]
        if all(x is None for x in last.values()):
            notes.append(f"the saved state of {saved.kind} does not determine the last update")
        else:
            notes.append("last ratio: with the saved learning rate; a scheduler may have moved it")
        notes.append(
            f"next ratio: one step with the gradient over all {problem.examples} examples, "
            f"model in {problem.mode} mode"
        )
        return notes


def _norm(t: "Tensor | None") -> float | None:
    return None if t is None else float(t.detach().double().norm())


def _ratio(update: float | None, norm: float | None) -> float | None:
    return None if update is None or not norm else update / norm
