"""Second derivatives along directions, batched where torch can."""

from collections.abc import Sequence

import torch
from torch import Tensor

from curvcli.curvature.hessian import reason
from curvcli.errors import CurvError


def gradients(
    share: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Differentiate a scalar; None where it does not depend on an input.

    Raises: CurvError (E_NO_HVP) where torch cannot.
    """
    if not (share.requires_grad and inputs):
        return (None,) * len(inputs)
    try:
        return torch.autograd.grad(share, inputs, create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        raise _refused(error) from error


def products(g: Tensor, at: Tensor, directions: Tensor) -> Tensor:
    """Differentiate g along directions (c, *g.shape): (c, *at.shape)."""
    (out,) = pulled([g], [at], [directions])
    return out


def pulled(
    roots: Sequence[Tensor], at: Sequence[Tensor], directions: Sequence[Tensor]
) -> list[Tensor]:
    """Differentiate roots along several directions each (c, ...), together where torch can.

    Raises: CurvError (E_NO_HVP) where torch cannot.
    """
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    count = len(directions[0])
    if count > 1:
        try:
            found = torch.autograd.grad(roots, at, directions, is_grads_batched=True, **options)
            # What does not depend on a root is made zero without the batch's axis.
            return [f.detach().expand(count, *t.shape) for f, t in zip(found, at, strict=True)]
        except RuntimeError:  # an operation without a batching rule
            pass
    try:
        rows = [
            torch.autograd.grad(roots, at, row, **options) for row in zip(*directions, strict=True)
        ]
    except RuntimeError as error:
        raise _refused(error) from error
    return [torch.stack(column).detach() for column in zip(*rows, strict=True)]


def _refused(error: RuntimeError) -> CurvError:
    said = f"this model's gradient cannot be differentiated: {reason(error)}"
    return CurvError("E_NO_HVP", said, "use --method hutchinson")
