"""The command line: a command per analysis, `run` for the spec's, `render` for a report.

Typer only parses: each command returns what is to be done, and `__main__` does it.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from curvcli import commands
from curvcli.analyses.base import Analysis
from curvcli.commands import CUT, Kinds
from curvcli.flags import Command, flags
from curvcli.output import Output
from curvcli.spec import Run, Source
from curvcli.track.asked import Track
from curvcli.version import __version__

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
        answer = partial(commands.answer, kinds, kind)
        _add(app, name, kind.__doc__ or "", answer, _parameters(kind))
    _add(app, "run", RUN, partial(commands.answer, kinds, None), _parameters(None))
    _add(app, "track", TRACK, partial(commands.track, kinds), [
        inspect.Parameter("models", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Models),
        *flags(Track, MODEL),
        *_shared(set()),
    ])  # fmt: skip
    _add(app, "render", RENDER, commands.render, [
        inspect.Parameter("report", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Saved),
        *flags(Output, PRINTED, without=("quiet",), negatable=False),
    ])  # fmt: skip
    _add(app, "selftest", SELFTEST, commands.selftest, [
        *flags(Run, MODEL, ("device", "seed"), negatable=False),
        *flags(Output, PRINTED, negatable=False),
    ])  # fmt: skip
    return app


RUN = """Run every analysis that the spec selects.

Where it selects none, all of them run. One that cannot be completed does not stop the others.
"""
TRACK = """How did curvature, loss and steps change over the checkpoints of a run?

The checkpoints, or a folder of them, are sorted by the step that each one saved. One that cannot be
read is told and passed over; one whose loss is no number has a row that says so.
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
