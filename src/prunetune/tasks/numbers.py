r"""Numbers in text, read whole: `−1 1/2`, `\frac{3}{4}`, `1 000`, `$1,250.50`, `1.5 \times 10^{3}`, `½`, `2 million`.

    last_number("5 + 7 = 12 cm^2").value      # 12: the digit of a unit is no number
    single_number("The answer is 1/2.")       # Fraction(1, 2)
    single_number("3:30")                     # NotOneNumber: several numbers, a time, a range, a power, an equation …

One reader for references and for answers; exact (a fraction), in time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


class NotOneNumber(ValueError):
    """A text that is not one number; the message says what it is, in a few words."""


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        text: As it stands there, its sign and currency included (dashes and spaces in one form).
        value: None if it is part of something that is no single number: a time, a range, a power, a root, …
        start: Where it begins in the normalised text.
        end: One past its last character.
        unscaled: The value without a word such as `million` behind it, where there is one: a question may ask for
            millions.
    """

    text: str
    value: Fraction | None
    start: int
    end: int
    unscaled: Fraction | None = None

    def equals(self, wanted: Fraction) -> bool:
        """Whether it is this number, with or without its `million`."""
        return self.value is not None and wanted in (self.value, self.unscaled)


LONGEST = 400
"""Characters: nothing longer is read as a number."""
REPEATED = 8
"""Times that a text may say its one number."""
THIN = "\u202f"  # the one form of a thin, narrow, no-break or figure space
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# ------------------------------------------------------------------------------------------------------- one spelling

_SAME = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2009\u200a\u2007\u2008\u2005\u2006\u00a0", THIN),
    **dict.fromkeys("\u2044\u2215\uff0f", "/"),
    **dict.fromkeys("\u22c5\u2219", "·"),
    "\u2019": "'", "\u066c": ",", "\uff0c": ",", "\u066b": ".", "\uff0e": ".", "\uff0b": "+", "\uff05": "%",
    "\u2236": ":", "\u2715": "×", "\u2213": "±",
    **{c: " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"},
}  # fmt: skip
_TABLE = str.maketrans(_SAME)
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_LATEX = re.compile(
    r"\^?\{?\\circ(?![A-Za-z])\}?|\\(?:(?:times|cdot|pm|mp|left|right|degree)(?![A-Za-z])|[\\,;:! %$])|\{,\}|~"
)
_LATEX_MEANS = {
    "\\times": "×", "\\cdot": "·", "\\pm": "±", "\\mp": "±", "\\left": "", "\\right": "", "\\degree": "°",
    "\\\\": "\n", "\\,": THIN, "\\;": THIN, "\\:": THIN, "\\ ": THIN, "\\!": "", "\\%": "%", "\\$": "$",
    "{,}": ",", "~": THIN,
}  # fmt: skip
_ARGUMENT = r"\s{0,2}(?:\{\s{0,3}([-+]?\d[\d,.]{0,40})\s{0,3}\}|(\d))"
_FRAC = re.compile(r"(\d?)\s{0,2}\\[dtc]?frac" + _ARGUMENT + _ARGUMENT + r"(\d?)")


def normalise(text: str) -> str:
    """One spelling of digits, dashes, spaces and fractions, of Unicode and LaTeX alike."""
    text = text.translate(_TABLE)
    if not text.isascii():
        text = _FOREIGN_DIGIT.sub(lambda m: str(unicodedata.decimal(m[0])), text)
    if "\\" in text or "{,}" in text or "~" in text:
        text = _LATEX.sub(lambda m: _LATEX_MEANS.get(m[0], "°"), text)
        text = _FRAC.sub(_slashed, text)
    return text


def _slashed(found: re.Match[str]) -> str:
    before, above, above1, below, below1, after = found.groups()
    top, bottom = above or above1, below or below1
    if bottom[0] in "-+":
        top = f"-{top}" if bottom[0] == "-" != top[0] else top.lstrip("-") if bottom[0] == "-" else top
        bottom = bottom[1:]
    return (before and f"{before} ") + f"{top}/{bottom}" + (after and f" {after}")


# ------------------------------------------------------------------------------------------------------------ numbers

