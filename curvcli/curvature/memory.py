"""How many bytes a graph holds, a call takes, and how many there are to spend."""

import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Graph = TypeVar("Graph")


def fitting(
    build: Callable[[int], Graph], sizes: Sequence[int], memory: float | None, device: torch.device
) -> tuple[dict[int, Graph], int]:
    """Build the graphs of as many batches of these sizes as `memory` bytes hold, by index.

    The largest is built first and measured, and gives the bytes of each; None is half of what is
    free. Without limit nothing is measured.
    """
    if memory == math.inf:
        return {i: build(i) for i in range(len(sizes))}, 0
    room = spare(device) if memory is None else memory
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    first, size = measured(partial(build, largest), device)
    fits = int(min(room // max(size, 1), len(sizes)))
    order = [largest, *(i for i in range(len(sizes)) if i != largest)]
    kept = {largest: first} if fits else {}
    del first
    kept |= {i: build(i) for i in order[1:fits]}
    return kept, size


def measured(build: Callable[[], Graph], device: torch.device) -> tuple[Graph, int]:
    """Build something, and count the bytes of tensors that it made and that are still there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        graph = build()
        return graph, int(max(torch.cuda.memory_allocated(device) - before, 0))
    with _Allocations() as seen:
        graph = build()
        return graph, seen.held


def held(build: Callable[[], Any], device: torch.device) -> int:
    """Count the bytes of what is built, and drop it."""
    return measured(build, device)[1]


def spare(device: torch.device, share: float = 0.5) -> int:
    """Say how many bytes kept graphs may hold by default: half of what is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * share)
    return int(available() * share)


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
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= int(stat.get("inactive_file", 0))  # a cache that is given back on demand
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)


def peak_bytes(call: Callable[[], Tensor], device: torch.device) -> int:
    """Measure the most bytes of tensors that a call holds beyond what was held before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _Allocations() as seen:
        result = call()
    del result
    return int(seen.most)


# torch leaves this class without types.
class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.held = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_address(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and _address(t) not in {0, *given}:
                self._count(t.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.alive or not size:
            return
        self.alive[address] = size
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        self.held -= self.alive.pop(address)


def _address(t: Tensor) -> int:
    """Give where a tensor's memory is; 0 for the wrappers of functional transforms."""
    try:
        return int(t.untyped_storage().data_ptr())
    except RuntimeError:
        return 0
