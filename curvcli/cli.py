"""The command line: a command per analysis, `run` for the spec's, `render` for a report."""

import contextlib
import inspect
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvcli import sinks
from curvcli.analyses import registry
from curvcli.analyses.base import Analysis
from curvcli.errors import CurvError, Exit
from curvcli.files import Draft, drafted
from curvcli.flags import flag_name, flags, given
from curvcli.options import Location, Options, build, option
from curvcli.report import Report
from curvcli.spec import Run, Source, Spec, configured, discover, load
from curvcli.version import __version__

if TYPE_CHECKING:
    from curvcli.progress import Announcer

app = typer.Typer(
    name="curv",
    help="Curvature and gradient diagnostics of saved PyTorch models, with error bars.",
    epilog="Exit codes: 0 passed, 1 a check failed, 2 refused, 3 undecided, 4 a bug in curv.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)


class Output(Options):
    """Where the report goes, and how."""

    format: Literal["table", "json", "csv"] | None = option(
        None, "format of what is printed, or of --out FILE", shown="table", short="-f"
    )
    out: Path | None = option(
        None,
        "also write FILE (.json, .csv, .txt), or a report and one CSV per analysis to DIR",
        short="-o",
        metavar="FILE|DIR",
    )
    plain: bool = option(False, "plain ASCII: no boxes, no colour")
    quiet: bool = option(False, "no progress and no notes on stderr", short="-q")
    strict: bool = option(False, "a warning is exit code 3")
    exit_zero: bool = option(False, "a failed check is exit code 0")


MODEL, SHARED, PRINTED = "Options", "Model and data", "Output"

Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MODEL]", help="The checkpoint; may be left out where the spec names it."
    ),
]
SpecFlag = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="the spec",
        show_default="MODEL with suffix .yaml, else the nearest curv.yaml",
        rich_help_panel=SHARED,
    ),
]


def _parameters(own: type[Analysis] | None) -> list[inspect.Parameter]:
    """List a command's parameters: MODEL, the analysis's own, the shared ones.

    An analysis that declares an option of a shared one's name (gradcheck's `samples`) replaces it.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    names = set(own.model_fields) if own else set()
    return [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None,
                          annotation=Checkpoint),
        *(flags(own, MODEL) if own else []),
        inspect.Parameter("spec", keyword, default=None, annotation=SpecFlag),
        *flags(Source, SHARED, ("batch_size", "samples"), names),
        *flags(Run, SHARED, None, names),
        *flags(Output, PRINTED),
    ]  # fmt: skip


def _command(kind: type[Analysis]) -> None:
    """Make an analysis a command of its name."""

    def command(**values: Any) -> int:
        return _answer(values, kind)

    doc = inspect.cleandoc(kind.__doc__ or "")
    command.__signature__ = inspect.Signature(_parameters(kind))  # type: ignore[attr-defined]
    command.__annotations__ = {}
    app.command(kind.name, help=doc, short_help=doc.splitlines()[0])(command)


for _kind in registry().values():
    _command(_kind)


def _run(**values: Any) -> int:
    return _answer(values, None)


_run.__signature__ = inspect.Signature(_parameters(None))  # type: ignore[attr-defined]
_run.__annotations__ = {}
app.command(
    "run",
    help="Run every analysis that the spec selects (all of them where it selects none).",
)(_run)


@app.command()
def render(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report in JSON.")],
    format: Annotated[
        Literal["table", "json", "csv"],
        typer.Option("--format", "-f", help="format of what is printed"),
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE|DIR", help="write it there instead")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="plain ASCII: no boxes")] = False,
) -> int:
    """Render a saved report again, without the model and without torch."""
    found = Report.from_json(_text(report), str(report))
    if out is None:
        _print(found, format, plain)
    else:
        with _destination(out, None) as write:
            write(found)
    return int(found.exit_code())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"curv {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Curvature and gradient diagnostics of saved PyTorch models, with error bars."""


