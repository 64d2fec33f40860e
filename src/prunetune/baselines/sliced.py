"""The model that SliceGPT leaves (arXiv 2401.15024): **a research artefact, not a stock architecture**.

    h = x S_attn + Attn(norm(x));    y = h S_mlp + FFN(norm(h))

The residual stream is `kept` wide, in another basis between every two blocks; the small matrices S take it from one to
the next. The norms have no weights (these are folded into the matrices behind them), and divide by the width that the
stream had, so that a slice of a vector keeps its scale. Attention, FFN, rotary embedding, masks and cache are
transformers' own modules, made from the family's config with another `hidden_size`.

Importing this module makes transformers' Auto classes know the model, so that everything of prunetune that loads a
folder (recovery, evaluation, latency) works on it. Nothing else can load it.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prunetune.models.shape import Shape

MODEL_TYPE = "prunetune-slicegpt"
ARTEFACT = "a research artefact of prunetune (SliceGPT), not a stock architecture: only prunetune.baselines loads it"

_BASE_MODELS: Any = MODEL_MAPPING  # config class -> base model class


class SlicedConfig(PretrainedConfig):
    """The source's config under another `model_type`; `hidden_size` is the width of the sliced residual stream.

    Attributes:
        source: The source's config.json, which says what attention and FFN are.
        norm_size: Width of the residual stream before slicing.
        note: What this is, for whoever opens config.json.
        auto_map: No code comes with the folder; TRL asks, before it turns to the Auto classes.
    """

    model_type = MODEL_TYPE

    source: dict[str, Any] | None = None
    norm_size: int = 0
    note: str = ARTEFACT
    auto_map: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: PretrainedConfig, kept: int) -> SlicedConfig:
        """The config of a model of this family with `kept` places left in its residual stream."""
        source = config.to_dict()
        own = ("model_type", "dtype")
        values: dict[str, Any] = {k: v for k, v in source.items() if k not in own and not k.startswith("_")}
        values |= {
            "source": source,
            "norm_size": config.hidden_size,
            "hidden_size": kept,
            "head_dim": Shape.of(config).head_dim,
        }
        return cls(**{**values, "tie_word_embeddings": False, "architectures": [SlicedForCausalLM.__name__]})

    def block_config(self) -> Any:
        """The family's own config at the sliced width, from which transformers makes the blocks."""
        source = dict(self.source or {})
        made = CONFIG_MAPPING[source["model_type"]](**{**source, "tie_word_embeddings": False})
        made.hidden_size, made.head_dim = self.hidden_size, self.head_dim
        return made


class Norm(nn.Module):
    """x / sqrt(|x|^2 / size + eps): RMSNorm without weights, scaled by the width before slicing."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, x: Float[Tensor, "*places kept"]) -> Float[Tensor, "*places kept"]:
        """Normalise in fp32; the result has the input's type."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.size + self.eps)).to(x.dtype)


class SlicedLayer(GradientCheckpointingLayer):
    """A stock layer's attention and FFN between weightless norms, with a matrix on each residual path."""

    def __init__(self, block: nn.Module, config: SlicedConfig) -> None:
        super().__init__()
        kept = int(config.hidden_size)
        self.self_attn: Any = block.self_attn
        self.mlp: Any = block.mlp
        self.norm = Norm(config.norm_size, config.rms_norm_eps)
        self.attn_shortcut = nn.Linear(kept, kept, bias=False)
        self.mlp_shortcut = nn.Linear(kept, kept, bias=False)

    def forward(self, hidden_states: Float[Tensor, "batch places kept"], **kwargs: Any) -> Tensor:
        """The stock layer's arguments in, the residual stream in the next layer's basis out."""
        mixed, _ = self.self_attn(hidden_states=self.norm(hidden_states), **kwargs)
        hidden_states = self.attn_shortcut(hidden_states) + mixed
        out: Tensor = self.mlp_shortcut(hidden_states) + self.mlp(self.norm(hidden_states))
        return out


class SlicedForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model with a sliced residual stream; used like any other one of transformers."""

    config_class = SlicedConfig
    config: Any
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def __init__(self, config: SlicedConfig) -> None:
        super().__init__(config)
        inner = config.block_config()
        self.model = _BASE_MODELS[type(inner)](inner)
        self.model.layers = nn.ModuleList(SlicedLayer(block, config) for block in self.model.layers)
        self.model.norm = Norm(config.norm_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers'

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and with `labels` their loss.

        Args:
            input_ids: int64 [batch, places].
            labels: int64 [batch, places], -100 where nothing counts.
            logits_to_keep: Logits of the last so many places alone; 0: of all.
            output_hidden_states: If given, `hidden_states` is the head's own input alone, [batch, places, kept].
            kwargs: What the family's base model takes: attention_mask, position_ids, past_key_values, use_cache, ...
        """
        items = kwargs.pop("num_items_in_batch", None)
        out = self.model(input_ids=input_ids, **kwargs)
        hidden = out.last_hidden_state
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            counted = {} if items is None else {"num_items_in_batch": items}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **counted)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=(hidden,) if output_hidden_states else None,
        )


AutoConfig.register(MODEL_TYPE, SlicedConfig, exist_ok=True)
AutoModelForCausalLM.register(SlicedConfig, SlicedForCausalLM, exist_ok=True)
