"""The spec's blocks that name code: the model, the loss and the penalties."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator, TypeAdapter, WithJsonSchema

from curvcli.mistakes import dotted, stranger, wrong
from curvcli.options import Options, option


@dataclass(frozen=True)
class Layer:
    """A class of torch.nn with its arguments, or a Sequential of `layers`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    layers: tuple["Layer", ...] = ()


@dataclass(frozen=True)
class Target:
    """A user's own class or function: `from module import name`, called with `args`."""

    module: str
    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedLoss:
    """A function of torch.nn.functional, called as name(output, y, **args)."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputLoss:
    """The loss that the model itself returns, under this key of its output."""

    key: str | int


@dataclass(frozen=True)
class TargetLoss:
    """A user's own loss function, bound to `args`."""

    module: str
    name: str
    args: dict[str, Any] = field(default_factory=dict)


# How a target and its arguments are spelled: here, and in jsonargparse.
SPELLINGS = {"target": "args", "class_path": "init_args"}
HYDRA = "_target_"  # hydra: its arguments stand beside it


WAYS = "layers: [...] or target: module:function"


def _called(value: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return the module, the name and the arguments of a target in any of its spellings."""
    key = next(key for key in (*SPELLINGS, HYDRA) if key in value)
    if key == HYDRA:
        args = {name: given for name, given in value.items() if name != HYDRA}
        if special := [name for name in args if name.startswith("_") and name.endswith("_")]:
            raise wrong((special[0],), "this key is not supported")
    else:
        _only(value, (key, SPELLINGS[key]))
        args = _arguments(value, SPELLINGS[key])
    path = value[key]
    module, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not colon and key != "target":
        module, _, name = module.rpartition(".")
    if not _dotted_name(module) or not _dotted_name(name) or module.endswith(".py"):
        raise wrong((key,), "should be written module:function, as in 'tinygpt:GPT'", path)
    return module, name, args


def _arguments(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    args = value.get(key)
    if args is None:
        return {}
    if not isinstance(args, Mapping):
        raise wrong((key,), "should be a mapping of argument names to values", args)
    return dict(args)


def _only(value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise stranger(key, known)


def _dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _targeted(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in (*SPELLINGS, HYDRA))


def _layer(value: Any) -> Layer:
    if isinstance(value, Layer):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, given),) = value.items()
    elif isinstance(value, Mapping):
        keys = ", ".join(dotted((key,)) for key in list(value)[:3]) or "none"
        raise wrong((), f"a layer is one {{Name: arguments}}, not {len(value)} keys: {keys}")
    else:
        name, given = value, None
    if not isinstance(name, str) or not name.isidentifier():
        raise wrong((), "is not a class of torch.nn, such as Linear", name)
    if name == "Sequential" and given is not None:
        return Layer(name, layers=_SEQUENTIAL.validate_python(value)[name])
    if isinstance(given, Mapping):
        return Layer(name, kwargs=dict(given))
    args = given if isinstance(given, list | tuple) else () if given is None else (given,)
    return Layer(name, args=tuple(args))


AnyLayer = Annotated[Layer, PlainValidator(_layer)]
_SEQUENTIAL: TypeAdapter[dict[str, tuple[Layer, ...]]] = TypeAdapter(
    dict[str, tuple[AnyLayer, ...]]
)


class Layers(Options):
    """A model made of torch.nn's own layers, one after the other; no user code runs."""

    layers: tuple[AnyLayer, ...] = option(..., "layers of torch.nn, in order", min_length=1)


def _model(value: Any) -> Layers | Target:
    if isinstance(value, Layers | Target):
        return value
    if not isinstance(value, Mapping):
        raise wrong((), f"should be a mapping with {WAYS}", value)
    if "layers" in value and _targeted(value):
        raise wrong((), "has both layers: and a target:, and can have only one of them")
    if "layers" in value:
        return Layers.model_validate(value)
    if _targeted(value):
        return Target(*_called(value))
    _only(value, ("layers", "target", "args", "class_path", "init_args", HYDRA))
    raise wrong((), f"needs {WAYS}")


def _loss(value: Any) -> NamedLoss | OutputLoss | TargetLoss:
    if isinstance(value, NamedLoss | OutputLoss | TargetLoss):
        return value
    if _targeted(value):
        return TargetLoss(*_called(value))
    if isinstance(value, str):
        return _named(value, {}, ())
    if not isinstance(value, Mapping):
        raise wrong((), "should be a function of torch.nn.functional, or a mapping", value)
    if "output" in value:
        _only(value, ("output",))
        key = value["output"]
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise wrong(("output",), "should be a key or an index of the model's output", key)
        return OutputLoss(key)
    _only(value, ("name", "args", "output", "target", "class_path", "init_args", HYDRA))
    if "name" not in value:
        raise wrong((), "needs name:, output: or target:")
    return _named(value["name"], _arguments(value, "args"), ("name",))


def _named(name: Any, args: dict[str, Any], loc: tuple[str, ...]) -> NamedLoss:
    if not isinstance(name, str) or not name.isidentifier():
        raise wrong(loc, "is not a function of torch.nn.functional, such as cross_entropy", name)
    return NamedLoss(name, args)


NORMS = ("l2", "l1")
"""The penalties that a number is enough for, their weight."""


def _penalty(value: Any) -> float | Target:
    if isinstance(value, Target):
        return value
    if _targeted(value):
        return Target(*_called(value))
    if isinstance(value, Mapping):
        _only(value, ("target", "args", "class_path", "init_args", HYDRA))
        raise wrong((), "needs target: module:function")
    if isinstance(value, bool) or not isinstance(value, int | float):
        said = "should be a number, the penalty's weight, or a mapping with target: module:function"
        raise wrong((), said, value)
    if not isfinite(value) or value < 0:
        raise wrong((), "should be finite and not negative", value)
    return float(value)


def _known(penalties: dict[str, float | Target]) -> dict[str, float | Target]:
    for name, penalty in penalties.items():
        if isinstance(penalty, float) and name not in NORMS:
            raise stranger(name, (*NORMS, "your own as {target: module:function}"))
    return penalties


def _mapping(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": [required],
        "additionalProperties": required == HYDRA,
    }  # fmt: skip


_TEXT: dict[str, Any] = {"type": "string"}
_ARGS: dict[str, Any] = {"type": "object"}
_LAYER = {"anyOf": [_TEXT, {"type": "object", "minProperties": 1, "maxProperties": 1}]}
_TARGETS = [
    *(_mapping(key, **{key: _TEXT, args: _ARGS}) for key, args in SPELLINGS.items()),
    _mapping(HYDRA, **{HYDRA: _TEXT}),
]
_MODELS = [_mapping("layers", layers={"type": "array", "items": _LAYER}), *_TARGETS]
_LOSSES = [
    _TEXT,
    _mapping("name", name=_TEXT, args=_ARGS),
    _mapping("output", output={"type": ["string", "integer"]}),
    *_TARGETS,
]
_WEIGHT: dict[str, Any] = {"type": "number", "minimum": 0}
_PENALTIES = {
    "type": "object",
    "properties": {name: {"anyOf": [_WEIGHT, *_TARGETS]} for name in NORMS},
    "additionalProperties": {"anyOf": _TARGETS},
}

Model = Annotated[Layers | Target, PlainValidator(_model), WithJsonSchema({"anyOf": _MODELS})]
Loss = Annotated[
    NamedLoss | OutputLoss | TargetLoss, PlainValidator(_loss), WithJsonSchema({"anyOf": _LOSSES})
]
Penalties = Annotated[
    dict[str, Annotated[float | Target, PlainValidator(_penalty)]],
    AfterValidator(_known),
    WithJsonSchema(_PENALTIES),
]
