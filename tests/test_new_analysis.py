"""One class and one line in the registry: everything else follows."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest
from cases import curv, project, refused, small_model
from torch.nn import functional

import curvcli
from curvcli import analyses
from curvcli.analyses.base import Analysis
from curvcli.options import option
from curvcli.report import Check, Metric, Result, column
from curvcli.spec import schema

if TYPE_CHECKING:
    from curvcli.problem import Problem
    from curvcli.work import Work


@dataclass(frozen=True)
class WeighRow:
    """The norm of one tensor."""

    tensor: str = column("tensor")
    norm: float = column("norm", "real")


class Weigh(Analysis):
    """How heavy is each tensor?

    The norms of the parameters, largest first.
    """

    name: ClassVar[str] = "weigh"
    Row: ClassVar[type] = WeighRow

    power: float = option(2.0, "power of the norm", gt=0, le=9)
    at_most: float | None = option(None, "fail above this", short="-m")
    order: Literal["size", "name"] = option("size", "order of the rows")

    def run(self, problem: "Problem", work: "Work") -> Result:
        """Take the norms."""
        rows = [WeighRow(n, float(p.detach().norm(self.power))) for n, p in problem.params.items()]
        rows.sort(key=lambda r: r.tensor if self.order == "name" else -r.norm)
        most = max(r.norm for r in rows)
        low = self.at_most is None or most <= self.at_most
        return self.result(
            f"heaviest {most:.5g}",
            rows=rows,
            metrics={"most": Metric(most, "largest norm")},
            checks=[Check("weight", "pass" if low else "fail", f"the largest norm is {most:.5g}")],
        )


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyses, "ANALYSES", (*analyses.ANALYSES, Weigh))
    project(tmp_path, analyses={"weigh": {"power": 1}, "eig": {"top": 1}})
    monkeypatch.chdir(tmp_path)


def test_help() -> None:
    assert re.search(r"^  weigh +How heavy is each tensor\?$", curv("--help").out, re.MULTILINE)
    page = " ".join(curv("weigh", "--help").out.split())
    assert "The norms of the parameters, largest first." in page
    assert "--power NUMBER power of the norm (default 2.0, > 0, <= 9)" in page
    assert "-m, --at-most NUMBER fail above this" in page
    assert "--order [size|name]" in page


def test_command_with_precedence() -> None:
    def power(*arguments: str) -> object:
        found = curv("weigh", "--format", "json", *arguments)
        return found.report.results["weigh"].options["power"]

    assert power() == 1
    assert power("--power", "3") == 3


def test_bounds_are_those_of_flag_key_and_keyword(tmp_path: Path) -> None:
    refused(curv("weigh", "--power", "0"), "E_USAGE", 2, "--power: '0' should be greater than 0")
    project(tmp_path, analyses={"weigh": {"power": 0}})
    refused(curv("weigh"), "E_SPEC", 2, "curv.yaml:7: analyses.weigh.power: 0 should be")
    project(tmp_path, analyses={"weigh": {"powr": 1}})
    refused(curv("run"), "E_SPEC", 2, "analyses.weigh", "did you mean 'power'?")
    project(tmp_path, analyses={"weight": {}})
    refused(curv("run"), "E_SPEC", 2, "did you mean 'weigh'?")
    with pytest.raises(curvcli.errors.CurvError, match=r"weigh\(power=\): 0 should be"):
        curvcli.weigh(small_model(), functional.cross_entropy, [], power=0)


def test_schema() -> None:
    known = schema(analyses.registry())
    assert known["$defs"]["Weigh"]["properties"]["power"]["maximum"] == 9


def test_run_and_every_sink(tmp_path: Path) -> None:
    done = curv("run", "--out", "results")
    assert done.code == 0
    assert "weigh — How heavy is each tensor?" in done.out
    assert "2 passed (weigh, eig)" in done.out
    folder = tmp_path / "results"
    assert (folder / "report.txt").read_text() == done.out
    table = (folder / "weigh.csv").read_text()
    assert table.startswith("tensor,norm\n0.weight,")
    assert curv("weigh", "--format", "csv").out == table
    assert curv("render", "results/report.json").out == done.out


def test_exit_codes() -> None:
    assert curv("weigh", "-m", "0.1").code == 1
    assert curv("weigh", "-m", "0.1", "--exit-zero").code == 0
    assert curv("weigh", "-m", "1000").code == 0


def test_python_call() -> None:
    import torch

    batches = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))]
    result = curvcli.weigh(small_model(), functional.cross_entropy, batches, order="name")
    assert [row["tensor"] for row in result.rows] == ["0.bias", "0.weight", "2.bias", "2.weight"]
