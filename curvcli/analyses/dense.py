"""A small curvature matrix formed whole in float64: where that is affordable, and how it is done.

Cost: n products in float64.
"""

from typing import TYPE_CHECKING

from curvcli.errors import CurvError

if TYPE_CHECKING:
    from torch import Tensor

    from curvcli.curvature.matrices import Matrix
    from curvcli.problem import Problem
    from curvcli.work import Work

SIZE = 1000
"""Parameters up to which the dense spectrum comes unasked, where its products are cheap, too."""

CHEAP = 3e8
"""Products times examples times parameters up to which that is: under a second on one core.

A count and no time, so that the same inputs give the same answer.
"""

CALL = 5e5
"""What calling one batch's product costs besides, in the same unit."""

COPIES = 4
"""Matrices held at a time: as formed, symmetric, and LAPACK's own."""


def affordable(problem: "Problem", work: "Work") -> bool:
    """Tell whether the dense spectrum costs so little that nobody need ask for it."""
    n = problem.layout.size
    cheap = n <= SIZE and n * (n * problem.examples + CALL * len(problem.batches)) <= CHEAP
    return cheap and _reason(problem, work) is None


def refuse_dense(problem: "Problem", work: "Work") -> None:
    """Raise CurvError (E_MEMORY, E_USAGE) where the dense float64 spectrum cannot be had."""
    reason = _reason(problem, work)
    if reason is not None:
        raise reason


def _reason(problem: "Problem", work: "Work") -> CurvError | None:
    import torch

    from curvcli.curvature.memory import spare

    n = problem.layout.size
    if problem.like.device.type == "mps":
        message = "there is no float64 on mps, and no dense oracle without it"
        return CurvError("E_USAGE", message, "use --device cpu, or no --dense-below")
    room = spare(torch.device("cpu")) if work.memory is None else work.memory
    if COPIES * 8 * n * n <= room:
        return None
    return CurvError(
        "E_MEMORY",
        f"the dense float64 matrix of {n:,} parameters and its eigenvalues need "
        f"{COPIES * 8 * n * n / 1e9:.2g} GB, more than {room / 1e9:.2g} GB",
        "raise --memory, or lower --dense-below",
    )


def dense_matrix(name: "Matrix", problem: "Problem", work: "Work", label_samples: int) -> "Tensor":
    """Form the matrix by products: (n, n) float64, on the CPU.

    `work.rng` is as it was when the estimator's operator was built: the labels drawn are the same.
    """
    import torch

    from curvcli.curvature.matrices import matrix
    from curvcli.curvature.plan import planned
    from curvcli.linalg import dense

    chosen = matrix(name, problem.to(torch.float64), work, label_samples)
    n, besides = problem.layout.size, " in float64, for the dense matrix"
    A = planned(chosen.operator, work, n, besides=besides)
    return dense.dense_matrix(A, watch=work.announce("dense float64 matrix"))
