"""Which functions are activations, and where they are flat: saturated, or off.

An activation is flat at a value where its slope is below a twentieth of its steepest one: for tanh
beyond |y| = 0.975, for a sigmoid below 0.013 and above 0.987, for ReLU at all of y = 0.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvcli.signals.place import plain

FLAT = 0.05
"""Of the steepest slope: a gradient that passes three such places is a thousandth at most."""

STEEPEST = {"sigmoid": 1 / 4, "hardsigmoid": 1 / 6}
"""Of the others it is 1 to within an eighth, hardswish 1.5."""

BOUNDED = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign", "erf")
"""Flat on both sides: where they are, they are saturated."""

HARD = ("hardtanh", "hardsigmoid")
"""Bounded ones that are straight up to a corner, and flat from there on."""

PASSED = 0.3
"""Of an equal share of outputs off the flat part, a smooth bounded activation lets so much of the
gradient's power pass, against a hard one: over wide inputs the integral of the squared slope, 4/3
for tanh, to the width of the part that is not flat, 4.36; for the sigmoid 8/3 to 8.71."""

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
    for name in ("clamp", "clip", "clamp_min", "maximum", "max"):
        for owner in (torch, Tensor):
            for variant in (name, f"{name}_"):
                function = getattr(owner, variant, None)
                if callable(function):
                    found[function] = "maximum" if "max" in name else "clamp"
    return found


def activation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Name the activation that this call is; None where it is none."""
    name = activations().get(function)
    if name == "maximum":
        return "relu" if any(map(_is_zero, _operands(args, kwargs))) else None
    if name != "clamp":
        return name
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return "relu" if _is_zero(low) and high is None else None


def squashed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give what an activation is called on: of a maximum with zero, the other operand."""
    if activations().get(function) == "maximum":
        x, other = _operands(args, kwargs)
        return other if _is_zero(x) else x
    return args[0] if args else kwargs.get("input")


def _operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Give the two operands of a maximum; nothing where it is one over an axis."""
    given = [*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)]
    two = len(given) == 2 and all(isinstance(t, Tensor) for t in given)
    return (given[0], given[1]) if two else (None, None)


def _is_zero(bound: Any) -> bool:
    """Tell a bound that is zero throughout, and is no function of anything."""
    if not isinstance(bound, Tensor):
        return bound is not None and bool(bound == 0)
    return plain(bound) and not bound.requires_grad and not bound.any()


def is_activation(module: nn.Module) -> bool:
    """Tell the modules of torch that are one activation and nothing else."""
    kind = type(module)
    return kind.__module__ == "torch.nn.modules.activation" and not list(module.children())


def flat(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Tell at which entries of its input an activation is flat; None where that means nothing."""
    if name in OTHERS:
        return None
    x: Tensor = squashed(function, args, kwargs)
    if activations().get(function) == "maximum":
        # It is the same either way round.
        function, args, kwargs = torch.maximum, (x, x.new_zeros(())), {}
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
