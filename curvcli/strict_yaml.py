"""Read the part of YAML 1.2 that a configuration needs, and know the line of every key."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from curvcli.errors import CurvError
from curvcli.mistakes import Location, dotted, shown

LARGEST = 1_000_000  # characters; a spec has some hundreds
DEEPEST = 32
MOST = 100_000  # values; the slow parser takes a second for these
DIGITS = 100  # of an integer; Python refuses to print or parse some thousands

# libyaml's parser is some twenty times as fast as PyYAML's own, and not in every build of PyYAML.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# The scalars of YAML 1.2's core schema (section 10.3.2 of the specification at yaml.org).
NULL = re.compile(r"null|Null|NULL|~|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
OCTAL = re.compile(r"0o[0-7]+")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
INTEGERS = (INTEGER, OCTAL, HEXADECIMAL)
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
NAN = re.compile(r"\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """The value of a document, and where its keys stand."""

    value: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, loc: Location) -> int | None:
        """Return the line of a key, counted from 1, or of the nearest key above that exists."""
        for length in range(len(loc), -1, -1):
            if loc[:length] in self.lines:
                return self.lines[loc[:length]]
        return None


def read(text: str, origin: str) -> Document:
    """Read one document of plain mappings, lists and scalars; keys are always strings.

    Raises: CurvError E_YAML for what is no YAML, and for tags, anchors, aliases, merge keys,
    duplicate keys, nesting deeper than 32 and more than 100,000 values; E_TOO_LARGE for more than
    a million characters.
    """
    if len(text) > LARGEST:
        message = f"{origin} has {len(text):,} characters, and may have {LARGEST:,}"
        raise CurvError("E_TOO_LARGE", message, "give the spec, not the data")
    text = text.removeprefix("\ufeff")
    if strange := UNPRINTABLE.search(text):
        line = text.count("\n", 0, strange.start()) + 1
        column = strange.start() - text.rfind("\n", 0, strange.start())
        message = f"{origin}:{line}:{column}: the character {strange[0]!a} is not allowed"
        raise CurvError("E_YAML", message, "remove it, or write it as an escape in double quotes")
    try:
        return _Reader(yaml.parse(text, Loader=LOADER), origin).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, origin) from None


class _Reader:
    """Build a document from the parser's events, and refuse at the first bad one."""

    def __init__(self, events: Iterator[Any], origin: str) -> None:
        self.events = events
        self.origin = origin
        self.lines: dict[Location, int] = {(): 1}  # one entry for every value

    def document(self) -> Document:
        value, begun = None, False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if begun:
                    raise self.refuse(event, "a second document begins here", "keep one document")
                begun = True
                first = next(self.events)
                self.lines[()] = _line(first)
                value = self.node(first, ())
        return Document(value, self.lines)

    def node(self, event: Any, loc: Location) -> Any:
        self.check(event, loc)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else self.scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(loc)
        return self.mapping(loc)

    def check(self, event: Any, loc: Location) -> None:
        name = str(event.anchor)[:40]
        if isinstance(event, yaml.AliasEvent):
            raise self.refuse(event, f"the alias *{name} is not allowed", "write the value out")
        if event.anchor is not None:
            said = f"the anchor &{name} is not allowed"
            raise self.refuse(event, said, "write the value out where it is needed")
        if event.tag is not None:
            raise self.refuse(event, f"the tag {shown(event.tag)} is not allowed", "remove it")
        if len(loc) >= DEEPEST and not isinstance(event, yaml.ScalarEvent):
            raise self.refuse(event, f"nested deeper than {DEEPEST}", "a spec needs a few levels")
        if len(self.lines) > MOST:
            raise self.refuse(event, f"more than {MOST:,} values", "keep data in a file of its own")

    def sequence(self, loc: Location) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            inner = (*loc, len(items))
            self.lines[inner] = _line(event)
            items.append(self.node(event, inner))
        return items

    def mapping(self, loc: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, loc)
            inner = (*loc, key)
            if key in values:
                said = f"{dotted(inner)} is given twice, first in line {self.lines[inner]}"
                raise self.refuse(event, said, "remove one of them")
            self.lines[inner] = _line(event)
            values[key] = self.node(next(self.events), inner)
        return values

    def key(self, event: Any, loc: Location) -> str:
        self.check(event, loc)
        if not isinstance(event, yaml.ScalarEvent):
            raise self.refuse(event, "a key must be a word, not a list or mapping", "name the key")
        if event.value == "<<" and not event.style:
            raise self.refuse(event, "the merge key << is not allowed", "write the keys out")
        return str(event.value)

    def scalar(self, event: Any) -> Any:
        text: str = event.value
        if len(text) > DIGITS and any(form.fullmatch(text) for form in INTEGERS):
            said = f"an integer of {len(text)} digits is too long"
            raise self.refuse(event, said, "put it in quotes if it is text")
        return plain(text)

    def refuse(self, event: Any, said: str, hint: str) -> CurvError:
        mark = event.start_mark
        where = f"{self.origin}:{mark.line + 1}:{mark.column + 1}"
        return CurvError("E_YAML", f"{where}: {said}", hint)


def plain(text: str) -> str | int | float | bool | None:
    """Return the value of an unquoted scalar by YAML 1.2's core schema."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text) or FALSE.fullmatch(text):
        return bool(TRUE.fullmatch(text))
    if INTEGER.fullmatch(text):
        return int(text)
    if OCTAL.fullmatch(text) or HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text)
    if infinite := INFINITE.fullmatch(text):
        return float(f"{infinite[1]}inf")
    return float("nan") if NAN.fullmatch(text) else text


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _syntax(error: yaml.MarkedYAMLError, origin: str) -> CurvError:
    """Say in one line what the parser found wrong, and what the usual causes are."""
    mark = error.problem_mark or error.context_mark
    where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
    said = " ".join(str(error.problem).split())
    begun = error.context_mark
    if error.context and begun and mark and begun.line != mark.line:
        said += f" {error.context} that begins in line {begun.line + 1}"
    return CurvError("E_YAML", f"{where}: {said}", _cause(said))


def _cause(said: str) -> str:
    if "start any token" in said:
        return "indent with spaces, not tabs; quote a value that begins with @ ` or %"
    if "mapping values" in said:
        return "check the indentation, or quote a value that contains ': '"
    if "quoted scalar" in said or "end of stream" in said:
        return "close the quotes"
    if "flow" in said or "node content" in said:
        return "check the commas and the closing brackets"
    return "check the indentation"
