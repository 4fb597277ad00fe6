"""One checkpoint of a run after the other, each asked the same."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError, bug
from curvcli.report import Report, Result, Status
from curvcli.runner import answers, timed
from curvcli.track.rows import ERRORS, FIGURES, TrackRow, Visit
from curvcli.track.told import told
from curvcli.work import Work

if TYPE_CHECKING:
    from curvcli.load.assemble import Loaded

STEPS: Final = ("step", "global_step", "iter_num", "iteration", "epoch")
"""What checkpoints call their place in the run, the finest first."""

Load = Callable[[Path], "Loaded"]


def track(
    paths: Sequence[Path], load: Load, analyses: Sequence[Analysis], work: Work, seed: int
) -> Report:
    """Ask every checkpoint; one that cannot be read is told and passed over.

    Ctrl-C ends it with the checkpoints that are done.

    Raises: CurvError where none can be read: the first one's reason.
    """
    visits: list[Visit] = []
    refused: dict[str, CurvError] = {}
    interrupted = False
    with timed() as times:
        for path in paths:
            try:
                visit = _visit(path, load, analyses, work, seed)
            except CurvError as error:
                refused[path.name] = error
                continue
            except KeyboardInterrupt:
                interrupted = True
                break
            if any(r.interrupted for r in visit.results.values()):
                interrupted = True
                break
            visits.append(visit)
    if not visits and refused:
        raise next(iter(refused.values()))
    visits.sort(key=lambda v: (v.row.step is None, v.row.step or 0.0, v.row.checkpoint))
    result = told(visits, refused, analyses, interrupted)
    bugs = {
        f"{name} of {v.row.checkpoint}": str(bug(error))
        for v in visits
        for name, error in v.failed.items()
        if not isinstance(error, CurvError)
    }
    return Report(_provenance(visits), {"track": result}, bugs, times)


def _visit(path: Path, load: Load, analyses: Sequence[Analysis], work: Work, seed: int) -> Visit:
    loaded = load(path)
    named = replace(work, announce=lambda doing: work.announce(f"{path.name}: {doing}"))
    results, failed = answers(loaded.problem, analyses, named, seed)
    row = TrackRow(
        step=_step(path, loaded.provenance["checkpoint"]["progress"]),
        checkpoint=path.name,
        loss=loaded.problem.measure.loss,
        heldout=loaded.problem.heldout_loss,
        verdict=_verdict(results, failed),
        **_accuracies(loaded),
        **{**dict.fromkeys((*FIGURES, *ERRORS.values())), **dict(_figures(results))},
    )
    return Visit(row, results, failed, loaded.provenance)


def _step(path: Path, progress: Mapping[str, Any]) -> float | None:
    """Read the place in the run: what the file says, else the last number of its name."""
    said = next((progress[key] for key in STEPS if key in progress), None)
    numbers = re.findall(r"\d+", path.stem)
    return said if said is not None else (int(numbers[-1]) if numbers else None)


def _accuracies(loaded: "Loaded") -> dict[str, Any]:
    from curvcli.trials.answers import examine

    problem, rng = loaded.problem, torch.Generator()
    found: dict[str, Any] = {"accuracy": None, "heldout_accuracy": None}
    with problem.engaged():
        for key, batches in (("accuracy", problem.batches), ("heldout_accuracy", problem.heldout)):
            for known in examine(problem, batches, 0, rng):
                found[key] = known.accuracy
    return found


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


def _provenance(visits: Sequence[Visit]) -> dict[str, Any]:
    """Take from the first checkpoint what all share, and list what they do not."""
    if not visits:
        return {"summary": {}, "notes": []}
    first = visits[0].provenance
    named = [v.row.checkpoint for v in visits]
    summary = {key: value for key, value in first["summary"].items() if key != "loss"}
    summary["checkpoint"] = f"{len(named)}, {named[0]} to {named[-1]}"
    shared = {k: v for k, v in first.items() if k not in ("checkpoint", "loss", "notes")}
    return {
        **shared,
        "summary": summary,
        "checkpoints": [
            {**v.provenance["checkpoint"], "loss": v.provenance["loss"]} for v in visits
        ],
        "notes": [],
    }
