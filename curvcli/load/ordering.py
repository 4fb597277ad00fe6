"""Find the order in which a trainer gave parameters to its optimizer: known rules, then shapes."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

Names = tuple[tuple[str, ...], ...]  # one tuple of parameter names per group
Shapes = Sequence[Sequence[torch.Size | None]]  # None: no state, so any shape fits

# transformers.Trainer.get_decay_parameter_names, since 4.46
HF_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
LABELS = ("name", "group_name", "param_group_name")  # what trainers call a group
STATES = 100_000  # of the search by shapes; repeated blocks in many groups are beyond deciding


@dataclass(frozen=True)
class Order:
    """The groups that a rule makes of a model."""

    label: str
    names: Names
    decayed: int | None = None  # the group that the rule's trainer applies weight decay to

    def agrees(self, options: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the saved options may come of this rule, which sets the weight decay alone.

        Equal decays may: zero is the default of transformers, which makes the two groups anyway.
        """
        if self.decayed is None or len(options) != 2:
            return True
        more, less = options[self.decayed], options[1 - self.decayed]
        decays = (group.get("weight_decay", 0) for group in (more, less))
        return bool(next(decays) >= next(decays)) and _others(more) == _others(less)


def _others(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options but for the weight decay, as text, since some may be tensors."""
    return {k: repr(v) for k, v in options.items() if k not in {"weight_decay", *LABELS}}


def orders(model: nn.Module) -> Iterator[Order]:
    """Yield what every known trainer makes of the model, with and without frozen parameters."""
    everything = dict(model.named_parameters())
    trainable = {name: p for name, p in everything.items() if p.requires_grad}
    yield from _orders(model, everything)
    if len(trainable) < len(everything):
        for order in _orders(model, trainable):
            yield Order(f"{order.label}, without frozen parameters", order.names, order.decayed)


def _orders(model: nn.Module, params: Mapping[str, Tensor]) -> Iterator[Order]:
    yield Order("one group in the model's order", (tuple(params),))
    norms = _norm_parameters(model)
    exempt = _exempt(model)

    def split(label: str, decays: Callable[[str], bool], decayed: int) -> Order:
        parts = (
            tuple(name for name in params if decays(name)),
            tuple(name for name in params if not decays(name)),
        )
        return Order(label, parts if decayed == 0 else parts[::-1], decayed)

    yield split("ndim >= 2 first (nanoGPT)", lambda n: params[n].ndim >= 2, 0)
    yield split("neither bias nor norm first (HF)", lambda n: "bias" not in n and n not in norms, 0)
    yield split(
        "neither bias nor norm by name first (HF)",
        lambda n: not HF_NAMES.search(n.lower()) and n not in norms,
        0,
    )
    yield split(
        "ndim <= 1 first (timm)",
        lambda n: params[n].ndim > 1 and not n.endswith(".bias") and not exempt(n),
        1,
    )


def _norm_parameters(model: nn.Module) -> frozenset[str]:
    """Return what transformers holds for norms: LayerNorm, and RMSNorm by any library."""
    return frozenset(
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
        for own, _ in module.named_parameters(recurse=False)
    )


def _exempt(model: nn.Module) -> Callable[[str], bool]:
    """Return timm's own exceptions, such as a ViT's pos_embed, from the model that names them."""
    named = getattr(model, "no_weight_decay", None)
    patterns = [str(p) for p in named()] if callable(named) else []
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def assignments(groups: Shapes, params: Mapping[str, torch.Size]) -> list[Names]:
    """Return up to two ways to deal the parameters out, in order, so that every shape fits.

    Dynamic programming over the parameters; a state is how many places of each group are filled.
    Returns nothing where the states are too many to decide.
    """
    names = list(params)
    if sum(len(group) for group in groups) > len(names):
        return []
    levels = _reachable(groups, [params[name] for name in names])
    goal = tuple(len(group) for group in groups)
    if not levels or goal not in levels[-1]:
        return []
    ways: list[dict[tuple[int, ...], int]] = [{goal: 1}]
    for shape, level in zip(
        reversed([params[name] for name in names]), reversed(levels[:-1]), strict=True
    ):
        after = ways[-1]
        ways.append(
            {
                state: count
                for state in level
                if (count := sum(after.get(s, 0) for _, s in _moves(groups, state, shape)))
            }
        )
    ways.reverse()
    total = min(2, ways[0].get(tuple(0 for _ in groups), 0))
    return [_walk(groups, params, ways, index) for index in range(total)]


def _reachable(groups: Shapes, shapes: Sequence[torch.Size]) -> list[set[tuple[int, ...]]]:
    levels = [{tuple(0 for _ in groups)}]
    places = sum(len(group) for group in groups)
    total = 0
    for index, shape in enumerate(shapes):
        remaining = len(shapes) - index - 1
        level = {
            after
            for state in levels[-1]
            for _, after in _moves(groups, state, shape)
            if places - sum(after) <= remaining
        }
        total += len(level)
        if total > STATES:
            return []
        levels.append(level)
    return levels


def _moves(
    groups: Shapes, state: tuple[int, ...], shape: torch.Size
) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Yield what can become of a parameter: the next place of a group, or none."""
    yield None, state
    for index, group in enumerate(groups):
        filled = state[index]
        if filled < len(group) and group[filled] in (None, shape):
            yield index, (*state[:index], filled + 1, *state[index + 1 :])


def _walk(
    groups: Shapes,
    params: Mapping[str, torch.Size],
    ways: Sequence[Mapping[tuple[int, ...], int]],
    index: int,
) -> Names:
    """Follow the assignment with this index through the counts of ways."""
    state = tuple(0 for _ in groups)
    dealt: list[list[str]] = [[] for _ in groups]
    for after, (name, shape) in zip(ways[1:], params.items(), strict=True):
        for group, following in _moves(groups, state, shape):
            count = after.get(following, 0)
            if index < count:
                state = following
                if group is not None:
                    dealt[group].append(name)
                break
            index -= count
    return tuple(tuple(names) for names in dealt)
