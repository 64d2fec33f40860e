"""Seeded, structure-aware damage to valid inputs, and the judge of what a reader makes of them.

    for seed in range(400):
        raw = damage(random.Random(f"plan {seed}"), valid, "json")
        judge(lambda: PrunePlan.read(file), folder)     # a value or a PrunetuneError; no hang, no gigabytes, no writes

A finding is reproduced by its reader's name and seed alone.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunetune.errors import PrunetuneError

SECONDS: float = 10
BYTES = 2 * 2**30

# ------------------------------------------------------------------------------------------------------------ damage

NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 4, 7, 8, 255, 1000, 10**6, 2**31, 2**32 + 1, 10**9, 2**63, -(2**63) - 1, 10**18, 10**39, 10**400,
    0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300, 1.7976931348623157e308, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
TEXTS = [
    "", " ", "0", "1", "-1", "01", "1.0", "1e5", "nan", "inf", "true", "null", "None", "[]", "{}", "demo", "llama", "auto",
    "../../etc/passwd", "/", "/dev/zero", "/dev/stdin", "~", "$HOME", "$UNSET_EVER", "a\0b", "\n", "\r\n", "\t", "é", "日本", "\U0001f600",
    "\ud800", "\udc00x", "\x1b[2J", "\u202e", "%s%d", "{}{0}", "<think>", "</think>", "####", "#### ", r"\boxed{", r"\boxed{1}", r"\frac{1}{2}",
    "1/0", "9" * 30, "9" * 5000, "x" * 20_000, "(" * 3000, "<answer>" * 2000, "__class__", "file.py:f", "lm-eval:", "reasoning-gym:x", "model.layers.999999999999.mlp",
]  # fmt: skip


def _odd(rng: random.Random) -> Any:
    """Any JSON value, most of them at some edge."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind == 7:
        return rng.choice([None, True, False])
    if kind == 8:
        return rng.choice([[], {}, [[]], [None], {"": None}, {"a": 1}, [1, "2", None], [0] * 3000, {"type": "x"}])
    value: Any = 0
    for _ in range(rng.choice([3, 30, 300])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*at, key))


def restructured(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one to three places dropped, doubled, renamed, swapped, retyped or made odd."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places or rng.random() < 0.02:
            return _odd(rng)
        *path, key = rng.choice(places)
        inside = value
        for step in path:
            inside = inside[step]
        old, act = inside[key], rng.randrange(8)
        if act == 0:
            del inside[key]
        elif act == 1 and isinstance(inside, list):
            inside.insert(key, old)
        elif act == 2 and isinstance(inside, dict):
            inside[rng.choice(TEXTS)] = inside.pop(key)
        elif act == 3:
            inside[key] = [old] if rng.random() < 0.5 else {"a": old}
        elif act == 4 and isinstance(old, (int, float)) and not isinstance(old, bool):
            inside[key] = rng.choice([str(old), -old, old + 1, old - 1, old * 10**9, old // 2, bool(old), [old]])
        elif act == 5 and isinstance(old, str):
            inside[key] = rng.choice([old + rng.choice(TEXTS), old[:-1], old.upper(), [old], old * 50])
        elif act == 6 and isinstance(old, list):
            inside[key] = rng.choice([old[::-1], old * 2, old[:1], old * 300, dict(enumerate(old)), [*old, _odd(rng)]])
        else:
            inside[key] = _odd(rng)
    return value


def _dumped(rng: random.Random, value: Any) -> bytes:
    """JSON text; of ten one has a key twice, and NaN and half characters are written as Python does."""
    sys.set_int_max_str_digits(0)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2]))
    if rng.random() < 0.1 and text.startswith("{") and '"' in text:
        text = "{" + text[1:].replace("{", '{"depth": 4, "depth": 5, ', rng.randrange(2))
    sys.set_int_max_str_digits(4300)
    return text.encode("utf-8", "surrogatepass")


