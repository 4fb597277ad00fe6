"""Command-line flags made from declared options."""

import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from curvcli.options import Options


def flags(
    kind: type[Options], panel: str, only: Iterable[str] | None = None, without: Iterable[str] = ()
) -> list[inspect.Parameter]:
    """Make a Typer parameter of each option; one that is not given is None, whatever its default.

    What an option accepts is checked by the model it belongs to, for a flag as for a YAML key.
    """
    names = list(kind.model_fields) if only is None else list(only)
    return [_flag(n, kind.model_fields[n], panel) for n in names if n not in set(without)]


def given(values: Mapping[str, Any], kind: type[Options]) -> dict[str, Any]:
    """Pick the options of `kind` that were given on the command line."""
    found = {n: values[n] for n in kind.model_fields if values.get(n) is not None}
    return {n: v for n, v in found.items() if v != []}


def flag_name(name: str) -> str:
    """Spell an option as a flag."""
    return "--" + name.replace("_", "-")


def _flag(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    extra: Mapping[str, Any] = (
        field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    )
    kind = _kind(field.annotation)
    spellings = [flag_name(name)]
    if kind is bool:
        spellings[0] += "/--no-" + name.replace("_", "-")
    if extra.get("short"):
        spellings.append(str(extra["short"]))
    info = typer.Option(
        *spellings,
        help=(field.description or "") + _bounds(field),
        show_default=_shown(field, extra),
        metavar=extra.get("metavar"),
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def _kind(annotation: Any) -> Any:
    """Choose the type that Typer reads: its own for choices, numbers and lists, text for others."""
    if get_origin(annotation) is Annotated:
        return str
    if get_origin(annotation) is Literal or annotation in (bool, int, float, str):
        return annotation
    if get_origin(annotation) in (list, tuple):
        return list[str]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _kind(inner[0]) if len(inner) == 1 else str
    return str


def _shown(field: FieldInfo, extra: Mapping[str, Any]) -> bool | str:
    if extra.get("shown"):
        return str(extra["shown"])
    if field.default is None:
        return False
    if isinstance(field.default, list | tuple):
        return " ".join(map(str, field.default)) or False
    return str(field.default)


def _bounds(field: FieldInfo) -> str:
    """Say the bounds that the field's validation holds."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {getattr(m, key):g}"
        for m in field.metadata
        for key, sign in signs.items()
        if isinstance(getattr(m, key, None), int | float)
    ]
    return f" ({', '.join(found)})" if found else ""
