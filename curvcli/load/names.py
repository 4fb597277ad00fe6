"""Names that come out of files: how a message shows them, and which prefix they carry."""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

LONGEST = 80  # characters of one name in a message; a hostile key can be megabytes long
LONGEST_PATH = 1024  # characters of a path in a message


def shown(name: object, longest: int = LONGEST) -> str:
    """Write a name for a message, with control, bidi and surrogate characters escaped."""
    text = name if isinstance(name, str) else f"<{type(name).__name__}>"
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def listed(names: Collection[object], limit: int = 3) -> str:
    """Write the first few names and the number of the others."""
    first = ", ".join(shown(name) for name, _ in zip(names, range(limit), strict=False))
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"


def prefixes(
    keys: Collection[str], names: Collection[str], match: Callable[[str, str], bool]
) -> Counter[str]:
    """Count, for every string p, the keys that equal p + a name and match it."""
    lengths = sorted({len(name) for name in names})
    known = frozenset(names)
    found: Counter[str] = Counter()
    for key in keys:
        for length in lengths:
            name = key[len(key) - length :] if length <= len(key) else ""
            if name in known and match(key, name):
                found[key.removesuffix(name)] += 1
    return found


def nearest_file(path: Path) -> str:
    """Say what to do about a path that is not there: the nearest name beside it."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"there is no directory {shown(str(path.parent))}"
    # All checkpoints end alike: the suffix is no likeness.
    stems = {name.removesuffix(path.suffix): name for name in sorted(names)}
    alike = difflib.get_close_matches(path.stem, stems, n=1)
    close = [stems[stem] for stem in alike]
    return (
        f"did you mean {shown(str(path.parent / close[0]), LONGEST_PATH)}?"
        if close
        else "check the path"
    )
