"""`prunetune.compact`: the whole loop on a model object, as one call that gives a model object back.

small = prunetune.compact(model, rows, 0.6, tokenizer=tokenizer, tokens="1M")
small.save_pretrained("small")
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.files import json_sha, once
from prunetune.common.progress import Watch
from prunetune.common.strict_json import to_json_text
from prunetune.errors import DataError, RecipeError
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.told import quiet_libraries
from prunetune.models.folders import load_model
from prunetune.recipe.said import count, parse_data
from prunetune.recipe.schema import Recipe

Rows = Mapping[str, Any]
Data = str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]]


def compact(
    model: PreTrainedModel | str | Path,
    data: Data,
    target: float | int | Mapping[str, int] = 0.6,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokens: int | str | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """Compact a model by the Prune-Tune Loop and return the smaller one; the given one stays as it is.

    Args:
        model: A causal language model of a supported family, or what a recipe may name.
        data: Reasoning sequences: rows of {"question", "answer"}, files, or data sources as a recipe has them.
        target: Share of the parameters, a count, or {"width": .., "depth": ..}.
        tokenizer: The model's; needed with a model object.
        tokens: Recovery tokens of the whole run (`20_000_000`, `"20M"`); None: as recommended. 0: no recovery.
        out: The run folder, which the same call continues, and its report; None: a temporary one, which goes.
        watch: Shows lines and bars; the default writes to stderr.
        **settings: Any other key of a recipe, such as `evaluate={"tasks": [{"name": "gsm8k"}]}` or `seed=1`.

    Returns:
        The compacted model, in eval mode, on the device of the one given.

    Raises:
        PrunetuneError: As the command line says it.
    """
    if isinstance(model, PreTrainedModel) and tokenizer is None:
        raise RecipeError("a model object comes without its tokenizer", fix="compact(model, data, tokenizer=tokenizer)")
    with tempfile.TemporaryDirectory(prefix="prunetune-") as folder, quiet_libraries():
        run = Path(folder) / "run" if out is None else Path(out)
        inputs = Path(folder) if out is None else run.with_name(f"{run.name}-inputs")
        value: dict[str, Any] = {
            "model": str(model) if not isinstance(model, PreTrainedModel) else str(_saved(model, tokenizer, inputs)),
            "data": _sources(data, inputs),
            "prune": {**settings.pop("prune", {}), "target": dict(target) if isinstance(target, Mapping) else target},
            **settings,
        }
        if tokens is not None:
            number = tokens if isinstance(tokens, int) else count(tokens, "tokens")
            value["recover"] = [{"type": "cpt", "tokens": number}] if number else []
        prune_tune_loop(Recipe.parse(value, "compact"), run, watch)
        device = model.device if isinstance(model, PreTrainedModel) else torch.device("cpu")
        return load_model(run / "final", device=str(device))


def _saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, inputs: Path) -> Path:
    """The model as a folder, made once of the same weights."""

    def make(tmp: Path) -> None:
        model.save_pretrained(tmp)
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp)

    sums = {k: _sum(v) for k, v in model.state_dict().items()}
    return once(inputs / "model in memory", {"weights": sums, "config": model.config.to_dict()}, make)


def _sum(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()[
        :16
    ]


def _sources(data: Data, inputs: Path) -> list[Any]:
    """Data as a recipe has it; rows are written to a file, made once of the same rows."""
    given: list[Any] = [data] if isinstance(data, (str, Path, Mapping)) else list(data)
    rows = [r for r in given if isinstance(r, Mapping) and "type" not in r]
    others = [s for s in given if not (isinstance(s, Mapping) and "type" not in s)]
    sources: list[Any] = [parse_data(str(s)) if isinstance(s, (str, Path)) else dict(s) for s in others]
    if rows:
        lines = "".join(to_json_text(dict(r), indent=None) + "\n" for r in rows)
        folder = inputs / f"rows-{json_sha(rows)}"  # the file's name is what messages and the report say
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"rows in memory ({len(rows):,}).jsonl"
        made = once(file, rows, lambda tmp: tmp.write_text(lines, encoding="utf-8"))
        sources.insert(0, {"type": "file", "path": str(made)})
    if not sources:
        raise DataError("there are no data", fix="rows of {'question', 'answer'}, or the path of a file")
    return sources
