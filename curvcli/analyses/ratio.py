"""How far an optimizer step moves each parameter tensor, relative to its size."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from curvcli.analyses.base import Analysis
from curvcli.analyses.states import of_state
from curvcli.errors import CurvError, listed
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.optimizer import SavedOptimizer
    from curvcli.problem import Problem
    from curvcli.work import Work

GUIDE = 1e-3
"""The ratio of a healthy step, roughly (CS231n, Neural Networks Part 3)."""
ROUNDING = 1e3
"""Times a rounding of the largest gradient that sums of many terms leave of one that is zero."""


@dataclass(frozen=True)
class RatioRow:
    """One parameter tensor, or one of several groups: norms of it, its gradient and its updates.

    `scope` tells which. `effective` is ||next update|| / ||gradient||, the learning rate that plain
    gradient descent would need for a step as long.
    """

    tensor: str = column("tensor")
    norm: float = column("norm", "real")
    gradient: float | None = column("gradient", "real")
    last: float | None = column("last ratio", "relative")
    next: float | None = column("next ratio", "relative")
    effective: float | None = column("effective lr", "relative")
    remark: str = column("remark")
    last_update: float | None = column("last update", "relative", detail=True)
    next_update: float | None = column("next update", "relative", detail=True)
    group: int = column("group", "count", detail=True)
    lr: float | None = column("learning rate", "relative", detail=True)
    scope: str = column("scope", detail=True)


@dataclass(frozen=True)
class Steps:
    """What the rows are made of, by parameter name; `next` is None without data."""

    params: "Mapping[str, Tensor]"
    last: "Mapping[str, Tensor | None]"
    next: "Mapping[str, Tensor] | None"
    gradients: "Mapping[str, Tensor]"
    idle: "frozenset[str]"
    rounding: float = 0.0
    """What is left by rounding of a gradient that BatchNorm makes zero."""


class Ratio(Analysis):
    """How far does a step move each tensor: the update/parameter ratio?

    ||Delta theta|| / ||theta|| of the last update, recovered from the optimizer's saved state where
    that determines it, and of the next one, by one real step of torch's own optimizer on copies
    with the gradient over this data; without data or loss in the spec, of the last one alone. Near
    1e-3 is a healthy guide (CS231n): far more and the learning rate is too high for the tensor, far
    less and it hardly learns.
    """

    name: ClassVar[str] = "ratio"
    Row: ClassVar[type] = RatioRow

    low: float = option(1e-5, "a ratio below this is remarked on", gt=0)
    high: float = option(1e-2, "a ratio above this is remarked on", gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> "Ratio":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, which is not below high, {self.high:g}")
        return self

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Recover the last update and take the next one."""
        import torch

        from curvcli.determinism import probe
        from curvcli.training import GRADIENT, as_trained
        from curvcli.updates import last_updates, next_updates, optimizer_of

        saved = optimizer_of(problem)
        looked = [n for g in saved.groups for n in g.names if n in problem.names]
        if not looked:
            raise CurvError(
                "E_OPTIMIZER",
                f"{saved.kind} moves none of the parameters that are looked at",
                "check --params, or optimizer.groups in the spec",
            )
        params: dict[str, Tensor] = dict(problem.model.named_parameters())
        last = last_updates(saved, params)
        if problem.batches:
            problem = as_trained(problem, work.memory, GRADIENT)
            probe(problem)
            following, gradients = next_updates(problem, saved)
            rounding = 0.0
            if problem.mode == "batchnorm":
                eps = torch.finfo(problem.like.dtype).eps
                rounding = ROUNDING * eps * max(float(g.norm()) for g in gradients.values())
            steps = Steps(params, last, following, gradients, saved.idle, rounding)
        elif all(last.get(n) is None for n in looked):
            why = f"the saved state of {saved.kind} does not determine the last update"
            if saved.untouched:
                why = f"{saved.kind} has no saved state of a last update"
            raise CurvError(
                "E_SPEC",
                f"{why}, and the next one needs data and loss",
                "add data: and loss: to the spec",
            )
        else:
            steps = Steps(params, last, None, {}, saved.idle)
        rows = self._rows(problem, saved, steps)
        tensors = [r for r in rows if r.scope == "tensor"]
        return self.result(
            self._headline(tensors),
            rows=rows,
            metrics=self._metrics(tensors),
            checks=[*of_state(saved, steps.gradients), *self._checks(tensors)],
            notes=self._notes(problem, saved, steps, rows),
        )

    def _rows(self, problem: "Problem", saved: "SavedOptimizer", steps: Steps) -> list[RatioRow]:
        """Make a row for every tensor, in the model's order, and for every group of several."""
        looked = [[n for n in g.names if n in problem.names] for g in saved.groups]
        tensors = [
            self._row([n], n, g, group.options, steps)
            for g, group in enumerate(saved.groups)
            for n in looked[g]
        ]
        order = {n: i for i, n in enumerate(problem.names)}
        tensors.sort(key=lambda r: order[r.tensor])
        if sum(bool(names) for names in looked) < 2:
            return tensors
        return tensors + [
            self._row(looked[g], f"group {g}: {len(looked[g])} tensors", g, group.options, steps)
            for g, group in enumerate(saved.groups)
            if looked[g]
        ]

    def _row(
        self, names: list[str], title: str, group: int, options: dict[str, Any], steps: Steps
    ) -> RatioRow:
        """Tell of some tensors of one group as of one vector."""
        moved = [n for n in names if n not in steps.idle]
        norm = _norm(moved or names, steps.params)
        assert norm is not None
        rate = None if options.get("lr") is None else float(options["lr"])
        # A schedule that has come down to zero says nothing of the step before.
        before = _norm(moved, steps.last) if rate != 0 else None
        after, gradient = _norm(moved, steps.next or {}), _norm(moved, steps.gradients)
        ratios = _ratio(before, norm), _ratio(after, norm)
        if not moved:
            remark = "not trained"
        elif rate == 0:
            remark = "rate is zero"
        elif steps.next is None:
            remark = self._remark(norm, ratios[0], known=ratios[0] is not None)
        else:
            remark = self._remark(norm, ratios[1])
            if remark in ("low", "does not move") and gradient is not None:
                remark = "cancelled" if gradient <= steps.rounding else remark
        return RatioRow(
            tensor=title,
            norm=norm,
            gradient=gradient,
            last=ratios[0],
            next=ratios[1],
            effective=_ratio(after, gradient),
            remark=remark,
            last_update=before,
            next_update=after,
            group=group,
            lr=rate,
            scope="tensor" if title in steps.params else "group",
        )

    def _remark(self, norm: float, ratio: float | None, *, known: bool = True) -> str:
        if norm == 0:
            return "all zero"
        if not known:
            return "unknown"
        if not math.isfinite(norm) or (ratio is not None and not math.isfinite(ratio)):
            return "not finite"
        if ratio is None or ratio == 0:
            return "does not move"
        return "high" if ratio > self.high else "low" if ratio < self.low else ""

    def _headline(self, rows: list[RatioRow]) -> str:
        known = sorted(r.next for r in rows if r.next is not None)
        said = "next step moves"
        if not known:
            known, said = sorted(r.last for r in rows if r.last is not None), "last step moved"
        if not known:
            return "no tensor moves"
        middle = statistics.median(known)
        return (
            f"the {said} tensors by {known[0]:.1e} to {known[-1]:.1e} of their norm, "
            f"median {middle:.1e} (guide: {GUIDE:.0e})"
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
            ("not finite", "no number", "do the weights, gradients or saved averages overflow?"),
            ("high", f"above {self.high:g}", "lower the learning rate, or warm it up"),
            ("low", f"below {self.low:g}", "raise the learning rate, unless training has ended"),
            ("does not move", "zero", "is it frozen, unused, or behind dead units?"),
            ("all zero", "undefined: the tensor is all zero", ""),
            ("rate is zero", "nothing moves", "it is the saved learning rate, as after a schedule"),
        ):
            names = [r.tensor for r in rows if r.remark == remark]
            if names:
                said = f"{bound} in {listed(names)}"
                checks.append(Check(f"ratio {remark}", "warn", said, advice))
        every = "every known ratio" if any(r.remark == "unknown" for r in rows) else "every ratio"
        return checks or [
            Check("ratio", "pass", f"{every} is between {self.low:g} and {self.high:g}")
        ]

    def _notes(
        self,
        problem: "Problem",
        saved: "SavedOptimizer",
        steps: Steps,
        rows: list[RatioRow],
    ) -> list[str]:
        from curvcli.training import normalised
        from curvcli.updates import matched, summed

        notes = [*matched(saved), *_left_out(problem, saved)]
        if saved.untouched:
            notes.append("no last ratio: there is no state of a step")
        elif all(x is None for x in steps.last.values()):
            notes.append(f"the saved state of {saved.kind} does not determine the last update")
        else:
            notes.append("last ratio: with the saved learning rate; a scheduler may have moved it")
        if steps.next is None:
            return [*notes, "no next ratio, which needs data and loss in the spec"]
        notes.append(
            f"next ratio: one step with the gradient over all {problem.examples} examples, model "
            f"in {'train' if problem.mode == 'train' else 'eval'} mode"
        )
        notes += normalised(problem)
        if any(r.remark == "cancelled" for r in rows):
            notes.append("cancelled: BatchNorm takes out again what a bias before it adds")
        if summed(problem) > 1:
            notes.append(
                f"gradient: the sum over {summed(problem):g} micro-batches, as the spec says"
            )
        for key in ("grad_clip", "grad_clip_value"):
            if key in problem.training:
                notes.append(f"the step is clipped by {key} {problem.training[key]:g}")
        return notes


def _left_out(problem: "Problem", saved: "SavedOptimizer") -> list[str]:
    """Say, as notes, which parameters do not move, and why."""
    held = {n for group in saved.groups for n in group.names}
    idle = [n for n in problem.names if n in saved.idle]
    others = [n for n in problem.names if n not in held]
    notes = []
    if idle:
        notes.append(f"no step has had a gradient of {listed(idle)}: frozen or unused")
    if others:
        notes.append(f"not in the optimizer, and left out: {listed(others)}")
    return notes


def _norm(names: list[str], tensors: "Mapping[str, Tensor | None]") -> float | None:
    """Take the norm of these tensors as one vector; None where one of them is not known."""
    found = [tensors.get(n) for n in names]
    known = [float(t.detach().double().norm()) for t in found if t is not None]
    return math.hypot(*known) if names and len(known) == len(names) else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
