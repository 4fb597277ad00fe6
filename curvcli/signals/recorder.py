"""One forward and backward pass, heard: every leaf module by hooks, every activation by its call.

A leaf is a module during whose call no other module is called, so that attention counts, which has
a layer inside that it never calls. An activation that a forward() calls as a function is a place
of its own, named by the module around it. An activation that is called after several layers, a
module or a line of code, is a place after each of them.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from curvcli.modules import watchable
from curvcli.signals.calls import Calls, Key
from curvcli.signals.place import Place, axis_of, plain
from curvcli.signals.slopes import activation, flat, is_activation, squashed

TORCH = str(Path(torch.__file__).parent)

STATEFUL = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""These return something besides their outputs: states of which some are outputs again and others
have no bounds, or the weights of the attention."""


@dataclass
class _Call:
    """A call of a module that is under way.

    own: whether the module is one activation, so that its function's call is its own
    """

    key: Key
    module: nn.Module
    own: bool
    leaf: bool = True


class Recorder(TorchFunctionMode):
    """Hears one pass of a model over so many examples; `places` are what it heard."""

    def __init__(self, model: nn.Module, examples: int) -> None:
        super().__init__()
        self.model = model
        self.examples = examples
        self.places: dict[Key, Place] = {}
        self._events = 0
        self._order = Calls()
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
        for place in self.places.values():
            # Entries of one example, such as pixels or steps, are not independent of each other.
            place.seen = min(place.seen, self.examples)

    def _enter(self, name: str, module: nn.Module, _inputs: Any) -> None:
        if self._calls:
            self._calls[-1].leaf = False
        own = is_activation(module)
        if not own:
            self._order.enter(name, module)
        self._calls.append(_Call(self._order.key(name) if own else Key(name), module, own))

    def _leave(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        call = self._calls.pop()
        axis = axis_of(module)
        self._axis = self._axis if axis is None else axis
        if call.leaf and any(plain(t) and t.numel() for t in pytree.tree_leaves(output)):
            self._gave(self._place(call.key, module), output)

    def _place(self, key: Key, module: nn.Module) -> Place:
        """Find a place, or open it, and count a call of it."""
        if key not in self.places:
            kind = "function" if key.function else type(module).__name__
            holds = any(p.is_floating_point() for p in module.parameters())
            layered = holds and not key.function
            self.places[key] = Place(key.label, kind, self._events, module, layered)
        found = self.places[key]
        found.last, found.calls = self._events, found.calls + 1
        self._events += 1
        return found

    def _gave(self, place: Place, output: Any) -> None:
        self._counting = True
        first = _first(output) if isinstance(place.module, STATEFUL) else None
        for t in pytree.tree_leaves(output) if first is None else [first]:
            if plain(t) and t.numel():
                place.give(t)
                if t.requires_grad and self._by_example(t):
                    place.hooked += t.numel()
                    self._handles.append(t.register_hook(place.receive))
        # A model may go on with the last state alone, so that the gradient comes back by that.
        for t in pytree.tree_leaves(output[1:]) if first is not None else []:
            if plain(t) and t.requires_grad:
                self._handles.append(t.register_hook(place.receive_beside))
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
        if name is None or not self._calls or not plain(squashed(func, args, kwargs)):
            return func(*args, **kwargs)
        off = flat(name, func, args, kwargs)
        out = func(*args, **kwargs)
        call = self._calls[-1]
        key = call.key if call.own else self._order.key(call.key.path, name, _line())
        place = self._place(key, call.module)
        place.function = name
        if call.own:
            place.calls -= 1  # the module's hook will count it
        else:
            self._gave(place, out)
        if off is not None:
            place.judge(off, self._axis if off.ndim > 1 else 0)
        return out


def _first(output: Any) -> Tensor | None:
    """Give the outputs of a module that returns something else besides; None where it does not."""
    if not isinstance(output, tuple):
        return None
    first = output[0]
    found = first.data if isinstance(first, PackedSequence) else first
    return found if isinstance(found, Tensor) else None


def _line() -> str:
    """Say which line outside of torch is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(TORCH) and path != __file__:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
