"""What the commands do, from the values that the command line gave to the exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.flags import flag_name, given
from curvcli.options import Location, Options, build, unknown
from curvcli.output import Output, apart, destination, refuse, show
from curvcli.report import Report
from curvcli.spec import Run, Source, Spec, configured, discover, load
from curvcli.track.asked import Track
from curvcli.track.asked import files as checkpoints

if TYPE_CHECKING:
    from curvcli.progress import Announcer
    from curvcli.work import Work

Kinds = Mapping[str, type[Analysis]]
Values = Mapping[str, Any]
Some = TypeVar("Some", bound=Options)

CUT: Final = ("batch_size", "samples")
"""The options of a data block that are flags too."""

FEW: Final[Mapping[str, Any]] = {
    "eig": {"top": 1}, "stability": {"top": 1}, "trace": {"tolerance": 0.1}
}  # fmt: skip
"""What `track` asks of an analysis where the spec does not say: enough for its table."""


def answer(kinds: Kinds, kind: type[Analysis] | None, values: Values) -> int:
    """Answer one analysis, or those of the spec.

    Everything that can be refused without torch is refused first.
    """
    output = _given(Output, values)
    model: Path | None = values["model"]
    if model is not None:
        _exists(model)
    spec = _spec(values["spec"], model)
    analyses = _analyses(spec, kinds, kind, values)
    refuse(output, len(analyses), draws=any(a.draws for a in analyses))
    run = _given(Run, values, spec.run)
    # An analysis's own option of that name is not the data's.
    cut = _cut(values, set(CUT) - set(kind.model_fields if kind else ()))
    checkpoint = model or spec.checkpoint
    if checkpoint is None:
        raise CurvError(
            "E_USAGE",
            f"no model is named, on the command line or by checkpoint: in {spec.path}",
            f"curv {kind.name if kind else 'run'} MODEL",
        )
    _exists(checkpoint)
    read = [checkpoint, *([spec.path] if spec.path else [])]
    apart(output.out, {a.name: a.file for a in analyses}, read)

    def work(announcer: "Announcer") -> Report:
        from curvcli.load.assemble import assemble
        from curvcli.runner import run as answers

        loaded = assemble(spec, checkpoint, run, *cut)
        return answers(loaded, analyses, _means(run, announcer), run.seed)

    return _reported(output, work, [a.file for a in analyses if a.file])


def track(kinds: Kinds, values: Values) -> int:
    """Ask the same of every checkpoint of a run."""
    output, asked = _given(Output, values), _given(Track, values)
    paths = checkpoints(values["models"])
    spec = _spec(values["spec"], None, start=paths[0].parent)
    refuse(output, 1, draws=True)
    run, cut = _given(Run, values, spec.run), _cut(values, CUT)
    selected = configured(spec, kinds)
    for name in asked.analysis:
        if name not in kinds:
            raise unknown(name, kinds, "--analysis")
    analyses = [
        kinds[n](**FEW.get(n, {}) | _plain(selected.get(n))) for n in dict.fromkeys(asked.analysis)
    ]

    def work(announcer: "Announcer") -> Report:
        from curvcli.load.assemble import assemble
        from curvcli.track.visit import track

        return track(
            paths,
            lambda path: assemble(spec, path, run, *cut),
            analyses,
            _means(run, announcer),
            run.seed,
        )

    return _reported(output, work)


def selftest(values: Values) -> int:
    """Give planted bugs and right models their verdicts."""
    output, run = _given(Output, values), _given(Run, values)
    refuse(output, 1, draws=False)

    def work(announcer: "Announcer") -> Report:
        from curvcli.load.assemble import device_of
        from curvcli.selftest import selftest

        return selftest(device_of(run.device), run.seed, announcer.announce)

    return _reported(output, work)


def render(values: Values) -> int:
    """Show a saved report again."""
    path: Path = values["report"]
    output = _given(Output, values)
    found = Report.from_json(_text(path), str(path))
    if output.out is None:
        show(found, output.printed, plain=output.plain)
    else:
        drawn = any(r.figures for r in found.results.values())
        refuse(output, len(found.results), draws=drawn)
        with destination(output.out) as write:
            write(found)
    return _code(found, output)


def _reported(
    output: Output, work: Callable[["Announcer"], Report], files: Sequence[Path] = ()
) -> int:
    """Do the work, print its report, and write it even where it cannot be printed."""
    with destination(output.out, files) as write:
        # What the user's own code prints is no part of the report.
        with contextlib.redirect_stdout(sys.stderr), _announced(output.quiet) as announcer:
            report = work(announcer)
        try:
            show(report, output.printed, plain=output.plain)
        finally:
            write(report)
    return _code(report, output)


def _code(report: Report, output: Output) -> int:
    return int(report.exit_code(strict=output.strict, exit_zero=output.exit_zero))


@contextlib.contextmanager
def _announced(quiet: bool) -> Iterator["Announcer"]:
    from curvcli.progress import Announcer

    announcer = Announcer(quiet)
    try:
        yield announcer
    finally:
        announcer.close()


def _means(run: Run, announcer: "Announcer") -> "Work":
    import torch

    from curvcli.work import Work

    return Work(
        rng=torch.Generator(),
        method=run.hvp,
        memory=run.memory,
        budget=run.budget,
        announce=announcer.announce,
        tell=announcer.tell,
    )


# --- what was asked --------------------------------------------------------------------------


def _given(kind: type[Some], values: Values, before: Options | None = None) -> Some:
    """Build options from flags, which go before those that the spec set."""
    return build(kind, _plain(before) | given(values, kind), _flag_place, "E_USAGE")


def _cut(values: Values, names: Iterable[str]) -> tuple[int | None, int | None]:
    """Give the batch size and the number of examples that flags ask for."""
    cut = _plain(_given(Source, {name: values[name] for name in names}))
    return cut.get("batch_size"), cut.get("samples")


def _analyses(
    spec: Spec, kinds: Kinds, kind: type[Analysis] | None, values: Values
) -> list[Analysis]:
    """Build what was asked for; a flag goes before the spec, the spec before the default."""
    selected = configured(spec, kinds)
    if kind is None:
        chosen = selected or {n: k() for n, k in kinds.items()}
        return [a for a in chosen.values() if isinstance(a, Analysis)]
    return [_given(kind, values, selected.get(kind.name))]


def _spec(named: Path | None, model: Path | None, start: Path | None = None) -> Spec:
    """Read the spec: a checkpoint's own is nearer to it than that of the working directory."""
    if start is None:
        start = Path() if model is None else model.parent
    path = discover(named, model, start, Path.cwd())
    if path is None:
        beside = f"{model.with_suffix('.yaml')}, nor " if model and model.name else ""
        where = "here" if start == Path() else f"in {start}, here"
        raise CurvError(
            "E_SPEC",
            f"there is no {beside}curv.yaml {where} or above",
            "write one that says model:, data: and loss:, or pass --spec",
        )
    return load(path)


def _plain(options: Options | None) -> dict[str, Any]:
    """Give what was set, without the defaults."""
    return {} if options is None else options.model_dump(exclude_unset=True)


def _flag_place(loc: Location) -> str:
    return flag_name(str(loc[0])) if loc else "the command line"


def _exists(checkpoint: Path) -> None:
    """Refuse a path that is no file before torch is imported."""
    if not os.path.lexists(checkpoint):
        from curvcli.load.names import nearest_file

        raise CurvError("E_NOT_FOUND", f"{checkpoint} does not exist", nearest_file(checkpoint))
    if checkpoint.is_dir():
        raise CurvError("E_DIRECTORY", f"{checkpoint} is a directory", "pass the file inside")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CurvError("E_NOT_FOUND", f"{path} does not exist", "name a report in JSON") from None
    except IsADirectoryError:
        raise CurvError("E_DIRECTORY", f"{path} is a folder", "name report.json in it") from None
    except UnicodeDecodeError:
        raise CurvError("E_FORMAT", f"{path} is not text", "name a report in JSON") from None
    except OSError as error:
        said = f"{path} cannot be read: {error.strerror}"
        raise CurvError("E_PERMISSION", said, "check the path and its mode") from None
