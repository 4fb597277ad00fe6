"""Products with a curvature matrix against differences of gradients, tensor by tensor.

The Hessian's product along v is held against differences of the gradient at theta +- h v, the
Gauss-Newton product against differences of J^T dl/df with J kept at theta and f at theta +- h v.
All tensors share these: 15 gradients for each direction, whatever the number of tensors.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curvcli.curvature.compat import second_order
from curvcli.curvature.gauss_newton import GaussNewton
from curvcli.curvature.hessian import METHODS, reason
from curvcli.curvature.jacobian import Outputs
from curvcli.curvature.terms import AsLogits
from curvcli.derivatives import derivatives
from curvcli.errors import CurvError
from curvcli.gradients.first import NUDGE, Reach, size_of
from curvcli.gradients.places import Places, choose, padding
from curvcli.gradients.reading import Found, Reading, zeros
from curvcli.linalg.differences import STEPS, Accuracy, Comparison, compare
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.work import Watch, Work

Matrix = Literal["Hessian", "Gauss-Newton"]
Field = Callable[[Tensor], Tensor]
"""From theta (n,) to the vector (n,) whose derivative the matrix is."""


class Products(NamedTuple):
    """What was found of each tensor's block of products, or why there are none."""

    readings: list[Reading]
    notes: Sequence[str] = ()
    refused: str = ""


def second(matrix: Matrix, problem: Problem, reach: Reach, work: Work, watch: Watch) -> Products:
    """Check every tensor's block of products along random directions, or say why that fails."""
    try:
        with problem.engaged(), second_order(problem.model):
            readings, notes = _readings(matrix, problem, reach, work, watch)
            wrong = [r for r in readings if r.verdict == "fail"]
            if wrong:
                # As for first derivatives: what fails here and not nearby is a kink's doing.
                with problem.displaced(_nearby(problem, work.rng)):
                    again, _ = _readings(matrix, problem, reach, work, watch)
                right = {r.tensor for r in again if r.verdict != "fail"}
                readings = [r.doubted() if r.tensor in right else r for r in readings]
    except CurvError as error:
        return Products([], refused=error.message)
    except RuntimeError as error:
        return Products([], refused=reason(error))
    return Products(readings, notes)


def _readings(
    matrix: Matrix, problem: Problem, reach: Reach, work: Work, watch: Watch
) -> tuple[list[Reading], Sequence[str]]:
    operator, field = _posed(matrix, problem, work)
    found: dict[str, list[Found]] = {n: [] for n in problem.names}
    empty: dict[str, int] = {}
    left_out = padding(problem)
    for k in range(reach.directions):
        v = _direction(problem, work.rng)
        claims = problem.layout.named(operator.matvec(v))
        fields = [problem.layout.named(f) for f in _fields(problem, field, v)]
        for name, block in claims.items():
            if not block.numel():
                continue
            blocks = [f[name] for f in fields]
            found[name] += _compared(block, blocks, reach, work.rng, left_out.get(name))
            empty[name] = min(zeros(block), empty.get(name, block.numel()))
        watch(k + 1, reach.directions, None, None)
    shapes = dict(zip(problem.layout.names, problem.layout.shapes, strict=True))
    readings = [Reading(n, shapes[n], tuple(f), empty[n]) for n, f in found.items() if f]
    return readings, getattr(operator, "notes", ())


def _nearby(problem: Problem, rng: torch.Generator) -> dict[str, Tensor]:
    theta = problem.vector() + NUDGE * _direction(problem, rng)
    return problem.layout.named(theta)


def _posed(matrix: Matrix, problem: Problem, work: Work) -> tuple[LinearOperator, Field]:
    if matrix == "Hessian":
        method = "kept" if work.method == "auto" else work.method
        return METHODS[method](problem, work.memory), _gradient(problem)
    return GaussNewton(problem, work.memory), _Frozen(problem)


