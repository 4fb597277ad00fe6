"""Timings in turns, by count and not by clock."""

import torch
from oracles import rng
from torch import Tensor
from zoo import Distances, mlp, posed, vectors

from curvcli.curvature.timing import Timed, interleave, trial
from curvcli.linalg.operator import normal
from curvcli.work import Work, silent

CPU = torch.device("cpu")


def test_interleaving() -> None:
    order: list[str] = []

    def call(name: str) -> Tensor:
        order.append(name)
        return torch.zeros(1)

    timed = [Timed("a", lambda: call("a")), Timed("b", lambda: call("b"))]
    seen: list[tuple[int, int | None]] = []
    cut = interleave(timed, 3, lambda done, total, *_: seen.append((done, total)), CPU)
    assert not cut
    assert order[-6:] == ["a", "b"] * 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [len(t.times) for t in timed] == [3, 3]
    assert all(t.median >= 0 and t.spread >= 0 for t in timed)


def test_ctrl_c_keeps_what_was_timed() -> None:
    calls = 0

    def call() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return torch.zeros(1)

    timed = Timed("a", call)
    assert interleave([timed], 9, silent, CPU)
    assert len(timed.times) == 2  # the first call was for the peak


def test_medians() -> None:
    timed = Timed("a", lambda: torch.zeros(1), times=[1.0, 2.0, 3.0, 4.0, 100.0])
    assert timed.median == 3.0
    assert timed.spread == 1.0
    assert Timed("a", lambda: torch.zeros(1), times=[1.0]).spread == 0.0


def test_trial() -> None:
    problem = posed(mlp, vectors())
    v = normal(problem.like, rng())
    made = trial("kept", problem, Work(rng()), v)
    assert isinstance(made, Timed)
    assert made.product is not None
    assert torch.equal(made.call(), made.product)
    distances = posed(Distances, vectors())
    refused = trial("kept", distances, Work(rng()), normal(distances.like, rng()))
    assert isinstance(refused, str)
    assert refused.startswith("NotImplementedError")
