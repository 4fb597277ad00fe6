"""Extreme eigenpairs by Lanczos with full reorthogonalisation, run until they have converged.

Lanczos 1950; Parlett 1998, chapter 13; thick restart [Wu and Simon 2000,
doi:10.1137/S0895479898334605; Stathopoulos, Saad and Wu 1998, doi:10.1137/S1064827596304162]. Cost:
one product a step; memory: one vector a step, or `max_vectors`. The answer is verified by a run
from an independent random vector in its complement (missed.py), which goes into it if it finds any
more: single vectors see one copy of a repeated eigenvalue.
"""

from dataclasses import replace

import torch

from curvcli.linalg.certificate import certified
from curvcli.linalg.eigensearch import Outcome, Search
from curvcli.linalg.krylov import Krylov
from curvcli.linalg.operator import Counted, LinearOperator
from curvcli.linalg.ritz import Ritz, Status, Watch, Which


def least_vectors(size: int, top: int, which: Which = "largest", block: int = 1) -> int:
    """Say how many vectors of R^size `lanczos` needs at least.

    The wanted pairs, one more that carries on what has been learnt, and a step's block twice.
    """
    pairs = min(size, top * (2 if which == "both" else 1))
    return min(size, pairs + 1 + 2 * block)


def lanczos(
    A: LinearOperator,
    top: int,
    tolerance: float,
    rng: torch.Generator,
    *,
    which: Which = "largest",
    max_matvecs: int = 1000,
    max_vectors: int | None = None,
    block: int = 1,
    watch: Watch | None = None,
) -> Ritz:
    """Find extreme eigenpairs to a relative residual of `tolerance`.

    A residual is held against the eigenvalue's own size, or FLOOR times the norm where that is
    more. `which="both"` gives `top` from either end. Ctrl-C ends it with what is known.

    max_vectors: how many vectors may be alive while it works, those of the basis and those to go on
                 with; a step takes the memory of 3 * block + 8 more, the answer that of its own
    block:       how many products are taken at once, from as many random starts: eigenvalues
                 repeated so often are seen from the start, and an operator may be faster at several

    Raises: ValueError where `max_vectors` is less than `least_vectors`, or `block` less than 1.
    """
    least = least_vectors(A.size, top, which, block)
    if block < 1:
        raise ValueError(f"a block has at least one vector, not {block}")
    if max_vectors is not None and max_vectors < least:
        raise ValueError(
            f"{max_vectors} vectors are too few for {top} eigenpairs ({which}) by blocks of "
            f"{block}: at least {least} are needed"
        )
    K = Krylov(Counted(A), max_vectors)
    search = Search(K, min(top, A.size), which, tolerance, max_matvecs - 1, rng, block, watch)
    status: Status = "max_matvecs"
    try:
        outcome: Outcome = "found"
        while outcome == "found" and search.converge():
            outcome = search.verify()
        if outcome == "nothing":
            status = "converged"
        elif search.fulfilled(search.size):
            status = "unverified"
    except KeyboardInterrupt:
        status = "interrupted"
    short_of = "nothing" if status in ("converged", "interrupted") else search.short_of
    ritz = certified(K, *search.pairs(search.size), search.doubt, status, tolerance)
    return replace(ritz, restarts=search.restarts, short_of=short_of)
