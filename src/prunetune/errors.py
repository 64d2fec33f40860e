"""Every error that a user can cause. Each says what was wrong, the value, what is valid, and how to mend it.

The command line prints the message and exits with 2; nothing already computed is lost. Whatever is not a
`PrunetuneError` is a bug of ours: `cli.net` tells it in one message, with its traceback on request.

A message stays readable whatever it speaks of: each part is cut to `MOST` characters, and control characters, which
a terminal would obey, are written as escapes. This is the one place that cuts.

    PrunetuneError
    ├── RecipeError           a recipe or an option that cannot be understood
    │   ├── RecipeChanged     a run folder holds bytes made by another recipe
    │   └── UnknownName       no such criterion, task, method, ... (with the nearest names)
    ├── UnsupportedModel      a family, layout or storage that cannot be cut correctly
    ├── OutOfReach            a target, step or protected share that no plan can meet
    ├── PlanError             a plan that does not fit the model it is applied to
    ├── MissingPath           a file or folder that is not there
    ├── BadCheckpoint         weights that are truncated, unsafe or inconsistent
    ├── NotFinite             a score, loss or figure that is NaN or infinite, so that nothing may go on from it
    ├── TooLittleMemory       a model or a step that does not fit into memory
    ├── NotWritable           a folder that cannot be written, or a full disk
    ├── DataError             rows, columns or files that cannot be read as data
    ├── TaskError             an evaluation task or verifier that cannot be used
    ├── TuneError             recovery that cannot start, or that diverged
    ├── Declined              the user was asked, and said no
    └── MissingExtra          an optional dependency that is not installed
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MOST = {"what": 1_500, "value": 500, "valid": 2_000, "fix": 1_500}
"""Characters of each part of a message."""


def plain(text: str, most: int | None = None) -> str:
    """A text as a terminal may be given it: what it would obey or not show as escapes, at most `most` characters."""
    if most is not None and len(text) > most:
        text = f"{text[: most * 3 // 4]} ... {text[-(most // 5) :]} ({len(text):,} characters)"
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


class _Shown(reprlib.Repr):
    """`repr` whose work and length are bounded, whatever the value is and however deep its aliases go."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 4, 12
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxarray = 12
        self.maxstring = self.maxother = MOST["value"]

    def repr_int(self, x: int, level: int) -> str:
        digits = int(x.bit_length() * 0.30103) + 1
        return repr(x) if digits <= 40 else f"<a whole number of about {digits:,} digits>"


def shown(value: object) -> str:
    """`repr`, cut to a readable length."""
    return plain(_Shown().repr(value), MOST["value"])


class PrunetuneError(Exception):
    """Base of all errors that the user can mend.

    Args:
        what: What was wrong, one sentence without a full stop at the end.
        value: The offending value, shown with `repr`, cut.
        valid: What would have been valid: one text, or the list of choices.
        fix: What to do now.
    """

    def __init__(
        self, what: str, *, value: object = None, valid: str | Iterable[str] | None = None, fix: str | None = None
    ) -> None:
        self.what, self.value, self.fix = what, value, fix
        self.valid = valid if valid is None or isinstance(valid, str) else ", ".join(valid)
        lines = [plain(what, MOST["what"])]
        if value is not None:
            lines.append(f"  got:   {shown(value)}")
        if self.valid:
            lines.append(f"  valid: {plain(self.valid, MOST['valid'])}")
        if fix:
            lines.append(f"  fix:   {plain(fix, MOST['fix'])}")
        super().__init__("\n".join(lines))


class RecipeError(PrunetuneError):
    """A recipe or an option that cannot be understood."""


class RecipeChanged(RecipeError):
    """A run folder holds bytes that were made by another recipe."""


class UnknownName(RecipeError):
    """No such criterion, task, method, preset, ..."""

    def __init__(self, kind: str, value: str, valid: Iterable[str]) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(str(value)[:100], names, n=2, cutoff=0.5)
        fix = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else None
        super().__init__(f"unknown {kind}", value=value, valid=names, fix=fix)


class UnsupportedModel(PrunetuneError):
    """A family, layout or storage that cannot be cut correctly."""


class OutOfReach(PrunetuneError):
    """A target, step or protected share that no plan can meet."""


class PlanError(PrunetuneError):
    """A plan that does not fit the model it is applied to."""


class MissingPath(PrunetuneError):
    """A file or folder that is not there."""


class BadCheckpoint(PrunetuneError):
    """Weights that are truncated, unsafe or inconsistent."""


class NotFinite(PrunetuneError):
    """A score, loss or figure that is NaN or infinite: nothing may go on from it."""


class TooLittleMemory(PrunetuneError):
    """A model or a step that does not fit into memory."""


class NotWritable(PrunetuneError):
    """A folder that cannot be written, or a full disk."""


class DataError(PrunetuneError):
    """Rows, columns or files that cannot be read as data."""


class TaskError(PrunetuneError):
    """An evaluation task or verifier that cannot be used."""


class TuneError(PrunetuneError):
    """Recovery that cannot start, or that diverged."""


class Declined(PrunetuneError):
    """The user was asked, and said no."""


class MissingExtra(PrunetuneError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            fix=f"pip install {package.replace('_', '-')} (or, in prunetune's folder: pip install -e '.[{extra}]')",
        )
