"""Options: quantities, and mistakes told in one plain line."""

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from curvcli.errors import CurvError
from curvcli.mistakes import dotted, shown
from curvcli.options import Bytes, Options, Seconds, build, option, unknown


class Inner(Options):
    depth: int = option(1, "levels", ge=0, le=5)
    names: tuple[str, ...] = option((), "names")


class Sample(Options):
    top: int = option(1, "how many", ge=1)
    tolerance: float = option(1e-3, "relative error", gt=0)
    fast: bool = option(False, "skip the check")
    mode: Literal["eval", "train"] = option("eval", "mode")
    kind: str | None = option(None, "class", alias="class")
    which: int | Literal["all"] = option("all", "which")
    raw: Any = option(None, "anything")
    inner: Inner = option(Inner(), "nested")
    wait: Seconds | None = option(None, "time")
    room: Bytes | None = option(None, "memory")


def place(loc: tuple[int | str, ...]) -> str:
    return "here: " + dotted(loc) if loc else "here"


def refusal(values: Any) -> str:
    with pytest.raises(CurvError) as caught:
        build(Sample, values, place)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    return text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("5m", 300), ("1.5h", 5400), ("200 ms", 0.2), ("90", 90), (2, 2), ("1e2s", 100)],
)
def test_seconds(text: object, seconds: float) -> None:
    assert build(Sample, {"wait": text}, place).wait == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4e9), ("512MiB", 2**29), ("0", 0), (1024, 1024), ("1.5 kb", 1500)]
)
def test_bytes(text: object, size: float) -> None:
    assert build(Sample, {"room": text}, place).room == size


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"wait": "5 ly"}, "here: wait: '5 ly' is not a quantity such as 60s, 5m or 1.5h"),
        ({"wait": "-5s"}, "here: wait: '-5s' is not a quantity such as 60s, 5m or 1.5h"),
        ({"wait": "0s"}, "here: wait: '0s' should be greater than 0"),
        ({"wait": "1e999h"}, "here: wait: inf should be finite"),
        ({"wait": [1]}, "here: wait: should be a number"),
        ({"room": "4 GG"}, "here: room: '4 GG' is not a quantity such as 4GB or 512MiB"),
        ({"topp": 3}, "here: 'topp' is not known here — did you mean 'top'?"),
        ({"kind": "SGD"}, "here: 'kind' is not known here — known are class, fast, inner, mode, "
         "raw, room, tolerance, top, wait, which"),
        ({"inner": {"dept": 3}}, "here: inner: 'dept' is not known here — did you mean 'depth'?"),
        ({"top": 0}, "here: top: 0 should be greater than or equal to 1"),
        ({"top": 1.5}, "here: top: 1.5 should be a whole number"),
        ({"top": "many"}, "here: top: 'many' should be a whole number"),
        ({"top": True}, "here: top: true should be a number"),
        ({"top": None}, "here: top: null should be a whole number"),
        ({"tolerance": float("nan")}, "here: tolerance: nan should be finite"),
        ({"tolerance": True}, "here: tolerance: true should be a number"),
        ({"fast": 3}, "here: fast: 3 should be true or false"),
        ({"mode": "evl"}, "here: mode: 'evl' should be 'eval' or 'train' — did you mean 'eval'?"),
        ({"class": 3}, "here: class: 3 should be text — put it in quotes"),
        ({"which": "al"}, "here: which: 'al' should be a whole number or 'all'"),
        ({"inner": 3}, "here: inner: 3 should be a mapping"),
        ({"inner": {"names": ["a", 3]}}, "here: inner.names.1: 3 should be text"),
        ({"inner": {"names": "a"}}, "here: inner.names: 'a' should be a list"),
        ({"inner": {"depth": 9}, "top": 0}, "here: inner.depth: 9 should be less than or equal to 5"
         " — and 1 more mistake"),
        ([], "here: should be a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_one_plain_line(values: Any, said: str) -> None:
    assert refusal(values).startswith(f"E_SPEC: {said}")


def test_hostile_names_and_values_stay_short_and_printable() -> None:
    assert len(refusal({"x" * 10**6: 1})) < 400
    assert len(refusal({"mode": "x" * 10**6})) < 400
    assert "\\u202e" in refusal({"to\u202ep": 1})
    assert "\\n" in refusal({"mode": "a\nb"})


def test_values_arrive_as_declared() -> None:
    made = build(Sample, {"top": 2, "tolerance": 1, "class": "SGD", "raw": True}, place)
    assert (made.top, made.tolerance, made.kind, made.raw) == (2, 1.0, "SGD", True)
    assert build(Sample, {"inner": {"names": ["a"]}}, place).inner.names == ("a",)


def test_options_are_frozen_and_refuse_strangers_in_python_too() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample().top = 2
    with pytest.raises(ValidationError, match="topp"):
        Sample.model_validate({"topp": 2})


def test_the_code_and_the_place_are_the_callers() -> None:
    with pytest.raises(CurvError) as caught:
        build(Sample, {"top": 0}, lambda loc: f"--{loc[0]}", "E_USAGE")
    assert str(caught.value) == "E_USAGE: --top: 0 should be greater than or equal to 1"


def test_unknown_without_a_near_name_lists_all() -> None:
    assert unknown("zzz", ["b", "a"], "x").hint == "known are a, b"
    assert unknown("zzz", [], "x").hint == "remove it"


def test_dotted_and_shown() -> None:
    assert dotted(("model", "layers", 2)) == "model.layers.2"
    assert dotted(("a b",)) == "'a b'"
    assert (shown(None), shown(True), shown(1.5), shown("a")) == ("null", "true", "1.5", "'a'")


def test_an_option_carries_what_a_flag_needs() -> None:
    class One(Options):
        n: int = option(3, "how many", short="-n", metavar="N", shown="three", ge=1)

    field = One.model_fields["n"]
    assert field.description == "how many"
    assert field.json_schema_extra == {"short": "-n", "metavar": "N", "shown": "three"}
