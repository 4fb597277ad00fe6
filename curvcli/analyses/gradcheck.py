"""The gradient that autograd gives against centred differences, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from curvcli.analyses.base import Analysis
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from curvcli.curvature.perturbed import Perturbed
    from curvcli.linalg.differences import Comparison
    from curvcli.problem import Problem
    from curvcli.work import Work


@dataclass(frozen=True)
class GradcheckRow:
    """One parameter tensor: the verdict, and the direction or entry that decides it."""

    tensor: str = column("tensor")
    verdict: str = column("verdict")
    relative: float = column("rel. error", "relative")
    at: str = column("worst at")
    analytic: float = column("analytic", "real", detail=True)
    numeric: float = column("numeric", "real", error="uncertainty")
    uncertainty: float = column("uncertainty", "relative")
    grade: str = column("grade", detail=True)
    step: float = column("step", "relative", detail=True)
    kink: float = column("kink gap", "relative", detail=True)
    floor: float = column("certifiable from", "relative", detail=True)
    shape: str = column("shape", detail=True)
    directions: int = column("directions", "count", detail=True)
    entries: int = column("entries", "count", detail=True)
    resolved: int = column("resolved", "count", detail=True)
    zero_entries: int = column("zero entries of the gradient", "count", detail=True)


HUNTS = 3
"""How many times a wrong tensor is bisected for a wrong entry."""


class Gradcheck(Analysis):
    """Is the gradient right?

    Every parameter tensor's gradient, from one joint backward in float64, is held against centred
    differences along random directions (which see every entry) and at sampled entries: the largest,
    random ones, and some that are zero. A difference carries its own error (rounding, truncation,
    kinks); a tensor passes or fails only where that error is small enough to tell, and is
    `unresolved` otherwise. `vacuous` means that this data gives no gradient to check.
    """

    name: ClassVar[str] = "gradcheck"
    Row: ClassVar[type] = GradcheckRow

    tolerance: float = option(1e-5, "relative error up to which a gradient passes", gt=0, lt=1)
    samples: int = option(32, "examples, chosen by the seed; few examples, few kinks", ge=1)
    directions: int = option(2, "random directions per tensor", ge=1)
    entries: int = option(6, "sampled entries per tensor", ge=0)
    dtype: Literal["float64", "float32"] = option("float64", "precision of the check")
    blame: Literal["auto", "always", "never"] = option(
        "auto", "check every module alone to name the wrong one; auto does so after a failure"
    )

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Check every tensor and name the worst place of each."""
        import torch

        from curvcli.curvature.perturbed import Perturbed

        small = problem.sampled(self.samples, work.rng).to(getattr(torch, self.dtype))
        notes = [
            f"{small.examples} of {problem.examples} examples, in {self.dtype}",
            *_unused(small),
        ]
        small.probe()
        with small.engaged():
            gradient = small.layout.named(small.gradient())
            evaluate = Perturbed(small, work.memory)
            rows, interrupted = [], False
            watch = work.announce("checking tensors")
            try:
                for name, g in gradient.items():
                    rows.append(self._tensor(name, g.cpu(), evaluate, work.rng))
                    worst = max((r.relative for r in rows), default=None)
                    watch(len(rows), len(gradient), worst, None)
            except KeyboardInterrupt:
                interrupted = True
                notes.append(f"{len(rows)} of {len(gradient)} tensors checked")
            if evaluate.why_looped:
                notes.append(f"evaluated one by one, not batched: {evaluate.why_looped}")
        culprits, found = self._blame(small, rows, work, interrupted)
        return self.result(
            self._headline(rows) + found,
            rows=rows,
            metrics=self._metrics(rows, evaluate.evaluations),
            checks=[
                *culprits,
                *(self._check(r, blamed=bool(culprits)) for r in rows),
                *self._nothing(rows),
            ],
            notes=notes,
            interrupted=interrupted,
        )

    def _blame(
        self, small: "Problem", rows: list[GradcheckRow], work: "Work", interrupted: bool
    ) -> tuple[list[Check], str]:
        """Check the modules one by one where that is asked for: the culprits, and their names."""
        failed = any(r.verdict == "fail" for r in rows)
        if interrupted or self.blame == "never" or (self.blame == "auto" and not failed):
            return [], ""
        from curvcli.curvature.blame import suspects

        found = suspects(small, self.tolerance, work.rng)
        checks = [Check("culprit", "fail", str(s), "correct its backward") for s in found]
        if not found:
            said = "every module that is called passes alone"
            return [Check("culprit", "undecided" if failed else "pass", said)], ""
        named = ", ".join(f"{s.name or 'the model itself'} ({s.kind})" for s in found)
        return checks, f"; the culprit is {named}"

    def _tensor(
        self, name: str, g: "Tensor", evaluate: "Perturbed", rng: "torch.Generator"
    ) -> GradcheckRow:
        """Compare along every direction and at every chosen entry of one tensor."""
        import torch

        theta = evaluate.values[name]
        found: list[tuple[str, Comparison]] = []
        for place, d in self._places(g, rng):
            found.append((place, self._compare(name, g, d.to(theta), evaluate)))
        verdict = _verdict(found)
        if verdict == "fail" and g.numel() > 1:
            _, against = max(found, key=_gravity)
            for i in {self._bisected(name, g, evaluate, against.step, rng) for _ in range(HUNTS)}:
                unit = _unit(g, i)
                found.append((_index(g, i), self._compare(name, g, unit.to(theta), evaluate)))
        entries_only = [f for f in found if f[1].verdict == "fail" and f[0].startswith("[")]
        place, worst = max(entries_only or found, key=_gravity)
        return GradcheckRow(
            tensor=name,
            verdict=verdict,
            relative=worst.relative,
            at=place,
            analytic=worst.analytic,
            numeric=worst.numeric,
            uncertainty=worst.error,
            grade=_grade(worst.relative) if verdict in ("pass", "fail") else "",
            step=worst.step,
            kink=worst.kink,
            floor=worst.floor,
            shape="x".join(str(s) for s in g.shape) or "scalar",
            directions=self.directions,
            entries=len(found) - self.directions,
            resolved=sum(c.verdict in ("pass", "fail") for _, c in found),
            zero_entries=int(torch.count_nonzero(g == 0)),
        )

    def _places(self, g: "Tensor", rng: "torch.Generator") -> Iterator[tuple[str, "Tensor"]]:
        """Yield directions by name: random ones, then unit vectors at chosen entries."""
        import torch

        for k in range(self.directions):
            drawn = torch.randn(g.shape, generator=rng, dtype=torch.float64)
            yield f"direction {k + 1}", drawn
        for i in _entries(g.reshape(-1), self.entries, rng):
            yield _index(g, i), _unit(g, i)

    def _bisected(
        self, name: str, g: "Tensor", evaluate: "Perturbed", step: float, rng: "torch.Generator"
    ) -> int:
        """Find an entry of a wrong gradient that is off by much: 4 log2(n) evaluations.

        Of the two halves of what is left, follow the one along which a random direction disagrees
        more; a lone wrong entry is found surely, one of many by chance, likelier the worse it is.
        """
        import torch

        theta = evaluate.values[name]
        flat = g.reshape(-1).double()
        weights = torch.randn(len(flat), generator=rng, dtype=torch.float64)
        left, right = 0, len(flat)
        while right - left > 1:
            middle = (left + right) // 2
            halves = torch.zeros(2, len(flat), dtype=torch.float64)
            halves[0, left:middle] = weights[left:middle]
            halves[1, middle:right] = weights[middle:right]
            moves = (step * torch.cat([halves, -halves])).to(theta).view(4, *g.shape)
            values = evaluate.at(name, moves)
            numeric = (values[:2] - values[2:]) / (2 * step)
            off = (halves @ flat - numeric).abs()
            left, right = (left, middle) if off[0] >= off[1] else (middle, right)
        return left

    def _compare(self, name: str, g: "Tensor", d: "Tensor", evaluate: "Perturbed") -> "Comparison":
        import torch

        from curvcli.linalg.differences import STEPS, compare

        theta = evaluate.values[name]
        # Steps are relative to the tensor's entries; a tensor of zeros has no size of its own.
        size = float(theta.square().mean().sqrt()) or 1.0
        steps = size * torch.tensor(STEPS, dtype=torch.float64)
        signed = torch.cat([torch.zeros(1, dtype=torch.float64), steps, -steps])
        moves = signed.to(theta).reshape(-1, *[1] * theta.ndim) * d
        values = evaluate.at(name, moves)
        s = len(steps)
        return compare(
            analytic=float((g.double() * d.double().cpu()).sum()),
            steps=steps,
            plus=values[1 : s + 1],
            minus=values[s + 1 :],
            centre=float(values[0]),
            tolerance=self.tolerance,
            eps=torch.finfo(theta.dtype).eps,
        )

    def _check(self, row: GradcheckRow, blamed: bool) -> Check:
        if row.verdict == "pass":
            said = f"relative error {row.relative:.1e} at {row.at}"
            return Check(row.tensor, "pass", said)
        if row.verdict == "fail":
            return Check(
                row.tensor,
                "fail",
                f"at {row.at} autograd gives {row.analytic:.6g}, differences give "
                f"{row.numeric:.6g} ± {row.uncertainty:.1g}: relative error {row.relative:.1e} "
                f"(tolerance {self.tolerance:g})",
                "" if blamed else "the backward of this tensor's layer, or a later one's, is wrong",
            )
        if row.verdict == "vacuous":
            return Check(
                row.tensor, "warn", "its gradient is zero on these examples: nothing was checked"
            )
        return Check(
            row.tensor,
            "undecided",
            f"differences cannot tell at {row.at}, where the derivative is {row.analytic:.1e}: for "
            f"rounding, --tolerance {self.tolerance:g} takes one of {row.floor:.1e} or more; "
            f"one-sided differences are {row.kink:.1e} apart",
            "use fewer --samples"
            + (", --dtype float64" if self.dtype != "float64" else "")
            + " or a larger --tolerance",
        )

    def _nothing(self, rows: list[GradcheckRow]) -> list[Check]:
        if not rows or any(r.verdict != "vacuous" for r in rows):
            return []
        return [
            Check(
                "something to check",
                "undecided",
                "every gradient is zero on these examples",
                "use other examples, or weights from before convergence",
            )
        ]

    def _headline(self, rows: list[GradcheckRow]) -> str:
        if not rows:
            return "no tensor is checked yet"
        worst = max(rows, key=lambda r: (r.verdict == "fail", r.relative))
        failed = sum(r.verdict == "fail" for r in rows)
        if failed:
            return (
                f"the gradient is wrong in {failed} of {len(rows)} tensors, worst in "
                f"{worst.tensor} at {worst.at}: relative error {worst.relative:.1e}"
            )
        passed = [r for r in rows if r.verdict == "pass"]
        if not passed:
            return f"nothing could be certified in {len(rows)} tensors"
        worst = max(passed, key=lambda r: r.relative)
        return (
            f"{len(passed)} of {len(rows)} tensors pass, worst relative error "
            f"{worst.relative:.1e} in {worst.tensor}"
        )

    def _metrics(self, rows: list[GradcheckRow], evaluations: int) -> dict[str, Metric]:
        decided = [r.relative for r in rows if r.verdict in ("pass", "fail")]
        count = {v: sum(r.verdict == v for r in rows) for v in ("fail", "unresolved", "vacuous")}
        return {
            "max_relative_error": Metric(
                max(decided, default=None), "worst relative error", "relative"
            ),
            "failed": Metric(count["fail"], "tensors that fail", "count"),
            "unresolved": Metric(count["unresolved"], "tensors unresolved", "count"),
            "vacuous": Metric(count["vacuous"], "tensors without gradient", "count"),
            "evaluations": Metric(evaluations, "loss evaluations", "count"),
        }


