"""The plan that is told before long work."""

import re

import pytest
import torch
from questions import classify, inputs, mlp

from curvcli.curvature.plan import Planned, duration, planned, storage
from curvcli.curvature.products import Kept, Rebuilt
from curvcli.linalg.operator import Dense, LinearOperator, Mapped
from curvcli.work import Work

I = torch.eye(4, dtype=torch.float64)


def told(A: LinearOperator, products: int, calls: int, vectors: int = 0) -> list[str]:
    lines: list[str] = []
    work = Work(rng=torch.Generator(), tell=lines.append)
    wrapped, v = planned(A, work, products, vectors=vectors), A.like.new_ones(A.size)
    for _ in range(calls):
        assert torch.equal(wrapped.matvec(v), A.matvec(v))
    return lines


def test_the_plan_has_the_products_the_time_and_the_bytes() -> None:
    problem = classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))
    A = Kept(problem, memory=1e9)
    (line,) = told(A, 10**9, 5, vectors=20)
    assert re.fullmatch(
        r"a product takes [\d.]+ (ms|µs); at most 1,000,000,000 products, about [\d.]+ h; "
        r"graphs [\d.]+ .?B, basis up to 6.6 kB",
        line,
    ), line


def test_graphs_that_are_not_kept_are_not_told() -> None:
    (line,) = told(Rebuilt(classify(mlp(6, 8, 3), inputs(40, 6))), 10**9, 3)
    assert "graphs" not in line
    assert "basis" not in line


@pytest.mark.parametrize("calls", [0, 1])
def test_nothing_is_told_before_it_is_known(calls: int) -> None:
    assert told(Dense(I), 10**12, calls) == []


def test_nothing_is_told_of_a_trifle() -> None:
    assert told(Dense(I), 3, 3) == []


def test_several_at_once_are_several_products() -> None:
    seconds: list[float] = []
    A = Planned(Dense(I), seconds.append)
    V = torch.randn(7, 4, dtype=torch.float64)
    assert torch.equal(A.matmat(V), V)
    assert torch.equal(A.matmat(V[:0]), V[:0])
    assert not seconds, "an empty product times nothing"
    A.matvec(V[0])
    assert seconds == [min(A.times)]


def test_the_faster_of_two_counts() -> None:
    seconds: list[float] = []
    A = Planned(Mapped(lambda v: v, I[0]), seconds.append)
    A.times = [9.0]
    A.matvec(I[0])
    A.matvec(I[0])
    assert len(seconds) == 1
    assert 0 < seconds[0] < 9


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3e-5, "30 µs"), (0.0124, "12 ms"), (0.9, "900 ms"), (6.04, "6 s"), (83, "83 s"),
     (150, "2 min"), (5000, "1.4 h")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("size", "said"), [(80, "80 B"), (6640, "6.6 kB"), (41e6, "41 MB"), (2e8, "0.2 GB")]
)
def test_sizes(size: float, said: str) -> None:
    assert storage(size) == said
