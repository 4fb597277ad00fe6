"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from curvcli.errors import CurvError


class Draft:
    """A file to be: a temporary one beside it, so that it can be written is known at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise CurvError("E_OUTPUT", f"{path} is a folder", "name a file in it")
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise _unwritable(path, error) from error
        os.close(handle)
        self.temporary = Path(name)

    def write(self, text: str) -> None:
        """Write and move into place."""
        try:
            with self.temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files for the owner alone; a report is as readable as any other file.
            self.temporary.chmod(0o666 & ~_umask())
            self.temporary.replace(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def discard(self) -> None:
        """Leave nothing behind where it was not written."""
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Draft]:
    """Open a draft for the length of the work."""
    draft = Draft(path)
    try:
        yield draft
    finally:
        draft.discard()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> CurvError:
    said = (error.strerror or type(error).__name__).lower()
    return CurvError("E_OUTPUT", f"{path} cannot be written: {said}", "choose another --out")
