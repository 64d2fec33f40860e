"""The entries of families whose FFN is a mixture of experts, one a family."""

from __future__ import annotations

from prunetune.models.families.experts import Experts
from prunetune.models.families.family import Family, QkNorm

_DENSE_LAYERS = "has layers without experts among the others"

MIXTURES = (
    Family(
        "qwen3_moe",
        experts=Experts(),
        qk_norm=QkNorm(),
        full_every=0,
        refused={"mlp_only_layers": _DENSE_LAYERS},
        silent={
            "use_sliding_window": False,
            "sliding_window": 4096,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
    ),
    Family(
        "mixtral",
        experts=Experts(single=("w1", "w3", "w2"), block="block_sparse_moe"),
        qkv_bias=False,
        o_bias=False,
        full_every=0,
        silent={"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    Family(
        "olmoe",
        experts=Experts(),
        qk_norm=QkNorm("all"),
        own_head_dim=False,
        full_every=0,
        silent={"num_experts": 64, "num_experts_per_tok": 8},
    ),
    Family(
        "gpt_oss",
        experts=Experts(router="mlp.router", transposed=True, alternating=True, bias=True, clamped=True, single=()),
        sinks="self_attn.sinks",
        period=2,
        full_every=2,
        silent={
            "attention_bias": True,
            "head_dim": 64,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
    ),
)
