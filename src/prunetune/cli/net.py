"""The net under every command: whatever happens becomes one message and an exit code.

0    done
1    a fault of ours: the message has the line to report, `--verbose` (or PRUNETUNE_TRACEBACK=1) the traceback
2    something that the user can mend: `PrunetuneError`, a full disk, too little memory
129, 130, 143    stopped by SIGHUP, Ctrl-C, SIGTERM: the message says how to go on
"""

from __future__ import annotations

import errno
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunetune.common import stopping
from prunetune.common.disk import is_full
from prunetune.common.memory import is_memory
from prunetune.errors import MissingPath, NotWritable, PrunetuneError, RecipeError, TooLittleMemory, plain

PACKAGE = Path(__file__).resolve().parents[1]
GOES_ON = ("run", "score", "compensate", "tune", "generate", "eval")
"""Commands that take up what an interrupted call left."""
SIGNALLED = 128
BUG = 1
MISTAKE = 2


def caught(work: Callable[[], object], words: Sequence[str], *, verbose: bool) -> int:
    """Run a command; its exit code, with what there is to say on stderr.

    Args:
        work: The command. It may raise anything; SystemExit carries its own code, as does a number that it returns.
        words: The command line without the program's name.
        verbose: Whether the traceback is shown too.
    """
    with stopping.listening():
        try:
            code = _code(work(), words)
        except SystemExit as e:
            code = _code(e.code, words)
            if isinstance(e.code, str):
                _say(f"error: {plain(e.code, 1_000)}")
        except KeyboardInterrupt:
            code = _stopped(words)
        except BrokenPipeError:
            code = _reader_left()
        except BaseException as e:  # a panic of a Rust library is no Exception
            code = _told(e, words, verbose)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_left()
    return code


def _code(found: object, words: Sequence[str]) -> int:
    """The exit code of what a command returned or left with."""
    code = found if isinstance(found, int) else MISTAKE if isinstance(found, str) and found else 0
    return _stopped(words) if code == SIGNALLED + 2 else code  # typer's exit for any KeyboardInterrupt


def _stopped(words: Sequence[str]) -> int:
    number = stopping.asked() or 2
    name = {1: "SIGHUP", 15: "SIGTERM"}.get(int(number), "Ctrl-C")
    command = plain(shlex.join(["prunetune", *words]), 2_000)
    if _command(words) in GOES_ON:
        _say(f"interrupted by {name}; the same command continues: {command}")
    else:
        _say(f"interrupted by {name}; nothing half-made counts: start it again: {command}")
    return SIGNALLED + int(number)


def _reader_left() -> int:
    """`prunetune keys | head`: the reader has what it wanted. Python would complain of the pipe once more at exit."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    return 0


def _told(e: BaseException, words: Sequence[str], verbose: bool) -> int:
    if verbose:
        traceback.print_exception(e)
    if (known := as_mistake(e)) is not None:
        _say(f"error: {known}")
        return MISTAKE
    _say(f"error: {_fault(e, words, verbose)}")
    return BUG


def as_mistake(e: BaseException) -> PrunetuneError | None:
    """An exception that a user can do something about, as one of ours; None: it is a fault in the program."""
    from pydantic import ValidationError

    if isinstance(e, PrunetuneError):
        return e
    if hasattr(e, "format_message"):  # of the library that reads the command line
        return _mistyped(e)
    if isinstance(e, ValidationError):
        from prunetune.recipe.explain import explain

        return explain(e, "the options")
    if is_memory(e):
        first = plain(next(iter(str(e).strip().splitlines()), "MemoryError"), 200)
        return TooLittleMemory(
            f"there is too little memory ({first})",
            fix="a smaller batch_size, micro_batch_size, score.batch_tokens or max_length; LoRA; a larger machine",
        )
    if is_full(e):  # whoever wrote
        return NotWritable(
            "no space left on the disk", value=getattr(e, "filename", None), fix="free space, then run it again"
        )
    if isinstance(e, OSError):
        return _refused_by_system(e)
    return None


def _mistyped(e: Any) -> RecipeError:
    """An option or a command that there is not, or a value that it cannot have."""
    told = " ".join(str(e.format_message()).split()).removesuffix(".")
    what, _, near = told.partition(" Did you mean ")
    context = getattr(e, "ctx", None)
    command = context.command_path if context is not None else "prunetune"
    fix = f"{command} --help"
    what = what.removesuffix(".")
    return RecipeError(what[:1].lower() + what[1:], fix=f"did you mean {near} ({fix})" if near else fix)


def _refused_by_system(e: OSError) -> PrunetuneError | None:
    """A path or a disk that the operating system refuses. Without a path it is none of the user's."""
    if e.filename is None:
        return None
    why = plain((e.strerror or str(e)).lower(), 200)
    if e.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingPath(f"no such file or folder ({why})", value=str(e.filename), fix="check the path")
    refused = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
    if e.errno in (*refused, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE):
        return NotWritable(
            f"the system refuses this path: {why}", value=str(e.filename), fix="check it, or use another"
        )
    return None


def _fault(e: BaseException, words: Sequence[str], verbose: bool) -> str:
    """What a report needs in one line: no path and no value of the user's is in it."""
    own = [f for f in traceback.extract_tb(e.__traceback__) if PACKAGE in Path(f.filename).parents]
    at = f"{Path(own[-1].filename).relative_to(PACKAGE)}:{own[-1].lineno} in {own[-1].name}" if own else "no own line"
    name = _command(words)
    line = f"prunetune {_version()}, python {platform.python_version()}, {name}: {type(e).__name__} at {at}"
    again = " The same command goes on from what is finished." if name in GOES_ON else ""
    told = plain(" ".join(str(e).split()), 300)
    more = "" if verbose else f"\n  more:   prunetune --verbose {name} ... shows the traceback"
    return f"a fault of prunetune itself, not of yours: {told or type(e).__name__}.{again}\n  report: {line}{more}"


def _version() -> str:
    try:
        return version("prunetune")
    except PackageNotFoundError:
        return "of a checkout"


def _command(words: Sequence[str]) -> str:
    return plain(next((w for w in words if not w.startswith("-")), "without a command"), 40)


def _say(text: str) -> None:
    """On stderr, which may be gone as well (a closed terminal)."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
