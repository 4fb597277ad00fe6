"""Whether a model can learn a handful of examples by heart (CS231n): trained on copies with Adam.

No penalty, no dropout in eval mode; batch normalisation takes the subset's own statistics where the
weights are fresh. Three learning rates are tried, as far as they are needed, and then, for longer,
those at which the loss still fell; a step costs one gradient of the handful.
"""

import contextlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.batches import Batch
from curvcli.derivatives import optional_derivatives
from curvcli.problem import Problem
from curvcli.trials.answers import Answers, answer
from curvcli.trials.chance import Chance, chance, floor
from curvcli.work import Watch, silent

RATES = (1e-2, 1e-3, 1e-1)
"""Learning rates of Adam: for small models, deep ones (its default), and linear ones."""

FALLING = 0.8
"""A loss still falls that in the second half of the steps lost a fifth of what was left: slower,
and twice the steps would not lead far."""

LONGER = 8
"""Times the steps asked for that a falling loss is followed."""


@dataclass(frozen=True)
class Fitted:
    """How far training came.

    start, loss:   before and at the best step
    chance, floor: the loss of the best constant output, and the least that it can be
    rate, steps:   of the run that came farthest
    contradicted:  targets whose input is another one's, of another target
    parameters:    that were trained, and `values` is how many real targets they were to meet
    falling:       whether the loss still fell at the end
    """

    start: float
    loss: float
    chance: float
    floor: float
    rate: float
    steps: int
    examples: int
    contradicted: int = 0
    parameters: int = 0
    values: int = 0
    falling: bool = False

    @property
    def share(self) -> float:
        """What is left of the way from chance to the least."""
        return (self.loss - self.floor) / max(self.chance - self.floor, 1e-30)


@dataclass(frozen=True)
class Goal:
    """When training stops: after so many steps, or at this share of the chance loss."""

    steps: int
    share: float


def fit(problem: Problem, batch: Batch, goal: Goal, watch: Watch = silent) -> Fitted:
    """Train copies of the parameters on one batch; Ctrl-C goes through."""
    alone = replace(problem, batches=(batch,), heldout=())
    with torch.no_grad():
        given = answer(alone, batch)
    bounds = _Bounds(chance(alone, [given]), floor(alone, given, groups(batch)) or 0.0)
    tried: list[Fitted] = []
    for rate in RATES:
        tried.append(_fitted(_Run(alone, rate, bounds), given, goal, _after(watch, tried, goal)))
        if tried[-1].share <= goal.share:
            break
    best = min(tried, key=lambda f: f.loss)
    if not best.share <= goal.share:
        best = _longer(alone, bounds, given, goal, tried, watch)
    target = batch.target
    real = isinstance(target, Tensor) and target.is_floating_point()
    values = target.numel() if real else 0
    return replace(best, parameters=alone.layout.size, values=values)


def _longer(
    problem: Problem,
    bounds: "_Bounds",
    given: Answers,
    goal: Goal,
    tried: list[Fitted],
    watch: Watch,
) -> Fitted:
    """Train for longer what still fell, the best first; give the best of all."""
    # Anew, since keeping three copies with their optimizers would take nine times the memory.
    for found in sorted((f for f in tried if f.falling), key=lambda f: f.loss):
        run, steps = _Run(problem, found.rate, bounds), goal.steps
        tried.remove(found)
        told = _fitted(run, given, goal, _after(watch, tried, goal))
        while told.falling and not told.share <= goal.share and steps < LONGER * goal.steps:
            steps *= 2
            told = _fitted(run, given, replace(goal, steps=steps), _after(watch, tried, goal))
        tried.append(told)
        if told.share <= goal.share:
            return told
    return replace(min(tried, key=lambda f: f.loss), falling=any(f.falling for f in tried))


def _fitted(run: "_Run", given: Answers, goal: Goal, watch: Watch) -> Fitted:
    """Train, and say how far it came and what kept it from coming farther."""
    run.train(goal.steps, goal.share, watch)
    found = run.found
    if found.share > goal.share and (tokens := indistinct(run.outputs())) is not None:
        # The model sees no more than each token: equal ones cannot have different targets.
        least = floor(run.problem, given, tokens)
        found = replace(found, floor=found.floor if least is None else least)
        return replace(found, contradicted=contradicted(given, tokens))
    return replace(found, contradicted=contradicted(given, groups(given.batch)))


@dataclass(frozen=True)
class _Bounds:
    chance: Chance | None
    floor: float


