"""Operators: several vectors at once as one by one, and blocks as submatrices."""

import pytest
import torch
from oracles import rng, symmetric
from torch import Tensor

from curvcli.linalg.operator import Counted, Dense, LinearOperator, Mapped, Restricted

A = symmetric([-2.0, 0.5, 1.0, 3.0, 4.0, 9.0])
V = torch.randn(4, 6, generator=rng(), dtype=torch.float64)
INDICES = torch.tensor([4, 0, 3])
BLOCKS: dict[str, slice | Tensor] = {
    "slice": slice(1, 4),
    "indices": INDICES,
    "everything": slice(0, 6),
}

MAPS: dict[str, LinearOperator] = {
    "dense": Dense(A),
    "mapped": Mapped(lambda v: A @ v, A[0]),
    "counted": Counted(Dense(A)),
    "counted mapped": Counted(Mapped(lambda v: A @ v, A[0])),
    "restricted to everything": Restricted(Dense(A), slice(0, 6)),
}


@pytest.mark.parametrize("name", MAPS)
def test_several_vectors_are_multiplied_as_one_by_one(name: str) -> None:
    operator = MAPS[name]
    assert operator.size == 6
    assert torch.allclose(operator.matmat(V), V @ A, atol=1e-14)
    for v in V:
        assert torch.allclose(operator.matvec(v), A @ v, atol=1e-14)
        assert torch.allclose(operator.matmat(v[None])[0], operator.matvec(v), atol=1e-14)


def test_the_default_goes_row_by_row() -> None:
    seen: list[Tensor] = []

    def map(v: Tensor) -> Tensor:
        seen.append(v.clone())
        return A @ v

    Mapped(map, A[0]).matmat(V)
    assert torch.equal(torch.stack(seen), V)


def test_every_row_is_counted_and_passed_on_together() -> None:
    class Together(Dense):
        calls = 0

        def matmat(self, V: Tensor) -> Tensor:
            self.calls += 1
            return super().matmat(V)

    inner = Together(A)
    counted = Counted(inner)
    counted.matmat(V)
    counted.matvec(V[0])
    assert counted.matvecs == 5
    assert inner.calls == 1


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_a_submatrix(name: str) -> None:
    block = BLOCKS[name]
    restricted = Restricted(Dense(A), block)
    part = A[block][:, block]
    assert restricted.size == len(part)
    W = torch.randn(3, len(part), generator=rng(1), dtype=torch.float64)
    assert torch.allclose(restricted.matmat(W), W @ part, atol=1e-14)
    for w in W:
        assert torch.allclose(restricted.matvec(w), part @ w, atol=1e-14)


def test_a_block_of_a_block() -> None:
    inner = Restricted(Dense(A), INDICES)
    outer = Restricted(inner, torch.tensor([2, 1]))
    part = A[[3, 0]][:, [3, 0]]
    assert torch.allclose(outer.matmat(torch.eye(2).double()), part, atol=1e-14)


def test_a_block_leaves_what_it_is_given_alone() -> None:
    v = torch.ones(3, dtype=torch.float64)
    Restricted(Mapped(lambda w: w.mul_(2), A[0]), INDICES).matvec(v)
    assert torch.equal(v, torch.ones(3).double())
