"""Progress on the terminal: one line that says what is done, and the estimate so far."""

import contextlib
import math
import sys
from typing import TYPE_CHECKING

from curvcli.work import Watch, silent

if TYPE_CHECKING:
    from rich.progress import Progress


class Announcer:
    """Shows work on stderr while it runs; nothing off a terminal or when told to be quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bars: Progress | None = None

    def tell(self, line: str) -> None:
        """Print a line for the user beside the report."""
        if not self.quiet and sys.stderr is not None:
            # Nobody may be listening any more, which is no reason to stop.
            with contextlib.suppress(OSError):
                print(f"curv: {_visible(line)}", file=sys.stderr, flush=True)

    def announce(self, doing: str) -> Watch:
        """Begin a bar; what is returned moves it."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            return silent
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.close()
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[found]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self.bars.start()
        task = self.bars.add_task(_visible(doing), total=None, found="", count="")
        bars = self.bars

        def watch(
            done: int, total: int | None, estimate: float | None, error: float | None
        ) -> None:
            found = "" if estimate is None else f"{estimate:.5g}"
            if error is not None and math.isfinite(error):
                found += f" ± {error:.1g}"
            count = f"{done:,}" + (f"/{total:,}" if total is not None else "")
            bars.update(task, completed=done, total=total, found=found, count=count)

        return watch

    def close(self) -> None:
        """Take the bar away."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


def _visible(text: str) -> str:
    """Write what would move the cursor or hide, such as in a file's name, as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
