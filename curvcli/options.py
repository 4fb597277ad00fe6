"""Declare an option once: its flag, its YAML key and its keyword all come from here."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.config import JsonDict

from curvcli.mistakes import Location, mistake, stranger, unknown, wrong

__all__ = [
    "ArrayFile", "Bytes", "FilePath", "Location", "Options", "Seconds", "build", "option", "unknown"
]  # fmt: skip


class Options(BaseModel):
    """A frozen group of options; unknown names and non-finite numbers are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_strangers(cls, values: Any) -> Any:
        """Refuse unknown names here, where the known ones are at hand, and truth as a number."""
        if not isinstance(values, Mapping):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for key, value in values.items():
            if key not in fields and cls.model_config.get("extra") == "forbid":
                raise stranger(str(key), fields)
            if isinstance(value, bool) and key in fields and _numeric(fields[key].annotation):
                raise wrong((str(key),), "should be a number", value)
        return values


def _numeric(annotation: Any) -> bool:
    """Tell whether the type has room for numbers and none for true and false."""
    kinds = _leaves(annotation)
    return bool(kinds & {int, float}) and not kinds & {bool, Any, object}


def _leaves(annotation: Any) -> set[Any]:
    parts = getattr(annotation, "__args__", None)
    if parts:
        return {leaf for part in parts for leaf in _leaves(part)}
    return {annotation if isinstance(annotation, type) else type(annotation)}


def option(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    metavar: str | None = None,
    shown: str | None = None,
    **bounds: Any,
) -> Any:
    """Declare one option: a pydantic field that the command line can read too.

    `bounds` are pydantic's (`ge`, `gt`, `le`, `lt`, `alias`); `shown` replaces the default in the
    help where the value alone would not say it.
    """
    extra: JsonDict = {"short": short, "metavar": metavar, "shown": shown}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def _quantity(units: Mapping[str, float], example: str) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", value)
        if not match or match[2].lower() not in units:
            raise ValueError(f"{value!r} is not a quantity such as {example}")
        return float(match[1]) * units[match[2].lower()]

    return parse


Seconds = Annotated[
    float, BeforeValidator(_quantity(_UNITS, "60s, 5m or 1.5h"), float | str), Field(gt=0)
]
Bytes = Annotated[
    float, BeforeValidator(_quantity(_SIZES, "4GB or 512MiB"), float | str), Field(ge=0)
]


def _beside(value: Any, info: ValidationInfo) -> Any:
    """Take a path relative to the spec's folder, which the validation context names."""
    if not isinstance(value, str | Path):
        return value
    if not str(value) or "\0" in str(value):
        raise ValueError("is not a path")
    try:
        return Path((info.context or {}).get("folder", ""), Path(value).expanduser())
    except RuntimeError as error:
        raise ValueError("names no user's home") from error


def _array_file(path: Path) -> Path:
    if path.suffix.lower() not in (".safetensors", ".csv"):
        raise ValueError("should end in .safetensors or .csv")
    return path


FilePath = Annotated[Path, BeforeValidator(_beside)]
ArrayFile = Annotated[FilePath, AfterValidator(_array_file)]
"""A file to write arrays to; an analysis has at most one such option, for its Result's arrays."""

T = TypeVar("T", bound=BaseModel)


def build(
    kind: type[T],
    values: Mapping[str, Any],
    place: Callable[[Location], str],
    code: Any = "E_SPEC",
    *,
    context: Mapping[str, Any] | None = None,
) -> T:
    """Validate `values` as a `kind`, turning what is wrong into one line.

    `place` names where a location came from (a flag, a line of YAML, a keyword); `context` reaches
    the validators.

    Raises: CurvError with `code` for the first mistake found, counting the others.
    """
    try:
        return kind.model_validate(values, context=context)
    except ValidationError as error:
        raise mistake(values, error, place, code) from None
