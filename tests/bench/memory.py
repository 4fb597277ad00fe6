"""How many bytes of tensors a call takes, and how many it leaves behind, for every library."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MB = 1e6


@dataclass(frozen=True)
class Bytes:
    """The most bytes beyond those before the call, and what its result holds of them."""

    peak: int
    held: int


def allocated(call: Callable[[], object], device: str = "cpu") -> Bytes:
    """Ask torch's allocator, which sees every tensor, whoever makes it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        after = torch.cuda.memory_allocated(device)
        del result
        return Bytes(torch.cuda.max_memory_allocated(device) - before, after - before)
    with (
        _unheard(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        result = call()
    del result
    known: Any = seen.profiler
    held = peak = 0
    for event in known.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return Bytes(peak, held)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Silence the profiler, which announces itself past Python's own stderr."""
    sys.stderr.flush()
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