class _Run:
    """Copies of the parameters, trained with Adam at one learning rate."""

    def __init__(self, problem: Problem, rate: float, bounds: _Bounds) -> None:
        self.problem = problem
        self.rate = rate
        self.bounds = bounds
        self.copies = {n: p.detach().clone().requires_grad_() for n, p in problem.params.items()}
        self.optimizer = torch.optim.Adam(self.copies.values(), lr=rate)
        self.start = math.nan
        self.course: list[float] = []  # the least loss by each step
        self.taken = 0
        self.ended = False

    @property
    def found(self) -> Fitted:
        """How far it came."""
        top = self.start if self.bounds.chance is None else self.bounds.chance.least
        loss, low = self.course[-1], self.bounds.floor
        half = self.course[(len(self.course) - 1) // 2]
        falling = not self.ended and loss - low <= FALLING * (half - low)
        return Fitted(self.start, loss, top, low, self.rate, self.taken, self.problem.examples,
                      falling=falling)  # fmt: skip

    def train(self, until: int, share: float, watch: Watch) -> None:
        """Take steps until there are so many, or until no more than this share is left."""
        names, leaves = list(self.problem.params), list(self.problem.params.values())
        while not self.ended and len(self.course) <= until:
            with self.displaced():
                terms = self.problem.terms(self.problem.batches[0])
                loss = terms.total / float(terms.weight)
                self._note(float(loss.detach()))
                watch(len(self.course) - 1, None, self.course[-1], None)
                self.ended |= self.found.share <= share or not loss.requires_grad
                if self.ended:
                    break
                gradients = optional_derivatives([loss], leaves)
            for name, g in zip(names, gradients, strict=True):
                self.copies[name].grad = None if g is None else g.to_dense() if g.is_sparse else g
            self.optimizer.step()

    def _note(self, loss: float) -> None:
        """Keep the least loss, and the step that it was at."""
        if not self.course:
            self.start = loss
        least = self.course[-1] if self.course else math.inf
        if loss < least:
            self.taken = len(self.course)
        self.course.append(min(loss, least) if math.isfinite(loss) else least)
        self.ended = not math.isfinite(loss)

    def displaced(self) -> contextlib.AbstractContextManager[None]:
        """Hold the parameters at the copies."""
        return self.problem.displaced({n: t.detach() for n, t in self.copies.items()})

    def outputs(self) -> Answers:
        """Evaluate the model where it came to."""
        with self.displaced(), torch.no_grad():
            return answer(self.problem, self.problem.batches[0])


def _after(watch: Watch, tried: list[Fitted], goal: Goal) -> Watch:
    """Count the steps of the runs before too."""
    before = len(tried) * goal.steps

    def shifted(done: int, _total: int | None, estimate: float | None, _e: float | None) -> None:
        total = max(len(RATES) * goal.steps, before + done + 1)
        watch(before + done, total, estimate, None)

    return shifted


def groups(batch: Batch) -> Tensor:
    """Number the examples (n,) so that those with equal inputs have the same number."""
    known: dict[bytes, int] = {}
    tensors = [t for t in pytree.tree_leaves(batch.inputs) if isinstance(t, Tensor) and t.ndim]
    keys = [b"".join(t[i].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                     .tobytes() for t in tensors) for i in range(batch.size)]  # fmt: skip
    return torch.tensor([known.setdefault(key, len(known)) for key in keys])


def indistinct(given: Answers) -> Tensor | None:
    """Number the tokens (n, t) so that those are alike which are equal and get equal outputs.

    None where the inputs are no tokens, one for each row of the outputs.
    """
    tensors = [t for t in pytree.tree_leaves(given.batch.inputs) if isinstance(t, Tensor)]
    leaves = given.leaves()
    if len(tensors) != 1 or len(leaves) != 1 or tensors[0].is_floating_point():
        return None
    tokens, rows = tensors[0], leaves[0]
    if rows.ndim != 3 or tokens.shape != rows.shape[:2]:
        return None
    # Rounded, since the order of sums may differ from place to place.
    rounded = (rows / rows.abs().max().clamp_min(1e-30) * 1e4).round()
    keys = torch.cat([tokens.unsqueeze(-1).to(rounded), rounded], -1).flatten(0, 1)
    found: Tensor = torch.unique(keys, dim=0, return_inverse=True)[1]
    return found.reshape(tokens.shape).cpu()


def contradicted(given: Answers, same: Tensor) -> int:
    """Count the targets that differ from another one of the same group (n,) or (n, t)."""
    target = given.batch.target
    if not isinstance(target, Tensor) or target.shape[: same.ndim] != same.shape:
        return 0
    rows = target.detach().cpu().reshape(same.numel(), -1)
    flat = same.flatten()
    return sum(bool((rows[flat == flat[i]] != rows[i]).any()) for i in range(len(flat)))
