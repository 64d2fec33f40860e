"""The vocabulary cut of a run, once, before its first round: RUN/vocabulary/.

    context = started(context, run)      # RUN/vocabulary/model: the original with fewer tokens; vocabulary.json: which
    measured(context, run)               # RUN/vocabulary/stage.json, the same way as a round; no task is asked again

What the original is stays: it is measured with its own tokenizer, and sizes and targets count against it.
"""

from __future__ import annotations

import argparse
import inspect
import time
from dataclasses import asdict, replace
from pathlib import Path

from prunetune.common.files import once, write_json
from prunetune.data.example import Example
from prunetune.data.stream import load_stream
from prunetune.loop.context import Context, free
from prunetune.loop.measure import line_of, loss_of, stage_record
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_config, load_tokenizer, model_sha
from prunetune.pruning.vocabulary.folder import Fitted, cut_vocabulary, left_out
from prunetune.pruning.vocabulary.texts import length
from prunetune.runs.folder import RunFolder, Timed, seconds_of
from prunetune.runs.records import CostRecord, Figures, StageRecord, Verdict
from prunetune.runs.vocabulary import VOCABULARY, LengthRecord, VocabularyRecord

MODEL, RECORD = "model", "vocabulary.json"
LANGUAGES = (
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits, doués de raison et de conscience.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados como están de razón y conciencia.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
)
"""The first article of the Universal Declaration of Human Rights, in German, French, Spanish, Russian and Chinese."""


def started(context: Context, run: RunFolder) -> Context:
    """The context whose rounds start from the model with fewer tokens; itself where the vocabulary stays whole.

    Raises:
        BadCheckpoint, NotWritable, UnsupportedModel: See `folder.cut_vocabulary`.
    """
    if (fitted := context.fitted) is None:
        return context
    timed = Timed(run.folder(VOCABULARY))
    timed.at.mkdir(parents=True, exist_ok=True)
    key = {"vocabulary": fitted.sha, "model": model_sha(context.source)}

    def make(tmp: Path) -> None:
        with context.watch.bar(VOCABULARY) as bar:
            cut_vocabulary(context.source, fitted, tmp, progress=bar)

    folder = timed.once(MODEL, VOCABULARY, key, make)
    begun = replace(context, start=folder, tokenizer=load_tokenizer(folder))
    told = {**key, "data": context.stream.sha, "tasks": [task.version for task in context.tasks]}
    once(timed.at / RECORD, told, lambda tmp: write_json(tmp, _record(begun, fitted).to_json()))
    run.first = VOCABULARY
    return begun


def measured(context: Context, run: RunFolder) -> StageRecord:
    """The record of the model with fewer tokens: its size and held-out loss. What it answers the first round tells."""
    at = run.folder(VOCABULARY)
    sha = model_sha(context.begins)

    def make(tmp: Path) -> None:
        start, config = time.monotonic(), load_config(context.begins)
        loss = loss_of(context, context.begins)
        free()
        cost = CostRecord.model_validate(cost_of(config).to_json())
        record = stage_record(
            context,
            config,
            Figures(cost=cost, evals=(), pruned_loss=None, held_out_loss=loss),
            index=0,
            name=VOCABULARY,
            model_sha=sha,
            rounds=run.original.rounds,
            seconds={
                VOCABULARY: seconds_of(at, MODEL),
                "evaluate": round(time.monotonic() - start, 3),
            },
            verdict=Verdict(accepted=True, why="tokens that the texts do not use are gone"),
        )
        write_json(tmp, record.to_json())

    once(at / "stage.json", {"model": sha, "data": context.stream.sha, "original": run.original.model_sha}, make)
    context.watch.line(line_of(run.start, run.original))
    return run.start


def longer_by(run: RunFolder) -> float:
    """Tokens of the run's data with the new vocabulary for one of the old: 1 where it has room for all they use."""
    return VocabularyRecord.read(run.folder(VOCABULARY) / RECORD).lengths["data"].ratio


def _record(context: Context, fitted: Fitted) -> VocabularyRecord:
    """What stays, what it was fitted to, and how much longer texts become: those, and some that decided nothing."""
    old, new, kept = load_tokenizer(context.source), context.tokenizer, fitted.kept
    wanted = context.wanted.prune.vocabulary
    guard = load_stream(wanted.guard, context.recipe.seed).examples if wanted and wanted.guard else ()
    fit_to = {"data": list(context.stream.examples), "guard": list(guard)}
    for place, stream in context.own.items():
        fit_to[f"data of {context.recipe.recover[place].type}"] = list(stream.examples)
    others = {
        task.name: [Example(p.question, str(p.reference), task.name) for p in task.problems] for task in context.tasks
    }
    others["code (Python's argparse)"] = [Example("", inspect.getsource(argparse), "code")]
    others["other languages (five sentences)"] = [Example("", text, "languages") for text in LANGUAGES]
    lengths = {name: length(old, new, texts, kept.rows) for name, texts in {**fit_to, **others}.items() if texts}
    return VocabularyRecord(
        tokens=kept.tokens,
        original_tokens=len(fitted.tokenizer.tokens),
        rows=len(kept.rows),
        original_rows=context.config.vocab_size,
        used=kept.used,
        lost=kept.lost,
        lengths={name: LengthRecord(**asdict(x), ratio=x.ratio, fitted=name in fit_to) for name, x in lengths.items()},
        left_out=tuple(left_out(context.source)),
    )
