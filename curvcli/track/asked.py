"""What `curv track` is asked: which checkpoints, and what of each."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.options import ArrayFile, Options, option

SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


class Track(Options):
    """What is asked of every checkpoint."""

    analysis: tuple[str, ...] = option(
        ("stability", "eig", "trace", "ratio", "activations"),
        "what is asked of every checkpoint; repeat it for several",
        metavar="NAME",
    )


def files(named: Sequence[Path]) -> list[Path]:
    """List the checkpoints that are named, and those in folders that are.

    Raises: CurvError (E_NOT_FOUND) where one does not exist, or a folder holds none, and
    (E_PERMISSION) where a folder may not be read.
    """
    found: list[Path] = []
    for path in named:
        try:
            found += _inside(path) if path.is_dir() else [path]
        except PermissionError as error:
            raise CurvError(
                "E_PERMISSION", f"{path} cannot be read: {error.strerror}", "check its permissions"
            ) from error
        if not os.path.lexists(path):
            raise CurvError("E_NOT_FOUND", f"{path} does not exist", "name checkpoints of one run")
    return list(dict.fromkeys(found))


def _inside(folder: Path) -> list[Path]:
    inside = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not inside:
        hint = f"their names end in {', '.join(SUFFIXES)}"
        raise CurvError("E_NOT_FOUND", f"{folder} holds no checkpoints", hint)
    return inside


def without_arrays(analysis: Analysis) -> tuple[Analysis, list[str]]:
    """Unset the option that names a file for arrays, and say so: one file cannot hold a run's."""
    options = [n for n, f in type(analysis).model_fields.items()
               if ArrayFile in (f.annotation, *get_args(f.annotation))
               and getattr(analysis, n) is not None]  # fmt: skip
    said = [f"{analysis.name}: {n} is left out: track writes no arrays" for n in options]
    return analysis.model_copy(update=dict.fromkeys(options)), said
