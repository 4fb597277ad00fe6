"""What an optimizer's state_dict says: its groups, their names, and the shapes of its state."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.load.names import shown
from curvcli.optimizer import State, traits


def groups_and_states(saved: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[Any, State]]:
    """Return the groups and the state of a well-formed state_dict."""
    groups, state = saved.get("param_groups"), saved.get("state")
    sound = (
        isinstance(groups, list)
        and isinstance(state, Mapping)
        and bool(groups)
        and all(isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups)
        and all(isinstance(s, Mapping) for s in state.values())
        and all(isinstance(p, int | str) for g in groups for p in g["params"])
    )
    if not sound:
        message = "the optimizer's entry is not what Optimizer.state_dict() returns"
        raise CurvError("E_OPTIMIZER", message, "save optimizer.state_dict() in the checkpoint")
    assert isinstance(groups, list)
    assert isinstance(state, Mapping)
    positions = [p for group in groups for p in group["params"]]
    if len(set(positions)) < len(positions):
        raise CurvError("E_OPTIMIZER", "the optimizer's groups share parameters", "save it again")
    if not state.keys() <= set(positions):
        message = "the optimizer's state has entries that no group lists"
        raise CurvError("E_OPTIMIZER", message, "save optimizer.state_dict() as torch returns it")
    return [dict(group) for group in groups], {key: dict(s) for key, s in state.items() if s}


def param_names(groups: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...] | None:
    """Return the names that torch 2.6 and later save with named parameters."""
    names = [group.get("param_names") for group in groups]
    if not all(isinstance(part, list) and all(isinstance(n, str) for n in part) for part in names):
        return None
    return tuple(tuple(part) for part in names if part is not None)


def shapes(kind: str, states: Mapping[Any, State]) -> dict[Any, torch.Size]:
    """Read each parameter's shape off its state; none for LBFGS, whose state is one flat vector."""
    if kind == "LBFGS":
        return {}
    found = {}
    for position, state in states.items():
        seen = {v.shape for k, v in state.items() if k in traits(kind).shaped and _tensor(v)}
        if _tensor(state.get("row_var")) and _tensor(state.get("col_var")):  # Adafactor's factors
            seen.add(torch.Size([*state["row_var"].shape[:-1], *state["col_var"].shape[-1:]]))
        if len(seen) > 1:
            message = f"the state of parameter {shown(str(position))} has entries of several shapes"
            raise CurvError("E_OPTIMIZER", message, "save the optimizer again")
        if seen:
            found[position] = seen.pop()
    return found


def _tensor(value: object) -> bool:
    return isinstance(value, Tensor)
