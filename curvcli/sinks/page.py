"""A page of text for a terminal: paragraphs, lists and tables that fold and lose nothing."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from curvcli.sinks.fold import fold
from curvcli.sinks.text import PLUS_MINUS, clean, encodable

GAP: Final = 2
NARROWEST: Final = 16
"""Text is not folded into less where another shape is left; nor is a terminal narrower."""
HANG: Final = 2
UNLIMITED: Final = 1 << 30
TAIL: Final = r"(?:\x1b\[[\d;]*m| )+$"
"""Blanks at the end of a line, where rich fills up the last column."""


@dataclass(frozen=True)
class Field:
    """One column as it is shown."""

    title: str
    cells: list[str]
    numeric: bool
    named: bool = False
    """Whether the title is a name, which is folded as text is, and makes no column wide."""

    def least(self) -> int:
        """Give the width below which a number, or a word of the title, would break."""
        words = max(map(cell_len, self.title.split()), default=0)
        words = min(words, NARROWEST) if self.named else words
        cells = max(map(cell_len, self.cells), default=0)
        return max(words, cells if self.numeric else min(cells, NARROWEST), 1)

    def natural(self) -> int:
        """Give the width at which nothing is folded."""
        title = cell_len(self.title)
        return max(min(title, NARROWEST) if self.named else title, *map(cell_len, self.cells), 1)

    def folded(self, text: str, width: int) -> str:
        """Fold text into the column: numbers and their titles stand to the right."""
        lines = [text] if cell_len(text) <= width else fold(text, width)
        if self.numeric:
            lines = [" " * (width - cell_len(line)) + line for line in lines]
        return "\n".join(lines)


class Page:
    """Lines no wider than the terminal, collected, then drawn at once."""

    def __init__(self, width: int | None, encoding: str, *, ruled: bool) -> None:
        self.width = UNLIMITED if width is None else max(width, NARROWEST)
        self.encoding = encoding
        self.box = SIMPLE_HEAD if ruled and self.fit("─") == "─" else None
        self.parts: list[Text | Padding] = []

    def fit(self, text: str) -> str:
        """Spell what the encoding lacks; before anything is measured."""
        return encodable(text, self.encoding)

    def blank(self) -> None:
        """Leave a line free, unless nothing stands above it."""
        if self.parts:
            self.parts.append(Text())

    def say(
        self, body: str, start: tuple[str, str] = ("", ""), indent: int = 0, hang: int = 0
    ) -> None:
        """Add a paragraph: a styled start, then the body, its further lines hanging by `hang`."""
        indent = min(indent, self.width - NARROWEST)
        margin = min(indent + hang, self.width - NARROWEST)
        head, body = self.fit(start[0]), self.fit(body)
        if indent + cell_len(head) > self.width:
            head, body = "", head + body
        first = Text(" " * indent).append(head, style=start[1])
        lines = fold(body, self.width - margin, first.cell_len - margin)
        self.parts.append(first.append(lines[0]))
        self.parts.extend(Text(" " * margin + line) for line in lines[1:])

    def pairs(self, pairs: Iterable[tuple[str, str]], indent: int = 0, style: str = "") -> None:
        """Add names and values, aligned in two columns where there is room for that."""
        fitted = [(self.fit(clean(name)), self.fit(clean(value))) for name, value in pairs]
        column = max((cell_len(name) for name, _ in fitted), default=0) + GAP
        aligned = indent + column + NARROWEST <= self.width
        for name, value in fitted:
            if aligned:
                pad = " " * (column - cell_len(name))
                self.say(pad + value, (name, style), indent, column)
            else:
                self.say(f" {value}", (f"{name}:", style), indent, HANG)

    def table(self, fields: Sequence[Field], indent: int) -> None:
        """Add a table; where it is too wide several, and where those are one block for each row."""
        parts = self._parts(fields, indent)
        if not parts:
            self._blocks(self._laid_out(fields, indent)[0], indent)
        for i, part in enumerate(parts):
            if i:
                self.blank()
            self._table(part, indent)

    def _parts(self, fields: Sequence[Field], indent: int) -> list[list[Field]]:
        """Part the columns among tables that fit, each with the columns that name the rows."""
        if self.holds(fields, indent):
            return [list(fields)]
        names = _naming(fields)
        parts = [[*names]]
        for f in fields[len(names) :]:
            if not self.holds([*parts[-1], f], indent):
                parts.append([*names])
            parts[-1].append(f)
        return parts if all(self.holds(part, indent) for part in parts) else []

    def _table(self, fields: Sequence[Field], indent: int) -> None:
        fitted, widths = self._laid_out(fields, indent)
        assert widths is not None
        # A rule brings a column of its own between two columns.
        padding = (0, 0, 0, GAP - (self.box is not None))
        table = Table(box=self.box, show_edge=False, pad_edge=False, padding=padding)
        table.border_style = "dim"
        for f, width in zip(fitted, widths, strict=True):
            header = Text(f.folded(f.title, width), style="bold")
            table.add_column(header, width=width, no_wrap=True, overflow="fold")
        folded = [
            [f.folded(cell, width) for cell in f.cells]
            for f, width in zip(fitted, widths, strict=True)
        ]
        for row in zip(*folded, strict=True):
            table.add_row(*map(Text, row))
        self.parts.append(Padding(table, (0, 0, 0, indent), expand=False))

    def holds(self, fields: Sequence[Field], indent: int) -> bool:
        """Say whether a table of these columns is not too wide."""
        return self._laid_out(fields, indent)[1] is not None

    def _laid_out(
        self, fields: Sequence[Field], indent: int
    ) -> tuple[list[Field], list[int] | None]:
        fitted = [
            replace(f, title=self.fit(f.title), cells=self._lined_up([*map(self.fit, f.cells)]))
            for f in fields
        ]
        return fitted, _widths(fitted, self.width - indent - GAP * (len(fitted) - 1))

    def _lined_up(self, cells: list[str]) -> list[str]:
        """Put the ± of a column below each other."""
        sign = self.fit(PLUS_MINUS)
        errors = [cell_len(cell) - cell_len(cell.partition(sign)[0]) for cell in cells]
        most = max(errors, default=0)
        return [cell + " " * (most - e) for cell, e in zip(cells, errors, strict=True)]

    def _blocks(self, fields: Sequence[Field], indent: int) -> None:
        for row in zip(*(f.cells for f in fields), strict=True):
            for i, (f, cell) in enumerate(zip(fields, row, strict=True)):
                margin = indent if i == 0 else 2 * indent
                self.say(f"{f.title}: {cell.strip()}", indent=margin, hang=HANG)

    def drawn(self, *, color: bool) -> str:
        """Draw what was collected."""
        console = Console(
            file=StringIO(),
            width=UNLIMITED,
            force_terminal=color,
            color_system="standard" if color else None,
            legacy_windows=False,
            force_jupyter=False,
            highlight=False,
            markup=False,
            emoji=False,
            _environ={},  # the caller has judged NO_COLOR, FORCE_COLOR and COLUMNS
        )
        with console.capture() as capture:
            for part in self.parts:
                console.print(part, soft_wrap=True)
        return re.sub(TAIL, _closed, capture.get(), flags=re.MULTILINE)


def _naming(fields: Sequence[Field]) -> list[Field]:
    """Give the leading columns that tell every row from the others; all, where none do."""
    for count in range(1, len(fields)):
        rows = [*zip(*(f.cells for f in fields[:count]), strict=True)]
        if len(set(rows)) == len(rows):
            return list(fields[:count])
    return list(fields)


def _closed(tail: re.Match[str]) -> str:
    return "\x1b[0m" if "\x1b" in tail.group() else ""


def _widths(fields: Sequence[Field], room: int) -> list[int] | None:
    """Share the room among columns: text first, then titles; None where the numbers do not fit."""
    widths = [f.least() for f in fields]
    spare = room - sum(widths)
    if spare < 0:
        return None
    for i in sorted(range(len(fields)), key=lambda i: fields[i].numeric):
        more = min(spare, fields[i].natural() - widths[i])
        widths[i] += more
        spare -= more
    return widths
