"""The gradient that autograd gives against centred differences, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from curvcli.analyses.base import Analysis
from curvcli.analyses.findings import Findings, GradcheckRow
from curvcli.options import option
from curvcli.report import Axis, Check, Figure, Level, Line, Result, Status

if TYPE_CHECKING:
    from curvcli.gradients.allowed import Allowed
    from curvcli.gradients.first import First, Reach
    from curvcli.gradients.second import Matrix
    from curvcli.problem import Problem
    from curvcli.work import Work


def _reasons(value: Any) -> Any:
    """Read `pattern: reason` pairs from a mapping, a list of them, or flags PATTERN=REASON."""
    if isinstance(value, Mapping):
        return value
    pairs: dict[str, Any] = {}
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, Mapping):
            pairs |= item
        elif isinstance(item, str):
            pattern, _, reason = item.partition("=")
            pairs[pattern.strip()] = reason
        else:
            raise ValueError("should be pairs of a pattern and a reason")
    return pairs


def _reasoned(value: dict[str, str]) -> dict[str, str]:
    for pattern, reason in value.items():
        if not pattern or not reason.strip():
            raise ValueError(f"{pattern!r} needs a reason, as in 'quantizer.*=straight-through'")
    return value


Reasons = Annotated[
    dict[str, str],
    BeforeValidator(_reasons, dict[str, str] | list[str | dict[str, str]] | str),
    AfterValidator(_reasoned),
]


class Gradcheck(Analysis):
    """Is the gradient right?

    Every parameter tensor's gradient, from one joint backward in float64, is held against centred
    differences along random directions (to which every entry adds) and at sampled entries: the
    largest, random ones, and some that are zero. A difference carries its own error (rounding,
    truncation, kinks); a tensor passes or fails only where that error is small enough to tell, and
    is `unresolved` otherwise. `vacuous` means that this data gives no gradient to check.
    """

    name: ClassVar[str] = "gradcheck"
    Row: ClassVar[type] = GradcheckRow

    tolerance: float = option(1e-5, "relative error up to which a gradient passes", gt=0, lt=1)
    samples: int | None = option(
        None, "examples, chosen by the seed; few examples, few kinks", ge=1,
        shown="32, fewer for a large model",
    )  # fmt: skip
    directions: int | None = option(
        None, "random directions per tensor", ge=1, shown="2, 1 for a very large model"
    )
    entries: Annotated[int, Field(ge=0)] | Literal["all"] | None = option(
        None, "sampled entries per tensor, or all", metavar="N|all",
        shown="6, fewer for a very large model",
    )  # fmt: skip
    dtype: Literal["float64", "float32"] = option("float64", "precision of the check")
    blame: Literal["auto", "always", "never"] = option(
        "auto", "check every module alone to name the wrong one; auto does so after a failure"
    )
    second_order: bool = option(
        False, "check products with the Hessian and the Gauss-Newton matrix too"
    )
    also_init: bool = option(False, "check the model with fresh initial weights too")
    sweep: bool = option(False, "show the relative error against the step, a V where it is right")
    replay_rng: bool = option(
        False, "replay the random numbers of --mode train in every evaluation"
    )
    ignore: Reasons = option(
        {}, "gradients that are meant to be wrong, and why; repeat it for several",
        metavar="GLOB=REASON", shown="none",
    )  # fmt: skip

    @property
    def draws(self) -> bool:
        """Whether its answer has figures."""
        return self.sweep

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Check every tensor and name the worst place of each."""
        from curvcli.determinism import probe
        from curvcli.gradients.allowed import Allowed
        from curvcli.gradients.coverage import late_hooks

        allowed = Allowed.of(problem, self.ignore)
        small, reach = self._planned(problem, work)
        parts = self._parts(small)
        for posed in parts.values():
            probe(posed)
        said = f"{small.examples} of {problem.examples} examples, in {self.dtype}"
        found = Findings(self.tolerance, self.dtype, [said, *late_hooks(problem)])
        try:
            for part, posed in parts.items():
                self._first(part, posed, reach, found, work)
                if posed.penalty is None:
                    self._explain(1, {part}, posed, allowed, found, work)
            if self.second_order:
                self._second(small, reach, found, work)
                self._explain(2, set(SECOND), small, allowed, found, work)
        except KeyboardInterrupt:
            found.interrupted = True
            found.notes.append(f"stopped after {len(found.rows)} of {len(problem.names)} tensors")
        ignored = [r.tensor for r in found.rows if r.verdict == "ignored"]
        return self.result(
            found.headline,
            rows=found.rows,
            metrics=found.metrics,
            checks=found.checks,
            figures=found.figures,
            notes=[*found.notes, *found.looped, *allowed.unneeded(ignored)],
            interrupted=found.interrupted,
        )

    def _planned(self, problem: "Problem", work: "Work") -> "tuple[Problem, Reach]":
        """Pose the problem for few examples in the precision of the check."""
        import torch

        from curvcli.gradients.cost import plan
        from curvcli.gradients.first import Reach

        examples, directions, entries = plan(problem, self.samples, self.directions, self.entries)
        small = problem.sampled(examples, work.rng).to(getattr(torch, self.dtype))
        seed = int(torch.randint(2**31, (), generator=work.rng))
        small = replace(small, replay=seed) if self.replay_rng else small
        return small, Reach(directions, entries, self.tolerance)

    def _parts(self, small: "Problem") -> "dict[str, Problem]":
        """Take what is checked apart: the loss, each penalty, the loss of a fresh model."""
        parts = {"": small} | {f"penalty {n}": small.penalised(n) for n in small.penalties}
        return parts | ({"fresh model": small.initial()} if self.also_init else {})

    def _first(
        self, part: str, posed: "Problem", reach: "Reach", found: Findings, work: "Work"
    ) -> None:
        """Check the gradient of one part against differences of its loss."""
        from curvcli.gradients.coverage import coverage
        from curvcli.gradients.first import First

        watch = work.announce(f"checking {part or 'tensors'}")
        with posed.engaged():
            first = First(posed, reach, work.rng, work.memory)
            found.evaluators.append(first.evaluate)
            computed = str(first.dtype).removeprefix("torch.")
            if computed != self.dtype:
                part_of = part or "the loss"
                found.notes.append(f"{part_of} is computed in {computed} somewhere: rounded alike")
            if not part:
                seen = coverage(posed, first.gradient)
                found.notes += seen.notes
                found.depth = seen.depth
            first.evaluate.tick = lambda: watch(len(found.rows), len(posed.names), None, None)
            for done, reading in enumerate(first.readings(), 1):
                # A penalty may be about some of the tensors only.
                if posed.penalty is None or reading.verdict != "vacuous":
                    found.add(part, reading)
                watch(done, len(posed.names), found.worst, None)
            if self.sweep and not part:
                found.figures.append(self._swept(first, found.rows))

    def _swept(self, first: "First", rows: "list[GradcheckRow]") -> Figure:
        """Draw relative error against step, a line for each tensor that has a gradient."""
        from curvcli.gradients.first import SWEEP

        lines = [
            Line(r.tensor, SWEEP, tuple(first.sweep(r.tensor)), _STATUS[r.verdict])
            for r in rows if r.verdict != "vacuous"
        ]  # fmt: skip
        return Figure(
            name="sweep",
            title="relative error of the gradient against the step of the differences",
            x=Axis("step, relative to the tensor's size", "log"),
            y=Axis("relative error", "log"),
            lines=tuple(lines),
            levels=(Level(self.tolerance, "tolerance"),),
            caption="A right gradient makes a V: truncation on the right, rounding on the left. "
            "A wrong one stays flat.",
        )

    def _second(self, small: "Problem", reach: "Reach", found: Findings, work: "Work") -> None:
        """Check products with the Hessian and the Gauss-Newton matrix."""
        from curvcli.gradients.second import second

        for matrix in SECOND:
            watch = work.announce(f"checking products with the {matrix} matrix")
            products = second(matrix, small, reach, work, watch)
            for reading in products.readings:
                found.add(matrix, reading)
            found.notes += [f"{matrix}: {note}" for note in products.notes]
            if products.refused:
                found.refused.append(Check(f"{matrix} products", "undecided", products.refused))

    def _excuse(
        self, parts: set[str], posed: "Problem", allowed: "Allowed", found: Findings, work: "Work"
    ) -> None:
        """Excuse tensors that are allowed, or right once the allowed modules are cut out."""
        from curvcli.gradients.allowed import upstream
        from curvcli.gradients.cut import without

        found.excuse({n: f"{p}: {allowed.reasons[p]}" for n, p in allowed.tensors.items()}, parts)
        if not allowed.modules:
            return
        patterns = dict.fromkeys(allowed.modules.values())
        reason = "; ".join(f"{p}: {allowed.reasons[p]}" for p in patterns)
        for part in sorted(parts):
            open_ones = {r.tensor for r in found.having({part}, "fail", "unresolved")}
            # A product mixes all parameters; a gradient is wrong behind the modules alone.
            if open_ones and part not in SECOND:
                open_ones &= upstream(posed, allowed.modules)
            if open_ones:
                with posed.engaged(), without(posed, allowed.outermost, work.rng) as rest:
                    right = self._right_besides(part, open_ones, posed, rest, work)
                found.excuse(dict.fromkeys(right, reason), {part})

    def _right_besides(
        self,
        part: str,
        tensors: set[str],
        posed: "Problem",
        rest: "Problem",
        work: "Work",
    ) -> set[str]:
        """Name the tensors whose derivatives are right in what is left without some modules."""
        from curvcli.gradients.first import First, Reach
        from curvcli.gradients.second import second
        from curvcli.work import silent

        reach = Reach(2, 2, self.tolerance)
        if part in SECOND:
            products = second(part, rest, reach, work, silent)
            wrong = {r.tensor for r in products.readings if r.verdict == "fail"}
            return tensors - wrong if products.readings and wrong <= set(posed.names) else set()
        first = First(rest, reach, work.rng, work.memory)
        # The outputs' gradients tell of what lies between the modules and the loss.
        after = [first.read(n) for n in rest.names if n not in posed.names]
        if any(r.verdict == "fail" for r in after):
            return set()
        return {n for n in tensors if first.read(n).verdict != "fail"}

    def _explain(
        self,
        order: Literal[1, 2],
        parts: set[str],
        posed: "Problem",
        allowed: "Allowed",
        found: Findings,
        work: "Work",
    ) -> None:
        """Check the modules one by one where that is asked for; excuse what is allowed."""
        from curvcli.gradients.blame import blame

        self._excuse(parts, posed, allowed, found, work)
        failed = found.having(parts, "fail")
        # A wrong first derivative makes the second one wrong as well.
        known = order == 2 and bool(found.suspects)
        wanted = self.blame == "always" or bool(failed and self.blame == "auto")
        if known or not wanted:
            return
        watch = work.announce("checking modules")
        suspects, unclear = blame(posed, self.tolerance, work.rng, order, watch)
        mine = [s for s in suspects if s.name not in allowed.modules]
        found.blame(mine)
        if not mine:
            named = ", ".join(n or "the model itself" for n in unclear[:6])
            said = "no module fails alone" + (f"; no telling of {named}" if unclear else "")
            found.refused.append(Check("culprit", "undecided" if failed else "pass", said))


SECOND: "tuple[Matrix, ...]" = ("Hessian", "Gauss-Newton")
"""The matrices whose products --second-order checks."""

_STATUS: Mapping[str, Status] = {
    "pass": "pass", "fail": "fail", "unresolved": "undecided", "ignored": "warn"
}  # fmt: skip
