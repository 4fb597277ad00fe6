"""Lanczos with several products at once: copies seen from the start, the same certificates."""

import pytest
import torch
from oracles import Interrupting, held_apart, rng, symmetric
from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.krylov import Krylov
from curvcli.linalg.lanczos import lanczos
from curvcli.linalg.operator import Counted, Dense
from curvcli.linalg.ritz import Ritz


class Together(Dense):
    """A matrix that notes how many vectors it is given at once."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.given: list[int] = []

    def matvec(self, v: Tensor) -> Tensor:
        self.given.append(1)
        return super().matvec(v)

    def matmat(self, V: Tensor) -> Tensor:
        self.given.append(len(V))
        return super().matmat(V)


def check(A: Tensor, ritz: Ritz) -> None:
    k = len(ritz.values)
    assert held_apart(ritz.values, ritz.radius, torch.linalg.eigvalsh(A)) == k
    assert torch.allclose(ritz.vectors @ ritz.vectors.T, torch.eye(k).double(), atol=1e-12)
    for theta, y, bound in zip(ritz.values, ritz.vectors, ritz.residuals, strict=True):
        assert norm(A @ y - theta * y) <= float(bound) * (1 + 1e-9)


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_copies_are_seen_at_once(copies: int) -> None:
    values = [5.0] * copies + [i / 100 for i in range(100 - copies)]
    for seed in range(3):
        A = symmetric(values, seed)
        B = Together(A)
        ritz = lanczos(B, copies, 1e-3, rng(seed), block=copies)
        assert ritz.converged
        check(A, ritz)
        assert torch.allclose(ritz.values, torch.full((copies,), 5.0).double(), rtol=1e-5)
        # One stretch of blocks, one search of single vectors, and the product of the certificate:
        # none was found late.
        blocks = B.given.index(1)
        assert set(B.given[:blocks]) == {copies}
        assert set(B.given[blocks:]) == {1}
        assert sum(B.given) == ritz.matvecs


@pytest.mark.parametrize("block", [2, 3, 5])
def test_the_block_identity(block: int) -> None:
    A = symmetric([float(i) - 9 for i in range(30)])
    K = Krylov(Counted(Dense(A)))
    run = K.start(rng(), block)
    assert run is not None
    for _ in range(3):
        K.step(run, range(block))
    m = 3 * block
    Q = torch.stack([K.Q[i] for i in range(m)])
    assert torch.allclose(Q @ Q.T, torch.eye(m).double(), atol=1e-13)
    assert torch.allclose(Q @ A @ Q.T, K.H, atol=1e-12)
    assert torch.allclose(A @ Q.T - Q.T @ K.H, torch.stack(run.U).T @ run.C, atol=1e-12)
    # It is block tridiagonal without having been made so.
    assert float(K.H[: m - 2 * block, m - block :].abs().max()) < 1e-12
    residuals = K.residuals(torch.eye(m, dtype=torch.float64))
    assert torch.allclose(residuals, (A @ Q.T - Q.T @ K.H).norm(dim=0), atol=1e-12)


def test_some_of_a_block_can_be_stepped() -> None:
    A = symmetric([float(i) - 9 for i in range(30)])
    K = Krylov(Counted(Dense(A)))
    run = K.start(rng(), 3)
    assert run is not None
    for rows in ((0, 1, 2), (1,), (0, 2), (2,), (1, 0)):
        K.step(run, rows)
        m = len(K.Q)
        both = torch.stack([*(K.Q[i] for i in range(m)), *run.U])
        assert len(both) == m + 3
        assert torch.allclose(both @ both.T, torch.eye(m + 3).double(), atol=1e-13)
        Q, U = both[:m], both[m:]
        assert torch.allclose(A @ Q.T - Q.T @ K.H, U.T @ run.C, atol=1e-12)
    assert len(K.Q) == 9


@pytest.mark.parametrize("block", [1, 2, 4, 9])
@pytest.mark.parametrize("values", [[2.0], [1.0, -1.0], [0.0] * 5, [3.0] * 5, [4.0, 0, 0, 0, 0]])
def test_blocks_as_large_as_the_space(values: list[float], block: int) -> None:
    A = symmetric(values)
    for top in (1, len(values)):
        ritz = lanczos(Dense(A), top, 1e-6, rng(), block=block)
        assert ritz.converged
        check(A, ritz)
        expected = torch.tensor(sorted(values)[::-1][:top], dtype=torch.float64)
        assert torch.allclose(ritz.values, expected, atol=1e-13)


def test_a_block_that_closes_in_part_goes_on() -> None:
    # Rank three: of four starts one direction is exhausted by the second step.
    A = symmetric([9.0, 5.0, 2.0] + [0.0] * 37)
    ritz = lanczos(Dense(A), 3, 1e-8, rng(), block=4)
    assert ritz.converged
    check(A, ritz)
    assert torch.allclose(ritz.values, torch.tensor([9.0, 5.0, 2.0]).double())
    assert ritz.matvecs <= 4 + 3 + 4


@pytest.mark.parametrize("most", range(1, 24))
def test_max_matvecs_is_the_most(most: int) -> None:
    A = symmetric([float(i) for i in range(24)])
    B = Together(A)
    ritz = lanczos(B, 2, 1e-10, rng(), max_matvecs=most, block=3)
    assert sum(B.given) == ritz.matvecs <= most
    assert ritz.status == "max_matvecs"
    check(A, ritz)


@pytest.mark.parametrize("at", [1, 2, 5, 12, 20])
def test_ctrl_c_gives_the_finished_blocks(at: int) -> None:
    A = symmetric([float(i) for i in range(30)])
    ritz = lanczos(Interrupting(Dense(A), at), 3, 1e-10, rng(), which="both", block=3)
    assert ritz.status == "interrupted"
    assert len(ritz.values) == min(6, (at - 1) // 3 * 3)
    check(A, ritz)


def test_a_block_has_a_vector() -> None:
    with pytest.raises(ValueError, match="at least one vector, not 0"):
        lanczos(Dense(symmetric([1.0, 2.0])), 1, 1e-2, rng(), block=0)


@pytest.mark.parametrize("room", [14, 20, 40])
@pytest.mark.parametrize("block", [2, 4])
def test_blocks_within_few_vectors(block: int, room: int) -> None:
    values = [4.0, 4.0, 3.0, 3.0, *[1.5 * i / 200 for i in range(196)]]
    for seed in range(3):
        A = symmetric(values, seed)
        ritz = lanczos(Dense(A), 4, 1e-5, rng(seed), block=block, max_vectors=room)
        assert ritz.status in ("converged", "unverified")
        check(A, ritz)
        assert torch.allclose(ritz.values, torch.tensor(values[:4]).double(), rtol=1e-6)
