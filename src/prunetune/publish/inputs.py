"""What `check` and `push` are given: a run folder, whose final model is meant, a rung's model, or any model folder."""

from __future__ import annotations

from pathlib import Path

from prunetune.common.notes import verify
from prunetune.errors import MissingPath
from prunetune.models.folders import check_weights
from prunetune.runs.ours import verify_run
from prunetune.runs.reading import RunRecord, read_run


def final_of(path: Path) -> tuple[Path, RunRecord | None]:
    """(the model folder, the run that made it, if a run folder or a rung of one was given); the model is checked.

    Raises:
        MissingPath: neither a run nor a model, or a run that has no final model yet.
        BadCheckpoint, UnsupportedModel: see `models.folders.check_weights`.
    """
    if _looks_like_model(path):
        check_weights(verify(path))
        return path, _at_rung(path)
    verify_run(path)
    record = read_run(path)
    final = path / "final"
    if not final.is_dir():
        raise MissingPath("this run has no final model yet", value=str(final), fix="finish the run first")
    check_weights(final)
    return final, record


def _at_rung(path: Path) -> RunRecord | None:
    """The run as it stood at a rung of its ladder, where the folder is that rung's model."""
    run = path.resolve().parent
    if not (run / "summary.json").is_file() or not (run / "original").is_dir():
        return None
    record = read_run(run)
    return next((record.at_rung(r) for r in record.summary.ladder if r.folder == path.resolve().name), None)


def _looks_like_model(path: Path) -> bool:
    """Whether a folder is meant as a model, whole or not: then it is the model that has something wrong."""
    if not path.is_dir() or (path / "original").is_dir():
        return False
    return (path / "config.json").is_file() or any(p.suffix in (".safetensors", ".bin") for p in path.iterdir())
