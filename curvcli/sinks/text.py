"""Text for people: hidden characters made visible, numbers rounded to what their error allows."""

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, ROUND_UP, Decimal
from typing import Final

from curvcli.report import Format, Value

MISSING: Final = "–"
PLUS_MINUS: Final = " ± "
MOST_DIGITS: Final = 6
"""Significant digits of a value beside its error; float32 products carry no more."""
LONE_DIGITS: Final = 5

# Unicode calls these printable, but they leave no ink: joiners, fillers, variation selectors.
_INKLESS: Final = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0))
).union(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))

_TYPOGRAPHY: Final = {
    "±": "+/-", "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "…": "...", "µ": "u", "μ": "mu",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "→": "->", "∞": "inf", "√": "sqrt", "∇": "grad ",
    "‖": "||", "²": "^2", "³": "^3", "λ": "lambda", "σ": "sigma", "ε": "eps", "η": "eta",
    "θ": "theta", "Δ": "delta", "“": '"', "”": '"', "‘": "'", "’": "'",
}  # fmt: skip


def clean(text: str, *, keep_newlines: bool = False) -> str:
    r"""Write control, bidi, zero-width and surrogate characters as `\xNN` or `\uNNNN`.

    What stays is what repr() would leave, less the characters that leave no ink.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if (c.isprintable() and c not in _INKLESS) or (keep_newlines and c == "\n") else _code(c)
        for c in text
    )


def ascii_only(text: str) -> str:
    r"""Spell typographic signs in ASCII (± as +/-) and write what is left as `\uNNNN`."""
    return encodable(text, "ascii")


def encodable(text: str, encoding: str) -> str:
    """Spell in ASCII just what `encoding` cannot hold."""
    return text if _holds(encoding, text) else "".join(_spelled(c, encoding) for c in text)


def _spelled(character: str, encoding: str) -> str:
    if _holds(encoding, character):
        return character
    return _TYPOGRAPHY.get(character) or _code(character)


def _holds(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _code(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: Value, format: Format, error: float | None = None) -> str:
    """Write one figure, rounded for reading; with its error, to the digits that the error allows.

    The value is within half a unit of its last digit, and the error is never rounded down.
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return clean(value)
    v = _decimal(value)
    if error is None:
        return _LONE[format](v) if v.is_finite() else _word(v)
    e = _decimal(error)
    if not v.is_finite():
        return _word(v) if e.is_nan() else f"{_word(v)}{PLUS_MINUS}{_lone_error(e, format)}"
    if not e.is_finite():
        return f"{_LONE[format](v)}{PLUS_MINUS}{_word(e)}"
    return _with_error(v, e, format)


def _decimal(value: float) -> Decimal:
    # The shortest decimal that means this float: 0.0014 is not to be rounded up to 0.0015.
    return Decimal(value) if isinstance(value, int) else Decimal(float.__repr__(value))


def _word(v: Decimal) -> str:
    return "nan" if v.is_nan() else ("inf" if v > 0 else "-inf")


def _lone_error(e: Decimal, format: Format) -> str:
    return _LONE[format](e) if e.is_finite() else _word(e)


def _with_error(v: Decimal, e: Decimal, format: Format) -> str:
    if format == "percent":
        return f"{_pair(100 * v, 100 * e)}%"
    if format in _UNITS:
        size, unit = _unit(max(abs(v), abs(e)), _UNITS[format])
        return f"{_pair(v / size, e / size)} {unit}"
    if format == "count" and v == v.to_integral_value() and e == e.to_integral_value():
        return f"{_count(v)}{PLUS_MINUS}{_count(e)}"
    return _pair(v, e)


def _pair(v: Decimal, e: Decimal) -> str:
    if not e:
        return f"{_real(v, MOST_DIGITS)}{PLUS_MINUS}0"
    top = _leading(e)
    power = max(_significant(x, MOST_DIGITS).adjusted() for x in (v or top, top))
    quantum = max(power - MOST_DIGITS + 1, _last_digit(top))
    if _in_reach(power):
        return PLUS_MINUS.join(_rounded_pair(v, top, min(quantum, 0)))
    shown = PLUS_MINUS.join(_rounded_pair(v.scaleb(-power), top.scaleb(-power), quantum - power))
    return f"({shown})e{power:+03d}"


