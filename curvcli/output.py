"""Where a report goes: stdout, a file, or a folder; everything is opened before the work."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from curvcli import sinks
from curvcli.errors import CurvError
from curvcli.files import drafted, folder
from curvcli.options import Options, option
from curvcli.report import Report, Result
from curvcli.sinks import arrays

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


def refuse(output: Output, count: int, *, draws: bool) -> None:
    """Refuse before the work what could not be written of `count` results after it.

    Raises: CurvError (E_USAGE) for a format that holds one result, or figures where none of them
        `draws`, and for a suffix of no format.
    """
    sinks.holds(output.printed, count, draws=draws)
    if output.out is not None and not _is_folder(output.out):
        sinks.holds(sinks.format_of(Path(output.out)), count, draws=draws)


def apart(out: str | None, files: Mapping[str, Path | None], given: Sequence[Path]) -> None:
    """Refuse outputs that would overwrite each other, or what is `given`: the model, the spec.

    They are --out, and the array file of each analysis.

    Raises: CurvError (E_USAGE) where two go to one file, or one to what is read.
    """
    taken = [path for path in files.values() if path]
    if out is not None and not _is_folder(out):
        taken.append(Path(out))
    elif out is not None:
        whole = [f"{name}.safetensors" for name, path in files.items() if path is None]
        names = ["report.json", *(f"{name}.csv" for name in files), *whole]
        taken += [Path(out, name) for name in names]
    real = [os.path.realpath(path) for path in taken]
    read = {os.path.realpath(path) for path in given}
    for path, place in zip(taken, real, strict=True):
        if real.count(place) > 1:
            message = f"two outputs go to one file, {path}"
            raise CurvError("E_USAGE", message, "give each a name of its own")
        if place in read:
            message = f"{path} is read, and would be overwritten"
            raise CurvError("E_USAGE", message, "name another file")


@contextlib.contextmanager
def destination(out: str | None, files: Sequence[Path] = ()) -> Iterator[Callable[[Report], None]]:
    """Open what --out names, and `files` for arrays; yield what writes a report, whole or not.

    Arrays go to the file that their Result names, else to the folder, where --out is one.

    Raises: CurvError (E_OUTPUT) where it cannot be written, before there is a report.
    """
    with _documents(out) as write, array_files(files) as save:

        def deliver(report: Report) -> None:
            write(report)
            save(report.results.values())

        yield deliver


@contextlib.contextmanager
def array_files(files: Sequence[Path]) -> Iterator[Callable[[Iterable[Result]], None]]:
    """Open files for arrays; yield what writes those of some results, each to the file it names.

    Raises: CurvError (E_OUTPUT) where one cannot be written, before there are results.
    """
    with contextlib.ExitStack() as stack:
        drafts = {path: stack.enter_context(drafted(path)) for path in files}

        def save(results: Iterable[Result]) -> None:
            for result in results:
                if result.arrays and result.file in drafts:
                    drafts[result.file].write(partial(arrays.write, result.arrays, result.file))
                    drafts[result.file].place()

        yield save


@contextlib.contextmanager
def _documents(out: str | None) -> Iterator[Callable[[Report], None]]:
    if out is None:
        yield lambda report: None
    elif _is_folder(out):
        # One draft proves that the folder takes files; their names are known at the end.
        with folder(Path(out)), drafted(Path(out, "report.json")):
            yield lambda report: _fill(Path(out), report)
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


def _fill(folder: Path, report: Report) -> None:
    """Write a folder's files: all are filled before the first is placed."""
    texts = {Path(folder, n): text for n, text in sinks.files(report).items()}
    numbers = {
        Path(folder, f"{name}.safetensors"): result.arrays
        for name, result in report.results.items()
        if result.arrays and result.file is None
    }
    with contextlib.ExitStack() as stack:
        drafts = {path: stack.enter_context(drafted(path)) for path in (*texts, *numbers)}
        for path, text in texts.items():
            drafts[path].fill(text)
        for path, found in numbers.items():
            drafts[path].write(partial(arrays.write, found, path))
        for draft in drafts.values():
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
