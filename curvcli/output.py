"""Where a report goes: stdout, a file, or a folder; everything is opened before the work."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from curvcli import sinks
from curvcli.errors import CurvError
from curvcli.files import drafted, folder
from curvcli.options import Options, option
from curvcli.report import Report

Format = Literal["table", "json", "csv", "svg"]


class Output(Options):
    """Where the report goes, and how."""

    format: Format | None = option(None, "format of what is printed", shown="table", short="-f")
    out: str | None = option(
        None,
        "write FILE (.json, .csv, .svg, .txt), or a report, a CSV per analysis and figures to DIR",
        short="-o",
        metavar="FILE|DIR",
        min_length=1,
    )
    plain: bool = option(False, "plain ASCII: no boxes, no colour")
    quiet: bool = option(False, "no progress and no notes on stderr", short="-q")
    strict: bool = option(False, "a warning is exit code 3")
    exit_zero: bool = option(False, "a failed check is exit code 0")

    @property
    def printed(self) -> Format:
        """The format of what goes to stdout."""
        return self.format or "table"


def refuse(output: Output, count: int) -> None:
    """Refuse before the work what could not be written of `count` results after it.

    Raises: CurvError (E_USAGE) for a format that holds one result, or a suffix of no format.
    """
    sinks.holds(output.printed, count)
    if output.out is not None and not _is_folder(output.out):
        sinks.holds(sinks.format_of(Path(output.out)), count)


@contextlib.contextmanager
def destination(out: str | None) -> Iterator[Callable[[Report], None]]:
    """Open what --out names; yield what writes a report there, whole or not at all.

    Raises: CurvError (E_OUTPUT) where it cannot be written, before there is a report.
    """
    if out is None:
        yield lambda report: None
    elif _is_folder(out):
        # One draft proves that the folder takes files; their names are known at the end.
        with folder(Path(out)), drafted(Path(out, "report.json")):
            yield lambda report: _write({Path(out, n): t for n, t in sinks.files(report).items()})
    else:
        kind = sinks.format_of(Path(out))
        with drafted(Path(out)) as draft:

            def write(report: Report) -> None:
                draft.fill(sinks.render(report, kind))
                draft.place()

            yield write


def _is_folder(out: str) -> bool:
    path = Path(out)
    fresh = not path.suffix and not path.exists()
    return out.endswith(os.sep) or path.is_dir() or fresh


def _write(texts: dict[Path, str]) -> None:
    """Write several files: all are filled before the first is placed."""
    with contextlib.ExitStack() as stack:
        drafts = [(stack.enter_context(drafted(path)), text) for path, text in texts.items()]
        for draft, text in drafts:
            draft.fill(text)
        for draft, _ in drafts:
            draft.place()


def show(report: Report, format: Format, *, plain: bool) -> None:
    """Write to stdout: as wide as the terminal on one, as wide as it likes elsewhere.

    Raises: CurvError (E_OUTPUT) where stdout cannot be written; E_USAGE for svg where the report
    has no figure, once its table is written instead.
    """
    if sys.stdout is None:
        raise CurvError("E_OUTPUT", "stdout is closed", "use --out FILE")
    if format == "svg" and not any(result.figures for result in report.results.values()):
        show(report, "table", plain=plain)  # what the work found is not to be lost
    terminal = sys.stdout.isatty()
    # A terminal says what signs it has; what programs read is UTF-8, as JSON has to be.
    encoding = (format == "table" and sys.stdout.encoding) or "utf-8"
    text = sinks.render(
        report,
        format,
        width=shutil.get_terminal_size().columns if terminal else None,
        color=terminal and not os.environ.get("NO_COLOR") and not plain,
        plain=plain,
        encoding=encoding,
    )
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode(encoding, "backslashreplace"))
        sys.stdout.flush()
    except BrokenPipeError:
        _deaf()  # the reader has left, as head does
    except OSError as error:
        _deaf()
        said = (error.strerror or type(error).__name__).lower()
        raise CurvError("E_OUTPUT", f"stdout cannot be written: {said}", "use --out FILE") from None


def _deaf() -> None:
    """Send what stdout still holds nowhere; Python would complain about it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
