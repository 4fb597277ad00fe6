"""Fisher matrices sum_i w_i J_i^T E[s_i s_i^T] J_i, with s_i the score of a term of the loss.

A term is what L averages: an example, a token, or an entry of the output where the loss goes by
entry (then entries of one example have no cross terms). Its score is the derivative of l_i, a
negative log likelihood, by its outputs, at a label drawn from the model's own prediction (Fisher)
or at the data's (empirical Fisher); w_i is its weight in L. Over the draws the mean is exactly the
Gauss-Newton matrix (Martens 2020, jmlr.org/papers/v21/17-678). A product costs as much as one with
that: scores stand only in s (s . J v), and never as a matrix of n by terms.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from curvcli.batches import Batch
from curvcli.curvature.gauss_newton import through
from curvcli.curvature.jacobian import Jacobian, Map, Outputs, Pullback
from curvcli.curvature.terms import Terms, terms_of
from curvcli.errors import CurvError
from curvcli.problem import Problem


class Fisher(Pullback):
    """The Fisher matrix, estimated from `samples` labels per term that the model itself draws.

    The labels are drawn once, in the order of the data: it is one fixed matrix, and the same for
    other batches. The predictions are the softmax for cross_entropy and nll_loss, the sigmoid for
    binary_cross_entropy_with_logits, and for mse_loss a normal distribution of variance 1/2 around
    each entry, whose negative log likelihood is the squared error and a constant.

    Raises: CurvError (E_LOSS) for a loss that is no weighted sum of these.
    """

    def __init__(
        self, problem: Problem, rng: torch.Generator, samples: int = 1, memory: float | None = None
    ) -> None:
        self.labels: list[list[Tensor]] = []  # of a batch's terms: (*terms, samples)
        with problem.engaged():
            for batch in problem.batches:
                terms = _terms(problem, batch, Outputs(problem, batch), sampled=True)
                self.labels.append([_draw(t, samples, rng) for t in terms])
        super().__init__(problem, memory)

    def form(self, index: int, batch: Batch, outputs: Outputs) -> tuple[list[int], Map]:
        """Give the mean of s s^T over the labels drawn for this batch."""
        terms = _terms(self.problem, batch, outputs, sampled=True)
        pairs = zip(terms, self.labels[index], strict=True)
        A = Jacobian([t.x for t in terms], outputs.leaves)
        return A.live, through(A, [partial(PREDICTIONS[t.kind].product, t, y) for t, y in pairs])


class EmpiricalFisher(Pullback):
    """The Fisher matrix with the data's labels, sum_i w_i g_i g_i^T with g_i the gradient of l_i.

    Raises: CurvError (E_LOSS) for a loss that is no weighted sum of terms that torch computes.
    """

    def form(self, index: int, batch: Batch, outputs: Outputs) -> tuple[list[int], Map]:
        """Give s s^T."""
        terms = _terms(self.problem, batch, outputs, sampled=False)
        A = Jacobian([t.x for t in terms], outputs.leaves)
        return A.live, through(A, [partial(_given, t, t.by_slopes) for t in terms])


def _terms(problem: Problem, batch: Batch, outputs: Outputs, sampled: bool) -> list[Terms]:
    """Take the loss apart into terms that have a score."""
    terms = terms_of(problem, batch, outputs)
    if terms is None:
        raise CurvError(
            "E_LOSS",
            "a Fisher matrix needs a loss that is a weighted sum of terms of torch.nn.functional's",
            "name the loss, as in loss: cross_entropy, or use the Gauss-Newton matrix",
        )
    for t in terms:
        if sampled and t.kind not in PREDICTIONS:
            known = ", ".join(f.__name__ for f in PREDICTIONS)
            raise CurvError(
                "E_LOSS",
                f"{t.kind.__name__} predicts no labels that could be drawn",
                f"the losses that do are {known} and nll_loss of log-probabilities",
            )
    return terms


def _draw(terms: Terms, samples: int, rng: torch.Generator) -> Tensor:
    """Draw labels (*terms, samples)."""
    # A uniform number for each, since a stream of those is the same however it is cut.
    shape = (*terms.values.shape, samples)
    u = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
    return PREDICTIONS[terms.kind].draw(terms, u.to(terms.x.device))


def _given(terms: Terms, weights: Tensor, t: Tensor) -> Tensor:
    """Multiply by w s s^T with the scores at the data's labels."""
    x = terms.x.detach().requires_grad_()
    (s,) = torch.autograd.grad(terms.values_at(x).sum(), x)
    along = s * t if terms.axis is None else (s * t).sum(terms.axis, keepdim=True)
    return terms.beside(weights) * s * along


class Prediction(NamedTuple):
    """How labels come from uniform numbers, and the product with w s s^T, its mean over labels."""

    draw: Callable[[Terms, Tensor], Tensor]
    product: Callable[[Terms, Tensor, Tensor], Tensor]


def _draw_classes(terms: Terms, u: Tensor) -> Tensor:
    axis, x = terms.axis or 0, terms.x.detach()
    dtype = torch.promote_types(x.dtype, torch.float32)
    below = x.softmax(axis, dtype=dtype).movedim(axis, -1).cumsum(-1).contiguous()
    drawn = torch.searchsorted(below, (u * below[..., -1:]).to(dtype), right=True)
    return drawn.clamp(max=below.shape[-1] - 1)


def _classes(terms: Terms, labels: Tensor, t: Tensor) -> Tensor:
    # The score of logits is p - e_y: all samples together cost little more than one.
    axis, p = terms.axis or 0, terms.x.detach().softmax(terms.axis or 0)
    y = labels.movedim(-1, axis)  # samples in the place of classes
    along = (p * t).sum(axis, keepdim=True) - t.gather(axis, y)  # s . t
    along = terms.beside(terms.weights) * along / labels.shape[-1]
    return p * along.sum(axis, keepdim=True) - torch.zeros_like(p).scatter_add(axis, y, along)


def _entries(terms: Terms, scores: Tensor, t: Tensor) -> Tensor:
    return terms.weights * scores.square().mean(-1) * t


PREDICTIONS: dict[Any, Prediction] = {
    functional.cross_entropy: Prediction(_draw_classes, _classes),
    functional.binary_cross_entropy_with_logits: Prediction(
        lambda terms, u: (u < terms.x.detach().sigmoid().unsqueeze(-1)).to(terms.x.dtype),
        lambda terms, y, t: _entries(terms, terms.x.detach().sigmoid().unsqueeze(-1) - y, t),
    ),
    # The label's distance from the prediction; 2^-53 is the least positive number that is drawn.
    functional.mse_loss: Prediction(
        lambda terms, u: torch.erfinv(2 * u.clamp_min(2.0**-53) - 1).to(terms.x.dtype),
        lambda terms, y, t: _entries(terms, -2 * y, t),
    ),
}
"""The distributions that losses are negative log likelihoods of."""
