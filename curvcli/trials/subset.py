"""Whether a model can learn a handful of examples by heart (CS231n): trained on copies with Adam.

No penalty, no dropout in eval mode; batch normalisation takes the subset's own statistics where the
weights are fresh. Three learning rates are tried, as far as they are needed; a step costs one
gradient of the handful.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from curvcli.batches import Batch
from curvcli.derivatives import optional_derivatives
from curvcli.problem import Problem
from curvcli.trials.answers import Answers, answer
from curvcli.trials.chance import Chance, chance, floor
from curvcli.work import Watch, silent

RATES = (1e-2, 1e-3, 1e-1)
"""Learning rates of Adam: for small models, deep ones (its default), and linear ones."""


@dataclass(frozen=True)
class Fitted:
    """How far training came.

    start, loss:   before and at the best step
    chance, floor: the loss of the best constant output, and the least that it can be
    rate, steps:   of the run that came farthest
    contradicted:  targets whose input is another one's, of another target
    parameters:    that were trained, and `values` is how many real targets they were to meet
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
    same = groups(batch)
    bounds = _Bounds(chance(alone, [given]), floor(alone, given, same) or 0.0)
    best: Fitted | None = None
    for k, rate in enumerate(RATES):
        found, after = _trained(alone, rate, goal, bounds, _offset(watch, k, goal))
        if found.share > goal.share and (tokens := indistinct(after)) is not None:
            # The model sees no more than each token: equal ones cannot have different targets.
            least = floor(alone, given, tokens)
            found = replace(found, floor=found.floor if least is None else least)
            found = replace(found, contradicted=contradicted(given, tokens))
        else:
            found = replace(found, contradicted=contradicted(given, same))
        best = found if best is None or found.loss < best.loss else best
        if best.share <= goal.share:
            break
    assert best is not None
    target = batch.target
    real = isinstance(target, Tensor) and target.is_floating_point()
    values = target.numel() if real else 0
    return replace(best, parameters=alone.layout.size, values=values)


@dataclass(frozen=True)
class _Bounds:
    chance: Chance | None
    floor: float


def _trained(
    problem: Problem, rate: float, goal: Goal, bounds: _Bounds, watch: Watch
) -> tuple[Fitted, Answers]:
    """Take steps of Adam; give how far they came, and the outputs at the end."""
    names = list(problem.params)
    leaves = list(problem.params.values())
    copies = {n: p.detach().clone().requires_grad_() for n, p in problem.params.items()}
    optimizer = torch.optim.Adam(copies.values(), lr=rate)
    weight, start, best, taken = 1.0, math.nan, math.inf, 0
    for step in range(goal.steps + 1):
        with problem.displaced({n: t.detach() for n, t in copies.items()}):
            terms = problem.terms(problem.batches[0])
            weight = float(terms.weight)
            loss = float(terms.total.detach()) / weight
            start = loss if step == 0 else start
            if loss < best:
                best, taken = loss, step
            top = start if bounds.chance is None else bounds.chance.least
            found = Fitted(start, best, top, bounds.floor, rate, taken, problem.examples)
            watch(step, goal.steps, best, None)
            if found.share <= goal.share or not math.isfinite(loss) or step == goal.steps:
                break
            if not terms.total.requires_grad:
                break
            gradients = optional_derivatives([terms.total / weight], leaves)
        for name, g in zip(names, gradients, strict=True):
            copies[name].grad = None if g is None else g.to_dense() if g.is_sparse else g
        optimizer.step()
    with problem.displaced({n: t.detach() for n, t in copies.items()}), torch.no_grad():
        return found, answer(problem, problem.batches[0])


def _offset(watch: Watch, run: int, goal: Goal) -> Watch:
    """Count the steps of all runs."""

    def shifted(done: int, _total: int | None, estimate: float | None, _e: float | None) -> None:
        watch(run * goal.steps + done, len(RATES) * goal.steps, estimate, None)

    return shifted


@contextlib.contextmanager
def batch_statistics(problem: Problem) -> Iterator[None]:
    """Let batch normalisation take each batch's own statistics: fresh running ones mean nothing."""
    with problem.engaged():
        # engaged() gives modes and buffers back.
        for module in problem.model.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        yield


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
