"""Being told to stop: Ctrl-C, SIGTERM (a supervisor, a batch system) and SIGHUP (a closed terminal) do the same.

    with listening():                       # the entry point of a process
        ...                                 # a signal raises Stopped here
        with deferred():                    # training: only between two steps can a checkpoint be saved
            if asked() is not None: save()
            raise_if_asked()                # also before the next piece of work is begun (`files.once`)

`Stopped` is a KeyboardInterrupt, so whatever cleans up after Ctrl-C cleans up after the others too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal told this process to stop."""


class _State:
    asked: signal.Signals | None = None
    raised = False
    deferred = False


_state = _State()


def asked() -> signal.Signals | None:
    """The first signal that told this process to stop, or None."""
    return _state.asked


def raise_if_asked() -> None:
    """Stopped, if a signal came while stopping was deferred."""
    if _state.asked is not None:
        _state.raised = True
        raise Stopped


def _heard(number: int, frame: FrameType | None) -> None:
    first, _state.asked = _state.asked is None, _state.asked or signal.Signals(number)
    again = number == signal.SIGINT and not first  # a second Ctrl-C waits for nothing
    if _state.deferred and not again:
        if first:
            os.write(2, b"\nstopping after this step of training; Ctrl-C again stops at once\n")
        return
    if _state.raised and not again:
        return  # supervisors repeat SIGTERM: what is being put in order is not to be cut by that
    _state.raised = True
    raise Stopped


def stop() -> NoReturn:
    """Stopped: another process of the same job was told to."""
    _state.raised = True
    raise Stopped


@contextmanager
def listening() -> Iterator[None]:
    """Turn the signals into `Stopped` while inside; a signal that the process ignores (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    before = {s: handler for s, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for s in before:
        signal.signal(s, _heard)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        _state.asked, _state.raised, _state.deferred = None, False, False


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a first signal is only noted: the caller looks at `asked` where it can stop without loss."""
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False
