"""The sanity checks of CS231n, and those that catch what they miss."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from curvcli.analyses import verdicts
from curvcli.analyses.base import Analysis
from curvcli.analyses.verdicts import SanityRow, Trial, not_run
from curvcli.errors import CurvError, memory_error
from curvcli.options import option
from curvcli.report import Metric, Result

if TYPE_CHECKING:
    from curvcli.batches import Batch
    from curvcli.problem import Problem
    from curvcli.trials.answers import Examined
    from curvcli.trials.chance import Chance
    from curvcli.work import Work

FRESH = 256
"""Examples on which fresh weights are tried: chance is then known to some per cent."""


class Sanity(Analysis):
    """Is anything wrong with the model, the loss or the data that no gradient check sees?

    The loss of fresh weights is at chance; penalties raise it; every tensor gets a gradient; no
    output depends on another example; the loss is a mean over examples, and below chance; labels
    belong to their inputs; and a tiny subset can be overfitted. Errors are standard errors over the
    data, or over what was drawn.
    """

    name: ClassVar[str] = "sanity"
    Row: ClassVar[type] = SanityRow

    subset: int = option(20, "examples to overfit", ge=1, le=1000)
    steps: int = option(400, "steps of Adam to do so, at each of three learning rates", ge=0)
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
            for trial in _Trials(self, problem, work).all():
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
        more = f", {skipped} not run" if skipped else ""
        if bad:
            return f"{len(bad)} of {len(bad) + good} checks warn: {', '.join(bad)}{more}"
        return f"{good} checks hold{more}" if good else "nothing is known yet"

    def _notes(self, problem: "Problem") -> list[str]:
        total = sum(1 for _ in problem.model.parameters())
        notes = [f"model in {problem.mode} mode; chance: the loss of outputs that see no input"]
        if len(problem.names) < total:
            notes.append(f"{len(problem.names)} of {total} tensors are trainable and chosen; the "
                         "others stay as they are")  # fmt: skip
        return notes


class _Trials:
    """The trials in their order, and what the later ones need of the earlier."""

    def __init__(self, asked: Sanity, problem: "Problem", work: "Work") -> None:
        self.asked = asked
        self.problem = problem
        self.work = work
        self.chance: Chance | None = None

    def all(self) -> Iterator[Trial]:
        """Run each trial; where the model refuses one, say so and go on."""
        data = self._examined(self.problem, self.problem.batches, "loss and accuracy")
        held = None
        if self.problem.heldout:
            held = self._examined(self.problem, self.problem.heldout, "held-out loss")
        self._chance(data)
        yield from self._tried("fresh weights at chance", self._fresh)
        yield from self._tried("equal outputs", lambda: self._equal(data))
        for name in self.problem.penalties:
            yield from self._tried(f"penalty {name}", partial(self._penalty, name))
        yield from self._tried("tensors with a gradient", self._arriving)
        yield from self._tried("examples apart", self._apart)
        yield from self._tried("mean over examples", self._averaged)
        yield from self._levels(data, held)
        yield from self._tried("labels against permuted", lambda: self._labels(data, held))
        yield from self._tried("tiny subset overfitted", self._subset)

    def _tried(self, name: str, trial: Callable[[], Iterator[Trial]]) -> Iterator[Trial]:
        try:
            yield from trial()
        except (CurvError, RuntimeError, ValueError) as error:
            if memory_error(error):
                raise
            first = (str(error).strip().splitlines() or [""])[0][:160]
            yield not_run(name, error.message if isinstance(error, CurvError) else first)

    def _examined(self, problem: "Problem", batches: "tuple[Batch, ...]", doing: str) -> "Examined":
        from curvcli.trials.answers import examine

        watch, done = self.work.announce(doing), 0
        total = sum(b.size for b in batches)
        with problem.engaged():
            for batch, found in zip(
                batches, examine(problem, batches, self.asked.examples, self.work.rng), strict=True
            ):
                done += batch.size
                watch(done, total, found.loss, found.error)
        return found

    def _chance(self, data: "Examined") -> None:
        from curvcli.trials.chance import chance

        self.chance = chance(self.problem, data.kept)

    def _fresh(self) -> Iterator[Trial]:
        """Evaluate the model as its factory makes it."""
        from curvcli.trials.apart import few
        from curvcli.trials.subset import batch_statistics

        name = "fresh weights at chance"
        if self.problem.fresh is None:
            yield not_run(name, "needs model: in the spec, to make fresh weights")
            return
        fresh = self.problem.initial()
        if self.chance is None:
            yield not_run(name, "the model gives the loss itself: chance is not known")
            return
        batch = few(fresh, self.work.rng, FRESH)
        with batch_statistics(replace(fresh, batches=(batch,))):
            found = self._examined(fresh, (batch,), "fresh weights")
        yield verdicts.fresh_loss(found.loss, found.error, self.chance)

    def _equal(self, data: "Examined") -> Iterator[Trial]:
        from curvcli.trials.apart import axes

        if self.chance is not None and (self.chance.classes or 0) > 1:
            yield verdicts.equal_outputs(self.chance, axes(data.kept[0]))

    def _penalty(self, name: str) -> Iterator[Trial]:
        posed = self.problem.penalised(name)
        value, slope = posed.measure.loss, float(posed.gradient().norm())
        yield verdicts.penalty(name, value, slope)

    def _arriving(self) -> Iterator[Trial]:
        """Differentiate the loss over all the data, and look for tensors that it misses."""
        problem = self.problem
        unused = problem.unused()
        parts = problem.layout.named(problem.gradient())
        zero = [n for n, g in parts.items() if n not in unused and not g.any()]
        yield verdicts.arriving(unused, zero, len(problem.names))

    def _apart(self) -> Iterator[Trial]:
        from torch.nn.modules.batchnorm import _BatchNorm

        from curvcli.trials.apart import few, leak

        batch = few(self.problem, self.work.rng)
        found = leak(self.problem, batch, self.work.rng)
        if found is None:
            yield not_run("examples apart", "there are no outputs of single examples to compare")
            return
        training = self.problem.mode == "train"
        normalised = any(isinstance(m, _BatchNorm) for m in self.problem.model.modules())
        yield verdicts.apart(found, training and normalised)

    def _averaged(self) -> Iterator[Trial]:
        from curvcli.trials.apart import averaging, few

        found = averaging(self.problem, few(self.problem, self.work.rng))
        if found is None:
            yield not_run("mean over examples", "one example is its own mean")
            return
        yield verdicts.averaged(found)

    def _levels(self, data: "Examined", held: "Examined | None") -> Iterator[Trial]:
        """Tell loss and accuracy, on the data and held out, and the gap."""
        yield verdicts.loss(data, self.chance)
        if held is not None:
            yield verdicts.loss(held, self.chance, " held out")
            error = math.hypot(data.error or 0.0, held.error or 0.0) or None
            yield verdicts.told("gap of the losses", held.loss - data.loss, error)
        for where, found in (("", data), (" held out", held)):
            if found is not None and found.accuracy is not None:
                yield verdicts.told(f"accuracy{where}", found.accuracy, found.accuracy_error)

    def _labels(self, data: "Examined", held: "Examined | None") -> Iterator[Trial]:
        """Permute the labels; those held out tell of a model that learned its own by heart."""
        from curvcli.trials.labels import constant, permuted

        rounds, rng = self.asked.permutations, self.work.rng
        found = permuted(self.problem, data.kept, rounds, rng)
        own = verdicts.labels(found, constant=constant(data.kept))
        yield own
        learned = self.chance is not None and data.loss < verdicts.scaled(
            self.chance.least, verdicts.FITTED
        )
        if held is None or own.row.verdict != "pass":
            return
        found = permuted(self.problem, held.kept, rounds, rng)
        other = verdicts.labels(found, constant=constant(held.kept), where=" held out")
        # What has learned little of its own examples may know less of others.
        weak = other.row.verdict == "warn" and not learned
        yield not_run(other.row.check, "the model has hardly learned its own") if weak else other

    def _subset(self) -> Iterator[Trial]:
        """Train copies on a few examples, from fresh weights where there is a factory."""
        from curvcli.problem import Problem
        from curvcli.trials.apart import few
        from curvcli.trials.subset import Goal, batch_statistics, fit

        fresh = self.problem.fresh is not None
        problem = replace(self.problem.initial() if fresh else self.problem, mode="eval")
        batch = few(problem, self.work.rng, self.asked.subset)
        goal = Goal(self.asked.steps, self.asked.share)
        watch = self.work.announce(f"overfitting {batch.size} examples")
        # One example has no spread to normalise by.
        mode = batch_statistics if fresh and batch.size > 1 else Problem.engaged
        with mode(problem):
            found = fit(problem, batch, goal, watch)
        yield verdicts.subset(found, self.asked.share, fresh)


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
