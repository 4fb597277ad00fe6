"""The spec's blocks on how to run: the optimizer beside the checkpoint, the device, the seed."""

import re
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict

from curvcli.options import Bytes, Options, Seconds, option


def _setting(value: Any, nested: bool = False) -> Any:
    """Pass what an optimizer can take: numbers, truth, text, nothing, and lists of these."""
    if isinstance(value, list | tuple) and not nested:
        return [_setting(item, nested=True) for item in value]
    if not isinstance(value, str | int | float | None):
        raise ValueError("should be a number, text, true, false or a list of these")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("should be finite")
    return value


def listed(value: Any) -> Any:
    """Take a single text for a list of one."""
    return [value] if isinstance(value, str) else value


class Training(Options):
    """What a training loop does to the gradient before a step."""

    grad_clip: float | None = option(None, "clip the gradient's global norm to this", gt=0)
    grad_clip_value: float | None = option(None, "clip every entry of the gradient to this", gt=0)
    accumulate: int | None = option(
        None,
        "micro-batches whose mean losses one step's gradient is the sum of, not the mean",
        ge=1,
    )

    @property
    def training(self) -> dict[str, Any]:
        """Return what the training loop does to the gradient before a step."""
        named = {"grad_clip": self.grad_clip, "grad_clip_value": self.grad_clip_value,
                 "accumulate": self.accumulate}  # fmt: skip
        return {key: value for key, value in named.items() if value is not None}


class Optimizer(Training):
    """What the checkpoint does not say of its optimizer; other keys are the class's options."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_setting)]]

    kind: str | None = option(None, "class in torch.optim", alias="class", shown="from the file")
    groups: tuple[tuple[str, ...], ...] | None = option(
        None, "one list of parameter name patterns per group", shown="from the file"
    )

    @property
    def options(self) -> dict[str, Any]:
        """Return lr, momentum and whatever else stands in the block."""
        return dict(self.model_extra or {})

    @property
    def block(self) -> dict[str, Any]:
        """Return the class, the groups and the options, without what is not given."""
        groups = self.groups and [list(group) for group in self.groups]
        named = {"class": self.kind, "groups": groups, **self.options}
        return {key: value for key, value in named.items() if value is not None}


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise ValueError("is not a device; known are auto, cpu, cuda, cuda:N and mps")
    return text


class Run(Options):
    """Where and how everything is computed."""

    device: Annotated[str, AfterValidator(_device)] = option(
        "auto", "auto, cpu, cuda, cuda:N or mps", metavar="DEVICE"
    )
    dtype: Literal["auto", "float32", "float64"] = option(
        "auto", "precision; auto is float32, and float64 for gradcheck"
    )
    seed: int = option(0, "seed of everything random", ge=0, lt=2**63)
    mode: Literal["auto", "eval", "train", "batchnorm"] = option(
        "auto",
        "mode of the model; batchnorm is eval with BatchNorm by its batch, and auto is eval, but "
        "batchnorm for ratio and stability",
    )
    params: Annotated[tuple[str, ...], BeforeValidator(listed, str | tuple[str, ...])] = option(
        ("*",), "only parameters whose names match", metavar="GLOB", shown="all"
    )
    hvp: Literal["auto", "kept", "rebuilt", "forward", "linearize", "differences"] = option(
        "auto", "how to compute curvature-vector products"
    )
    memory: Bytes | None = option(
        None, "memory for kept graphs, as in 4GB", metavar="BYTES", shown="what is free"
    )
    budget: Seconds | None = option(
        None,
        "stop each analysis after this time, as in 60s or 5m",
        metavar="TIME",
        shown="no limit",
    )
