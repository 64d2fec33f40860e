"""What a user would take instead, asked the same questions: other models, and the original at 8 or 4 bits.

rivals = rivals_of(recipe, source)        # found and checked before any work
measure_rivals(context, run)              # RUN/rivals/NAME/{eval/, rival.json}, once each
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from prunetune.common.files import json_sha, once, write_json
from prunetune.evaluation.weight_only import round_weights
from prunetune.loop.context import Context, free
from prunetune.loop.measure import answers
from prunetune.models.folders import gguf_of, load_tokenizer, model_sha, resolve_model
from prunetune.models.prompt import check_chat
from prunetune.recipe.measured import WEIGHT_ONLY
from prunetune.recipe.schema import Recipe
from prunetune.report.pairs import ahead, read_samples
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import StageRecord
from prunetune.runs.summary import RivalRecord


def check_rivals(recipe: Recipe) -> None:
    """Find and check every rival before any work.

    Raises:
        MissingPath: No such model. BadCheckpoint, UnsupportedModel: It is unsafe, damaged, or no causal language model.
        DataError: The recipe asks in chats, and it has no template for them.
    """
    formats = [recipe.prompt, *(t.prompt for t in recipe.evaluate.tasks if t.prompt)]
    for name in recipe.evaluate.rivals:
        if name not in WEIGHT_ONLY:
            tokenizer = load_tokenizer(resolve_model(name))
            for fmt in (f for f in formats if f.template == "chat"):
                check_chat(tokenizer, fmt)


def folder_of(name: str) -> str:
    """A rival's folder below RUN/rivals: its last name, and where that does not say which, a part of a hash."""
    if name in WEIGHT_ONLY:
        return name
    last = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
    return f"{last}-{json_sha(name)[:6]}"


def measure_rivals(context: Context, run: RunFolder) -> None:
    """Every rival answers all the questions that original and final answer; each is measured once."""
    for name in context.recipe.evaluate.rivals:
        at = run.path / "rivals" / folder_of(name)
        source = context.source if name in WEIGHT_ONLY else resolve_model(name)
        if context.journal is not None:
            context.journal.stage = f"rivals/{at.name}"
        _measured(context, name, source, at)


def _measured(context: Context, name: str, source: Path, at: Path) -> None:
    sha = model_sha(source) + (f"-{name}" if name in WEIGHT_ONLY else "")

    def make(tmp: Path) -> None:
        model = context.load(source)
        params = sum(p.numel() for p in model.parameters())
        stored, how = 2 * params, ""
        if name in WEIGHT_ONLY:
            stored = round_weights(model, int(name.removeprefix("int")))
            how = "weight-only, round to nearest, groups of 32"
        elif (file := gguf_of(name)) is not None:
            stored, how = file.stat().st_size, "as the GGUF file stores it"
        own = (
            context.untouched()
            if name in WEIGHT_ONLY
            else dataclasses.replace(context, tokenizer=load_tokenizer(source))
        )
        evals = answers(own, model, sha, at, None)
        found = RivalRecord(
            name=name, how=how, model_sha=sha, params=params, weight_bytes=stored, evals=evals, folder=at.name
        )
        write_json(tmp, found.to_json())
        free()

    asked = [[t.name, t.version, len(t.problems)] for t in context.tasks]
    prompt = context.recipe.prompt.model_dump(mode="json")
    tasks = [t.model_dump(mode="json") for t in context.recipe.evaluate.tasks]
    once(at / "rival.json", {"model": sha, "asked": asked, "tasks": tasks, "prompt": prompt}, make)
    line = "  ".join(f"{e.task} {e.text()}" for e in RivalRecord.read(at / "rival.json").evals)
    context.watch.line(f"  rival {name}: {line}")


def rival_records(recipe: Recipe, run: RunFolder, final: StageRecord) -> tuple[RivalRecord, ...]:
    """The rivals as summary.json has them: with how far our final model is ahead of each on the same questions."""
    found = []
    for name in recipe.evaluate.rivals:
        at = run.path / "rivals" / folder_of(name)
        read, ours = RivalRecord.read(at / "rival.json"), run.folder(final.name)
        pairs = {e.task: ahead(read_samples(at, e.task), read_samples(ours, e.task)) for e in read.evals if e.is_share}
        found.append(read.model_copy(update={"against": {t: p for t, p in pairs.items() if p is not None}}))
    return tuple(found)
