"""Run analyses on a loaded problem and put what they say into one Report."""

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

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
    began, start = datetime.now(UTC), time.perf_counter()
    results: dict[str, Result] = {}
    errors: dict[str, str] = {}
    for position, analysis in enumerate(analyses):
        fresh = replace(work, rng=torch.Generator().manual_seed(seed))
        try:
            results[analysis.name] = _answer(analysis, loaded.problem, fresh)
        except CurvError as error:
            if len(analyses) == 1:
                raise
            errors[analysis.name] = str(error)
        except Exception as error:
            if len(analyses) == 1:
                raise
            errors[analysis.name] = str(bug(error))
        if analysis.name in results and results[analysis.name].interrupted:
            errors |= {a.name: "interrupted before it began" for a in analyses[position + 1 :]}
            break
    return Report(
        provenance=loaded.provenance,
        results=results,
        errors=errors,
        run={
            "began": began.isoformat(timespec="seconds"),
            "wall": time.perf_counter() - start,
            "machine": platform.platform(),
        },
    )


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
