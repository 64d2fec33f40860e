"""Verifiers: is this model output right? One function serves evaluation and RL reward.

A verifier takes (output, reference) and returns a `Verdict`; the built-in ones are listed in `VERIFIERS`, a user's own
is read by `own.py`. What a verifier cannot read as a reference, `refusal` tells before any answer is generated. Each
takes time linear in the output, or is stopped (grader.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from prunetune.errors import TaskError
from prunetune.tasks.numbers import LONGEST, NotOneNumber, Number, last_number, normalise, numbers, single_number
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

OTHER_VERIFIERS = (
    "mend the row (its result in a last line: #### 9), or use another verifier: boxed (mathematics), exact (text), "
    "file.py:function (your own)"
)

# ------------------------------------------------------------------------------------------------------------- number

_MARKED = re.compile("####[ \u202f]{0,3}[*(]{0,3}(?=[-+$€£¥₹ \u202f]{0,4}[.]?[0-9])")
_SAID = re.compile(r"\banswer(?: is:?|:| =) ?", re.IGNORECASE)


def extract_number(output: str) -> str | None:
    """GSM8K's final number: the first one after `####`, else the one in the last box, else the last of the text.

    As lm-eval's `strict-match` and then `flexible-extract`, except that a number is read whole (numbers.py).
    """
    found = _final(output)
    return found.text if found else None


def verify_number(output: str, reference: str) -> Verdict:
    """Equal as exact numbers, however they are written: 1/2, 0.5, ½; 1,000, 1 000, 1e3; -5, −5."""
    try:
        target = reference_number(reference)
    except NotOneNumber as e:
        raise TaskError(f"this reference {e}", value=reference, fix=OTHER_VERIFIERS) from None
    found = _final(output)
    if found is None:
        return Verdict(False, None, "no number in the output")
    if found.value is None:
        return Verdict(False, found.text, "no single number in the output")
    correct = found.equals(target)
    return Verdict(correct, found.text, "" if correct else f"not {target}")


@functools.lru_cache(maxsize=4096)
def reference_number(reference: str) -> Fraction:
    """The one number that a reference is, or that its `####`, tag, last box, "answer is" or last worked line gives.

    Raises:
        NotOneNumber: It is none, or several.
    """
    text = normalise(reference)
    if "####" in text:
        said = {single_number(part.strip().partition("\n")[0]) for part in text.split("####")[1:]}
        if len(said) > 1:
            raise NotOneNumber("gives several numbers behind ####")
        return said.pop()
    part = _declared(text)
    if part is None and (spoken := list(_SAID.finditer(text))):
        part = text[spoken[-1].end() :].partition("\n")[0]
    if part is None:
        part = _last_result(text)
    return single_number(text if part is None else part)


def _last_result(text: str) -> str | None:
    """What stands behind the last `=` of worked lines, each of which is `… = one number`; None for any other text."""
    lines = [line for line in text.split("\n") if line.strip()]
    results = [line.rpartition("=")[2] for line in lines if "=" in line]
    if len(lines) < 2 or len(results) < len(lines):
        return None
    try:
        for result in results:
            single_number(result)
    except NotOneNumber:
        return None
    return results[-1]


def is_worked(reference: str) -> bool:
    """Whether a reference has no mark of its result, which `number` takes from behind its last `=`."""
    text = normalise(reference)
    if "####" in text or _declared(text) is not None or _SAID.search(text) or _last_result(text) is None:
        return False
    return _no_number(reference) is None


def _final(output: str) -> Number | None:
    text = normalise(output)
    if mark := _MARKED.search(text):
        return next(numbers(text[mark.end() : mark.end() + 2 * LONGEST]), None)
    part = _declared(text)
    return (last_number(part) if part else None) or last_number(text)


# -------------------------------------------------------------------------------------------------------------- boxed

LONGEST_MATHS = 4000
"""Characters at the end of an output in which math-verify looks for an answer outside a box."""


def verify_boxed(output: str, reference: str) -> Verdict:
    """Mathematically equal to the reference, by math-verify: the last box, else what stands at the end."""
    box, wanted = last_box(output), last_box(reference)
    if box is not None and len(box) > LONGEST_MATHS:
        return Verdict(False, None, "the answer in the box is too long")
    said = output[-LONGEST_MATHS:] if box is None else f"\\boxed{{{box}}}"
    reply = grader("math").ask({"output": said, "reference": reference if wanted is None else wanted})
    if "error" in reply:
        return Verdict(False, None, f"not graded: {reply['error']}")
    if not reply["gold"]:
        raise TaskError("math-verify cannot read this reference", value=reference, fix=OTHER_VERIFIERS)
    found = reply["extracted"]
    if reply["correct"]:
        return Verdict(True, found, "")
    return Verdict(False, found, "not equal to the reference" if found else "no answer in the output")


# -------------------------------------------------------------------------------------------------------------- exact


def extract_answer(output: str) -> str:
    """A free answer: what stands in the last `<answer>…</answer>` or box, or behind `####`; else the whole output."""
    part = _declared(output)
    return (output.rpartition("####")[2] if part is None else part).strip()


def verify_exact(output: str, reference: str) -> Verdict:
    """The same text as the reference; case and spacing do not count."""
    found, wanted = extract_answer(output), extract_answer(reference)
    correct = found.casefold().split() == wanted.casefold().split()
    return Verdict(correct, found, "" if correct else "another text")


def _declared(text: str) -> str | None:
    """What an answer declares to be its result: the last `<answer>…</answer>`, else the last box."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        return text[start + len("<answer>") : text.find("</answer>", start)]
    return last_box(text)


def last_box(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}`; None if there is none, or if it is never closed."""
    begin = -1
    for opened in re.finditer(r"\\boxed[ ]{0,3}\{", text):
        begin = opened.end()
    depth = 1
    for brace in re.finditer(r"[{}]", text[begin:]) if begin >= 0 else ():
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : begin + brace.start()]
    return None


# ------------------------------------------------------------------------------------------------------------- tables

VERIFIERS: dict[str, Verifier] = {"number": verify_number, "boxed": verify_boxed, "exact": verify_exact}


def refusal(verifier: str, reference: str) -> str | None:
    """Why a verifier cannot judge against a reference; None where it can. A user's own reads any text."""
    if not reference.strip():
        return "is empty"
    return _REFUSALS[verifier](reference) if verifier in _REFUSALS else None


def _no_number(reference: str) -> str | None:
    try:
        reference_number(reference)
    except NotOneNumber as e:
        return str(e)
    return None


def _no_maths(reference: str) -> str | None:
    try:
        verdict = verify_boxed("", reference)
    except TaskError:
        return "cannot be read by math-verify"
    return f"is {verdict.reason} by math-verify" if verdict.reason.startswith("not graded") else None


def _no_text(reference: str) -> str | None:
    return None if extract_answer(reference) else "holds no answer"


_REFUSALS: dict[str, Callable[[str], str | None]] = {"number": _no_number, "boxed": _no_maths, "exact": _no_text}