def flipped(rng: random.Random, raw: bytes) -> bytes:
    """Bytes flipped, cut, doubled, put in or replaced whole."""
    data, act = bytearray(raw), rng.randrange(9)
    at = rng.randrange(len(data) + 1)
    if act < 3 and data:
        for _ in range(rng.choice([1, 1, 4, 40])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif act == 3:
        del data[at:]
    elif act == 4:
        data[at:at] = rng.randbytes(rng.choice([1, 8, 200]))
    elif act == 5:
        data[at:at] = rng.choice(
            [
                b"[",
                b"{",
                b'"',
                b"\\",
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\n",
                b",",
                b"0",
                b"NaN",
                b"&a ",
                b"*a",
                b"!!x ",
            ]
        )
    elif act == 6:
        end = min(len(data), at + rng.randrange(1, 60))
        data[at:at] = data[at:end] * rng.choice([1, 50])
    elif act == 7:
        del data[at : at + rng.randrange(1, 60)]
    else:
        return rng.choice(WHOLE)
    return bytes(data)


WHOLE = [
    b"", b"\n", b" ", b"\0" * 64, b"\x7fELF" + bytes(200), b"\x1f\x8b\x08\x00rows", b"PK\x03\x04x", "{}\n".encode("utf-16"), "é".encode("latin-1"),
    b"\xef\xbb\xbf{}", b"[" * 30_000, b'{"a":' * 20_000, b"{}" * 3, b"null", b"[]", b"{}", b"0", b'"', b"9" * 6000, b"- " * 3000, b"a: &a [*a]",
    b"---\n---\n", b"{{{{", b"\xff" * 4000, b"x" * 100_000, b"\n" * 100_000, b"[1," * 20_000,
]  # fmt: skip


def _yaml_snippet(rng: random.Random, raw: bytes) -> bytes:
    bomb = "z: &L0 [" + ",".join(["z"] * 10) + "]\n"
    bomb += "".join(f"z{i}: &L{i} [{','.join([f'*L{i - 1}'] * 9)}]\n" for i in range(1, rng.choice([4, 9, 40])))
    merge = "z0: &M0 {k: 1}\n" + "".join(f"z{i}: &M{i} {{<<: [{','.join([f'*M{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
    more = [
        bomb, merge, "seed: 2020-01-01\n", "seed: 010\n", "seed: 1_0\n", "1: 2\n", "yes: no\n", "? [a]\n: b\n", "seed: !!python/name:os.system\n",
        "seed: !!binary aGk=\n", "\tseed: 1\n", "---\na: 1\n", "seed: .nan\n", "seed: 1e999\n", "<<: {seed: 1}\n", "<<: 3\n", "seed: 1\nseed: 2\n",
        f"seed: {'9' * 5000}\n", "seed: {a: " * 60, "%YAML 9.9\n---\n", "seed: |\n  text\n", "extends: self.yaml\n", "extends: [a]\n", 'model: "\\ud800"\n',
    ]  # fmt: skip
    snippet = rng.choice(more).encode()
    return raw.rstrip() + b"\n" + snippet if rng.random() < 0.7 else snippet + raw


def _tensor_file(rng: random.Random, raw: bytes) -> bytes:
    """A safetensors file with another header, another note, other numbers, or bytes flipped."""
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + size]), bytearray(raw[8 + size :])
    act = rng.randrange(5)
    if act == 0:
        header = restructured(rng, header)
    elif act == 1 and "__metadata__" in header:
        note = restructured(rng, json.loads(header["__metadata__"]["prunetune"]))
        header["__metadata__"]["prunetune"] = _dumped(rng, note).decode("utf-8", "replace")
    elif act == 2 and len(data) >= 4:
        at = rng.randrange(len(data) // 4) * 4
        data[at : at + 4] = struct.pack("<f", rng.choice([float("nan"), float("inf"), 3e38, 0.0, 1e-45]))
    elif act == 3:
        claimed = rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", claimed) + raw[8:]
    else:
        return flipped(rng, raw)
    text = _dumped(rng, header)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def damage(rng: random.Random, raw: bytes, form: str) -> bytes:
    """Another input of the same kind.

    Args:
        rng: Seeded; all of the choice.
        raw: A valid input.
        form: json, jsonl, yaml, safetensors or bytes.
    """
    if form == "safetensors":
        return _tensor_file(rng, raw)
    if form == "bytes" or rng.random() < 0.3:
        return flipped(rng, raw)
    if form == "yaml":
        if rng.random() < 0.3:
            return _yaml_snippet(rng, raw)
        return _dumped(rng, restructured(rng, json.loads(raw)))
    if form == "jsonl":
        lines = raw.splitlines()
        for _ in range(rng.choice([1, 1, 2, len(lines)])):
            at = rng.randrange(len(lines))
            lines[at] = _dumped(rng, restructured(rng, json.loads(raw.splitlines()[at]))).replace(b"\n", b" ")
        return b"\n".join(lines) + b"\n"
    return _dumped(rng, restructured(rng, json.loads(raw)))


# ------------------------------------------------------------------------------------------------------------- judge


class TooLong(BaseException):
    """Not an Exception: no reader may swallow it."""


_writing: list[str] = []
_watching = False
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "os.system",
    "subprocess.Popen",
)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(args[0], (str, bytes)):
        flags = args[2] if isinstance(args[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            _writing.append(f"open {args[0]!r}")
    elif event == "subprocess.Popen" and args[0] == sys.executable:
        return  # a judge of mathematics answers from a process of its own
    elif event in CHANGES:
        _writing.append(f"{event} {args[:1]!r}")


sys.addaudithook(_hook)


@contextmanager
def bounded() -> Iterator[list[str]]:
    """Ten seconds and two more gigabytes; yields the list of what was written meanwhile."""
    global _watching  # noqa: PLW0603  # an audit hook cannot be removed
    page = os.sysconf("SC_PAGE_SIZE")
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * page
    before = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {s: signal.signal(s, _late) for s in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of its own CPU: the machine may be busy
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)  # and no waiting for a pipe
    _writing.clear()
    _watching = True
    try:
        yield _writing
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        for s, handler in handlers.items():
            signal.signal(s, handler)


def _late(*args: object) -> None:
    raise TooLong


def judge(read: Callable[[], object]) -> str | None:
    """What is wrong with how a reader takes an input; None: it gave a value or one readable message."""
    try:
        with bounded() as written:
            try:
                read()
            except PrunetuneError as e:
                text = str(e)
                if len(text) > 8_000:
                    return f"a message of {len(text)} characters"
                if not text.isprintable() and any(not (c.isprintable() or c == "\n") for c in text):
                    return f"a message with control characters: {text!r:.200}"
    except TooLong:
        return f"more than {SECONDS} s"
    except MemoryError:
        return "more than 2 GB"
    except BaseException as e:
        return f"{type(e).__name__}: {e!s:.200}"
    return f"it wrote: {written[:3]}" if written else None
