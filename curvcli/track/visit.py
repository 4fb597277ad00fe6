"""One checkpoint of a run after the other, each asked the same."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError, bug, memory_error
from curvcli.report import Report, Result, Status
from curvcli.runner import answers, timed
from curvcli.track.asked import without_arrays
from curvcli.track.place import labels, step_of
from curvcli.track.rows import ERRORS, FIGURES, TrackRow, Visit
from curvcli.track.told import told
from curvcli.work import Work

if TYPE_CHECKING:
    from curvcli.load.assemble import Loaded
    from curvcli.problem import Problem
    from curvcli.trials.answers import Examined

Load = Callable[[Path], "Loaded"]
Ask = Callable[["Problem", str], tuple[dict[str, Result], dict[str, Exception]]]
"""Put the questions to a problem, the progress being told under a label."""


def track(
    paths: Sequence[Path], load: Load, analyses: Sequence[Analysis], work: Work, seed: int
) -> Report:
    """Ask every checkpoint; one that cannot be read is told and passed over.

    Ctrl-C ends it with what is done. Options that name a file for arrays are left out.

    Raises: CurvError where none can be read: the first one's reason.
    """
    pairs = [without_arrays(a) for a in analyses]
    plain = [analysis for analysis, _ in pairs]

    def ask(problem: "Problem", label: str) -> tuple[dict[str, Result], dict[str, Exception]]:
        named = replace(work, announce=lambda doing: work.announce(f"{label}: {doing}"))
        return answers(problem, plain, named, seed)

    with timed() as times:
        visits, refused, interrupted = _visits(paths, load, ask)
    if not interrupted and not any(_assembled(v) for v in visits):
        failures = [*(e for v in visits for e in v.failed.values()), *refused.values()]
        raise failures[0]
    visits.sort(key=lambda v: (v.row.step is None, v.row.step or 0.0, v.row.checkpoint))
    notes = [note for _, said in pairs for note in said]
    result = told(visits, refused, plain, notes, interrupted=interrupted)
    return Report(_provenance(visits), {"track": result}, dict(_bugs(visits, refused)), times)


def _visits(
    paths: Sequence[Path], load: Load, ask: Ask
) -> tuple[list[Visit], dict[str, CurvError], bool]:
    """Visit one after the other, up to Ctrl-C; what fails at one costs no other."""
    visits: list[Visit] = []
    refused: dict[str, CurvError] = {}
    for path, label in zip(paths, labels(paths), strict=True):
        try:
            visit = _visit(path, label, load, ask)
        except Exception as error:
            known = error if isinstance(error, CurvError) else memory_error(error)
            # No number held out is a fault of the data, which all checkpoints have.
            if (
                known is not None
                and known.code == "E_NONFINITE"
                and "held-out" not in known.message
            ):
                visits.append(_diverged(path, label, known))
            else:
                refused[label] = known or bug(error)
        except KeyboardInterrupt:
            return visits, refused, True
        else:
            visits.append(visit)
            if any(r.interrupted for r in visit.results.values()):
                return visits, refused, True
    return visits, refused, False


def _bugs(visits: Sequence[Visit], refused: Mapping[str, CurvError]) -> Iterator[tuple[str, str]]:
    """Tell what nobody expected, by where it happened."""
    for name, error in refused.items():
        if error.code == "E_INTERNAL":
            yield f"checkpoint {name}", str(error)
    for visit in visits:
        for name, failure in visit.failed.items():
            if not isinstance(failure, CurvError):
                yield f"{name} of {visit.row.checkpoint}", str(bug(failure))


def _visit(path: Path, label: str, load: Load, ask: Ask) -> Visit:
    loaded = load(path)
    problem = loaded.problem
    step, source = step_of(path, loaded.provenance["checkpoint"]["progress"])
    # Before the questions, which take long: Ctrl-C there then keeps all that is known.
    examined, notes = _examined(problem, label)
    results, failed = ask(problem, label)
    row = TrackRow(
        step=step,
        checkpoint=label,
        loss=problem.measure.loss if problem.batches else None,
        heldout=problem.heldout_loss,
        verdict=_verdict(results, failed),
        **examined,
        **{**dict.fromkeys((*FIGURES, *ERRORS.values())), **dict(_figures(results))},
    )
    return Visit(row, results, failed, loaded.provenance, source, notes)


def _diverged(path: Path, label: str, error: CurvError) -> Visit:
    """Make a row of a checkpoint whose loss is no number: what one looks for in a run."""
    from curvcli.load import checkpoint

    found = checkpoint.read(path)
    step, source = step_of(path, found.progress)
    known = {"step": step, "checkpoint": label, "loss": math.nan, "verdict": "undecided: loss"}
    row: dict[str, Any] = {f.name: known.get(f.name) for f in dataclasses.fields(TrackRow)}
    provenance: dict[str, Any] = {"checkpoint": found.provenance, "loss": None, "notes": []}
    return Visit(TrackRow(**row), {}, {"loss": error}, provenance, source)


def _examined(problem: "Problem", label: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give accuracies and standard errors; a model that cannot be examined so has none."""
    from curvcli.trials.answers import examine

    found: dict[str, Any] = {}
    notes: list[str] = []
    places = ("loss", "accuracy", problem.batches), ("heldout", "heldout_accuracy", problem.heldout)
    for loss, accuracy, batches in places:
        last: deque[Examined] = deque(maxlen=1)
        try:
            with problem.engaged():
                last.extend(examine(problem, batches, 0, torch.Generator()) if batches else ())
        except (RuntimeError, ValueError) as error:
            last.clear()
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            notes.append(f"{accuracy} of {label} is not known: {first[:200]}")
        known = last[0] if last else None
        right = None if known is None else known.accuracy
        found[f"{loss}_error"] = None if known is None else known.error
        found[accuracy] = right
        found[f"{accuracy}_error"] = (
            None if right is None or known is None else known.accuracy_error
        )
    return found, tuple(notes)


def _figures(results: Mapping[str, Result]) -> Iterator[tuple[str, Any]]:
    for name, (analysis, key) in FIGURES.items():
        metric = results[analysis].metrics.get(key) if analysis in results else None
        if metric is not None:
            yield name, metric.value
            if name in ERRORS:
                yield ERRORS[name], metric.error


def _verdict(results: Mapping[str, Result], failed: Mapping[str, Exception]) -> str:
    """Name the gravest status, and which analyses have it."""
    found: dict[str, Status] = {n: r.status for n, r in results.items()}
    found |= dict.fromkeys(failed, "undecided")
    for status in ("fail", "undecided", "warn"):
        names = [n for n, s in found.items() if s == status]
        if names:
            return f"{status}: {', '.join(names)}"
    return "pass"


def _assembled(visit: Visit) -> bool:
    return "summary" in visit.provenance


def _provenance(visits: Sequence[Visit]) -> dict[str, Any]:
    """Take from the first checkpoint what all share, and list what they do not."""
    if not visits:
        return {"summary": {}, "notes": []}
    first = next((v for v in visits if _assembled(v)), visits[0]).provenance
    named = [v.row.checkpoint for v in visits]
    about = first.get("summary", {})
    summary = {key: value for key, value in about.items() if key != "loss"}
    several = f"{len(named)}, {named[0]} to {named[-1]}"
    summary["checkpoint"] = several if named[1:] else named[0]
    shared = {k: v for k, v in first.items() if k not in ("checkpoint", "loss", "notes")}
    return {
        **shared,
        "summary": summary,
        "checkpoints": [
            {**v.provenance["checkpoint"], "loss": v.provenance["loss"]} for v in visits
        ],
        "notes": [],
    }
