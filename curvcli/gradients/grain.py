"""How coarsely a loss is rounded: as what it is computed from, which may be larger than it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from curvcli.curvature.jacobian import Outputs
from curvcli.curvature.terms import terms_of
from curvcli.errors import CurvError
from curvcli.problem import Problem

FROM_ONE = (functional.cross_entropy, functional.nll_loss)
"""Terms log(1 + e) that are rounded as 1 is, however small they are."""


def grain(problem: Problem) -> float:
    """Give the size that the rounding of L is relative to: a loss of 1e-9 may be rounded as 1 is.

    Each output f adds |f dL/df|, the rounding of f as L sees it.
    """
    total = 0.0
    for batch in problem.batches if problem.penalty is None else ():
        outputs = Outputs(problem, batch)
        share = problem.loss(outputs.given, batch).total / problem.measure.weight
        if not (share.requires_grad and outputs.leaves):
            continue
        slopes = torch.autograd.grad(share, outputs.leaves, allow_unused=True)
        pairs = zip(slopes, outputs.leaves, strict=True)
        total += sum(
            float((g * f.detach()).abs().double().sum()) for g, f in pairs if g is not None
        )
        try:
            terms = terms_of(problem, batch, outputs) or []
        except CurvError:
            terms = []  # the model gives its loss itself
        total += sum(float(t.weights.abs().sum()) for t in terms if t.kind in FROM_ONE)
    return total


def coarsest(outputs: Sequence[Tensor]) -> torch.dtype:
    """Find the coarsest type on the way to some outputs: a part may be computed in bfloat16."""
    found = max((t.dtype for t in outputs), key=lambda t: torch.finfo(t).eps)
    ahead: list[Any] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead.extend(before for before, _ in node.next_functions)
        # Nodes of compiled scripts tell no types; casts are what makes anything coarser.
        if node.name() == "ToCopyBackward0":
            types = [m.dtype for m in node._input_metadata if m.dtype.is_floating_point]
            found = max([found, *types], key=lambda t: torch.finfo(t).eps)
    return found
