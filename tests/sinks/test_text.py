"""What people read of a number is true to the number, and no character acts instead of showing."""

import math
import re
import unicodedata
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curvcli.report import Format
from curvcli.sinks.text import ascii_only, clean, encodable, number

FINITE = st.floats(allow_nan=False, allow_infinity=False)
FORMATS = st.sampled_from(get_args(Format))


@pytest.mark.parametrize(
    ("value", "format", "error", "shown"),
    [
        (12.3104, "real", 0.00098, "12.310 ± 0.001"),
        (12.31, "real", 0.001, "12.310 ± 0.001"),
        (12.3104, "real", 0.0014, "12.3104 ± 0.0014"),
        (12.3104, "real", 0.0036, "12.310 ± 0.004"),
        (1.234e-7, "real", 2e-10, "(1.234 ± 0.002)e-07"),
        (12.3104567, "real", 1e-9, "12.3105 ± 0.0001"),
        (12.31, "real", 0.0, "12.31 ± 0"),
        (0.003, "real", 12, "0 ± 12"),
        (-0.003, "real", 1.2, "0.0 ± 1.2"),
        (123456, "real", 1234.5, "123456 ± 1300"),
        (9.9999999e-8, "real", 1e-15, "(1.00000 ± 0.00001)e-07"),
        (12.31, "real", math.nan, "12.31 ± nan"),
        (math.nan, "real", math.nan, "nan"),
        (math.inf, "real", 0.5, "inf ± 0.5"),
        (12.310456, "real", None, "12.31"),
        (1 / 3, "real", None, "0.33333"),
        (3.0, "real", None, "3"),
        (-0.0, "real", None, "0"),
        (123456.7, "real", None, "123457"),
        (999999.9, "real", None, "1e+06"),
        (1.23456e-7, "real", None, "1.2346e-07"),
        (5e-324, "real", None, "5e-324"),
        (10**400, "real", None, "1e+400"),
        (1234567, "count", None, "1,234,567"),
        (1234567.0, "count", 12, "1,234,567 ± 12"),
        (3.1e-9, "relative", None, "3.1e-09"),
        (0.0, "relative", None, "0"),
        (2.134, "factor", None, "2.13"),
        (0.00123, "factor", None, "0.0012"),
        (12345.6, "factor", None, "12346"),
        (0.8712, "percent", None, "87.1%"),
        (0.99987, "percent", None, "99.987%"),
        (1.0, "percent", None, "100%"),
        (0.123, "percent", 0.004, "12.3 ± 0.4%"),
        (1.5e-10, "percent", None, "1.5e-08%"),
        (0.0132, "seconds", None, "13.2 ms"),
        (4.2e-6, "seconds", None, "4.2 µs"),
        (0.9999, "seconds", None, "1 s"),
        (125.0, "seconds", None, "2 min 05 s"),
        (7380.0, "seconds", None, "2 h 03 min"),
        (0.0132, "seconds", 0.0004, "13.2 ± 0.4 ms"),
        (0, "seconds", None, "0 s"),
        (498_000_000, "bytes", None, "498 MB"),
        (512, "bytes", None, "512 B"),
        (999_999, "bytes", None, "1 MB"),
        (1234567, "text", None, "1234567"),
        (True, "count", None, "yes"),
        (None, "real", None, "–"),
        ("a\x1b[31m", "real", None, r"a\x1b[31m"),
    ],
)  # fmt: skip
def test_figures(value: float, format: Format, error: float | None, shown: str) -> None:
    assert number(value, format, error) == shown


PAIR = re.compile(r"(\()?(-?[\d.]+) ± (-?[\d.]+)(?(1)\)(e[+-]\d+))")


@settings(deadline=None)
@given(FINITE, st.floats(min_value=1e-300, allow_infinity=False))
@example(9.99e-8, 9.99e-8)
@example(0.0, 9.96e-8)
def test_a_value_is_within_half_a_digit_and_its_error_is_not_understated(
    value: float, error: float
) -> None:
    found = PAIR.fullmatch(number(value, "real", error))
    assert found, number(value, "real", error)
    power = int((found[4] or "e0")[1:])
    v, e = (Decimal(text).scaleb(power) for text in (found[2], found[3]))
    exponent = Decimal(found[2]).as_tuple().exponent
    assert isinstance(exponent, int)
    unit = Decimal(1).scaleb(exponent + power)
    exact, bound = Decimal(repr(value)), Decimal(repr(error))
    assert abs(v - exact) <= unit / 2
    assert bound <= e <= max(bound * Decimal("1.26"), bound + unit)
    assert len(re.sub(r"^-?[0.]*|[.]", "", found[2])) <= 7  # 6, and one when 999999.9 rounds up


@settings(deadline=None)
@given(FINITE)
def test_a_lone_value_is_within_half_a_unit_of_its_fifth_digit(value: float) -> None:
    exact = Decimal(repr(value))
    shown = Decimal(number(value, "real"))
    unit = Decimal(1).scaleb(exact.adjusted() - 4) if exact else Decimal(0)
    assert abs(shown - exact) <= unit / 2


@settings(deadline=None)
@given(st.floats() | st.integers(), FORMATS, st.none() | st.floats() | st.integers(min_value=0))
@example(10**400, "percent", 1)
def test_every_number_has_a_short_form(value: float, format: Format, error: float | None) -> None:
    shown = number(value, format, error)
    assert shown
    assert "-0 " not in shown
    if isinstance(value, float):
        assert len(shown) < 50


@settings(deadline=None)
@given(st.text())
def test_clean_text_shows_all_it_has(text: str) -> None:
    shown = clean(text)
    assert shown.isprintable()
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    assert clean(shown) == shown
    assert ascii_only(text).isascii()


def test_hidden_characters_are_written_as_codes() -> None:
    assert clean("a\x1b[2J\u202eb\u200b\ud800\r\n\t\U000e0041\ufe0f") == (
        r"a\x1b[2J\u202eb\u200b\ud800\x0d\x0a\x09\U000e0041\ufe0f"
    )
    assert clean("one\ntwo\r", keep_newlines=True) == "one\ntwo\\x0d"
    assert clean("weight/λ_é") == "weight/λ_é"


def test_signs_are_spelled_only_where_the_encoding_lacks_them() -> None:
    assert ascii_only("1 ± 2 — 3 µs…é") == r"1 +/- 2 - 3 us...\xe9"
    assert encodable("1 ± 2 — é", "latin-1") == "1 ± 2 - é"
    assert encodable("1 ± 2 — é", "utf-8") == "1 ± 2 — é"
