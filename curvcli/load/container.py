"""Find the weights, the optimizer's state and the progress in what a checkpoint file holds.

Layouts are told by the shape of the container, never by its file name; the first match wins.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvcli.errors import CurvError
from curvcli.load.names import listed, shown

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Contents:
    """What a container holds, under its layout's name."""

    layout: str
    weights: Weights
    optimizer: dict[str, Any] | None
    progress: dict[str, int | float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How one family of tools lays out a checkpoint."""

    name: str
    weights: str  # the key of the state_dict
    optimizer: str = ""  # the key of the optimizer's state
    markers: tuple[str, ...] = ()  # further keys; one of them must be there


LAYOUTS = (
    Layout("tutorial", "model_state_dict", "optimizer_state_dict"),
    Layout("Lightning", "state_dict", "optimizer_states", ("pytorch-lightning_version",)),
    Layout("timm", "state_dict", "optimizer", ("arch", "state_dict_ema")),
    Layout("state_dict + optimizer", "state_dict", "optimizer"),
    Layout("nanoGPT", "model", "optimizer", ("model_args",)),
    Layout("model + optimizer", "model", "optimizer"),
)
# Keys under which people nest a state_dict, most explicit first; and an optimizer's.
NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights",
          "params")  # fmt: skip
OPTIMIZERS = ("optimizer_state_dict", "optimizer", "optimizer_states", "optimizers", "optim",
              "optimizer_state", "opt")  # fmt: skip
PROGRESS = ("epoch", "step", "global_step", "iter_num", "iteration", "loss", "best_val_loss")
LARGEST = 2**63  # nobody counts further, and a hostile file can hold an integer of a megabyte


def unpack(root: object, where: str) -> Contents:
    """Tell the layout of a loaded container and take out what curv needs."""
    if not isinstance(root, Mapping):
        message = f"{where} holds a {type(root).__name__}, not a dict of weights"
        raise CurvError("E_CONTENT", message, "save the model's state_dict() with torch.save")
    plain = weights_of(root)
    if plain is not None:
        return Contents("state_dict", plain, None, {}, _extra(root))
    layout, key, notes = _layout(root, where)
    weights = weights_of(root[key])
    assert weights is not None, "a layout is only chosen by a key that holds weights"
    optimizer, said = _optimizer(root, layout.optimizer)
    progress = {name: value for name in PROGRESS if (value := _number(root.get(name))) is not None}
    notes = (*notes, *_extra(root[key]), *said, *_averaged(root, key))
    return Contents(layout.name, weights, optimizer, progress, notes)


def weights_of(value: object) -> Weights | None:
    """Return the tensors of a state_dict, or None where the value is not one."""
    if not isinstance(value, Mapping) or not value:
        return None
    tensors: Weights = {}
    for name, tensor in value.items():
        if not isinstance(name, str):
            return None
        if isinstance(tensor, Tensor):
            tensors[name] = tensor.detach().resolve_conj().resolve_neg()
        elif not name.endswith("_extra_state"):  # nn.Module.get_extra_state may return anything
            return None
    return tensors or None


def tensors_in(root: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested containers once, with the key nearest to it.

    Iterative, and by identity: a hostile pickle nests deeply, shares and refers to itself.
    """
    pending: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    while pending:
        key, value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield key, value
        elif isinstance(value, Mapping):
            pending += [(name if isinstance(name, str) else key, v) for name, v in value.items()]
        elif isinstance(value, list | tuple | set):
            pending += [(key, item) for item in value]
        elif isinstance(value, Namespace):
            pending += [(name, item) for name, item in vars(value).items()]


def _layout(root: Mapping[Any, Any], where: str) -> tuple[Layout, str, tuple[str, ...]]:
    for layout in LAYOUTS:
        marked = not layout.markers or any(marker in root for marker in layout.markers)
        complete = layout.optimizer in root or layout.markers
        if marked and complete and weights_of(root.get(layout.weights)) is not None:
            return layout, layout.weights, ()
    optimizer = next((key for key in OPTIMIZERS if key in root), "")
    for key in NESTED:
        if weights_of(root.get(key)) is not None:
            return Layout(f'nested "{key}"', key, optimizer), key, ()
    return _lone(root, optimizer, where)


def _lone(
    root: Mapping[Any, Any], optimizer: str, where: str
) -> tuple[Layout, str, tuple[str, ...]]:
    """Take a state_dict under a key of its own, where there is just one."""
    keys = [key for key, value in root.items() if isinstance(key, str) and weights_of(value)]
    raw = [key for key in keys if not _is_average(key)]
    if not keys:
        found = f"its top-level keys are {listed(list(root), 8)}" if root else "it is empty"
        message = f"{where} holds no weights: {found}"
        raise CurvError("E_CONTENT", message, "save the model's state_dict() with torch.save")
    if len(raw or keys) > 1:
        message = f"{where} holds several state_dicts: {listed(raw or keys, 8)}"
        raise CurvError("E_AMBIGUOUS", message, "save the one that you mean in a file of its own")
    key = (raw or keys)[0]
    note = () if raw else (f"the only weights in the file are averaged ones ({shown(key)})",)
    return Layout(f'nested "{shown(key)}"', key, optimizer), key, note


def _is_average(key: str) -> bool:
    return any(part in ("ema", "swa", "averaged") for part in key.lower().split("_"))


def _averaged(root: Mapping[Any, Any], chosen: str) -> tuple[str, ...]:
    """Say which averaged weights were passed over: the raw ones belong to the optimizer's state."""
    others = [key for key in root if isinstance(key, str) and key != chosen and _is_average(key)]
    held = [key for key in others if isinstance(root[key], Mapping) and root[key]]
    if not held:
        return ()
    return (f"raw weights ({shown(chosen)}) used; the file also holds averaged ones "
            f"({listed(held)})",)  # fmt: skip


def _extra(state: Mapping[Any, Any]) -> tuple[str, ...]:
    extra = [name for name, value in state.items() if not isinstance(value, Tensor)]
    return (f"extra state of modules left out: {listed(extra)}",) if extra else ()


def _optimizer(root: Mapping[Any, Any], key: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the optimizer's state_dict and notes; the first, where a list holds several."""
    value = root.get(key) if key else None
    notes: tuple[str, ...] = ()
    if isinstance(value, list | tuple) and value:
        if len(value) > 1:
            notes = (f"the first of {len(value)} optimizer states used",)
        value = value[0]
    if not value:
        return None, notes
    if (
        isinstance(value, Mapping)
        and isinstance(value.get("state"), Mapping)
        and isinstance(value.get("param_groups"), list)
    ):
        return dict(value), notes
    return None, (f"{shown(key)} is not a torch optimizer's state_dict and was left out",)


def _number(value: object) -> int | float | None:
    """Return a plain number for a number or a scalar tensor, None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) < LARGEST else None
    return float(value)


def plain_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor is what curv computes with: strided, unquantized, of a plain type."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested
