"""Give an optimizer's saved state back to the parameters that it belongs to, or refuse.

torch saves positions, not names, and its load_state_dict checks no shapes: AdamW state in the wrong
order raises nothing. So the names come from the file, the spec, a known trainer's order or a unique
assignment by shapes, and the shapes of the whole sequence are compared, group by group.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from curvcli.errors import CurvError
from curvcli.load.names import listed, prefixes, shown
from curvcli.load.optimizer_class import (
    check_names,
    check_options,
    filled,
    hyperparameters,
    identify,
)
from curvcli.load.optimizer_state import groups_and_states, param_names, shapes
from curvcli.load.ordering import Names, assignments, orders
from curvcli.optimizer import FROM_SPEC, Group, SavedOptimizer, State, options_of

GROUPS = "give optimizer.groups in the spec: one list of parameter name patterns per group"


@dataclass(frozen=True)
class Slots:
    """A saved optimizer before its parameters have names: positions, options, state."""

    groups: tuple[tuple[Any, ...], ...]  # positions, or names in some tools' files
    options: tuple[dict[str, Any], ...]
    param_names: tuple[tuple[str, ...], ...] | None
    state: dict[Any, State]
    shapes: dict[Any, torch.Size]  # of the positions whose state tells

    @property
    def sizes(self) -> tuple[int, ...]:
        """Count the parameters of each group."""
        return tuple(len(group) for group in self.groups)


def resolve(saved: dict[str, Any], model: nn.Module, options: dict[str, Any]) -> SavedOptimizer:
    """Name the parameters of a saved optimizer.

    `options` is the spec's optimizer block: `class` and `groups` decide where they are given, the
    rest fills what the file does not say. Raises E_OPTIMIZER where nothing fits, or two things do.
    """
    groups, states = groups_and_states(saved)
    kind = identify([options_of(group) for group in groups], states.values(), options)
    spec = hyperparameters(kind, options)
    completed = tuple(filled(kind, options_of(group), spec) for group in groups)
    for group in completed:
        check_options(kind, group)
    slots = Slots(
        groups=tuple(tuple(group["params"]) for group in groups),
        options=completed,
        param_names=param_names(groups),
        state=states,
        shapes=shapes(kind, states),
    )
    _check_sizes(slots, model)
    names, rule = _names(slots, model, options)
    if kind == "LBFGS":
        _check_flat(states, names, model)
    flat = [position for group in slots.groups for position in group]
    named = dict(zip(flat, (name for group in names for name in group), strict=True))
    return SavedOptimizer(
        kind=kind,
        groups=tuple(Group(tuple(n), o) for n, o in zip(names, completed, strict=True)),
        state={named[key]: state for key, state in states.items()},
        rule=rule,
        verified=bool(slots.shapes) or rule in BY_NAME,
        alike=() if rule in BY_NAME else tuple(_alike(slots, names)),
        notes=tuple(_unused(groups, spec)),
    )


def _alike(slots: Slots, names: Names) -> Iterator[tuple[str, ...]]:
    """List the sets of a group's parameters whose state has one shape."""
    for group, positions in zip(names, slots.groups, strict=True):
        same: dict[torch.Size, list[str]] = {}
        for name, position in zip(group, positions, strict=True):
            if position in slots.shapes:
                same.setdefault(slots.shapes[position], []).append(name)
        yield from (tuple(found) for found in same.values() if len(found) > 1)


