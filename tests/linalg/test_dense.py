"""The dense spectrum: LAPACK's, of a matrix that is read off by products."""

import pytest
import torch
from oracles import Interrupting, rng, symmetric
from torch import Tensor

from curvcli.linalg.dense import dense_matrix, dense_spectrum
from curvcli.linalg.operator import Counted, Dense, LinearOperator, Mapped

VALUES = [-2.0, 0.0, 0.0, 1.0, 1.0, 5.0, 7.0]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_the_matrix_is_read_off_by_rows(chunk: int) -> None:
    A = symmetric(VALUES)
    counted = Counted(Dense(A))
    seen: list[tuple[int, int | None]] = []
    M = dense_matrix(counted, chunk=chunk, watch=lambda i, n, *_: seen.append((i, n)))
    assert torch.equal(M, A)
    assert counted.matvecs == 7
    assert seen == [(min(i + chunk, 7), 7) for i in range(0, 7, chunk)]


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_values_and_vectors(scale: float) -> None:
    A = symmetric(VALUES) * scale
    found = dense_spectrum(Dense(A), vectors=True)
    assert found is not None
    assert found.vectors is not None
    assert found.matvecs == 7
    true = torch.tensor(VALUES, dtype=torch.float64) * scale
    assert ((found.values - true).abs() <= found.radius).all()
    assert found.radius <= 1e-13 * scale
    assert found.asymmetry == 0
    Y = found.vectors
    assert torch.allclose(Y @ Y.T, torch.eye(7).double(), atol=1e-14)
    assert torch.allclose(Y @ A / scale, found.values[:, None] / scale * Y, atol=1e-13)
    values = dense_spectrum(Dense(A))
    assert values is not None
    assert values.vectors is None
    assert torch.allclose(values.values / scale, found.values / scale, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_asymmetry_is_told_and_counts(scale: float) -> None:
    A = symmetric(VALUES)
    K = torch.randn(7, 7, generator=rng(), dtype=torch.float64)
    M = A + 1e-3 * (K - K.T)
    found = dense_spectrum(Mapped(lambda v: scale * (M.T @ v), M[0]))
    assert found is not None
    assert found.asymmetry == pytest.approx(float((M - M.T).norm() / M.norm()))
    assert torch.allclose(found.values / scale, torch.linalg.eigvalsh(A), atol=1e-13)
    assert found.radius / scale == pytest.approx(float((K - K.T).norm()) * 1e-3)


def test_rounded_products_stay_within_the_radius() -> None:
    A = symmetric([float(i) for i in range(60)], dtype=torch.float32)
    found = dense_spectrum(Dense(A))
    assert found is not None
    assert found.values.dtype == torch.float64
    true = torch.linalg.eigvalsh(A.double())
    assert ((found.values - true).abs() <= found.radius).all()
    assert found.radius < 1e-3


def test_zero() -> None:
    found = dense_spectrum(Mapped(torch.zeros_like, torch.zeros(3)))
    assert found is not None
    assert found.values.tolist() == [0.0] * 3
    assert found.asymmetry == found.radius == 0


def test_ctrl_c_leaves_nothing() -> None:
    A: LinearOperator = Interrupting(Dense(symmetric(VALUES)), 5)
    assert dense_spectrum(A, chunk=2) is None


def test_a_bug_stays_an_exception() -> None:
    def broken(v: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dense_spectrum(Mapped(broken, torch.zeros(3)))
