"""What is given to every round of one run: the model as it was, the data in their parts, the tasks. Nothing is made.

    context = prepare(recipe, source, watch)      # everything that can fail before any work fails here

stream:  [0, score.samples) scored | [.., + held_out) loss only | the rest, in order, recovery: nothing seen twice
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.device import device_of, fitting_threads, free_device_memory, memory_bytes
from prunetune.common.events import Journal
from prunetune.common.files import json_sha
from prunetune.common.progress import Watch
from prunetune.data.stream import Example, Stream, load_stream
from prunetune.errors import OutOfReach
from prunetune.loop.decide import planned_rounds
from prunetune.loop.inputs import calibrated, check_text
from prunetune.loop.pacing.clock import Clock
from prunetune.loop.workers.pool import Workers, held
from prunetune.models.axes import shape_of
from prunetune.models.calibration import Calibration, Place, place_of
from prunetune.models.cost import ffn_elements
from prunetune.models.families import Family, check_packing, family_of
from prunetune.models.folders import load_config, load_model, load_tokenizer, pad_id, require_end
from prunetune.models.generation import check_router
from prunetune.models.prompt import encode
from prunetune.pruning.experts.tensors import dense_only
from prunetune.pruning.scores import Batch, make_batches
from prunetune.pruning.vocabulary.folder import Fitted, fit
from prunetune.recipe.calibration import counted
from prunetune.recipe.schema import Recipe
from prunetune.recipe.traces import judge_of, questions, traces_of
from prunetune.schedule.reach import able, in_blocks
from prunetune.schedule.sizes import Sizes
from prunetune.schedule.steps import check_protection, check_removes, plan_ahead
from prunetune.tasks.problems import check_examples
from prunetune.tasks.registry import Task, build_judge, build_task


@dataclass(frozen=True)
class Context:
    """What a run is given.

    Attributes:
        recipe: What to do; where only measuring tells the final shape, with it once it is known.
        source: Folder of the untouched model.
        config: Its config.
        sizes: Its parameters by depth and width.
        tokenizer: Its tokenizer.
        stream: Reasoning sequences: first those to score with, then held-out ones, then what recovery trains on.
        scores: What is scored, where that has data of its own.
        calibration: How many sequences are scored, and what they hold.
        fresh: Methods whose stream is another in each round.
        own: The streams of methods with data of their own, by the method's place in the recipe.
        tasks: What is measured.
        device: Where scoring and evaluation run.
        watch: Shows lines and bars.
        wanted: The recipe as it was given.
        clock: The time that is left, where the run has one.
        journal: Where events go; None: nowhere.
        fitted: The tokens that stay, where the vocabulary is cut.
        start: Folder of the model with these tokens, which the first round starts from; `tokenizer` is its own.
        began: When the run began, as `time.monotonic` has it: of a command, its process.
        opening: Seconds from then until all was read, and planned where the run has a time.
    """

    recipe: Recipe
    source: Path
    config: Any
    sizes: Sizes
    tokenizer: PreTrainedTokenizerBase
    stream: Stream
    own: Mapping[int, Stream]
    tasks: tuple[Task, ...]
    device: str
    watch: Watch
    wanted: Recipe
    clock: Clock | None = None
    journal: Journal | None = None
    scores: Stream | None = None
    fresh: frozenset[int] = frozenset()
    calibration: Calibration | None = None
    fitted: Fitted | None = None
    start: Path | None = None
    began: float = field(default_factory=time.monotonic)
    opening: float = 0.0

    @property
    def begins(self) -> Path:
        """Folder of the model that the first round starts from, and that teaches."""
        return self.start or self.source

    @property
    def rows(self) -> int | None:
        """Rows of the embedding that are left, where the vocabulary is cut."""
        return len(self.fitted.kept.rows) if self.fitted else None

    def untouched(self) -> Context:
        """What is given to the original, whose ids are its own tokenizer's; itself where the vocabulary is whole."""
        return self if self.start is None else replace(self, start=None, tokenizer=load_tokenizer(self.source))

    @property
    def reserved(self) -> int:
        """Sequences at the start of the stream that are never trained on."""
        return self.recipe.reserved

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """Encoded, cut at the length limit, sorted by length."""
        limit = self.recipe.score.max_length
        rows = [encode(self.tokenizer, e, self.recipe.prompt, limit) for e in examples]
        return make_batches([r.input_ids for r in rows], pad_id(self.tokenizer), self.recipe.score.batch_tokens)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The axes beside neurons and layers whose units are scored for the first round: some may go."""
        asked = {*self.recipe.prune.cut, *(self.wanted.prune.axes or ())}
        return tuple(name for name in in_blocks() if name in asked and may_be_left(self.config, name))

    @cached_property
    def scoring(self) -> list[Batch]:
        """The sequences that are scored in every round."""
        return self.batches(self.scored)

    @property
    def scored(self) -> Sequence[Example]:
        """The same as text: the first of the stream, or of data of their own."""
        stream = self.scores or self.stream
        return stream.take(0, min(len(stream), self.recipe.score.count))

    @property
    def scored_sha(self) -> str:
        """Hash of the stream that they are from."""
        return (self.scores or self.stream).sha

    @cached_property
    def held_out(self) -> list[Example]:
        """Sequences for the loss after pruning and after recovery."""
        return list(self.stream.take(self.reserved - self.recipe.score.held_out, self.reserved))

    @cached_property
    def guarded(self) -> list[Batch]:
        """The protected corpus."""
        if self.recipe.protect is None:
            return []
        stream = load_stream(self.recipe.protect.data, self.recipe.seed)
        return self.batches(stream.take(0, min(self.recipe.protect.samples, len(stream))))

    def load(self, folder: Path) -> PreTrainedModel:
        """A model in its own dtype on the device."""
        return load_model(folder, device=self.device)


def may_be_left(config: Any, name: str) -> list[int]:
    """How many units of an axis may be left, fewer than there are, so that the model is a stock one; descending."""
    values = config.to_dict()
    return able(name, shape_of(values)[name], family_of(config), values)


def few_threads(recipe: Recipe, source: Path) -> AbstractContextManager[None]:
    """Inside, torch has as many threads on a CPU as the model is worth (see `fitting_threads`)."""
    return fitting_threads(device_of(recipe.device), ffn_elements(load_config(source)))


def prepare(recipe: Recipe, source: Path, watch: Watch, journal: Journal | None = None) -> Context:
    """Read what a run is given, and check all that can be known to fail before any work.

    Args:
        recipe: What to do.
        source: Folder of the untouched model.
        watch: Shows lines and bars.
        journal: Where events go.

    Raises:
        UnsupportedModel, OutOfReach, DataError, TaskError, BadCheckpoint: As model, target, data and tasks have them.
    """
    config, device = load_config(source), device_of(recipe.device)
    for traces in traces_of(recipe):
        build_judge(judge_of(recipe, traces))
    _check_family(recipe, family_of(config))
    if recipe.prune.vocabulary is None:  # else the data decide what is left of it
        sizes = sizes_of(recipe, config)
    stream = load_stream(questions(recipe.data), recipe.seed)
    scores = load_stream(questions(recipe.score.data), recipe.seed) if recipe.score.data else None
    tokenizer = load_tokenizer(source)
    recipe = counted(recipe, (found := calibrated(recipe, config, tokenizer, stream, scores, device)).samples)
    if len(stream) <= recipe.reserved:
        raise OutOfReach(
            "scoring and held-out loss would use up all the data",
            value=f"{len(stream)} sequences",
            valid=f"more than {recipe.reserved} ({'' if recipe.score.data else 'score.samples + '}score.held_out)",
            fix="more data, or fewer of them: "
            f"--set score.samples={max(1, len(stream) // 2)} --set score.held_out={max(1, len(stream) // 8)}",
        )
    own, tasks = _own(recipe), tuple(map(build_task, recipe.evaluate.tasks))
    if any(method.type == "grpo" for method in recipe.recover):
        require_end(tokenizer, "grpo")
        check_router(config)
    check_text(recipe, tokenizer, [stream, *own.values(), *([scores] if scores else [])], tasks, watch)
    for i, method in enumerate(recipe.recover):
        if method.type == "grpo" and recipe.evaluate.judged is not None:  # the reward can read every answer of the data
            check_examples(own.get(i, stream).examples, build_judge(recipe.evaluate.judged))
    fitted = fitted_to(recipe, source, [stream, *own.values(), *([scores] if scores else [])])
    sizes = sizes if fitted is None else sizes_of(recipe, config, len(fitted.kept.rows))
    return Context(
        recipe=recipe,
        source=source,
        config=config,
        sizes=sizes,
        tokenizer=tokenizer,
        stream=stream,
        own=own,
        tasks=tasks,
        device=device,
        watch=watch,
        journal=journal,
        wanted=recipe,
        scores=scores,
        calibration=found,
        fitted=fitted,
    )


def _check_family(recipe: Recipe, family: Family) -> None:
    """UnsupportedModel where a family has no way of doing what a recipe asks for."""
    if any(method.type == "local" for method in recipe.recover):
        dense_only(family, "local recovery", "another method: cpt, sft or distill")
    if any(getattr(method, "packing", False) for method in recipe.recover):
        check_packing(family.model_type)


def sizes_of(recipe: Recipe, config: Any, rows: int | None = None) -> Sizes:
    """The sizes that the schedule counts with; OutOfReach, UnsupportedModel if it cannot reach the target with them."""
    sizes = Sizes.of(config, recipe.prune.cut, rows)
    check_removes(recipe.prune, sizes)
    planned_rounds(recipe, sizes)  # the target can be reached
    ahead = plan_ahead(recipe.prune, sizes) if recipe.foreseen else []
    if recipe.protect:
        check_protection(ahead, sizes.width, recipe.protect.share)
    return sizes


def fitted_to(recipe: Recipe, source: Path, streams: Sequence[Stream]) -> Fitted | None:
    """The tokens that stay, by all the text of a recipe; None where it cuts none. Errors: see `folder.fit`."""
    if (wanted := recipe.prune.vocabulary) is None:
        return None
    texts = list(chain.from_iterable(stream.examples for stream in streams))
    guard = load_stream(wanted.guard, recipe.seed).examples if wanted.guard else ()
    keep = wanted.keep if isinstance(wanted.keep, int) else None
    return fit(source, texts, list(guard), keep=keep, formats=[recipe.prompt])


def _own(recipe: Recipe) -> dict[int, Stream]:
    """The streams of methods with data of their own; methods of the same data share one."""
    streams: dict[str, Stream] = {}
    found = {}
    for i, method in enumerate(recipe.recover):
        if method.data is not None:
            key = json_sha([s.model_dump(mode="json") for s in method.data])
            streams[key] = found[i] = streams.get(key) or load_stream(questions(method.data), recipe.seed)
    return found


def holding(context: Context, folder: Path) -> AbstractContextManager[PreTrainedModel | Workers]:
    """A model that is to be asked: on the device, or on all devices of the recipe's launcher."""
    return held(folder, context.device, context.recipe.launcher)


def place(context: Context) -> Place:
    """Where the hidden states of compensation lie."""
    device = torch.device(context.device)
    held = context.calibration.bytes if context.calibration else 0
    return place_of(held, device.type, *memory_bytes(device))


def free() -> None:
    """Give memory back between models."""
    free_device_memory()
