"""Modules with a right gradient and a wrong second derivative, or none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from curvcli.selftest import Of, op, saving


def numpy_tanh(ctx: Any, x: Tensor) -> Tensor:
    y = x.tanh()
    ctx.y = y.detach().numpy().copy()
    return y


# A backward of its own, whose backward is off by two in one of its inputs.
scaled = saving(
    lambda g, y: g * (1 - y * y),
    lambda h, out, g, y: (h * (1 - y * y), 2 * h * g * -2 * y),
)
once: Callable[..., Any] = once_differentiable  # torch leaves it without types


def keep(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x.tanh()


WRONG: dict[str, Callable[[], nn.Module]] = {
    "a detached factor": lambda: Of(saving(torch.tanh, lambda g, y, x: g * (1 - y.detach() ** 2))),
    "a value kept by numpy": lambda: Of(
        op(numpy_tanh, lambda ctx, g: g * torch.from_numpy(1 - ctx.y**2))
    ),
    "a wrong double backward": lambda: Of(saving(torch.tanh, lambda g, y, x: scaled(g, y))),
    "half of the second derivative": lambda: Of(
        saving(torch.square, lambda g, y, x: g * (x + x.detach()))
    ),
    "an incoming gradient detached": lambda: Of(
        saving(torch.tanh, lambda g, y, x: g.detach() * (1 - y**2))
    ),
    # torch raises where such a derivative is asked for alone, and gives none beside others.
    "once differentiable": lambda: Of(
        op(keep, once(lambda ctx, g: g / ctx.saved_tensors[0].cosh() ** 2))
    ),
}
