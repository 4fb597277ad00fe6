"""A model without the backward of some modules: what an allow-list excuses is cut out.

What those modules give becomes a parameter of the model, at the value they gave, and what they are
given becomes a part of the loss: the gradients of this one pass through everything but them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvcli.batches import Batch, Terms
from curvcli.linalg.operator import normal
from curvcli.problem import Problem


class _Cut:
    """Hooks that note what modules are given, and replace what they give."""

    def __init__(self, model: nn.Module, rng: torch.Generator) -> None:
        self.model = model
        self.rng = rng
        self.given: list[Tensor] = []  # in this pass, in order
        self.kept: list[Any] = []  # what each call gave in the first pass
        self.weights: list[Tensor] = []
        self.names: list[list[str]] = []  # of the parameters that each call's tensors became
        self.calls = 0

    def begin(self, module: nn.Module, args: Any) -> None:
        self.given, self.calls = [], 0

    def take(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.given += _floats((args, kwargs))

    def hold(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.calls == len(self.names):  # the first pass
            self.kept.append(pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), output))
            self.weights += [normal(t.detach(), self.rng) for t in self.given[len(self.weights) :]]
            self.names.append([self._parameter(t) for t in _floats(output)])
        names = iter(self.names[self.calls])
        self.calls += 1

        def moved(t: Tensor) -> Tensor:
            # By name from the model, where functional calls put other values.
            return t + getattr(self.model, next(names)) if t.is_floating_point() else t

        return pytree.tree_map_only(Tensor, moved, self.kept[self.calls - 1])

    def _parameter(self, t: Tensor) -> str:
        name = f"{PREFIX}{sum(map(len, self.names))}_{len(self.names)}"
        while hasattr(self.model, name):
            name += "_"
        self.model.register_parameter(name, nn.Parameter(torch.zeros_like(t)))
        return name

    def total(self) -> Tensor | float:
        """Weigh what the modules were given, with weights drawn in the first pass."""
        pairs = zip(self.given, self.weights, strict=True)
        return sum((t * w).sum() for t, w in pairs)


PREFIX = "curv_output_"
"""How the parameters that outputs become are named."""


def _floats(tree: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(tree)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


@contextmanager
def without(problem: Problem, modules: Sequence[str], rng: torch.Generator) -> Iterator[Problem]:
    """Pose the first batch with these modules cut out, for the length of the context.

    Its parameters are the problem's, and what the modules gave.
    """
    cut = _Cut(problem.model, rng)

    def loss(output: Any, batch: Batch) -> Terms:
        terms = problem.loss(output, batch)
        return Terms(terms.total / terms.weight + cut.total(), 1.0)

    named = dict(problem.model.named_modules())
    handles = [problem.model.register_forward_pre_hook(cut.begin, prepend=True)]
    for name in modules:
        handles.append(named[name].register_forward_pre_hook(cut.take, with_kwargs=True))
        handles.append(named[name].register_forward_hook(cut.hold))
    try:
        with torch.no_grad():
            problem.terms(problem.batches[0])
        new = tuple(n for names in cut.names for n in names)
        names = (*problem.names, *new)
        yield replace(problem, loss=loss, batches=problem.batches[:1], heldout=(), names=names)
    finally:
        for handle in handles:
            handle.remove()
        for name in (n for names in cut.names for n in names):
            delattr(problem.model, name)
