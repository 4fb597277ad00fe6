"""A torch module as curv handles it: unwrapped, copied, held, given other values, looked into."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from curvcli.errors import CurvError

T = TypeVar("T")


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off the wrappers that only change how a model runs: compiled, data-parallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """Copy a model with the hooks on its parameters, which a deep copy alone would lose.

    Raises: CurvError (E_MODEL) for a model that holds what cannot be copied.
    """
    # What a module computed from its parameters and keeps, as old-style weight norm does, has a
    # graph and cannot be copied with it; its values can, and every forward pass renews it.
    kept = [t for m in model.modules() for t in vars(m).values()
            if isinstance(t, Tensor) and not t.is_leaf]  # fmt: skip
    try:
        copy = deepcopy(model, {id(t): t.detach().clone() for t in kept})
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise CurvError("E_MODEL", f"the model cannot be copied: {first}") from error
    for p, q in zip(model.parameters(), copy.parameters(), strict=True):
        for hook in (p._backward_hooks or {}).values():
            q.register_hook(hook)  # type: ignore[no-untyped-call]
    return copy


@contextlib.contextmanager
def held(model: nn.Module, *, training: bool, trainable: Collection[str]) -> Iterator[None]:
    """Hold a model in a mode, with these of its parameters trainable, and leave it as found.

    Modes, `requires_grad` and buffers are restored, also after an exception.
    """
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    with _own_buffers(model):
        try:
            model.train(training)
            for name, p in model.named_parameters():
                p.requires_grad_(name in trainable)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for p, flag in flags:
                p.requires_grad_(flag)


@contextlib.contextmanager
def _own_buffers(model: nn.Module) -> Iterator[None]:
    """Let forward passes write to copies of the buffers: graphs may hold on to those."""
    found = [(m, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    copies = {id(b): b.detach().clone() for _, _, b in found}
    try:
        for module, name, buffer in found:
            module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, buffer in found:
            module._buffers[name] = buffer


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw as after torch.manual_seed(seed), and leave every generator's state as found."""
    # An accelerator that nothing has used has no state to keep, and is not woken up for it.
    cuda: Any = torch.cuda
    devices = range(cuda.device_count()) if cuda.is_initialized() else range(0)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            cuda.manual_seed_all(seed)
        yield


class _Evaluation(nn.Module):
    """A function of a model as a module, since functional_call takes nothing else."""

    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Any:
        return self.function()


def with_values(model: nn.Module, values: Mapping[str, Tensor], function: Callable[[], T]) -> T:
    """Call a function while the model's parameters of these names, tied ones too, have values."""
    named = {f"model.{n}": value for n, value in values.items()}
    result: T = functional_call(_Evaluation(model, function), named)
    return result


def watchable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules that take hooks, by name: compiled scripts take none."""
    script: Any = torch.jit.ScriptModule
    return [(n, m) for n, m in model.named_modules() if not isinstance(m, script)]


def titled(name: str, module: nn.Module) -> str:
    """Write a module for a message, its path and its class."""
    return f"{name or 'the model itself'} ({type(module).__name__})"
