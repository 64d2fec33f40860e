"""The judge's side: run the tests of one task against a program in another process, in another jail.

The tests run here, as ordinary Python. A name that only the program can have defined becomes a `Remote`: to call it is
to send its arguments to the program, as plain data, and to get plain data back, from which new values are built here.
So what a result is compared with stays here, and no method of the program's own takes part in a comparison.

    assert area(3) == 9          the program is told: call `area` with 3. It is not told: 9

A server: it reads a job a line, forks a child that judges it, and forgets it with that child.

    judge -> caller     ">" + message for the program       "=" + {"right": bool, "reason": text}
    caller -> judge     the job; then for each ">" the program's answer, "+" + JSON, or "-": it is gone
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .wire import pack, unpack  # a package of its own, wherever it is put

if TYPE_CHECKING:
    from .wire import Plain

CPU_SECONDS = 10.0  # for one program's tests, its own work not counted


class ProgramGone(BaseException):
    """The program ended, or was ended, before it answered."""


class Unjudgeable(Exception):
    """A test that only the program's own word could decide."""


def main() -> None:
    """Serve until the caller closes our input."""
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a test prints must not look like a message
    lines = read_lines()
    os.write(out, b"{}\n")
    for line in lines:
        if line.startswith(b"-"):
            continue  # it came after the last question of the job before
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF's default action ends the process
            said = verdict(json.loads(line), Link(lines, out))
            os.write(out, b"=" + json.dumps(said).encode() + b"\n")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            os.write(out, b'={"right": false, "reason": "its tests could not be judged within the limits"}\n')


def read_lines() -> Iterator[bytes]:
    """Lines of the input, whole, until its end."""
    held = [b""]
    while part := os.read(0, 1 << 16):
        *whole, rest = part.split(b"\n")
        for line in whole:
            yield b"".join([*held, line])
            held.clear()
        held.append(rest)


def verdict(job: dict[str, Any], link: Link) -> dict[str, Any]:
    """Whether every test of a job (`setup`, `tests`) passes, and why not."""
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    try:
        for text in [job["setup"], *job["tests"]]:
            for statement in ast.parse(text).body:
                tree = ast.Module([statement], [])
                prepare(tree, space, link)
                exec(compile(tree, "<tests>", "exec"), space)  # noqa: S102  # the tests, in a jail of their own
    except ProgramGone:
        return {"right": False, "reason": "gone"}
    except BaseException as e:
        text = str(e).strip()
        return {"right": False, "reason": f"{type(e).__name__}: {text}"[:200] if text else type(e).__name__}
    return {"right": True, "reason": ""}


# ---------------------------------------------------------------------------------------------- which names are whose


def prepare(tree: ast.Module, space: dict[str, Any], link: Link) -> None:
    """Give every name that a statement of the tests reads its meaning, by the text of the test alone.

    Bound by the tests so far; else a builtin; else a module of the standard library, where it has all that is asked of
    it; else the program's. An assertion that mentions nothing but builtins tests the first that it calls, which the
    program must have defined (`assert sum(10, 15) == 6`).
    """
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    bound = {n.id for n in nodes if not isinstance(n.ctx, ast.Load)} | set(_bound(tree))
    link.theirs -= bound
    for name in link.shadowing:
        space.pop(name, None)
    link.shadowing = []
    theirs = []
    for name in dict.fromkeys(n.id for n in nodes if n.id not in bound):
        if name in link.theirs:
            theirs.append(name)
        elif name not in space and not hasattr(builtins, name):
            module = _library(tree, name)
            if module is None:
                theirs.append(name)
            else:
                space[name] = module
    if isinstance(tree.body[0], ast.Assert) and all(hasattr(builtins, n.id) for n in nodes):
        link.shadowing = [n for n in _called_builtins(tree)[:1] if n not in space]
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    for name in [*theirs, *link.shadowing]:
        remote = Remote(link, {"global": name})
        space[name] = remote if name in called else link.ask("value", remote)
    link.theirs.update(theirs)


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (a.asname or a.name.partition(".")[0] for a in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def _library(tree: ast.Module, name: str) -> ModuleType | None:
    """The module of the standard library that a name stands for: all its uses are attributes which that module has."""
    if name not in sys.stdlib_module_names:
        return None
    asked = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == name]
    uses = sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(tree))
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    return module if len(asked) == uses and all(hasattr(module, a) for a in asked) else None


def _called_builtins(tree: ast.Module) -> list[str]:
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return [f.id for f in sorted(calls, key=lambda f: (f.lineno, f.col_offset)) if hasattr(builtins, f.id)]


# --------------------------------------------------------------------------------------------- what the program answers


