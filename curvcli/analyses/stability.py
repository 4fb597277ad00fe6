"""Sharpness against the threshold of the optimizer that is about to step, from its saved state."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.analyses.edge import Edge, StabilityRow
from curvcli.analyses.states import of_state
from curvcli.errors import CurvError, listed
from curvcli.options import option
from curvcli.report import Metric, Result, plus_minus

if TYPE_CHECKING:
    from curvcli.curvature.hessian import Chosen
    from curvcli.curvature.preconditioned import Preconditioned
    from curvcli.dynamics.laws import Stepped
    from curvcli.linalg.ritz import Ritz
    from curvcli.optimizer import SavedOptimizer
    from curvcli.problem import Problem
    from curvcli.work import Work

ROUGH = 0.1
"""Relative residual of the smallest eigenvalue, which is reported and not judged."""

RELATIVE_COST = 2
"""Products for it, in those that the sharpest modes took: it lies close to many others, which can
make it ten times as dear as they are."""

SETTLED = 1e-2
"""Share of a learning rate up to which a bias correction that still changes is no caveat."""


@dataclass
class Found:
    """What is known, in the order in which it is found."""

    sharp: "Ritz"
    rows: list[StabilityRow]
    least: "Ritz | None" = None
    interrupted: bool = False


class Stability(Analysis):
    """Is the training step stable here: how near is the sharpness to the optimizer's threshold?

    Gradient descent on a quadratic diverges above 2/lr; momentum, a preconditioner such as Adam's
    and weight decay move that edge. Sharpness is that of the Hessian as the saved optimizer meets
    it, P^-1/2 (H + decay) P^-1/2 with each group's own options. Full-batch training often hovers
    around its edge, so that being beyond is a warning, and a failure above --at-most alone.
    """

    name: ClassVar[str] = "stability"
    Row: ClassVar[type] = StabilityRow

    top: int = option(3, "how many of the sharpest modes", ge=1, short="-k")
    edge: float = option(
        0.1, "how far from the threshold, either way, counts as the edge", ge=0, lt=1
    )
    at_most: float | None = option(
        None, "fail where the sharpness exceeds this share of the threshold", metavar="FACTOR", gt=0
    )
    tolerance: float = option(1e-2, "relative residual at which a mode counts", gt=0, le=0.5)
    max_matvecs: int = option(500, "products after which to give up", ge=2)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Find the sharpest modes as the optimizer meets them, and what its steps make of them."""
        from curvcli.curvature.hessian import hessian
        from curvcli.curvature.matrices import described
        from curvcli.curvature.preconditioned import preconditioned
        from curvcli.dynamics.laws import reference
        from curvcli.training import as_trained
        from curvcli.updates import matched, optimizer_of, summed

        saved = optimizer_of(problem)
        problem = as_trained(problem, work.memory)
        part, laws = _moving(problem, saved)
        edge = Edge(laws, reference(laws).scale, self.edge)
        chosen = hessian(part, work)
        A = preconditioned(chosen.operator, part.layout, laws, summed(problem))
        found = self._search(A, chosen, part, edge, work)
        notes = [
            *matched(saved),
            *_units(saved, edge),
            *_caveats(problem, part, saved),
            *described("hessian", chosen),
        ]
        if not found.rows:
            return self.result("no eigenvalue is known yet", notes=notes, interrupted=True)
        checks = [edge.check(found.rows[0], found.sharp), *self.doubts(chosen.notes)]
        gradients = part.layout.named(part.gradient()) if saved.alike else {}
        checks += of_state(saved, gradients)
        if self.at_most is not None:
            checks.append(edge.limit(found.rows[0], found.sharp, self.at_most))
        return self.result(
            _headline(found, edge),
            rows=found.rows,
            metrics=edge.metrics(found.rows, saved, found.sharp) | _spent(found),
            checks=checks,
            notes=[*notes, *_growth(found)],
            interrupted=found.interrupted,
        )

    def _search(
        self, A: "Preconditioned", chosen: "Chosen", part: "Problem", edge: Edge, work: "Work"
    ) -> Found:
        """Find the sharpest modes, their sampling errors, and the smallest, until Ctrl-C."""
        from curvcli.curvature.sampling import sampling_errors

        sharp = self._solve(A, "largest", work, self.max_matvecs)
        found = Found(sharp, edge.rows(sharp, part.layout, "sharpest"))
        if sharp.status == "interrupted":
            return replace(found, interrupted=True)
        try:
            # y^T S H S y is what the examples decide of a Rayleigh quotient.
            reached = abs(A.factor) ** 0.5 * A.scale * sharp.vectors
            watch = work.announce("sampling errors")
            errors = sampling_errors(
                "hessian", chosen.method, part, reached, watch, memory=work.memory
            )
        except KeyboardInterrupt:
            return replace(found, interrupted=True)
        if errors:
            found.rows = [replace(r, sampling=e) for r, e in zip(found.rows, errors, strict=True)]
        left = min(RELATIVE_COST * sharp.matvecs, self.max_matvecs - sharp.matvecs)
        if left < 2:
            return found
        found.least = self._solve(A, "smallest", work, left)
        found.rows += edge.rows(found.least, part.layout, "smallest")
        found.interrupted = found.least.status == "interrupted"
        return found

    def _solve(
        self,
        A: "Preconditioned",
        which: Literal["largest", "smallest"],
        work: "Work",
        most: int,
    ) -> "Ritz":
        """Run Lanczos towards one end, with at most `most` products."""
        from curvcli.linalg.lanczos import lanczos

        largest = which == "largest"
        return lanczos(
            A,
            self.top if largest else 1,
            self.tolerance if largest else max(ROUGH, self.tolerance),
            work.rng,
            which=which,
            max_matvecs=min(most, self._room(A, work)),
            watch=work.announce("sharpest modes" if largest else "smallest eigenvalue"),
        )

    def _room(self, A: "Preconditioned", work: "Work") -> int:
        """Say how many vectors of a basis fit in memory; every product adds one.

        Raises: CurvError (E_MEMORY) where those of the answer alone do not.
        """
        from curvcli.curvature.memory import spare

        room = spare(A.like.device) if work.memory is None else work.memory
        fits = int(room // (A.size * A.like.element_size()))
        if fits < 2 * self.top + 2:
            raise CurvError(
                "E_MEMORY",
                f"{self.top} modes of {A.size:,} entries need more than {room / 1e9:.2g} GB",
                "raise --memory, or choose fewer --top or --params",
            )
        return fits


def _moving(problem: "Problem", saved: "SavedOptimizer") -> "tuple[Problem, dict[str, Stepped]]":
    """Restrict the problem to what the optimizer moves, and give the laws of that."""
    from curvcli.dynamics.laws import stepped

    found = stepped(saved)
    laws = {n: found[n] for n in problem.names if n in found}
    if not laws:
        raise CurvError(
            "E_OPTIMIZER",
            f"{saved.kind} moves none of the parameters that are looked at",
            "check --params, or optimizer.groups in the spec",
        )
    return replace(problem, names=tuple(laws)), laws


def _headline(found: Found, edge: Edge) -> str:
    first = found.rows[0]
    if edge.threshold is None:
        return "the learning rate is zero, so nothing moves"
    told = plus_minus(first.eigenvalue, first.error)
    if not found.sharp.complete:
        told = f"at least {first.eigenvalue:.4g}"
    verdict = edge.verdict(first, found.sharp)
    return f"{verdict}: sharpness {told}, {first.ratio:.1%} of the threshold {edge.threshold:.6g}"


def _spent(found: Found) -> dict[str, Metric]:
    """Give the smallest eigenvalue, and what the search took and left open."""
    told = {}
    if found.least is not None and len(found.least.values):
        end = found.rows[-1]
        told["lambda_min"] = Metric(end.eigenvalue, "smallest eigenvalue", "real", end.error)
    used = found.sharp.matvecs + (found.least.matvecs if found.least else 0)
    title = "chance that a sharper one was missed, at most"
    return told | {
        "matvecs": Metric(used, "products used", "count"),
        "doubt": Metric(found.sharp.doubt, title, "percent"),
    }


def _units(saved: "SavedOptimizer", edge: Edge) -> Iterator[str]:
    """Say what the threshold and the sharpness are made of."""
    from curvcli.dynamics.laws import adaptive, reference, uniform

    if not edge.scale:
        return
    law = reference(edge.laws)
    corrected = "betas" in saved.groups[0].options
    yield f"threshold {law.formula}" + (", with the bias correction" if corrected else "")
    if adaptive(edge.laws):
        yield (
            f"sharpness is that of P^-1/2 H P^-1/2 with the P that {saved.kind} has saved; the "
            "Hessian's own against 2 / lr is no measure of this optimizer"
        )
    if not uniform(edge.laws):
        yield (
            "rates or momentum differ from tensor to tensor: each acts on its own rows and "
            "columns, in units of the strongest"
        )
    for decay in sorted({s.law.coupled for s in edge.laws.values()} - {0.0}):
        yield f"weight decay {decay:g} is added to the curvature"
    for decay in sorted({s.law.decay for s in edge.laws.values()} - {0.0}):
        part = f", {decay / edge.scale:.3g} of sharpness" if edge.scale else ""
        yield f"decoupled weight decay takes {decay:.3g} of the weights at every step{part}"


def _caveats(problem: "Problem", part: "Problem", saved: "SavedOptimizer") -> Iterator[str]:
    """Say what the theory leaves out here."""
    from curvcli.dynamics.laws import keeps_state
    from curvcli.training import normalised
    from curvcli.updates import summed

    yield from normalised(problem)
    if summed(problem) > 1:
        yield (
            f"the gradient is the sum over {summed(problem):g} micro-batches, and so is the "
            "curvature: eig tells that of their mean"
        )
    yield (
        f"theory of full batches, on the quadratic around this point over {problem.examples} "
        "examples: the noise of smaller batches lowers the threshold"
    )
    for key in ("grad_clip", "grad_clip_value"):
        if key in problem.training:
            yield f"{key} {problem.training[key]:g} bounds a step while it is active; not counted"
    left = [n for n in problem.names if n not in part.names]
    if left:
        yield f"not moved by the optimizer, and left out: {listed(left)}"
    moved = {n for g in saved.groups for n in g.names if keeps_state(saved, n)}
    others = moved - set(problem.names)
    if others:
        yield (
            f"{len(others)} more tensors of the optimizer's groups are not looked at: with them "
            "the sharpness is no lower"
        )
    unsettled = [g.options["betas"][0] ** _steps(saved) for g in saved.groups
                 if "betas" in g.options]  # fmt: skip
    if any(float(u) > SETTLED for u in unsettled):
        yield f"after {_steps(saved):g} steps the bias correction still lowers the rate"


def _steps(saved: "SavedOptimizer") -> float:
    """Give the fewest steps that any parameter has seen."""
    return min((float(s["step"]) for s in saved.state.values() if "step" in s), default=0.0)


def _growth(found: Found) -> Iterator[str]:
    """Tell of negative curvature, along which steps grow, without a judgement."""
    if found.least is None or not len(found.least.values):
        return
    row = found.rows[-1]
    if row.high < 0 and row.steps is not None and row.radius > 1:
        yield (
            f"negative curvature {row.eigenvalue:.4g}: along it a step off grows by e in "
            f"{-row.steps:.3g} steps"
        )
    if not found.least.converged:
        yield "there may be eigenvalues below the smallest one told"
