"""Run the benchmarks: `python tests/bench [NAME ...]`; exit with 1 where one misses its promise."""

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from rich.console import Console

BENCHES = ("gradcheck", "transformer")
"""Each is a module here, whose `run(setting)` gives what was measured."""


def main() -> int:
    """Run those that are named, or all; then print the table."""
    # Run by its path, this folder itself is searched, and not the one that holds it.
    sys.path[0] = str(Path(__file__).parents[1])
    from bench.timing import Measured, Setting, table

    default = Setting()
    parser = argparse.ArgumentParser(prog="python tests/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--device", default=default.device, help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="of every benchmark")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="timed rounds")
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHES:
            parser.error(f"no benchmark {name!r}: choose from {', '.join(BENCHES)}")
    if given.repeats < 2:
        parser.error("--repeats: quartiles need 2 rounds or more")
    setting = Setting(given.device, given.threads, given.repeats)
    found: dict[str, list[Measured]] = {}
    for name in given.names or BENCHES:
        sys.stderr.write(f"running {name}\n")
        try:
            found[name] = importlib.import_module(f"bench.{name}").run(setting)
        except Exception as error:
            traceback.print_exc()
            found[name] = [Measured("did not complete", type(error).__name__, "completes", False)]
    Console().print(table(found))
    return int(not all(line.kept for lines in found.values() for line in lines))


if __name__ == "__main__":
    sys.exit(main())
