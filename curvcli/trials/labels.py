"""Whether outputs tell anything of the targets: a permutation test.

The outputs stay, the targets change places among the examples; what the loss then is, again and
again, is what it would be were they unrelated. Cost: evaluations of the loss on outputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from curvcli.problem import Problem
from curvcli.trials.answers import Answers, mean


def constant(parts: Sequence[Answers]) -> bool:
    """Tell whether the outputs are the same for all examples."""
    leaves = [[t[0] for t in a.leaves()] for a in parts]
    first = leaves[0]
    return bool(first) and all(
        t.shape[1:] == one.shape and bool((t == one).all())
        for a in parts
        for t, one in zip(a.leaves(), first, strict=True)
    )


@dataclass(frozen=True)
class Permuted:
    """The loss on the targets as they are, and its mean and spread on permuted ones."""

    loss: float
    mean: float
    std: float
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


def permuted(
    problem: Problem, parts: Sequence[Answers], rounds: int, rng: torch.Generator
) -> Permuted:
    """Evaluate the loss with targets permuted within each part, again and again."""
    with torch.no_grad():
        true = mean(problem, parts)
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
    return Permuted(true, float(found.mean()), float(found.std()), rounds, examples)
