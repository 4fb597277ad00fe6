"""Where lines of text break: between words, in long words at the best place, in names at dots."""

import re
from collections.abc import Iterator
from typing import Final

from rich.cells import cell_len, chop_cells

WORD: Final = r"\s*\S+(?: (?:±|\+/-) \S+)*\s*|\s+"
"""What a line holds whole where it can: a number keeps its error."""
PLACES: Final = (r"\S+\s*|\s+", r"[^./:]*[./:]+|[^./:]+", r"[^_-]*[_-]+|[^_-]+")
"""Where a longer word is cut, from the best place to the worst: tensors' names at their dots."""


def fold(text: str, width: int, taken: int = 0) -> list[str]:
    """Break text into lines of `width` cells, of which the first has `taken` less."""
    lines, line, room = [], "", width - taken
    for i, paragraph in enumerate(text.split("\n")):
        if i:
            lines.append(line)
            line, room = "", width
        for piece in _pieces(paragraph, width):
            if cell_len(line + piece.rstrip()) > room:
                lines.append(line.rstrip())
                line, room = piece.lstrip(), width
            else:
                line += piece
    return [*lines, line.rstrip()]


def _pieces(text: str, width: int) -> Iterator[str]:
    """Cut text where a line may end: after words; in long words at the best place that helps."""
    pieces: list[str] = re.findall(WORD, text)
    for place in PLACES:
        pieces = [
            part
            for piece in pieces
            for part in ([piece] if _fits(piece, width) else re.findall(place, piece))
        ]
    for piece in pieces:
        yield from [piece] if _fits(piece, width) else chop_cells(piece, width)


def _fits(piece: str, width: int) -> bool:
    return cell_len(piece.strip()) <= width
