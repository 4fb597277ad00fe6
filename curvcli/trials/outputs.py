"""What a model's outputs are to its loss: logits, probabilities or any numbers; and their shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from curvcli.errors import memory_error
from curvcli.problem import Problem
from curvcli.trials.answers import Answers, answer, judged, mean
from curvcli.trials.targets import class_axis, threshold

NORMALISED = 1e-3
"""Outputs whose exponentials, or which themselves, add up to one within this are probabilities."""

ENOUGH = 256
"""Examples that show what outputs are; those of a language model are large."""

EXAMPLES, DRAWS, GAIN = 16, 3, 3.0
"""Under so many random weights, larger than those of any initialisation, numbers that are not held
within [0, 1] leave it."""

ALIKE = 1e-4
"""Relative difference up to which two losses are the same."""

Link = Callable[[Tensor, int], Tensor]
"""From free numbers, along an axis, to outputs of a kind."""


def links(problem: Problem, part: Answers) -> list[tuple[Tensor, int, Link]]:
    """Say for each output where its channels lie and how free numbers become one."""
    inside = confined(problem, part)
    return [(t.detach(), axis := _axis(t, part.batch.target), _link(t.detach(), axis, held))
            for t, held in zip(part.leaves(), inside, strict=True)]  # fmt: skip


def _axis(t: Tensor, target: Any) -> int:
    """Say where the channels lie."""
    axis = class_axis(t, target)
    if axis is None:
        return 1 if t.ndim in (2, 4, 5) else -1
    return axis


def _link(t: Tensor, axis: int, held: bool) -> Link:
    """Keep to what the outputs are: log-probabilities, probabilities, or any number."""
    if logarithms(t, axis):
        return lambda v, axis: v.log_softmax(axis)
    if _shares(t, axis):
        return lambda v, axis: v.softmax(axis)
    return (lambda v, axis: v.sigmoid()) if held else (lambda v, axis: v)


def logarithms(t: Tensor, axis: int) -> bool:
    """Tell whether these are the logarithms of probabilities."""
    if t.ndim < 2 or t.shape[axis] < 2:
        return False
    return float(t.logsumexp(axis).abs().max()) < NORMALISED


def _shares(t: Tensor, axis: int) -> bool:
    """Tell whether these are probabilities that add up to one."""
    if t.ndim < 2 or t.shape[axis] < 2 or not _within(t):
        return False
    return float((t.sum(axis) - 1).abs().max()) < NORMALISED


def _within(t: Tensor) -> bool:
    return bool(((t >= 0) & (t <= 1)).all())


def confined(problem: Problem, given: Answers) -> list[bool]:
    """Tell which outputs stay within [0, 1] whatever the weights, as those of a sigmoid do.

    Logits of fresh weights, too, may all lie there: what tells the two apart is other weights.
    """
    inside = [_within(t) for t in given.leaves()]
    few = given.rows(torch.arange(min(EXAMPLES, given.batch.size)))
    weights = dict(problem.model.named_parameters())
    whole = replace(problem, names=tuple(n for n, p in weights.items() if p.is_floating_point()))
    rng = torch.Generator().manual_seed(0)
    for _ in range(DRAWS if any(inside) else 0):
        drawn = {n: _drawn(weights[n], rng) for n in whole.names}
        try:
            with whole.displaced(drawn), torch.no_grad():
                found = answer(whole, few.batch).leaves()
        except (RuntimeError, ValueError) as error:  # some weights, as of a Cholesky, fit no model
            if memory_error(error):
                raise
            continue
        inside = [a and _within(t) for a, t in zip(inside, found, strict=True)]
    return inside


def _drawn(p: Tensor, rng: torch.Generator) -> Tensor:
    """Draw weights that make a layer's outputs GAIN times as large as its inputs."""
    fan = p[0].numel() if p.ndim > 1 and len(p) else 1
    return (torch.randn(p.shape, generator=rng) * (GAIN / math.sqrt(max(fan, 1)))).to(p)


