"""Where an activation is flat, against its derivative in closed form."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from curvcli.signals.slopes import (
    BOUNDED,
    ONE_SIDED,
    OTHERS,
    PASSED,
    activation,
    activations,
    flat,
)

X = torch.linspace(-9, 9, 4001, dtype=torch.float64)

FLAT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x <= 0,
    "relu6": lambda x: (x <= 0) | (x >= 6),
    "hardtanh": lambda x: x.abs() >= 1,
    "tanh": lambda x: 1 - x.tanh() ** 2 < 0.05,
    "sigmoid": lambda x: x.sigmoid() * (1 - x.sigmoid()) < 0.05 / 4,
    "hardsigmoid": lambda x: x.abs() >= 3,
    "softsign": lambda x: 1 / (1 + x.abs()) ** 2 < 0.05,
    "erf": lambda x: 2 / math.sqrt(math.pi) * (-x * x).exp() < 0.05,
    "elu": lambda x: x < math.log(0.05),
    "softplus": lambda x: x.sigmoid() < 0.05,
    "logsigmoid": lambda x: (-x).sigmoid() < 0.05,
    "silu": lambda x: (x.sigmoid() * (1 + x * (1 - x.sigmoid()))).abs() < 0.05,
}


@pytest.mark.parametrize("name", FLAT)
def test_flat_places(name: str) -> None:
    function = getattr(functional, name, None) or getattr(torch, name)
    found = flat(name, function, (X,), {})
    assert found is not None
    assert torch.equal(found, FLAT[name](X))


@pytest.mark.parametrize("name", [*BOUNDED, *ONE_SIDED])
def test_every_activation_has_a_slope_near_one_somewhere(name: str) -> None:
    function = getattr(functional, name, None) or getattr(torch, name)
    more: dict[str, Any] = {"threshold": 0.1, "value": 0.0} if name == "threshold" else {}
    found = flat(name, function, (X,), more)
    assert found is not None
    assert 0.05 < float(found.double().mean()) < 0.95


@pytest.mark.parametrize("variant", [torch.relu_, functional.silu, Tensor.tanh_, torch.relu])
def test_the_input_stays_as_it_is(variant: Any) -> None:
    x = X.clone()
    more = {"inplace": True} if variant is functional.silu else {}
    assert flat(activations()[variant], variant, (x,), more) is not None
    assert torch.equal(x, X)
    assert not x.requires_grad


def test_clamping_at_zero_is_relu() -> None:
    assert activation(torch.clamp, (X,), {"min": 0}) == "relu"
    assert activation(Tensor.clamp_min, (X, 0.0), {}) == "relu"
    assert activation(torch.clamp, (X, -1.0, 1.0), {}) is None
    assert activation(torch.clamp, (X,), {"max": 0}) is None
    assert activation(torch.add, (X, X), {}) is None


ZERO = torch.zeros((), dtype=torch.float64)

RELUS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "clamp": (Tensor.clamp, (X,), {"min": 0}),
    "clip": (torch.clip, (X, 0.0), {}),
    "clamp to a tensor": (torch.clamp, (X,), {"min": ZERO}),
    "maximum": (torch.maximum, (X, ZERO), {}),
    "maximum, other way round": (torch.maximum, (ZERO, X), {}),
    "method": (Tensor.maximum, (X,), {"other": torch.zeros_like(X)}),
    "max of two": (torch.max, (X, ZERO), {}),
    "threshold": (functional.threshold, (X, 0.0, 0.0), {}),
}


@pytest.mark.parametrize("name", RELUS)
def test_relu_in_other_words(name: str) -> None:
    function, args, kwargs = RELUS[name]
    found = activation(function, args, kwargs)
    assert found == ("threshold" if name == "threshold" else "relu")
    off = flat(found, function, args, kwargs)
    assert off is not None
    # At the kink a maximum has half of the slope.
    away = X != 0
    assert torch.equal(off[away], (X <= 0)[away])


def test_what_is_no_relu() -> None:
    assert activation(torch.maximum, (X, X), {}) is None
    assert activation(torch.maximum, (X, ZERO.clone().requires_grad_()), {}) is None
    assert activation(torch.max, (X, 0), {}) is None
    assert activation(torch.max, (X,), {"dim": 0}) is None
    assert activation(torch.max, (ZERO,), {}) is None
    assert activation(torch.clamp, (X,), {"min": X}) is None
    assert activation(torch.vmap, (X,), {}) is None


@pytest.mark.parametrize(("name", "steepest"), [("tanh", 1.0), ("sigmoid", 0.25)])
def test_how_much_less_a_smooth_activation_lets_pass(name: str, steepest: float) -> None:
    # Inputs are spread evenly, as wide ones are near zero.
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(getattr(torch, name)(x).sum(), x)
    off = flat(name, getattr(torch, name), (X,), {})
    assert off is not None
    passed = (slope / steepest).square().sum() / off.logical_not().sum()
    assert float(passed) == pytest.approx(PASSED, abs=0.01)


def test_torch_has_no_elementwise_activation_that_is_unknown() -> None:
    known = {*BOUNDED, *ONE_SIDED, *OTHERS}
    # Shrinking is no squashing, and softmax is no function of one entry.
    left = {"hardshrink", "softshrink", "softmax", "softmin", "softmax2d", "logsoftmax"}
    modules = nn.modules.activation.__all__
    kinds = {n for n in modules if inspect.isclass(getattr(nn, n))} - {"MultiheadAttention"}
    assert {n.lower() for n in kinds} - {n.replace("_", "") for n in known} - left == set()
