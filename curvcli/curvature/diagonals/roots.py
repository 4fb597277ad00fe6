"""A square root of the loss's second derivative by the outputs, column by column.

Examples do not mix in it: one column here has a column of every example's own root, S_n with
M_n = S_n diag(signs) S_n^T, laid out as a cotangent of all outputs. For softmax and cross-entropy
they are sqrt(p_k) (e_k - p), one for every class k, whose squares add up to diag(p) - p p^T; for
other losses they come from the eigenvectors of M_n. The scores of the data's labels are columns
likewise, of the empirical Fisher matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.curvature.diagonals.families import Family, Itself, Softmax, Vector
from curvcli.curvature.diagonals.second import gradients, pulled
from curvcli.curvature.jacobian import Jacobian, Outputs
from curvcli.curvature.terms import AsLogits, Terms, terms_of
from curvcli.errors import CurvError
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

LARGEST = 1 << 27
"""Entries of all examples' output Hessians up to which they are held whole: 1 GB in float64."""


@dataclass(frozen=True)
class Columns:
    """Columns that are made when they are asked for.

    count: how many an example has
    make:  from the numbers of some (k,) to cotangents of the outputs (k, *leaf), and signs (k, N)
    """

    count: int
    make: Callable[[Tensor], tuple[list[Tensor], Tensor]]

    def chunks(self, step: int) -> Iterator[Tensor]:
        """Cut the numbers of all columns into pieces."""
        return (torch.arange(i, min(i + step, self.count)) for i in range(0, self.count, step))


Root = Callable[[Problem, Batch, Outputs, int], Columns]
"""Makes the columns of a batch's outputs, for so many examples: 1 where they are not told apart."""


def gauss_newton(problem: Problem, batch: Batch, outputs: Outputs, examples: int) -> Columns:
    """Give a root of the output Hessian.

    Raises: CurvError (E_LOSS) for a loss whose Hessian mixes examples or is too large, (E_NO_HVP)
        for one without a second derivative.
    """
    terms = terms_of(problem, batch, outputs)
    known = terms is not None and all(t.kind in ROOTS for t in terms)
    # Where the terms' arguments bend too, their own Hessians are not all there is.
    if terms is not None and known and _straight(terms, outputs):
        made = [Family.of(t, examples, t.weights, *ROOTS[t.kind](t)) for t in terms]
        found = _joined(made, outputs, examples)
        if found is not None:
            return found
    return _by_eigenvectors(problem, batch, outputs, examples)


def scores(problem: Problem, batch: Batch, outputs: Outputs, examples: int) -> Columns:
    """Give the scores of the data's labels, each times the root of its term's weight in L.

    Raises: CurvError (E_LOSS) for a loss that is no weighted sum of torch's terms.
    """
    terms = terms_of(problem, batch, outputs)
    found = None
    if terms is not None:
        made = [Family.of(t, examples, t.by_slopes, _score(t), Itself()) for t in terms]
        found = _joined(made, outputs, examples)
    if found is None:
        raise CurvError(
            "E_LOSS",
            "the scores of single terms need a loss that is a weighted sum of terms of "
            "torch.nn.functional's",
            "name the loss, as in loss: cross_entropy, or use --method ggn",
        )
    return found


def _straight(terms: list[Terms], outputs: Outputs) -> bool:
    return not terms or Jacobian([t.x for t in terms], outputs.leaves).constant()


def _score(terms: Terms) -> Tensor:
    x = terms.x.detach().requires_grad_()
    (s,) = torch.autograd.grad(terms.values_at(x).sum(), x)
    return s


ROOTS: dict[Any, Callable[[Terms], tuple[Tensor, Vector]]] = {
    functional.cross_entropy: lambda t: (t.x.detach().softmax(t.axis or 0), Softmax()),
    functional.binary_cross_entropy_with_logits: lambda t: (
        (t.x.detach().sigmoid() * (-t.x.detach()).sigmoid()).sqrt(), Itself()
    ),
    functional.mse_loss: lambda t: (torch.full_like(t.x.detach(), 2.0).sqrt(), Itself()),
}  # fmt: skip
"""What the columns of a term of mass 1 are made of, and how."""