def _unused(groups: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> Iterator[str]:
    """Say which options of the spec the file contradicts."""
    for key, value in spec.items():
        said = [g[key] for g in groups if key in g]
        others = [x for x in said if not _same(x, value)]
        if others:
            yield f"optimizer.{key}: the spec says {value}, the file {others[0]}, which is used"


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        one = one.tolist()
    pairs = [tuple(x) if isinstance(x, list | tuple) else x for x in (one, other)]
    return bool(pairs[0] == pairs[1])


def fresh(options: dict[str, Any], model: nn.Module) -> SavedOptimizer | None:
    """Return the spec's optimizer before its first step, or None where the spec names none."""
    check_names(options)
    if options.get("class") is None or options.get("lr") is None:
        return None
    kind = identify([], [], options)
    group = filled(kind, {}, hyperparameters(kind, options))
    check_options(kind, group)
    if options.get("groups") is not None:
        names = _matched(options["groups"], model)
    else:
        names = (tuple(name for name, p in model.named_parameters() if p.requires_grad),)
    groups = tuple(Group(part, dict(group)) for part in names)
    return SavedOptimizer(kind, groups, {}, FROM_SPEC, False)


BY_NAME = ("names in the file's state", "param_names in the file", "optimizer.groups in the spec")


def _names(slots: Slots, model: nn.Module, options: dict[str, Any]) -> tuple[Names, str]:
    """Return the names of every group, and the rule that found them."""
    if options.get("groups") is not None:
        names, rule = _matched(options["groups"], model), BY_NAME[2]
    elif all(isinstance(p, str) for group in slots.groups for p in group) and any(slots.sizes):
        names, rule = _known(slots.groups, model), BY_NAME[0]
    elif slots.param_names is not None:
        names, rule = _known(slots.param_names, model), BY_NAME[1]
    else:
        return _inferred(slots, model)
    fault = _misfit(slots, names, dict(model.named_parameters()))
    if fault:
        raise CurvError("E_OPTIMIZER", f"{rule}: {fault}", GROUPS)
    return names, rule


def _inferred(slots: Slots, model: nn.Module) -> tuple[Names, str]:
    """Try the orders of known trainers, then every order-preserving assignment by shapes."""
    params = dict(model.named_parameters())
    tried: list[str] = []
    fitting: dict[Names, str] = {}
    for order in orders(model):
        tried.append(order.label)
        if order.agrees(slots.options) and not _misfit(slots, order.names, params):
            fitting.setdefault(order.names, order.label)
    if len(fitting) > 1:
        raise _ambiguous(list(fitting), " and ".join(f'"{label}"' for label in fitting.values()))
    for names, rule in fitting.items():
        return names, rule
    shapes = [[slots.shapes.get(position) for position in group] for group in slots.groups]
    trainable = {name: p.shape for name, p in params.items() if p.requires_grad}
    everything = {name: p.shape for name, p in params.items()}
    found = assignments(shapes, trainable) or assignments(shapes, everything)
    if len(found) > 1:
        raise _ambiguous(found, "several assignments by shape")
    if not found:
        sizes = " + ".join(str(size) for size in slots.sizes)
        message = (
            f"the optimizer's groups of {sizes} fit no known order of the model's "
            f"{len(params)} parameters; tried: {', '.join(dict.fromkeys(tried))}"
        )
        raise CurvError("E_OPTIMIZER", message, GROUPS)
    return found[0], "the only assignment by shapes"


def _ambiguous(candidates: Sequence[Names], labels: str) -> CurvError:
    first, second = candidates[0], candidates[1]
    group, a, b = next(
        (g, x, y)
        for g, (xs, ys) in enumerate(zip(first, second, strict=True))
        for x, y in zip(xs, ys, strict=True)
        if x != y
    )
    could = f"group {group} could hold {shown(a)} or {shown(b)}"
    return CurvError("E_OPTIMIZER", f"{labels} fit the optimizer's state; {could}", GROUPS)


def _misfit(slots: Slots, names: Names, params: Mapping[str, Tensor]) -> str:
    """Say the first thing that keeps these names from fitting, or nothing."""
    sizes = tuple(len(group) for group in names)
    if sizes != slots.sizes:
        return f"groups of {_sum(sizes)} parameters, the file has {_sum(slots.sizes)}"
    if len({name for group in names for name in group}) < sum(sizes):
        return "a parameter stands twice"
    for group, positions in zip(names, slots.groups, strict=True):
        for name, position in zip(group, positions, strict=True):
            shape = slots.shapes.get(position)
            if shape is not None and shape != params[name].shape:
                return (
                    f"{shown(name)} is {tuple(params[name].shape)} in the model, "
                    f"its state {tuple(shape)} in the file"
                )
    return ""


def _sum(sizes: Sequence[int]) -> str:
    return " + ".join(str(size) for size in sizes)


def _known(groups: Sequence[Sequence[str]], model: nn.Module) -> Names:
    """Map a file's names to the model's: tied names to the first, one prefix removed."""
    canonical = {id(p): name for name, p in model.named_parameters()}
    alias = {n: canonical[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
    flat = [name for group in groups for name in group]
    best = prefixes(flat, alias, lambda _key, _name: True).most_common(1)
    prefix = "" if not best or set(flat) <= alias.keys() else best[0][0]
    unknown = [name for name in flat if name.removeprefix(prefix) not in alias]
    if unknown:
        message = f"the optimizer's state names {listed(unknown)}, which the model lacks"
        raise CurvError("E_OPTIMIZER", message, "check model: in the spec, or " + GROUPS)
    return tuple(tuple(alias[name.removeprefix(prefix)] for name in group) for group in groups)


def _matched(patterns: object, model: nn.Module) -> Names:
    """Apply optimizer.groups: a parameter goes to the first group with a pattern that matches.

    Within a group the order is the model's, or that of the list where it holds whole names only.
    """
    if not isinstance(patterns, list | tuple) or not all(
        isinstance(group, list | tuple) and all(isinstance(p, str) for p in group)
        for group in patterns
    ):
        message = "optimizer.groups is not a list of lists of name patterns"
        raise CurvError("E_OPTIMIZER", message, 'write it as [["*.weight"], ["*.bias"]]')
    left = [name for name, _ in model.named_parameters()]
    groups = []
    for group in patterns:
        idle = [p for p in group if not any(fnmatchcase(name, p) for name in left)]
        if idle:
            message = f"optimizer.groups: {listed(idle)} matches no parameter that is left"
            raise CurvError("E_OPTIMIZER", message, f"the parameters are {listed(left, 6)}")
        whole = set(group) <= set(left)
        names = group if whole else [n for n in left if any(fnmatchcase(n, p) for p in group)]
        left = [name for name in left if name not in set(names)]
        groups.append(tuple(names))
    return tuple(groups)


def _check_sizes(slots: Slots, model: nn.Module) -> None:
    count, available = sum(slots.sizes), len(list(model.parameters()))
    if count > available:
        message = f"the optimizer holds {count} parameters, the model has {available}"
        raise CurvError("E_OPTIMIZER", message, "check model: in the spec")


def _check_flat(states: Mapping[Any, State], names: Names, model: nn.Module) -> None:
    """Compare the length of LBFGS's vectors with that of the parameters."""
    params = dict(model.named_parameters())
    size = sum(params[name].numel() for group in names for name in group)
    for state in states.values():
        flat = state.get("prev_flat_grad")
        if isinstance(flat, Tensor) and flat.numel() != size:
            message = f"LBFGS keeps vectors of {flat.numel()} entries, the parameters have {size}"
            raise CurvError("E_OPTIMIZER", message, "check model: in the spec, or " + GROUPS)
