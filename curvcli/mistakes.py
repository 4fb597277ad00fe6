"""Say what is wrong with a user's values: one plain line with the place and the nearest remedy."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from curvcli.errors import CurvError

Location = tuple[int | str, ...]


def wrong(loc: Location, message: str, value: Any = ()) -> ValidationError:
    """Return what a validator raises to blame the part at `loc` of its input, showing a value."""
    return _blame(loc, PydanticCustomError("wrong", "{said}", {"said": message}), value)


def stranger(name: str, known: Iterable[str], loc: Location = ()) -> ValidationError:
    """Return what a validator raises where the key `name` below `loc` is not among `known`."""
    details = PydanticCustomError("stranger", "unknown key", {"known": list(known)})
    return _blame((*loc, name), details, name)


def _blame(loc: Location, error: PydanticCustomError, value: Any) -> ValidationError:
    details = InitErrorDetails(type=error, loc=loc, input=value)
    return ValidationError.from_exception_data("options", [details])


def unknown(name: str, known: Iterable[str], place: str, code: Any = "E_SPEC") -> CurvError:
    """Say that `name` is not known there, and suggest the nearest one that is."""
    known = list(known)
    shortened = [*sorted(known)[:MANY], *(["..."] if len(known) > MANY else [])]
    hint = nearest(name, known) or f"known are {', '.join(shortened)}"
    message = f"{place}: {shown(name)} is not known here"
    return CurvError(code, message, hint if known else "remove it")


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is most like `name`; empty where none is."""
    close = difflib.get_close_matches(name[:LONGEST], list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


MANY = 20  # names in a hint
LONGEST = 60  # characters of one value in a message; a hostile one can be a megabyte
_SPELLED = {None: "null", True: "true", False: "false"}


def shown(value: str | float | bool | None) -> str:
    """Write a value for a message: one line, printable, not too long."""
    if value is None or isinstance(value, bool):
        return _SPELLED[value]
    if isinstance(value, str) and len(value) > LONGEST:
        return repr(value[: LONGEST - 3] + "...")
    return repr(value)


def dotted(loc: Location) -> str:
    """Write a key path for a message, as in `analyses.eig.top`."""
    return ".".join(p if re.fullmatch(r"[\w-]{1,60}", p := str(part)) else shown(p) for part in loc)


# What pydantic's types of mistakes are called by people who never heard of it.
_KINDS = {
    "string": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "path": "a path", "tuple": "a list", "list": "a list", "dict": "a mapping",
    "mapping": "a mapping", "model": "a mapping", "finite": "finite",
}  # fmt: skip
_WAYS = ("type", "parsing", "from_float", "attributes_type", "number")
_REQUIRED = "this key is required"


def mistake(
    values: Any, error: ValidationError, place: Callable[[Location], str], code: Any
) -> CurvError:
    """Tell the first mistake: an unknown key is the likeliest slip, then the deepest one."""
    found: dict[Location, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_real(details, values), []).append(details)
    loc = min(found, key=lambda at: (found[at][0]["type"] not in _STRANGERS, -len(at)))
    first = found[loc][0]
    context = first.get("ctx", {})
    if first["type"] == "stranger":
        name = str(loc[-1])
        within = place(loc).removesuffix(dotted((name,))).rstrip(".: ")
        return unknown(name, context["known"], within or place(()), code)
    if first["type"] == "union_tag_invalid":
        return unknown(context["tag"], _quoted(context["expected_tags"]), place(loc), code)
    more = sum(1 for at in found if at != loc[: len(at)])
    hint = f"and {more} more mistake{'s' * (more > 1)}" if more else ""
    value = first.get("input")
    if first["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, _quoted(context["expected"])) or hint
    if first["type"] == "string_type" and isinstance(value, int | float):
        hint = hint or "put it in quotes"
    return CurvError(code, f"{place(loc)}: {_said(found[loc], value)}", hint)


_STRANGERS = ("stranger", "union_tag_invalid")


def _real(details: ErrorDetails, values: Any) -> Location:
    """Drop from a location what stands for a choice of type, and not for a key of the input."""
    kept: list[int | str] = []
    for part in details["loc"]:
        if isinstance(values, list | tuple):
            values = dict(enumerate(values))
        if isinstance(values, Mapping) and part in values:
            values = values[part]
            kept.append(part)
    if details["type"] == "missing":
        kept.append(details["loc"][-1])
    if details["type"].startswith("union_tag"):
        kept += _quoted(details["ctx"]["discriminator"])
    return tuple(kept)


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _said(found: list[ErrorDetails], value: Any) -> str:
    """Say what is wrong with a value, once for all the types that it could have had."""
    first, *others = dict.fromkeys(_plain(details) for details in found)
    *some, last = [first, *(other.removeprefix("should be ") for other in others)]
    said = f"{', '.join(some)} or {last}" if some else last
    if said == _REQUIRED or not isinstance(value, str | int | float | None):
        return said
    quoted = isinstance(value, str) and shown(value) in said
    return said if quoted else f"{shown(value)} {said}"


def _plain(details: ErrorDetails) -> str:
    kind, _, way = details["type"].partition("_")
    context = details.get("ctx", {})
    if details["type"] in ("wrong", "value_error"):
        return str(context.get("said") or context["error"])
    if details["type"] in ("missing", "union_tag_not_found"):
        return _REQUIRED
    if details["type"] in ("too_short", "string_too_short"):
        least = context["min_length"]
        return "should not be empty" if least == 1 else f"should have {least} items or more"
    if way in _WAYS and kind in _KINDS:
        return f"should be {_KINDS[kind]}"
    return details["msg"].removeprefix("Input ")
