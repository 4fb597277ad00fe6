"""The sanity checks of CS231n, and those that catch what they miss."""

from typing import TYPE_CHECKING, ClassVar

from curvcli.analyses.base import Analysis
from curvcli.analyses.trials import Trials
from curvcli.analyses.verdicts import SanityRow, Trial
from curvcli.options import option
from curvcli.report import Metric, Result

if TYPE_CHECKING:
    from curvcli.problem import Problem
    from curvcli.work import Work


class Sanity(Analysis):
    """Is anything wrong with the model, the loss or the data that no gradient check sees?

    The loss of fresh weights is at chance; penalties raise it; every tensor gets a gradient; the
    model repeats itself; no output depends on another example; the loss is a mean over examples, of
    outputs that it can take, and below chance; targets vary and belong to their inputs; and a tiny
    subset can be overfitted. Errors are standard errors over the data, or over what was drawn.
    """

    name: ClassVar[str] = "sanity"
    Row: ClassVar[type] = SanityRow

    subset: int = option(20, "examples to overfit", ge=1, le=1000)
    steps: int = option(
        400, "steps of Adam to do so, at each of three learning rates; more while the loss falls, "
        "0 for none", ge=0,
    )  # fmt: skip
    share: float = option(0.05, "share of the loss at chance that counts as overfitted", gt=0, lt=1)
    examples: int = option(
        1024, "examples whose labels are permuted, and that chance is taken of", ge=2
    )
    permutations: int = option(200, "permutations of the labels", ge=20)

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Try one thing after the other; Ctrl-C leaves those that are done."""
        trials: list[Trial] = []
        interrupted = False
        watch = work.announce("sanity checks")
        try:
            for trial in Trials(self, problem, work).all():
                trials.append(trial)
                watch(len(trials), None, None, None)
        except KeyboardInterrupt:
            interrupted = True
        rows = [t.row for t in trials]
        return self.result(
            self._headline(rows),
            rows=rows,
            metrics=_metrics(rows),
            checks=[t.check for t in trials if t.check],
            notes=[*self._notes(problem), *_reasons(rows)],
            interrupted=interrupted,
        )

    def _headline(self, rows: list[SanityRow]) -> str:
        bad = [r.check for r in rows if r.verdict == "warn"]
        good = sum(r.verdict == "pass" for r in rows)
        skipped = sum(r.verdict == "not run" for r in rows)
        figures = len(rows) - len(bad) - good - skipped
        plural = "" if figures == 1 else "s"
        more = f", {figures} figure{plural} without a verdict" if figures else ""
        more += f", {skipped} not run" if skipped else ""
        if bad:
            return f"{len(bad)} of {len(bad) + good} checks warn: {', '.join(bad)}{more}"
        return f"{good} of {good} checks hold{more}" if good else "nothing is known yet"

    def _notes(self, problem: "Problem") -> list[str]:
        total = sum(1 for _ in problem.model.parameters())
        notes = [f"model in {problem.mode} mode; chance: the loss of outputs that see no input"]
        if len(problem.names) < total:
            notes.append(f"{len(problem.names)} of {total} tensors are trainable and chosen; the "
                         "others stay as they are")  # fmt: skip
        return notes


def _reasons(rows: list[SanityRow]) -> list[str]:
    """Say why trials were not run, and what else is to be known of those that were."""
    said = [(r.check, f"not run, {r.remark}" if r.verdict == "not run" else r.remark) for r in rows]
    return [f"{check}: {remark}" for check, remark in said if remark]


def _metrics(rows: list[SanityRow]) -> dict[str, Metric]:
    found = {
        "warnings": Metric(sum(r.verdict == "warn" for r in rows), "checks that warn", "count")
    }
    for row in rows:
        if row.found is not None and row.check in NAMED:
            found[NAMED[row.check]] = Metric(row.found, row.check, "real", row.error)
    return found


NAMED = {
    "loss": "loss",
    "loss held out": "heldout_loss",
    "gap of the losses": "gap",
    "accuracy": "accuracy",
    "accuracy held out": "heldout_accuracy",
}
"""Rows whose numbers are metrics too."""
