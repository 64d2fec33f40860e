"""The program's side: run its source, then do what the judge asks, with plain data over one channel.

Nothing here is a secret and nothing here is believed: the program shares this process and may change all of it. What it
can reach by that is to send other plain data than it computed. What the data are compared with never comes here.
"""

from __future__ import annotations

import builtins
import os
import sys
from types import ModuleType

from .wire import pack, to_json, unpack  # a package of its own, wherever it is put

TYPE_CHECKING = False  # typing takes 8 ms of a program's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .wire import Plain

CHANGEABLE = (list, dict, set, bytearray)  # arguments that a call may change in place
NUMBERS = (("Integral", "int"), ("Real", "float"), ("Complex", "complex"))


def main(channel: int, path: str) -> None:
    """Run the program at `path`, say so, and serve the judge until it ends the talk or the channel is closed."""
    with open(path, encoding="utf-8", errors="surrogatepass") as f:
        source = f.read()
    module = ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = module
    sys.argv = [path]
    os.set_inheritable(channel, False)
    try:
        exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102  # this is what the jail is for
    except Exception as e:
        flush()
        sys.excepthook(type(e), e, e.__traceback__ and e.__traceback__.tb_next)
        sys.exit(1)
    flush()
    talk = Talk(channel, module.__dict__)
    talk.send({"loaded": True})
    talk.serve()


def flush() -> None:
    """Let what was printed be seen before what comes next."""
    if sys.stdout is not None:
        sys.stdout.flush()


class Talk:
    """Requests of the judge, answered one after the other."""

    def __init__(self, channel: int, names: dict[str, Any]) -> None:
        """`names`: what the program has defined."""
        self.channel, self.names = channel, names
        self.held: list[Any] = []  # objects that stay here; the judge names them by their place
        self.places: dict[int, int] = {}
        self.read = b""

    def send(self, message: dict[str, Plain]) -> None:
        """Send one line."""
        line = to_json(message).encode() + b"\n"
        while line:
            line = line[os.write(self.channel, line) :]

    def receive(self) -> dict[str, Plain] | None:
        """The judge's next message. None: it has ended the talk."""
        while b"\n" not in self.read:
            part = os.read(self.channel, 1 << 16)
            if not part:
                return None
            self.read += part
        line, _, self.read = self.read.partition(b"\n")
        text = line.decode("utf-8", "surrogatepass")
        message: dict[str, Plain] = eval(text, {"__builtins__": {}, "inf": float("inf"), "nan": float("nan")})  # noqa: S307
        return None if "end" in message else message

    def serve(self) -> None:
        """Answer until the talk ends."""
        while message := self.receive():
            self.send(self.answer(message))

    def answer(self, message: dict[str, Plain]) -> dict[str, Plain]:
        """Do what is asked: the value, or what was raised."""
        try:
            given = [unpack(a, self.other) for a in message["arguments"]]
            named = {k: unpack(a, self.other) for k, a in message["named"].items()}
            changeable = {k: a for k, a in [*enumerate(given), *named.items()] if type(a) in CHANGEABLE}
            before = {k: self.packed(a) for k, a in changeable.items()}
            reply: dict[str, Plain] = {"value": self.packed(self.done(message["do"], given, named))}
            after = [[k, self.packed(a)] for k, a in changeable.items()]
            changed = [[k, a] for k, a in after if a != before[k]]
            return {**reply, "changed": changed} if changed else reply
        except Exception as e:
            return {"raised": [c.__name__ for c in type(e).__mro__], "text": str(e)}

    def done(self, do: str, given: list[Any], named: dict[str, Any]) -> Any:
        """The result of one operation."""
        if do == "call":
            return given[0](*given[1:], **named)
        if do == "value":
            return given[0]
        if do == "plain":
            return plain(given[0])
        if do == "setitem":
            given[0][given[1]] = given[2]
            return None
        if do == "delitem":
            del given[0][given[1]]
            return None
        if hasattr(
            builtins, do
        ):  # getattr, setattr, delattr, iter, next, len, str, repr, bool, int, float, isinstance …
            return getattr(builtins, do)(*given)
        import operator

        return getattr(operator, do)(*given)

    def packed(self, value: Any) -> Plain:
        """Plain data where it is that, else the place of an object that stays here."""
        try:
            return pack(value, self.hold)
        except Exception:  # too deep, a cycle, or changed while it was read
            return self.hold(value)

    def hold(self, value: Any) -> Plain:
        """Keep an object, and name its place."""
        if isinstance(value, Callback):
            return {"own": value.number}
        place = self.places.get(id(value))
        if place is None:
            place = self.places[id(value)] = len(self.held)
            self.held.append(value)
        return {"object": [place, type(value).__name__]}

    def other(self, kind: str, content: Plain) -> Any:
        """What is not plain data in a message of the judge."""
        if kind == "object":
            return self.held[content[0]]
        if kind == "global":
            if content in self.names:
                return self.names[content]
            if hasattr(builtins, content):
                return getattr(builtins, content)
            raise NameError(f"name {content!r} is not defined")
        if kind == "library":
            found: Any = __import__(content[0], fromlist=["*"])
            for name in content[1].split("."):
                found = getattr(found, name)
            return found
        return Callback(self, content)


class Callback:
    """A function of the test's own, that was given to the program: it is called where it lives."""

    def __init__(self, talk: Talk, number: int) -> None:
        self.talk, self.number = talk, number

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Let the judge call it."""
        talk = self.talk
        packed = {k: talk.packed(v) for k, v in named.items()}
        talk.send({"callback": self.number, "arguments": [talk.packed(v) for v in given], "named": packed})
        while message := talk.receive():
            if "do" in message:  # it asks something of us before it answers
                talk.send(talk.answer(message))
            elif "raised" in message:
                raise getattr(builtins, message["raised"], RuntimeError)(message["text"])
            else:
                return unpack(message["value"], talk.other)
        raise RuntimeError("the judge has gone")


BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, lambda x: int.__add__(x, 0)),
    (float, float.__float__),
    (complex, lambda x: complex(x.real, x.imag)),
    (str, str.__str__),
    (bytes, lambda x: bytes.__getitem__(x, slice(None))),
    (bytearray, lambda x: bytearray.__getitem__(x, slice(None))),
    (list, lambda x: list(list.__iter__(x))),
    (tuple, lambda x: tuple(tuple.__iter__(x))),
    (dict, lambda x: dict(dict.items(x))),
    (set, lambda x: set(set.__iter__(x))),
    (frozenset, lambda x: frozenset(frozenset.__iter__(x))),
)


def plain(value: Any) -> list[Any]:
    """[the plain content] of an object that extends a plain type, or is a number; [] of any other."""
    for base, content in BASES:
        if isinstance(value, base):
            return [content(value)]
    numbers = sys.modules.get("numbers")
    for abstract, make in NUMBERS:
        if numbers is not None and isinstance(value, getattr(numbers, abstract)):
            return [getattr(builtins, make)(value)]
    return []
