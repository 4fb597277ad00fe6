"""The sample models, through the command line, against independent eigenvalues."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from curvcli.__main__ import run
from curvcli.curvature.products import Kept
from curvcli.load.assemble import assemble
from curvcli.problem import Problem
from curvcli.spec import Run, load

SAMPLES = Path(__file__).parent.parent / "sample_models"
THREE = ("digits_mlp", "digits_cnn", "modular_transformer")


@pytest.fixture(autouse=True)
def _inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLES)


def report(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--format", "json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def problem(name: str) -> Problem:
    spec = load(Path(f"{name}.yaml"))
    return assemble(spec, Path(f"{name}.pt"), Run(), None, None).problem


@cache
def truth(name: str) -> list[float]:
    """Find the five largest eigenvalues of a sample by ARPACK on products in float64."""
    operator = Kept(problem(name).to(torch.float64))

    def matvec(v: Any) -> Any:
        return operator.matvec(torch.from_numpy(np.ravel(v)).double()).numpy()

    n = operator.size
    A = LinearOperator((n, n), matvec=matvec, dtype=np.float64)
    theta = eigsh(A, k=5, which="LA", tol=1e-8, v0=np.ones(n), return_eigenvectors=False)
    return sorted(theta.tolist(), reverse=True)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_largest_eigenvalues_lie_in_their_intervals(
    name: str, seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = report(capsys, "eig", "--top", "5", f"{name}.pt", "--seed", seed)["results"]["eig"]
    for row, value in zip(result["rows"], truth(name), strict=True):
        assert row["low"] <= value <= row["high"]
    assert result["metrics"]["matvecs"]["value"] <= 25
    assert result["status"] == "pass"


def test_the_folders_spec_names_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "eig", "--top", "5")
    assert found["provenance"]["checkpoint"]["path"] == "digits_mlp.pt"


@pytest.mark.parametrize("name", THREE)
def test_figures_do_not_depend_on_the_batch_size(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for size in ("1797", "256", "7"):
        common = (f"{name}.pt", "--batch-size", size, "--dtype", "float64", "--samples", "300")
        eig = report(capsys, "eig", *common, "--top", "2")["results"]["eig"]
        ratio = report(capsys, "ratio", *common, "--exit-zero")["results"]["ratio"]
        diag = report(capsys, "diag", *common, "--method", "hutchinson", "--probes", "2")
        figures.append(
            [r["eigenvalue"] for r in eig["rows"]]
            + [r["next"] for r in ratio["rows"]]
            + [r["trace"] for r in diag["results"]["diag"]["rows"]]
        )
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-6, abs=1e-9)


def test_the_exact_trace_does_not_depend_on_the_batch_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    traces = []
    for size in ("1797", "256"):
        found = report(
            capsys, "diag", "digits_mlp.pt", "--batch-size", size, "--method", "exact",
            "--params", "2.*",
        )  # fmt: skip
        traces.append(found["results"]["diag"]["metrics"]["trace"]["value"])
    assert traces[1] == pytest.approx(traces[0], rel=1e-5)


@pytest.mark.parametrize("name", THREE)
def test_the_right_models_pass_the_gradient_check(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = report(capsys, "gradcheck", f"{name}.pt")["results"]["gradcheck"]
    assert {r["verdict"] for r in result["rows"]} == {"pass"}


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_broken_one_fails_it_and_names_the_wrong_tensors(
    seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, "gradcheck", "broken.pt", "--seed", seed, code=1)
    wrong = [r["tensor"] for r in found["results"]["gradcheck"]["rows"] if r["verdict"] == "fail"]
    assert wrong == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


@pytest.mark.parametrize("name", [*THREE, "broken"])
def test_every_sample_determines_its_last_update(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = report(capsys, "ratio", f"{name}.pt")["results"]["ratio"]["rows"]
    assert all(r["last"] is not None and r["next"] is not None for r in rows)


def test_the_samples_are_small() -> None:
    assert sum(f.stat().st_size for f in SAMPLES.iterdir() if f.is_file()) < 3_000_000
