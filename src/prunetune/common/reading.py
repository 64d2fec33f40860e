"""Files that others wrote, read with limits: text, JSON, JSON as a pydantic model.

    plan = read_model(path, PrunePlan, "plan", error=PlanError, fix="make it anew with `prunetune plan`")

Whatever a file holds, the outcome is a value or one message that names file, place and value. Nothing here takes more
than some twenty times the file's size in memory, or recurses deeper than Python allows.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from prunetune.common.notes import verify
from prunetune.errors import BadCheckpoint, MissingPath, PrunetuneError, shown

M = TypeVar("M", bound=BaseModel)

MOST_BYTES = 64 * 2**20
"""The largest JSON read whole: twice the plan of a model of 126 layers and 53,248 neurons that loses half of them."""
MOST_DIGITS = 40
"""Of a whole number: more than any count, id or hash."""

_LONE = re.compile("[\ud800-\udfff]")


def regular_file(path: Path, what: str, *, error: type[PrunetuneError] = BadCheckpoint, fix: str | None = None) -> int:
    """The size in bytes of a file that is there and can be read like one; else MissingPath, or `error`.

    A folder, a pipe or a device is none: reading them fails late, waits for ever, or never ends. A file of ours whose
    bytes are not what was written is told too (BadCheckpoint).
    """
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        told = ": a link to nothing" if path.is_symlink() else ""
        raise MissingPath(f"no such {what}{told}", value=str(path), fix=fix or "check the path") from None
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        raise error(f"this {what} cannot be read: {_reason(e)}", value=str(path), fix="check the path") from None
    if stat.S_ISDIR(info.st_mode):
        raise error(f"this {what} is a folder, not a file", value=str(path), fix="give the file itself")
    if not stat.S_ISREG(info.st_mode):
        raise error(f"this {what} is no regular file", value=str(path), fix="write it into a file first")
    verify(path)
    return info.st_size


def read_text(
    path: Path,
    what: str = "file",
    *,
    error: type[PrunetuneError] = BadCheckpoint,
    fix: str | None = None,
    most: int = MOST_BYTES,
    form: str = "UTF-8 text",
) -> str:
    """A whole UTF-8 file as text.

    Args:
        path: The file.
        what: What it is called in messages.
        error: Raised for a file that is there and cannot be read as UTF-8 text of at most `most` bytes.
        fix: What to do when it is not there.
        most: Bytes.
        form: What the text should be, for messages.
    """
    size = regular_file(path, what, error=error, fix=fix)
    if size > most:
        raise error(f"this {what} is too large: {size:,} bytes", value=str(path), valid=f"at most {most:,} bytes")
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise error(f"this {what} cannot be read: {_reason(e)}", value=str(path), fix="check its permissions") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise error(
            f"this {what} is not {form}: byte 0x{raw[e.start]:02x} at {e.start:,}, line {line}",
            value=str(path),
            fix=_packed(raw) or f"iconv -f ENCODING -t utf-8 {path.name}",
        ) from None


def parse_json(
    text: str,
    where: object,
    what: str = "file",
    *,
    error: type[PrunetuneError] = BadCheckpoint,
    fix: str | None = None,
    finite: bool = True,
) -> Any:
    """A value from strict JSON: no key twice, no NaN or infinity, no endless digits or nesting, no half characters.

    Args:
        text: The JSON.
        where: The file, or the file and line, for messages.
        what: What it is called in messages.
        error: Raised for anything that is none.
        fix: What to do about it.
        finite: Whether NaN and infinities are refused. Logs of training may hold them.
    """

    def refuse(told: str) -> NoReturn:
        raise error(f"this {what} is not valid JSON: {told}", value=str(where), fix=fix) from None

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            refuse(f"a whole number of {len(digits):,} digits")
        return int(digits)

    def real(digits: str) -> float:
        if not math.isfinite(value := float(digits)) and finite:
            refuse(f"{shown(digits)} is no finite number")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            refuse(f"the key {shown(twice)} is there twice")
        return found

    def constant(name: str) -> float:
        if finite:
            refuse(f"{name} is no finite number")
        return float(name)

    if not text.strip():
        refuse("it is empty")
    try:
        value = json.loads(text, parse_int=whole, parse_float=real, parse_constant=constant, object_pairs_hook=once)
    except json.JSONDecodeError as e:
        refuse(f"{e.msg} at line {e.lineno}, column {e.colno}")
    except RecursionError:
        refuse("it is nested too deeply")
    if re.search(r"\\u[dD][89a-fA-F]", text) and (half := _half_character(value)) is not None:
        refuse(f"half of a character (a lone surrogate) in {shown(half)}")
    return value


def read_json(
    path: Path,
    what: str = "file",
    *,
    error: type[PrunetuneError] = BadCheckpoint,
    fix: str = "make it anew",
    finite: bool = True,
) -> Any:
    """Parse a JSON file, see `parse_json`; MissingPath if it is not there."""
    text = read_text(path, what, error=error, form="JSON, which is UTF-8 text")
    return parse_json(text, path, what, error=error, fix=fix, finite=finite)


def read_json_lines(
    path: Path, what: str, *, error: type[PrunetuneError] = BadCheckpoint, fix: str | None = None, whole: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with the numbers of their lines, one line in memory at a time.

    Args:
        path: The file.
        what: What it is called in messages.
        error: Raised for a line that is no JSON object.
        fix: What to do about it.
        whole: Whether a last line without its end, which a kill cut short, is left out.
    """
    regular_file(path, what, error=error, fix=fix)
    with path.open("rb") as lines:
        for number, raw in enumerate(iter(lambda: lines.readline(MOST_BYTES), b""), start=1):
            where = f"{path}, line {number}"
            if whole and not raw.endswith(b"\n"):
                return
            if len(raw) == MOST_BYTES:
                raise error(f"this {what} has a line of {MOST_BYTES:,} bytes or more", value=where, fix=fix)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                told = f"byte 0x{raw[e.start]:02x} at {e.start:,} of the line"
                raise error(f"this {what} is not UTF-8 text: {told}", value=where, fix=_packed(raw) or fix) from None
            if not text.strip():
                continue
            value = parse_json(text, where, what, error=error, fix=fix)
            if not isinstance(value, dict):
                raise error(f"a line of this {what} is no object", value=f"{where}: {text[:80]}", fix=fix)
            yield number, value


