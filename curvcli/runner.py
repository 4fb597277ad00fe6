"""Run analyses on a loaded problem and put what they say into one Report."""

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError, bug, memory_error
from curvcli.report import Check, Report, Result
from curvcli.work import Watch, Work

if TYPE_CHECKING:
    from curvcli.load.assemble import Loaded
    from curvcli.problem import Problem


def run(loaded: "Loaded", analyses: Sequence[Analysis], work: Work, seed: int) -> Report:
    """Answer each question in turn, each with a generator of its own seeded alike.

    An analysis that cannot be completed leaves its reason in the report, and the others go on; one
    alone raises it. Ctrl-C ends the whole with what is known, and names what did not run.
    """
    with timed() as times:
        results, failed = answers(loaded.problem, analyses, work, seed)
    if len(analyses) == 1 and failed:
        raise next(iter(failed.values()))
    errors = {n: str(e if isinstance(e, CurvError) else bug(e)) for n, e in failed.items()}
    if any(r.interrupted for r in results.values()):
        left = [a.name for a in analyses if a.name not in {*results, *errors}]
        errors |= dict.fromkeys(left, "interrupted before it began")
    return Report(provenance=loaded.provenance, results=results, errors=errors, run=times)


def answers(
    problem: "Problem", analyses: Sequence[Analysis], work: Work, seed: int
) -> tuple[dict[str, Result], dict[str, Exception]]:
    """Answer each question in turn, up to one that is interrupted; give what failed beside it."""
    results: dict[str, Result] = {}
    failed: dict[str, Exception] = {}
    for analysis in analyses:
        fresh = replace(work, rng=torch.Generator().manual_seed(seed))
        try:
            results[analysis.name] = _answer(analysis, problem, fresh)
        except Exception as error:
            failed[analysis.name] = error
        else:
            if results[analysis.name].interrupted:
                break
    return results, failed


@contextlib.contextmanager
def timed() -> Iterator[dict[str, Any]]:
    """Fill in when the work began, how long it took, and where: a report's `run` block."""
    began, start = datetime.now(UTC), time.perf_counter()
    block: dict[str, Any] = {"began": began.isoformat(timespec="seconds")}
    yield block
    block |= {"wall": time.perf_counter() - start, "machine": platform.platform()}


class _OutOfTime(KeyboardInterrupt):
    """Ends an analysis as Ctrl-C would: with what is known."""


def _limited(work: Work, budget: float) -> Work:
    """Let every stretch of work end when the time is up."""
    end = time.perf_counter() + budget

    def announce(doing: str) -> Watch:
        inner = work.announce(doing)

        def watch(
            done: int, total: int | None, estimate: float | None, error: float | None
        ) -> None:
            inner(done, total, estimate, error)
            if time.perf_counter() > end and done != total:
                raise _OutOfTime

        return watch

    return replace(work, announce=announce)


def _answer(analysis: Analysis, problem: "Problem", work: Work) -> Result:
    if work.budget is None:
        return _interruptible(analysis, problem, work)
    start = time.perf_counter()
    result = _interruptible(analysis, problem, _limited(work, work.budget))
    if not result.interrupted or time.perf_counter() < start + work.budget:
        return result
    said = "stopped when its time was up; the figures are those known by then"
    check = Check("within budget", "undecided", said, "raise --budget")
    return replace(result, interrupted=False, checks=(*result.checks, check))


def _interruptible(analysis: Analysis, problem: "Problem", work: Work) -> Result:
    try:
        return analysis.answer(problem, work)
    except KeyboardInterrupt:
        return analysis.result("nothing is known yet", interrupted=True)
    except Exception as error:
        if found := memory_error(error):
            raise found from error
        raise
