"""What graphs and calls hold, counted where the size is known."""

import gc
from pathlib import Path

import pytest
import torch
from oracles import rng
from torch import Tensor
from zoo import classes, mlp, posed

from curvcli.batches import Batch
from curvcli.curvature import memory
from curvcli.curvature.memory import available, held, peak_bytes, spare
from curvcli.curvature.timing import Timed, trial
from curvcli.linalg.operator import normal
from curvcli.work import Work

CPU = torch.device("cpu")


def leaf(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64, requires_grad=True)


def test_saved_tensors() -> None:
    assert held(lambda: leaf(1000).exp(), CPU) == 8000  # its result
    x = leaf(1000)
    assert held(lambda: x * x, CPU) == 8000  # one storage, twice
    assert held(lambda: (x * x).exp() + 1, CPU) == 16000
    assert held(lambda: x + 1, CPU) == 0
    assert held(lambda: (x[:500].sin(), x[500:].cos()), CPU) == 8000  # views of one storage


def test_the_graph_is_dropped() -> None:
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(t), Tensor) for t in gc.get_objects())

    x = leaf(10)
    before = alive()
    held(lambda: (x * x).exp().sum(), CPU)
    assert alive() == before


def test_the_smaller_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_cgroup", lambda: 3000)
    monkeypatch.setattr(memory, "_meminfo", lambda: 2000)
    assert available() == 2000
    assert spare(CPU) == 1000
    monkeypatch.setattr(memory, "_meminfo", lambda: None)
    assert available() == 3000
    monkeypatch.setattr(memory, "_cgroup", lambda: None)
    assert available() > 2**20  # a share of what is installed


def test_reading_what_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  5 kB\n")
    (tmp_path / "memory.max").write_text("7000\n")
    (tmp_path / "memory.current").write_text("6000\n")
    places = {"/proc/meminfo": tmp_path / "meminfo", "/sys/fs/cgroup": tmp_path}
    monkeypatch.setattr(memory, "Path", lambda name: places[name])
    assert memory._meminfo() == 5120
    assert memory._cgroup() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup() is None
    (tmp_path / "meminfo").unlink()
    assert memory._meminfo() is None


def test_peak_of_what_lives_together() -> None:
    def call() -> Tensor:
        a = torch.ones(1000, dtype=torch.float64)
        b = a + 1
        return b.sum()

    assert peak_bytes(call, CPU) == 16008


def test_what_is_freed_counts_no_more() -> None:
    def call() -> Tensor:
        for _ in range(10):
            a = torch.ones(1000, dtype=torch.float64)
            del a
        return torch.ones(10, dtype=torch.float64)

    assert peak_bytes(call, CPU) == 8000


def test_views_and_changes_in_place_cost_nothing() -> None:
    x = torch.ones(1000, dtype=torch.float64)
    assert peak_bytes(lambda: x.view(10, 100).t()[2:].mul_(1.0), CPU) == 0


def test_peak_of_a_graph() -> None:
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    # exp keeps its result for the backward, whose product with the incoming ones is the second.
    assert peak_bytes(lambda: torch.autograd.grad(x.exp().sum(), x)[0], CPU) >= 16000


@pytest.mark.parametrize("method", ["kept", "rebuilt", "differences"])
def test_peak_of_products_grows_with_the_batch(method: str) -> None:
    def peak(n: int) -> int:
        problem = posed(mlp, Batch(torch.ones(n, 4).double(), classes(2, n), n), (n,))
        made = trial(method, problem, Work(rng()), normal(problem.like, rng()))
        assert isinstance(made, Timed)
        return peak_bytes(made.call, CPU)

    assert 5 < peak(1000) / peak(100) < 11