def _joined(families: list[Family], outputs: Outputs, examples: int) -> Columns | None:
    """Put the columns of several calls together; None where their rows mix examples."""
    leaves = outputs.leaves
    whole = all(f.known.numel() for f in families)
    if not whole or (examples > 1 and any(t.ndim == 0 or len(t) != examples for t in leaves)):
        return None

    def pull(z: list[Tensor]) -> list[Tensor]:
        return pulled([f.terms.x for f in families], leaves, z) if z else []

    def make(which: Tensor) -> tuple[list[Tensor], Tensor]:
        found, start = [], 0
        signs = leaves[0].new_zeros(len(which), examples) if leaves else torch.zeros(0)
        for family in families:
            own = (which >= start) & (which < start + family.count)
            z = family.known.new_zeros(len(which), *family.terms.x.shape)
            if own.any():
                z[own], signs[own] = family.make(which[own] - start)
            found.append(z)
            start += family.count
        return pull(found), signs

    some = torch.arange(examples) < (examples + 1) // 2
    ones = [f.laid(some.view(1, -1, 1, 1).to(f.known).expand(1, *f.known.shape)) for f in families]
    if any(t[0, ~some].any() for t in pull(ones) if examples > 1):
        return None
    return Columns(sum(f.count for f in families), make)


def _by_eigenvectors(problem: Problem, batch: Batch, outputs: Outputs, examples: int) -> Columns:
    """Take the root of every example's whole Hessian by its outputs."""
    with AsLogits():
        share = problem.loss(outputs.given, batch).total / problem.measure.weight
    slopes = gradients(share, outputs.leaves, create_graph=True)
    bent = {i: g for i, g in enumerate(slopes) if g is not None and g.requires_grad}
    leaves = [outputs.leaves[i] for i in bent]
    if not bent:
        return _nothing(outputs, problem.like, examples)
    H = _hessians([*bent.values()], leaves, examples)
    values, vectors = torch.linalg.eigh(H)
    order = values.abs().argsort(dim=1, descending=True)
    values = values.gather(1, order)
    S = vectors.gather(2, order[:, None].expand_as(vectors)) * values.abs().sqrt()[:, None]
    floor = torch.finfo(outputs.leaves[0].dtype).eps * values.abs().amax()
    count = int((values.abs() > floor).sum(dim=1).max())

    def make(which: Tensor) -> tuple[list[Tensor], Tensor]:
        columns = S[:, :, which].permute(2, 0, 1)  # (k, N, K)
        parts = iter(torch.split(columns, [t.numel() // examples for t in leaves], dim=2))
        found = [
            next(parts).to(t.dtype).reshape(-1, *t.shape)
            if i in bent
            else t.new_zeros(len(which), *t.shape)
            for i, t in enumerate(outputs.leaves)
        ]
        return found, values[:, which].sign().T.to(outputs.leaves[0].dtype)

    return Columns(count, make)


def _nothing(outputs: Outputs, like: Tensor, examples: int) -> Columns:
    """Give the root of zero: the loss is linear in the outputs, or does not depend on them."""

    def make(which: Tensor) -> tuple[list[Tensor], Tensor]:
        zeros = [t.new_zeros(len(which), *t.shape) for t in outputs.leaves]
        return zeros, like.new_zeros(len(which), examples)

    return Columns(0, make)


def _hessians(slopes: list[Tensor], leaves: list[Tensor], examples: int) -> Tensor:
    """Multiply by every output in turn, of all examples at once: (N, K, K)."""
    sizes = [t.numel() // examples for t in leaves]
    K = sum(sizes)
    if examples * K * K > LARGEST or any(t.numel() % examples for t in leaves):
        raise CurvError(
            "E_LOSS",
            f"the second derivative of this loss by {K:,} outputs of every example is too large",
            "use a loss of torch's own, or --method hutchinson",
        )
    H = torch.zeros(examples, K, K, dtype=torch.float64, device=leaves[0].device if K else None)
    one = torch.eye(K, dtype=torch.float64, device=H.device)[:, None].expand(K, examples, K)
    start = 0
    for chunk in torch.split(one, max(1, LARGEST // (8 * max(examples * K, 1)))):
        parts = torch.split(chunk, sizes, dim=2)
        along = [p.to(t.dtype).reshape(-1, *t.shape) for p, t in zip(parts, leaves, strict=True)]
        rows = pulled(slopes, leaves, along)
        columns = [r.reshape(len(chunk), examples, -1) for r in rows]
        H[:, start : start + len(chunk)] = torch.cat(columns, dim=2).transpose(0, 1)
        start += len(chunk)
    if examples > 1 and K and _mixes(slopes, leaves, examples):
        message = "this loss compares examples with each other: its second derivative mixes them"
        raise CurvError("E_LOSS", message, "use --method hutchinson")
    return (H + H.mT) / 2


def _mixes(slopes: list[Tensor], leaves: list[Tensor], examples: int) -> bool:
    """Tell whether a product along the outputs of half the examples reaches others."""
    if any(len(t) != examples for t in leaves):
        return True
    first = torch.arange(examples) < (examples + 1) // 2
    rng, along = torch.Generator().manual_seed(0), []
    for t in leaves:
        z = normal(t, rng).unsqueeze(0)
        z[0, ~first] = 0
        along.append(z)
    return any(bool(t[0, ~first].any()) for t in pulled(slopes, leaves, along))
