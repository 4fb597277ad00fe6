"""Where a checkpoint stands in its run, and by which name it is told from the others."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from curvcli.errors import listed
from curvcli.track.rows import Visit

STEPS: Final = ("step", "global_step", "iter_num", "iteration", "epoch")
"""What checkpoints call their place in the run, the finest first."""
FILE_NAME: Final = "file name"
"""The source of a step that the checkpoint itself does not tell."""
COUNTED: Final = re.compile(
    r"(?:^|(?<!\de)[-_=]|(?<!\d)\.|(?<![a-z])(?P<word>step|epoch|ep|iter|iteration|it|checkpoint|ckpt)[-_=]?)"
    r"(?P<count>\d{1,18})(?![\d.]*\d|e-?\d)",
    re.IGNORECASE,
)
"""A number in a file name that may be a step: no part of resnet18, and none of lr0.001."""


def labels(paths: Sequence[Path]) -> list[str]:
    """Name each by its file, or by its whole path where others have that name too."""
    often = Counter(p.name for p in paths)
    return [p.name if often[p.name] == 1 else str(p) for p in paths]


def step_of(path: Path, progress: Mapping[str, Any]) -> tuple[float | None, str]:
    """Read the place in the run, and which key says it, else the last count in the file's name."""
    for key in STEPS:
        if key in progress and math.isfinite(progress[key]):
            return progress[key], key
    counts = [(m["word"] is not None, m["count"]) for m in COUNTED.finditer(path.stem)]
    # One that a word names goes before one that none does; of several the last.
    named = [count for word, count in counts if word] or [count for _, count in counts]
    if named:
        return int(named[-1]), FILE_NAME
    return None, ""


def sources(visits: Sequence[Visit]) -> Iterator[str]:
    """Say which steps no file states, and whether they count different things."""
    named = [v.row.checkpoint for v in visits if v.source == FILE_NAME]
    if named:
        yield f"step read off the file name: {listed(named)}"
    keys = [k for k in STEPS if any(v.source == k for v in visits)]
    if keys == ["epoch"]:
        yield "the steps are epochs"
    if keys[1:]:
        yield f"the steps count different things: {', '.join(keys)}; their order may be wrong"
