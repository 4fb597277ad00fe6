"""A trace from random probes until its standard error is small enough, whatever the probes are.

A method spends products on samples; here they are judged and stopped. Where the budget reaches n,
n products with unit vectors give the trace exactly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from curvcli.linalg.entries import one_by_one
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.probing import FLOOR, Estimate, Method
from curvcli.linalg.ritz import Watch

LEAST = 12
"""Probes before an error is trusted to end the search."""


def search(
    method: Callable[[Counted, torch.Generator, Sequence[slice]], Method],
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    max_matvecs: int,
    blocks: Sequence[slice] | None,
    watch: Watch | None,
) -> Estimate:
    """Take steps until the deviation is small enough, or the products are used up."""
    counted, within = Counted(A), blocks or [slice(0, A.size)]
    if max_matvecs >= A.size:
        return one_by_one(counted, rng, within, watch)
    ways = method(counted, rng, within)
    found = _judged(ways, last=False)
    try:
        while ways.step(max_matvecs - counted.matvecs):
            found = _judged(ways, last=False)
            if watch:
                watch(counted.matvecs, max_matvecs, found.mean, found.stderr)
            if found.probes >= LEAST and found.bound <= tolerance * found.scale:
                found = replace(_judged(ways, last=True), status="converged")
                break
        else:
            found = _judged(ways, last=True)
    except KeyboardInterrupt:
        found = replace(found, status="interrupted")
    return replace(found, matvecs=counted.matvecs)


def _judged(ways: Method, *, last: bool) -> Estimate:
    """Put what is known together."""
    known = ways.known(last=last)
    mean, stderr = known.whole
    parts = max(sum(abs(m) for m, _ in known.blocks), ways.frobenius)
    if parts > 0:  # products are not more exact than their rounding
        stderr = math.hypot(stderr, torch.finfo(ways.A.like.dtype).eps * parts)
    return Estimate(
        mean=mean,
        stderr=stderr,
        freedom=known.freedom,
        blocks=known.blocks,
        scale=max(abs(mean), FLOOR * parts),
        parts=parts,
        matvecs=ways.A.matvecs,
        probes=known.probes,
        sketches=ways.sketches,
        status="max_matvecs",
    )
