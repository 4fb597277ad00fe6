"""An analysis hands over arrays, and they are written to the file that its option names."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy
import pandas
import pytest
import torch
from cases import curv, project, refused, small_model
from safetensors.numpy import load_file
from test_new_analysis import WeighRow
from torch.nn import functional

import curvcli
from curvcli import analyses
from curvcli.analyses.base import Analysis
from curvcli.options import ArrayFile, option
from curvcli.report import Report, Result

if TYPE_CHECKING:
    from curvcli.problem import Problem
    from curvcli.work import Work


class Weights(Analysis):
    """What are the weights?"""

    name: ClassVar[str] = "weights"
    Row: ClassVar[type] = WeighRow

    entries: ArrayFile | None = option(None, "file for all of them", metavar="FILE")

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Hand them over."""
        found = {n: p.detach().numpy().copy() for n, p in problem.params.items()}
        return self.result("there", arrays=found)


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyses, "ANALYSES", (*analyses.ANALYSES, Weights))
    monkeypatch.chdir(project(tmp_path, analyses={"weights": {}}))


def truth() -> dict[str, numpy.ndarray]:
    return {n: p.detach().numpy() for n, p in small_model().named_parameters()}


def same(found: dict[str, numpy.ndarray]) -> None:
    assert list(found) == sorted(truth())
    for name, array in truth().items():
        numpy.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_safetensors_hold_every_entry(tmp_path: Path) -> None:
    ran = curv("weights", "--entries", "w.safetensors", "--format", "json")
    assert ran.code == 0
    same(load_file(tmp_path / "w.safetensors"))
    assert "arrays" not in ran.document["results"]["weights"]
    again = Report.from_json(ran.out).results["weights"]
    assert not again.arrays
    assert again.file is None


def test_csv_has_a_row_for_every_entry(tmp_path: Path) -> None:
    assert curv("weights", "--entries", "w.csv").code == 0
    table = pandas.read_csv(tmp_path / "w.csv", dtype={"index": str})
    assert list(table) == ["array", "index", "value"]
    for name, array in truth().items():
        rows = table[table["array"] == name]
        assert [tuple(map(int, at.split())) for at in rows["index"]] == [
            *numpy.ndindex(array.shape)
        ]
        numpy.testing.assert_array_equal(rows["value"].astype(array.dtype), array.reshape(-1))


def test_a_folder_gets_them_too(tmp_path: Path) -> None:
    assert curv("weights", "--out", "all/").code == 0
    same(load_file(tmp_path / "all" / "weights.safetensors"))
    assert curv("weights", "--out", "but/", "--entries", "w.safetensors").code == 0
    assert not (tmp_path / "but" / "weights.safetensors").exists()
    same(load_file(tmp_path / "w.safetensors"))


def test_a_spec_names_it_relative_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    project(tmp_path, analyses={"weights": {"entries": "w.safetensors"}})
    monkeypatch.chdir(tmp_path / "below")
    assert curv("run").code == 0
    assert not (tmp_path / "below" / "w.safetensors").exists()
    same(load_file(tmp_path / "w.safetensors"))


def test_from_python(tmp_path: Path) -> None:
    data = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))]
    asked = {"entries": tmp_path / "w.csv"}
    result = curvcli.weights(small_model(), functional.cross_entropy, data, **asked)
    assert set(result.arrays) == set(truth())
    assert (tmp_path / "w.csv").exists()


def test_two_outputs_to_one_file_are_refused_before_the_work(tmp_path: Path) -> None:
    words = ("two outputs go to one file", "give each a name of its own")
    refused(curv("weights", "--entries", "w.csv", "-o", "./w.csv"), "E_USAGE", 2, *words)
    (tmp_path / "link.csv").symlink_to("w.csv")
    refused(curv("weights", "--entries", "link.csv", "-o", "w.csv"), "E_USAGE", 2, *words)
    refused(curv("weights", "--entries", "d/weights.csv", "-o", "d/"), "E_USAGE", 2, *words)
    project(tmp_path, analyses={"weights": {"entries": "w.csv"}, "diag": {"entries": "w.csv"}})
    refused(curv("run"), "E_USAGE", 2, *words)
    assert not (tmp_path / "w.csv").exists()


def test_the_model_and_the_spec_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.pt").rename(tmp_path / "model.csv")
    before = (tmp_path / "model.csv").read_bytes()
    for flag in ("--entries", "--out"):
        ran = curv("weights", "model.csv", flag, "model.csv", "--spec", "curv.yaml")
        refused(ran, "E_USAGE", 2, "model.csv is read")
    assert (tmp_path / "model.csv").read_bytes() == before


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    refused(curv("weights", "--entries", "w.npz"), "E_USAGE", 2, ".safetensors", "--entries")
    refused(curv("weights", "--entries", "no/w.csv"), "E_OUTPUT", 3, "no/w.csv", "another path")
    (tmp_path / "there.csv").mkdir()
    refused(curv("weights", "--entries", "there.csv"), "E_OUTPUT", 3, "folder")
