"""Which functions are activations, and where they are flat: saturated, or off.

An activation is flat at a value where its slope is below a twentieth of its steepest one: for tanh
beyond |y| = 0.975, for a sigmoid below 0.013 and above 0.987, for ReLU at all of y = 0.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FLAT = 0.05
"""Of the steepest slope: a gradient that passes three such places is a thousandth at most."""

STEEPEST = {"sigmoid": 1 / 4, "hardsigmoid": 1 / 6}
"""Of the others it is 1 to within an eighth, hardswish 1.5."""

BOUNDED = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign", "erf")
"""Flat on both sides: where they are, they are saturated."""

ONE_SIDED = (
    "relu", "relu6", "threshold", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "softplus", "logsigmoid",
)  # fmt: skip
"""Flat on one side: where they are, they are off. ReLU6 is flat above 6 too, which is rare."""

OTHERS = ("leaky_relu", "prelu", "rrelu", "tanhshrink", "glu")
"""Nowhere flat, or no functions of one entry: nothing is said of their slopes."""


@cache
def activations() -> dict[Any, str]:
    """Name the functions, methods and in-place variants of torch that are activations."""
    found: dict[Any, str] = {torch.special.expit: "sigmoid", torch.special.erf: "erf"}
    for name in (*BOUNDED, *ONE_SIDED, *OTHERS):
        for owner in (functional, torch, Tensor):
            for variant in (name, f"{name}_"):
                function = getattr(owner, variant, None)
                if callable(function):
                    found[function] = name
    clamps = (torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clamp_min, Tensor.clamp_min,
              Tensor.clamp_min_)  # fmt: skip
    return found | dict.fromkeys(clamps, "clamp")


def activation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Name the activation that this call is; None where it is none."""
    name = activations().get(function)
    if name != "clamp":
        return name
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return "relu" if not isinstance(low, Tensor) and low == 0 and high is None else None


def is_activation(module: nn.Module) -> bool:
    """Tell the modules of torch that are one activation and nothing else."""
    kind = type(module)
    return kind.__module__ == "torch.nn.modules.activation" and not list(module.children())


def flat(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Tell at which entries of its input an activation is flat; None where that means nothing."""
    if name in OTHERS:
        return None
    x: Tensor = args[0] if args else kwargs["input"]
    rest = {k: v for k, v in kwargs.items() if k != "input"}
    # What this saves is not what the model saves: activation checkpointing counts that.
    own = torch.autograd.graph.saved_tensors_hooks(_same, _same)
    with torch.enable_grad(), own:
        leaf = x.detach().requires_grad_()
        # A copy, since the function may work in place.
        y = function(leaf.clone(), *args[1:], **rest)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
    return slope.abs() < FLAT * STEEPEST.get(name, 1.0)


def _same(t: Tensor) -> Tensor:
    return t
