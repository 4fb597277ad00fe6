"""The process: arguments in, one line for every mistake, an exit code out."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from curvcli.errors import CurvError, Exit


class _Signals:
    """Turns SIGTERM and SIGHUP into what Ctrl-C is, and remembers which it was."""

    def __init__(self) -> None:
        self.code = Exit.INTERRUPTED
        for number, code in ((signal.SIGTERM, Exit.TERMINATED), (signal.SIGHUP, Exit.HUNGUP)):
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
    import typer
    from typer.exceptions import TyperException

    from curvcli.cli import app

    try:
        done = app(arguments, prog_name="curv", standalone_mode=False)
        return int(done or 0)
    except CurvError as error:
        return _said(error)
    except TyperException as error:
        return _said(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        print("curv: interrupted before there was anything to tell", file=sys.stderr)
        return Exit.INTERRUPTED
    except MemoryError as error:
        return _said(_memory(error))
    except Exception as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            return _said(_memory(error))
        return _said(_bug(error))


def _said(error: CurvError) -> int:
    from curvcli.sinks.text import clean

    if os.environ.get("CURV_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
    line = f"curv: {clean(str(error))}"
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)
    return error.exit_code


def _usage(error: Exception) -> CurvError:
    """Put what Typer found into curv's one line."""
    context = getattr(error, "ctx", None)
    said = getattr(error, "format_message", lambda: str(error))()
    path = context.command_path if context is not None else "curv"
    found = CurvError("E_USAGE", said.strip().rstrip(".").replace("\n", " "), f"see {path} --help")
    found.__cause__ = error
    return found


def _memory(error: BaseException) -> CurvError:
    found = CurvError(
        "E_MEMORY", "out of memory", "lower --batch-size or --memory, or choose fewer --params"
    )
    found.__cause__ = error
    return found


def _bug(error: Exception) -> CurvError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    found = CurvError(
        "E_INTERNAL",
        f"{type(error).__name__}: {first}{place}",
        "this is a bug in curv; CURV_DEBUG=1 shows the traceback",
    )
    found.__cause__ = error
    return found


if __name__ == "__main__":
    main()
