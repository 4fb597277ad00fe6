"""Name every way in which a request can be refused or left undecided, with its exit code."""

import os
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, get_args


class Exit(IntEnum):
    """The exit codes of the command line, a public promise."""

    OK = 0
    FAILED = 1  # a check failed: a numerical verdict, nothing else
    REFUSED = 2  # usage, spec, checkpoint, trust
    UNDECIDED = 3  # accepted, but not completed or not decided
    BUG = 4
    HUNGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143


Refused = Literal[
    "E_USAGE", "E_NOT_FOUND", "E_DIRECTORY", "E_NOT_REGULAR", "E_PERMISSION", "E_EMPTY", "E_LFS",
    "E_FORMAT", "E_CORRUPT", "E_SHA256", "E_AMBIGUOUS", "E_TOO_LARGE", "E_UNTRUSTED", "E_CONTENT",
    "E_KEYS", "E_DTYPE", "E_YAML", "E_SPEC", "E_IMPORT", "E_MODEL", "E_LOSS", "E_DATA",
    "E_OPTIMIZER", "E_BUDGET",
]  # fmt: skip
Undecided = Literal[
    "E_NONFINITE", "E_NONDET", "E_NO_HVP", "E_NOCONV", "E_MEMORY", "E_OUTPUT", "E_VACUOUS",
]  # fmt: skip
Code = Refused | Undecided | Literal["E_INTERNAL"]

UNDECIDED: frozenset[str] = frozenset(get_args(Undecided))


class CurvError(Exception):
    """A mistake or a limit that the user can do something about.

    `message` says what is wrong, with the value and the place; `hint` says what to do.
    """

    def __init__(self, code: Code, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" — {self.hint}" if self.hint else "")

    @property
    def exit_code(self) -> Exit:
        """The process's exit code where this error ends it."""
        if self.code == "E_INTERNAL":
            return Exit.BUG
        return Exit.UNDECIDED if self.code in UNDECIDED else Exit.REFUSED


def listed(names: Sequence[str], most: int = 3) -> str:
    """Name the first few of some things, and count the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def memory_error(error: BaseException) -> CurvError | None:
    """Tell the lack of memory from other failures: torch raises a RuntimeError for it."""
    said = str(error)
    if not isinstance(error, MemoryError) and not (
        isinstance(error, RuntimeError) and ("out of memory" in said or "allocate memory" in said)
    ):
        return None
    found = CurvError(
        "E_MEMORY", "out of memory", "lower --batch-size or --memory, or choose fewer --params"
    )
    found.__cause__ = error
    return found


def bug(error: Exception) -> CurvError:
    """Put an exception that nobody expected into curv's one line."""
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
