"""How the gradient lies in the curvature: its Rayleigh quotient, and its share in eigenvectors.

In training the gradient turns into the span of the top eigenvectors [Gur-Ari et al. 2018,
arXiv:1812.04754]. Cost: one gradient and one product.
"""

from typing import NamedTuple

from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem


class Alignment(NamedTuple):
    """The curvature along the gradient, and how far eigenvectors hold the gradient.

    quotient: g^T A g / g^T g
    cosine:   of the angle between the gradient and the line of the first vector
    share:    of g^T g within the span of all the vectors
    """

    quotient: float
    cosine: float
    share: float


def alignment(problem: Problem, A: LinearOperator, vectors: Tensor) -> Alignment | None:
    """Hold the gradient against orthonormal vectors (k, n); None where the gradient is zero."""
    g = problem.gradient().double()
    length = norm(g)
    if length == 0:
        return None
    u = g / length
    quotient = float(u @ A.matvec(u.to(A.like.dtype)).double())
    # One by one: no copy of all the vectors in float64.
    parts = [min(abs(float(y.double() @ u)), 1.0) for y in vectors]
    return Alignment(quotient, parts[0], min(sum(c * c for c in parts), 1.0))
