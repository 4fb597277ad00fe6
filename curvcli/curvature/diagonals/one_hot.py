"""Diagonal entries of the Hessian by products with unit vectors, in chunks under vmap."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from curvcli.batches import Batch
from curvcli.curvature.diagonals.second import gradients, products
from curvcli.problem import Problem


def one_hot(
    problem: Problem,
    entries: Mapping[str, Tensor],
    chunk: Callable[[Batch, int], int],
    tick: Callable[[int], None] = lambda products: None,
) -> dict[str, Tensor]:
    """Compute flat entries (k,) of parameters by name: one product each, through the whole model.

    `chunk` says how many to take at once in a batch, given the bytes of one direction.
    """
    params = {n: problem.params[n] for n in entries}
    total = {n: torch.zeros(len(e)).to(params[n]) for n, e in entries.items()}
    for batch in problem.batches:
        share = problem.share(batch)
        slopes = gradients(share, tuple(params.values()), create_graph=True)
        for (n, p), g in zip(params.items(), slopes, strict=True):
            if g is None or not g.requires_grad:
                continue
            ready = []
            for which in torch.split(entries[n], chunk(batch, p.numel() * p.element_size())):
                ready.append(_chunk(g, p, which))
                tick(len(which))
            total[n] += torch.cat(ready)
    return total


def _chunk(g: Tensor, p: Tensor, which: Tensor) -> Tensor:
    """Take the diagonal entries (c,) of d g / d p."""
    rows = torch.arange(len(which))
    directions = torch.zeros(len(which), p.numel(), dtype=p.dtype, device=p.device)
    directions[rows, which] = 1.0
    out = products(g, p, directions.view(-1, *p.shape))
    return out.reshape(len(which), -1)[rows, which]
