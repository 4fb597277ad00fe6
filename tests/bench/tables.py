"""What was measured, laid out: a grid for each benchmark, and every line of it as CSV."""

import csv
import io
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.timing import Measured, Setting
from rich.markup import escape
from rich.table import Table

Found = Mapping[str, Sequence[Measured]]
HEAD = ("benchmark", "measured", "of", "value", "promised", "verdict")


def _lines(found: Found) -> Iterator[tuple[str, ...]]:
    for name, values in found.items():
        for m in values:
            verdict = ("kept" if m.kept else "MISSED") if m.promised else ""
            yield name, m.what, m.of, m.value, m.promised, verdict


def tables(found: Found) -> Iterator[Table]:
    """Lay out one grid for each benchmark, for a terminal."""
    for name, values in found.items():
        head, *rows = _grid(name, values)
        drawn = Table(*head, box=None, pad_edge=False)
        for what, *cells in rows:
            drawn.add_row(what, *(_marked(c) for c in cells))
        yield drawn


def _marked(cell: str) -> str:
    shown = escape(cell.strip("*"))
    return f"[bold red]{shown}[/]" if cell.startswith("**") else shown


def as_csv(found: Found) -> str:
    """Write the same lines, comma-separated."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows(_lines(found))
    return out.getvalue()


def as_markdown(found: Found, machine: str) -> str:
    """Write the same grids in Markdown; what is promised stands in brackets, and what is missed."""
    grids = []
    for name, values in found.items():
        head, *rows = _grid(name, values)
        lines = [head, ["---"] * len(head), *rows]
        grids.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([machine, *grids]) + "\n"


def _grid(name: str, values: Sequence[Measured]) -> list[list[str]]:
    """Put what was measured in rows, what it was measured of in columns; else in the first one."""
    shown = [m for m in values if not m.detail or (m.promised and not m.kept)]
    columns = list(dict.fromkeys(m.of for m in shown if m.of)) or [""]
    cells: dict[str, dict[str, str]] = {}
    for m in shown:
        cells.setdefault(m.what, {})[m.of or columns[0]] = _cell(m)
    rows = [[what, *(found.get(c, "") for c in columns)] for what, found in cells.items()]
    return [[name, *columns], *rows]


def _cell(m: Measured) -> str:
    value = m.value.replace("|", "\\|")
    if not m.promised:
        return value
    return f"{value} [{m.promised}]" if m.kept else f"**{value} [MISSED: {m.promised}]**"


def machine(setting: Setting) -> str:
    """Name what was measured on."""
    import torch

    threads = setting.threads or torch.get_num_threads()
    said = f"{processor()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"
    if setting.device.startswith("cuda"):
        said = f"{torch.cuda.get_device_name(setting.device)}; {said}"
    return f"{said}, Python {platform.python_version()}, {setting.repeats} rounds or more"


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
