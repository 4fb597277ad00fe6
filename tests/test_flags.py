"""Flags come from declared options: spelling, type, help, bounds and precedence."""

import inspect
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import AfterValidator
from typer.testing import CliRunner

from curvcli.flags import Command, flag_name, flags, given
from curvcli.options import Options, Seconds, option


class Sample(Options):
    top: int = option(5, "how many", ge=1, le=99, short="-k")
    tolerance: float = option(1e-3, "relative error", gt=0)
    seed: int = option(0, "seed", lt=2**63)
    which: Literal["one", "both"] = option("one", "which end")
    fast: bool = option(False, "skip the check")
    sure: bool = option(True, "check twice", short="-s")
    params: tuple[str, ...] = option(("*", "a.*"), "names", metavar="GLOB")
    max_time: Seconds | None = option(None, "time", metavar="TIME", shown="no limit")
    device: Annotated[str, AfterValidator(str.lower)] = option("auto", "where")
    limit: int | None = option(None, "at most", gt=0)
    either: int | str = option("x", "a number or a name")
    needed: str = option(..., "needed")


def by_name(**options: Any) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in flags(Sample, "Panel", **options)}


def about(name: str, **options: Any) -> Any:
    """Return what Typer is told of a flag."""
    return get_args(by_name(**options)[name].annotation)[1]


def spelled(name: str, **options: Any) -> tuple[str, ...]:
    # Where an annotation holds it, Typer takes the first spelling for a default until it is read.
    info = about(name, **options)
    return (info.default, *info.param_decls)


def parsed(*arguments: str) -> dict[str, Any]:
    """Parse arguments with the flags of Sample alone."""
    seen: dict[str, Any] = {}

    def command(**values: Any) -> None:
        seen.update(values)

    assert CliRunner().invoke(app(command), list(arguments)).exit_code == 0
    return given(seen, Sample)


def app(command: Any) -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None)
    command.__signature__ = inspect.Signature(flags(Sample, "Panel"))
    command.__annotations__ = {}
    made.command(cls=Command)(command)
    return made


def test_help_says_default_and_bounds() -> None:
    assert about("top").help == "how many (default 5, >= 1, <= 99)"
    assert about("tolerance").help == "relative error (default 0.001, > 0)"
    assert about("seed").help == "seed (default 0, < 2**63)"
    assert about("which").help == "which end (default one)"
    assert about("fast").help == "skip the check"
    assert about("sure").help == "check twice (default on)"
    assert about("params").help == "names (default * a.*)"
    assert about("max_time").help == "time (default no limit)"
    assert about("limit").help == "at most (> 0)"
    assert about("needed").help == "needed"


def test_metavars() -> None:
    found = {name: about(name).metavar for name in by_name()}
    assert found == {
        "top": "INT", "tolerance": "NUMBER", "seed": "INT", "which": "[one|both]", "fast": "",
        "sure": "", "params": "GLOB", "max_time": "TIME", "device": "TEXT", "limit": "INT",
        "either": "TEXT", "needed": "TEXT",
    }  # fmt: skip


def test_spellings() -> None:
    assert flag_name("max_time") == "--max-time"
    assert spelled("top") == ("--top", "-k")
    assert spelled("fast") == ("--fast/--no-fast",)
    assert spelled("fast", negatable=False) == ("--fast",)
    assert spelled("sure") == ("--sure/--no-sure", "-s")


def test_only_and_without() -> None:
    assert list(by_name(only=("seed", "top"))) == ["seed", "top"]
    assert list(by_name(only=("seed", "top"), without={"seed"})) == ["top"]
    assert "seed" not in by_name(without={"seed"})


def test_what_is_not_given_is_absent() -> None:
    assert parsed() == {}


def test_what_is_given_is_kept_as_it_was_written() -> None:
    assert parsed("-k", "3", "--no-sure", "--max-time", "5m", "--params", "a", "--params", "b") == {
        "top": "3", "sure": False, "max_time": "5m", "params": ["a", "b"],
    }  # fmt: skip


def test_choices_complete() -> None:
    assert about("which").autocompletion() == ["one", "both"]
    assert about("top").autocompletion is None


def test_help_has_a_section_for_each_panel() -> None:
    shown = CliRunner().invoke(app(lambda **_: None), ["--help"], env={"COLUMNS": "80"})
    assert "\nPanel:\n  -k, --top INT" in shown.output
    assert "\nOptions:\n" in shown.output
    assert "..." not in shown.output
