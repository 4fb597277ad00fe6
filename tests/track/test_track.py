"""`curv track`: the checkpoints of a run in one table and one document."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import curv, project, refused, small_model

from curvcli import runner
from curvcli.errors import CurvError
from curvcli.report import Report
from curvcli.track import asked, visit
from curvcli.track.place import labels, step_of

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


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("w-3.pt", 3), ("100.pt", 100), ("ckpt_0100.pt", 100), ("model_epoch12.pt", 12),
        ("Step7.pt", 7), ("epoch=3-val_loss=0.25.ckpt", 3), ("gpt2-500.pt", 500),
        ("resnet18.pt", None), ("run2_lr0.001.pt", None), ("cos0.pt", None), ("v2.pt", None),
        ("vit16.pt", None), ("split2.pt", None), ("model-1e-3.pt", None), ("ckpt_1e-4.pt", None),
        ("epoch_10_acc_91.pt", 10), ("model.100.pt", 100), ("lr-0.1-step5.pt", 5),
        ("w-" + "1" * 30 + ".pt", None),
    ],
)  # fmt: skip
def test_which_numbers_of_a_name_are_steps(name: str, step: int | None) -> None:
    assert step_of(Path(name), {})[0] == step


def test_epochs_are_called_so(run: Path) -> None:
    for epoch in (1, 2):
        state = {"model": small_model().state_dict(), "epoch": epoch}
        torch.save(state, run / f"{epoch}.pt")
    epochs = curv("track", run / "1.pt", run / "2.pt", "--analysis", "eig", "-f", "json", "-q")
    steps = curv("track", run / "a.pt", "--analysis", "eig", "-f", "json", "-q")
    told = [ran.report.results["track"].notes for ran in (epochs, steps)]
    assert ["the steps are epochs" in notes for notes in told] == [True, False]


def test_a_checkpoint_that_diverged_has_a_row(run: Path) -> None:
    for broken, step in (("d", 120), ("e", 140)):
        model = small_model()
        with torch.no_grad():
            model.get_parameter("2.weight")[0] = torch.nan
        torch.save({"model": model.state_dict(), "step": step}, run / f"{broken}.pt")
    ran = curv("track", "run", "--analysis", "eig", "--format", "json", "-q", "--out", "run.svg")
    assert ran.code == 3
    *_, row, last = rows(ran.report)
    assert math.isnan(row["loss"])
    assert (row["step"], row["verdict"], row["lambda_max"]) == (120, "undecided: loss", None)
    result = ran.report.results["track"]
    assert "from step 0 to 140; loss" in result.headline
    assert "to nan" in result.headline
    (check,) = [c for c in result.checks if c.name == "loss"]
    assert check.message.startswith("at 2 of 5 checkpoints, last at step 140: E_NONFINITE")
    assert "of 6 entries of 2.weight are no numbers" in check.message
    assert ran.document["provenance"]["checkpoints"][4]["path"] == f"run/{last['checkpoint']}"
    refused(curv("track", "run/d.pt", "-q"), "E_NONFINITE", 3, "2.weight")


def test_a_checkpoint_without_a_step_does_not_end_the_run(run: Path) -> None:
    torch.save(small_model().state_dict(), run / "z.pt")
    ran = curv("track", "run", "--analysis", "eig", "--format", "json", "-q")
    last = rows(ran.report)[-2]
    assert rows(ran.report)[-1]["step"] is None
    headline = ran.report.results["track"].headline
    assert headline.startswith("4 checkpoints from step 0 to 100; loss ")
    assert f"to {last['loss']:.4g}" in headline


def test_advice_says_where_the_option_is(run: Path) -> None:
    project(run, analyses={"trace": {"max_matvecs": 2, "tolerance": 1e-6}})
    (run / "model.pt").unlink()
    ran = curv("track", "run", "--analysis", "trace", "--format", "json", "-q")
    (check,) = [c for c in ran.report.results["track"].checks if c.name == "trace: converged"]
    assert check.advice.endswith("under analyses: trace: in the spec")


def test_what_the_spec_says_is_added_to_what_track_asks(run: Path) -> None:
    project(run, analyses={"trace": {"max_matvecs": 77}})
    (run / "model.pt").unlink()
    ran = curv("track", "run", "--analysis", "trace", "--format", "json", "-q")
    options = ran.report.results["track"].options["trace"]
    assert (options["max_matvecs"], options["tolerance"]) == (77, 0.1)


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


def test_equal_names_in_different_folders_are_told_apart(run: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(run / "a.pt", tmp_path / name)
        (tmp_path / name / "b.pt").write_bytes(b"")
    ran = curv("track", "one", "two", "run/c.pt", "--spec", run / "curv.yaml", "-q",
               "--analysis", "ratio", "--format", "json")  # fmt: skip
    assert [r["checkpoint"] for r in rows(ran.report)] == ["one/a.pt", "two/a.pt", "c.pt"]
    unread = [c.name for c in ran.report.results["track"].checks if "E_EMPTY" in c.message]
    assert unread == ["checkpoint one/b.pt", "checkpoint two/b.pt"]
    assert labels([Path("a"), Path("x/a"), Path("x/b")]) == ["a", "x/a", "b"]


def test_what_is_done_at_a_checkpoint_survives_an_interrupt(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runner.answers

    def stopped(*arguments: Any) -> Any:
        results, failed = whole(*arguments)
        results["eig"] = replace(results["eig"], interrupted=True)
        return results, failed

    monkeypatch.setattr(visit, "answers", stopped)
    (run / "0.pt").write_bytes(b"")
    ran = curv("track", "run", "--analysis", "ratio", "--analysis", "eig", "--format", "json", "-q")
    assert ran.code == 130
    (row,) = rows(ran.report)
    assert (row["checkpoint"], row["ratio"] > 0) == ("a.pt", True)


@pytest.mark.parametrize("form", ["json", "table"])
def test_an_interrupt_before_anything_is_known_is_no_refusal(
    run: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(visit, "answers", stop)
    (run / "0.pt").write_bytes(b"")
    ran = curv("track", "run", "--analysis", "eig", "--format", form, "-q")
    assert ran.code == 130
    assert "nothing is known yet" in ran.out
    assert "E_EMPTY" in ran.out


def test_a_bug_at_one_checkpoint_costs_no_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step_of

    def broken(path: Path, progress: Any) -> Any:
        if path.name == "a.pt":
            raise ZeroDivisionError("odd")
        return whole(path, progress)

    monkeypatch.setattr(visit, "step_of", broken)
    ran = curv("track", "run", "--analysis", "ratio", "--format", "json", "-q")
    assert ran.code == 4
    assert [r["checkpoint"] for r in rows(ran.report)] == ["b.pt", "c.pt"]
    assert ran.report.errors["checkpoint a.pt"].startswith("E_INTERNAL: ZeroDivisionError: odd")


def test_a_folder_that_may_not_be_read_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(CurvError, match="Permission denied") as caught:
        asked.files([run])
    assert caught.value.code == "E_PERMISSION"


def test_steps_are_told_without_data(run: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1234567}
    torch.save(state, run / "d.pt")
    project(run, without=("data", "loss", "optimizer"))
    ran = curv("track", run / "d.pt", "--analysis", "ratio", "--format", "json", "-q")
    result = ran.report.results["track"]
    assert result.headline == "1 checkpoint at step 1234567"
    assert ran.document["provenance"]["summary"]["checkpoint"] == "d.pt"
    (row,) = rows(ran.report)
    assert (row["loss"], row["accuracy"], row["verdict"].startswith("undecided")) == (
        None, None, False,
    )  # fmt: skip
    assert "loss" not in {f.name for f in result.figures}


def test_numbers_stand_with_their_errors(run: Path) -> None:
    ran = curv("track", "run", "--analysis", "eig", "--analysis", "stability", "--format", "json")
    for row in rows(ran.report):
        assert row["lambda_max_error"] >= 0
        assert row["loss_error"] > 0
        assert row["accuracy_error"] > 0
        assert row["share_error"] == pytest.approx(row["sharpness_error"] / row["threshold"])
    best = max(rows(ran.report), key=lambda r: float(r["share"]))
    assert ran.report.results["track"].metrics["share_max"].error == best["share_error"]


def test_a_model_that_cannot_be_examined_has_no_accuracy(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no gradient here")

    monkeypatch.setattr("curvcli.trials.answers.examine", refuse)
    ran = curv("track", "run/a.pt", "--analysis", "ratio", "--format", "json", "-q")
    (row,) = rows(ran.report)
    assert (row["accuracy"], row["loss_error"], row["loss"] > 0) == (None, None, True)
    assert any("no gradient here" in n for n in ran.report.results["track"].notes)