_GROUPS = r"[1-9]\d{0,2}([ ,_'\u202f])\d{3}(?:\%d\d{3}){0,40}(?!\d)|\d{1,2}(?:,\d\d){1,9},\d{3}(?!\d)"
_MIXED = re.compile(r"(\d{1,6})[ \u202f]{1,2}(\d{1,3})[ \u202f]?/[ \u202f]?(\d{1,3})(?!\d)")
_POWER = (
    r"10[ \u202f]?(?:(?:\^|\*\*)[ \u202f]?[({]?[ \u202f]?([-+]?\d{1,3})(?!\d)[ \u202f]?[)}]?|([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
)
_BARE_POWER = re.compile(_POWER)
_TIMES_POWER = re.compile(r"[ \u202f]?[×·*xX][ \u202f]?" + _POWER)
_EXPONENT = re.compile(r"[eE]([-+]?\d{1,3})(?!\w)")
_PLAIN = re.compile("(?:" + _GROUPS % 1 + r"|\d+)(?:\.\d*)?|\.\d+")
_BELOW = re.compile(r"[ \u202f]?/[ \u202f]?(\d{1,3}(?:,\d{3}){1,9}(?![\d,])|\d{1,40}(?:\.\d{1,40})?)(?!\d)")
_SCALE = re.compile(r"[ \u202f](hundred|thousand|million|billion|trillion)s?(?![A-Za-z])", re.IGNORECASE)
_START = re.compile(r"\.?\d")
_RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_UNIT_DIGIT = re.compile(r"(?<![A-Za-z])(?:[munµckd]?m|in|ft|yd|mi|s|sec)\^?\{?$", re.IGNORECASE)
_MINUS_WORD = re.compile(r"(?:(?:^|\bis |[=:]\s?)minus|\bnegative)\s$", re.IGNORECASE)
_ROOT_BEFORE = re.compile(
    r"(?:√|±|\\(?:[dtc]?frac|sqrt|binom|overline|bar|log|ln)(?:\[\d\])?|(?<![A-Za-z])(?:sqrt|log|ln)|\}\{)[ ({]{0,2}$"
)
_ROOT_BEHIND = re.compile(r"[ \u202f]?[×·*]?[ \u202f]?(?:√|π|∞|\\(?:sqrt|pi|d?frac|infty)|sqrt\()")
_TIED_LEFT = re.compile(r"\d(?:\.?\(|\*\*|[:/_.,'^]|[\^_]\{)$|(?<![\d.])0[xXbBoO]$")
_TIED_RIGHT = re.compile(r"[:/.,'_-]\d|\^|\*\*\d|_\{\d|[eE][-+]?\d")
_BASE = re.compile(r"0[xXbBoO][0-9A-Fa-f]")
_CURRENCY = "$€£¥₹₩₽₪฿¢"


def numbers(text: str) -> Iterator[Number]:
    """Every number of a normalised text, from left to right; the digit of an index or a unit (x_1, cm^2) is none."""
    at = 0
    while found := _START.search(text, at):
        start = found.start()
        if found[0][0] == "." and start and text[start - 1].isalnum():
            start += 1
        plain, end = _value(text, start)
        value, end = _scaled(text, plain, end)
        at = end
        if _is_index(text, start):
            continue
        begin, negative, glued = _sign(text, start)
        if glued or value is None or _is_part(text, start, end):
            yield Number(text[begin:end], None, begin, end)
        else:
            sign = -1 if negative else 1
            yield Number(text[begin:end], sign * value, begin, end, sign * plain if plain and plain != value else None)


def _value(text: str, start: int) -> tuple[Fraction | None, int]:
    """The unsigned number that begins here, and where it ends; None where it is too long or divided by zero."""
    if (mixed := _MIXED.match(text, start)) and int(mixed[2]) < int(mixed[3]):
        return int(mixed[1]) + Fraction(int(mixed[2]), int(mixed[3])), mixed.end()
    if power := _BARE_POWER.match(text, start):
        return _ten_to(power), power.end()
    plain = _PLAIN.match(text, start)
    if plain is None:  # never: a digit begins here
        return None, start + 1
    end = plain.end()
    if end - start > LONGEST:
        return None, end
    value = _decimal(plain[0])
    if power := _EXPONENT.match(text, end) or _TIMES_POWER.match(text, end):
        ten = Fraction(10) ** int(power[1]) if power.re is _EXPONENT else _ten_to(power)
        return value * ten, power.end()
    if below := _BELOW.match(text, end):
        end, divisor = below.end(), _decimal(below[1])
        if divisor == 0:
            return None, end
        value /= divisor
    return value, end


