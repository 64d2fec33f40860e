"""Whether the files that a run reads are still those that it began with: RUN/.inputs.json, a hash of each.

    check_inputs(run, recipe, free)         # RecipeChanged if one has other bytes; nothing is written
    note_inputs(run, recipe, free)          # keeps what is there now for the next start
    changed_verifiers(run, recipe)          # the files of verifiers with other bytes than at the last start

An input is whatever a recipe names that lies on this machine: files and folders of data and of tasks, the model, a
teacher. Rivals are none, for a rival that has changed is measured anew. A name on a hub is none either. A verifier may
be mended while a run is on its way, and the run goes on: a change of it is told, and not refused.
A run of an earlier version has no such file: it goes on, and what it reads is kept from then on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from prunetune.common.files import MARK, write_json
from prunetune.common.notes import full_sha
from prunetune.common.reading import read_model
from prunetune.data.files import expand_path
from prunetune.errors import BadCheckpoint, DataError, RecipeChanged
from prunetune.recipe.schema import Recipe
from prunetune.tasks.own import is_own

NOTE = ".inputs.json"
NAMED = ("path", "model", "teacher")
"""The keys of a recipe, however deep, whose text may name a file or a folder that is read."""
MODEL = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What of a model's folder is read."""


class Noted(RootModel[dict[str, dict[str, tuple[int, int, str]]]]):
    """Input, as the recipe says it -> file of it -> (bytes, time in ns, SHA-256)."""


@dataclass(frozen=True)
class Input:
    """What a recipe reads.

    Attributes:
        said: As the recipe says it.
        path: The file or folder.
        keys: Where in the recipe.
        model: Whether it is a model's folder, of which a part is read.
    """

    said: str
    path: Path
    keys: tuple[str, ...]
    model: bool = False

    @property
    def files(self) -> dict[str, Path]:
        """Its files by their paths below it; of other runs that lie in it, and of hidden folders, none."""
        if not self.path.is_dir():
            return {self.path.name: self.path}
        if self.model:
            found = [p for pattern in MODEL for p in self.path.glob(pattern) if p.name[0] != "." and p.is_file()]
        else:
            found = list(_below(self.path))
        return {str(p.relative_to(self.path)): p for p in sorted(found)}


def _below(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f[0] != "." and not (Path(at) / f / MARK).is_file()]
        yield from (Path(at) / f for f in files if f[0] != "." and (Path(at) / f).is_file())


def inputs_of(recipe: Recipe) -> list[Input]:
    """The inputs that are there. One that is not is told by whoever reads it."""
    found: dict[str, Input] = {}
    for keys, said in _named(recipe.model_dump(mode="json", by_alias=True), NAMED):
        name = keys.rpartition(".")[2]
        path = _place(name, said)
        if path is not None:
            before = found[said].keys if said in found else ()
            found[said] = Input(said, path, (*before, keys), model=name in ("model", "teacher"))
    return list(found.values())


def _verifiers_of(recipe: Recipe) -> list[Input]:
    """The files of verifiers that are there."""
    said = {said: keys for keys, said in _named(recipe.model_dump(mode="json", by_alias=True), ("verifier",))}
    found = ((name, keys, _place("path", name.rpartition(":")[0])) for name, keys in said.items() if is_own(name))
    return [Input(name, path, (keys,)) for name, keys, path in found if path is not None]


def changed_verifiers(run: Path, recipe: Recipe) -> list[Path]:
    """The files of verifiers that have other bytes than when the run last started."""
    noted = _read(run)
    changed = (v.path for v in _verifiers_of(recipe) if v.said in noted and _changed(v, noted[v.said]))
    return list(dict.fromkeys(changed))


def _named(value: Any, names: Collection[str], at: str = "") -> Iterator[tuple[str, str]]:
    """(keys, text) of all texts of a recipe under such keys, which may name an input."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key in names and isinstance(inner, str):
                yield f"{at}{key}", inner
            yield from _named(inner, names, f"{at}{key}.")


def _place(name: str, said: str) -> Path | None:
    """The file or folder that a text names; None: it is no such name, or nothing is there."""
    if not said.strip() or (name in ("model", "teacher") and said == "demo"):
        return None
    with contextlib.suppress(DataError, OSError, ValueError):  # a variable that is not set, a name that can be none
        path = expand_path(said)
        return path if path.exists() else None
    return None


def check_inputs(run: Path, recipe: Recipe, free: Collection[str] | None) -> None:
    """Raise RecipeChanged if an input has other bytes than when the run began, or first read it.

    Args:
        run: The run folder.
        recipe: What the run reads.
        free: Keys of the recipe that nothing made depends on yet; None: nothing is made.
    """
    noted = _read(run)
    changed = [
        str(each.path / name if each.path.is_dir() else each.path)
        for each in inputs_of(recipe)
        if each.said in noted and not _is_free(each, free)
        for name in _changed(each, noted[each.said])
    ]
    if changed:
        names = [Path(c).name for c in changed[:3]]
        raise RecipeChanged(
            f"{', '.join(names)}{' and more' if len(changed) > 3 else ''} changed since this run began",
            value="; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else ""),
            valid="the files as they were: what is made here was made of them",
            fix=f"choose a new --out for the new files, or put the old ones back: nothing in {run} is thrown away",
        )


def note_inputs(run: Path, recipe: Recipe, free: Collection[str] | None) -> None:
    """Keep the hashes of all inputs: of new ones, and of those that may have changed."""
    before = _read(run)
    now = {} if free is None else dict(before)
    for each in (*inputs_of(recipe), *_verifiers_of(recipe)):
        seen = before.get(each.said, {})
        now[each.said] = {name: _state(path, seen.get(name)) for name, path in each.files.items()}
    if now != before:
        write_json(run / NOTE, Noted(now).model_dump(mode="json"))


def _is_free(each: Input, free: Collection[str] | None) -> bool:
    return free is None or all(any(k == f or k.startswith(f + ".") for f in free) for k in each.keys)


def _changed(each: Input, noted: dict[str, tuple[int, int, str]]) -> list[str]:
    files = each.files
    same = (n for n, path in files.items() if n in noted and _state(path, noted[n])[2] == noted[n][2])
    return sorted({*files, *noted} - {*same})


def _state(path: Path, seen: tuple[int, int, str] | None) -> tuple[int, int, str]:
    """(bytes, time, hash) of a file; it is read only where size or time are others than were seen."""
    stat = path.stat()
    if seen is not None and seen[:2] == (stat.st_size, stat.st_mtime_ns):
        return seen
    return stat.st_size, stat.st_mtime_ns, full_sha(path)


def _read(run: Path) -> dict[str, dict[str, tuple[int, int, str]]]:
    try:
        return read_model(run / NOTE, Noted, "note of inputs").root if (run / NOTE).is_file() else {}
    except BadCheckpoint:  # damaged: as if there were none
        return {}
