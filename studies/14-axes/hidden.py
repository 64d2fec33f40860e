"""The axis `hidden` as an experiment: one rotation of the residual stream for all layers, so that a stock Llama comes out.

    small = narrowed(model, sequences, kept=384)          # hidden_size 384, head_dim as it was, embeddings untied

As SliceGPT (arXiv 2401.15024), which rotates anew between every two blocks and needs code of its own for that: RMSNorm's
weights are folded into the matrices behind it, the stream is turned into its principal axes, and the last of them go.
Here all blocks share the axes of their pooled, normalised inputs. A tied head must be untied, as the last norm's weights
can be folded into it and not into the embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunetune.models.shape import Shape
from prunetune.pruning.scores import make_batches

READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
WRITES = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
GRAIN = 8


def params_a_channel(config: Any) -> int:
    """Parameters for each channel of the residual stream, embedding and head of their own."""
    s = Shape.of(config)
    attention = 2 * s.heads * s.head_dim + 2 * s.kv_heads * s.head_dim
    return 2 * s.vocab + s.depth * (attention + 3 * s.width + 2) + 1


def kept_for(config: Any, most: int) -> int:
    """Channels that stay for at most so many parameters."""
    return min(int(config.hidden_size), most // params_a_channel(config) // GRAIN * GRAIN)


@torch.inference_mode()
def axes_of(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Principal axes [hidden, hidden] of all norms' inputs, each divided by its root mean square; the largest first."""
    width = int(model.config.hidden_size)
    total, mask = torch.zeros(width, width, dtype=torch.float64), torch.ones(0)

    def see(module: Any, args: tuple[Tensor, ...]) -> None:
        real = args[0][mask.bool()].float()
        real = real / real.square().mean(-1, keepdim=True).sqrt()
        total.add_((real.T @ real).double())

    norms = [m for n, m in model.base_model.named_modules() if n.endswith((*NORMS, "norm"))]
    handles = [norm.register_forward_pre_hook(see) for norm in norms]
    for batch in make_batches(sequences, 0, 4096):
        mask = batch["attention_mask"]
        model.base_model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    axes: Tensor = torch.linalg.eigh(total)[1].flip(-1).float()
    return axes


def narrowed(model: PreTrainedModel, sequences: Sequence[Sequence[int]], kept: int) -> PreTrainedModel:
    """A stock model of `kept` channels: what the first of the common axes hold.

    Args:
        model: A Llama; nothing in it changes.
        sequences: Token ids whose stream gives the axes.
        kept: Channels that stay; all of them: the same function in another basis.
    """
    old, config = model.state_dict(), copy.deepcopy(model.config)
    basis = axes_of(model, sequences)[:, :kept]
    config.update({"hidden_size": kept, "head_dim": Shape.of(model.config).head_dim, "tie_word_embeddings": False})
    auto: Any = AutoModelForCausalLM
    small: PreTrainedModel = auto.from_config(config, dtype=torch.float32).eval()
    scale = math.sqrt(basis.shape[0] / kept)  # the mean in the norm is over fewer channels that hold about as much
    new: dict[str, Tensor] = {"model.embed_tokens.weight": old["model.embed_tokens.weight"].float() @ basis}

    def read(name: str, norm: str) -> Tensor:
        weights: Tensor = old[f"{name}.weight"].float() * old[f"{norm}.weight"].float()
        return torch.mm(weights, basis)

    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}"
        for norm, names in zip(NORMS, READS, strict=True):
            new |= {f"{at}.{name}.weight": read(f"{at}.{name}", f"{at}.{norm}") for name in names}
            new[f"{at}.{norm}.weight"] = torch.full((kept,), scale)
        new |= {f"{at}.{name}.weight": basis.T @ old[f"{at}.{name}.weight"].float() for name in WRITES}
    new["model.norm.weight"] = torch.full((kept,), scale)
    new["lm_head.weight"] = read("lm_head", "model.norm")
    small.load_state_dict(new)
    back: Any = small
    found: PreTrainedModel = back.to(model.dtype)
    return found
