"""An optimizer as a checkpoint saved it: parameters by name, and torch's own class to step with."""

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curvcli.errors import CurvError

FROM_SPEC = "as the spec says, before its first step"
"""The rule of an optimizer that no file holds."""

State = dict[str, Any]  # one parameter's entries: exp_avg, step, ...


@dataclass(frozen=True)
class Group:
    """Parameters that share their options, in the optimizer's order."""

    names: tuple[str, ...]
    options: dict[str, Any]  # lr, betas, ...; no "params"


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer's class, groups and state, with the state keyed by parameter name."""

    kind: str  # the class in torch.optim
    groups: tuple[Group, ...]
    state: dict[str, State]
    rule: str  # how the names were found, for the report
    verified: bool  # False where there was nothing to compare the names with, as with plain SGD
    alike: tuple[tuple[str, ...], ...] = ()  # what only its place in a group tells apart, by sets
    notes: tuple[str, ...] = ()  # what the reader should know of how it was read

    @property
    def untouched(self) -> bool:
        """Whether no step was taken, as a class that keeps state shows by having none."""
        return not self.state and bool(traits(self.kind).required)

    @property
    def idle(self) -> frozenset[str]:
        """The parameters without state where others have some: no step had a gradient of them."""
        stepped = {n for n, s in self.state.items() if s and float(s.get("step", 1)) > 0}
        if not stepped or self.kind == "LBFGS":  # which keeps all of its state with the first
            return frozenset()
        # Without momentum SGD keeps nothing of what it moves.
        keeping = (g for g in self.groups if self.kind != "SGD" or g.options.get("momentum"))
        return frozenset(name for group in keeping for name in group.names) - stepped

    @classmethod
    def of(cls, optimizer: Optimizer, model: nn.Module) -> "SavedOptimizer":
        """Take an optimizer as it stands, beside the model that it trains.

        Raises: CurvError (E_OPTIMIZER) where its class is not torch's own, or it steps what is no
        parameter of this model.
        """
        kind = type(optimizer).__name__
        if classes().get(kind) is not type(optimizer):
            hint = f"torch.optim's are known: {', '.join(sorted(classes()))}"
            said = f"{kind} is no optimizer of torch for dense gradients"
            raise CurvError("E_OPTIMIZER", said, hint)
        names = {id(p): name for name, p in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            unknown = [tuple(p.shape) for p in group["params"] if id(p) not in names]
            if unknown:
                said = f"the optimizer steps a tensor of shape {unknown[0]} that is not the model's"
                raise CurvError("E_OPTIMIZER", said, "pass the model that it was made for")
            named = tuple(names[id(p)] for p in group["params"])
            groups.append(Group(named, options_of(group)))
        # Looking at the state of a parameter leaves an empty entry; a parameter may be gone.
        state = {
            names[id(p)]: dict(entries)
            for p, entries in optimizer.state.items()
            if entries and id(p) in names
        }
        return cls(kind, tuple(groups), state, "the tensors that it holds", True)

    def rebuild(self, params: Mapping[str, Tensor]) -> Optimizer:
        """Return a torch optimizer over these leaf tensors whose next step is the trainer's.

        The state is copied: stepping changes `params`, never this object. Entries of a parameter's
        shape take its dtype and device, as in torch's own load_state_dict; the rest stays as saved.
        """
        absent = [name for group in self.groups for name in group.names if name not in params]
        if absent:
            message = f"the optimizer's {absent[0]} is not among the parameters"
            raise CurvError("E_OPTIMIZER", message, "select every parameter of the optimizer")
        groups = [self._group(group, params) for group in self.groups]
        make: Any = optimizer_class(self.kind)
        optimizer: Optimizer = make([dict(group) for group in groups])
        index = {name: i for i, name in enumerate(n for g in self.groups for n in g.names)}
        optimizer.load_state_dict(
            {
                "state": {index[name]: _copy(state) for name, state in self.state.items()},
                "param_groups": [
                    {**group, "params": [index[name] for name in saved.names]}
                    for group, saved in zip(groups, self.groups, strict=True)
                ],
            }
        )
        self._restore_scalars(optimizer, params)
        return optimizer

    def _group(self, group: Group, params: Mapping[str, Tensor]) -> dict[str, Any]:
        tensors = [params[name] for name in group.names]
        options = _runnable(self.kind, copy.deepcopy(group.options), tensors)
        return {**traits(self.kind).defaults, **options, "params": tensors}

    def _restore_scalars(self, optimizer: Optimizer, params: Mapping[str, Tensor]) -> None:
        """Undo torch's cast of scalar entries to the parameter's dtype.

        NAdam's mu_product beside bfloat16 parameters is float32 in training, bfloat16 after torch's
        load_state_dict.
        """
        for name, state in self.state.items():
            loaded = optimizer.state[params[name]]
            for key in traits(self.kind).scalars & state.keys():
                saved, cast = state[key], loaded[key]
                if isinstance(saved, Tensor) and key != "step" and saved.dtype != cast.dtype:
                    loaded[key] = saved.clone().to(cast.device)


@dataclass(frozen=True)
class Traits:
    """What torch's installed version of a class works with."""

    defaults: dict[str, Any]  # every option of a group, with torch's default
    required: frozenset[str]  # entries that every state has
    allowed: frozenset[str]  # entries that a state may have
    scalars: frozenset[str]  # entries that have no parameter's shape
    shaped: frozenset[str]  # entries that have the parameter's shape


@cache
def classes() -> dict[str, type[Optimizer]]:
    """Return torch's optimizers for dense gradients by name."""
    found = {name: value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in found.items()
        if issubclass(value, Optimizer) and value is not Optimizer and name != "SparseAdam"
    }


def optimizer_class(kind: str) -> type[Optimizer]:
    """Return the class of torch.optim with this name."""
    if kind not in classes():
        small = {name.lower(): name for name in classes()}
        close = difflib.get_close_matches(kind.lower(), small, n=1)
        every = f"set optimizer.class to one of {', '.join(sorted(classes()))}"
        hint = f"did you mean {small[close[0]]}?" if close else every
        raise CurvError("E_OPTIMIZER", f"torch.optim has no {kind}", hint)
    return classes()[kind]


@cache
def bare(kind: str) -> type[Optimizer]:
    """Return the class as torch has it, less what torch.compile wants of it; for toys alone.

    torch imports torch._dynamo, a second of work, to add a group and to step. A class is asked for
    what it keeps where only a file is read, and that should not take longer than torch itself.
    """
    original: Any = optimizer_class(kind)

    def add_param_group(self: Optimizer, group: dict[str, Any]) -> None:
        self.param_groups.append({**self.defaults, **group})

    step = torch.no_grad()(inspect.unwrap(original.step))
    return type(kind, (original,), {"add_param_group": add_param_group, "step": step})


@cache
def traits(kind: str) -> Traits:
    """Ask torch's class what it keeps: let it step on a toy, plain and with every extra."""
    extras = {"amsgrad": True, "centered": True, "momentum": 0.9}
    states, scalars, shaped = [], set(), set()
    defaults = _toy(kind, (2, 3), {})[0].defaults
    for options in ({}, {key: value for key, value in extras.items() if key in defaults}):
        for shape in ((2, 3), (3,)):
            try:
                optimizer, param = _toy(kind, shape, options)
            except ValueError:  # Muon takes matrices alone
                continue
            optimizer.step(lambda: 1.0)  # LBFGS wants a loss; the others ignore it
            state = optimizer.state[param]
            states.append(frozenset(state))
            scalars |= {k for k, v in state.items() if not isinstance(v, Tensor) or v.ndim == 0}
            shaped |= {k for k, v in state.items() if isinstance(v, Tensor) and v.shape == shape}
    return Traits(
        defaults=dict(defaults),
        required=frozenset.intersection(*states),
        allowed=frozenset.union(*states),
        scalars=frozenset(scalars),
        shaped=frozenset(shaped - scalars),
    )


def _toy(kind: str, shape: tuple[int, ...], options: dict[str, Any]) -> tuple[Optimizer, Tensor]:
    param = torch.nn.Parameter(torch.zeros(shape))
    param.grad = torch.ones(shape)
    make: Any = bare(kind)
    return make([param], lr=0.1, **options), param


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Give what stands in a group of torch's beside its parameters."""
    return {k: v for k, v in group.items() if k not in ("params", "param_names")}


def _copy(state: State) -> State:
    """Copy a state; clone, where deepcopy would copy the whole storage behind a slice."""
    return {
        key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in state.items()
    }


def _runnable(kind: str, options: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """Switch off the implementations that these tensors' device lacks; the formula stays.

    differentiable steps in place on tensors that are no leaves, and a leaf is what is stepped here.
    """
    if options.get("differentiable"):
        options["differentiable"] = False
    lacking = [key for key in _implementations(options) if not _all_support(kind, key, tensors)]
    for key in lacking:
        options[key] = False if key == "capturable" else None
    if "capturable" in lacking:  # which alone lets options be tensors
        for key, value in options.items():
            if isinstance(value, Tensor) and value.numel() == 1:
                options[key] = value.item()
    return options


def _implementations(options: dict[str, Any]) -> Iterator[str]:
    yield from (key for key in ("fused", "capturable") if options.get(key))


def _all_support(kind: str, option: str, tensors: list[Tensor]) -> bool:
    return all(
        _supports(kind, option, device, dtype)
        for device, dtype in {(tensor.device, tensor.dtype) for tensor in tensors}
    )


@cache
def _supports(kind: str, option: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell by one step on a toy, since torch keeps its lists of devices to itself."""
    param = torch.nn.Parameter(torch.zeros((2, 2), device=device, dtype=dtype))
    param.grad = torch.ones_like(param)
    make: Any = optimizer_class(kind)
    try:
        make([param], **{option: True}).step()
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError):
        return False
    return True
