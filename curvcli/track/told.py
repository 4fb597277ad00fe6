"""What is told of a run: a row for each checkpoint, and the checks over all of them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError, bug
from curvcli.flags import flag_name
from curvcli.report import Check, Metric, Result, Status, columns, rows_of
from curvcli.track.drawn import figures
from curvcli.track.place import sources
from curvcli.track.rows import TrackRow, Visit

QUESTION: Final = "How did curvature, loss and steps change over this run?"


def told(
    visits: Sequence[Visit],
    refused: Mapping[str, CurvError],
    analyses: Sequence[Analysis],
    notes: Sequence[str] = (),
    *,
    interrupted: bool = False,
) -> Result:
    """Put the answer together; `refused` are the files that could not be read, by name."""
    rows = [v.row for v in visits]
    said = (n for v in visits for n in (*v.provenance["notes"], *v.notes))
    return Result(
        name="track",
        question=QUESTION,
        headline=_headline(rows),
        columns=columns(TrackRow),
        rows=rows_of(rows),
        metrics=dict(_metrics(rows)),
        checks=(*_unread(refused), *_checks(visits, analyses, interrupted=interrupted)),
        notes=tuple(dict.fromkeys((*notes, *sources(visits), *said))),
        figures=tuple(figures(visits)),
        options={a.name: a.model_dump() for a in analyses},
        interrupted=interrupted,
    )


def _headline(rows: Sequence[TrackRow]) -> str:
    if not rows:
        return "nothing is known yet"
    said = _count(len(rows))
    # Nobody knows where in the run a checkpoint without a step belongs.
    rows = [r for r in rows if r.step is not None] or rows
    said += _from([r.step for r in rows], " from step ", " at step ", ".15g")
    said += _from([r.loss for r in rows], "; loss ", "; loss ", ".4g")
    shares = [r.share for r in rows if r.share is not None]
    if len(shares) == 1:
        said += f"; sharpness {shares[0]:.0%} of the threshold"
    elif shares:
        said += f"; sharpness {shares[0]:.0%} of the threshold at first, {shares[-1]:.0%} at last"
        said += f", {max(shares):.0%} at most"
    return said


def _count(checkpoints: int) -> str:
    return f"{checkpoints} checkpoint{'' if checkpoints == 1 else 's'}"


def _from(values: Sequence[float | None], several: str, one: str, form: str) -> str:
    """Tell the first and the last that is known, or the only one."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    if len(values) == 1:
        return f"{one}{known[0]:{form}}"
    return f"{several}{known[0]:{form}} to {known[-1]:{form}}"


def _metrics(rows: Sequence[TrackRow]) -> Iterator[tuple[str, Metric]]:
    yield "checkpoints", Metric(len(rows), "checkpoints", "count")
    sharp = [r for r in rows if r.sharpness is not None]
    if sharp:
        top = max(sharp, key=lambda r: r.sharpness or -math.inf)
        yield (
            "sharpness_max",
            Metric(top.sharpness, "largest sharpness", "real", top.sharpness_error),
        )
    shares = [(r.share, r.share_error) for r in rows if r.share is not None]
    if shares:
        share, error = max(shares, key=lambda s: s[0])
        yield "share_max", Metric(share, "largest share of the threshold", "percent", error)


def _unread(refused: Mapping[str, CurvError]) -> Iterator[Check]:
    for name, error in refused.items():
        said = f"passed over: {error.code}: {error.message}"
        yield Check(f"checkpoint {name}", "undecided", said, error.hint)


def _checks(
    visits: Sequence[Visit], analyses: Sequence[Analysis], *, interrupted: bool
) -> Iterator[Check]:
    """Gather the checks that did not pass, over the checkpoints where they did not."""
    found: dict[tuple[str, Status], list[tuple[TrackRow, Check]]] = {}
    for visit in visits:
        for name, result in visit.results.items():
            for check in result.checks:
                if check.status != "pass":
                    place = (f"{name}: {check.name}", check.status)
                    found.setdefault(place, []).append((visit.row, check))
        for name, error in visit.failed.items():
            told = error if isinstance(error, CurvError) else bug(error)
            check = Check(name, "undecided", f"{told.code}: {told.message}", told.hint)
            found.setdefault((name, "undecided"), []).append((visit.row, check))
    for (name, status), cases in found.items():
        row, check = cases[-1]
        said = f"at {len(cases)} of {_count(len(visits))}, last {_at(row)}: {check.message}"
        yield Check(name, status, said, _of_the_spec(check.advice, name, analyses))
    if not found and visits and not interrupted:
        yield Check("every checkpoint", "pass", "every check of every checkpoint passed")


def _of_the_spec(advice: str, check: str, analyses: Sequence[Analysis]) -> str:
    """Say where an analysis's own options are: `track` has no flags for them."""
    own = {flag_name(n) for a in analyses for n in type(a).model_fields}
    if not any(flag in own for flag in re.findall(r"--[a-z-]+", advice)):
        return advice
    return f"{advice}, under analyses: {check.partition(':')[0]}: in the spec"


def _at(row: TrackRow) -> str:
    return row.checkpoint if row.step is None else f"at step {row.step:.15g}"
