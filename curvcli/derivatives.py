"""First derivatives by reverse mode, also of what only knows .grad."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def derivatives(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Differentiate outputs jointly by leaves, weighted by cotangents; zeros where unused."""
    found = optional_derivatives(outputs, leaves, cotangents, create_graph)
    dense = (g.to_dense() if g is not None and g.is_sparse else g for g in found)
    return tuple(
        torch.zeros_like(t) if g is None else g for g, t in zip(dense, leaves, strict=True)
    )


def optional_derivatives(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Differentiate; None where a leaf is unused."""
    if create_graph or not _reentrant(outputs):
        return torch.autograd.grad(
            outputs, leaves, cotangents, create_graph=create_graph, allow_unused=True
        )
    saved = [t.grad for t in leaves]
    try:
        for t in leaves:
            t.grad = None
        torch.autograd.backward(outputs, cotangents)
        return tuple(t.grad for t in leaves)
    finally:
        for t, grad in zip(leaves, saved, strict=True):
            t.grad = grad


def _reentrant(outputs: Sequence[Tensor]) -> bool:
    """Look for reentrant checkpoints: they run a backward of their own, which only knows .grad."""
    ahead: list[Any] = [t.grad_fn for t in outputs]
    seen: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            if node.name() == "CheckpointFunctionBackward":
                return True
            seen.add(node)
            ahead.extend(before for before, _ in node.next_functions)
    return False