def _unit(g: "Tensor", i: int) -> "Tensor":
    """Form the direction along entry i of the flat tensor."""
    import torch

    unit = torch.zeros(g.numel(), dtype=torch.float64)
    unit[i] = 1.0
    return unit.reshape(g.shape)


def _index(g: "Tensor", i: int) -> str:
    """Write the index of entry i of the flat tensor."""
    import torch

    index = torch.unravel_index(torch.tensor(i), g.shape)
    return "[" + ", ".join(str(int(x)) for x in index) + "]"


def _entries(g: "Tensor", count: int, rng: "torch.Generator") -> list[int]:
    """Choose entries of a flat gradient: the two largest, up to two zeros, the rest at random."""
    import torch

    largest = g.abs().topk(min(2, count, len(g))).indices.tolist()
    zeros = torch.nonzero(g == 0).flatten()
    zeros = zeros[torch.randperm(len(zeros), generator=rng)[: min(2, max(count - 2, 0))]]
    chosen = list(dict.fromkeys([*largest, *zeros.tolist()]))
    for i in torch.randint(len(g), (4 * count,), generator=rng).tolist():
        if len(chosen) >= min(count, len(g)):
            break
        if i not in chosen:
            chosen.append(i)
    return chosen


def _verdict(found: list[tuple[str, "Comparison"]]) -> str:
    """Judge a tensor: directions certify it, any place may condemn it.

    A single entry may be too small for differences to see; the directions have seen it all the
    same. A direction that is unresolved leaves the tensor unresolved.
    """
    verdicts = {c.verdict for _, c in found}
    along = {c.verdict for place, c in found if place.startswith("direction")}
    if "fail" in verdicts:
        return "fail"
    if "unresolved" in along:
        return "unresolved"
    if "pass" in along:
        return "pass"
    return "unresolved" if "unresolved" in verdicts else "vacuous"


def _gravity(found: tuple[str, "Comparison"]) -> tuple[int, float]:
    """Order places by how much they say against the tensor."""
    place, c = found
    order = ["vacuous", "pass", "unresolved", "fail"]
    if c.verdict == "unresolved" and not place.startswith("direction"):
        return 0, c.relative
    return order.index(c.verdict), c.relative


def _grade(relative: float) -> str:
    """Grade a relative error by the bands of the CS231n notes."""
    bands = ((1e-7, "good"), (1e-4, "fine"), (1e-2, "doubtful"))
    return next((name for bound, name in bands if relative <= bound), "wrong")


def _unused(problem: "Problem") -> list[str]:
    names = problem.unused()
    return [f"unused in the loss: {', '.join(names)}"] if names else []
