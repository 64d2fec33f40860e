"""No harm by recovery: where it raised the held-out loss, weights between the cut model's and the recovered ones stay.

    result = no_worse(context, cut, tuned, work, result)      # `tuned` then has at most the held-out loss of `cut`

Weights between the two ends of a training often serve better than either (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903): what training brought back elsewhere need not all go for the harm it did here.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch

from prunetune.common.files import check_space, fresh, remove, temporary
from prunetune.loop.context import Context
from prunetune.loop.measure import loss_of
from prunetune.models.shards import INDEX, ShardReader, open_shards, rewrite
from prunetune.runs.folder import link_or_copy
from prunetune.tune.job import TuneResult

HALVINGS = 3
"""How often the way is halved; then the cut model goes on as it was."""


def no_worse(context: Context, cut: Path, tuned: Path, work: Path, result: TuneResult) -> TuneResult:
    """If recovery has raised the held-out loss, put other weights in its place.

    They lie on the way from the cut model's to the recovered ones: at half of it, a quarter or an eighth, whichever is
    first no worse than the cut model's; else at its start.

    Args:
        context: The run.
        cut: Folder of the cut model.
        tuned: Folder of the recovered one, with tensors of the same names and shapes; rewritten where it is worse.
        work: A folder for what is between the two.
        result: What recovery did.

    Returns:
        The result, with a note where not all of it stayed.
    """
    before, after = (loss_of(context, folder) for folder in (cut, tuned))
    if after <= before:
        return result
    raised = f"raised the held-out loss from {before:.4f} to {after:.4f}"
    for halved in range(1, HALVINGS + 1):
        share, between = 0.5**halved, temporary(work / "between")
        remove(between)
        interpolate(cut, tuned, share, between)
        loss = loss_of(context, between)
        if loss <= before:
            remove(tuned)
            shutil.copytree(between, tuned, copy_function=link_or_copy)
            remove(between)
            return _noted(result, f"recovery {raised}: {share:.3g} of the way to its weights was gone ({loss:.4f})")
        remove(between)
    remove(tuned)
    shutil.copytree(cut, tuned)
    return _noted(result, f"recovery was undone: it {raised}; the cut model went on")


def interpolate(start: Path, end: Path, share: float, out: Path) -> None:
    """Write the model whose weights are `share` of the way from one model's to another's, tensor by tensor.

    Args:
        start: A model folder.
        end: Another, with tensors of the same names and shapes; types, config and all else are its own.
        share: 0: the first model's weights; 1: the second's.
        out: A folder that does not exist yet.
    """
    files = {name: path for path, infos in open_shards(start).items() for name in infos}
    kept = {path: {name: (name, info) for name, info in infos.items()} for path, infos in open_shards(end).items()}

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        with ShardReader(files[name]) as reader:
            return torch.lerp(reader.read(name).float(), tensor.float(), share).to(tensor.dtype)

    with fresh(out) as tmp:
        check_space(out, sum(path.stat().st_size for path in kept), "the model between the two")
        shutil.copytree(end, tmp, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
        rewrite(kept, change, tmp)


def _noted(result: TuneResult, note: str) -> TuneResult:
    return dataclasses.replace(result, notes=[*result.notes, note])
