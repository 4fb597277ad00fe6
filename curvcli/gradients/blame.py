"""Find the module whose backward is wrong: each one's own vector-Jacobian product, checked alone.

Every parameter upstream of a wrong backward has a wrong gradient, so a gradient check tells that
something is wrong but not where. Here the inputs of every module are recorded in one forward pass,
and each module is then held, alone, against centred differences of its own outputs. The culprit is
a module that fails while all modules inside it pass; what holds a culprit is not looked at. Cost:
2 to 14 evaluations of a module for each of its inputs and of its own parameters; for second
derivatives 14 gradients of each module.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from curvcli.curvature.compat import second_order
from curvcli.curvature.hessian import reason
from curvcli.gradients.alone import Alone, Call, Joint, record
from curvcli.gradients.first import size_of
from curvcli.linalg.differences import STEPS, Accuracy, Comparison, compare, judge
from curvcli.linalg.operator import normal
from curvcli.problem import Problem
from curvcli.work import Watch, silent


@dataclass(frozen=True)
class Suspect:
    """A module whose own backward is wrong.

    name:   path in the model, "" for the model itself
    type:   its class
    wrong:  the input or the parameter whose derivative is wrong
    """

    name: str
    type: type
    wrong: str
    comparison: Comparison | None

    @property
    def kind(self) -> str:
        """The name of its class."""
        return self.type.__qualname__

    @cached_property
    def source(self) -> str:
        """File and line of the class, where Python knows them."""
        return _source(self.type)

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        said = f"{self.name or 'the model itself'}: {self.kind}{place}, its {self.wrong}"
        if self.comparison is None:
            return said
        return f"{said}, relative error {self.comparison.relative:.1e}"


class Blame(NamedTuple):
    """The culprits in the order of the forward pass, and the modules that cannot be told."""

    suspects: list[Suspect]
    unclear: list[str]


def blame(
    problem: Problem,
    tolerance: float,
    rng: torch.Generator,
    order: Literal[1, 2] = 1,
    watch: Watch = silent,
) -> Blame:
    """Check every module that is called, innermost first, in float64.

    `order` 2 checks second derivatives. A module with an unclear one inside it is not accused of
    what may be that one's doing.
    """
    problem = problem.to(torch.float64)
    check = partial(
        _verdict, how=_first if order == 1 else _second, problem=problem, tolerance=tolerance,
        rng=rng,
    )  # fmt: skip
    failing: dict[str, Suspect] = {}
    unclear: list[str] = []
    with problem.engaged():
        calls = record(problem)
        order_of_depth = sorted(calls, key=_depth, reverse=True)
        for done, name in enumerate(order_of_depth, 1):
            if not any(_inside(other, name) for other in [*failing, *unclear]):
                found = {name: check(_ends(calls[name]))}
                if isinstance(found[name], Suspect):
                    # Nobody is accused of what an inner module does in a call not looked at yet.
                    inner = [n for n in order_of_depth if _inside(n, name)]
                    rest = {n: check(_between(calls[n])) for n in inner if _between(calls[n])}
                    found = {n: v for n, v in rest.items() if v is not True} or found
                failing |= {n: v for n, v in found.items() if isinstance(v, Suspect)}
                unclear += [n for n, v in found.items() if v is None]
            watch(done, len(calls), None, None)
    return Blame([failing[n] for n in calls if n in failing], unclear)


def _ends(calls: list[Call]) -> list[Call]:
    """Take the first calls of a module and the last, which as a rule are all."""
    return calls if len(calls) <= 3 else [*calls[:2], calls[-1]]


def _between(calls: list[Call]) -> list[Call]:
    return calls[2:-1]


Check = Callable[[Alone, float, torch.Generator], "Suspect | bool | None"]
"""Gives what is wrong, True for what is right and None for what differences cannot tell."""


def _verdict(
    calls: Sequence[Call],
    how: Check,
    problem: Problem,
    tolerance: float,
    rng: torch.Generator,
) -> "Suspect | bool | None":
    """Check calls of one module: the first wrong one decides."""
    sure = True
    for call in calls:
        try:
            alone = Alone(call, problem, rng)
            if alone.judged is False:  # it gives nothing that has a derivative
                continue
            if alone.judged is None:
                sure = False
                continue
            found = how(alone, tolerance, rng)
            # Only here, where kinks may meet, or nearby too?
            wrong = isinstance(found, Suspect)
            if wrong and isinstance(how(alone.nearby(rng), tolerance, rng), Suspect):
                return found
        except Exception:  # a module that cannot be called alone raises whatever it likes
            found = None
        sure = sure and found is True
    return True if sure else None


def _depth(name: str) -> int:
    return name.count(".") + bool(name)


def _inside(name: str, outer: str) -> bool:
    return name != outer and (outer == "" or name.startswith(outer + "."))


class _Side(NamedTuple):
    """What a module is differentiated by: one input, one parameter, or those inside it."""

    title: str
    keys: list[int | str]


def _sides(alone: Alone) -> Iterator[_Side]:
    """Take each input, each parameter of the module's own, and all those inside it together.

    Parameters of inner modules are looked at one by one where those are checked.
    """
    for i in alone.inputs:
        yield _Side(f"derivative by {alone.title(i)}", [i])
    inner: list[int | str] = [n for n in alone.params if "." in n]
    for name in alone.params:
        if name not in inner:
            yield _Side(f"derivative by {name}", [name])
    if inner:
        yield _Side("derivative by the parameters inside it", inner)


DRAWS = 3
"""Directions that are tried where differences cannot tell along the first."""


def _first(alone: Alone, tolerance: float, rng: torch.Generator) -> Suspect | bool | None:
    """Hold one call's vector-Jacobian product against differences."""
    joint = alone.gradients()
    if not joint.kept:
        return _suspect(alone.call, "incoming gradient, which its backward overwrites", None)
    sure = True
    for side in _sides(alone):
        for _ in range(DRAWS):
            found = _along(alone, side, joint, tolerance, rng)
            if found.verdict != "unresolved":
                break
        if found.verdict == "fail":
            return _suspect(alone.call, side.title, found)
        sure = sure and found.verdict != "unresolved"
    return True if sure else None


