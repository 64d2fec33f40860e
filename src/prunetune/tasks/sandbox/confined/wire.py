"""Values as plain data: the only thing that crosses between a program and its judge.

`pack` makes of a value what JSON can hold: None, booleans, numbers, text and lists stand for themselves, all else is a
dictionary of one entry, `{kind: content}`. `unpack` builds new values from that and from nothing else: it calls the
constructors named here on plain content, so no method of a program's own is ever called by who unpacks. Kinds that are
not plain data (an object that stays where it is) are left to the caller's `other`.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # typing takes 8 ms of a program's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Plain = Any  # None | bool | int | float | str | list[Plain] | dict[str, Plain]
EXACT = 1 << 53  # whole numbers up to here are the same in every reader of JSON
LIBRARY = {  # types of the standard library that are plain data too
    "Counter": "collections", "OrderedDict": "collections", "defaultdict": "collections", "deque": "collections",
    "Decimal": "decimal", "Fraction": "fractions",
    "date": "datetime", "time": "datetime", "datetime": "datetime", "timedelta": "datetime",
}  # fmt: skip
BUILTIN: tuple[type, ...] = (
    tuple, set, frozenset, dict, bytes, bytearray, complex, range, type(...),
    type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip


def pack(value: Any, other: Callable[[Any], Plain]) -> Plain:
    """A value as plain data. `other` is asked for what is of none of these types exactly."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -EXACT < value < EXACT else {"int": hex(value)}
    if kind is list:
        return [pack(v, other) for v in value]
    name = kind.__name__
    if kind in BUILTIN or (name in LIBRARY and kind is getattr(sys.modules.get(LIBRARY[name]), name, None)):
        return {name: _content(value, name, other)}
    return other(value)


def _content(value: Any, name: str, other: Callable[[Any], Plain]) -> Plain:
    if name in ("dict", "Counter", "OrderedDict", "defaultdict"):
        return [[pack(k, other), pack(v, other)] for k, v in value.items()]
    if name in ("bytes", "bytearray"):
        return value.decode("latin-1")
    if name == "complex":
        return [value.real, value.imag]
    if name == "range":
        return [pack(n, other) for n in (value.start, value.stop, value.step)]
    if name == "Fraction":
        return [pack(n, other) for n in (value.numerator, value.denominator)]
    if name == "timedelta":
        return [value.days, value.seconds, value.microseconds]
    if name in ("date", "time", "datetime"):
        return value.isoformat()
    if name in ("Decimal", "ellipsis"):
        return str(value)
    return [pack(v, other) for v in value]  # tuple, set, frozenset, deque, and the views of a dictionary


def unpack(data: Plain, other: Callable[[str, Plain], Any]) -> Any:
    """The value that was packed. `other` is asked for kinds that are not plain data: (kind, content).

    Raises:
        ValueError, TypeError, KeyError: this is not what `pack` makes.
    """
    if isinstance(data, list):
        return [unpack(d, other) for d in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind in ("tuple", "set", "frozenset", "deque"):
        make: Any = getattr(importlib.import_module("collections" if kind == "deque" else "builtins"), kind)
        return make([unpack(d, other) for d in content])
    if kind in ("dict", "Counter", "OrderedDict", "defaultdict"):
        return _mapping(kind, [(unpack(k, other), unpack(v, other)) for k, v in content])
    if kind == "dict_keys":
        return dict.fromkeys(unpack(d, other) for d in content).keys()
    if kind == "dict_values":
        return {i: unpack(d, other) for i, d in enumerate(content)}.values()
    if kind == "dict_items":
        return dict(unpack(d, other) for d in content).items()
    if kind == "int":
        return int(content, 16)
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray)(content, "latin-1")
    if kind == "ellipsis":
        return ...
    if kind == "complex":
        return complex(*content)
    if kind in LIBRARY or kind == "range":
        return _made(kind, unpack(content, other))
    return other(kind, content)


def _mapping(kind: str, pairs: list[tuple[Any, Any]]) -> Any:
    if kind == "dict":
        return dict(pairs)
    collections = importlib.import_module("collections")
    return collections.defaultdict(None, pairs) if kind == "defaultdict" else getattr(collections, kind)(dict(pairs))


def _made(kind: str, content: Any) -> Any:
    if kind == "range":
        return range(*content)
    make: Any = getattr(importlib.import_module(LIBRARY[kind]), kind)
    if kind in ("date", "time", "datetime"):
        return make.fromisoformat(content)
    return make(*content) if isinstance(content, list) else make(content)


def to_json(data: Plain) -> str:
    """Plain data as JSON on one line, in ASCII. By hand: the library's module takes 7 ms of a program's start."""
    if data is None or data is True or data is False:
        return {None: "null", True: "true", False: "false"}[data]
    if isinstance(data, str):
        return _quoted(data)
    if isinstance(data, list):
        return "[" + ",".join([to_json(d) for d in data]) + "]"
    if isinstance(data, dict):
        return "{" + ",".join([f"{_quoted(k)}:{to_json(v)}" for k, v in data.items()]) + "}"
    return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(repr(data), repr(data))


def _quoted(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join([_escaped(c) for c in text]) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if 32 <= code < 127 and character not in '"\\':
        return character
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
