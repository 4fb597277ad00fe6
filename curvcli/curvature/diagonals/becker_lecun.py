"""The Hessian's diagonal with off-diagonal terms left out of back-propagation.

Becker and LeCun 1989; Bishop 2006, PRML, eq. 5.81: for units a_j with outputs h(a_j),
b_j = h'(a_j)^2 sum_k w_kj^2 b_k + h''(a_j) sum_k w_kj dE/da_k, and the entry of a weight is
b_j x_i^2. Where a weight acts at several positions, its entry sums over them likewise. Cost: one
gradient, and one pass of second derivatives of the same kind. It is an approximation, exact where
no layer mixes units, and known only for chains of layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from curvcli.batches import Batch
from curvcli.curvature.compat import second_order
from curvcli.curvature.diagonals.chain import Link, chain, refused
from curvcli.curvature.diagonals.kinds import kind_of
from curvcli.curvature.diagonals.roots import gauss_newton
from curvcli.curvature.diagonals.squares import Tick
from curvcli.curvature.diagonals.uses import Use, layers_of
from curvcli.curvature.jacobian import Outputs
from curvcli.linalg.operator import normal
from curvcli.problem import Problem


class BeckerLeCunDiagonal:
    """That approximation, tensor by tensor, for a chain of layers."""

    products = 2
    """Passes backward over a batch: one for first derivatives, one for second."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layers = {id(layer.module): layer for layer in layers_of(problem).values()}
        _ = problem.measure

    def compute(self, tick: Tick = lambda products: None) -> dict[str, Tensor]:
        """Compute the diagonals by name.

        Raises: CurvError (E_MODEL) for a model that is no such chain, (E_LOSS) for a loss without
            a second derivative by the outputs.
        """
        problem = self.problem
        total = {n: torch.zeros_like(p) for n, p in problem.params.items()}
        known = {n for layer in self.layers.values() for n in layer.names.values()}
        for n in problem.names:
            if n not in known:
                raise refused(f"{n} is no weight or bias of a layer of its own")
        with problem.engaged(), second_order(problem.model):
            for batch in problem.batches:
                self._add(batch, total)
                tick(self.products)
        return total

    def _add(self, batch: Batch, total: dict[str, Tensor]) -> None:
        links, outputs = chain(self.problem, batch)
        slope, b = _at_outputs(self.problem, batch, outputs)
        for link in reversed(links):
            layer = self.layers.get(id(link.module))
            b, slope = b.reshape(link.out.shape), slope.reshape(link.out.shape)
            if layer is not None:
                use = Use(layer, link.x, link.out)
                for name, f in use.features.items():
                    rows = f.restore(f.alone(use.spread(b)))
                    total[name] += rows.reshape(total[name].shape)
            b, slope = back(link, b, slope)


def _at_outputs(problem: Problem, batch: Batch, outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Differentiate the loss by the outputs: dE/da and the diagonal of d^2E/da^2."""
    share = problem.loss(outputs.given, batch).total / problem.measure.weight
    (leaf,) = outputs.leaves
    (slope,) = torch.autograd.grad(share, leaf)
    columns = gauss_newton(problem, batch, outputs, batch.size)
    b = torch.zeros_like(leaf)
    for which in columns.chunks(16):
        (s,), signs = columns.make(which)
        b += torch.einsum("kn...,kn->n...", s.square(), signs)
    return slope, b


def back(link: Link, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Pass b and dE/da back through one module, from its output to its input.

    Raises: CurvError (E_MODEL) for a module that is neither linear, elementwise nor a pool.
    """
    module, x = link.module, link.x
    if not x.is_floating_point():  # words, through which nothing goes on
        return torch.zeros_like(b), torch.zeros_like(slope)
    x = x.detach().requires_grad_()
    if isinstance(module, LINEAR) and kind_of(module) is not None:
        return _through(_squared(module), x, b), _through(module, x, slope)
    if isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity):
        return b.reshape(x.shape), slope.reshape(x.shape)
    if isinstance(module, MAXIMA):  # entries of the Jacobian are 0 and 1
        return _through(module, x, b), _through(module, x, slope)
    if isinstance(module, MEANS):
        return _through(module, x, b * _share(module, x, link)), _through(module, x, slope)
    return _elementwise(link, x, b, slope)


def _elementwise(link: Link, x: Tensor, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    out = link.module(x.clone())
    if out.shape != x.shape:
        raise refused(f"{link.title} is none of these")
    ones, rng = torch.ones_like(out), torch.Generator().manual_seed(0)
    (first,) = torch.autograd.grad(out, x, ones, create_graph=True)  # h'
    some = normal(out, rng)
    (mixed,) = torch.autograd.grad(out, x, some, retain_graph=True)
    # J^T u is h' u where the Jacobian is diagonal, and only there for a random u.
    if not torch.allclose(mixed, first * some, rtol=1e-4, atol=1e-6):
        raise refused(f"{link.title} is none of these")
    second = torch.zeros_like(x)
    if first.requires_grad:
        found = torch.autograd.grad(first.sum(), x, allow_unused=True)[0]
        second = second if found is None else found
    first = first.detach()
    return first.square() * b + second * slope, first * slope


def _through(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(function(x), x, cotangent)
    return found


def _squared(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Give the layer with its weights squared."""
    values = {n: p.detach().square() for n, p in module.named_parameters(recurse=False)}
    return lambda x: functional_call(module, values, (x,))


def _share(module: Any, x: Tensor, link: Link) -> Tensor | float:
    """Say what a mean takes of each entry, the one size of its Jacobian's entries."""
    axes = range(2, x.ndim)
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        sizes = [divmod(x.shape[i], link.out.shape[i]) for i in axes]
        if not any(rest for _, rest in sizes):
            return float(1 / torch.tensor([size for size, _ in sizes]).prod())
    else:
        kernel = module.kernel_size
        kernel = kernel if isinstance(kernel, tuple) else (kernel,) * len(axes)
        padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
        divisor = getattr(module, "divisor_override", None)
        if not any(padding) and not module.ceil_mode:
            return 1 / (divisor or float(torch.tensor(kernel).prod()))
    raise refused(f"{link.title} takes means of different sizes")


LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
MAXIMA = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
MEANS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
