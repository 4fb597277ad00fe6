"""Files that are written whole or not at all."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from curvcli.errors import CurvError


class Draft:
    """A file to be: a temporary one beside it, so that it can be written is known at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # What a link leads to is written, and the link stays.
        self.final = Path(os.path.realpath(path))
        try:
            self.mode = _mode(self.final, path)
            handle, name = tempfile.mkstemp(prefix=".curv-", dir=self.final.parent)
        except OSError as error:
            raise _unwritable(path, error) from error
        os.close(handle)
        self.temporary = Path(name)

    def fill(self, text: str) -> None:
        """Write all of it, still under the temporary name."""
        self.write(lambda path: path.write_bytes(text.encode("utf-8")))

    def write(self, write: Callable[[Path], object]) -> None:
        """Let a function write the file whose path it is given: the temporary name."""
        try:
            write(self.temporary)
            with self.temporary.open("rb+") as file:
                os.fsync(file.fileno())
            self.temporary.chmod(self.mode)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def place(self) -> None:
        """Move what was filled to where it belongs."""
        try:
            self.temporary.replace(self.final)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def discard(self) -> None:
        """Leave nothing behind where it was not placed."""
        self.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Draft]:
    """Open a draft for the length of the work."""
    draft = Draft(path)
    try:
        yield draft
    finally:
        draft.discard()


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder for the length of the work, and take away what was made and stayed empty."""
    missing = [p for p in (path, *path.parents) if not os.path.lexists(p)]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvError(
            "E_OUTPUT", f"{path} cannot be made: {_said(error)}", "choose another --out"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for made in missing:
                made.rmdir()


def _mode(final: Path, path: Path) -> int:
    """Return the mode of the file that is there, or that of any new file.

    mkstemp makes files for the owner alone; a report is as readable as any other file.
    """
    try:
        found = final.stat().st_mode
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
    if stat.S_ISDIR(found):
        raise CurvError("E_OUTPUT", f"{path} is a folder", "name a file in it")
    if not stat.S_ISREG(found):
        raise CurvError("E_OUTPUT", f"{path} is not a regular file", "choose another path")
    return stat.S_IMODE(found)


def _unwritable(path: Path, error: OSError) -> CurvError:
    return CurvError("E_OUTPUT", f"{path} cannot be written: {_said(error)}", "choose another path")


def _said(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
