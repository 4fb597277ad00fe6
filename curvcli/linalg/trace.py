"""The trace of a symmetric operator from random probes, with a standard error that can be trusted.

Hutchinson 1990, doi:10.1080/03610919008812866; Hutch++ [Meyer, Musco, Musco and Woodruff 2021,
doi:10.1137/1.9781611976496.16]; XTrace [Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323].
Cost: Hutchinson takes a product a probe, Hutch++ two a sketch and one a probe, XTrace two a probe.
Where the budget reaches n, n products with unit vectors give the trace exactly.
"""

from collections.abc import Sequence

import torch

from curvcli.linalg.hutchpp import HELD, HutchPP
from curvcli.linalg.operator import Counted, LinearOperator, rademacher
from curvcli.linalg.probing import CHUNK, Estimate, Known, Method, drawn
from curvcli.linalg.ritz import Watch
from curvcli.linalg.scatter import Scatter, gathered
from curvcli.linalg.search import search
from curvcli.linalg.xtrace import XTrace


def hutchinson(
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    *,
    max_matvecs: int = 300,
    blocks: Sequence[slice] | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """Average z . A z over vectors of independent signs, until the relative error is `tolerance`.

    `blocks` partition the space; each gets its own trace from the same products.
    """
    return search(Hutchinson, A, tolerance, rng, max_matvecs, blocks, watch)


def hutchpp(
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    *,
    max_matvecs: int = 300,
    blocks: Sequence[slice] | None = None,
    watch: Watch | None = None,
    vectors: int | None = None,
) -> Estimate:
    """Take the range of a sketch out exactly, and estimate what remains as Hutchinson does.

    As many sketches as probes, at two products each, are added as long as they promise to lower
    the remainder's variance by more than the probes that they cost would [after Persson,
    Cortinovis and Kressner 2022, doi:10.1137/21M1447623]: a flat spectrum is left to the probes
    alone. What has been multiplied once serves every later remainder. `vectors` limits how many are
    held.
    """
    room = HELD * max_matvecs if vectors is None else vectors

    def method(A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> HutchPP:
        return HutchPP(A, rng, blocks, room)

    return search(method, A, tolerance, rng, max_matvecs, blocks, watch)


def xtrace(
    A: LinearOperator,
    tolerance: float,
    rng: torch.Generator,
    *,
    max_matvecs: int = 300,
    blocks: Sequence[slice] | None = None,
    watch: Watch | None = None,
) -> Estimate:
    """Let every probe be judged by the range of all others, and average.

    The whole only: `blocks` get Hutchinson's estimates from half of the products, with errors as
    large as those are, and need not sum to the whole.
    """
    return search(XTrace, A, tolerance, rng, max_matvecs, blocks, watch)


class Hutchinson(Method):
    """Every probe is a sample of the trace."""

    def __init__(self, A: Counted, rng: torch.Generator, blocks: Sequence[slice]) -> None:
        super().__init__(A, rng, blocks)
        self.scatter = Scatter(blocks)

    def step(self, matvecs: int) -> bool:
        """Multiply vectors of independent signs."""
        if matvecs < 1:
            return False
        Z = drawn(rademacher, min(CHUNK, matvecs), self.A.like, self.rng)
        Y = self.A.matmat(Z)
        self.squares += [float(y.double().square().sum()) for y in Y]
        self.scatter.add(Z, Y)
        return True

    def known(self, *, last: bool) -> Known:
        """Average z . A z, block by block."""
        return gathered(self.scatter)
