"""The other libraries, each used in the fastest way that is correct for it.

They are found at run time and have no types here: where one is not installed, its lines say so.
"""

import copy
import importlib
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Product = Callable[[], Any]
"""Gives a product with one vector: flat, or a list of tensors."""


class CrossEntropy(nn.CrossEntropyLoss):
    """The mean over all predictions, of pictures (n, c) or of tokens (n, t, c)."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return super().forward(output.flatten(0, -2), target.flatten())


@dataclass(frozen=True)
class Task:
    """What every contender is given: the mean loss of a model over one batch."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def own(self) -> "Task":
        """Copy the model, in eval mode and without gradients: PyHessian leaves some in it."""
        model = copy.deepcopy(self.model).eval()
        for p in model.parameters():
            p.grad = None
        return replace(self, model=model)

    def parts(self, v: Tensor) -> list[Tensor]:
        """Cut a vector into one tensor for each parameter."""
        params = list(self.model.parameters())
        cut = torch.split(v, [p.numel() for p in params])
        return [part.view_as(p) for part, p in zip(cut, params, strict=True)]


def library(name: str) -> Any:
    """Import a peer.

    Raises: ModuleNotFoundError where it is not installed.
    """
    return importlib.import_module(name)


def without_fused(call: Callable[[], Any]) -> Callable[[], Any]:
    """Let attention be computed by plain products: fused kernels have no second derivative."""

    def called() -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return call()

    return called


def flat(product: Any) -> Tensor:
    """Make one vector of a product in any form."""
    parts = product if isinstance(product, list | tuple) else [product]
    return torch.cat([p.detach().reshape(-1) for p in parts])


# --- curvlinops ---------------------------------------------------------------------------------


def curvlinops_operator(task: Task, kind: str = "HessianLinearOperator") -> Any:
    """Make an operator; its probes for randomness, which cost some products, are left out."""
    own = task.own()
    make = getattr(library("curvlinops"), kind)
    params = list(own.model.parameters())
    return make(own.model, CrossEntropy(), params, [(own.x, own.y)], check_deterministic=False)


def _curvlinops(kind: str) -> Callable[[Task, Tensor], Product]:
    def build(task: Task, v: Tensor) -> Product:
        operator, parts = curvlinops_operator(task, kind), task.parts(v)
        return lambda: operator @ parts  # a list saves it the copies that a flat vector costs

    return build


# --- hessian-eigenthings ------------------------------------------------------------------------


def eigenthings_operator(task: Task) -> Any:
    """Make a Hessian over one batch, so that its weighting of ragged batches does not matter."""
    own = task.own()
    known = library("hessian_eigenthings")
    loss = known.supervised_loss(CrossEntropy())
    return known.HessianOperator(own.model, [(own.x, own.y)], loss)


def _eigenthings_hessian(task: Task, v: Tensor) -> Product:
    operator = eigenthings_operator(task)
    return lambda: operator.matvec(v)


def _eigenthings_ggn(task: Task, v: Tensor) -> Product:
    own, known = task.own(), library("hessian_eigenthings")
    of_output = known.supervised_loss_of_output(CrossEntropy())
    data = [(own.x, own.y)]
    operator = known.GGNOperator(own.model, data, known.supervised_forward, of_output)
    return lambda: operator.matvec(v)


# --- PyHessian ----------------------------------------------------------------------------------


def pyhessian(task: Task) -> Any:
    """Make a PyHessian of one batch, the case in which it keeps its graph between products."""
    own = task.own()
    on_gpu, data = own.x.is_cuda, (own.x, own.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it leaks, which is prevented below
        made = library("pyhessian").hessian(own.model, CrossEntropy(), data=data, cuda=on_gpu)
    # It works on copies of the gradients; these would hold the graph for ever.
    for p in own.model.parameters():
        p.grad = None
    return made


def _pyhessian_product(task: Task, v: Tensor) -> Product:
    made, parts = pyhessian(task), task.parts(v)
    multiply = library("pyhessian.utils").hessian_vector_product
    return lambda: multiply(made.gradsH, made.params, parts)


class CountedProducts:
    """Counts the products that PyHessian computes while it is entered."""

    def __init__(self) -> None:
        self.count = 0
        self.module: types.ModuleType = library("pyhessian.hessian")
        self.inner: Any = self.module.__dict__["hessian_vector_product"]

    def __enter__(self) -> "CountedProducts":
        self.module.__dict__["hessian_vector_product"] = self._counted
        return self

    def __exit__(self, *_: object) -> None:
        self.module.__dict__["hessian_vector_product"] = self.inner

    def _counted(self, *args: Any) -> Any:
        self.count += 1
        return self.inner(*args)


HESSIANS: Mapping[str, Callable[[Task, Tensor], Product]] = {
    "curvlinops": _curvlinops("HessianLinearOperator"),
    "hessian-eigenthings": _eigenthings_hessian,
    "PyHessian": _pyhessian_product,
}
GAUSS_NEWTONS: Mapping[str, Callable[[Task, Tensor], Product]] = {
    "curvlinops": _curvlinops("GGNLinearOperator"),
    "hessian-eigenthings": _eigenthings_ggn,
}


# --- BackPACK -----------------------------------------------------------------------------------


def backpack_diagonal(task: Task) -> Callable[[], Sequence[Tensor]]:
    """Extend a sequential model; every call gives the diagonal of its Hessian, by tensor."""
    own, known = task.own(), library("backpack")
    extension = library("backpack.extensions").DiagHessian
    model, loss = known.extend(own.model), known.extend(nn.CrossEntropyLoss())

    def diagonal() -> Sequence[Tensor]:
        model.zero_grad()
        with known.backpack(extension()):
            torch.autograd.backward(loss(model(own.x), own.y))
        return [getattr(p, "diag_h") for p in model.parameters()]  # noqa: B009

    return diagonal


def why(error: Exception) -> str:
    """Say in a few words why a contender is not there."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error.name})"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"fails: {type(error).__name__}: {first[:80]}"