def validated(
    model: type[M],
    value: object,
    where: object,
    what: str,
    *,
    error: type[PrunetuneError] = BadCheckpoint,
    fix: str | None = None,
) -> M:
    """A value as a model; `error` names file, field, value, and what the field may be.

    Args:
        model: What it must be.
        value: As parsed.
        where: The file, for messages.
        what: What it is called in messages.
        error: Raised if it is not.
        fix: What to do about it.
    """
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise invalid(e, where, what, error=error, fix=fix) from None


def invalid(
    e: ValidationError, where: object, what: str, *, error: type[PrunetuneError] = BadCheckpoint, fix: str | None = None
) -> PrunetuneError:
    """What pydantic found first, as one message; for recipes `recipe.explain` says more."""
    first = e.errors(include_url=False)[0]
    place = ".".join(str(p) for p in first["loc"])
    told = first["msg"].removeprefix("Value error, ")
    told = told[:1].lower() + told[1:] if told[:2].istitle() else told
    more = {} if first["type"] in ("missing", "value_error") else {"value": first["input"]}
    return error(f"{where}: this {what} is not valid: {f'{place}: ' if place else ''}{told}", fix=fix, **more)


def read_model(
    path: Path,
    model: type[M],
    what: str,
    *,
    error: type[PrunetuneError] = BadCheckpoint,
    fix: str = "make it anew",
    finite: bool = True,
) -> M:
    """A JSON file as a pydantic model: `read_json` and `validated`."""
    value = read_json(path, what, error=error, fix=fix, finite=finite)
    return validated(model, value, path, what, error=error, fix=fix)


def _reason(e: BaseException) -> str:
    return (e.strerror or str(e)).lower() if isinstance(e, OSError) else str(e)


def _packed(raw: bytes) -> str | None:
    """The advice for files that are not text at all."""
    heads = {b"\x1f\x8b": "gunzip", b"PK\x03\x04": "unzip", b"\x28\xb5\x2f\xfd": "unzstd", b"BZh": "bunzip2"}
    packed = next((tool for head, tool in heads.items() if raw.startswith(head)), None)
    if packed:
        return f"it is compressed: {packed} it first"
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    return "it is no text at all: check the path" if b"\0" in raw[:4096] and not utf16 else None


def _half_character(value: object) -> str | None:
    """The first text with a lone surrogate, which no file and no tokenizer can hold."""
    left: list[object] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if _LONE.search(one):
                return one
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, Iterable):
            left += one
    return None
