"""What graphs and calls hold, counted where the size is known."""

import gc
import math
from pathlib import Path

import pytest
import torch
from oracles import rng
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from zoo import classes, mlp, posed

from curvcli.batches import Batch
from curvcli.curvature import memory
from curvcli.curvature.hessian import hessian
from curvcli.curvature.memory import available, fitting, held, peak_bytes, spare
from curvcli.curvature.products import Kept
from curvcli.curvature.timing import Timed, trial
from curvcli.linalg.operator import normal
from curvcli.work import Work

CPU = torch.device("cpu")


def leaf(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64, requires_grad=True)


def test_what_is_built_and_still_there() -> None:
    assert held(lambda: leaf(1000).detach(), CPU) == 8000
    x = leaf(1000)
    assert held(x.exp, CPU) == 8000  # the result, which the graph holds too
    assert held(lambda: get_gradient_edge(x.exp()), CPU) == 8000  # held by the graph alone
    assert held(lambda: get_gradient_edge(x * x), CPU) == 0  # which holds x, and x was there
    assert held(lambda: get_gradient_edge((x * x).exp() + 1), CPU) == 8000
    assert held(lambda: get_gradient_edge((x * 2).square()), CPU) == 8000
    edges = lambda: (get_gradient_edge(x[:500].sin().cos()), get_gradient_edge(x[500:].exp()))  # noqa: E731
    assert held(edges, CPU) == 8000  # views of what was there, and half a result each


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(t), Tensor) for t in gc.get_objects())


def test_the_graph_is_dropped() -> None:
    x = leaf(10)
    before = alive()
    held(lambda: (x * x).exp().sum(), CPU)
    assert alive() == before


@pytest.mark.parametrize(
    ("room", "kept"), [(0, []), (7999, []), (8000, [1]), (23999, [0, 1]), (24000, [0, 1, 2])]
)
def test_as_many_as_fit_and_the_largest_first(room: float, kept: list[int]) -> None:
    order: list[int] = []

    def build(index: int) -> Tensor:
        order.append(index)
        return torch.ones((500, 1000, 500)[index], dtype=torch.float64)

    graphs, size = fitting(build, [500, 1000, 500], room, CPU)
    assert sorted(graphs) == kept
    assert size == 8000
    assert order == [1, *(i for i in kept if i != 1)]


def test_without_limit_nothing_is_measured() -> None:
    graphs, size = fitting(leaf, [5, 7], math.inf, CPU)
    assert sorted(graphs) == [0, 1]
    assert size == 0


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
    (tmp_path / "memory.stat").write_text("anon 5500\ninactive_file 500\nactive_file 7\n")
    places = {"/proc/meminfo": tmp_path / "meminfo", "/sys/fs/cgroup": tmp_path}
    monkeypatch.setattr(memory, "Path", lambda name: places[name])
    assert memory._meminfo() == 5120
    assert memory._cgroup() == 1500  # a file's cache is given back on demand
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


def wide() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(300, 300), nn.Tanh())))


def test_choosing_a_method_takes_a_few_vectors() -> None:
    """The model, the direction, the product, two gradients and where they are taken, in float64."""
    problem = posed(wide, Batch(torch.ones(2, 300).double(), classes(300, 2), 2), (2,))
    problem = problem.to(torch.float32)
    peak = peak_bytes(lambda: hessian(problem, Work(rng())).operator.like, CPU)
    assert 4 < peak / (8 * problem.layout.size) < 7.5


def test_a_kept_graph_holds_no_vectors() -> None:
    problem = posed(wide, Batch(torch.ones(2, 300).double(), classes(300, 2), 2), (2,))
    assert Kept(problem).bytes_per_batch < problem.layout.size  # bytes, of 8 for each entry
