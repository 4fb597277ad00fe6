"""One forward and backward pass, heard: every leaf module by hooks, every activation by its call.

A leaf is a module during whose call no other module is called, so that attention counts, which has
a layer inside that it never calls. An activation that a forward() calls as a function is a place
of its own, named by the module around it; calls from one line of code are one place.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from curvcli.modules import watchable
from curvcli.signals.place import Place, axis_of, plain
from curvcli.signals.slopes import activation, flat, is_activation

TORCH = str(Path(torch.__file__).parent)

Line = tuple[str, str, str]
"""A module's path, the activation that it calls, and where."""


@dataclass
class _Call:
    """A call of a module that is under way."""

    name: str
    module: nn.Module
    leaf: bool = True
    own: bool = field(init=False)
    """Whether the module is one activation, so that its function's call is its own."""

    def __post_init__(self) -> None:
        self.own = is_activation(self.module)


class Recorder(TorchFunctionMode):
    """Hears one pass of a model; `places` are what it heard, by name.

    `examples` is how many the batch has; `named` has the lines of code that have a name already,
    from one pass to the next.
    """

    def __init__(self, model: nn.Module, examples: int, named: dict[Line, str]) -> None:
        super().__init__()
        self.model = model
        self.examples = examples
        self.places: dict[str, Place] = {}
        self._named = named
        self._events = 0
        self._calls: list[_Call] = []
        self._axis = -1
        self._handles: list[Any] = []
        self._counting = False

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Hear what is computed in this block; gradients are heard until `close`."""
        hooks = []
        try:
            for name, module in watchable(self.model):
                # A parametrization computes a weight; it is no layer.
                if "parametrizations" not in name.split("."):
                    hooks += [
                        module.register_forward_pre_hook(partial(self._enter, name)),
                        module.register_forward_hook(self._leave),
                    ]
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def close(self) -> None:
        """Hear no more gradients: an output that is a parameter would keep its hook."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str, module: nn.Module, _inputs: Any) -> None:
        if self._calls:
            self._calls[-1].leaf = False
        self._calls.append(_Call(name, module))

    def _leave(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        call = self._calls.pop()
        axis = axis_of(module)
        self._axis = self._axis if axis is None else axis
        if call.leaf and any(plain(t) and t.numel() for t in pytree.tree_leaves(output)):
            self._gave(self._place(call.name, type(module).__name__, module), output)

    def _place(self, name: str, kind: str, module: nn.Module, layered: bool | None = None) -> Place:
        """Find a place, or open it, and count a call of it."""
        if name not in self.places:
            holds = any(p.is_floating_point() for p in module.parameters())
            layers = holds if layered is None else layered
            self.places[name] = Place(name, kind, self._events, module, layers)
        found = self.places[name]
        found.last, found.calls = self._events, found.calls + 1
        self._events += 1
        return found

    def _gave(self, place: Place, output: Any) -> None:
        self._counting = True
        for t in pytree.tree_leaves(output):
            if plain(t) and t.numel():
                place.give(t)
                if t.requires_grad and self._by_example(t):
                    place.hooked += t.numel()
                    self._handles.append(t.register_hook(place.receive))
        self._counting = False

    def _by_example(self, t: Tensor) -> bool:
        """Tell what each example has of its own from what all share, such as positions' vectors.

        The gradient by what they share adds up over the batch, so it is no example's.
        """
        return any(n and n % self.examples == 0 for n in t.shape[:2])

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute what is asked, and take note of it where it is an activation."""
        kwargs = kwargs or {}
        name = None if self._counting else activation(func, args, kwargs)
        x = args[0] if args else kwargs.get("input")
        if name is None or not plain(x) or not self._calls:
            return func(*args, **kwargs)
        off = flat(name, func, args, kwargs)
        out = func(*args, **kwargs)
        call = self._calls[-1]
        place = self._own(call) if call.own else self._called(call, name)
        place.function = name
        if not call.own:
            self._gave(place, out)
        if off is not None:
            place.judge(off, self._axis if off.ndim > 1 else 0)
        return out

    def _own(self, call: _Call) -> Place:
        """Give the place of a module that is an activation; its hook will count the call."""
        place = self._place(call.name, type(call.module).__name__, call.module)
        place.calls -= 1
        return place

    def _called(self, call: _Call, name: str) -> Place:
        """Give the place of an activation that a forward() calls, by the line that does."""
        key = (call.name, name, _line())
        if key not in self._named:
            same = sum(k[:2] == key[:2] for k in self._named)
            inside = f"{call.name}: " if call.name else ""
            self._named[key] = f"{inside}{name}()" + (f" {same + 1}" if same else "")
        return self._place(self._named[key], "function", call.module, layered=False)


def _line() -> str:
    """Say which line outside of torch is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(TORCH) and path != __file__:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
