"""The whole spectrum of an operator that is small enough to be held as a dense matrix.

Cost: n products and n^2 numbers, and n^3 operations. It is the oracle for all that estimates.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.ritz import Watch

CHUNK = 64
"""Unit vectors that are multiplied at once."""


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of (A + A^T) / 2, in float64 on the CPU.

    values:    (n,), ascending
    vectors:   (n, n), one a row, or None where nobody asked
    asymmetry: ||A - A^T|| / ||A|| (Frobenius), zero for the zero matrix
    radius:    every eigenvalue of a symmetric map of which A is the rounded matrix is so near
    matvecs:   products used, n
    """

    values: Tensor
    vectors: Tensor | None
    asymmetry: float
    radius: float
    matvecs: int


def dense_spectrum(
    A: LinearOperator,
    *,
    vectors: bool = False,
    chunk: int = CHUNK,
    watch: Watch | None = None,
) -> Spectrum | None:
    """Multiply by every unit vector and diagonalise; None where Ctrl-C came before the end.

    Part of a matrix has no spectrum, so that there is nothing to give of what was begun.
    """
    try:
        M = dense_matrix(A, chunk=chunk, watch=watch)
        size = norm(M)
        scaled = M / size if 0 < size < math.inf else M  # squares stay in range
        skew = float((scaled - scaled.T).norm())
        symmetric = (M + M.T) / 2
        if vectors:
            values, Y = torch.linalg.eigh(symmetric)
        else:
            values, Y = torch.linalg.eigvalsh(symmetric), None
    except KeyboardInterrupt:
        return None
    # Products are as far from those of a symmetric matrix as rounding takes them, at least.
    n = A.size
    eps = torch.finfo(A.like.dtype).eps
    rounding = 4 * math.sqrt(max(n, 4)) * eps * norm(values)
    return Spectrum(
        values=values,
        vectors=None if Y is None else Y.T.contiguous(),
        asymmetry=skew,
        radius=max(rounding, size * skew / 2),
        matvecs=n,
    )


def dense_matrix(A: LinearOperator, *, chunk: int = CHUNK, watch: Watch | None = None) -> Tensor:
    """Multiply by every unit vector: (n, n) float64 on the CPU, row i the product with e_i."""
    n = A.size
    M = torch.empty(n, n, dtype=torch.float64)
    for i in range(0, n, chunk):
        E = torch.zeros(min(chunk, n - i), n, dtype=A.like.dtype, device=A.like.device)
        E.diagonal(i).fill_(1)
        M[i : i + chunk] = A.matmat(E).double().cpu()
        if watch:
            watch(i + len(E), n, None, None)
    return M