def _answer(values: dict[str, Any], kind: type[Analysis] | None) -> int:
    """Do what a command asks: everything that can be refused without torch is refused first."""
    output = build(Output, given(values, Output), _flag_place, "E_USAGE")
    model: Path | None = values["model"]
    spec = _spec(values["spec"], model)
    analyses = _analyses(spec, kind, values)
    run = build(Run, _plain(spec.run) | given(values, Run), _flag_place, "E_USAGE")
    # An analysis's own option of that name is not the data's.
    own = set(kind.model_fields) if kind else set()
    cut = {k: v for k in ("batch_size", "samples") if (v := values.get(k)) and k not in own}
    checkpoint = model or spec.checkpoint
    if checkpoint is None:
        raise CurvError(
            "E_USAGE",
            f"no model is named, on the command line or by checkpoint: in {spec.path}",
            f"curv {kind.name if kind else 'run'} MODEL",
        )
    _exists(checkpoint)
    with _destination(output.out, output.format) as write, _announced(output.quiet) as announcer:
        report = _work(spec, checkpoint, run, cut, analyses, announcer)
        announcer.close()
        _print(report, "table" if output.out else output.format or "table", output.plain)
        write(report)
    return int(report.exit_code(strict=output.strict, exit_zero=output.exit_zero))


def _work(
    spec: Spec,
    checkpoint: Path,
    run: Run,
    cut: dict[str, int],
    analyses: Sequence[Analysis],
    announcer: "Announcer",
) -> Report:
    import torch

    from curvcli.load.assemble import assemble
    from curvcli.runner import run as answer
    from curvcli.work import Work

    loaded = assemble(spec, checkpoint, run, cut.get("batch_size"), cut.get("samples"))
    work = Work(
        rng=torch.Generator(),
        method=run.hvp,
        memory=run.memory,
        budget=run.budget,
        announce=announcer.announce,
        tell=announcer.tell,
    )
    return answer(loaded, analyses, work, run.seed)


def _spec(named: Path | None, model: Path | None) -> Spec:
    path = discover(named, model, Path.cwd())
    if path is None:
        beside = f"{model.with_suffix('.yaml')}, nor " if model and model.name else ""
        raise CurvError(
            "E_SPEC",
            f"there is no {beside}curv.yaml here or above",
            "write one that says model:, data: and loss:, or pass --spec",
        )
    return load(path)


def _analyses(spec: Spec, kind: type[Analysis] | None, values: dict[str, Any]) -> list[Analysis]:
    """Build what was asked for; a flag goes before the spec, the spec before the default."""
    kinds = registry()
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
    """Refuse a path that is not there before torch is imported."""
    if not os.path.lexists(checkpoint):
        from curvcli.load.names import nearest_file

        raise CurvError("E_NOT_FOUND", f"{checkpoint} does not exist", nearest_file(checkpoint))


@contextlib.contextmanager
def _destination(out: Path | None, format: str | None) -> Iterator[Any]:
    """Open what --out names before any work starts; yield what writes a report there."""
    if out is None:
        yield lambda report: None
    elif out.is_dir() or str(out).endswith(os.sep) or (not out.suffix and format is None):
        _folder(out)
        with contextlib.ExitStack() as stack:
            # One draft proves that the folder takes files; their names are known at the end.
            stack.enter_context(drafted(out / "report.json"))

            def write_all(report: Report) -> None:
                for name, text in sinks.files(report).items():
                    Draft(out / name).write(text)

            yield write_all
    else:
        kind = format or sinks.format_of(out)
        with drafted(out) as draft:
            yield lambda report: draft.write(sinks.render(report, kind))


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = (error.strerror or "").lower()
        raise CurvError(
            "E_OUTPUT", f"{path} cannot be made: {said}", "choose another --out"
        ) from error


@contextlib.contextmanager
def _announced(quiet: bool) -> Iterator["Announcer"]:
    from curvcli.progress import Announcer

    announcer = Announcer(quiet)
    try:
        yield announcer
    finally:
        announcer.close()


def _print(report: Report, format: str, plain: bool) -> None:
    """Write to stdout: as wide as the terminal on one, as wide as it likes elsewhere."""
    terminal = sys.stdout.isatty()
    text = sinks.render(
        report,
        format,
        width=shutil.get_terminal_size().columns if terminal else None,
        color=terminal and not os.environ.get("NO_COLOR") and not plain,
        plain=plain,
        encoding=sys.stdout.encoding or "utf-8",
    )
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left, as head does; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CurvError("E_NOT_FOUND", f"{path} does not exist", "name a report in JSON") from None
    except IsADirectoryError:
        raise CurvError("E_DIRECTORY", f"{path} is a folder", "name report.json in it") from None
    except PermissionError:
        raise CurvError("E_PERMISSION", f"{path} cannot be read", "check its mode") from None
    except UnicodeDecodeError:
        raise CurvError("E_FORMAT", f"{path} is not text", "name a report in JSON") from None


__all__ = ["Exit", "app"]
