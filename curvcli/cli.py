"""The command line: a command per analysis, `run` for the spec's, `render` for a report.

Typer only parses: each command returns what is to be done, and `__main__` does it.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError
from curvcli.flags import Command, flag_name, flags, given
from curvcli.options import Location, Options, build, unknown
from curvcli.output import Output, apart, destination, refuse, show
from curvcli.report import Report
from curvcli.spec import Run, Source, Spec, configured, discover, load
from curvcli.track.asked import Track
from curvcli.track.asked import files as checkpoints
from curvcli.version import __version__

if TYPE_CHECKING:
    from curvcli.progress import Announcer
    from curvcli.work import Work

MODEL, SHARED, PRINTED = "Options", "Model and data", "Output"

Checkpoint = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="the checkpoint; may be left out where the spec names it"),
]
SpecFlag = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="the spec (default MODEL with the suffix .yaml, else the nearest curv.yaml)",
        rich_help_panel=SHARED,
    ),
]
Models = Annotated[
    list[Path], typer.Argument(metavar="MODEL...", help="checkpoints of one run, or their folder")
]
Saved = Annotated[Path, typer.Argument(metavar="REPORT.json", help="a report in JSON")]

Task = Callable[[], int]
Kinds = Mapping[str, type[Analysis]]


def build_app(kinds: Kinds) -> typer.Typer:
    """Make the command line of these analyses; a command returns its Task."""
    app = typer.Typer(
        name="curv",
        epilog="Exit codes: 0 passed, 1 a check failed, 2 refused, 3 undecided, 4 a bug in curv.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_main)
    for name, kind in kinds.items():
        _add(app, name, kind.__doc__ or "", partial(_answer, kinds, kind), _parameters(kind))
    _add(app, "run", RUN, partial(_answer, kinds, None), _parameters(None))
    _add(app, "track", TRACK, partial(_track, kinds), [
        inspect.Parameter("models", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Models),
        *flags(Track, MODEL),
        *_shared(set()),
    ])  # fmt: skip
    _add(app, "render", RENDER, _render, [
        inspect.Parameter("report", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Saved),
        *flags(Output, PRINTED, without=("quiet",), negatable=False),
    ])  # fmt: skip
    _add(app, "selftest", SELFTEST, _selftest, [
        *flags(Run, MODEL, ("device", "seed"), negatable=False),
        *flags(Output, PRINTED, negatable=False),
    ])  # fmt: skip
    return app


RUN = """Run every analysis that the spec selects.

Where it selects none, all of them run. One that cannot be completed does not stop the others.
"""
TRACK = """How did curvature, loss and steps change over the checkpoints of a run?

The checkpoints, or a folder of them, are sorted by the step that each one saved. One that cannot be
read is told and passed over. The spec is the nearest curv.yaml from the first checkpoint upward.
"""
RENDER = """Render a saved report again, without the model.

With --out, the rendering goes there and not to stdout. The exit code is that of the report.
"""


SELFTEST = """Do planted bugs and right models get their verdicts on this machine?

