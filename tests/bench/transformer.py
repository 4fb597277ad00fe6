"""A transformer of ten million parameters: what it takes to check every tensor of it."""

import time
from collections import Counter

import torch
from bench.alone import GB, peak
from bench.models import GPT, sentences
from bench.timing import Measured, Setting
from torch.nn import functional

import curvcli

EXAMPLES = 64
SIZE, WITHIN = 10e6, 0.02
SECONDS, GIGABYTES = 120.0, 8.0


def run(setting: Setting) -> list[Measured]:
    """Check every tensor with the defaults; the peak memory of the process is the check's."""
    torch.manual_seed(0)
    model = GPT().to(setting.device)
    batch = tuple(t.to(setting.device) for t in sentences(EXAMPLES))
    start = time.perf_counter()
    result = curvcli.gradcheck(model, functional.cross_entropy, [batch])
    seconds, most = time.perf_counter() - start, peak() / GB
    size = sum(p.numel() for p in model.parameters())
    verdicts = Counter(str(row["verdict"]) for row in result.rows)
    lines = [
        Measured(
            "parameters",
            f"{size:,}",
            f"{SIZE:,.0f} +/- {WITHIN:.0%}",
            abs(size / SIZE - 1) <= WITHIN,
        ),
        Measured("verdict", result.status, "pass", result.status == "pass"),
        Measured("tensors", ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())),
        Measured("loss evaluations", f"{result.metrics['evaluations'].value:,}", detail=True),
        *(
            Measured("note", note, detail=True)
            for note in result.notes
            if "examples" in note or "one by one" in note
        ),
        Measured("time", f"{seconds:.1f} s", f"< {SECONDS:g} s", seconds < SECONDS),
        Measured("peak memory", f"{most:.2f} GB", f"< {GIGABYTES:g} GB", most < GIGABYTES),
    ]
    if setting.device.startswith("cuda"):
        used = torch.cuda.max_memory_allocated(setting.device) / GB
        lines.append(Measured("peak memory of the device", f"{used:.2f} GB"))
    return lines
