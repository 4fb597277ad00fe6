"""The growing basis stays orthonormal, and its blocks and cuts add up."""

import math

import pytest
import torch
from oracles import rng

from curvcli.linalg import basis as module
from curvcli.linalg.basis import Basis, norm


def grown(n: int, k: int, dtype: torch.dtype = torch.float64) -> Basis:
    basis, source = Basis(torch.zeros(n, dtype=dtype)), rng(1)
    for _ in range(k):
        q = basis.random(source)
        assert q is not None
        basis.append(q.to(dtype))
    return basis


@pytest.mark.parametrize("k", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_orthonormal(k: int, dtype: torch.dtype) -> None:
    basis = grown(40, k, dtype)
    Q = torch.stack([basis[i] for i in range(k)]).double()
    assert len(basis) == k
    assert torch.allclose(Q @ Q.T, torch.eye(k).double(), atol=30 * torch.finfo(dtype).eps)


def test_dots_and_combinations_in_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = grown(50, 20)
    Q = torch.stack([basis[i] for i in range(20)])
    w = torch.randn(50, generator=rng(), dtype=torch.float64)
    c = torch.randn(20, generator=rng(2), dtype=torch.float64)
    for columns in (7, 50, 1 << 18):
        monkeypatch.setattr(module, "_COLUMNS", {"cpu": columns})
        assert torch.allclose(basis.dots(w), Q @ w, atol=1e-14)
        assert torch.allclose(basis.combine(c), c @ Q, atol=1e-14)


def test_remove_takes_off_what_it_says() -> None:
    basis = grown(30, 18)
    w = torch.randn(30, generator=rng(), dtype=torch.float64)
    rest = w.clone()
    taken = basis.remove(rest)
    assert float(basis.dots(rest).abs().max()) < 1e-15
    assert torch.allclose(rest + basis.combine(taken), w, atol=1e-14)


def test_an_almost_contained_vector_is_still_orthogonalised() -> None:
    basis = grown(30, 18)
    w = basis.combine(torch.ones(18).double()) + 1e-9 * torch.randn(30, generator=rng()).double()
    basis.remove(w)
    assert float(basis.dots(w / w.norm()).abs().max()) < 1e-13


def test_full() -> None:
    assert grown(5, 5).random(rng()) is None
    empty = Basis(torch.zeros(3, dtype=torch.float64))
    assert len(empty.remove(torch.ones(3, dtype=torch.float64))) == 0
    first = empty.random(rng())
    assert first is not None
    assert float(first.norm()) == pytest.approx(1.0)


def test_full_to_rounding() -> None:
    basis = Basis(torch.zeros(2, dtype=torch.float64))
    basis.append(torch.tensor([1.0, 0.0]))
    basis.count, basis.blocks[0][1] = 2, torch.tensor([0.0, 1.0])
    wide = Basis(torch.zeros(3, dtype=torch.float64))
    wide.blocks, wide.count = [torch.eye(3).double()], 3
    assert basis.random(rng()) is None
    assert wide.random(rng()) is None


@pytest.mark.parametrize("kept", [1, 5, 16, 17, 33])
@pytest.mark.parametrize("columns", [7, 50, 1 << 18])
def test_a_rotation_in_place(kept: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COLUMNS", {"cpu": columns})
    basis = grown(50, 37)
    Q = torch.stack([basis[i] for i in range(37)])
    S = torch.linalg.qr(torch.randn(37, kept, generator=rng(), dtype=torch.float64))[0]
    assert torch.allclose(basis.gram(), Q @ Q.T, atol=1e-14)
    assert not basis.rotate(S)
    assert len(basis) == kept
    assert torch.allclose(torch.stack([basis[i] for i in range(kept)]), S.T @ Q, atol=1e-14)
    assert len(basis.blocks) == -(-kept // 16)
    more = basis.random(rng(3))
    assert more is not None
    basis.append(more)  # it goes on growing
    assert torch.equal(basis[kept], more)


@pytest.mark.parametrize("most", [1, 5, 16, 20, 33])
def test_memory_for_no_more_than_allowed(most: int) -> None:
    basis, source = Basis(torch.zeros(60, dtype=torch.float64), most), rng(1)
    for i in range(most):
        v = basis.random(source)
        assert v is not None
        basis.append(v)
        assert i < sum(map(len, basis.blocks)) <= most
    basis.truncate(most // 2)
    assert len(basis.blocks) == -(-(most // 2) // 16)


def test_what_is_beside_a_basis_is_taken_off_too() -> None:
    basis, source = grown(30, 18), rng(5)
    beside: list[torch.Tensor] = []
    for _ in range(3):
        v = basis.random(source, beside)
        assert v is not None
        beside.append(v)
    w = torch.randn(30, generator=rng(), dtype=torch.float64)
    rest = w.clone()
    taken = basis.remove(rest, beside)
    V = torch.stack(beside)
    assert float((V @ rest).abs().max()) < 1e-14
    assert float(basis.dots(rest).abs().max()) < 1e-14
    assert torch.allclose(rest + basis.combine(taken[:18]) + taken[18:] @ V, w, atol=1e-14)
    assert basis.random(source, [*beside, *[w] * 9]) is None


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e300])
def test_norm_at_every_scale(scale: float) -> None:
    assert norm(scale * torch.tensor([3.0, -4.0], dtype=torch.float64)) == pytest.approx(5 * scale)


def test_norm_of_nothing_and_of_what_is_not_finite() -> None:
    assert norm(torch.zeros(4)) == 0.0
    assert norm(torch.tensor([1.0, -math.inf])) == math.inf
    assert math.isnan(norm(torch.tensor([1.0, math.nan])))
