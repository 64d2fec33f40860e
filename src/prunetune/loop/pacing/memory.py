"""Memory that a run takes of one device at its highest, told before it; docs/performance.md has what was then measured.

On a CPU it is what the process holds by now (libraries, rows), and what the largest of its works adds; on a GPU the
latter alone. It is that of the first round, whose model is the largest.
"""

from __future__ import annotations

import psutil
import torch

from prunetune.common.units import size
from prunetune.errors import TooLittleMemory
from prunetune.loop.context import Context
from prunetune.models.cost import block_bytes, cost_of, moments_bytes
from prunetune.pruning.criteria import criterion
from prunetune.tune.launch import devices_of
from prunetune.tune.methods import Cpt, Distill, Grpo, Local, Sft, TuneConfig
from prunetune.tune.training.machine import compute_type, pick_device, total_bytes, training_bytes

SURE = 1.5
"""Times what there is from which on a run is refused. What was told is up to 1.35 times what was measured."""


def check_memory(context: Context) -> int:
    """What `needed` says; TooLittleMemory for a run that needs far more than its device has, before any work.

    Not with a launcher, which may share weights and moments out over devices.
    """
    wanted, there = needed(context), total_bytes(pick_device(context.recipe.device))
    if context.recipe.launcher is None and wanted > SURE * there:
        raise TooLittleMemory(
            "this run needs more memory than there is",
            value=f"about {size(wanted)}, of {size(there)}",
            fix="lora: {rank: 16}, on a GPU optimizer: adamw_8bit, or a smaller max_length under recover; a smaller "
            "score.batch_tokens; of a mixture of experts compensate: none with score.criterion: contribution; or "
            "launcher: fsdp2, which shares weights and moments out over several devices",
        )
    return wanted


def needed(context: Context) -> int:
    """Bytes of the largest work of a run."""
    device, cost = pick_device(context.recipe.device), cost_of(context.config)
    scoring = cost.scoring_bytes(
        context.recipe.score.batch_tokens, gradients=context.recipe.score.criterion == "taylor"
    )
    if context.recipe.compensate != "none":
        scoring += moments_bytes(cost.shape, 2)  # to fit to, and held out
    elif criterion(context.recipe.score.criterion).needs == "moments":
        scoring += moments_bytes(cost.shape, 1)
    begun = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    return begun + max([scoring, *(_recovery(context, method, device) for method in context.recipe.recover)])


def _recovery(context: Context, method: TuneConfig, device: torch.device) -> int:
    """Of one method, with the model that is beside the trained one."""
    cost = cost_of(context.config)
    if isinstance(method, Local):
        return block_bytes(cost, method.block, method.batch_size * method.max_length)
    rows, beside = method.batch_size, 0
    longest = min(method.max_length, max(batch["input_ids"].shape[1] for batch in context.scoring))
    if isinstance(method, Cpt | Sft) and method.packing:
        longest = method.max_length
    if isinstance(method, Distill):
        beside = cost.weight_bytes  # the teacher
    if isinstance(method, Grpo):
        longest += method.max_new_tokens or context.tasks[0].max_new_tokens
        rows, beside = rows * method.group, 4 * cost.params * (method.beta > 0)  # the reference
    share = max(1, rows // devices_of(context.recipe.launcher))
    return beside + training_bytes(
        method,
        config=context.config,
        params=cost.params,
        longest=longest,
        compute=compute_type(method.precision, device),
        device=device,
        share=share,
    )