def _along(
    alone: Alone, side: _Side, joint: Joint, tolerance: float, rng: torch.Generator
) -> Comparison:
    """Compare along one random direction in the space of one side."""
    points = alone.points
    moves = {k: alone.still(k, _move(points[k], rng)) for k in side.keys}

    def sample(places: Tensor, steps: Tensor) -> Tensor:
        moved = ({k: points[k] + h * d for k, d in moves.items()} for h in steps.tolist())
        return torch.tensor([alone.value(m) for m in moved], dtype=torch.float64)

    claim = _dot(joint.found, moves)[None]
    accuracy = Accuracy(tolerance, alone.eps, alone.scale)
    return judge(claim, 1.0, alone.value({}), sample, accuracy)[0]


def _second(alone: Alone, tolerance: float, rng: torch.Generator) -> Suspect | bool | None:
    """Hold the derivative of one call's vector-Jacobian product against differences of it.

    It has to be right by inputs and parameters, and by the incoming gradient u too: that is J v.
    """
    points = alone.points
    moves = {k: alone.still(k, _move(t, rng)) for k, t in points.items()}
    steps = torch.tensor(STEPS, dtype=torch.float64)
    shifts = [0.0, *steps.tolist(), *(-steps).tolist()]
    with second_order(alone.call.module):
        joint = alone.gradients(create_graph=True)
        try:
            by_points, by_weights = _pushed(joint, moves)
        except RuntimeError as error:
            return _suspect(alone.call, f"second derivative: {reason(error)}", None)
        moved = [{k: points[k] + h * d for k, d in moves.items()} for h in shifts]
        fields = [alone.gradients(m).found for m in moved]
        weights = [normal(w, rng) for w in alone.weights]
        outputs = [alone.value(m, weights) for m in moved]

    def judged(claim: Tensor, values: Tensor, size: float) -> Comparison:
        plus, minus = values[1:].view(2, 1, -1)
        accuracy = Accuracy(tolerance, alone.eps, size)
        return compare(claim[None], steps, plus, minus, values[0], accuracy)[0]

    products = dict(zip(points, by_points, strict=True))
    for side in _sides(alone):
        against = {k: alone.still(k, _move(points[k], rng)) for k in side.keys}
        values = torch.stack([_dot(f, against) for f in fields])
        size = sum(float(fields[0][k].norm() * w.norm()) for k, w in against.items())
        found = judged(_dot(products, against), values, size)
        if found.verdict == "fail":
            title = side.title.replace("derivative", "second derivative", 1)
            return _suspect(alone.call, title, found)
    claim = _dot(dict(enumerate(by_weights)), dict(enumerate(weights)))
    found = judged(claim, torch.tensor(outputs, dtype=torch.float64), 0.0)
    if found.verdict == "fail":
        return _suspect(alone.call, "second derivative by the incoming gradient", found)
    return True


def _pushed(
    joint: Joint, moves: dict[int | str, Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Differentiate joint gradients along the moves once more: by the targets, and by u."""
    live = [k for k, g in joint.found.items() if g.requires_grad]
    both = [*joint.targets, *joint.cotangents]
    if not live:
        found: Sequence[Tensor] = [torch.zeros_like(t) for t in both]
    else:
        found = torch.autograd.grad(
            [joint.found[k] for k in live], both, [moves[k] for k in live],
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
    return found[: len(joint.targets)], found[len(joint.targets) :]


def _dot(a: Mapping[Any, Tensor], b: Mapping[Any, Tensor]) -> Tensor:
    """Sum the products of the tensors of b with those of a."""
    parts = [(a[k].detach().double() * d.double()).sum().cpu() for k, d in b.items()]
    return torch.stack(parts).sum()


def _move(t: Tensor, rng: torch.Generator) -> Tensor:
    """Draw a direction in proportion to a tensor's own size."""
    return size_of(t) * normal(t, rng)


def _suspect(call: Call, wrong: str, found: Comparison | None) -> Suspect:
    return Suspect(call.name, type(call.module), wrong, found)


def _source(kind: type) -> str:
    try:
        file = inspect.getsourcefile(kind)
        _, line = inspect.getsourcelines(kind)
    except (OSError, TypeError):
        return ""
    return f"{Path(file).name}:{line}" if file else ""
