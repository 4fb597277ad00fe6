"""Power iteration with deflation carries the same certificate as Lanczos."""

import pytest
import torch
from oracles import Interrupting, held_apart, rng, symmetric
from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.operator import Dense, Mapped
from curvcli.linalg.power import power
from curvcli.linalg.ritz import Ritz, Which

N = 12
SPECTRA: dict[str, list[float]] = {
    "zero": [0.0] * N,
    "rank one": [3.0] + [0.0] * (N - 1),
    "negative rank one": [-3.0] + [0.0] * (N - 1),
    "geometric": [2.0**-i for i in range(N)],
    "tiny": [1e-150 * 3.0**-i for i in range(N)],
    "huge": [1e150 * 3.0**-i for i in range(N)],
    "signs": [10.0, -7.0, 5.0, -3.0, 2.0, *[0.1 * i for i in range(7)]],
    "n = 1": [2.0],
    "n = 2": [2.0, -1.0],
}


def check(A: Tensor, ritz: Ritz) -> None:
    k = len(ritz.values)
    assert held_apart(ritz.values, ritz.radius, torch.linalg.eigvalsh(A)) == k
    assert torch.allclose(ritz.vectors @ ritz.vectors.T, torch.eye(k).double(), atol=1e-12)
    for theta, y, bound in zip(ritz.values, ritz.vectors, ritz.residuals, strict=True):
        assert norm(A @ y - theta * y) <= float(bound) * (1 + 1e-9)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_spectrum(spectrum: str, which: Which) -> None:
    values = SPECTRA[spectrum]
    size = max(abs(v) for v in values)
    for seed in range(3):
        A = symmetric(values, seed)
        for top, tolerance in ((1, 1e-2), (3, 1e-6)):
            ritz = power(Dense(A), top, tolerance, rng(seed), which=which)
            assert ritz.converged
            check(A, ritz)
            true = torch.linalg.eigvalsh(A)
            kind = {
                "largest": true[true >= -1e-14 * size].flip(0),
                "smallest": true[true <= 1e-14 * size],
                "magnitude": true[true.abs().argsort(descending=True)],
            }[which][:top]
            assert len(ritz.values) == len(kind)
            slack = 0.05 * ritz.values.abs().clamp_min(0.01 * size) + ritz.residuals
            assert ((ritz.values - kind).abs() <= slack).all()


def test_later_pairs_do_not_suffer_from_the_error_of_earlier_ones() -> None:
    A = symmetric([4.0**-i for i in range(N)])
    ritz = power(Dense(A), 4, 1e-2, rng())
    assert ritz.converged
    assert (ritz.residuals <= 1e-2 * ritz.values.clamp_min(0.01) + 1e-14).all()
    assert ritz.matvecs < 100


def test_a_pair_of_opposite_sign_never_converges() -> None:
    A = symmetric([3.0, -3.0, *[0.0] * 8])
    ritz = power(Dense(A), 1, 1e-3, rng(), max_matvecs=50)
    assert ritz.status == "max_matvecs"
    check(A, ritz)


@pytest.mark.parametrize("most", range(1, 40))
def test_max_matvecs_is_the_most(most: int) -> None:
    A = symmetric(SPECTRA["geometric"])
    products = 0

    def counted(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return A @ v

    ritz = power(Mapped(counted, A[0]), 2, 1e-3, rng(), max_matvecs=most)
    assert products == ritz.matvecs <= most
    assert most > 25 or not ritz.converged
    check(A, ritz)


@pytest.mark.parametrize("at", [1, 2, 8, 20])
def test_ctrl_c_gives_what_is_known(at: int) -> None:
    A = symmetric(SPECTRA["geometric"])
    ritz = power(Interrupting(Dense(A), at), 5, 1e-8, rng())
    assert ritz.status == "interrupted"
    assert ritz.doubt == 1.0
    check(A, ritz)
