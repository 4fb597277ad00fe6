"""Find the module whose backward is wrong: each one's own vector-Jacobian product, checked alone.

Every parameter upstream of a wrong backward has a wrong gradient, so a gradient check tells that
something is wrong but not where. Here the inputs of every module are recorded in one forward pass,
and each module is then held, alone, against centred differences of its own outputs. The culprit is
a module that fails while all modules inside it pass. Cost: one evaluation of each module per step
of each difference, about 14 for each of its inputs and for its parameters.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from curvcli.batches import arguments
from curvcli.derivatives import derivatives
from curvcli.linalg.differences import STEPS, Comparison, compare
from curvcli.linalg.operator import normal
from curvcli.problem import Problem

CALLS = 3
"""How many calls of one module are checked, where it is called several times."""


@dataclass(frozen=True)
class Call:
    """One call of a module, with copies of what it was given."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Suspect:
    """A module whose own backward is wrong.

    name:   path in the model, "" for the model itself
    kind:   its class, and the custom autograd Functions that it calls itself
    source: file and line of the class, where Python knows them
    wrong:  the input or the parameters whose derivative is wrong
    """

    name: str
    kind: str
    source: str
    wrong: str
    comparison: Comparison | None

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        said = f"{self.name or 'the model itself'}: {self.kind}{place}, its {self.wrong}"
        if self.comparison is None:
            return said
        return f"{said}, relative error {self.comparison.relative:.1e}"


def suspects(problem: Problem, tolerance: float, rng: torch.Generator) -> list[Suspect]:
    """Name the deepest modules that fail, in the order of the forward pass; at best in float64."""
    with problem.engaged():
        failing: dict[str, Suspect] = {}
        for call in record(problem):
            if call.name not in failing and (found := _check(call, problem, tolerance, rng)):
                failing[call.name] = found
    deepest = [n for n in failing if not any(_inside(other, n) for other in failing)]
    return [failing[n] for n in deepest]


def _inside(name: str, outer: str) -> bool:
    return name != outer and (outer == "" or name.startswith(outer + "."))


def record(problem: Problem) -> list[Call]:
    """Run the first batch once and copy what each module is given."""
    calls: list[Call] = []
    seen: dict[str, int] = {}

    def hook(name: str) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= CALLS:
                calls.append(Call(name, module, _copied(args), _copied(kwargs)))

        return before

    handles = [
        m.register_forward_pre_hook(hook(n), with_kwargs=True)
        for n, m in problem.model.named_modules()
    ]
    try:
        with torch.no_grad():
            args, kwargs = arguments(problem.batches[0].inputs)
            problem.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copied(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), tree)


class _Alone:
    """A module by itself: u^T f as a function of its inputs and its parameters, u fixed."""

    def __init__(self, call: Call, problem: Problem, rng: torch.Generator) -> None:
        self.call = call
        own = dict(call.module.named_parameters())
        chosen = {id(p) for p in problem.params.values()}
        self.params = {n: p for n, p in own.items() if id(p) in chosen}
        self.leaves, self.spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
        self.inputs = [
            i for i, t in enumerate(self.leaves)
            if isinstance(t, Tensor) and t.is_floating_point() and t.numel()
        ]  # fmt: skip
        with torch.no_grad():
            first, second = self._outputs({}, {}), self._outputs({}, {})
        self.repeats = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        self.weights = [normal(t, rng) for t in first]

    def _outputs(self, inputs: Mapping[int, Tensor], params: Mapping[str, Tensor]) -> list[Tensor]:
        # Copies, because a module may write into what it is given.
        leaves = [t.clone() if isinstance(t, Tensor) else t for t in self.leaves]
        for i, t in inputs.items():
            leaves[i] = t.clone()
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        if params:
            out = functional_call(self.call.module, dict(params), args, kwargs)
        else:
            out = self.call.module(*args, **kwargs)
        return [
            t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()
        ]

    def value(self, inputs: Mapping[int, Tensor], params: Mapping[str, Tensor]) -> Tensor:
        """Evaluate u^T f, with some inputs or parameters replaced."""
        outputs = self._outputs(inputs, params)
        pairs = zip(outputs, self.weights, strict=True)
        return torch.stack([(t * w).sum() for t, w in pairs]).sum()

    def gradients(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], bool]:
        """Differentiate jointly by inputs and parameters; say whether u came back unchanged."""
        given = {i: self.leaves[i].detach().clone().requires_grad_() for i in self.inputs}
        outputs = self._outputs(given, {})
        cotangents = [w.clone() for w in self.weights]
        live = [i for i, t in enumerate(outputs) if t.requires_grad]
        targets = [*given.values(), *self.params.values()]
        if not live or not targets:
            found = [torch.zeros_like(t) for t in targets]
        else:
            found = list(
                derivatives([outputs[i] for i in live], targets, [cotangents[i] for i in live])
            )
        kept = all(torch.equal(a, b) for a, b in zip(cotangents, self.weights, strict=True))
        return tuple(found[: len(given)]), tuple(found[len(given) :]), kept


def _check(call: Call, problem: Problem, tolerance: float, rng: torch.Generator) -> Suspect | None:
    """Hold one call's vector-Jacobian product against differences; None where it is right."""
    alone = _Alone(call, problem, rng)
    if not alone.weights or not alone.repeats:
        return None
    by_input, by_param, kept = alone.gradients()
    if not kept:
        return _suspect(call, "incoming gradient, which its backward overwrites", None)
    for k, i in enumerate(alone.inputs):
        t = alone.leaves[i]
        d = normal(t, rng)
        values = [_valued(alone, {i: t + h * d}, {}) for h in _steps(t)]
        found = _compared(float((by_input[k] * d).sum()), values, t, tolerance)
        if found.verdict == "fail":
            return _suspect(call, f"derivative by input {k + 1}", found)
    for (name, p), g in zip(alone.params.items(), by_param, strict=True):
        t = p.detach()
        d = normal(t, rng)
        values = [_valued(alone, {}, {name: t + h * d}) for h in _steps(t)]
        found = _compared(float((g * d).sum()), values, t, tolerance)
        if found.verdict == "fail":
            return _suspect(call, f"derivative by {name}", found)
    return None


def _valued(alone: _Alone, inputs: Mapping[int, Tensor], params: Mapping[str, Tensor]) -> float:
    """Evaluate without a graph."""
    with torch.no_grad():
        return float(alone.value(inputs, params))


def _sizes(t: Tensor) -> Tensor:
    size = float(t.square().mean().sqrt()) or 1.0
    return size * torch.tensor(STEPS, dtype=torch.float64)


def _steps(t: Tensor) -> list[float]:
    h = _sizes(t)
    return [0.0, *h.tolist(), *(-h).tolist()]


def _compared(analytic: float, values: Sequence[float], t: Tensor, tolerance: float) -> Comparison:
    s = len(STEPS)
    found = torch.tensor(values, dtype=torch.float64)
    return compare(
        analytic, _sizes(t), found[1 : s + 1], found[s + 1 :], float(found[0]),
        tolerance, torch.finfo(t.dtype).eps,
    )  # fmt: skip


def _suspect(call: Call, wrong: str, found: Comparison | None) -> Suspect:
    kind = type(call.module)
    return Suspect(call.name, kind.__qualname__, _source(kind), wrong, found)


def _source(kind: type) -> str:
    try:
        file = inspect.getsourcefile(kind)
        _, line = inspect.getsourcelines(kind)
    except (OSError, TypeError):
        return ""
    return f"{Path(file).name}:{line}" if file else ""
