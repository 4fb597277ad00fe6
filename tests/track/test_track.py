"""`curv track`: the checkpoints of a run in one table and one document."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import curv, project, refused, small_model

from curvcli.report import Report

SAMPLES = Path(__file__).parents[2] / "sample_models"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make three checkpoints whose names are in another order than their steps."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    project(folder)
    (folder / "model.pt").unlink()
    for name, step, scale in (("a", 20, 2.0), ("b", 0, 1.0), ("c", 100, 3.0)):
        model = small_model()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        torch.save({"model": model.state_dict(), "step": step}, folder / f"{name}.pt")
    return folder


def rows(report: Report) -> list[dict[str, Any]]:
    return [dict(r) for r in report.results["track"].rows]


def test_checkpoints_stand_in_the_order_of_their_steps(run: Path) -> None:
    ran = curv("track", "run", "--analysis", "eig", "--format", "json", "-q")
    found = rows(ran.report)
    assert [(r["step"], r["checkpoint"]) for r in found] == [
        (0, "b.pt"),
        (20, "a.pt"),
        (100, "c.pt"),
    ]
    for row in found:
        alone = curv("eig", "-k", "1", run / row["checkpoint"], "--spec", run / "curv.yaml",
                     "--format", "json", "-q").report  # fmt: skip
        assert row["lambda_max"] == alone.results["eig"].metrics["lambda_max"].value
        assert row["loss"] == alone.provenance["loss"]["value"]
    assert [c["path"] for c in ran.document["provenance"]["checkpoints"]] == [
        f"run/{r['checkpoint']}" for r in found
    ]


def test_a_corrupt_checkpoint_is_told_and_passed_over(run: Path) -> None:
    whole = (run / "a.pt").read_bytes()
    (run / "a.pt").write_bytes(whole[: len(whole) // 2])
    ran = curv("track", "run", "--analysis", "ratio", "--format", "json", "-q")
    assert ran.code == 3
    assert [r["checkpoint"] for r in rows(ran.report)] == ["b.pt", "c.pt"]
    (check,) = [c for c in ran.report.results["track"].checks if c.name == "checkpoint a.pt"]
    assert check.status == "undecided"
    assert "E_CORRUPT" in check.message


def test_where_none_can_be_read_the_first_reason_is_told(run: Path) -> None:
    for path in run.glob("*.pt"):
        path.write_bytes(b"")
    refused(curv("track", "run", "-q"), "E_EMPTY", 2, "a.pt")


def test_wrong_names_are_refused(run: Path, tmp_path: Path) -> None:
    refused(curv("track", "nowhere.pt"), "E_NOT_FOUND", 2, "nowhere.pt")
    (tmp_path / "empty").mkdir()
    refused(curv("track", "empty"), "E_NOT_FOUND", 2, "holds no checkpoints", ".safetensors")
    refused(curv("track", "run", "--analysis", "eigg"), "E_SPEC", 2, "eig")


def test_a_name_gives_the_step_that_a_file_does_not(run: Path) -> None:
    for name in ("w-3", "w-12"):
        torch.save(small_model().state_dict(), run / f"{name}.pt")
    ran = curv("track", run / "w-12.pt", run / "w-3.pt", "--analysis", "eig", "--format", "json")
    assert [r["step"] for r in rows(ran.report)] == [3, 12]


def test_checks_are_gathered_over_the_checkpoints(run: Path) -> None:
    project(run, analyses={"eig": {"max_matvecs": 2}})
    (run / "model.pt").unlink()
    ran = curv("track", "run", "--analysis", "eig", "--format", "json", "-q")
    assert ran.code == 3
    told = {c.name: c.message for c in ran.report.results["track"].checks}
    assert told["eig: converged"].startswith("at 3 of 3 checkpoints, last at step 100: ")
    assert all(r["verdict"] == "undecided: eig" for r in rows(ran.report))


def test_the_sample_run_comes_to_the_edge_of_stability(tmp_path: Path) -> None:
    """Sharpness rises from a sixth of the threshold, and stays near it once it is there."""
    folder = tmp_path / "edge"
    folder.mkdir()
    shutil.copy(SAMPLES / "digits.npz", tmp_path)
    for name in ("curv.yaml", *(f"step-{s:03}.pt" for s in (0, 10, 20, 150, 200, 300))):
        shutil.copy(SAMPLES / "edge" / name, folder)
    out = tmp_path / "told"
    ran = curv("track", folder, "--analysis", "stability", "--analysis", "ratio", "-q",
               "--format", "json", "--out", f"{out}/")  # fmt: skip
    found = rows(ran.report)
    shares = [r["share"] for r in found]
    assert shares[0] < 0.2
    assert shares[:3] == sorted(shares[:3])
    assert all(0.9 < s < 1.1 for s in shares[3:])
    assert [r["threshold"] for r in found] == pytest.approx([2 / 0.5] * 6)
    assert found[-1]["accuracy"] > 0.99 > found[-1]["heldout_accuracy"] > 0.95
    figures = {f.name: f for f in ran.report.results["track"].figures}
    assert set(figures) == {"sharpness", "loss", "accuracy", "ratio"}
    cells = figures["ratio"].cells
    assert cells is not None
    assert cells.labels == tuple(f"{i}.{k}" for i in (0, 2, 4) for k in ("weight", "bias"))
    assert (out / "track-sharpness.svg").read_text().startswith("<svg")
    assert Report.from_json(ran.out) == ran.report
