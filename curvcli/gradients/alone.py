"""A module by itself, with what it was given in a forward pass of the whole model."""

import inspect
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from curvcli.batches import arguments
from curvcli.derivatives import derivatives
from curvcli.gradients.first import NUDGE, size_of
from curvcli.gradients.grain import coarsest
from curvcli.gradients.places import padding
from curvcli.linalg.operator import normal
from curvcli.modules import watchable
from curvcli.problem import Problem

CALLS = 64
"""How many calls of one module are kept, where it is called more often: the first, the last."""


@dataclass(frozen=True)
class Call:
    """One call of a module, with copies of what it was given.

    flowing: which leaves of args and kwargs a gradient flows back through
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flowing: tuple[bool, ...]


def record(problem: Problem) -> dict[str, list[Call]]:
    """Run every batch once and copy what each module is given, by name."""
    calls: dict[str, list[Call]] = {}

    def hook(name: str) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            mine = calls.setdefault(name, [])
            del mine[CALLS - 1 :]  # the last one so far makes room for this one
            leaves = pytree.tree_leaves((args, dict(kwargs)))
            flowing = tuple(isinstance(t, Tensor) and t.requires_grad for t in leaves)
            mine.append(Call(name, module, _copied(args), _copied(kwargs), flowing))

        return before

    handles = [
        m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in watchable(problem.model)
    ]
    try:
        for batch in problem.batches:
            args, kwargs = arguments(batch.inputs)
            with problem.replaying():
                problem.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), tree)


PLAIN = Tensor | int | float | complex | str | None
"""What a module gives that can be judged, or needs not be."""


class Joint(NamedTuple):
    """One joint backward.

    targets:    what was differentiated by
    found:      the derivatives, by their keys in `points`
    cotangents: the incoming gradients, to be differentiated by as well
    kept:       whether these came back unchanged
    """

    targets: Sequence[Tensor]
    found: dict[int | str, Tensor]
    cotangents: Sequence[Tensor]
    kept: bool


class Alone:
    """A module by itself: u^T f as a function of its inputs and its parameters, u fixed."""

    def __init__(self, call: Call, problem: Problem, rng: torch.Generator) -> None:
        self.call = call
        self.problem = problem
        own = dict(call.module.named_parameters())
        chosen = {id(p) for p in problem.params.values()}
        self.params = {n: p for n, p in own.items() if id(p) in chosen}
        rows = padding(problem)
        whose = {id(p): n for n, p in problem.params.items()}
        self.left_out = {
            n: rows[whose[id(p)]] for n, p in self.params.items() if whose[id(p)] in rows
        }
        self.leaves, self.spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
        self.inputs = [
            i for i, t in enumerate(self.leaves)
            if call.flowing[i] and t.is_floating_point() and t.numel() and t.isfinite().all()
        ]  # fmt: skip
        with torch.no_grad():
            first, second = self._outputs({}, {}), self._outputs({}, {})
        self.eps = torch.finfo(torch.float64).eps  # until a graph says more
        repeats = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        # What it hides in an object of its own cannot be judged; numbers and flags need not be.
        self.judged = None if self.opaque or not repeats else bool(first)
        self.weights = [normal(t, rng) for t in first]
        pairs = zip(first, self.weights, strict=True)
        # What the rounding of u^T f is relative to: its summands may cancel.
        self.scale = sum(float((t.detach() * w).abs().sum()) for t, w in pairs)

    def nearby(self, rng: torch.Generator) -> "Alone":
        """Give it other inputs, by a hundredth of their size."""
        other = copy(self)
        other.leaves = [
            t + NUDGE * size_of(t) * normal(t, rng) if i in self.inputs else t
            for i, t in enumerate(self.leaves)
        ]
        return other

    def _outputs(self, inputs: Mapping[int, Tensor], params: Mapping[str, Tensor]) -> list[Tensor]:
        # Copies, because a module may write into what it is given.
        leaves = [t.clone() if isinstance(t, Tensor) else t for t in self.leaves]
        for i, t in inputs.items():
            leaves[i] = t.clone()
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        with self.problem.replaying():
            if params:
                out = functional_call(self.call.module, dict(params), args, kwargs)
            else:
                out = self.call.module(*args, **kwargs)
        leaves = pytree.tree_leaves(out)
        self.opaque = any(not isinstance(t, PLAIN) for t in leaves)
        return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]

    def value(
        self, points: Mapping[int | str, Tensor], weights: Sequence[Tensor] | None = None
    ) -> float:
        """Evaluate u^T f without a graph, with some inputs or parameters moved to `points`."""
        inputs = {k: t for k, t in points.items() if isinstance(k, int)}
        params = {k: t for k, t in points.items() if isinstance(k, str)}
        with torch.no_grad():
            outputs = self._outputs(inputs, params)
            pairs = zip(outputs, weights or self.weights, strict=True)
            return float(torch.stack([(t * w).sum() for t, w in pairs]).sum())

    def still(self, key: int | str, move: Tensor) -> Tensor:
        """Leave padding rows of embeddings where they are: autograd leaves them out on purpose."""
        if key in self.left_out:
            move.view(-1)[self.left_out[str(key)]] = 0
        return move

    @property
    def points(self) -> dict[int | str, Tensor]:
        """What it is a function of: inputs by their position, parameters by their name."""
        values: dict[int | str, Tensor] = {i: self.leaves[i].detach() for i in self.inputs}
        return values | {n: p.detach() for n, p in self.params.items()}

    def gradients(
        self, points: Mapping[int | str, Tensor] | None = None, *, create_graph: bool = False
    ) -> "Joint":
        """Differentiate jointly by inputs and parameters, with some moved to `points`."""
        points = points or {}
        given = {
            i: points.get(i, self.leaves[i]).detach().clone().requires_grad_() for i in self.inputs
        }
        # Not functional_call: hooks on the parameters have to be seen.
        saved = {n: self.params[n].data for n in points if isinstance(n, str)}
        try:
            for n in saved:
                self.params[n].data = points[n]
            outputs = self._outputs(given, {})
            if outputs:
                self.eps = torch.finfo(coarsest(outputs)).eps
            targets = [*given.values(), *self.params.values()]
            cotangents = [w.clone().requires_grad_(create_graph) for w in self.weights]
            live = [i for i, t in enumerate(outputs) if t.requires_grad]
            found: Sequence[Tensor] = [torch.zeros_like(t) for t in targets]
            if live and targets:
                found = derivatives(
                    [outputs[i] for i in live], targets, [cotangents[i] for i in live], create_graph
                )
        finally:
            for n, value in saved.items():
                self.params[n].data = value
        kept = all(torch.equal(a, b) for a, b in zip(cotangents, self.weights, strict=True))
        found_at = dict(zip(self.points, found, strict=True))
        return Joint(targets, found_at, cotangents, kept)

    def title(self, leaf: int) -> str:
        """Name an input as its forward does: `input x`, and by number where it has no name."""
        given = (self.call.args, dict(self.call.kwargs))
        path, _ = pytree.tree_flatten_with_path(given)[0][leaf]
        side, key, *rest = (getattr(k, "key", getattr(k, "idx", "")) for k in path)
        name = str(key) if side else _argument(self.call.module, int(key))
        return "input " + (name or str(int(key) + 1)) + "".join(f"[{k!r}]" for k in rest)


def _argument(module: nn.Module, position: int) -> str:
    """Name a positional argument of forward; empty where the signature does not."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return ""
    if position >= len(parameters) or parameters[position].kind is inspect.Parameter.VAR_POSITIONAL:
        return ""
    return parameters[position].name
