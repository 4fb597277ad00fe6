"""A report of several analyses: failures, interruptions, generators of their own."""

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from cases import small_model

from curvcli.analyses.base import Analysis
from curvcli.analyses.eig import Eig
from curvcli.batches import as_batch
from curvcli.errors import CurvError, Exit
from curvcli.load.assemble import Loaded
from curvcli.load.loss import as_loss
from curvcli.options import option
from curvcli.problem import Problem
from curvcli.report import Metric, Report, Result
from curvcli.runner import run
from curvcli.work import Work


class Asked(Analysis):
    """What does the function say?"""

    name: ClassVar[str] = "asked"
    Row: ClassVar[type] = type("Row", (), {"__dataclass_fields__": {}})

    does: Callable[[Work], float] = option(..., "what to do")

    def run(self, problem: Problem, work: Work) -> Result:
        """Do it."""
        value = self.does(work)
        return self.result("done", metrics={"value": Metric(value, "value")})


def kind(name: str) -> type[Asked]:
    return type(name, (Asked,), {"name": name, "__doc__": Asked.__doc__, "__module__": __name__})


def answered(seed: int = 0, **does: Callable[[Work], float]) -> Report:
    batch = as_batch((torch.ones(2, 4), torch.zeros(2, dtype=torch.long)))
    loss = as_loss(torch.nn.functional.cross_entropy)
    loaded = Loaded(Problem.of(small_model(), loss, [batch]), {"where": "here"})
    analyses = [kind(name)(does=function) for name, function in does.items()]
    return run(loaded, analyses, Work(rng=torch.Generator()), seed)


def drawn(work: Work) -> float:
    return float(torch.rand(1, generator=work.rng))


def fails(work: Work) -> float:
    raise CurvError("E_NO_HVP", "no product works", "try another")


def hungry(work: Work) -> float:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def buggy(work: Work) -> float:
    raise KeyError("oops")


def interrupted(work: Work) -> float:
    raise KeyboardInterrupt


def value(report: Report, name: str) -> object:
    return report.results[name].metrics["value"].value


def test_an_answer_does_not_depend_on_what_ran_before() -> None:
    both, alone = answered(first=drawn, second=drawn), answered(second=drawn)
    assert value(both, "first") == value(both, "second") == value(alone, "second")
    assert value(answered(seed=1, second=drawn), "second") != value(alone, "second")


def test_what_a_report_holds() -> None:
    report = answered(first=drawn, second=drawn)
    assert list(report.results) == ["first", "second"]
    assert report.provenance == {"where": "here"}
    assert set(report.run) == {"began", "wall", "machine"}
    assert report.results["first"].seconds is not None
    assert report.exit_code() == Exit.OK


@pytest.mark.parametrize(("failure", "code"), [(fails, "E_NO_HVP"), (hungry, "E_MEMORY")])
def test_others_go_on(failure: Callable[[Work], float], code: str) -> None:
    report = answered(first=failure, second=drawn)
    assert list(report.results) == ["second"]
    assert report.errors["first"].startswith(f"{code}: ")
    assert report.exit_code() == Exit.UNDECIDED


@pytest.mark.parametrize(("failure", "code"), [(fails, "E_NO_HVP"), (hungry, "E_MEMORY")])
def test_one_alone_raises(failure: Callable[[Work], float], code: str) -> None:
    with pytest.raises(CurvError) as caught:
        answered(only=failure)
    assert caught.value.code == code


def test_a_bug_in_one_loses_nothing_of_the_others_and_is_told() -> None:
    report = answered(first=buggy, second=drawn)
    assert list(report.results) == ["second"]
    assert report.errors["first"].startswith("E_INTERNAL: KeyError")
    assert report.exit_code() == Exit.BUG


def test_a_bug_alone_stays_an_exception() -> None:
    with pytest.raises(KeyError):
        answered(only=buggy)


def test_ctrl_c_keeps_what_is_known_and_names_the_rest() -> None:
    report = answered(first=drawn, second=interrupted, third=drawn)
    assert list(report.results) == ["first", "second"]
    assert report.results["second"].interrupted
    assert report.errors == {"third": "interrupted before it began"}
    assert report.exit_code() == Exit.INTERRUPTED


def test_out_of_time_is_undecided_with_what_is_known() -> None:
    batch = as_batch((torch.randn(9, 4), torch.zeros(9, dtype=torch.long)))
    loss = as_loss(torch.nn.functional.cross_entropy)
    loaded = Loaded(Problem.of(small_model(), loss, [batch]), {})
    report = run(loaded, [Eig()], Work(rng=torch.Generator(), budget=1e-9), 0)
    result = report.results["eig"]
    assert not result.interrupted
    assert result.rows
    assert "within budget" in {c.name for c in result.checks}
    assert report.exit_code() == Exit.UNDECIDED
