"""One benchmark in a process of its own, whose memory and torch's settings are its alone."""

import contextlib
import importlib
import json
import resource
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict

from bench.timing import Measured, Setting

GB = 1e9


def measured(name: str, setting: Setting) -> list[Measured]:
    """Run a benchmark; a failure is a line of its own."""
    import torch

    if setting.threads:
        torch.set_num_threads(setting.threads)
    try:
        found: Sequence[Measured] = importlib.import_module(f"bench.{name}").run(setting)
    except Exception as error:
        traceback.print_exc()
        return [Measured("did not complete", type(error).__name__, "completes", False)]
    return [
        *found,
        Measured("peak of the whole process", f"{peak() / GB:.2f} GB", detail=True),
    ]


def peak() -> int:
    """Give the most bytes that this process has had in main memory."""
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    # Peers print; what is read by the parent is on stdout alone.
    with contextlib.redirect_stdout(sys.stderr):
        values = measured(sys.argv[1], Setting(**json.loads(sys.argv[2])))
    sys.stdout.write(json.dumps([asdict(m) for m in values]))
