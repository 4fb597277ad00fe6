"""What a gradient check has found: rows, culprits, what is excused, and how it is told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from curvcli.report import Check, Figure, Metric, column

if TYPE_CHECKING:
    from curvcli.gradients.blame import Suspect
    from curvcli.gradients.perturbed import Perturbed
    from curvcli.gradients.reading import Reading


@dataclass(frozen=True)
class GradcheckRow:
    """One parameter tensor: the verdict, and the direction or entry that decides it."""

    part: str = column("of")
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

    @property
    def name(self) -> str:
        """The tensor, and of what it is the derivative where that is not the loss's own."""
        return f"{self.part}: {self.tensor}" if self.part else self.tensor


@dataclass
class Findings:
    """What is known so far; Ctrl-C leaves that."""

    tolerance: float
    dtype: str
    notes: list[str]
    rows: list[GradcheckRow] = field(default_factory=list)
    suspects: "list[Suspect]" = field(default_factory=list)
    refused: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    evaluators: "list[Perturbed]" = field(default_factory=list)
    depth: int = 0
    interrupted: bool = False

    @property
    def worst(self) -> float | None:
        """The largest relative error so far."""
        return max((r.relative for r in self.rows), default=None)

    def having(self, parts: Iterable[str], *verdicts: str) -> list[GradcheckRow]:
        """The rows of these parts with one of these verdicts."""
        return [r for r in self.rows if r.verdict in verdicts and r.part in parts]

    def add(self, part: str, reading: "Reading") -> None:
        """Make a row of what differences say of one tensor."""
        self.rows.append(_row(part, reading))

    def blame(self, suspects: "Iterable[Suspect]") -> None:
        """Name culprits, each module once."""
        known = {s.name for s in self.suspects}
        self.suspects += [s for s in suspects if s.name not in known]

    def excuse(self, reasons: Mapping[str, str], parts: Iterable[str]) -> None:
        """Turn failures of these tensors into ignored ones, and list them with their reasons."""
        for i, row in enumerate(self.rows):
            open_one = row.verdict in ("fail", "unresolved")
            if open_one and row.tensor in reasons and row.part in parts:
                self.rows[i] = replace(row, verdict="ignored", grade="")
                why = reasons[row.tensor]
                self.notes.append(f"ignored: {row.name}, off by {row.relative:.1e} ({why})")

    @property
    def checks(self) -> list[Check]:
        """The culprits, then every tensor, then what could not be checked."""
        return [
            *(Check("culprit", "fail", str(s), "correct its backward") for s in self.suspects),
            *(self._check(r) for r in self.rows),
            *self.refused,
            *self._nothing(),
        ]

    def _check(self, row: GradcheckRow) -> Check:
        if row.verdict in ("pass", "ignored"):
            ignored = "ignored: " if row.verdict == "ignored" else ""
            said = f"{ignored}relative error {row.relative:.1e} at {row.at}"
            return Check(row.name, "pass", said)
        if row.verdict == "fail":
            return Check(
                row.name,
                "fail",
                f"at {row.at} autograd gives {row.analytic:.6g}, differences give "
                f"{row.numeric:.6g} ± {row.uncertainty:.1g}: relative error {row.relative:.1e} "
                f"(tolerance {self.tolerance:g})",
                self._advice(row),
            )
        if row.verdict == "vacuous":
            said = "its derivative is zero on these examples: nothing was checked"
            return Check(row.name, "warn", said)
        return Check(
            row.name,
            "undecided",
            f"differences cannot tell at {row.at}, where the derivative is {row.analytic:.1e}: for "
            f"rounding, --tolerance {self.tolerance:g} takes one of {row.floor:.1e} or more; "
            f"one-sided differences are {row.kink:.1e} apart",
            "use fewer --samples"
            + (", --dtype float64" if self.dtype != "float64" else "")
            + " or a larger --tolerance",
        )

    def _advice(self, row: GradcheckRow) -> str:
        """Say where to look, unless a culprit says so already."""
        if row.part.startswith("penalty"):
            return f"correct the backward of the {row.part}"
        wrong = "the backward of this tensor's layer, or a later one's, is wrong"
        return "" if self.suspects else wrong

    def _nothing(self) -> list[Check]:
        """Refuse to call a check passed that checked nothing of the loss."""
        rows = [r for r in self.rows if not r.part]
        if not rows or any(r.verdict != "vacuous" for r in rows):
            return []
        said = "every gradient is zero on these examples"
        advice = "use other examples, or weights from before convergence"
        return [Check("something to check", "undecided", said, advice)]

    @property
    def headline(self) -> str:
        """The answer in one line."""
        rows = self.rows
        if not rows:
            return "no tensor is checked yet"
        several = any(r.part for r in rows)
        things = "derivatives" if several else "tensors"
        failed = [r for r in rows if r.verdict == "fail"]
        if failed:
            worst = max(failed, key=lambda r: r.relative)
            named = ", ".join(f"{s.name or 'the model itself'} ({s.kind})" for s in self.suspects)
            return (
                f"the gradient is wrong in {len(failed)} of {len(rows)} {things}, worst in "
                f"{worst.name} at {worst.at}: relative error {worst.relative:.1e}"
                + (f"; the culprit is {named}" if named else "")
            )
        passed = [r for r in rows if r.verdict == "pass"]
        if not passed:
            return f"nothing could be certified in {len(rows)} {things}"
        worst = max(passed, key=lambda r: r.relative)
        return (
            f"{len(passed)} of {len(rows)} {things} pass, worst relative error "
            f"{worst.relative:.1e} in {worst.name}"
        )

    @property
    def metrics(self) -> dict[str, Metric]:
        """The rows summed up."""
        decided = [r.relative for r in self.rows if r.verdict in ("pass", "fail")]
        count = {v: sum(r.verdict == v for r in self.rows) for v in COUNTED}
        evaluations = sum(e.evaluations for e in self.evaluators)
        return {
            "max_relative_error": Metric(
                max(decided, default=None), "worst relative error", "relative"
            ),
            **{_key(v): Metric(n, COUNTED[v], "count") for v, n in count.items()},
            "depth": Metric(self.depth, "operations in the longest chain of derivatives", "count"),
            "evaluations": Metric(evaluations, "loss evaluations", "count"),
        }

    @property
    def looped(self) -> list[str]:
        """Say why evaluations were not batched, where they were not."""
        why = [e.why_looped for e in self.evaluators if e.why_looped]
        return [f"evaluated one by one, not batched: {why[0]}"] if why else []


COUNTED = {
    "fail": "tensors that fail", "unresolved": "tensors unresolved",
    "vacuous": "tensors without gradient", "ignored": "tensors ignored",
}  # fmt: skip


def _key(verdict: str) -> str:
    return "failed" if verdict == "fail" else verdict


def _row(part: str, reading: "Reading") -> GradcheckRow:
    from curvcli.gradients.reading import grade

    place, worst = reading.worst.place, reading.worst.comparison
    whole = sum(f.whole for f in reading.found)
    decided = reading.verdict in ("pass", "fail")
    return GradcheckRow(
        part=part,
        tensor=reading.tensor,
        verdict=reading.verdict,
        relative=worst.relative,
        at=place,
        analytic=worst.analytic,
        numeric=worst.numeric,
        uncertainty=worst.error,
        grade=grade(worst.relative) if decided else "",
        step=worst.step,
        kink=worst.kink,
        floor=worst.floor,
        shape="x".join(str(s) for s in reading.shape) or "scalar",
        directions=whole,
        entries=reading.entries,
        resolved=reading.resolved,
        zero_entries=reading.zeros,
    )
