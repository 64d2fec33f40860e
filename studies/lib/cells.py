"""A study on disk: its grid file to cells, and its records. Pure but for reading; neither torch nor the package is needed.

    studies/NN-name/grid.yaml                 what is compared
    studies/NN-name/records.jsonl             one line a finished cell: figures, rounds, verdicts as a string of 0 and 1
                                              (and the ids that such a string belongs to; see `records.py`)

In a grid, `$size`, `$tokens` and `$seed` stand for the cell's own values, `$NAME` for what `values: {NAME: {0.6: 6}}` says
at the cell's size; a method's keys are merged into `base` (mappings key by key, anything else whole). Five keys of a
method are the grid's own and no part of the recipe:

    run: slicegpt       another runner than the loop (`grid.runner`)
    sizes: [0.6]        only at these sizes
    size: 1.0           one cell a budget and seed, at a size of its own, shown in every row of its budget: a control
    spends: other       not the cell's budget, so as its note says
    retired: why        its records stay; the package can no longer run it

`more` asks for further seeds where three are too few to decide: `[{methods: [a, b], tokens: [320_000], seeds: [3, 4]}]`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from records import Records

from prunetune.common.yaml import read_yaml

Record = dict[str, Any]
ORIGINAL = "original"
"""The untouched model, as the `over` of a claim."""
UNITS = {"tokens": "tokens", "samples": "prompts"}


class GridError(ValueError):
    """A grid file or a record that cannot be used."""


OWN_KEYS = ("run", "sizes", "size", "spends", "retired")
LOOP = "loop"


@dataclass(frozen=True)
class Cell:
    """One run: a method at a size, a budget (in the grid's unit) and a seed."""

    method: str
    size: float
    tokens: int
    seed: int
    recipe: dict[str, Any] = field(compare=False)
    run: str = LOOP
    retired: str | None = None

    @property
    def name(self) -> str:
        """File name of the record."""
        return f"{self.method}-{self.size:g}-{self.tokens}-s{self.seed}"

    @property
    def sha(self) -> str:
        """What the record was made from; defaults of the package are not in it."""
        return sha_of(self.recipe if self.run == LOOP else {"run": self.run, "recipe": self.recipe})


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Attributes:
        folder: The study's folder.
        base: Recipe that all methods share.
        methods: Name -> keys that differ.
        sizes: Shares of the parameters.
        tokens: Budgets of a whole run: recovery tokens, or what `budget` says.
        seeds: Recipe seeds.
        title: First line of the README.
        about: Text under it.
        notes: Method -> what it is, in words.
        task: The task whose verdicts the tables compare; None: the recipe's first.
        spread: `own`: every cell's interval from its own seeds; `pooled`: their spread pooled over a budget's sizes.
        claims: What the tables decide; see `tables.py`.
        budget: What `tokens` counts: `tokens`, or `samples` (prompts, of GRPO).
        values: Further values that depend on the size: NAME -> size -> value.
        by_round: Methods of which a table and a figure show the accuracy after every round.
        more: Further seeds of some methods at some budgets, at every size: `methods`, `tokens`, `seeds`.
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
    budget: str = "tokens"
    values: dict[str, dict[float, Any]] = field(default_factory=dict)
    by_round: list[str] = field(default_factory=list)
    more: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> Grid:
        """Read FOLDER/grid.yaml."""
        value = read_yaml(folder / "grid.yaml", "grid", text_keys=False)
        if not isinstance(value, dict):
            raise GridError(f"{folder}/grid.yaml: a grid is a mapping")
        known = set(Grid.__dataclass_fields__) - {"folder"}
        if unknown := set(value) - known:
            raise GridError(f"{folder}/grid.yaml: unknown keys {sorted(unknown)}; known: {sorted(known)}")
        grid = Grid(folder=folder, **value)
        if grid.budget not in UNITS:
            raise GridError(f"budget: {grid.budget}: must be one of {sorted(UNITS)}")
        for claim in grid.claims:
            for key, others in (("of", []), ("over", [ORIGINAL])):
                if claim.get(key) not in [*grid.methods, *others]:
                    raise GridError(f"claim {claim}: {key} must be one of {sorted([*grid.methods, *others])}")
        if not set(grid.by_round) <= set(grid.methods):
            raise GridError(f"by_round: {grid.by_round}: must be methods of {sorted(grid.methods)}")
        for m in grid.more:
            if set(m) != {"methods", "tokens", "seeds"} or not set(m["methods"]) <= set(grid.methods):
                raise GridError(f"more: {m}: must give methods (of {sorted(grid.methods)}), tokens and seeds")
        return grid

    def at(self, method: str, size: float) -> float | None:
        """The size of the method's cell that a row of this size shows; None: it has none."""
        keys = self.methods[method] or {}
        if "size" in keys:
            return float(keys["size"])
        return size if size in keys.get("sizes", self.sizes) else None

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of every cell, then those that `more` adds to some."""
        return list(dict.fromkeys([*self.seeds, *(s for m in self.more for s in m["seeds"])]))

    def seeds_of(self, method: str, tokens: int) -> list[int]:
        """The seeds that a method has at a budget; those of `ORIGINAL` are all."""
        if method == ORIGINAL:
            return self.all_seeds
        more = [s for m in self.more if method in m["methods"] and tokens in m["tokens"] for s in m["seeds"]]
        return list(dict.fromkeys([*self.seeds, *more]))

    def cells(self) -> list[Cell]:
        """All cells: seeds outermost, cheap budgets first, all methods of one place before the next."""
        places = [(s, t, seed) for seed in self.all_seeds for t in self.tokens for s in self.sizes]
        found = [
            (m, at, t, seed)
            for s, t, seed in places
            for m in self.methods
            if (at := self.at(m, s)) is not None and seed in self.seeds_of(m, t)
        ]
        return [self.cell(*place) for place in dict.fromkeys(found)]

    def cell(self, method: str, size: float, tokens: int, seed: int) -> Cell:
        """One cell with its recipe, which must spend the budget exactly."""
        values = {"$size": size, "$tokens": tokens, "$seed": seed}
        values |= {f"${name}": of[size] for name, of in self.values.items() if size in of}
        keys = self.methods[method] or {}
        recipe = _fill(_merge(self.base, {k: v for k, v in keys.items() if k not in OWN_KEYS}), values)
        methods = recipe.get("recover") or []
        spent = sum(m.get(self.budget) or 0 for m in methods)
        if any(m.get("per", "run") != "run" for m in methods) or (spent != tokens and keys.get("spends") != "other"):
            raise GridError(f"{method}: recover must spend the cell's budget: `{self.budget}: $tokens`, `per: run`")
        return Cell(method, size, tokens, seed, recipe, keys.get("run", LOOP), keys.get("retired"))

    @property
    def unit(self) -> str:
        """What a budget counts, in words."""
        return UNITS[self.budget]

    @property
    def task_name(self) -> str:
        """The task that the tables compare."""
        return self.task or str(self.base["evaluate"]["tasks"][0]["name"])

    # ------------------------------------------------------------------------------------------------------ records

    @property
    def records(self) -> Records:
        """What was measured."""
        return Records(self.folder / "records.jsonl")

    def record(self, cell: Cell) -> Record | None:
        """A cell's record, or None. GridError if it was made from another recipe than the grid now says."""
        record: Record | None = self.records.get(cell.name)
        if record is not None and record["recipe_sha"] != cell.sha:
            raise GridError(
                f"{cell.name} was made from another recipe than {self.folder.name}/grid.yaml has now: undo the change, "
                "or measure it again (grid.py --again)"
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
        ids = self.records.get(f"questions/{found['questions']}")
        if len(ids) != len(found["right"]):
            raise GridError(f"{len(found['right'])} verdicts on {len(ids)} questions ({found['questions']})")
        return {i: float(r) for i, r in zip(ids, found["right"], strict=True)}


def paper(cell: Cell) -> dict[str, Any]:
    """A cell's recipe to run: what a grid does not say is as the paper has it."""
    return {"extends": "paper", **cell.recipe}


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
