"""The process: arguments in, one line for every mistake, an exit code out."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from curvcli.errors import CurvError, Exit, bug, memory_error


class _Signals:
    """Turns SIGTERM and SIGHUP into what Ctrl-C is, and remembers which it was."""

    def __init__(self) -> None:
        self.code = Exit.INTERRUPTED
        for name, code in (("SIGTERM", Exit.TERMINATED), ("SIGHUP", Exit.HUNGUP)):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            # nohup starts a process that does not hear it, which must stay so.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handler(code))

    def _handler(self, code: Exit) -> Callable[[int, FrameType | None], None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.code = code
            raise KeyboardInterrupt

        return stop


def main() -> NoReturn:
    """Run the command line."""
    signals = _Signals()
    code = run(sys.argv[1:])
    if code == Exit.INTERRUPTED:
        code = signals.code
    sys.exit(int(code))


def run(arguments: list[str]) -> int:
    """Run one command; what goes wrong becomes one line on stderr and an exit code."""
    try:
        return _done(arguments)
    except CurvError as error:
        return _said(error)
    except KeyboardInterrupt:
        _print("curv: interrupted before there was anything to tell")
        return Exit.INTERRUPTED
    except Exception as error:
        return _said(memory_error(error) or bug(error))


def _done(arguments: list[str]) -> int:
    from typer.exceptions import TyperException

    from curvcli.analyses import registry
    from curvcli.cli import build_app

    app = build_app(registry())
    if not arguments:
        with contextlib.redirect_stdout(sys.stderr):
            app(["--help"], prog_name="curv", standalone_mode=False)
        return Exit.REFUSED
    try:
        task = app(arguments, prog_name="curv", standalone_mode=False)
    except TyperException as error:
        raise _usage(error) from error
    # Not within Typer, which has exit codes of its own for Ctrl-C and a broken pipe.
    return int(task()) if callable(task) else int(task or 0)


def _said(error: CurvError) -> int:
    from curvcli.sinks.text import clean

    if os.environ.get("CURV_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
    _print(f"curv: {clean(str(error))}")
    return error.exit_code


def _print(line: str) -> None:
    """Write a line to stderr, where somebody still listens."""
    if sys.stderr is None:
        return
    encoding = sys.stderr.encoding or "utf-8"
    with contextlib.suppress(OSError):
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _usage(error: Exception) -> CurvError:
    """Put what Typer found into curv's one line."""
    from curvcli.mistakes import nearest

    context = getattr(error, "ctx", None)
    help = f"see {context.command_path if context is not None else 'curv'} --help"
    option, near = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if option is not None and near is not None:
        return CurvError("E_USAGE", f"there is no option {option}", nearest(option, near) or help)
    said = getattr(error, "format_message", lambda: str(error))().strip().rstrip(".")
    return CurvError("E_USAGE", " ".join(said.split()), help)


if __name__ == "__main__":
    main()
