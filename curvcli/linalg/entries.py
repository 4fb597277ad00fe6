"""A trace from the entries of the diagonal, one product each, in random order.

All of them make it exact. Cut short, those seen are a sample drawn without replacement.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from curvcli.linalg.operator import Counted
from curvcli.linalg.probing import CHUNK, FLOOR, Estimate, Spread, Status, spreads
from curvcli.linalg.ritz import Watch


def one_by_one(
    A: Counted, rng: torch.Generator, blocks: Sequence[slice], watch: Watch | None
) -> Estimate:
    """Take every entry of the diagonal by a product with its unit vector."""
    n = A.size
    status: Status = "converged"
    order = torch.randperm(n, generator=rng, device=rng.device).tolist()
    entries = torch.full((n,), torch.nan, dtype=torch.float64)
    square = 0.0
    try:
        for begin in range(0, n, CHUNK):
            chosen = order[begin : begin + CHUNK]
            E = torch.zeros(len(chosen), n, dtype=A.like.dtype, device=A.like.device)
            E[range(len(chosen)), chosen] = 1
            columns = A.matmat(E).double()  # (CHUNK, n)
            square += float(columns.square().sum())
            entries[chosen] = columns[range(len(chosen)), chosen].cpu()
            if watch:
                watch(begin + len(chosen), n, *total(entries))
    except KeyboardInterrupt:
        status = "interrupted"
    mean, stderr = total(entries)
    within = tuple(total(entries[s]) for s in blocks)
    seen = int((~entries.isnan()).sum())
    frobenius = math.sqrt(square * n / max(seen, 1))
    parts = max(sum(abs(m) for m, _ in within), frobenius)
    return Estimate(
        mean=mean,
        stderr=stderr,
        freedom=max(seen - 1, 0),
        blocks=within,
        scale=max(abs(mean), FLOOR * parts),
        parts=parts,
        matvecs=A.matvecs,
        probes=seen,
        sketches=0,
        status=status,
        by_entries=True,
    )


def total(entries: Tensor) -> Spread:
    """Estimate the sum of entries (m,) of which those not seen are nan."""
    seen, m = entries[~entries.isnan()], len(entries)
    if len(seen) == m:
        return float(seen.sum()), 0.0
    ((mean, stderr),) = spreads(seen.unsqueeze(1))
    # Drawn without replacement, so that the error goes to zero as the last are seen.
    return m * mean, m * stderr * math.sqrt(1 - len(seen) / m)
