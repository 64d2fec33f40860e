"""A study on disk: its grid file to cells, and its records. Pure but for reading; neither torch nor the package is needed.

    studies/NN-name/grid.yaml                 what is compared
    studies/NN-name/records/CELL.json         one finished cell: figures, rounds, verdicts as a string of 0 and 1
    studies/NN-name/records/questions/SHA.json    the ids that such a string belongs to

In a grid, `$size`, `$tokens` and `$seed` stand for the cell's own values; a method's keys are merged into `base`
(mappings key by key, anything else whole).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Record = dict[str, Any]


class GridError(ValueError):
    """A grid file or a record that cannot be used."""


@dataclass(frozen=True)
class Cell:
    """One run: a method at a size, a budget and a seed."""

    method: str
    size: float
    tokens: int
    seed: int
    recipe: dict[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        """File name of the record."""
        return f"{self.method}-{self.size:g}-{self.tokens}-s{self.seed}"

    @property
    def sha(self) -> str:
        """What the record was made from; defaults of the package are not in it."""
        return sha_of(self.recipe)


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Attributes:
        folder: The study's folder.
        base: Recipe that all methods share.
        methods: Name -> keys that differ.
        sizes: Shares of the parameters.
        tokens: Recovery tokens of a whole run.
        seeds: Recipe seeds.
        title: First line of the README.
        about: Text under it.
        notes: Method -> what it is, in words.
        task: The task whose verdicts the tables compare; None: the recipe's first.
        spread: `own`: every cell's interval from its own seeds; `pooled`: their spread pooled over a budget's sizes.
        claims: What the tables decide; see `tables.py`.
    """

    folder: Path
    base: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    sizes: list[float]
    tokens: list[int]
    seeds: list[int]
    title: str = "Study"
    about: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    spread: str = "own"
    claims: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> Grid:
        """Read FOLDER/grid.yaml."""
        value = yaml.safe_load((folder / "grid.yaml").read_text(encoding="utf-8"))
        known = set(Grid.__dataclass_fields__) - {"folder"}
        if unknown := set(value) - known:
            raise GridError(f"{folder}/grid.yaml: unknown keys {sorted(unknown)}; known: {sorted(known)}")
        grid = Grid(folder=folder, **value)
        for claim in grid.claims:
            for key in ("of", "over"):
                if claim.get(key) not in grid.methods:
                    raise GridError(f"claim {claim}: {key} must be one of {sorted(grid.methods)}")
        return grid

    def cells(self) -> list[Cell]:
        """All cells: seeds outermost, cheap budgets first, all methods of one place before the next."""
        return [
            self.cell(m, s, t, seed)
            for seed in self.seeds
            for t in self.tokens
            for s in self.sizes
            for m in self.methods
        ]

    def cell(self, method: str, size: float, tokens: int, seed: int) -> Cell:
        """One cell with its recipe, which must spend the budget exactly."""
        values = {"$size": size, "$tokens": tokens, "$seed": seed}
        recipe = _fill(_merge(self.base, self.methods[method] or {}), values)
        methods = recipe.get("recover") or []
        if sum(m.get("tokens") or 0 for m in methods) != tokens or any(m.get("per", "run") != "run" for m in methods):
            raise GridError(f"{method}: recover must spend the cell's budget: `tokens: $tokens`, `per: run`")
        return Cell(method, size, tokens, seed, recipe)

    @property
    def task_name(self) -> str:
        """The task that the tables compare."""
        return self.task or str(self.base["evaluate"]["tasks"][0]["name"])

    # ------------------------------------------------------------------------------------------------------ records

    @property
    def records(self) -> Path:
        """Folder of the records."""
        return self.folder / "records"

    def record(self, cell: Cell) -> Record | None:
        """A cell's record, or None. GridError if it was made from another recipe than the grid now says."""
        path = self.records / f"{cell.name}.json"
        if not path.is_file():
            return None
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["recipe_sha"] != cell.sha:
            raise GridError(
                f"{path} was made from another recipe than grid.yaml has now: delete it, or undo the change"
            )
        return record

    def finished(self) -> Iterator[tuple[Cell, Record]]:
        """All cells that have a record."""
        for cell in self.cells():
            if record := self.record(cell):
                yield cell, record

    def verdicts(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Question id -> 1.0 (right) or 0.0, from a record's `final` or `original`."""
        found = measured["verdicts"][self.task_name]
        ids = json.loads((self.records / "questions" / f"{found['questions']}.json").read_text(encoding="utf-8"))
        if len(ids) != len(found["right"]):
            raise GridError(f"{len(found['right'])} verdicts on {len(ids)} questions ({found['questions']})")
        return {i: float(r) for i, r in zip(ids, found["right"], strict=True)}


def sha_of(value: object) -> str:
    """SHA-256 (16 hex digits) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in over.items()}}


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, values) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, values) for v in value]
    return values.get(value, value) if isinstance(value, str) else value
