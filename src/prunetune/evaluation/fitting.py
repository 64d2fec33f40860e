"""How many questions fit into memory at once."""

from __future__ import annotations

import os

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
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row_bytes = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize * tokens
    row_bytes += 16 * (config.vocab_size + tokens * config.hidden_size)  # logits in fp32, activations of the prompt
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
    else:
        free = min(8 << 30, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // processes
    return max(1, min(LARGEST_BATCH.get(model.device.type, 64), int(free // 2 // row_bytes)))
