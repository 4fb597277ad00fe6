"""The user's own code, which a spec names as `module:function`: found, imported, called."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from curvcli.errors import Code, CurvError
from curvcli.options import unknown


def add_paths(folders: Iterable[Path]) -> None:
    """Append the spec's `python_path` to where Python looks; it never goes before what is there."""
    for folder in map(os.path.abspath, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def find(module: str, name: str) -> Any:
    """Import `module` and take `name` (dots reach inside) from it.

    Raises: CurvError (E_IMPORT) that tells a missing module from one that fails inside.
    """
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise CurvError(
                "E_IMPORT",
                f"there is no module {module!r}",
                "install it, or add its folder to python_path: in the spec",
            ) from error
        raise CurvError(
            "E_IMPORT", f"importing {module} needs {error.name}, which is not installed",
            f"pip install {error.name}",
        ) from error  # fmt: skip
    except (Exception, SystemExit) as error:
        raise _failed("E_IMPORT", f"importing {module}", error) from error
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith("_")]
            raise unknown(part, public, f"{module}", "E_IMPORT")
        found = getattr(found, part)
    return found


def call(
    code: Code, what: str, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Call user code; whatever it raises becomes one line that names the place in that code."""
    try:
        return function(*args, **kwargs)
    except CurvError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(code, what, error) from error


def _failed(code: Code, what: str, error: BaseException) -> CurvError:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return CurvError(code, f"{what}: {said}{_place(error)}", "CURV_DEBUG=1 shows the traceback")


def _place(error: BaseException) -> str:
    """Name the last line of the user's own code that the error went through, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _foreign(f.filename)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


CURV, TORCH, PYTHON = (
    os.path.join(folder, "")
    for folder in (Path(__file__).parents[1], Path(torch.__file__).parent, Path(os.__file__).parent)
)


def _foreign(file: str) -> bool:
    library = file.startswith(PYTHON) and "-packages" not in file
    return library or file.startswith(("<", CURV, TORCH))
