"""Read curv.yaml: find it, check it, and tell every mistake with its file, line and key."""

import os
import re
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, PrivateAttr, create_model

from curvcli.errors import CurvError
from curvcli.mistakes import Location, dotted, nearest, shown, unknown
from curvcli.options import FilePath, Options, build, option
from curvcli.spec_code import (
    Layer,
    Layers,
    Loss,
    Model,
    NamedLoss,
    OutputLoss,
    Penalties,
    Target,
    TargetLoss,
)
from curvcli.spec_data import (
    Answers,
    Csv,
    Data,
    Drawn,
    Held,
    Heldout,
    Npy,
    Npz,
    Pt,
    Source,
    Synthetic,
)
from curvcli.spec_run import Optimizer, Run, listed
from curvcli.strict_yaml import LARGEST, Document, read

__all__ = [
    "Answers", "Csv", "Data", "Drawn", "Held", "Heldout", "Layer", "Layers", "Loss", "Model",
    "NamedLoss", "Npy", "Npz", "Optimizer", "OutputLoss", "Penalties", "Pt", "Run", "Source",
    "Spec", "Synthetic", "Target", "TargetLoss", "configured", "discover", "load", "schema",
]  # fmt: skip

NAME = "curv.yaml"


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError("is not a SHA-256 digest of 64 hexadecimal digits")
    return text.lower()


def _filled(value: Any) -> Any:
    """Read a key without a value, as `eig:`, as one whose value is an empty mapping."""
    return {} if value is None else value


Block = Annotated[dict[str, Any], BeforeValidator(_filled, dict[str, Any] | None)]


class Spec(Options):
    """What to analyse, and how: the contents of one curv.yaml."""

    version: Literal[1] = option(..., "version of this format")
    checkpoint: FilePath | None = option(None, "the saved model")
    sha256: Annotated[str, AfterValidator(_sha256)] | None = option(
        None, "digest that the checkpoint must have"
    )
    model: Model | None = option(None, "layers of torch.nn, or a function that makes the model")
    python_path: Annotated[tuple[FilePath, ...], BeforeValidator(listed, str | tuple[str, ...])] = (
        option((), "folders to import your own code from")
    )
    data: Data | None = option(None, "examples over which the loss is the mean")
    heldout: Heldout | None = option(None, "second set of examples")
    loss: Loss | None = option(None, "function of torch.nn.functional, or your own")
    penalty: Annotated[Penalties, BeforeValidator(_filled)] = option(
        {}, "l2 and l1 by their weights, or functions of your own; checked apart"
    )
    optimizer: Optimizer | None = option(None, "what the checkpoint does not say of its optimizer")
    run: Annotated[Run, BeforeValidator(_filled)] = option(Run(), "where and how to compute")
    analyses: Annotated[dict[str, Block], BeforeValidator(_filled)] = option(
        {}, "analyses of curv run, each with its options"
    )

    _path: Path | None = PrivateAttr(None)
    _document: Document | None = PrivateAttr(None)

    @property
    def path(self) -> Path | None:
        """The file that this spec was read from."""
        return self._path

    def where(self, *loc: int | str) -> str:
        """Name a key for a message: `curv.yaml:7: analyses.eig`."""
        if self._path is None or self._document is None:
            return dotted(loc)
        return _place(self._path, self._document, loc)


def load(path: Path) -> Spec:
    """Read and check the spec at `path`.

    Raises: CurvError for a file that cannot be read, is no YAML or is not a spec.
    """
    path = _near(path)
    document = read(_text(path), _printable(path))
    values = {} if document.value is None else document.value

    def place(loc: Location) -> str:
        return _place(path, document, loc)

    spec = build(Spec, values, place, context={"folder": path.parent})
    spec._path, spec._document = path, document
    return spec