def _direction(problem: Problem, rng: torch.Generator) -> Tensor:
    """Draw a direction (n,) in which every tensor moves in proportion to its own size."""
    parts = []
    left_out = padding(problem)
    for name, p in problem.params.items():
        d = size_of(p) * torch.randn(p.shape, generator=rng, dtype=torch.float64)
        if name in left_out:
            d.view(-1)[left_out[name]] = 0
        parts.append(d.to(p))
    return problem.layout.flatten(parts)


def _fields(problem: Problem, field: Field, v: Tensor) -> list[Tensor]:
    """Evaluate at theta, then at theta + h v and theta - h v for every step."""
    theta = problem.vector()
    return [field(theta + h * v) for h in (0.0, *STEPS, *(-h for h in STEPS))]


def _gradient(problem: Problem) -> Field:
    def gradient(theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        with problem.displaced(problem.layout.named(theta)):
            for batch in problem.batches:
                total += problem.layout.flatten(problem.gradients(batch))
        return total

    return gradient


class _Frozen:
    """The gradient with J kept at theta: J^T dl/df, where the loss sees the outputs of a theta."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.params = tuple(problem.params.values())
        self.kept = [Outputs(problem, batch) for batch in problem.batches]

    def __call__(self, theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for batch, kept in zip(self.problem.batches, self.kept, strict=True):
            with self.problem.displaced(self.problem.layout.named(theta)):
                moved = Outputs(self.problem, batch)
            with AsLogits():
                share = self.problem.loss(moved.given, batch).total / self.problem.measure.weight
            if share.requires_grad:
                slopes = derivatives([share], moved.leaves)
                total += self.problem.layout.flatten(
                    torch.autograd.grad(
                        kept.tensors, self.params, slopes,
                        retain_graph=True, allow_unused=True, materialize_grads=True,
                    )
                )  # fmt: skip
        return total


def _compared(
    claim: Tensor,
    blocks: Sequence[Tensor],
    reach: Reach,
    rng: torch.Generator,
    without: Tensor | None,
) -> list[Found]:
    """Compare one tensor's block: random projections, sampled entries, and the one most off."""
    places = choose(claim.cpu(), reach.directions, reach.entries, rng, without)
    comparisons = _judged(places, claim, blocks, reach.tolerance)
    found = [
        Found(name.replace("direction", "projection"), i < len(places.dense), c)
        for i, (name, c) in enumerate(zip(places.names, comparisons, strict=True))
    ]
    wrong = [c for c in comparisons if c.verdict == "fail"]
    if wrong:
        s = STEPS.index(min(STEPS, key=lambda h: abs(h - wrong[0].step)))
        numeric = (blocks[1 + s] - blocks[1 + len(STEPS) + s]) / (2 * STEPS[s])
        off = (claim - numeric).abs().reshape(-1)
        if without is not None:
            off[without] = 0
        entry = int(off.argmax())
        one = Places(claim.shape, torch.empty(0, claim.numel(), dtype=torch.float64), (entry,))
        (c,) = _judged(one, claim, blocks, reach.tolerance)
        found.append(Found(one.index(entry), False, c))
    return found


def _judged(
    places: Places, claim: Tensor, blocks: Sequence[Tensor], tolerance: float
) -> list[Comparison]:
    values = torch.stack([places.slopes(b) for b in blocks], 1)  # (k, 1 + 2 s)
    s = len(STEPS)
    # Entries of a gradient are rounded relative to their block, not each to itself.
    size = float(blocks[0].double().norm())
    norms = places.dense.norm(dim=1) * size
    entries = torch.full((len(places.entries),), float(blocks[0].abs().max()), dtype=torch.float64)
    accuracy = Accuracy(tolerance, torch.finfo(claim.dtype).eps, torch.cat([norms, entries]))
    return compare(
        places.slopes(claim), torch.tensor(STEPS, dtype=torch.float64), values[:, 1 : 1 + s],
        values[:, 1 + s :], values[:, 0], accuracy,
    )  # fmt: skip
