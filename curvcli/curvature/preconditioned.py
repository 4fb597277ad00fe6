"""The curvature that an optimizer's step meets: preconditioned, with its weight decay.

Cohen et al. 2022, arXiv:2207.14484: an adaptive method is stable by the eigenvalues of
P^-1/2 H P^-1/2, not by those of H. Cost: one product of the inner operator.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from curvcli.dynamics.laws import Stepped, reference
from curvcli.linalg.operator import LinearOperator
from curvcli.params import Layout


class Preconditioned(LinearOperator):
    """The map factor S A S + diag(shift) with S = diag(scale)."""

    def __init__(
        self, inner: LinearOperator, scale: Tensor, shift: Tensor, factor: float = 1.0
    ) -> None:
        self.inner = inner
        self.like = inner.like
        self.scale = scale  # (n,)
        self.shift = shift  # (n,)
        self.factor = factor

    def matvec(self, v: Tensor) -> Tensor:
        """Multiply."""
        return self.factor * self.scale * self.inner.matvec(self.scale * v) + self.shift * v


def preconditioned(
    hessian: LinearOperator, layout: Layout, found: Mapping[str, Stepped], summed: float = 1.0
) -> Preconditioned:
    """Build the matrix whose largest eigenvalue decides, held against 2 / reference(found).scale.

    That is P^-1/2 (H + coupled decay) P^-1/2, with every law's scale relative to the reference, and
    with decoupled decay over the reference's scale on the diagonal. `summed` multiplies H: how many
    means of the loss a gradient of the trainer's is the sum of.
    """
    strongest = reference(found)
    scales, shifts = [], []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        step = found[name]
        # Where every learning rate is zero, the matrix is that of equal ones.
        relative = step.law.scale / strongest.scale if strongest.scale else 1.0
        decay = step.law.decay / strongest.scale if strongest.scale else 0.0
        inverse = torch.full(shape, relative, dtype=torch.float64)
        if step.preconditioner is not None:
            inverse = inverse / step.preconditioner.cpu()
        scales.append(inverse.sqrt())
        shifts.append(step.law.coupled * inverse + decay)
    like = hessian.like
    scale, shift = (
        layout.flatten(part).to(dtype=like.dtype, device=like.device) for part in (scales, shifts)
    )
    return Preconditioned(hessian, scale, shift, strongest.sign * summed)