class Link:
    """The way to the program: one question at a time."""

    def __init__(self, lines: Iterator[bytes], out: int) -> None:
        """`lines`: from the caller. `out`: to it."""
        self.lines, self.out = lines, out
        self.theirs: set[str] = set()  # names in the tests' space that are the program's
        self.shadowing: list[str] = []  # builtins that are the program's in one assertion
        self.given: list[Any] = []  # functions of the tests that the program holds

    def ask(self, do: str, *arguments: Any, **named: Any) -> Any:
        """Let the program do something: the value, or a builtin exception of the kind that it raised."""
        packed = [pack(a, self.hold) for a in arguments]
        reply = self._exchange(
            {"do": do, "arguments": packed, "named": {k: pack(v, self.hold) for k, v in named.items()}}
        )
        while "callback" in reply:
            reply = self._exchange(self._called(reply))
        if "raised" in reply:
            raise _builtin_exception(reply["raised"])(str(reply["text"]))
        for key, content in reply.get("changed", ()):
            _change(named[key] if isinstance(key, str) else arguments[key], unpack(content, self.other))
        return unpack(reply["value"], self.other)

    def hold(self, value: Any) -> Plain:
        """What is not plain data in a message to the program."""
        if isinstance(value, Remote):
            return value._prunetune_wire
        if not callable(value):
            raise Unjudgeable(f"a {type(value).__name__} of the tests cannot be given to the program (see `given`)")
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if module in sys.stdlib_module_names and getattr(sys.modules.get(str(module)), name, None) is value:
            return {"library": [module, name]}
        self.given.append(value)
        return {"own": len(self.given) - 1}

    def other(self, kind: str, content: Plain) -> Any:
        """What is not plain data in a message from the program."""
        if kind == "own":
            return self.given[content]
        if kind != "object" or not isinstance(content[0], int):
            raise ValueError("the program's answer is no plain data")
        return Remote(self, {"object": [content[0], str(content[1])]})

    def _exchange(self, message: dict[str, Plain]) -> dict[str, Any]:
        os.write(self.out, b">" + repr(message).encode("utf-8", "surrogatepass") + b"\n")
        line = next(self.lines, b"-")
        if not line.startswith(b"+"):
            raise ProgramGone
        reply = json.loads(line[1:])
        if not isinstance(reply, dict):
            raise ValueError("the program's answer is no message")
        return reply

    def _called(self, message: dict[str, Any]) -> dict[str, Plain]:
        """The program calls a function that it was given."""
        try:
            arguments = [unpack(a, self.other) for a in message["arguments"]]
            named = {k: unpack(a, self.other) for k, a in message["named"].items()}
            return {"value": pack(self.given[message["callback"]](*arguments, **named), self.hold)}
        except Exception as e:
            return {"raised": type(e).__name__, "text": str(e)}


def _builtin_exception(names: list[str]) -> type[Exception]:
    for name in names:
        found = getattr(builtins, str(name), None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    return RuntimeError


def _change(held: Any, content: Any) -> None:
    """Bring an argument to the state that a call left it in."""
    if type(held) is not type(content):
        raise ValueError("the program's answer is no change of its argument")
    if isinstance(held, (list, bytearray)):
        held[:] = content
    elif isinstance(held, (dict, set)):
        held.clear()
        held.update(content)


class Remote:
    """An object of the program's, which stays there. Compared by its plain content, or not at all."""

    __slots__ = ("_prunetune_link", "_prunetune_wire")

    def __init__(self, link: Link, wire: Plain) -> None:
        object.__setattr__(self, "_prunetune_link", link)
        object.__setattr__(self, "_prunetune_wire", wire)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it, where it is."""
        return self._prunetune_link.ask("call", self, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)
        return self._prunetune_link.ask("getattr", self, name)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._prunetune_link.ask("iter", self)
        while True:
            try:
                item = self._prunetune_link.ask("next", iterator)
            except StopIteration:
                return
            yield item

    def __contains__(self, item: Any) -> bool:
        return any(item == own for own in self)

    def __bool__(self) -> bool:
        return self._prunetune_link.ask("bool", self) is True

    def __hash__(self) -> int:
        return hash(repr(self._prunetune_wire))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, Remote) and self._prunetune_link.ask("isinstance", instance, self) is True


def _forwarded(do: str, reflected: bool = False) -> Any:
    def method(self: Remote, *arguments: Any) -> Any:
        return self._prunetune_link.ask(do, *((*arguments, self) if reflected else (self, *arguments)))

    return method


def _compared(do: str) -> Any:
    import operator

    def method(self: Remote, other: Any) -> Any:
        mine = self._prunetune_link.ask("plain", self)
        if mine:
            return getattr(operator, do)(mine[0], other)
        if not isinstance(other, Remote) and do in ("eq", "ne"):
            return do == "ne"  # an object is not equal to plain data, whatever its own `__eq__` says
        raise Unjudgeable("this test compares objects of the program's own: only plain data can be judged")

    return method


for _name in ("len", "str", "repr", "int", "float", "index", "abs", "round", "neg", "pos", "invert", "next", "format",
              "getitem", "setitem", "delitem", "setattr", "delattr"):  # fmt: skip
    setattr(Remote, f"__{_name}__", _forwarded(_name))
for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    _operation = {"and": "and_", "or": "or_"}.get(_name, _name)
    setattr(Remote, f"__{_name}__", _forwarded(_operation))
    setattr(Remote, f"__r{_name}__", _forwarded(_operation, reflected=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _compared(_name))
