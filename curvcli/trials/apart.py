"""Whether examples are apart: no output depends on another example, and the loss is their mean."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, select
from curvcli.problem import Problem
from curvcli.trials.answers import Answers, answer, judged, mean

EXAMPLES = 16
"""In one batch, which is enough to tell: half of them stay, the others are replaced."""


@dataclass(frozen=True)
class Leak:
    """How much one example's outputs depend on others, relative to the outputs.

    replaced: largest change when others are replaced, 1 where shapes or infinities change;
    gradient: the derivative by other inputs over the larger of that and the one by an example's
    own, None for inputs that are no floats; `floor` is what rounding can make.
    """

    replaced: float
    gradient: float | None
    floor: float

    @property
    def size(self) -> float:
        """The larger of the two."""
        return max(self.replaced, self.gradient or 0.0)


def few(problem: Problem, rng: torch.Generator, count: int = EXAMPLES) -> Batch:
    """Choose some examples, as one batch."""
    chosen = torch.randperm(problem.examples, generator=rng)[:count].sort().values
    # Where shapes differ from batch to batch, those of one batch.
    return max(select(problem.batches, chosen), key=lambda b: b.size)


def leak(problem: Problem, batch: Batch, rng: torch.Generator) -> Leak | None:
    """Replace half of the examples, and look at the outputs of the other half.

    None where there are no two examples, or no outputs of their own.
    """
    if batch.size < 2:
        return None
    seeded = replace(problem, replay=problem.replay or 0)
    with torch.no_grad():
        before = answer(seeded, batch)
    if not before.leaves():
        return None
    changes = []
    for kept in (0, 1):
        stay = torch.arange(kept, batch.size, 2)
        # Copies of one that stays: an order alone would hide in a mean over the batch.
        order = torch.full((batch.size,), kept).index_copy(0, stay, stay)
        other = replace(select([batch], order)[0], size=batch.size)
        with torch.no_grad():
            after = answer(seeded, other)
        changes += [_gap(a, b, stay) for a, b in
                    zip(before.leaves(), after.leaves(), strict=True)]  # fmt: skip
    dtypes = [torch.finfo(t.dtype).eps for t in before.leaves()]
    return Leak(max(changes), _gradient(seeded, batch, rng), 1e3 * max(dtypes))


def _gap(a: Tensor, b: Tensor, rows: Tensor) -> float:
    if a.shape != b.shape:
        return 1.0
    rows = rows.to(a.device)
    # Minus infinity is what masked outputs are, and less itself no number.
    off = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)[rows]
    if not off.isfinite().all():
        return 1.0
    size = float(a[a.isfinite()].double().square().mean().sqrt())
    return float(off.max()) / max(size, 1e-30)


def _gradient(problem: Problem, batch: Batch, rng: torch.Generator) -> float | None:
    """Differentiate one example's outputs by all inputs: others' over the larger."""
    tensors = [t for t in pytree.tree_leaves(batch.inputs) if isinstance(t, Tensor)]
    inputs = [t for t in tensors if t.is_floating_point() and len(t) == batch.size]
    if not inputs:
        return None
    given: dict[int, Tensor] = {id(t): t.detach().clone().requires_grad_() for t in inputs}
    leaves = list(given.values())
    mine = int(torch.randint(batch.size, (), generator=rng))
    with torch.enable_grad():
        swapped = replace(batch.map(lambda t: given.get(id(t), t)), size=batch.size)
        # A model may work in place on its inputs, which no leaf allows.
        copied = replace(swapped.map(lambda t: t * 1 if t.requires_grad else t), size=batch.size)
        outputs = [t for t in answer(problem, copied).leaves() if t.requires_grad]
        if not outputs:
            return None
        total = torch.stack([(t[mine] * torch.randn(t[mine].shape, generator=rng).to(t)).sum()
                             for t in outputs]).sum()  # fmt: skip
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    known = [g for g in found if g is not None]
    own = max((float(g[mine].abs().max()) for g in known), default=0.0)
    others = torch.arange(batch.size) != mine
    foreign = max((float(g[others.to(g.device)].abs().max()) for g in known), default=0.0)
    return foreign / max(own, foreign) if foreign else 0.0


@dataclass(frozen=True)
class Averaging:
    """The loss of a batch beside the weighted mean over its examples, outputs being the same.

    `eps` is the unit of rounding of the outputs.
    """

    batch: float
    examples: float
    size: int
    eps: float

    @property
    def relative(self) -> float:
        """Their difference relative to the larger."""
        largest = max(abs(self.batch), abs(self.examples), 1e-30)
        return abs(self.batch - self.examples) / largest


def averaging(problem: Problem, batch: Batch) -> Averaging | None:
    """Evaluate the loss on a batch's outputs together and one by one.

    A model that gives the loss itself is evaluated on every example alone.
    """
    if batch.size < 2:
        return None
    rows = list(torch.split(torch.arange(batch.size), 1))
    with torch.no_grad():
        given = answer(problem, batch)
        if any(judged(problem, given)):
            parts = [given.rows(row) for row in rows]
        else:
            parts = [answer(problem, replace(select([batch], r)[0], size=1)) for r in rows]
        eps = max(torch.finfo(t.dtype).eps for t in [problem.like, *given.leaves()])
        return Averaging(mean(problem, [given]), mean(problem, parts), batch.size, eps)


def axes(given: Answers) -> dict[str, int]:
    """Name the axes of the outputs and how long they are: those that a mean could be over."""
    leaf = given.leaves()[0]
    names = ["the examples", *(f"axis {k}" for k in range(1, leaf.ndim))]
    return dict(zip(names, leaf.shape, strict=True))
