"""Read a checkpoint file safely: nothing in it runs, and a damaged file never loads in silence.

Each step precedes the next one's touching the file: stat, sha256, sniff, audit of zip and pickle,
shapes on the meta device, and only then torch.load(weights_only=True). All of them read through
one open file, so that the bytes judged are the bytes loaded.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from curvcli.errors import CurvError
from curvcli.load import audit
from curvcli.load.container import Contents, unpack
from curvcli.load.names import LONGEST_PATH, listed, nearest_file, shown
from curvcli.load.sniff import Kind, sniff
from curvcli.load.unpickle import unpickle

CHUNK = 1 << 20
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar")
LEGACY_PICKLES = 5  # magic number, protocol, system, object, keys of the storages


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file, with what else it says about its training."""

    path: Path
    sha256: str
    layout: str
    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None  # as torch's Optimizer.state_dict() writes it
    progress: dict[str, int | float]
    notes: tuple[str, ...]

    @property
    def provenance(self) -> dict[str, Any]:
        """What a document says of the file."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "layout": self.layout,
            "progress": self.progress,
        }


def read(path: Path, sha256: str | None = None) -> Checkpoint:
    """Read the checkpoint at `path`, which must have the digest `sha256` where one is given.

    Raises CurvError, and nothing else, for every file that is missing, foreign, damaged or unsafe.
    """
    digest, root = _load(path, sha256)
    contents = root if isinstance(root, Contents) else _unpack(root, _where(path))
    return Checkpoint(
        path=path,
        sha256=digest,
        layout=contents.layout,
        weights=contents.weights,
        optimizer=contents.optimizer,
        progress=contents.progress,
        notes=contents.notes,
    )


def read_tensors(path: Path) -> Any:
    """Read a file of plain tensors, a dict or a list of them, by the same safe steps."""
    _, root = _load(path, None)
    return root.weights if isinstance(root, Contents) else root


def _where(path: Path) -> str:
    return shown(str(path), LONGEST_PATH)


def _load(path: Path, sha256: str | None) -> tuple[str, object]:
    """Return a file's digest and what it holds; a safetensors file's contents are told at once."""
    where = _where(path)
    with _open(path, where) as file:
        size = os.fstat(file.fileno()).st_size
        digest = _digest(file)
        if sha256 is not None and sha256.strip().lower() != digest:
            message = f"{where} has sha256 {digest}, the spec says {shown(sha256)}"
            raise CurvError(
                "E_SHA256", message, "take the right file, or correct sha256 in the spec"
            )
        kind = sniff(file, where)
        if kind is Kind.SAFETENSORS:
            return digest, _safetensors(path, where)
        if kind is Kind.ZIP:
            pickle = audit.audit_zip(file, size, where, sha256 is not None)
            audit.audit_pickles(io.BytesIO(pickle), 1, size, where)
        else:
            _refuse_unpinned(where, digest, sha256)
            file.seek(0)
            audit.audit_pickles(file, LEGACY_PICKLES, size, where)
        return digest, unpickle(file, size, where)


@contextmanager
def _open(path: Path, where: str) -> Iterator[BinaryIO]:
    """Open a regular, readable file that is not empty."""
    try:
        status = path.stat()
        _check_kind(status, path, where)
        file = path.open("rb")
    except FileNotFoundError:
        raise CurvError("E_NOT_FOUND", f"{where} does not exist", nearest_file(path)) from None
    except PermissionError:
        hint = "check its permissions and those of its directory"
        raise CurvError("E_PERMISSION", f"{where} cannot be read", hint) from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        reason = getattr(error, "strerror", None) or "not a file name"
        raise CurvError("E_NOT_FOUND", f"{where} cannot be opened: {reason}", "") from None
    with file:
        try:
            yield file
        except OSError as error:  # a failing disk or a lost network mount
            message = f"{where} cannot be read: {error.strerror}"
            raise CurvError("E_CORRUPT", message, audit.DAMAGED) from error


def _check_kind(status: os.stat_result, path: Path, where: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        hint = f"pass the file inside: {listed(inside)}" if inside else "pass a checkpoint file"
        raise CurvError("E_DIRECTORY", f"{where} is a directory", hint)
    if not stat.S_ISREG(status.st_mode):
        message = f"{where} is a pipe, a socket or a device, not a regular file"
        raise CurvError("E_NOT_REGULAR", message, "save the checkpoint to a file first")
    if status.st_size == 0:
        hint = "the save or the download was cut short; copy it again"
        raise CurvError("E_EMPTY", f"{where} is empty", hint)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _refuse_unpinned(where: str, digest: str, sha256: str | None) -> None:
    """Refuse a file from before torch 1.6 that the user did not vouch for."""
    if sha256 is None:
        message = f"{where} was saved before torch 1.6 and has no checksums"
        hint = f"save it again with torch.save, or give sha256: {digest} in the spec"
        raise CurvError("E_FORMAT", message, hint)


def _safetensors(path: Path, where: str) -> Contents:
    """Load a safetensors file; its metadata is ignored, its format runs nothing."""
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception as error:  # SafetensorError and what torch raises on odd shapes
        message = f"{where} is a damaged safetensors file"
        raise CurvError("E_CORRUPT", message, audit.DAMAGED) from error
    if not weights:
        message = f"{where} holds no tensors"
        raise CurvError("E_CONTENT", message, "save the model's state_dict() in it")
    return Contents("safetensors", weights, None, {}, ())


def _unpack(root: object, where: str) -> Contents:
    try:
        return unpack(root, where)
    except CurvError:
        raise
    except Exception as error:  # a pickle can hide a container's methods behind its attributes
        raise CurvError("E_CORRUPT", f"{where} holds odd containers", audit.DAMAGED) from error
