"""Command-line flags made from declared options, and the help that lists them."""

import inspect
import math
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from curvcli.options import Options


def flags(
    kind: type[Options],
    panel: str,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    *,
    negatable: bool = True,
) -> list[inspect.Parameter]:
    """Make a Typer parameter of each option; one that is not given is None, whatever its default.

    What an option accepts is checked by the model it belongs to, for a flag as for a YAML key.
    `negatable` gives a switch its --no- form, which turns off what a spec turns on.
    """
    names = list(kind.model_fields) if only is None else list(only)
    kept = [n for n in names if n not in set(without)]
    return [_flag(n, kind.model_fields[n], panel, negatable) for n in kept]


def given(values: Mapping[str, Any], kind: type[Options]) -> dict[str, Any]:
    """Pick the options of `kind` that were given on the command line."""
    found = {n: values[n] for n in kind.model_fields if values.get(n) is not None}
    return {n: v for n, v in found.items() if v != []}


def flag_name(name: str) -> str:
    """Spell an option as a flag."""
    return "--" + name.replace("_", "-")


class Command(TyperCommand):
    """A command whose help lists the options under the titles of their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each panel, in the order in which they first appear."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None)
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = panel or ("Arguments" if argument else "Options")
                panels.setdefault(title, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _flag(name: str, field: FieldInfo, panel: str, negatable: bool) -> inspect.Parameter:
    extra: Mapping[str, Any] = (
        field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    )
    accepted = _accepted(field.annotation)
    kind: Any = {bool: bool, list: list[str]}.get(accepted, str)
    choices = [str(c) for c in get_args(accepted)] if get_origin(accepted) is Literal else []
    spellings = [flag_name(name)]
    if kind is bool and negatable:
        spellings[0] += "/--no-" + name.replace("_", "-")
    if extra.get("short"):
        spellings.append(str(extra["short"]))
    info = typer.Option(
        *spellings,
        help=(field.description or "") + _remarks(field, extra),
        show_default=False,
        metavar=extra.get("metavar") or _metavar(accepted, choices),
        autocompletion=(lambda: choices) if choices else None,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def _accepted(annotation: Any) -> Any:
    """Find what an option takes besides None: a Literal, bool, int, float, list, or else str."""
    if get_origin(annotation) is Literal or annotation in (bool, int, float):
        return annotation
    if get_origin(annotation) in (list, tuple, dict):
        return list
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _accepted(inner[0]) if len(inner) == 1 else str
    return str


def _metavar(accepted: Any, choices: list[str]) -> str | None:
    if choices:
        return f"[{'|'.join(choices)}]"
    if accepted is bool:
        return ""
    return {int: "INT", float: "NUMBER"}.get(accepted, "TEXT")


def _remarks(field: FieldInfo, extra: Mapping[str, Any]) -> str:
    """Say the default, and the bounds that the field's validation holds."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    default = _default(field, extra)
    found = [f"default {default}"] if default else []
    found += [
        f"{sign} {_number(getattr(m, key))}"
        for m in field.metadata
        for key, sign in signs.items()
        if isinstance(getattr(m, key, None), int | float)
    ]
    return f" ({', '.join(found)})" if found else ""


def _default(field: FieldInfo, extra: Mapping[str, Any]) -> str:
    if extra.get("shown"):
        return str(extra["shown"])
    if field.default is None or field.default is False or field.is_required():
        return ""
    if isinstance(field.default, list | tuple):
        return " ".join(map(str, field.default))
    return "on" if field.default is True else str(field.default)


def _number(bound: float) -> str:
    """Write a bound; 2**63 is plainer than its nineteen digits."""
    half, power = math.frexp(bound)
    return f"2**{power - 1}" if half == 0.5 and power > 32 else f"{bound:g}"
