"""Tiny random models with a vision tower, one a wrapper, and a random image for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.tiny import BASE, EXTRA, tiny_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from prunetune.models.families.wrappers import WRAPPERS, own_name

IMAGE = 100  # the token that stands for a part of the image
_SIGLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_SQUARE = {"image_size": 16, "patch_size": 4}
_QWEN = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 1,
}  # fmt: skip
_QWEN_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": 103, "vision_start_token_id": 101, "vision_end_token_id": 102,
    "tie_word_embeddings": False,
}  # fmt: skip
_GEMMA4_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": 103, "audio_token_id": 99, "boi_token_id": 101, "eoi_token_id": 102,
    "boa_token_id": 97, "eoa_token_index": 98,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**BASE, **EXTRA["gemma3_text"], "model_type": "gemma3_text"},
        "vision_config": {**_SIGLIP, **_SQUARE, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4, "image_token_index": IMAGE, "boi_token_index": 101, "eoi_token_index": 102,
    },
    "gemma4": {
        "text_config": {**BASE, **EXTRA["gemma4_text"], "model_type": "gemma4_text"},
        "vision_config": {
            **_SIGLIP, "model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4,
            "pooling_kernel_size": 2, "position_embedding_size": 8, "standardize": True,
        },
        "audio_config": {
            "model_type": "gemma4_audio", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "subsampling_conv_channels": [4, 2], "output_proj_dims": 12,
        },
        **_GEMMA4_TOKENS,
    },
    "gemma4_unified": {
        "text_config": {**BASE, **EXTRA["gemma4_unified_text"], "model_type": "gemma4_unified_text"},
        "vision_config": {
            "model_type": "gemma4_unified_vision", "patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": 16,
            "mm_posemb_size": 8, "output_proj_dims": 16,
        },
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 12},
        **_GEMMA4_TOKENS,
    },
    "mistral3": {
        "text_config": {**BASE, **EXTRA["ministral3"], "model_type": "ministral3"},
        "vision_config": {**_SIGLIP, **_SQUARE, "head_dim": 8, "model_type": "pixtral"},
        "image_token_index": IMAGE, "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {
        "text_config": {**BASE, "rope_parameters": _ROPE, "model_type": "qwen2_5_vl_text"},
        "vision_config": {**_QWEN, "window_size": 16, "fullatt_block_indexes": [1]},
        **_QWEN_TOKENS,
    },
    "qwen3_5": {
        "text_config": {
            **BASE, **EXTRA["qwen3_5_text"], "model_type": "qwen3_5_text",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "mrope_interleaved": True, "partial_rotary_factor": 0.5},
        },
        "vision_config": {**_QWEN, "num_position_embeddings": 16},
        **_QWEN_TOKENS,
    },
    "qwen3_vl": {
        "text_config": {**BASE, "rope_parameters": {**_ROPE, "mrope_interleaved": True}, "model_type": "qwen3_vl_text"},
        "vision_config": {**_QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_QWEN_TOKENS,
    },
}  # fmt: skip
assert set(CONFIGS) == set(WRAPPERS)
FORMS = [
    (n, f)
    for n in CONFIGS
    for f in ("", "inside", "outside")
    if not (n.startswith(("qwen", "gemma4")) and f == "outside")
]
"""Wrappers and how their files name the language model's tensors: Qwen's and Gemma 4's never had it outside."""


def wrapped_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random fp32 wrapper with four layers; every parameter is perturbed."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(
        CONFIG_MAPPING[name](**CONFIGS[name]), dtype=torch.float32
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("layer_scalar", "std_bias", "std_scale")):
                buffer.add_(0.2 * torch.randn_like(buffer))
    return model.eval()


def wrapped_folder(path: Path, name: str, form: str = "") -> Path:
    """A saved wrapper with its tokenizer.

    `form` is how the language model's tensors are called: `inside` as `model.language_model.…`, `outside` as
    `language_model.model.…`; "": as transformers writes them.
    """
    wrapped_model(name).save_pretrained(path, max_shard_size="40KB" if not form else "1GB")
    tiny_tokenizer().save_pretrained(path)
    if form:
        file = path / "model.safetensors"
        save_file({_named(name, n, form): t for n, t in load_file(file).items()}, file, {"format": "pt"})
    return path


def _named(wrapper: str, name: str, form: str) -> str:
    if WRAPPERS[wrapper].is_other(name):
        return name
    own = own_name(name)
    if form == "outside":
        return f"language_model.{own}"
    return own.replace("model.", "model.language_model.", 1)


def with_image(name: str) -> dict[str, torch.Tensor]:
    """Inputs of a wrapper: an image of 16 x 16 in four tokens, among text."""
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 90, (1, 20), generator=g)
    ids[0, 3], ids[0, 4:8], ids[0, 8] = 101, IMAGE, 102
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name.startswith("qwen"):
        kinds = (ids == IMAGE).int()
        pixels = torch.randn(16, 3 * 4 * 4, generator=g)
        return {
            **inputs, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]]), "mm_token_type_ids": kinds
        }  # fmt: skip
    if name.startswith("gemma4"):
        side = 4 if name == "gemma4" else 2  # its vision tower makes one token of four patches
        at = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)[None]
        pixels = torch.rand(1, side * side, 3 * 4 * 4, generator=g)
        return {
            **inputs, "pixel_values": pixels, "image_position_ids": at, "mm_token_type_ids": (ids == IMAGE).int()
        }  # fmt: skip
    inputs["pixel_values"] = torch.randn(1, 3, 16, 16, generator=g)
    if name == "mistral3":
        inputs["image_sizes"] = torch.tensor([[16, 16]])
    return inputs
