"""Every error that a user can cause. Each says what was wrong, the value, what is valid, and how to mend it.

The command line prints the message and exits with 2; nothing already computed is lost. Whatever is not a
`PrunetuneError` is a bug of ours and keeps its traceback.

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
    ├── NotWritable           a folder that cannot be written, or a full disk
    ├── DataError             rows, columns or files that cannot be read as data
    ├── TaskError             an evaluation task or verifier that cannot be used
    ├── TuneError             recovery that cannot start, or that diverged
    └── MissingExtra          an optional dependency that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunetuneError(Exception):
    """Base of all errors that the user can mend.

    Args:
        what: What was wrong, one sentence without a full stop at the end.
        value: The offending value, shown with `repr`.
        valid: What would have been valid: one text, or the list of choices.
        fix: What to do now.
    """

    def __init__(
        self, what: str, *, value: object = None, valid: str | Iterable[str] | None = None, fix: str | None = None
    ) -> None:
        self.what, self.value, self.fix = what, value, fix
        self.valid = valid if valid is None or isinstance(valid, str) else ", ".join(valid)
        lines = [what]
        if value is not None:
            lines.append(f"  got:   {value!r}")
        if self.valid:
            lines.append(f"  valid: {self.valid}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))


class RecipeError(PrunetuneError):
    """A recipe or an option that cannot be understood."""


class RecipeChanged(RecipeError):
    """A run folder holds bytes that were made by another recipe."""


class UnknownName(RecipeError):
    """No such criterion, task, method, preset, ..."""

    def __init__(self, kind: str, value: str, valid: Iterable[str]) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(str(value), names, n=2, cutoff=0.5)
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


class NotWritable(PrunetuneError):
    """A folder that cannot be written, or a full disk."""


class DataError(PrunetuneError):
    """Rows, columns or files that cannot be read as data."""


class TaskError(PrunetuneError):
    """An evaluation task or verifier that cannot be used."""


class TuneError(PrunetuneError):
    """Recovery that cannot start, or that diverged."""


class MissingExtra(PrunetuneError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            fix=f"pip install 'prunetune[{extra}]'",
        )
