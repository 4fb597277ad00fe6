"""Lanczos within a number of vectors: as exact as without it, and honest where it is tight."""

import gc
from collections.abc import Callable, Sequence

import pytest
import torch
from oracles import Interrupting, held_apart, rng, symmetric
from torch import Tensor

from curvcli.linalg import basis as cuts
from curvcli.linalg import eigensearch
from curvcli.linalg.basis import norm
from curvcli.linalg.krylov import Krylov, Run
from curvcli.linalg.lanczos import lanczos, least_vectors
from curvcli.linalg.operator import Counted, Dense, LinearOperator, Mapped
from curvcli.linalg.ritz import DOUBT, Which

N = 500


def column(values: list[float], bulk: Tensor) -> Tensor:
    return torch.cat([torch.tensor(values, dtype=torch.float64), bulk[len(values) :]])


def spectra() -> dict[str, Tensor]:
    even = torch.rand(N, generator=rng(), dtype=torch.float64)
    heavy = 0.02 * torch.randn(N, generator=rng(), dtype=torch.float64) ** 3
    return {
        "outliers": column([10.0, 12.0, 15.0, 20.0, 30.0], even),
        "clustered": column([5.0, 5.0, 5.0, 5 - 1e-9, 5 - 1e-6], even),
        "like a network's": column([9.0, 7.0, 5.5, 4.1, 3.0, 2.2, 1.5, 1.1, 0.9], heavy),
        "geometric": torch.tensor([0.9**i for i in range(N)], dtype=torch.float64),
        "edge of a bulk": 2 - 4 * even ** (2 / 3),  # as thin as that of a random matrix
    }


SPECTRA = spectra()


def diagonal(values: Tensor) -> LinearOperator:
    """Stand for any matrix of this spectrum: starts are as likely in every direction."""
    return Mapped(lambda v: values * v, values)


