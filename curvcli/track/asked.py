"""What `curv track` is asked: which checkpoints, and what of each."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from curvcli.errors import CurvError
from curvcli.options import Options, option

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

    Raises: CurvError (E_NOT_FOUND) where one does not exist, or a folder holds none.
    """
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                hint = f"their names end in {', '.join(SUFFIXES)}"
                raise CurvError("E_NOT_FOUND", f"{path} holds no checkpoints", hint)
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise CurvError("E_NOT_FOUND", f"{path} does not exist", "name checkpoints of one run")
    return list(dict.fromkeys(found))
