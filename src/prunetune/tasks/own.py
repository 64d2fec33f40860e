"""A user's own verifier: `file.py:function`, with `function(output: str, reference: str) -> bool` (or a `Verdict`).

    def right(output, reference):
        return output.split()[-1] == reference

    prunetune eval MODEL --task mine=rows.jsonl --verifier judge.py:right

Everything that can be known to fail is told when the task is built: the file, the name, the parameters.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

from prunetune.common.plugins import lookup, names
from prunetune.data.files import expand_path
from prunetune.errors import MissingPath, TaskError, UnknownName
from prunetune.tasks.verifiers import VERIFIERS, Verdict, Verifier

SIGNATURE = "def NAME(output: str, reference: str) -> bool"


def find_verifier(name: str, allow_custom_code: bool) -> Verifier:
    """A built-in verifier by name, or a user's own `file.py:function`.

    Raises:
        UnknownName: No such built-in one.
        MissingPath: No such file.
        TaskError: Its code is not allowed to run, cannot be run, or has no such function of two parameters.
    """
    if not is_own(name):
        if name not in {*VERIFIERS, *names("verifier")}:
            raise UnknownName("verifier", name, [*VERIFIERS, *names("verifier"), "file.py:function"])
        return lookup("verifier", VERIFIERS, name, "verifier")
    path, _, function = name.rpartition(":") if ":" in name else (name, "", "")
    if not allow_custom_code:
        raise TaskError(
            "this verifier is a file of code, which runs only if you allow it",
            value=name,
            fix="allow_custom_code: true, or name it on the command line: --verifier",
        )
    module = _module(expand_path(path))
    custom = getattr(module, function, None) if function else None
    if not callable(custom):
        there = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise TaskError(
            f"this file has no function {function!r}" if function else "the function in this file is not named",
            value=name,
            valid=[f"{path}:{n}" for n in there] or SIGNATURE,
            fix="check the name behind the colon",
        )
    _check_signature(custom, name)

    def verify(output: str, reference: str) -> Verdict:
        try:
            said = custom(output, reference)
        except (Exception, SystemExit) as e:
            raise TaskError(
                f"the verifier {function} raised {type(e).__name__}: {e}",
                value=output[-200:],
                fix=f"mend {path}; the same command then goes on",
            ) from e
        if isinstance(said, Verdict):
            return said
        if not isinstance(said, bool):
            raise TaskError("a verifier must return True or False (or a Verdict)", value=said, fix=f"mend {name}")
        return Verdict(said, None, "" if said else f"rejected by {function}")

    return verify


def is_own(name: str) -> bool:
    """Whether a verifier's name is a file of code."""
    return ":" in name or name.endswith(".py")


def fingerprint(name: str) -> str:
    """What tells one verifier from another: its name, and of a file its content too."""
    path = Path(name.rpartition(":")[0] or name).expanduser()
    if not is_own(name) or not path.is_file():
        return name
    return f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _check_signature(custom: object, name: str) -> None:
    try:
        inspect.signature(custom).bind("output", "reference")  # type: ignore[arg-type]  # callable() was asked before
    except TypeError as e:
        raise TaskError(
            f"a verifier is called with the output and the reference ({e})", value=name, valid=SIGNATURE, fix="mend it"
        ) from None
    except ValueError:
        return  # some callables written in C have no signature to read


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise MissingPath("no such file of code", value=str(path), fix="check the path of the verifier")
    spec = importlib.util.spec_from_file_location(f"prunetune_custom_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError("this is not a Python file", value=str(path), fix="name it something.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        why = f"{type(e).__name__}: {e}"
        raise TaskError(f"this file of code cannot be run ({why})", value=str(path), fix="mend it") from e
    return module
