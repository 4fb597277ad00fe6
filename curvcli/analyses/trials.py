"""The trials of `curv sanity` in their order, and what the later ones need of the earlier."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from curvcli.analyses import levels, verdicts
from curvcli.analyses.verdicts import Trial, not_run
from curvcli.errors import CurvError, memory_error

if TYPE_CHECKING:
    from curvcli.analyses.sanity import Sanity
    from curvcli.batches import Batch
    from curvcli.problem import Problem
    from curvcli.trials.answers import Examined
    from curvcli.trials.chance import Chance
    from curvcli.work import Work

FRESH = 256
"""Examples on which fresh weights are tried: chance is then known to some per cent."""

NO_MEAN = "the loss is no mean over the examples"
"""Why losses of batches of different sizes cannot be compared."""

STEP = 1e-3
"""Length of one step of gradient descent, over all weights."""

MANY = 20
"""Examples that are not by chance all of one class, unless others are rare."""


class Trials:
    """The trials that are asked for, of one problem."""

    def __init__(self, asked: "Sanity", problem: "Problem", work: "Work") -> None:
        self.asked = asked
        self.problem = problem
        self.work = work
        self.chance: Chance | None = None
        self.fresh: Examined | None = None
        self.is_mean = True

    def all(self) -> Iterator[Trial]:
        """Run each trial; where the model refuses one, say so and go on."""
        data = self._examined(self.problem, self.problem.batches, "loss and accuracy")
        held = None
        if self.problem.heldout:
            held = self._examined(self.problem, self.problem.heldout, "held-out loss")
        # First what the figures of the others stand on.
        yield from self._tried("repeatable", self._repeatable)
        yield from self._tried("mean over examples", self._averaged)
        yield from self._tried("examples apart", self._apart)
        yield from self._tried("targets vary", self._varied)
        yield from self._tried("shapes alike", lambda: self._shaped(data))
        yield from self._tried("outputs are logits", lambda: self._logits(data))
        yield from self._tried("equal outputs", lambda: self._equal(data))
        yield from self._tried("fresh weights at chance", self._fresh)
        for name in self.problem.penalties:
            yield from self._tried(f"penalty {name}", partial(self._penalty, name))
        yield from self._tried("tensors with a gradient", self._arriving)
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

    # --- what the other trials stand on --------------------------------------------------------

    def _repeatable(self) -> Iterator[Trial]:
        """Evaluate a gradient twice, where nothing is random by design."""
        from curvcli.determinism import probe

        if self.problem.mode == "train":
            yield not_run("repeatable", "dropout is random in train mode by design")
            return
        said = ""
        try:
            probe(self.problem)
        except CurvError as error:
            if error.code != "E_NONDET":
                raise
            said = error.message
        yield verdicts.repeatable(said)

    def _averaged(self) -> Iterator[Trial]:
        from curvcli.trials.apart import averaging, few

        found = averaging(self.problem, few(self.problem, self.work.rng))
        if found is None:
            yield not_run("mean over examples", "one example is its own mean")
            return
        trial = verdicts.averaged(found)
        self.is_mean = trial.row.verdict == "pass"
        yield trial

    def _apart(self) -> Iterator[Trial]:
        from torch.nn.modules.batchnorm import _BatchNorm

        from curvcli.trials.apart import few, leak

        batch = few(self.problem, self.work.rng)
        found = leak(self.problem, batch, self.work.rng)
        if found is None:
            yield not_run("examples apart", "there are no outputs of single examples to compare")
            return
        # In any mode but eval, normalisation is over the batch.
        training = self.problem.mode != "eval"
        normalised = any(isinstance(m, _BatchNorm) for m in self.problem.model.modules())
        yield verdicts.apart(found, training and normalised)

    def _varied(self) -> Iterator[Trial]:
        from curvcli.trials.targets import same

        found, examples = same(self.problem.batches), self.problem.examples
        if found is not None and examples >= MANY:
            yield verdicts.varied(found, examples)

    def _shaped(self, data: "Examined") -> Iterator[Trial]:
        from curvcli.trials.outputs import shapes

        found = shapes(self.problem, data.kept[0])
        if found is not None:
            yield verdicts.shaped(found)

    def _logits(self, data: "Examined") -> Iterator[Trial]:
        from curvcli.trials.outputs import kind

        found = kind(self.problem, data.kept[0])
        if found is not None:
            yield verdicts.logits(found)

    # --- losses --------------------------------------------------------------------------------

    def _equal(self, data: "Examined") -> Iterator[Trial]:
        from curvcli.trials.apart import axes
        from curvcli.trials.chance import chance

        self.chance = chance(self.problem, data.kept)
        if self.chance is None or (self.chance.classes or 0) < 2:
            return
        if not self.is_mean:
            yield not_run("equal outputs", NO_MEAN)
            return
        yield levels.equal_outputs(self.chance, axes(data.kept[0]))

    def _fresh(self) -> Iterator[Trial]:
        """Evaluate the model as its factory makes it."""
        from curvcli.trials.apart import few

        name = "fresh weights at chance"
        if self.problem.fresh is None:
            yield not_run(name, "needs model: in the spec, to make fresh weights")
            return
        fresh = self.problem.initial()
        if self.chance is None:
            yield not_run(name, "the model gives the loss itself: chance is not known")
            return
        batch = few(fresh, self.work.rng, FRESH)
        fresh = _by_batch(replace(fresh, batches=(batch,)))
        self.fresh = found = self._examined(fresh, fresh.batches, "fresh weights")
        if not self.is_mean:
            yield not_run(name, NO_MEAN)
            return
        yield levels.fresh_loss(found.loss, found.error, self.chance)

    def _penalty(self, name: str) -> Iterator[Trial]:
        posed = self.problem.penalised(name)
        value, slope = posed.measure.loss, float(posed.gradient().norm())
        yield verdicts.penalty(name, value, slope)

    def _arriving(self) -> Iterator[Trial]:
        """Differentiate the loss over all the data, and look for tensors that it misses."""
        problem = self.problem
        unused, gradient = problem.unused(), problem.gradient()
        parts = problem.layout.named(gradient)
        zero = [n for n, g in parts.items() if n not in unused and not g.any()]
        if zero and gradient.any():
            # What comes before a layer that begins at zero has a gradient after one step, so small
            # that it wakes no dead unit.
            step = STEP / gradient.norm() * gradient
            with problem.displaced(problem.layout.named(problem.vector() - step)):
                later = problem.layout.named(problem.gradient())
            zero = [n for n in zero if not later[n].any()]
        yield verdicts.arriving(unused, zero, len(problem.names))

    def _levels(self, data: "Examined", held: "Examined | None") -> Iterator[Trial]:
        """Tell loss and accuracy, on the data and held out, and the gap."""
        both = {"": data} if held is None else {"": data, " held out": held}
        for where, found in both.items():
            known = self.is_mean
            yield (
                levels.loss(found, self.chance, where)
                if known
                else not_run(f"loss{where}", NO_MEAN)
            )
        if held is not None and self.is_mean:
            error = math.hypot(data.error or 0.0, held.error or 0.0) or None
            yield levels.told("gap of the losses", held.loss - data.loss, error)
        for where, found in both.items():
            if found.accuracy is not None:
                usual = "" if found.majority is None else f"majority class {found.majority:.3f}"
                error = found.accuracy_error
                yield levels.told(f"accuracy{where}", found.accuracy, error, usual)

    def _labels(self, data: "Examined", held: "Examined | None") -> Iterator[Trial]:
        """Permute the labels; those held out tell of a model that learned its own by heart."""
        from curvcli.trials.labels import constant, permuted

        rounds, rng = self.asked.permutations, self.work.rng
        found = permuted(self.problem, data.kept, rounds, rng)
        fresh = None
        if self.fresh is not None:
            fresh = permuted(self.problem, self.fresh.kept, rounds, rng)
        alike = constant(data.kept)
        why = "chance is not known" if self.chance is None else levels.untrained(
            found, self.chance, fresh, classes=data.majority is not None
        )  # fmt: skip
        if alike and self.fresh is not None and constant(data.kept, self.fresh.kept):
            # As of a last layer that begins at zero.
            alike, why = False, "the outputs are those of fresh weights, and the same for all"
        own = levels.labels(found, constant=alike, untrained=why)
        yield own
        if held is None or own.row.verdict != "pass":
            return
        # What has learned little of its own examples may know less of others.
        learned = self.chance is not None and found.loss < levels.scaled(
            self.chance.least, levels.FITTED
        )
        found = permuted(self.problem, held.kept, rounds, rng)
        other = levels.labels(found, constant=constant(held.kept), where=" held out")
        weak = other.row.verdict == "warn" and not learned
        yield not_run(other.row.check, "the model has hardly learned its own") if weak else other

    def _subset(self) -> Iterator[Trial]:
        """Train copies on a few examples, from fresh weights where there is a factory."""
        from curvcli.trials.apart import few
        from curvcli.trials.subset import Goal, fit

        if not self.asked.steps:
            yield not_run("tiny subset overfitted", "no steps are asked for")
            return
        fresh = self.problem.fresh is not None
        problem = replace(self.problem.initial() if fresh else self.problem, mode="eval")
        batch = few(problem, self.work.rng, self.asked.subset)
        goal = Goal(self.asked.steps, self.asked.share)
        watch = self.work.announce(f"overfitting {batch.size} examples")
        if fresh:
            problem = _by_batch(replace(problem, batches=(batch,)))
        with problem.engaged():
            found = fit(problem, batch, goal, watch)
        yield levels.subset(found, self.asked.share, fresh)


def _by_batch(problem: "Problem") -> "Problem":
    """Normalise by the batch's own statistics: the running ones of fresh weights mean nothing."""
    # One example has no spread to normalise by.
    return replace(problem, mode="batchnorm") if problem.examples > 1 else problem