def _scaled(text: str, value: Fraction | None, end: int) -> tuple[Fraction | None, int]:
    for _ in range(3):
        if value is not None and (scale := _SCALE.match(text, end)):
            value, end = value * SCALES[scale[1].lower()], scale.end()
    return value, end


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[ ,_'\u202f]", "", text).rstrip(".") or "0")


def _ten_to(power: re.Match[str]) -> Fraction:
    return Fraction(10) ** int(power[1] or power[2].translate(_RAISED))


def _is_index(text: str, start: int) -> bool:
    """A digit that belongs to a unit or a name: cm^2, x_1, m2."""
    before = text[max(0, start - 8) : start]
    raised = re.search(r"([A-Za-z)}\]])[\^_]\{?$", before)
    return bool(raised) or (text[start : start + 1] in "23" and bool(_UNIT_DIGIT.search(before)))


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether a number is part of something that is no single number: 3:30, 10-15, 1.2.3, 2^10, 5√2, 0x1F."""
    left, right = text[max(0, start - 12) : start], text[end : end + 12]
    if _TIED_LEFT.search(left) or _ROOT_BEFORE.search(left):
        return True
    return bool(_TIED_RIGHT.match(right) or _ROOT_BEHIND.match(right) or _BASE.match(text, start))


def _sign(text: str, start: int) -> tuple[int, bool, bool]:
    """Where the number begins with sign and currency, whether it is negative, and whether a dash ties it to another."""
    begin = start
    while begin and start - begin < 2 and text[begin - 1] in _CURRENCY:
        begin -= 1
    at = begin - 1
    spaced = at >= 0 and text[at] in f" {THIN}"
    at -= spaced
    if at < 0 or text[at] not in "+-":
        return begin, bool(_MINUS_WORD.search(text[max(0, start - 16) : begin])), False
    if at >= 1 and text[at - 1] in _CURRENCY and not spaced and (at < 2 or not text[at - 2].isalnum()):
        return at - (at >= 1), text[at] == "-", False  # $-5
    before = text[max(0, at - 3) : at]
    last = before[-1:]
    if not spaced:
        if last.isdigit():
            return begin, False, True
        signed = not (last.isalnum() or (last and last in ")]}%-+"))
    else:
        kept = before.rstrip(" ")
        signed = (not kept and at <= 3) or kept[-1:] in tuple("=(:[{≈")
    return (at, text[at] == "-", False) if signed else (begin, False, False)


def last_number(text: str) -> Number | None:
    """The last number of a normalised text."""
    last = max(text.rfind(digit) for digit in "0123456789")
    near = list(numbers(text[max(0, last - 3 * LONGEST) :]))
    return near[-1] if near else None


# ------------------------------------------------------------------------------------------------- one number, or not

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_PLAIN_COMMANDS = frozenset({
    "text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit", "rm", "bf", "mbox", "boxed", "fbox", "quad",
    "qquad", "displaystyle", "big", "bigl", "bigr", "space", "hspace", "vspace", "approx", "therefore",
})  # fmt: skip
_WORDS = re.compile(
    r"(?<![A-Za-z])(?:or|half|halves|thirds?|fourths?|fifths?|sixths?|eighths?|tenths?|hundredths?|root|sqrt|factorial|"
    r"log|twice|between|hundreds?|thousands?|millions?|billions?|trillions?|dozens? of)(?![A-Za-z])",
    re.IGNORECASE,
)
_MATHS = re.compile(r"[+×·÷±√π∞θ<>≤≥≠^²³⁴⁵⁶⁷⁸⁹⁰!]")
_UNIT_POWER = re.compile(r"[A-Za-z}]\^?\{?[0-9²³]\}?|[A-Za-z]\^\{?-?[0-9]\}?")
_UNKNOWN_BEHIND = re.compile(
    r"[ \u202f]?[-*/]?[ \u202f]?[abijknpqrtvwxyz](?![A-Za-z])|[kKMB](?![A-Za-z])|bn|mn|[.]{2}|…|!| (?:squared|cubed)"
)
_UNKNOWN_BEFORE = re.compile(r"(?:[-/]|(?<!\*)\*|(?<![A-Za-z])[a-z][ \u202f]?[*/])[ \u202f]?$")


def single_number(text: str) -> Fraction:
    """A text that is one number, with a unit, a currency, a percent sign or words around it.

    Raises:
        NotOneNumber: no number, several, or one that is part of an expression.
    """
    whole = normalise(text).strip()
    found: list[Number] = []
    for number in numbers(whole):
        found.append(number)
        if number.value is None or number.value != found[0].value or len(found) > REPEATED:
            raise NotOneNumber("is no single number")
    if not found or found[0].value is None:
        raise NotOneNumber("holds no number")
    for n in found:
        if _UNKNOWN_BEHIND.match(whole, n.end) or _UNKNOWN_BEFORE.search(whole[max(0, n.start - 4) : n.start]):
            raise NotOneNumber("is an expression, no single number")
    between = zip([0, *(n.end for n in found)], [*(n.start for n in found), len(whole)], strict=True)
    rest = _UNIT_POWER.sub(" ", " ".join(whole[a:b] for a, b in between))
    if _MATHS.search(rest) or _WORDS.search(rest) or set(_COMMAND.findall(rest)) - _PLAIN_COMMANDS:
        raise NotOneNumber("is an expression, no single number")
    return found[0].value
