"""Whether outputs tell anything of the targets: a permutation test.

The outputs stay, the targets change places among the examples; what the loss then is, again and
again, is what it would be were they unrelated. Cost: evaluations of the loss on outputs.

Where a model has not learned, a fixed function meets fixed targets, and the test may come out
either way; so it is asked first whether the model has. One that has and is tried on labels of
another order is above chance, as fresh weights are, but it is sure of what it says: its outputs
vary, which on labels that are not theirs costs loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.problem import Problem
from curvcli.trials.answers import Answers, mean
from curvcli.trials.outputs import logarithms
from curvcli.trials.targets import class_axis


def constant(parts: Sequence[Answers], beside: Sequence[Answers] | None = None) -> bool:
    """Tell whether the outputs are the same for all examples, and for those of `beside`."""
    every = [*parts, *(beside or [])]
    leaves = [[t[0] for t in a.leaves()] for a in every]
    first = leaves[0]
    return bool(first) and all(
        t.shape[1:] == one.shape and bool((t == one).all())
        for a in every
        for t, one in zip(a.leaves(), first, strict=True)
    )


@dataclass(frozen=True)
class Permuted:
    """The loss on the targets as they are, and its mean and spread on permuted ones.

    level: the loss where every example is given the mean of the outputs
    """

    loss: float
    mean: float
    std: float
    level: float
    rounds: int
    examples: int

    @property
    def z(self) -> float:
        """By how many standard deviations the true targets are better; NaN where none tells."""
        # Rounding alone makes no spread.
        if not self.std > 1e-7 * max(abs(self.mean), 1e-30):
            return math.nan
        return (self.mean - self.loss) / self.std

    @property
    def error(self) -> float:
        """The standard error of z: mean and spread are known from so many rounds."""
        return math.sqrt((1 + self.z**2 / 2) / self.rounds)

    @property
    def stake(self) -> float:
        """What it costs, on targets that are not theirs, that the outputs vary.

        For squares the variance of the outputs, and for classes a matter of how sure they are.
        """
        return self.mean - self.level


def permuted(
    problem: Problem, parts: Sequence[Answers], rounds: int, rng: torch.Generator
) -> Permuted:
    """Evaluate the loss with targets permuted within each part, again and again."""
    with torch.no_grad():
        true = mean(problem, parts)
        level = mean(problem, [_levelled(a) for a in parts])
        found = torch.tensor(
            [
                mean(problem, [
                    a.with_target(torch.randperm(a.batch.size, generator=rng)) for a in parts
                ])
                for _ in range(rounds)
            ],
            dtype=torch.float64,
        )  # fmt: skip
    examples = sum(a.batch.size for a in parts)
    return Permuted(true, float(found.mean()), float(found.std()), level, rounds, examples)


def _levelled(given: Answers) -> Answers:
    """Give every example the mean of the outputs."""
    return given.with_leaves([_mean_row(t, given) for t in given.leaves()])


def _mean_row(t: Tensor, given: Answers) -> Tensor:
    row, axis = t.mean(0, keepdim=True), class_axis(t, given.batch.target)
    # The mean of log-probabilities is none: its exponentials add up to less than one.
    normalised = axis is not None and logarithms(t, axis)
    return (row.log_softmax(axis) if normalised and axis is not None else row).expand_as(t)
