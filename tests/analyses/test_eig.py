"""`eig` against dense spectra: every eigenvalue in its interval, one each, none missed."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from oracles import dense_empirical, dense_gauss_newton
from questions import ask, classify, dense_hessian, inputs, interrupted_at, mlp
from torch.nn import functional

from curvcli.analyses.eig import Eig
from curvcli.batches import Batch
from curvcli.curvature.matrices import Matrix
from curvcli.errors import CurvError
from curvcli.linalg.ritz import Which
from curvcli.load.loss import as_loss
from curvcli.options import build
from curvcli.problem import Problem


def problem() -> Problem:
    return classify(mlp(6, 8, 3), inputs(40, 6), cut=(17, 17, 6))


def wanted(theta: torch.Tensor, which: str, top: int) -> list[float]:
    descending = theta.flip(0).tolist()
    return {
        "largest": descending[:top],
        "smallest": theta.tolist()[:top],
        "both": descending[:top] + theta.tolist()[:top],
        "magnitude": sorted(descending, key=lambda t: -abs(t))[:top],
    }[which]


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_eigenvalue_lies_in_its_interval(which: Which, seed: int) -> None:
    p = problem()
    truth = wanted(torch.linalg.eigvalsh(dense_hessian(p)), which, 4)
    result = ask(Eig(top=4, which=which, tolerance=1e-3), p, seed)
    assert result.status == "pass"
    assert len(result.rows) == len(truth)
    for row, value in zip(result.rows, truth, strict=True):
        assert row["low"] <= value <= row["high"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["ggn", "empirical-fisher"])
def test_other_matrices_have_their_own_eigenvalues(name: Matrix, seed: int) -> None:
    p = problem().to(torch.float64)
    dense = dense_gauss_newton(p) if name == "ggn" else dense_empirical(p, terms)
    truth = wanted(torch.linalg.eigvalsh(dense), "largest", 4)
    result = ask(Eig(matrix=name, top=4, tolerance=1e-3), p, seed)
    assert result.status == "pass"
    for row, value in zip(result.rows, truth, strict=True):
        assert row["low"] <= value <= row["high"]


def test_the_fisher_approaches_the_gauss_newton_matrix() -> None:
    p = problem()
    truth = float(torch.linalg.eigvalsh(dense_gauss_newton(p.to(torch.float64)))[-1])
    few, many = (ask(Eig(matrix="fisher", top=1, label_samples=s), p) for s in (1, 400))
    gaps = [abs(r.metrics["lambda_max"].value / truth - 1) for r in (few, many)]
    assert gaps[1] < min(0.05, gaps[0])


def test_a_method_of_the_hessian_beside_another_matrix_is_refused() -> None:
    with pytest.raises(CurvError, match="--hvp forward"):
        ask(Eig(matrix="ggn"), problem(), method="forward")


def terms(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = functional.cross_entropy(output, target, reduction="none")
    return found, torch.ones_like(found)


def test_power_iteration_finds_the_same_with_more_products() -> None:
    p = problem()
    by_power = ask(Eig(top=2, method="power", which="magnitude", tolerance=1e-2), p)
    by_lanczos = ask(Eig(top=2, which="magnitude", tolerance=1e-2), p)
    for a, b in zip(by_power.rows, by_lanczos.rows, strict=True):
        assert a["low"] <= b["high"]
        assert b["low"] <= a["high"]
    assert by_power.metrics["matvecs"].value > by_lanczos.metrics["matvecs"].value


def test_too_few_products_are_undecided_and_say_so() -> None:
    result = ask(Eig(top=5, tolerance=1e-6, max_matvecs=6), problem())
    assert result.status == "undecided"
    assert result.metrics["matvecs"].value <= 6
    assert any("raise --max-matvecs" in c.advice for c in result.checks)
    assert result.headline.startswith("largest eigenvalue at least")


def test_a_quadratic_has_its_own_curvature() -> None:
    # L = mean (w x)^2 / 1 over x = 1, 2: the second derivative is 2 (1 + 4) / 2 = 5.
    model = torch.nn.Linear(1, 1, bias=False)
    x = torch.tensor([[1.0], [2.0]])
    loss = as_loss(functional.mse_loss)
    p = Problem.of(model, loss, [Batch(x, torch.zeros(2, 1), 2)])
    result = ask(Eig(top=1), p)
    assert result.metrics["lambda_max"].value == pytest.approx(5.0, rel=1e-5)


def test_ctrl_c_leaves_a_marked_partial_answer() -> None:
    result = ask(Eig(top=4), problem(), announce=interrupted_at(3))
    assert result.interrupted
    assert result.status == "undecided"
    assert result.rows


def test_power_that_meets_no_eigenvalue_of_that_sign_is_undecided() -> None:
    p = isotropic(9.0, 5.0, 4.0, *[1.0] * 30)
    result = ask(Eig(top=1, method="power", which="smallest", max_matvecs=20), p)
    assert not result.interrupted
    assert result.status == "undecided"
    assert "no eigenvalue of that sign" in result.headline


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "power", "which": "both"}, "both ends"),
        ({"block_size": 4}, "block_size is for method block, not lanczos"),
        ({"block_size": 1, "method": "block"}, "block_size=.*greater than or equal to 2"),
        ({"method": "blok"}, "did you mean 'block'"),
        ({"layers": "modules"}, "did you mean 'module'"),
        ({"dense_below": -1}, "dense_below"),
        ({"vectors": "v.npz"}, "vectors.*should end in .safetensors or .csv"),
    ],
)
def test_a_mistake_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CurvError, match=words) as refused:
        build(Eig, options, lambda loc: f"eig({loc[0]}=)" if loc else "eig", "E_USAGE")
    assert refused.value.code == "E_USAGE"


@pytest.mark.parametrize(("method", "vectors"), [("lanczos", 24.0), ("block", 44.0)])
def test_a_basis_that_outgrows_the_memory_is_restarted_and_says_so(
    method: Literal["lanczos", "block"], vectors: float
) -> None:
    p = problem()
    one = p.layout.size * p.like.element_size()
    eig = Eig(top=2, method=method, tolerance=1e-3, dense_below=0, max_matvecs=2000)
    free, short = ask(eig, p, memory=1e9), ask(eig, p, memory=vectors * one)
    assert short.status == "pass"
    assert any(note.startswith("restarted ") for note in short.notes)
    assert not any(note.startswith("restarted ") for note in free.notes)
    for a, b in zip(free.rows, short.rows, strict=True):
        assert a["low"] <= b["high"]
        assert b["low"] <= a["high"]


def test_a_search_that_runs_out_of_room_asks_for_memory() -> None:
    p = problem()
    memory = 17.0 * p.layout.size * p.like.element_size()
    result = ask(Eig(top=2, tolerance=1e-3, dense_below=0, max_matvecs=2000), p, memory=memory)
    assert result.status == "undecided"
    assert [c.advice for c in result.checks if c.status == "undecided"] == [
        "raise --memory, or ask for fewer"
    ]


def isotropic(*sizes: float) -> Problem:
    """Pose a regression whose Hessian has these eigenvalues: (2 / n) X^T X with X diagonal."""
    n = len(sizes)
    x = torch.diag(torch.tensor(sizes, dtype=torch.float64) * n / 2).sqrt()
    model = torch.nn.Linear(n, 1, bias=False).double()
    batch = Batch(x, torch.ones(n, 1, dtype=torch.float64), n)
    return Problem.of(model, as_loss(functional.mse_loss), [batch])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("block_size", [2, 4])
def test_a_block_finds_every_copy(block_size: int, seed: int) -> None:
    p = isotropic(*[5.0] * 3, 2.0, *[1.0] * 16)
    result = ask(Eig(top=4, method="block", block_size=block_size, tolerance=1e-6), p, seed)
    assert result.status == "pass"
    found = [row["eigenvalue"] for row in result.rows]
    assert found == pytest.approx([5.0, 5.0, 5.0, 2.0])


def test_the_gap_has_the_errors_of_both() -> None:
    result = ask(Eig(top=2, tolerance=0.1), isotropic(9.0, 5.0, 4.0, *[1.0] * 30))
    gap = result.metrics["gap"]
    assert gap.error == result.rows[0]["radius"] + result.rows[1]["radius"]
    assert abs(gap.value - 4.0) <= result.rows[0]["radius"] + result.rows[1]["radius"] + 1e-12
    assert "gap" not in ask(Eig(top=1), problem()).metrics
    assert "gap" not in ask(Eig(top=1, which="both"), problem()).metrics
    ends = ask(Eig(top=2, which="both"), isotropic(9.0, 5.0, 3.0, 2.0))
    assert ends.metrics["gap"].value == pytest.approx(4.0)


def test_the_condition_number_needs_both_ends() -> None:
    p = isotropic(9.0, 5.0, 4.0, *[1.0] * 30)
    assert "condition" not in ask(Eig(top=2, dense_below=0), p).metrics
    known = ask(Eig(top=2, which="both", dense_below=0), p).metrics["condition"]
    assert known.error is not None
    assert abs(known.value - 9.0) <= known.error
    every = ask(Eig(top=4, dense_below=0), isotropic(9.0, 5.0, 4.0, 3.0)).metrics
    assert every["condition"].value == pytest.approx(3.0)


def test_of_a_matrix_that_is_not_positive_the_smallest_positive_is_unknown() -> None:
    found = ask(Eig(top=2, which="both", dense_below=0), problem()).metrics
    assert found["lambda_min"].value < 0
    assert "condition" not in found


@pytest.mark.parametrize("which", ["smallest", "both", "magnitude"])
def test_only_what_is_certainly_negative_is_counted(which: Which) -> None:
    result = ask(Eig(top=20, which=which, dense_below=0), problem())
    counted = result.metrics["negative_seen"].value
    assert counted == sum(row["high"] < 0 for row in result.rows) > 0
    assert "negative_seen" not in ask(Eig(top=1, dense_below=0), problem()).metrics


def test_both_ends_are_told_apart() -> None:
    result = ask(Eig(top=2, which="both"), problem())
    assert [row["end"] for row in result.rows] == ["largest", "largest", "smallest", "smallest"]
    assert [row["index"] for row in result.rows] == [1, 2, 3, 4]
    low = result.metrics["lambda_min"].value
    assert low == result.rows[2]["eigenvalue"] < result.rows[3]["eigenvalue"]
    assert {row["end"] for row in ask(Eig(top=2), problem()).rows} == {""}


def test_the_gradient_has_its_own_curvature() -> None:
    p = problem().to(torch.float64)
    H, g = dense_hessian(p), p.gradient()
    _, Y = torch.linalg.eigh(H)
    m = ask(Eig(top=3, tolerance=1e-8), p).metrics
    assert m["gradient_curvature"].value == pytest.approx(float(g @ H @ g / (g @ g)))
    assert m["gradient_cosine"].value == pytest.approx(float((Y[:, -1] @ g).abs() / g.norm()))
    share = float((Y.T[-3:] @ g).square().sum() / (g @ g))
    assert m["gradient_share"].value == pytest.approx(share, rel=1e-6)


def test_a_zero_gradient_has_none() -> None:
    p = isotropic(3.0, 2.0)
    with torch.no_grad():  # solves X w = 1
        p.params["weight"].copy_((1 / torch.tensor([3.0, 2.0], dtype=torch.float64).sqrt())[None])
    assert float(p.gradient().norm()) == 0
    result = ask(Eig(top=1), p)
    assert "gradient_curvature" not in result.metrics
    assert "the gradient is zero: no curvature lies along it" in result.notes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_vectors_are_eigenvectors(dtype: torch.dtype, tmp_path: Path) -> None:
    p = problem().to(dtype)
    file = tmp_path / "v.safetensors"
    result = ask(Eig(top=3, which="both", tolerance=1e-3, vectors=file), p)
    assert result.file == file
    H = dense_hessian(p)
    for i, row in enumerate(result.rows, 1):
        parts = [result.arrays[f"eigenvector.{i}.{name}"] for name in p.names]
        shapes = [tuple(q.shape) for q in p.params.values()]
        assert [part.shape for part in parts] == shapes
        y = torch.cat([torch.from_numpy(part).reshape(-1) for part in parts])
        assert y.dtype == dtype
        assert float(y.norm()) == pytest.approx(1.0)
        residual = float((H @ y.double() - row["eigenvalue"] * y.double()).norm())
        assert residual <= row["residual"] + 1e-12
        assert result.arrays["eigenvalues"][i - 1] == row["eigenvalue"]
        assert result.arrays["radius"][i - 1] == row["radius"]
        assert result.arrays["residuals"][i - 1] == row["residual"]
    assert len(result.arrays) == 3 + 6 * len(p.names)
    assert not ask(Eig(top=1), p).arrays


def test_vectors_in_bfloat16_are_widened() -> None:
    p = problem().to(torch.bfloat16)
    result = ask(Eig(top=1, tolerance=0.5, vectors=Path("v.csv"), dense_below=0), p)
    assert result.arrays["eigenvector.1.0.weight"].dtype.name == "float32"


def test_the_plan_is_told_and_not_noted() -> None:
    lines: list[str] = []
    p = problem()
    result = ask(
        Eig(top=2, max_matvecs=10**9, method="power", which="magnitude"), p, tell=lines.append
    )
    (plan,) = [line for line in lines if "a product takes" in line]
    assert "at most 1,000,000,000 products, about" in plan
    assert not any("a product takes" in note for note in result.notes)


def test_products_too_inexact_for_the_tolerance_are_undecided() -> None:
    result = ask(Eig(top=1, tolerance=1e-9), problem(), method="differences")
    assert result.status == "undecided"
    assert any("too inexact" in c.message for c in result.checks)


def test_a_basis_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CurvError) as refused:
        ask(Eig(top=4), problem(), memory=100.0)
    assert refused.value.code == "E_MEMORY"
