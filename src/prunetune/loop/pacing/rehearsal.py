"""A dry run on this machine: all that a run reads is read, a few batches of each kind of work are done and timed.

    found = rehearsed(recipe, out, watch, begin)     # fails where the run would before training, with its message
    found.minutes, found.text
    foretold(recipe)                                       # a run's first line: what the dry run has found

Nothing is written but the figure, in the user's cache. Weights are not fetched: of a hub model without a copy here it
is told whether the hub can be reached. Data sets are read as the run reads them.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common.progress import Watch

if TYPE_CHECKING:
    from prunetune.loop.context import Context
    from prunetune.recipe.schema import Recipe

CACHE = Path("~/.cache/prunetune/pace")
KEPT = 3
"""Models of a run that are on its disk at once: the newest, the best, the one that is made."""


@dataclass(frozen=True)
class Room:
    """Bytes that a run needs, and what there is: of disk, and of memory where it trains."""

    disk_bytes: int
    free_bytes: int
    memory_bytes: int
    there_bytes: int

    @property
    def text(self) -> str:
        """In words."""
        from prunetune.common.units import size

        lacks = "" if self.memory_bytes <= self.there_bytes else " (too little: LoRA, or a launcher that shares it out)"
        return (
            f"disk: up to {size(self.disk_bytes)} of {size(self.free_bytes)} free; "
            f"memory: about {size(self.memory_bytes)} of {size(self.there_bytes)}{lacks}"
        )


@dataclass(frozen=True)
class Rehearsal:
    """What a run would take of this machine.

    Attributes:
        text: All of it, in words.
        minutes: Of the whole run; None: not known, for the model is not here.
        parts: Kind of work -> its seconds.
        plan: With a budget of time: what fits into it, a line each.
        room: Disk and memory.
        longer: Minutes more that it may take on a busy machine.
        held: Tokens that the data hold, of methods that were to have more, by their place in the recipe.
    """

    text: str
    minutes: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    plan: tuple[str, ...] = ()
    room: Room | None = None
    longer: float = 0.0
    held: Mapping[int, int] = field(default_factory=dict)

    def limited(self, recipe: Recipe) -> Recipe:
        """The recipe with no more recovery tokens than its data hold."""
        less = [
            m.changed(tokens=self.held[i], samples=None) if i in self.held else m for i, m in enumerate(recipe.recover)
        ]
        return recipe.changed(recover=less) if self.held else recipe

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `run --dry-run --json` prints them; none where nothing is known."""
        if self.minutes is None or self.room is None:
            return {}
        how = {"plan": list(self.plan)} if self.plan else {"parts": dict(self.parts)}
        return {"minutes": self.minutes, "minutes_at_most": self.minutes + self.longer, **how, **asdict(self.room)}


def rehearsed(recipe: Recipe, out: Path, watch: Watch, begin: Callable[[], None]) -> Rehearsal:
    """What a run would take of this machine.

    Args:
        recipe: What a run would do.
        out: Its folder.
        watch: Shows lines and bars.
        begin: Called before libraries are at work.

    Raises:
        PrunetuneError: What the run itself would say before it trains.
    """
    from prunetune.data.hub import is_offline
    from prunetune.models.folders import is_here

    if not is_here(recipe.model):
        away = " and the hub cannot be reached, so that a run would fail" if is_offline() else ""
        return Rehearsal(f"minutes on this machine: not known, for {recipe.model} is not here{away}")
    from prunetune.loop.beside.rivals import check_rivals
    from prunetune.loop.context import few_threads, place, prepare
    from prunetune.loop.pacing.clock import process_began
    from prunetune.loop.pacing.minutes import minutes
    from prunetune.loop.pacing.pace import measured
    from prunetune.loop.pacing.within import fitted
    from prunetune.loop.recovery.shares import held_tokens, scarce_notes
    from prunetune.loop.start.again import check_again
    from prunetune.loop.verdict import hardly_provable
    from prunetune.models.folders import resolve_model
    from prunetune.recipe.measured import WEIGHT_ONLY
    from prunetune.runs.folder import RunFolder

    begin()
    source = resolve_model(recipe.model)
    RunFolder.check(out, recipe, source)
    check_again(recipe, source, RunFolder(out, source), watch=watch)
    far = [name for name in recipe.evaluate.rivals if name not in WEIGHT_ONLY and not is_here(name)]
    near = [name for name in recipe.evaluate.rivals if name not in far]
    check_rivals(recipe.changed(evaluate=recipe.evaluate.model_copy(update={"rivals": near})))
    if far:
        watch.line(f"rivals that are not here, which only the run can check: {', '.join(far)}")
    context = dataclasses.replace(prepare(recipe, source, watch), began=process_began())
    for note in scarce_notes(context):
        watch.line(note)
    space, doubt = room(context, out), hardly_provable(context)
    told = f"{space.text}\nwarning: {doubt}" if doubt else space.text
    with few_threads(recipe, source):
        pace = measured(context)
    if recipe.within is not None:
        plan = fitted(context, pace)
        _keep(recipe, "\n".join(plan.told))
        return Rehearsal("\n".join([*plan.told, told]), recipe.within / 60, plan=tuple(plan.told), room=space)
    found = minutes(context, pace)
    if recipe.compensate != "none" and context.calibration is not None:
        told = f"{context.calibration.text(place(context))}\n{told}"
    _keep(recipe, found.text())
    held, longer = held_tokens(context), found.longer / 60
    return Rehearsal(f"{found.text()}\n{told}", found.total / 60, dict(found.parts), (), space, longer, held)


def room(context: Context, out: Path) -> Room:
    """Disk and memory that a run needs, against what is there. NotWritable, TooLittleMemory: that is too little."""
    import shutil

    from prunetune.common.disk import check_space
    from prunetune.loop.pacing.memory import check_memory
    from prunetune.models.cost import cost_of
    from prunetune.tune.training.machine import pick_device, total_bytes

    cost = cost_of(context.config)
    weights = sum(p.stat().st_size for p in context.source.glob("*.safetensors"))
    disk = KEPT * weights + (16 * cost.params if context.recipe.recover else 0)  # a checkpoint: fp32 and two moments
    disk += round(sum(context.recipe.prune.ladder or ()) * weights)  # each rung's model stays
    check_space(out, disk, "the run's models and one checkpoint")
    memory, at = check_memory(context), out.absolute()
    while not at.exists():
        at = at.parent
    there = total_bytes(pick_device(context.recipe.device))
    return Room(disk, shutil.disk_usage(at).free, memory, there)


def foretold(recipe: Recipe) -> str:
    """What the last dry run of this recipe has found on this machine, or how to know."""
    from prunetune.common.units import duration

    file = _file(recipe)
    if recipe.within is not None:
        return f"within {duration(recipe.within)}: what fits is measured first"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    return "how long it takes on this machine: the same command with --dry-run measures it"


def _keep(recipe: Recipe, text: str) -> None:
    from prunetune.common.files import replacing

    file = _file(recipe)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as tmp:
            tmp.write_text(text + "\n", encoding="utf-8")
    except OSError:  # a home that cannot be written: then the run does not know
        return


def _file(recipe: Recipe) -> Path:
    from prunetune.common.files import json_sha

    threads = os.environ.get("OMP_NUM_THREADS", "")
    machine = (platform.node(), os.cpu_count(), threads)
    return CACHE.expanduser() / f"{json_sha([recipe.model_dump(mode='json'), machine])}.txt"
