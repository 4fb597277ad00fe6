"""The strict YAML reader: what it reads, what it refuses and how fast."""

import contextlib
import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli import strict_yaml
from curvcli.errors import CurvError
from curvcli.strict_yaml import plain, read

LOADERS = [getattr(yaml, name) for name in ("CSafeLoader", "SafeLoader") if hasattr(yaml, name)]


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with libyaml's parser and with PyYAML's own: a build of PyYAML may lack the first."""
    monkeypatch.setattr(strict_yaml, "LOADER", request.param)


both = pytest.mark.usefixtures("_both")


def refusal(text: str) -> str:
    with pytest.raises(CurvError) as caught:
        read(text, "curv.yaml")
    said = str(caught.value)
    assert "\n" not in said
    assert said.isprintable()
    assert caught.value.hint
    return said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-1", -1), ("+12", 12), ("007", 7), ("0o17", 15), ("0x1F", 31),
        ("1e-3", 1e-3), ("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("+1E3", 1000.0),
        (".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf),
        ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None),
        ("true", True), ("True", True), ("TRUE", True), ("false", False), ("FALSE", False),
        ("no", "no"), ("off", "off"), ("yes", "yes"), ("y", "y"), ("On", "On"),
        ("nULL", "nULL"), ("tRUE", "tRUE"), ("1_000", "1_000"), ("0b11", "0b11"), ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"), ("-0x1", "-0x1"), ("0o8", "0o8"), ("1e", "1e"), (".", "."),
        ("=", "="), ("inf", "inf"), ("nan", "nan"), ("1.2.3", "1.2.3"), ("e3", "e3"),
    ],
)  # fmt: skip
def test_scalars_of_the_core_schema(text: str, value: Any) -> None:
    found = plain(text)
    assert found == value
    assert type(found) is type(value)
    if text:
        assert read(f"a: '{text}'", "x").value == {"a": text}
        assert read(f'a: "{text}"', "x").value == {"a": text}


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan(text: str) -> None:
    assert math.isnan(read(f"[{text}]", "x").value[0])


@both
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("# only a comment\n", None), ("---\n...\n", None), ("a:\nb: ~\n", None),
        ("\ufeffa: 1", {"a": 1}), ("%YAML 1.2\n---\na: 1", {"a": 1}), ("a: |\n  1\n", {"a": "1\n"}),
        ("a: >-\n  x\n  y\n", {"a": "x y"}), ("{a, b: 1}", {"a": None, "b": 1}),
        ("1: x\ntrue: y\nnull: z", {"1": "x", "true": "y", "null": "z"}),
        ("- [1, {a: [2]}]\n- - 3\n", [[1, {"a": [2]}], [3]]), ("a: <<", {"a": "<<"}),
        ("'<<': 1", {"<<": 1}),
    ],
)  # fmt: skip
def test_documents(text: str, value: Any) -> None:
    expected = {"a": None, "b": None} if text.startswith("a:\nb") else value
    assert read(text, "x").value == expected


@both
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!str 3", "1:4: the tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: !x 3", "1:4: the tag '!x' is not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "1:4: the tag 'tag:yaml.org,2002:python"),
        ("b: 1\na: &x 3", "2:4: the anchor &x is not allowed"),
        ("a: &x [1]", "1:4: the anchor &x is not allowed"),
        ("a: *x", "1:4: the alias *x is not allowed"),
        ("<<: {a: 1}", "1:1: the merge key << is not allowed"),
        ("a: 1\nb: 2\na: 3", "3:1: a is given twice, first in line 1"),
        ("m:\n  a: 1\n  'a': 2", "3:3: m.a is given twice, first in line 2"),
        ("1: 2\n'1': 3", "2:1: 1 is given twice, first in line 1"),
        ("? [1]\n: 2", "1:3: a key must be a word"),
        ("? {a: 1}\n: 2", "1:3: a key must be a word"),
        ("a: 1\n---\nb: 2", "2:1: a second document begins here"),
        ("[" * 33 + "]" * 33, "1:33: nested deeper than 32"),
        ("a: \x07", "1:4: the character '\\x07' is not allowed"),
        ("b: 1\na: \ud800", "2:4: the character '\\ud800' is not allowed"),
        ("a: " + "9" * 5000, "1:4: an integer of 5000 digits is too long"),
        ("a: 0x" + "f" * 5000, "1:4: an integer of 5002 digits is too long"),
    ],
)
def test_refused(text: str, said: str) -> None:
    assert refusal(text).startswith(f"E_YAML: curv.yaml:{said}")


@both
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1, 2", 1), ("a: b: c", 1), ("a: 1\n\tb: 2", 2), ("a: 'x", 1), ("a: @x", 1),
        ("a: 1\n  b: 2", 2), ("- a\nb: 1", 2), ("x: [1\ny: 2", 2), ("a: }", 1), ("a: \"\\q\"", 1),
        ("%YAML 9.9\n---\na: 1", 1), ("a: !<", 1), ("*", 1), ("&", 1), ("a: |x\n", 1),
    ],
)  # fmt: skip
def test_syntax_errors_have_a_place(text: str, line: int) -> None:
    said = refusal(text)
    assert said.startswith("E_YAML: curv.yaml:")
    assert abs(int(said.split(":")[2]) - line) <= 1  # the two parsers differ at an end of file


def test_depth_32_is_read() -> None:
    value = read("[" * 32 + "]" * 32, "x").value
    for _ in range(31):
        (value,) = value
    assert value == []


def test_lines() -> None:
    text = "\na: 1\nb:\n  c: [1,\n      2]\n  'd e': {f: 1}\n"
    document = read(text, "x")
    assert document.line(()) == 2
    assert document.line(("a",)) == 2
    assert document.line(("b", "c", 0)) == 4
    assert document.line(("b", "c", 1)) == 5
    assert document.line(("b", "d e", "f")) == 6
    assert document.line(("b", "d e", "g", 3)) == 6
    assert document.line(("b", "z")) == 3
    assert document.line(("z",)) == 2
    assert read("", "x").line(("version",)) == 1


def bomb() -> str:
    return "a: &a {k: 1}\n" + "".join(
        f"l{i}: &l{i} {{<<: [*a, *l{i - 1}]}}\n" for i in range(1, 29)
    )


@both
@pytest.mark.parametrize(
    "text",
    [
        bomb(), "[" * 500_000 + "]" * 500_000, "{a: " * 250_000, "- " * 500_000, "? " * 500_000,
        "[a," * 300_000, "a: [\n" * 160_000, "9" * 999_999, "a: &" + "x" * 900_000,
        "x" * 1_000_001,
    ],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_hostile_input_fails_fast(text: str) -> None:
    begun = time.process_time()
    said = refusal(text)
    assert time.process_time() - begun < 1  # it takes 0.3 at most, on one slow core
    assert len(said) < 300


def test_many_values_are_refused_before_they_are_read() -> None:
    assert "more than 100,000 values" in refusal("[" + "1," * 490_000 + "]")


def test_large_input_is_refused() -> None:
    assert refusal("#" * 1_000_001).startswith("E_TOO_LARGE: curv.yaml has 1,000,001 characters")


def same_in_both_versions(text: str) -> bool:
    """Tell whether YAML 1.1, which PyYAML writes, and 1.2 agree that the plain text is text."""
    return isinstance(plain(text), str)


# PyYAML writes NEL as a line break and reads it as a space.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=12).filter(
    same_in_both_versions
) | st.sampled_from(
    [
        "no",
        "yes",
        "off",
        "null",
        "true",
        "1",
        "1.5",
        "1_000",
        "0b1",
        "1:30",
        "<<",
        "=",
        "2020-01-01",
    ]
)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@settings(max_examples=150, deadline=None, database=None)
@given(DATA, st.sampled_from([None, False, True]), st.booleans())
def test_reads_what_pyyaml_writes(data: Any, flow: bool | None, unicode: bool) -> None:
    text = yaml.dump(data, Dumper=_NoAliases, default_flow_style=flow, allow_unicode=unicode)
    assert repr(read(text, "x").value) == repr(data_in_order(data))


def data_in_order(data: Any) -> Any:
    """Sort keys, as yaml.dump does."""
    if isinstance(data, dict):
        return {key: data_in_order(data[key]) for key in sorted(data)}
    return [data_in_order(item) for item in data] if isinstance(data, list) else data


@settings(max_examples=150, deadline=None, database=None)
@given(st.text(alphabet="ab1:-[]{},'\"\n #&*!|>?%@~.<\t", max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    with contextlib.suppress(CurvError):  # any other exception fails
        read(text, "x")
        return
    assert refusal(text).startswith("E_YAML: curv.yaml:")
