"""How many bytes a graph holds, and how many there are to spend."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def held(build: Callable[[], Any], device: torch.device) -> int:
    """Measure the bytes that a graph keeps: build it, add up what it saved, and drop it.

    Tensors that share storage count once; the parameters count too, they are few beside the rest.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        graph = build()
        after = torch.cuda.memory_allocated(device)
        del graph
        return int(max(after - before, 0))
    # The graph holds numbers and this list holds the tensors: a graph that held its own outputs
    # through a hook would never be freed.
    saved: list[Tensor] = []

    def pack(t: Tensor) -> int:
        saved.append(t)
        return len(saved) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: saved[i]):
        graph = build()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    del graph
    saved.clear()
    return sum(storages.values())


def spare(device: torch.device) -> int:
    """Say how many bytes kept graphs may hold by default: half of what is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return available() // 2


def available() -> int:
    """Say how many bytes of main memory are free, within the container's limit."""
    limits = [_cgroup(), _meminfo()]
    known = [x for x in limits if x is not None]
    if known:
        return min(known)
    # Neither Linux's file nor a container: a fixed fraction of what is installed, where known.
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 * 2**30


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _cgroup() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)
