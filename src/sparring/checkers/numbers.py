"""The last number of a text, as an exact fraction. Linear in the length of the text, and nothing is evaluated."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 100  # a longer number, or a larger power of ten, is no answer

_SPACE = r"(?:[ \u00a0\u202f]|\\,)"
_COMMA = r"(?:,(?:\\!)?|\{,\})"  # LaTeX writes 1{,}234 and 1,\!234 too
_SIGN = "[-\u2212]"
# Digits with separators between them: 1,234.5 and 1 234, but 1.2.3 and 3,4 too: `_plain` says which are one number.
_DIGITS = rf"(?:[0-9]++(?:(?:[.'\u2019]|{_COMMA})[0-9]++|{_SPACE}[0-9]{{3}}(?![0-9]))*+|(?<!\.)\.[0-9]++(?!\.[0-9]))"
_PART = rf"[^{{}}]{{1,{MAX_DIGITS}}}"  # of \frac
_NUMBER = re.compile(
    rf"""
    (?P<raised>\^\{{?)?+
    (?:(?<![\w%)\].])(?P<sign>{_SIGN})(?:\\?[$€£¥₹])?)?  # 5-3 and (1)-2 have no sign, -5 and -$5 have one
    (?<![A-Za-z_0-9])(?<![0-9][.,])                      # x2 and the tail of x2.5 are no numbers
    (?:
        \\[dt]?frac(?=[^0-9]{{,{MAX_DIGITS}}}[0-9])\{{(?P<top>{_PART})\}}\{{(?P<bottom>{_PART})\}}
      | (?P<digits>{_DIGITS})
        (?: [eE](?P<power>[-+\u2212]?[0-9]++)(?!\w)
          | (?P<divided>(?:{_SPACE}?/{_SPACE}?{_DIGITS})++)
          | {_SPACE}(?P<part>[0-9]++/[0-9]++)(?![0-9/.,])
        )?+
    )
    """,
    re.VERBOSE,
)
_GROUPED = re.compile(rf"[0-9]{{1,3}}(?:(?:{_COMMA}[0-9]{{3}})+|(?:['\u2019][0-9]{{3}})+|(?:{_SPACE}[0-9]{{3}})+)(\.[0-9]+)?")
_PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")


def last_number(text: str) -> Fraction | None:
    """The value of the last number of `text`. None: it has none, or the last one is not readable (over 100 digits, a date, x/0, 10^6)."""
    last = None
    for found in _NUMBER.finditer(text):
        before = text[max(0, found.start() - 1) : found.start()]
        if not (found["raised"] and before.isalpha()):  # the 2 of cm^2 is no number, as that of x2 is none
            last = found
    if last is None or last["raised"]:
        return None
    value = _value(last)
    if value is None or max(value.numerator, value.denominator) >= 10**MAX_DIGITS:  # 1e100: it could not be read back
        return None
    return -value if last["sign"] else value


def _value(found: re.Match[str]) -> Fraction | None:
    if found["top"]:
        return _ratio(_signed(found["top"]), _signed(found["bottom"]))
    digits = found["digits"]
    if found["divided"]:
        below = found["divided"].split("/")[1:]  # 12/05/2024 is no number
        return _ratio(_plain(digits), _plain(below[0].strip())) if len(below) == 1 else None
    if found["part"]:
        top, bottom = map(_plain, found["part"].split("/"))
        part, whole = _ratio(top, bottom), _plain(digits)
        if part is not None and part < 1 and whole is not None and whole.denominator == 1:
            return whole + part  # 1 1/2
        return part
    return _scaled(_plain(digits), found["power"])


def _plain(digits: str) -> Fraction | None:
    """The value of digits with separators. Commas that are not thousands separators separate numbers: 3,4 ends in 4."""
    if len(digits) > 2 * MAX_DIGITS:
        return None
    if not _GROUPED.fullmatch(digits):
        digits = re.split(f"{_COMMA}|['\u2019]|{_SPACE}", digits)[-1]
    if not (_GROUPED.fullmatch(digits) or _PLAIN.fullmatch(digits)):
        return None
    digits = re.sub(r"[^0-9.]", "", digits)
    return Fraction(digits) if len(digits.replace(".", "")) <= MAX_DIGITS else None


def _signed(text: str) -> Fraction | None:
    """Of a side of LaTeX's fraction."""
    digits = text.strip()
    value = _plain(re.sub(rf"^{_SIGN}\s*", "", digits))
    return -value if value is not None and re.match(_SIGN, digits) else value


def _ratio(top: Fraction | None, bottom: Fraction | None) -> Fraction | None:
    return top / bottom if top is not None and bottom else None


def _scaled(value: Fraction | None, power: str | None) -> Fraction | None:
    """`value` times ten to the `power`, read only between -100 and 100: 1e999999999 must cost nothing."""
    if value is None or power is None:
        return value
    sign, size = power[0] in "-\u2212", power.lstrip("+-\u2212").lstrip("0") or "0"
    if len(size) > 3 or int(size) > MAX_DIGITS:
        return None
    return value / 10 ** int(size) if sign else value * 10 ** int(size)
