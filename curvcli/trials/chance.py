"""What a loss comes to without looking at the inputs, and with every target known.

A constant output, one number for each class or channel, is what a model can say that sees nothing:
equal ones give -log(1/K) for cross-entropy, the best ones the entropy of the class shares. Outputs
that are free for each example give the least that the loss can be. Cost: evaluations of the loss on
outputs, none of the model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvcli.problem import Problem
from curvcli.trials.answers import Answers, judged
from curvcli.trials.outputs import links
from curvcli.trials.targets import class_axis

STEPS = 100
"""Of L-BFGS: from zero on, a convex loss of constants is at its minimum after some ten."""


@dataclass(frozen=True)
class Chance:
    """The loss of outputs that do not depend on the inputs.

    equal:   of equal outputs: all classes alike, probabilities of one half, or zeros
    best:    of the best constant; None where there is no such
    classes: of an integer target; None for other targets
    """

    equal: float
    best: float | None
    classes: int | None

    @property
    def least(self) -> float:
        """The loss that anything better than chance is below."""
        return self.equal if self.best is None else min(self.best, self.equal)


def chance(problem: Problem, parts: Sequence[Answers]) -> Chance | None:
    """Evaluate constant outputs for these examples; None where the loss is no function of them."""
    if not parts or not any(judged(problem, parts[0])):
        return None
    found = links(problem, parts[0])
    free = [torch.zeros(_constant_shape(t, axis), dtype=t.dtype, device=t.device)
            for t, axis, _ in found]  # fmt: skip

    def loss(values: Sequence[Tensor]) -> Tensor:
        return _mean(problem, parts, lambda part: [
            link(v, axis).expand(part.leaves()[i].shape)
            for i, (v, (_, axis, link)) in enumerate(zip(values, found, strict=True))
        ])  # fmt: skip

    with torch.no_grad():
        equal = float(loss(free))
    axis = class_axis(found[0][0], parts[0].batch.target)
    classes = None if axis is None else found[0][0].shape[axis]
    return Chance(equal, _least(loss, free), classes)


def floor(problem: Problem, part: Answers, same: Tensor) -> float | None:
    """Find the least that the loss can be, where outputs of one group must be alike.

    `same` numbers the groups of examples (n,), or of rows of the only output (n, t).
    """
    if not any(judged(problem, part)):
        return None
    found = links(problem, part)
    count = int(same.max()) + 1
    free = [torch.zeros(count, *t.shape[same.ndim :], dtype=t.dtype, device=t.device)
            for t, *_ in found]  # fmt: skip

    def loss(values: Sequence[Tensor]) -> Tensor:
        return _mean(problem, [part], lambda _: [
            link(v[same.to(v.device)], axis)
            for v, (_, axis, link) in zip(values, found, strict=True)
        ])  # fmt: skip

    return _least(loss, free)


def _mean(
    problem: Problem, parts: Sequence[Answers], outputs: Callable[[Answers], list[Tensor]]
) -> Tensor:
    """Evaluate the loss with other outputs, in place of those that it depends on."""
    total: Tensor | float = 0.0
    weight: Tensor | float = 0.0
    for part in parts:
        mine = part.with_leaves(outputs(part))
        terms = problem.loss(mine.output, mine.batch)
        total, weight = total + terms.total, weight + terms.weight
    return torch.as_tensor(total / weight)


def _constant_shape(t: Tensor, axis: int) -> list[int]:
    """Leave one number for each channel, and one for all of the rest."""
    if t.ndim < 2:
        return [1] * t.ndim
    return [n if i == axis % t.ndim else 1 for i, n in enumerate(t.shape)]


def _least(loss: Callable[[Sequence[Tensor]], Tensor], start: Sequence[Tensor]) -> float | None:
    """Minimise from a start; None where that comes to no end."""
    values = [v.clone().requires_grad_() for v in start]
    search: Any = torch.optim.LBFGS(values, max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        search.zero_grad()
        with torch.enable_grad():
            found = loss(values)
        torch.autograd.backward(found, inputs=values)
        return float(found.detach())

    search.step(closure)
    with torch.no_grad():
        found = float(loss(values))
    return found if math.isfinite(found) and found > -1e12 else None
