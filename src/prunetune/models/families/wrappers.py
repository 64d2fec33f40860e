"""Models whose language model is one part beside a vision tower: where that part is, and what it is as a model alone.

    language_of(config)                             # what config.json says of the language model, as its own class
    own_name("language_model.model.norm.weight")    # model.norm.weight

The language model is scored, cut, trained and measured; the other parts are carried over byte for byte.
To add a wrapper: one entry of WRAPPERS, its config in tests/wrapped.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunetune.errors import UnsupportedModel


@dataclass(frozen=True)
class Wrapper:
    """A model with a language model inside.

    Attributes:
        model_type: `model_type` of config.json.
        languages: `model_type` of its `text_config` -> the family that the language model is alone. The first is meant
            where none is written.
        others: How the names of all other tensors begin.
        early: A list in `vision_config`: what it taps of the image is added behind as many of the first layers, which
            therefore stay.
        own_head_dim: A head's width may be another than hidden size / heads; else no heads can go.
    """

    model_type: str
    languages: Mapping[str, str]
    others: tuple[str, ...] = ("vision_tower.", "multi_modal_projector.")
    early: str = ""
    own_head_dim: bool = True

    def is_other(self, name: str) -> bool:
        """Whether a tensor belongs to another part than the language model."""
        return name.removeprefix("model.").startswith(self.others)

    def early_layers(self, config: Mapping[str, Any]) -> int:
        """How many of the first layers cannot go."""
        vision = config.get("vision_config")
        return len((vision.get(self.early) if isinstance(vision, dict) else None) or ()) if self.early else 0


WRAPPERS: dict[str, Wrapper] = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper("gemma3", {"gemma3_text": "gemma3_text"}),
        Wrapper(
            "gemma4", {"gemma4_text": "gemma4_text"}, ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
        ),
        Wrapper(
            "gemma4_unified",
            {"gemma4_unified_text": "gemma4_unified_text"},
            ("embed_vision.", "embed_audio.", "vision_embedder."),
        ),
        Wrapper("mistral3", {"mistral": "mistral", "ministral3": "ministral3"}),
        Wrapper("qwen2_5_vl", {"qwen2_5_vl_text": "qwen2"}, ("visual.",), own_head_dim=False),
        Wrapper("qwen3_5", {"qwen3_5_text": "qwen3_5_text"}, ("visual.", "mtp.")),
        Wrapper("qwen3_vl", {"qwen3_vl_text": "qwen3"}, ("visual.",), early="deepstack_visual_indexes"),
    )
}

KEY_MAPPING = {r"^language_model\.(model|lm_head)\.": r"\1.", r"^model\.language_model\.": "model."}
"""The same as `own_name`, as `from_pretrained` takes it."""

# Rotary positions in three dimensions are, on text alone, the usual ones: all three count tokens.
_IMAGE_ROPE = ("mrope_section", "mrope_interleaved")
_OF_THE_WHOLE = (
    "tie_word_embeddings", "quantization_config", "architectures", "pad_token_id", "bos_token_id", "eos_token_id",
    "dtype", "torch_dtype",
)  # fmt: skip


def own_name(name: str) -> str:
    """What a tensor of the language model is called in its own class; any other name as it is.

    transformers has written two forms: `language_model.model.…` with `language_model.lm_head`, and
    `model.language_model.…` with `lm_head`.
    """
    if name.startswith(("language_model.model.", "language_model.lm_head.")):
        return name.removeprefix("language_model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name


def wrapper_of(config: Mapping[str, Any]) -> Wrapper | None:
    """What config.json wraps its language model in; None if it is one itself."""
    return WRAPPERS.get(str(config.get("model_type")))


def language_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of its language model, in the terms of that model's own family.

    Of a config that wraps nothing it is the config itself.
    """
    wrapper = wrapper_of(config)
    if wrapper is None:
        return dict(config)
    inside = inner_of(config)
    kind = str(inside.get("model_type") or next(iter(wrapper.languages)))
    found = {**inside, "model_type": wrapper.languages.get(kind, kind)}
    found |= {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := found.get(key), dict) and any(part in rope for part in _IMAGE_ROPE):
            plain = {k: v for k, v in rope.items() if k not in _IMAGE_ROPE}
            found[key] = plain | {k: "default" for k in ("type", "rope_type") if plain.get(k) == "mrope"}
    return found


def inner_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a wrapper's config that is of its language model; old files have it beside the rest."""
    inner = config.get("text_config")
    if isinstance(inner, dict):
        return inner
    return {k: v for k, v in config.items() if k not in ("model_type", "text_config", "vision_config")}


def with_inner(config: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """A wrapper's config with another part for its language model."""
    if isinstance(config.get("text_config"), dict):
        return {**config, "text_config": dict(inner)}
    return {**config, **inner}


def refuse_wrapper(config: Mapping[str, Any], what: str) -> None:
    """Raise UnsupportedModel if a config wraps its language model, for what does not look inside."""
    if wrapper := wrapper_of(config):
        raise UnsupportedModel(
            f"{what} does not look into a model with a vision tower ({wrapper.model_type})",
            fix="write the language model alone first: `prunetune apply PLAN MODEL OUT --text-only`",
        )
