"""The certificate of approximate eigenpairs: what the recurrence knows, and one true product."""

from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.krylov import Krylov
from curvcli.linalg.ritz import Ritz, Status, radii, small


def certified(
    K: Krylov, theta: Tensor, S: Tensor, doubt: float, status: Status, tolerance: float
) -> Ritz:
    """Put pairs (k,), (m, k) together with their certificates; the first takes one true product.

    What the recurrence does not explain of that is rounding, in the products or in the basis, or a
    product that is not of a symmetric map. It counts for every pair, and where it makes a residual
    too large, the answer is `inexact` however well the recurrence converged.
    """
    A = K.A
    residuals, vectors, rounding = K.residuals(S), K.vectors(S), K.rounding
    if status != "interrupted" and len(theta):
        product, y = A.matvec(vectors[0]).double(), vectors[0].double()
        rounding = max(rounding, norm(product - theta[0] * y) - float(residuals[0]))
    residuals = residuals + rounding
    done = status in ("converged", "unverified")
    floor = 4 * K.rounding  # an eigenvalue of zero has no relative residual
    if done and not small((residuals - floor).clamp_min(0), theta, K.norm, tolerance):
        status = "inexact"
    return Ritz(
        values=theta,
        vectors=vectors,
        residuals=residuals,
        radius=radii(theta, residuals),
        doubt=doubt,
        matvecs=A.matvecs,
        status=status,
    )
