"""`curv selftest`: every verdict comes out here, and a wrong one fails the report."""

import pytest
import torch
from torch import nn

from curvcli import selftest
from curvcli.__main__ import run
from curvcli.report import Report
from curvcli.work import unwatched

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(3))
def test_every_verdict_is_right(seed: int) -> None:
    report = selftest.selftest(CPU, seed, unwatched)
    assert report.status == "pass", report.results["selftest"].headline
    rows = report.results["selftest"].rows
    assert {r["expected"] for r in rows} == {"pass", "fail"}
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_a_bug_that_is_not_caught_fails_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "no bug": selftest.Case(nn.Tanh, "fail"),
        "a bug": selftest.Case(selftest.BUGS["a sign"], "pass"),
        "right": selftest.Case(nn.Tanh, "pass"),
    }
    monkeypatch.setattr(selftest, "CASES", cases)
    report = selftest.selftest(CPU, 0, unwatched)
    found = {c.name: c.status for c in report.results["selftest"].checks}
    assert found == {"no bug": "fail", "a bug": "fail", "right": "pass"}
    assert int(report.exit_code()) == 1


def test_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "CASES", dict(list(selftest.CASES.items())[:1]))
    before = torch.random.get_rng_state()
    selftest.selftest(CPU, 0, unwatched)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(selftest, "CASES", {"right": selftest.Case(nn.Tanh, "pass")})
    assert run(["selftest", "--quiet", "--device", "cpu", "--format", "csv"]) == 0
    assert capsysbinary.readouterr().out.startswith(b"case,")
    assert run(["selftest", "--device", "cuda:99"]) == 2
