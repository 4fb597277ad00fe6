"""The terms that a loss averages, heard while it is computed: their arguments and their weights."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from curvcli.batches import Batch
from curvcli.curvature.jacobian import Outputs
from curvcli.errors import CurvError
from curvcli.problem import Problem


@dataclass(frozen=True)
class Terms:
    """One call of a loss function of torch, term by term: sum_i c_i l_i(x_i) of L.

    A term depends on a row of x along `axis`, the classes; on one entry where that is None.
    """

    kind: Any  # the function of torch.nn.functional
    values_at: Callable[[Tensor], Tensor]  # from x to what the function averages
    x: Tensor
    target: Tensor
    axis: int | None
    values: Tensor  # values_at(x) as a leaf, to see what L makes of it
    slopes: Tensor | None = None  # d L / d values

    @cached_property
    def masses(self) -> Tensor:
        """The weight in each of the values: of its class, of its entry, 0 where it is ignored.

        Divided by it, a value is a negative log likelihood. One point is enough to find it: equal
        logits for K classes give m log K, whatever the target of mass m is.
        """
        zeros = torch.zeros_like(self.x, requires_grad=False)
        if self.kind is functional.cross_entropy:
            return self.values_at(zeros) / math.log(max(self.x.shape[self.axis or 0], 2))
        if self.kind is functional.binary_cross_entropy_with_logits:
            return self.values_at(zeros) / math.log(2)
        if self.kind is functional.nll_loss:
            return self.values_at(zeros - 1)
        if self.kind is functional.mse_loss:
            return self.values_at(self.target + 1)
        return torch.ones_like(self.values, requires_grad=False)

    @cached_property
    def weights(self) -> Tensor:
        """The weight of each term in L, c_i."""
        assert self.slopes is not None
        return self.slopes * self.masses

    @property
    def by_slopes(self) -> Tensor:
        """The same weights for the slopes of the values, which are their masses times scores."""
        assert self.slopes is not None
        masses = self.masses
        return self.slopes / masses.where(masses != 0, 1.0)

    def beside(self, t: Tensor) -> Tensor:
        """Give what is one number per term a shape that multiplies x."""
        return t if self.axis is None else t.unsqueeze(self.axis)


def terms_of(problem: Problem, batch: Batch, outputs: Outputs) -> list[Terms] | None:
    """Take a batch's share of L apart into terms; None where it is no weighted sum of torch's.

    Raises: CurvError (E_LOSS) for a loss that the model itself returns.
    """
    with _Heard() as heard, AsLogits():
        total = problem.loss(outputs.given, batch).total
    inputs = [*(t.values for t in heard.terms), *outputs.leaves]
    if not total.requires_grad:
        return []
    share = total / problem.measure.weight
    slopes = torch.autograd.grad(share, inputs, create_graph=True, allow_unused=True)
    own, rest = slopes[: len(heard.terms)], slopes[len(heard.terms) :]
    direct = [(t, g) for t, g in zip(outputs.leaves, rest, strict=True) if g is not None]
    used = any(g is not None for g in own)
    if direct and not used and all(_is_mean(t, g, batch) for t, g in direct):
        raise CurvError(
            "E_LOSS",
            "the model returns the loss itself, and this matrix needs the outputs it is made of",
            "name the loss, as in loss: cross_entropy, and the targets as data.y",
        )
    if direct or any(g is not None and g.requires_grad for g in own):
        return None
    return [replace(t, slopes=g) for t, g in zip(heard.terms, own, strict=True) if g is not None]


def _is_mean(output: Tensor, slope: Tensor, batch: Batch) -> bool:
    """Tell one number for all examples, which L takes as it is, from an output."""
    single = output.ndim == 0 or (output.numel() == 1 and batch.size > 1)
    return single and not slope.requires_grad


class AsLogits(TorchFunctionMode):
    """Computes nll_loss of log-probabilities as cross_entropy: the same values, but it bends."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.nll_loss:
            x = args[0] if args else kwargs["input"]
            if bool(x.detach().logsumexp(_axis(x)).abs().max() < NORMALISED):
                func = functional.cross_entropy
        return func(*args, **kwargs)


class _Heard(TorchFunctionMode):
    """Notes the terms of torch's losses, and hands on leaves in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[Terms] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _averages():
            return func(*args, **kwargs)
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        reduction = given.pop("reduction", "mean")
        others = [v for k, v in given.items() if k != "input" and isinstance(v, Tensor)]
        legacy = any(given.get(k) is not None for k in ("size_average", "reduce"))
        if legacy or not given["input"].requires_grad or any(t.requires_grad for t in others):
            return func(*args, **kwargs)
        terms = _terms(func, given.pop("input"), given)
        if terms is None:
            return func(*args, **kwargs)
        self.terms.append(terms)
        if reduction == "none":
            return terms.values
        return terms.values.sum() / _count(terms, given, reduction)


def _axis(x: Tensor) -> int:
    """Say along which axis torch's losses have the classes."""
    return 1 if x.ndim > 1 else 0


def _terms(func: Any, x: Tensor, given: dict[str, Any]) -> Terms | None:
    axis = _axis(x)

    def values_at(x: Tensor) -> Tensor:
        values: Tensor = func(x, reduction="none", **given)
        return values

    values = values_at(x.detach()).requires_grad_()
    if values.shape == x.shape:
        return Terms(func, values_at, x, given["target"], None, values)
    by_row = values.shape == x.shape[:axis] + x.shape[axis + 1 :]
    return Terms(func, values_at, x, given["target"], axis, values) if by_row else None


def _count(terms: Terms, given: dict[str, Any], reduction: str) -> Tensor | int:
    """Give what torch divides the sum of the values by."""
    if reduction == "sum":
        return 1
    if reduction == "batchmean":
        return terms.x.shape[0]
    target, weight = terms.target, given.get("weight")
    if terms.kind not in INDEXED or target.is_floating_point():
        return terms.values.numel()
    counts = target != given.get("ignore_index", -100)
    total: Tensor = counts.sum() if weight is None else weight[target[counts]].sum()
    return total


NORMALISED = 1e-3
"""Up to this |log sum_k e^x_k|, the x_k are log-probabilities."""

INDEXED = (functional.cross_entropy, functional.nll_loss)


@cache
def _averages() -> frozenset[Any]:
    """Find the functions of torch.nn.functional that average terms over (input, target)."""
    found = [f for f in vars(functional).values() if inspect.isfunction(f)]
    wanted = {"input", "target", "reduction"}
    return frozenset(f for f in found if wanted <= set(inspect.signature(f).parameters))