Each is a small model with a known verdict. Where one comes out otherwise, trust no verdict here.
"""


def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _version() if wanted else None,
            is_eager=True,
            help="show the version",
        ),
    ] = False,
) -> None:
    """Curvature and gradient diagnostics of saved PyTorch models, with error bars."""


def _version() -> None:
    print(f"curv {__version__}")
    raise typer.Exit


def _add(
    app: typer.Typer,
    name: str,
    doc: str,
    answer: Callable[[dict[str, Any]], int],
    parameters: list[inspect.Parameter],
) -> None:
    """Make a command of a function of the values that were given."""

    def command(**values: Any) -> Task:
        return partial(answer, values)

    doc = inspect.cleandoc(doc)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    app.command(name, cls=Command, help=doc, short_help=doc.splitlines()[0])(command)


def _parameters(own: type[Analysis] | None) -> list[inspect.Parameter]:
    """List a command's parameters: MODEL, the analysis's own, the shared ones.

    An analysis that declares an option of a shared one's name (gradcheck's `samples`) replaces it.
    """
    names = set(own.model_fields) if own else set()
    return [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None,
                          annotation=Checkpoint),
        *(flags(own, MODEL) if own else []),
        *_shared(names),
    ]  # fmt: skip


def _shared(names: set[str]) -> list[inspect.Parameter]:
    """List the options that every command on a model has, without those of these names."""
    return [
        inspect.Parameter("spec", inspect.Parameter.KEYWORD_ONLY, default=None,
                          annotation=SpecFlag),
        *flags(Source, SHARED, CUT, names),
        *flags(Run, SHARED, None, names),
        *flags(Output, PRINTED, negatable=False),
    ]  # fmt: skip


CUT = ("batch_size", "samples")
"""The options of a data block that are flags too."""


def _render(values: dict[str, Any]) -> int:
    report: Path = values["report"]
    output = build(Output, given(values, Output), _flag_place, "E_USAGE")
    found = Report.from_json(_text(report), str(report))
    if output.out is None:
        show(found, output.printed, plain=output.plain)
    else:
        refuse(output, len(found.results))
        with destination(output.out) as write:
            write(found)
    return int(found.exit_code(strict=output.strict, exit_zero=output.exit_zero))


def _deliver(report: Report, output: Output, write: Callable[[Report], None]) -> None:
    """Print a report, and write it even where it cannot be printed."""
    try:
        show(report, output.printed, plain=output.plain)
    finally:
        write(report)


def _selftest(values: dict[str, Any]) -> int:
    output = build(Output, given(values, Output), _flag_place, "E_USAGE")
    refuse(output, 1)
    run = build(Run, given(values, Run), _flag_place, "E_USAGE")
    with destination(output.out) as write:
        with _announced(output.quiet) as announcer:
            from curvcli.load.assemble import device_of
            from curvcli.selftest import selftest

            report = selftest(device_of(run.device), run.seed, announcer.announce)
        _deliver(report, output, write)
    return int(report.exit_code(strict=output.strict, exit_zero=output.exit_zero))


def _answer(kinds: Kinds, kind: type[Analysis] | None, values: dict[str, Any]) -> int:
    """Do what a command asks: everything that can be refused without torch is refused first."""
    output = build(Output, given(values, Output), _flag_place, "E_USAGE")
    model: Path | None = values["model"]
    if model is not None:
        _exists(model)
    spec = _spec(values["spec"], model)
    analyses = _analyses(spec, kinds, kind, values)
    refuse(output, len(analyses))
    run = build(Run, _plain(spec.run) | given(values, Run), _flag_place, "E_USAGE")
    # An analysis's own option of that name is not the data's.
    shared = set(CUT) - set(kind.model_fields if kind else ())
    cut = build(Source, given({k: values[k] for k in shared}, Source), _flag_place, "E_USAGE")
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
    with destination(output.out, [a.file for a in analyses if a.file]) as write:
        # What the user's own code prints is no part of the report.
        with contextlib.redirect_stdout(sys.stderr), _announced(output.quiet) as announcer:
            report = _work(spec, checkpoint, run, _plain(cut), analyses, announcer)
        _deliver(report, output, write)
    return int(report.exit_code(strict=output.strict, exit_zero=output.exit_zero))


def _track(kinds: Kinds, values: dict[str, Any]) -> int:
    """Do what `track` asks."""
    output = build(Output, given(values, Output), _flag_place, "E_USAGE")
    asked = build(Track, given(values, Track), _flag_place, "E_USAGE")
    paths = checkpoints(values["models"])
    spec = _spec(values["spec"], None, start=paths[0].parent)
    refuse(output, 1)
    run = build(Run, _plain(spec.run) | given(values, Run), _flag_place, "E_USAGE")
    cut = _plain(build(Source, given({k: values[k] for k in CUT}, Source), _flag_place, "E_USAGE"))
    selected = configured(spec, kinds)
    for name in asked.analysis:
        if name not in kinds:
            raise unknown(name, kinds, "--analysis")
    analyses = [
        selected.get(n) or kinds[n](**FEW.get(n, {})) for n in dict.fromkeys(asked.analysis)
    ]
    with destination(output.out) as write:
        with contextlib.redirect_stdout(sys.stderr), _announced(output.quiet) as announcer:
            from curvcli.load.assemble import assemble
            from curvcli.track.visit import track

            report = track(
                paths,
                lambda path: assemble(spec, path, run, cut.get("batch_size"), cut.get("samples")),
                [a for a in analyses if isinstance(a, Analysis)],
                _means(run, announcer),
                run.seed,
            )
        _deliver(report, output, write)
    return int(report.exit_code(strict=output.strict, exit_zero=output.exit_zero))


FEW: Mapping[str, Any] = {
    "eig": {"top": 1}, "stability": {"top": 1}, "trace": {"tolerance": 0.05}
}  # fmt: skip
"""What `track` asks of an analysis that the spec does not configure: enough for its table."""


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


def _work(
    spec: Spec,
    checkpoint: Path,
    run: Run,
    cut: dict[str, int],
    analyses: Sequence[Analysis],
    announcer: "Announcer",
) -> Report:
    from curvcli.load.assemble import assemble
    from curvcli.runner import run as answer

    loaded = assemble(spec, checkpoint, run, cut.get("batch_size"), cut.get("samples"))
    return answer(loaded, analyses, _means(run, announcer), run.seed)


def _spec(named: Path | None, model: Path | None, start: Path | None = None) -> Spec:
    path = discover(named, model, start or Path.cwd())
    if path is None:
        beside = f"{model.with_suffix('.yaml')}, nor " if model and model.name else ""
        where = "here" if start in (None, Path()) else f"in {start}"
        raise CurvError(
            "E_SPEC",
            f"there is no {beside}curv.yaml {where} or above",
            "write one that says model:, data: and loss:, or pass --spec",
        )
    return load(path)


def _analyses(
    spec: Spec, kinds: Kinds, kind: type[Analysis] | None, values: dict[str, Any]
) -> list[Analysis]:
    """Build what was asked for; a flag goes before the spec, the spec before the default."""
    selected = configured(spec, kinds)
    if kind is None:
        chosen = selected or {n: k() for n, k in kinds.items()}
        return [a for a in chosen.values() if isinstance(a, Analysis)]
    before = _plain(selected[kind.name]) if kind.name in selected else {}
    return [build(kind, before | given(values, kind), _flag_place, "E_USAGE")]


def _plain(options: Options) -> dict[str, Any]:
    return options.model_dump(exclude_unset=True)


def _flag_place(loc: Location) -> str:
    return flag_name(str(loc[0])) if loc else "the command line"


def _exists(checkpoint: Path) -> None:
    """Refuse a path that is no file before torch is imported."""
    if not os.path.lexists(checkpoint):
        from curvcli.load.names import nearest_file

        raise CurvError("E_NOT_FOUND", f"{checkpoint} does not exist", nearest_file(checkpoint))
    if checkpoint.is_dir():
        raise CurvError("E_DIRECTORY", f"{checkpoint} is a directory", "pass the file inside")


@contextlib.contextmanager
def _announced(quiet: bool) -> Iterator["Announcer"]:
    from curvcli.progress import Announcer

    announcer = Announcer(quiet)
    try:
        yield announcer
    finally:
        announcer.close()


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