@pytest.mark.parametrize(
    ("size", "top", "which", "block", "least"),
    [
        (100, 5, "largest", 1, 8),
        (100, 5, "both", 1, 13),
        (100, 5, "magnitude", 4, 14),
        (7, 5, "largest", 1, 7),
        (1, 5, "both", 2, 1),
    ],
)
def test_the_least_number_of_vectors(
    size: int, top: int, which: Which, block: int, least: int
) -> None:
    assert least_vectors(size, top, which, block) == least
    A = diagonal(torch.arange(1.0, size + 1, dtype=torch.float64))
    given = {"which": which, "block": block, "max_matvecs": 60}
    ritz = lanczos(A, top, 0.3, rng(), max_vectors=least, **given)  # type: ignore[arg-type]
    assert len(ritz.values) == min(size, top * (2 if which == "both" else 1))
    with pytest.raises(ValueError, match=f"at least {least} are needed"):
        lanczos(A, top, 0.3, rng(), max_vectors=least - 1, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("extra", [8, 15, 20])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_limit_costs_few_products(name: str, extra: int) -> None:
    values = SPECTRA[name]
    free = lanczos(diagonal(values), 5, 1e-4, rng(), max_matvecs=900)
    assert free.converged
    ritz = lanczos(diagonal(values), 5, 1e-4, rng(), max_vectors=5 + extra, max_matvecs=900)
    assert ritz.status in ("converged", "unverified")
    assert ritz.restarts > 0 or extra > 8 or name == "outliers"
    # Those of a search that did not fit included.
    assert ritz.matvecs <= 1.7 * free.matvecs + 5 * extra
    if ritz.converged:
        assert torch.allclose(ritz.values, values.sort().values.flip(0)[:5], rtol=1e-6)


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_restarts_leave_no_trace(dtype: torch.dtype, which: Which) -> None:
    values = SPECTRA["edge of a bulk"].to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    ritz = lanczos(
        diagonal(values), 3, tolerance, rng(), which=which, max_vectors=14, max_matvecs=1500
    )
    assert ritz.restarts > 10
    eps = torch.finfo(dtype).eps
    Y = ritz.vectors.double()
    assert float((Y @ Y.T - torch.eye(len(Y)).double()).abs().max()) <= 20 * eps
    for theta, y, bound in zip(ritz.values, Y, ritz.residuals, strict=True):
        assert norm(values.double() * y - theta * y) <= float(bound) * (1 + 1e-9)
    assert held_apart(ritz.values, ritz.radius, values.double()) == len(ritz.values)
    # What is claimed is no more than the tolerance and the rounding of so many steps.
    assert float(ritz.residuals.max()) <= 2 * tolerance + 20 * ritz.matvecs * eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_rotated_basis_keeps_its_identities(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "_COLUMNS", {"cpu": 13})
    A = symmetric([float(i) - 7 for i in range(40)], dtype=dtype)
    K, source = Krylov(Counted(Dense(A))), rng(1)
    first = K.start(source, 2)
    assert first is not None
    for turn in range(6):
        while len(K.Q) < 24:
            K.step(K.runs[0], range(min(2, len(K.runs[0].U))))
        K.keep(range(10 + turn, 20))
        Q = torch.stack([K.Q[i] for i in range(len(K.Q))]).double()
        eps = torch.finfo(dtype).eps
        assert torch.allclose(Q @ Q.T, torch.eye(len(Q)).double(), atol=30 * eps)
        assert torch.allclose(Q @ A.double() @ Q.T, K.H, atol=900 * eps)
        U = torch.stack(K.runs[0].U).double()
        assert torch.allclose(U @ Q.T, torch.zeros(2, len(Q)).double(), atol=30 * eps)
        outside = A.double() @ Q.T - Q.T @ K.H
        assert torch.allclose(outside, U.T @ K.runs[0].C, atol=900 * eps)


def test_runs_are_joined_without_losing_anything() -> None:
    A = symmetric([float(i) - 7 for i in range(30)])
    K, source = Krylov(Counted(Dense(A))), rng(2)
    for steps in (5, 4, 6):
        run = K.start(source)
        assert run is not None
        for _ in range(steps):
            K.step(run)
    bounds = K.residuals(torch.eye(15, dtype=torch.float64))
    K.join()
    assert [len(run.U) for run in K.runs] == [3]
    Q = torch.stack([K.Q[i] for i in range(15)])
    U = torch.stack(K.runs[0].U)
    both = torch.cat([Q, U])
    assert torch.allclose(both @ both.T, torch.eye(18).double(), atol=1e-13)
    outside = A @ Q.T - Q.T @ K.H
    assert torch.allclose(outside, U.T @ K.runs[0].C, atol=1e-12)
    exact = outside.norm(dim=0)
    assert torch.allclose(K.residuals(torch.eye(15, dtype=torch.float64)), exact, atol=1e-12)
    assert (exact <= bounds + 1e-12).all()
    # What is forgotten is still counted.
    K.forget(K.runs[0], 1)
    assert (exact <= K.residuals(torch.eye(15, dtype=torch.float64)) + 1e-12).all()
    K.keep(range(3, 9))
    Q = torch.stack([K.Q[i] for i in range(6)])
    exact = (A @ Q.T - Q.T @ K.H).norm(dim=0)
    assert (exact <= K.residuals(torch.eye(6, dtype=torch.float64)) + 1e-12).all()


def vectors_alive(size: int) -> int:
    """Count the rows of this length in all tensors that live, whoever holds them."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size()
        for t in gc.get_objects()
        if issubclass(type(t), Tensor) and t.numel() >= size
    }
    return int(sum(storages.values()) // size)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("room", [10, 14, 21])
def test_no_more_vectors_are_held_than_allowed(
    room: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, held, allocated = Krylov.step, 0, 0

    def watched(K: Krylov, run: Run, rows: Sequence[int] = (0,)) -> None:
        nonlocal held, allocated
        step(K, run, rows)
        held = max(held, len(K.Q) + sum(len(each.U) for each in K.runs))
        allocated = max(allocated, sum(map(len, K.Q.blocks)))

    monkeypatch.setattr(Krylov, "step", watched)
    values = SPECTRA["edge of a bulk"]
    ritz = lanczos(diagonal(values), 2, 1e-5, rng(), max_vectors=room, block=block)
    assert ritz.restarts > 0
    assert held <= room
    assert allocated <= room
    assert max(held, allocated) == room  # what is allowed is used


def test_no_more_vectors_live_than_a_step_needs_besides() -> None:
    n = 20_011  # no other tensor is that long
    values = torch.rand(n, generator=rng(), dtype=torch.float64).sort().values ** 3
    before, most, calls = vectors_alive(n), 0, 0

    def watched(v: Tensor) -> Tensor:
        nonlocal most, calls
        calls += 1
        if calls % 5 == 0:
            most = max(most, vectors_alive(n))
        return values * v

    ritz = lanczos(Mapped(watched, values), 2, 1e-5, rng(), max_vectors=14, block=3, max_matvecs=60)
    assert ritz.restarts > 0
    assert 14 <= most - before <= 14 + 3 * 3 + 8


def test_a_search_that_does_not_fit_says_so() -> None:
    values = SPECTRA["like a network's"]
    ritz = lanczos(diagonal(values), 5, 1e-2, rng(), max_vectors=9)
    assert ritz.status == "unverified"
    assert ritz.short_of == "vectors"
    assert DOUBT < ritz.doubt <= 1
    assert ritz.matvecs < 100  # and goes on no longer than it helps
    assert torch.allclose(ritz.values, values[:5], rtol=1e-3)


def test_a_search_without_room_is_unverified_with_the_doubt_that_is_left() -> None:
    bulk = SPECTRA["edge of a bulk"]
    values = column([10.0, 9.0], 8 * bulk / bulk.max())
    found = [lanczos(diagonal(values), 2, 1e-2, rng(), max_vectors=room) for room in range(6, 18)]
    for ritz in found:
        assert ritz.converged == (ritz.doubt <= DOUBT)
        assert (ritz.short_of == "vectors") != ritz.converged
    assert [ritz.converged for ritz in found] == sorted(ritz.converged for ritz in found)
    assert found[0].doubt == 1.0
    assert any(DOUBT < ritz.doubt < 0.5 for ritz in found)
    assert found[-1].converged


def test_too_few_products_are_told_apart_from_too_few_vectors() -> None:
    values = SPECTRA["edge of a bulk"]
    ritz = lanczos(diagonal(values), 3, 1e-8, rng(), max_vectors=10, max_matvecs=40)
    assert ritz.status == "max_matvecs"
    assert ritz.short_of == "matvecs"
    assert ritz.restarts > 0
    assert ritz.matvecs == 40
    assert ritz.doubt == 1.0


def test_more_copies_than_there_is_room_for_remainders() -> None:
    # Eight equal eigenvalues are found by eight runs, which cannot all be remembered.
    values = column([5.0] * 8, SPECTRA["outliers"] * 0.2)
    for room in (11, 14, 18):
        ritz = lanczos(diagonal(values), 8, 1e-2, rng(), max_vectors=room, max_matvecs=600)
        for theta, y, bound in zip(ritz.values, ritz.vectors, ritz.residuals, strict=True):
            assert norm(values * y - theta * y) <= float(bound) * (1 + 1e-9)
        assert held_apart(ritz.values, ritz.radius, values) == 8
        assert not ritz.converged or float(ritz.values.min()) > 4.7
    roomy = lanczos(diagonal(values), 8, 1e-2, rng(), max_vectors=45)
    assert roomy.converged
    assert float(roomy.values.min()) > 4.7


@pytest.mark.parametrize("at", range(1, 60, 7))
def test_ctrl_c_gives_what_is_known(at: int) -> None:
    values = SPECTRA["clustered"]
    ritz = lanczos(Interrupting(diagonal(values), at), 3, 1e-8, rng(), which="both", max_vectors=14)
    assert ritz.status == "interrupted"
    assert len(ritz.values) == min(6, at - 1)
    for theta, y, bound in zip(ritz.values, ritz.vectors, ritz.residuals, strict=True):
        assert norm(values * y - theta * y) <= float(bound) * (1 + 1e-9)
    assert bool(torch.isfinite(ritz.residuals).all())


@pytest.mark.parametrize("place", ["_combined", "_write"])
def test_ctrl_c_waits_for_a_rotation(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_COLUMNS", {"cpu": 100})
    calls, whole = 0, getattr(cuts.Basis, place)

    def cut_short(self: cuts.Basis, *given: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        out: Tensor = whole(self, *given)
        if calls in (25, 26):  # also while it is being repeated
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(cuts.Basis, place, cut_short)
    values = SPECTRA["edge of a bulk"]
    ritz = lanczos(diagonal(values), 3, 1e-8, rng(), max_vectors=12)
    assert calls > 26
    assert ritz.status == "interrupted"
    assert ritz.restarts == 2 or len(ritz.values) == 3
    for theta, y, bound in zip(ritz.values, ritz.vectors, ritz.residuals, strict=True):
        assert norm(values * y - theta * y) <= float(bound) * (1 + 1e-9)
    assert bool(torch.isfinite(ritz.residuals).all())
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(ritz.vectors @ ritz.vectors.T, eye, atol=1e-13)


def test_one_seed_one_answer() -> None:
    values = SPECTRA["clustered"]
    a, b = (lanczos(diagonal(values), 4, 1e-4, rng(7), max_vectors=12) for _ in range(2))
    assert torch.equal(a.vectors, b.vectors)
    assert a.matvecs == b.matvecs


def test_watching_a_search_too() -> None:
    seen: list[int] = []
    told: Callable[..., None] = lambda done, *_: seen.append(done)  # noqa: E731
    ritz = lanczos(diagonal(SPECTRA["outliers"]), 2, 1e-2, rng(), max_vectors=30, watch=told)
    assert ritz.converged
    assert seen == list(range(1, ritz.matvecs))  # all but the product of the certificate


def test_the_share_that_is_kept_matters_little(monkeypatch: pytest.MonkeyPatch) -> None:
    values, used = SPECTRA["edge of a bulk"], []
    for share in (0.4, 0.5, 0.6):
        monkeypatch.setattr(eigensearch, "EXTRA", share)
        ritz = lanczos(diagonal(values), 5, 1e-4, rng(), max_vectors=14, max_matvecs=900)
        used.append(ritz.matvecs)
    assert max(used) <= 1.3 * min(used)
