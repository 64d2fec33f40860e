"""Verifiers: is this model output right? One function serves evaluation and RL reward.

A verifier takes (output, reference) and returns a `Verdict`; the built-in ones are listed in `VERIFIERS`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import ModuleType

from prunetune.errors import MissingPath, TaskError, UnknownName
from prunetune.tasks.sandbox.grader import grader


@dataclass(frozen=True)
class Verdict:
    """What a verifier says about one output.

    Attributes:
        correct: Whether the answer is right.
        extracted: The answer it found in the output, if any.
        reason: Why not, in a few words ("" if correct).
        scores: Further scores of this answer, such as `{"f1": 0.5}`.
    """

    correct: bool
    extracted: str | None
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)


Verifier = Callable[[str, str], Verdict]

MARKED = re.compile(r"#### (-?[0-9.,]+)")  # as lm-eval's strict-match
LAST = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")  # as its flexible-extract


def extract_number(output: str) -> str | None:
    """GSM8K's final number: the first one after `#### `, else the last number of the text.

    The same patterns as lm-eval's `strict-match` and then `flexible-extract`, except that what holds no digit (an
    ellipsis, a lone `$.`) is no number.
    """
    marked = MARKED.search(output)
    if marked and _value(marked[1]) is not None:
        return marked[1]
    found = [text for text in LAST.findall(output) if re.search("[0-9]", text)]
    return found[-1] if found else None


def verify_number(output: str, reference: str) -> Verdict:
    """Equal as decimal numbers, whatever the thousands separators, currency sign and trailing zeros."""
    wanted = extract_number(reference)
    target = _value(wanted) if wanted else None
    if target is None:
        raise TaskError("this reference holds no number", value=reference, fix="mend the row, or use another verifier")
    found = extract_number(output)
    value = _value(found) if found else None
    if value is None:
        return Verdict(False, found, "no number in the output")
    return Verdict(value == target, found, "" if value == target else f"not {wanted}")


def verify_boxed(output: str, reference: str) -> Verdict:
    """Mathematically equal to the reference, by math-verify: LaTeX in a box, in dollars, or a plain expression."""
    reply = grader("math").ask({"output": output, "reference": reference})
    if "error" in reply:
        return Verdict(False, None, f"not graded: {reply['error']}")
    if not reply["gold"]:
        raise TaskError("math-verify cannot read this reference", value=reference, fix="mend the row")
    found = reply["extracted"]
    if reply["correct"]:
        return Verdict(True, found, "")
    return Verdict(False, found, "not equal to the reference" if found else "no answer in the output")


def extract_answer(output: str) -> str:
    """A free answer: what stands in `<answer>…</answer>`, in the last box, or behind `####`; else the whole output."""
    tagged = re.findall(r"<answer>(.*?)</answer>", output, flags=re.DOTALL)
    if tagged:
        return str(tagged[-1]).strip()
    boxed = _last_box(output)
    if boxed is not None:
        return boxed.strip()
    return output.rpartition("####")[2].strip()


def verify_exact(output: str, reference: str) -> Verdict:
    """The same text as the reference; case and spacing do not count."""
    found, wanted = extract_answer(output), extract_answer(reference)
    correct = found.casefold().split() == wanted.casefold().split()
    return Verdict(correct, found, "" if correct else "another text")


VERIFIERS: dict[str, Verifier] = {"number": verify_number, "boxed": verify_boxed, "exact": verify_exact}


def find_verifier(name: str, allow_custom_code: bool) -> Verifier:
    """A built-in verifier by name, or a user's own `file.py:function(output, reference) -> bool`.

    Raises:
        TaskError: a file is named, and its code is not allowed to run.
    """
    if ":" not in name:
        if name not in VERIFIERS:
            raise UnknownName("verifier", name, [*VERIFIERS, "file.py:function"])
        return VERIFIERS[name]
    path, _, function = name.rpartition(":")
    if not allow_custom_code:
        raise TaskError(
            "this verifier is a file of code, which runs only if you allow it",
            value=name,
            fix="allow_custom_code: true",
        )
    custom = getattr(_module(Path(path).expanduser()), function, None)
    if not callable(custom):
        raise TaskError(f"this file has no function {function!r}", value=path, fix="check the name behind the colon")

    def verify(output: str, reference: str) -> Verdict:
        try:
            said = custom(output, reference)
        except Exception as e:
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


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise MissingPath("no such file of code", value=str(path), fix="check the path")
    spec = importlib.util.spec_from_file_location(f"prunetune_custom_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError("this is not a Python file", value=str(path), fix="name it something.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise TaskError(f"this file of code cannot be run ({e})", value=str(path), fix="mend it") from e
    return module


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("$", "").rstrip("."))
    except InvalidOperation:
        return None


def _last_box(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None
