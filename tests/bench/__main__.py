"""Run the benchmarks: `python tests/bench [NAME ...]`; exit with 1 where one misses its promise."""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

BENCHES = (
    "products",
    "eigen",
    "diagonal",
    "trace",
    "scaling",
    "gradcheck",
    "transformer",
    "gpt2",
)
"""Each is a module here, whose `run(setting)` gives what was measured."""

TESTS = Path(__file__).parents[1]


def main() -> int:
    """Run those that are named, or all, each in its own process; then print and write the table."""
    # Run by its path, this folder itself is searched, and not the one that holds it.
    sys.path[0] = str(TESTS)
    from bench.tables import as_csv, as_markdown, machine, tables
    from bench.timing import Measured, Setting

    default = Setting()
    parser = argparse.ArgumentParser(prog="python tests/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--device", default=default.device, help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, help="of every benchmark")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="timed rounds")
    parser.add_argument("--out", default=default.out, help="folder for the table and the figures")
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHES:
            parser.error(f"no benchmark {name!r}: choose from {', '.join(BENCHES)}")
    if given.repeats < 2:
        parser.error("--repeats: quartiles need 2 rounds or more")
    out = Path(given.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    setting = Setting(given.device, given.threads, given.repeats, str(out))
    found: dict[str, list[Measured]] = {}
    for name in given.names or BENCHES:
        sys.stderr.write(f"running {name}\n")
        command = [sys.executable, "-m", "bench.alone", name, json.dumps(asdict(setting))]
        done = subprocess.run(command, cwd=TESTS, stdout=subprocess.PIPE, text=True, check=False)
        lines = json.loads(done.stdout) if done.returncode == 0 else []
        ended = Measured("did not complete", f"exit {done.returncode}", "completes", False)
        found[name] = [Measured(**line) for line in lines] or [ended]
        # After every one, so that what is known is there if a later one is cut short.
        (out / "bench.md").write_text(as_markdown(found, machine(setting)), encoding="utf-8")
        (out / "bench.csv").write_text(as_csv(found), encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(machine(setting), *tables(found), f"every line: {out / 'bench.csv'}", sep="\n\n")
    return int(not all(line.kept for lines in found.values() for line in lines))


if __name__ == "__main__":
    sys.exit(main())