def _leading(e: Decimal) -> Decimal:
    """Round an error up to the digits worth showing: two up to 35, else one.

    The rule is the Particle Data Group's (Review of Particle Physics, 2024, section 5.3), with
    rounding up in place of rounding to nearest, so that no error is understated.
    """
    two = _significant(e, 2, ROUND_UP)
    return two if abs(two.scaleb(1 - two.adjusted())) <= 35 else _significant(e, 1, ROUND_UP)


def _rounded_pair(v: Decimal, e: Decimal, quantum: int) -> tuple[str, str]:
    return _digits(_rounded(v, quantum)), _digits(_rounded(e, quantum, ROUND_UP))


def _real(v: Decimal, digits: int = LONE_DIGITS) -> str:
    if not v:
        return "0"
    power = _significant(v, MOST_DIGITS).adjusted()
    if not _in_reach(power):
        return _scientific(v, digits, strip=True)
    return _digits(_rounded(v, min(power - digits + 1, 0)), strip=True)


def _scientific(v: Decimal, digits: int, *, strip: bool = False) -> str:
    if not v:
        return "0"
    v = _significant(v, digits)
    power = v.adjusted()
    return f"{_digits(v.scaleb(-power), strip=strip)}e{power:+03d}"


def _in_reach(power: int) -> bool:
    """Say whether a number of this power of ten reads better without an exponent."""
    return -3 <= power < MOST_DIGITS


def _significant(v: Decimal, digits: int, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    return _rounded(v, v.adjusted() - digits + 1, rounding) if v else v


def _rounded(v: Decimal, quantum: int, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    return v.quantize(Decimal((0, (1,), quantum)), rounding=rounding)


def _last_digit(v: Decimal) -> int:
    """Give the power of ten of the last digit that is not zero."""
    exponent = v.normalize().as_tuple().exponent
    assert isinstance(exponent, int), f"{v} is finite by construction"
    return exponent


def _digits(v: Decimal, *, strip: bool = False) -> str:
    text = f"{v if v else abs(v):f}"
    return text.rstrip("0").rstrip(".") if strip and "." in text else text


def _text(v: Decimal) -> str:
    return f"{int(v)}" if v == v.to_integral_value() and v.adjusted() < 20 else _real(v)


def _count(v: Decimal) -> str:
    return f"{int(v):,}" if v == v.to_integral_value() and v.adjusted() < 15 else _real(v)


def _factor(v: Decimal) -> str:
    if not v or -2 <= v.adjusted() < 3:
        return _digits(_rounded(v, -2))
    return _real(v, 2 if v.adjusted() < 0 else LONE_DIGITS)


def _percent(v: Decimal) -> str:
    p = 100 * v
    if p == p.to_integral_value() and p.adjusted() < MOST_DIGITS:
        return f"{int(p)}%"
    if not -4 <= p.adjusted() < MOST_DIGITS:
        return f"{_scientific(p, 2)}%"
    # 99.97% is not 100%: two digits of the distance to the nearer end.
    end = min(abs(p), abs(100 - p)) if 0 < p < 100 else abs(p)
    return f"{_digits(_rounded(p, max(-4, min(-1, end.adjusted() - 1))))}%"


def _seconds(v: Decimal) -> str:
    if not 60 <= abs(v) < 10**9:
        return _measured(v, _UNITS["seconds"])
    sign, whole = ("-" if v < 0 else ""), int(_rounded(abs(v), 0))
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    return f"{sign}{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def _bytes(v: Decimal) -> str:
    return _measured(v, _UNITS["bytes"])


Units = Sequence[tuple[Decimal, str]]

_UNITS: Final[dict[Format, Units]] = {
    "seconds": [(Decimal(10) ** -p, u) for p, u in ((0, "s"), (3, "ms"), (6, "µs"), (9, "ns"))],
    "bytes": [(Decimal(10) ** p, u) for p, u in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB"))]
    + [(Decimal(1), "B")],
}


def _measured(v: Decimal, units: Units) -> str:
    size, unit = _unit(v, units)
    return f"{_real(v / size, 3)} {unit}"


def _unit(v: Decimal, units: Units) -> tuple[Decimal, str]:
    if not v:
        return next(u for u in units if u[0] == 1)
    size = abs(_significant(v, 3))
    return next((u for u in units if size >= u[0]), units[-1])


_LONE: Final[dict[Format, Callable[[Decimal], str]]] = {
    "text": _text,
    "count": _count,
    "real": _real,
    "relative": lambda v: _scientific(v, 2),
    "factor": _factor,
    "percent": _percent,
    "seconds": _seconds,
    "bytes": _bytes,
}