# --- logits ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Whether the outputs of a loss that takes logits are probabilities already.

    least: what the loss is where the outputs are the targets, with probabilities of 0 and 1
    """

    probabilities: bool
    least: float


def kind(problem: Problem, given: Answers) -> Kind | None:
    """Look at the outputs of a loss that takes logits; None for any other loss."""
    given = given.rows(torch.arange(min(ENOUGH, given.batch.size)))
    which = judged(problem, given)
    if sum(which) != 1:
        return None
    t = given.leaves()[which.index(True)].detach()
    ideal = _ideal(problem, given, t)
    if ideal is None:
        return None
    held = confined(problem, given)[which.index(True)]
    probabilities = held or _shares(t, _axis(t, given.batch.target))
    with torch.no_grad():
        return Kind(probabilities, mean(problem, [_with(given, which, ideal)]))


def _ideal(problem: Problem, given: Answers, t: Tensor) -> Tensor | None:
    """Make the probabilities that are right for certain; None where the loss takes no logits."""
    target = given.batch.target
    axis = class_axis(t, target)
    if axis is None:
        # Binary cross-entropy has the loss log 2 at the logit 0.
        level = threshold(problem, given)
        return target.to(t).reshape(t.shape) if level == 0 else None
    if t.shape[axis] < 2:
        return None
    known = (target >= 0) & (target < t.shape[axis])
    hot = functional.one_hot(target.long().clamp(0, t.shape[axis] - 1), t.shape[axis])
    ideal = (hot * known.unsqueeze(-1)).movedim(-1, axis).to(t)
    return ideal if _shifted_alike(problem, given, t, ideal) else None


def _shifted_alike(problem: Problem, given: Answers, t: Tensor, other: Tensor) -> bool:
    """Tell whether only differences of outputs count, as for what a softmax is taken of."""
    which = judged(problem, given)
    with torch.no_grad():
        before, after, beside = (mean(problem, [_with(given, which, x)]) for x in (t, t + 1, other))
    # A loss that sees no outputs at all would be the same too.
    return _same(before, after) and not _same(before, beside)


def _with(given: Answers, which: list[bool], t: Tensor) -> Answers:
    return given.with_leaves(
        [t if w else old for w, old in zip(which, given.leaves(), strict=True)]
    )


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= ALIKE * max(abs(a), abs(b), 1e-30)


# --- shapes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shapes:
    """The shapes of outputs and targets that are compared entry by entry.

    wide:    the shape that torch broadcasts them to; None where they are alike, or lined up
    refused: whether torch takes no such shapes, which curv lines up all the same
    loss:    as curv computes it, and `torch` on what is broadcast
    """

    output: tuple[int, ...]
    target: tuple[int, ...]
    wide: tuple[int, ...] | None = None
    refused: bool = False
    loss: float | None = None
    torch: float | None = None


def shapes(problem: Problem, given: Answers) -> Shapes | None:
    """Compare the shapes of outputs and real targets; None where that is not what a loss does."""
    target, which = given.batch.target, judged(problem, given)
    if sum(which) != 1 or not isinstance(target, Tensor) or not target.is_floating_point():
        return None
    t = given.leaves()[which.index(True)].detach()
    alike = Shapes(tuple(t.shape), tuple(target.shape))
    if t.shape == target.shape or t.numel() != target.numel() or given.batch.size < 2:
        return alike
    try:
        wide = torch.broadcast_shapes(t.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:  # which the loss does not broadcast then, but lays out itself
        return alike
    # Losses of torch have a name here, and curv lines the shapes up; of others, only what they do
    # is known.
    name = getattr(problem.loss, "name", "").lower()
    if name.startswith(("binary_cross_entropy", "bce")):
        return replace(alike, refused=True)
    with torch.no_grad():
        if not name:
            return replace(alike, wide=tuple(wide)) if _crosses(problem, given, which) else alike
        here, batch = mean(problem, [given]), replace(given.batch, target=target.expand(wide))
        spread = replace(_with(given, which, t.expand(wide)), batch=batch)
        return replace(alike, wide=tuple(wide), loss=here, torch=mean(problem, [spread]))


def _crosses(problem: Problem, given: Answers, which: list[bool]) -> bool:
    """Tell whether a loss compares every output with every target: then their order is nothing."""
    rng, t = torch.Generator().manual_seed(0), given.leaves()[which.index(True)]
    output, target = (torch.rand(x.shape, generator=rng).to(x) for x in (t, given.batch.target))
    losses = [
        mean(problem, [replace(_with(given, which, output), batch=replace(given.batch, target=y))])
        for y in (target, target.roll(1, 0))
    ]
    return _same(*losses)
