"""The model card of a compacted model: hub metadata and the run's own figures, for `final/README.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from prunetune.common import units as human
from prunetune.common.files import read_json
from prunetune.common.yaml import parse_yaml
from prunetune.errors import RecipeError
from prunetune.models.families.pattern import engine_pattern
from prunetune.models.families.wrappers import language_of, wrapper_of
from prunetune.models.folders import DEMO_MODEL
from prunetune.report.render import render
from prunetune.report.view import model_name, view
from prunetune.runs.reading import RunRecord
from prunetune.runs.records import EvalRecord

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def front_matter(text: str) -> dict[str, Any]:
    """The YAML metadata block at the head of a README, {} if there is none, or none that can be read."""
    found = re.match(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", text, flags=re.S)
    try:
        value = parse_yaml(found[1], "README.md", "model card", text_keys=False) if found else None
    except RecipeError:  # a card is somebody's prose: what it does not say in YAML it does not say
        value = None
    return value if isinstance(value, dict) else {}


def card_metadata(run: RunRecord) -> ModelCardData:
    """Hub metadata: what is known, nothing else.

    `base_model` is named only if it has a hub name, `license` only if the source model's own card states one.
    """
    known = _source_card(model_name(run))
    results = [_result(e) for e in (run.final.evals if run.final else ())]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["prunetune", "pruning", "reasoning"],
        base_model=hub_name(model_name(run)),
        model_name=title(run) if results else None,
        eval_results=results or None,
        **{key: known[key] for key in ("license", "license_name", "license_link", "language") if key in known},
    )


def hub_name(model: str) -> str | None:
    """The hub repository that a model reference names, None for a folder, a file or a package."""
    local = Path(model).expanduser().exists() or model.endswith(".gguf")
    return model if HUB_NAME.fullmatch(model) and not local else None


def _source_card(model: str) -> dict[str, Any]:
    path = (DEMO_MODEL if model == "demo" else Path(model).expanduser()) / "README.md"
    return front_matter(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}


def _result(e: EvalRecord) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=e.task,
        dataset_name=f"{e.task} ({e.n:,} {'questions' if e.is_share else 'tokens'})" if e.n else e.task,
        metric_type=human.metric(e.metric).replace(" ", "_"),
        metric_value=round(e.value, 4),
    )


def title(run: RunRecord) -> str:
    """The model's own name: the source's last name and the size left."""
    base = re.sub(r"[^\w.-]+", "-", model_name(run).rstrip("/").split("/")[-1]).strip("-")
    params = run.final.cost.params if run.final else None
    return f"{base}-prunetune-{human.count(params).replace(' ', '')}" if params else f"{base}-prunetune"


def _engines(run: RunRecord, folder: str) -> str | None:
    """Why some engines compute another model than this one; None where none does, or nothing is known of it."""
    return engine_pattern(language_of(_config(run, folder)))


def _config(run: RunRecord, folder: str) -> dict[str, Any]:
    path = run.path / folder / "config.json"
    return dict(read_json(path)) if path.is_file() else {}


def model_card(run: RunRecord, where: str = "path/to/this/folder", folder: str = "final") -> str:
    """The README of the final model, or of a rung's (`run.at_rung`).

    Args:
        run: The run's records.
        where: What a reader passes to `from_pretrained`: the repository name once there is one.
        folder: The model's, below the run.
    """
    base = hub_name(model_name(run))
    stages = []
    for s in run.accepted:
        scores = ", ".join(f"{e.task} {e.text()}" for e in s.evals)
        tokens = f"; {human.count(s.tokens)} recovery tokens" if s.tokens is not None else ""
        stages.append(f"{s.name}: {human.count(s.cost.params)} parameters{tokens}{'; ' + scores if scores else ''}")
    measured = {e.task for e in (run.final.evals if run.final else ())}
    return render(
        "card.md.j2",
        front=f"---\n{card_metadata(run).to_yaml()}\n---\n",
        title=title(run),
        base=f"[{base}](https://huggingface.co/{base})" if base else f"`{model_name(run)}`",
        where=where,
        v=view(run),
        stages=stages,
        engines=_engines(run, folder),
        wrapped=wrapper_of(_config(run, folder)) is not None,
        tasks=", ".join(sorted(measured)) or "nothing",
    )
