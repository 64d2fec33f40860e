"""How many questions fit into memory at once."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedModel

LARGEST_BATCH = {"cpu": 64, "cuda": 512, "mps": 64}


def guess_batch(model: PreTrainedModel, tokens: int, processes: int = 1) -> int:
    """As many rows as half of the free memory holds of KV cache, up to what still pays on the device.

    Args:
        model: On its device.
        tokens: Of the longest row: prompt and answer.
        processes: That have a model each, on a CPU in the same memory.
    """
    config = model.config.get_text_config()
    row_bytes = 2 * _keys(config) * model.dtype.itemsize * tokens
    row_bytes += 16 * (config.vocab_size + tokens * config.hidden_size)  # logits in fp32, activations of the prompt
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    else:
        free = min(8 << 30, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // processes
    return max(1, min(LARGEST_BATCH.get(model.device.type, 64), int(free // 2 // row_bytes)))


def _keys(config: Any) -> int:
    """Key heads times their width, of all layers."""
    alike = not getattr(config, "is_heterogeneous", False)
    layers = [config] * config.num_hidden_layers if alike else config.per_layer_config
    heads = [getattr(one, "num_key_value_heads", None) or one.num_attention_heads for one in layers]
    widths = [getattr(one, "head_dim", None) or one.hidden_size // one.num_attention_heads for one in layers]
    return sum(n * width for n, width in zip(heads, widths, strict=True))
