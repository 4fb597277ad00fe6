"""Lanczos on spectra known by construction: every interval right, none missed, no ghost."""

import math

import pytest
import torch
from oracles import Interrupting, held_apart, rng, symmetric
from torch import Tensor

from curvcli.linalg.basis import norm
from curvcli.linalg.lanczos import lanczos, least_vectors
from curvcli.linalg.operator import Dense, Mapped
from curvcli.linalg.ritz import DOUBT, FLOOR, SLACK, Ritz, Which, radii, wanted

N = 24
SPECTRA: dict[str, list[float]] = {
    "zero": [0.0] * N,
    "identity": [1.0] * N,
    "rank one": [3.0] + [0.0] * (N - 1),
    "negative rank one": [-3.0] + [0.0] * (N - 1),
    "clustered": [5.0, 5.0, 5.0, 5 - 1e-9, 5 - 1e-6, *[i / 30 for i in range(N - 5)]],
    "twice at either end": [4.0, 4.0, -4.0, -4.0, *[(i - 10) / 10 for i in range(N - 4)]],
    "four times largest": [2.0] * 4 + [i / 20 for i in range(N - 4)],
    "tiny gap": [2.0, 2 - 1e-12, 1.0, 1 - 1e-7, *[-i / 25 for i in range(N - 4)]],
    "plus and minus": [s * (1.0 + i) for i in range(N // 2) for s in (1, -1)],
    "geometric": [2.0**-i for i in range(N)],
    "alternating": [(-1.5) ** -i for i in range(N)],
    "even": [float(i) for i in range(N)],
    "negative definite": [-1.0 - i * i / 9 for i in range(N)],
    "n = 1": [2.0],
    "n = 1, zero": [0.0],
    "n = 2": [1.0, -1.0],
    "n = 2, equal": [1.0, 1.0],
}
WHICH: tuple[Which, ...] = ("largest", "smallest", "both", "magnitude")
SCALES = {torch.float64: (1.0, 1e-150, 1e150), torch.float32: (1.0, 1e-28, 1e28)}


def check(A: Tensor, ritz: Ritz) -> None:
    """Hold the pairs against the matrix, whatever the status is."""
    true = torch.linalg.eigvalsh(A.double())
    k = len(ritz.values)
    assert len(ritz.vectors) == len(ritz.residuals) == len(ritz.radius) == k
    assert ritz.vectors.dtype == A.dtype
    assert held_apart(ritz.values, ritz.radius, true) == k
    Y = ritz.vectors.double()
    eps = torch.finfo(A.dtype).eps
    assert torch.allclose(Y @ Y.T, torch.eye(k).double(), atol=300 * eps)
    for theta, y, bound in zip(ritz.values, Y, ritz.residuals, strict=True):
        assert norm(A.double() @ y - theta * y) <= float(bound) * (1 + 1e-9)
    assert (ritz.radius >= ritz.residuals).all()


def check_none_missed(A: Tensor, ritz: Ritz, top: int, which: Which) -> None:
    true = torch.linalg.eigvalsh(A.double())
    chosen, _ = wanted(true, min(top, len(true)), which)
    assert len(ritz.values) == len(chosen)
    floor = FLOOR * float(true.abs().max())
    sizes = ritz.values.abs().clamp_min(floor) * SLACK + ritz.residuals
    found, sought = ritz.values, true[chosen]
    if which == "magnitude":
        found, sought = found.abs(), sought.abs()
    assert ((found - sought).abs() <= sizes).all()
    assert ritz.doubt <= DOUBT


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", SCALES)
def test_every_spectrum(spectrum: str, dtype: torch.dtype, which: Which) -> None:
    values = SPECTRA[spectrum]
    fine = 1e-5 if dtype == torch.float64 else 1e-3
    for seed in range(3):
        A = symmetric(values, seed, dtype) * SCALES[dtype][seed]
        all_of_them = len(values) + 3 * (seed == 1)
        for top, tolerance in ((1, 1e-2), (3, fine), (all_of_them, fine)):
            ritz = lanczos(Dense(A), top, tolerance, rng(seed), which=which, max_matvecs=200)
            assert ritz.converged
            check(A, ritz)
            check_none_missed(A, ritz, top, which)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("block", [2, 4])
def test_every_spectrum_by_blocks(spectrum: str, block: int, which: Which) -> None:
    values = SPECTRA[spectrum]
    for seed, dtype in ((0, torch.float64), (1, torch.float32), (2, torch.float64)):
        A = symmetric(values, seed, dtype) * SCALES[dtype][seed]
        for top in (1, 3):
            ritz = lanczos(Dense(A), top, 1e-3, rng(seed), which=which, block=block)
            assert ritz.converged
            check(A, ritz)
            check_none_missed(A, ritz, top, which)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("block", [1, 2])
def test_every_spectrum_with_few_vectors(spectrum: str, block: int, which: Which) -> None:
    values = SPECTRA[spectrum]
    for seed, dtype in ((0, torch.float64), (1, torch.float32), (2, torch.float64)):
        A = symmetric(values, seed, dtype) * SCALES[dtype][seed]
        for top in (1, 3):
            room = least_vectors(len(values), top, which, block) + 6
            ritz = lanczos(
                Dense(A), top, 1e-3, rng(seed),
                which=which, max_vectors=room, block=block, max_matvecs=300,
            )  # fmt: skip
            check(A, ritz)
            if ritz.converged:
                check_none_missed(A, ritz, top, which)
            elif ritz.status == "unverified":
                assert ritz.short_of == "vectors"
                assert ritz.doubt > DOUBT
            else:  # half of a geometric series ends within a thousandth of zero
                assert ritz.status == "max_matvecs"
                assert ritz.short_of == "matvecs"
                assert spectrum == "geometric"
                assert which in ("smallest", "both")


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("spectrum", ["even", "geometric", "plus and minus", "clustered"])
def test_scale_changes_nothing(spectrum: str, scale: float) -> None:
    A = symmetric(SPECTRA[spectrum])
    one = lanczos(Dense(A), 3, 1e-8, rng(), which="both")
    other = lanczos(Dense(A * scale), 3, 1e-8, rng(), which="both")
    assert torch.allclose(other.values / scale, one.values, rtol=1e-10)
    assert other.matvecs == one.matvecs
    check(A * scale, other)


def test_residuals_meet_the_tolerance() -> None:
    A = symmetric([float(i) ** 2 for i in range(40)])
    for tolerance in (1e-2, 1e-6, 1e-10):
        ritz = lanczos(Dense(A), 4, tolerance, rng())
        assert (ritz.residuals <= tolerance * ritz.values + 1e-11).all()


def test_large_spectrum_with_outliers_takes_few_products() -> None:
    bulk = torch.rand(190, generator=rng(), dtype=torch.float64).tolist()
    A = symmetric([float(v) for v in bulk] + [10.0, 12.0, 15.0, 20.0, 30.0, -4.0, 8, 9, 7, 6])
    ritz = lanczos(Dense(A), 5, 1e-2, rng())
    assert ritz.matvecs < 40
    check_none_missed(A, ritz, 5, "largest")


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("most", range(1, 12))
def test_max_matvecs_is_the_most(most: int, top: int) -> None:
    A = symmetric(SPECTRA["even"])
    products = 0

    def counted(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return A @ v

    ritz = lanczos(Mapped(counted, A[0]), top, 1e-10, rng(), max_matvecs=most)
    assert products == ritz.matvecs <= most
    assert ritz.status == "max_matvecs"
    assert ritz.doubt == 1.0
    check(A, ritz)


def test_an_unfinished_search_is_unverified() -> None:
    A = symmetric(SPECTRA["even"])
    enough = lanczos(Dense(A), 1, 0.1, rng()).matvecs
    statuses = [
        lanczos(Dense(A), 1, 0.1, rng(), max_matvecs=m).status for m in range(2, enough + 1)
    ]
    assert statuses[0] == "max_matvecs"
    assert "unverified" in statuses
    assert statuses[-1] == "converged"


@pytest.mark.parametrize("at", [1, 2, 5, 12, 20])
def test_ctrl_c_gives_what_is_known(at: int) -> None:
    A = symmetric(SPECTRA["even"])
    ritz = lanczos(Interrupting(Dense(A), at), 3, 1e-10, rng(), which="both")
    assert ritz.status == "interrupted"
    assert ritz.matvecs == at
    assert len(ritz.values) == min(6, at - 1)
    check(A, ritz)


def test_watching() -> None:
    seen: list[tuple[int, float | None, float | None]] = []
    A = symmetric(SPECTRA["even"])
    ritz = lanczos(
        Dense(A), 1, 1e-6, rng(), watch=lambda done, total, theta, r: seen.append((done, theta, r))
    )
    assert [s[0] for s in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == pytest.approx(float(ritz.values[0]), rel=1e-6)
    assert all(r is not None and r >= 0 for _, _, r in seen)


def test_one_seed_one_answer() -> None:
    A = symmetric(SPECTRA["clustered"])
    a, b = (lanczos(Dense(A), 4, 1e-4, rng(7)) for _ in range(2))
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.vectors, b.vectors)


def test_radii_widen_in_clusters_alone() -> None:
    theta = torch.tensor([1.0, 1.1, 5.0, 1.2, -3.0], dtype=torch.float64)
    r = torch.tensor([0.06, 0.06, 0.2, 0.08, 0.0], dtype=torch.float64)
    together = math.sqrt(2 * 0.06**2 + 0.08**2)
    expected = torch.tensor([together, together, 0.2, together, 0.0], dtype=torch.float64)
    assert torch.allclose(radii(theta, r), expected)


def test_a_widened_cluster_takes_in_the_neighbour_that_it_reaches() -> None:
    theta = torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64)
    r = torch.tensor([0.06, 0.06, 0.02], dtype=torch.float64)
    assert torch.allclose(radii(theta, r), r.norm().expand(3))


def test_two_ritz_values_of_one_eigenvalue_do_not_count_twice() -> None:
    # diag(0, 0, 2): the vectors (e1 +- e3)/sqrt 2 have both Ritz value 1 and residual 1. Their own
    # intervals [0, 2] hold 0 and 2; of three eigenvalues 0, 0, 2 each can take one.
    theta = torch.tensor([1.0, 1.0], dtype=torch.float64)
    wide = radii(theta, torch.ones(2, dtype=torch.float64))
    assert held_apart(theta, wide, torch.tensor([0.0, 0.0, 2.0])) == 2
    assert held_apart(theta, wide * 0.5, torch.tensor([0.0, 0.0, 2.0])) == 0


@pytest.mark.parametrize(
    ("which", "chosen", "upper"),
    [
        ("largest", [4, 3], 2),
        ("smallest", [0, 1], 0),
        ("both", [4, 3, 0, 1], 2),
        ("magnitude", [0, 4], 1),
    ],
)
def test_wanted(which: Which, chosen: list[int], upper: int) -> None:
    theta = torch.tensor([-5.0, -1.0, 0.0, 2.0, 4.0])
    assert wanted(theta, 2, which) == (chosen, upper)
    assert len(set(wanted(theta, 9, which)[0])) == 5
