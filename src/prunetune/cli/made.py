"""What the single commands have made: recognised before it is replaced; and `apply`, which makes a folder once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunetune.common.files import file_sha, once, read_json
from prunetune.common.outputs import output_new
from prunetune.common.progress import Watch
from prunetune.models.families.pattern import engine_pattern
from prunetune.models.folders import config_values, resolve_model

if TYPE_CHECKING:
    from prunetune.pruning.plan import PrunePlan


def is_scores(path: Path) -> bool:
    """Whether a file is a scores file of ours."""
    return "criterion" in _tensor_note(path)


def is_patch(path: Path) -> bool:
    """Whether a file is a patch of ours."""
    return "fits" in _tensor_note(path)


def _tensor_note(path: Path) -> str:
    """What we write beside the tensors of a safetensors file; empty for a file of others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            return str((f.metadata() or {}).get("prunetune", ""))
    except (SafetensorError, OSError):
        return ""


def is_plan(path: Path) -> bool:
    """Whether a file is a plan."""
    from prunetune.pruning.plan import PrunePlan

    try:
        PrunePlan.model_validate_json(path.read_bytes())
    except ValueError:
        return False
    return True


def apply_plan(
    plan: PrunePlan, model: str, out: Path, patch: Path | None, watch: Watch, *, text_only: bool = False
) -> None:
    """Cut a model into the folder `out`; what a killed call left half made goes, and what is made already stays."""
    from prunetune.pruning.apply import apply_on_disk
    from prunetune.pruning.patch import Patch

    found: Patch | None = None
    key: dict[str, object] = {"apply": plan.model_dump(mode="json")}
    if text_only:
        key["text_only"] = True
    if patch is not None:
        found = Patch.read(patch)
        found.check_plan(plan)
        key["patch"] = file_sha(patch)
    with output_new(out, key) as made:
        if made is not None:
            return watch.line(f"{out} is made already, from the same plan{' and patch' if patch else ''}")
        source = resolve_model(model)
        if plan.drop_layers and (broken := engine_pattern(config_values(source), plan.kept_layers)):
            watch.line(f"warning: {broken}; layers that go in whole periods keep such engines (docs/method.md)")

        def make(tmp: Path) -> None:
            with watch.bar("apply") as bar:
                apply_on_disk(source, plan, tmp, found.tensors if found else None, progress=bar, text_only=text_only)

        once(out, key, make)
    return None


def is_eval(out: Path) -> bool:
    """Whether a folder without a mark is one of version 0.1: it says whose answers it holds."""
    names = {p.name for p in out.iterdir()}
    rest = {n for n in names - {"model.json", ".answers.jsonl"} if not n.endswith((".jsonl", ".jsonl.key", ".tmp"))}
    return "model.json" in names and not rest and set(read_json(out / "model.json")) == {"model_sha"}
