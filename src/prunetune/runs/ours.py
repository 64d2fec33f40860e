"""Is a folder a run of ours, is it unharmed, what in it is left over: asked before anything is written or deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prunetune.common.files import is_temporary, mark, remove
from prunetune.common.notes import verify
from prunetune.common.yaml import read_yaml
from prunetune.errors import NotWritable, PrunetuneError

STAGE = re.compile(r"\d\d+-[a-z-]+-[\w+-]+")
"""Folder of a round, see `schedule.steps.Step.name`."""
FILES = (
    "scores.safetensors", "protect.safetensors", "patch.safetensors", "plan.json", "stage.json", "full.json",
    "validation.json",
)  # fmt: skip
FOLDERS = ("pruned", "tuned", "eval")
EARLY = {".lock", "recipe.yaml", "original", ".original.key"}
"""What a run of version 0.1 holds that was killed before its first result."""
OLD_LEFTOVER = re.compile(
    r"\.+(final|original|summary\.json|recipe\.yaml|report\.(md|html)|latency\.json|\d\d-.*|[\w.-]+\.key)\.(tmp|gone)"
)


def is_run(path: Path) -> bool:
    """Whether a folder without our mark is a run of version 0.1: its recipe beside its measured original."""
    names = {p.name for p in path.iterdir() if not is_temporary(p.name) and not OLD_LEFTOVER.fullmatch(p.name)}
    measured = (path / "original" / "stage.json").is_file()
    if names <= EARLY and (".lock" in names or ".original.key" in names) and (measured or "original" not in names):
        return True
    return _is_recipe(path / "recipe.yaml") and ((path / "original").is_dir() or any(path.glob("[0-9]*-*/stage.json")))


def _is_recipe(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        value = read_yaml(file, "recipe")
    except PrunetuneError:
        return False
    return isinstance(value, dict) and {"model", "data", "prune"} <= set(value)


def adopt_old(path: Path) -> None:
    """Mark a run folder of version 0.1, so that its reports may be written anew."""
    if path.is_dir() and is_run(path):
        mark(path, "run")


def sweep(path: Path) -> None:
    """Remove what a kill has left half made or half deleted in a run folder that is held."""
    own = ("original", "vocabulary", "decisions", "figures")
    for at in (path, *_stages(path), *(path / name for name in own), *path.glob("rivals/*")):
        for p in at.glob(".*") if at.is_dir() else ():
            old = OLD_LEFTOVER.fullmatch(p.name) if at == path else re.fullmatch(r"\..+\.(tmp|gone)", p.name)
            if is_temporary(p.name) or old:
                remove(p)


def _stages(path: Path) -> Iterator[Path]:
    return (p for p in sorted(path.glob("[0-9]*-*")) if STAGE.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def unfinished(path: Path) -> list[Path]:
    """The folders of rounds that have no stage.json."""
    return [p for p in _stages(path) if not (p / "stage.json").is_file()]


def clear_round(at: Path) -> None:
    """Remove the folder of an unfinished round; NotWritable, with nothing touched, if others' files are in it."""
    others = [p.name for p in at.iterdir() if not (p.name.startswith(".") or p.name in (*FILES, *FOLDERS) or _tune(p))]
    if others:
        raise NotWritable(
            "this unfinished round holds files that prunetune did not write, so it is not deleted",
            value=f"{at}: {', '.join(others[:3])}",
            fix="move them elsewhere, then run again",
        )
    remove(at)


def _tune(path: Path) -> bool:
    return re.fullmatch(r"tune-\d+-\w+\.json", path.name) is not None


def verify_run(path: Path) -> None:
    """BadCheckpoint for the first thing in a run folder, of its control too, whose bytes are not what was written."""
    own = (path / name for name in ("original", "vocabulary", "decisions"))
    for at in (path, *own, *_stages(path), *path.glob("rivals/*")):
        verify_notes(at)
        verify_notes(at / "eval")
    if (path / "control").is_dir():
        verify_run(path / "control")


def verify_notes(at: Path) -> None:
    """The same for the things that lie in one folder."""
    for note in sorted(at.glob(".*.key")):
        verify(at / note.name[1 : -len(".key")])
