"""Reports for people: verdict first, every number with its error, nothing cut at any width."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from curvcli.report import Check, Column, Report, Result, Status, Value
from curvcli.sinks import curves
from curvcli.sinks.page import Field, Page
from curvcli.sinks.text import PLUS_MINUS, clean, number

STYLES: Final[dict[Status, str]] = {
    "fail": "bold red",
    "undecided": "bold magenta",
    "warn": "bold yellow",
    "pass": "bold green",
}
"""From the gravest to the mildest."""
INDENT: Final = 2


def render(
    report: Report,
    *,
    width: int | None,
    color: bool,
    plain: bool = False,
    encoding: str = "utf-8",
) -> str:
    """Write the report for a terminal `width` cells wide, or unfolded where it is None.

    `plain` is for screen readers and logs: ASCII, no colour, no rules. Signs that `encoding` lacks
    are spelled in ASCII.
    """
    page = Page(width, "ascii" if plain else encoding, ruled=not plain)
    _head(page, report.provenance)
    for result in report.results.values():
        _result(page, result)
    for name, line in report.errors.items():
        _heading(page, name, "did not complete")
        _verdict(page, "undecided", line)
    if len(report.results) + len(report.errors) > 1:
        page.blank()
        _verdict(page, report.status, _tally(report))
    return page.drawn(color=color and not plain)


def _head(page: Page, provenance: Mapping[str, object]) -> None:
    summary, notes = provenance.get("summary"), provenance.get("notes")
    if isinstance(summary, Mapping):
        page.pairs([(str(key), str(value)) for key, value in summary.items()], style="dim")
    if isinstance(notes, Sequence) and not isinstance(notes, str):
        _notes(page, map(str, notes))


def _result(page: Page, result: Result) -> None:
    _heading(page, result.name, result.question)
    partial = "interrupted: partial — " if result.interrupted else ""
    _verdict(page, result.status, partial + result.headline)
    if result.metrics:
        page.blank()
        figures = [(m.title, number(m.value, m.format, m.error)) for m in result.metrics.values()]
        page.pairs(figures, indent=INDENT)
    shown, details = _columns(result)
    if result.rows and shown:
        page.blank()
        page.table([_field(c, result) for c in shown], indent=INDENT)
    if result.rows and details:
        titles = ", ".join(clean(c.title) for c in details)
        page.say(titles, ("also in csv and json: ", "dim"), INDENT, INDENT)
    numbers = True
    for figure in result.figures:
        if numbers:  # those that are only announced are a list
            page.blank()
        numbers = curves.show(page, figure, INDENT)
    if result.checks or result.notes:
        page.blank()
    for status in STYLES:
        for check in result.checks:
            if check.status == status != "pass":
                _check(page, check)
    passed = sum(c.status == "pass" for c in result.checks)
    if passed:
        page.say(f"{passed} check{'s' * (passed > 1)} passed", indent=INDENT)
    _notes(page, result.notes, indent=INDENT)


def _heading(page: Page, name: str, rest: str) -> None:
    page.blank()
    page.say(f" — {clean(rest)}", (clean(name), "bold"), hang=INDENT)


def _verdict(page: Page, status: Status, sentence: str, indent: int = 0) -> None:
    page.say("  " + clean(sentence), (status.upper(), STYLES[status]), indent, len(status) + 2)


def _check(page: Page, check: Check) -> None:
    _verdict(page, check.status, f"{check.name}: {check.message}", INDENT)
    if check.advice:
        margin = INDENT + len(check.status) + 2
        page.say(clean(check.advice, keep_newlines=True), ("help: ", "dim"), margin, INDENT)


def _notes(page: Page, notes: Iterable[str], indent: int = 0) -> None:
    for note in notes:
        page.say(clean(note, keep_newlines=True), ("note: ", "dim"), indent, INDENT)


def _tally(report: Report) -> str:
    found: dict[str, list[str]] = {status: [] for status in STYLES}
    for name, result in report.results.items():
        found[result.status].append(name)
    found["undecided"] += report.errors
    said = {"fail": "failed", "pass": "passed", "warn": "with warnings"}
    return "; ".join(
        f"{len(names)} {said.get(status, status)} ({', '.join(names)})"
        for status, names in found.items()
        if names
    )


def _columns(result: Result) -> tuple[list[Column], list[Column]]:
    """Part the columns that a table shows from its details.

    Errors stand beside their values, and a column of empty texts says nothing to people.
    """
    inside: set[str] = set()
    hosts: set[str] = set()
    for c in result.columns:
        if c.error and c.name not in inside and c.error not in hosts | {c.name}:
            inside.add(c.error)
            hosts.add(c.name)
    apart = [c for c in result.columns if c.name not in inside]
    shown = [c for c in apart if not (c.detail or _says_nothing(c, result))]
    return shown, [c for c in apart if c.detail]


def _says_nothing(c: Column, result: Result) -> bool:
    return c.format == "text" and all(
        row.get(name) in ("", None) for row in result.rows for name in (c.name, c.error) if name
    )


def _field(c: Column, result: Result) -> Field:
    return Field(clean(c.title), [_cell(row, c) for row in result.rows], c.format != "text")


def _cell(row: Mapping[str, Value], c: Column) -> str:
    value, error = row.get(c.name), row.get(c.error) if c.error else None
    if isinstance(error, str):
        return f"{number(value, c.format)}{PLUS_MINUS}{clean(error)}"
    return number(value, c.format, error)
