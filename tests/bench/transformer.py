"""A transformer of ten million parameters: what it takes to check every tensor of it."""

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from bench.models import GPT, sentences
from bench.timing import Measured, Setting
from torch.nn import functional

import curvcli

EXAMPLES = 64
SIZE, WITHIN = 10e6, 0.02
SECONDS, GIGABYTES = 120.0, 8.0
GB = 1e9


def run(setting: Setting) -> list[Measured]:
    """Check it in a process of its own, whose peak memory is the check's."""
    command = [sys.executable, "-m", "bench.transformer", setting.device, str(setting.threads or 0)]
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    size, peak, status = int(found["parameters"]), float(found["peak"]) / GB, str(found["status"])
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found["verdicts"].items())
    lines = [
        Measured(
            "parameters",
            f"{size:,}",
            f"{SIZE:,.0f} +/- {WITHIN:.0%}",
            abs(size / SIZE - 1) <= WITHIN,
        ),
        Measured("verdict", status, "pass", status == "pass"),
        Measured("tensors", verdicts),
        Measured("threads", str(found["threads"])),
        Measured("loss evaluations", f"{found['evaluations']:,}"),
        *(Measured("note", note) for note in found["notes"]),
        Measured(
            "time", f"{found['seconds']:.1f} s", f"< {SECONDS:g} s", found["seconds"] < SECONDS
        ),
        Measured("peak memory", f"{peak:.2f} GB", f"< {GIGABYTES:g} GB", peak < GIGABYTES),
    ]
    if found["device_peak"] is not None:
        lines.append(Measured("peak memory of the device", f"{found['device_peak'] / GB:.2f} GB"))
    return lines


def measure(device: str, threads: int) -> dict[str, Any]:
    """Check every tensor with the defaults."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPT().to(device)
    batch = tuple(t.to(device) for t in sentences(EXAMPLES))
    start = time.perf_counter()
    result = curvcli.gradcheck(model, functional.cross_entropy, [batch])
    seconds = time.perf_counter() - start
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "status": result.status,
        "verdicts": Counter(str(row["verdict"]) for row in result.rows),
        "evaluations": result.metrics["evaluations"].value,
        "notes": [n for n in result.notes if "examples" in n or "one by one" in n],
        "seconds": seconds,
        "peak": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "device_peak": torch.cuda.max_memory_allocated() if device.startswith("cuda") else None,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