def configured(spec: Spec, kinds: Mapping[str, type[Options]]) -> dict[str, Options]:
    """Build the analyses that the spec selects, in its order, from the known `kinds`."""
    chosen: dict[str, Options] = {}
    for name, values in spec.analyses.items():
        if name not in kinds:
            line = spec.where("analyses", name).removesuffix("." + dotted((name,)))
            raise unknown(name, kinds, line)
        folder = {"folder": spec.path.parent} if spec.path else {}
        chosen[name] = build(kinds[name], values, partial(_within, spec, name), context=folder)
    return chosen


def _within(spec: Spec, name: str, loc: Location) -> str:
    return spec.where("analyses", name, *loc)


def discover(spec: Path | None, model: Path | None, *starts: Path) -> Path | None:
    """Find the spec: the named one, then MODEL's with the suffix .yaml, then curv.yaml upward.

    From the first of `starts` to its root, then from the next.
    """
    if spec is not None:
        return _named(spec)
    if model is not None and model.name:
        beside = model.with_suffix(".yaml")
        if os.path.isfile(beside):
            return beside
    for here in (start.resolve() for start in starts):
        for folder in (here, *here.parents):
            if os.path.isfile(folder / NAME):
                return _near(folder / NAME)
    return None


def schema(kinds: Mapping[str, type[Options]] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of curv.yaml, for editors; `kinds` adds the analyses' options."""
    known = {name: (kind | None, None) for name, kind in (kinds or {}).items()}
    made: Any = create_model
    analyses = made("Analyses", __base__=Options, **known) if known else dict[str, Any]
    whole = made("Spec", __base__=Spec, analyses=(analyses, option({}, "what curv run computes")))
    drawn = cast(dict[str, Any], _pruned(whole.model_json_schema()))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **drawn, "title": NAME}


def _pruned(node: Any) -> Any:
    """Drop what option() notes for the command line alone."""
    if isinstance(node, list):
        return [_pruned(item) for item in node]
    if not isinstance(node, dict):
        return node
    notes = {"short", "metavar", "shown"} if "description" in node else set()
    return {key: _pruned(value) for key, value in node.items() if key not in notes}


def _place(path: Path, document: Document, loc: Location) -> str:
    line = document.line(loc)
    parts = [_printable(path) + (f":{line}" if line else ""), *([dotted(loc)] if loc else [])]
    return ": ".join(parts)


def _printable(path: Path) -> str:
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def _near(path: Path) -> Path:
    """Write a path relative to the working directory where it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _named(path: Path) -> Path:
    """Return the path of an explicit --spec, which must be a file."""
    if os.path.isdir(path):
        hint = f"name the file, such as {_printable(path / NAME)}"
        raise CurvError("E_DIRECTORY", f"--spec {_printable(path)} is a directory", hint)
    if not os.path.lexists(path):
        beside = path.parent.glob("*.y*ml") if os.path.isdir(path.parent) else ()
        hint = nearest(path.name, sorted(other.name for other in beside)) or "check the path"
        raise CurvError("E_NOT_FOUND", f"--spec {_printable(path)} does not exist", hint)
    return path


def _text(path: Path) -> str:
    """Return the text of a spec; its size is known before anything is read."""
    where = _printable(path)
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            hint = f"name the file, such as {_printable(path / NAME)}"
            raise CurvError("E_DIRECTORY", f"{where} is a directory", hint)
        if not stat.S_ISREG(about.st_mode):
            raise CurvError("E_NOT_REGULAR", f"{where} is not a regular file", "copy it to a file")
        if about.st_size > LARGEST:
            message = f"{where} has {about.st_size:,} bytes, a spec at most {LARGEST:,}"
            raise CurvError("E_TOO_LARGE", message, "give the spec, not the data")
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise CurvError("E_NOT_FOUND", f"{where} does not exist", "check the path") from None
    except PermissionError:
        raise CurvError("E_PERMISSION", f"{where} cannot be read", "check its mode") from None
    except OSError as error:
        message = f"{where} cannot be read: {error.strerror}"
        raise CurvError("E_NOT_FOUND", message, "check the path") from None
    except UnicodeDecodeError as error:
        message = f"{where}: byte {error.start} is not UTF-8: {shown(error.reason)}"
        raise CurvError("E_YAML", message, "save it as UTF-8 text") from None
