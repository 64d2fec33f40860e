"""What an entry of a family says: where a model keeps what can be cut, and all that surgery and cost must know of it.

Values only. A flag is True, False, or the config key that says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunetune.errors import UnsupportedModel
from prunetune.models.families.experts import Experts
from prunetune.models.families.mixers import Mixer

Flag = bool | str


@dataclass(frozen=True)
class Cut:
    """One tensor of a layer that loses neurons: `suffix` inside the layer, the dimension, how many fused copies."""

    suffix: str
    dim: int
    copies: int = 1


@dataclass(frozen=True)
class QkNorm:
    """Norms of queries and of keys.

    Attributes:
        per: The weights' shape. `head`: [head_dim], all heads alike. `each`: [heads, head_dim]. `all`: [heads x
            head_dim], over all heads together.
        names: Of the two, inside the layer.
        when: Whether they are there.
    """

    per: Literal["head", "each", "all"] = "head"
    names: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    when: Flag = True


PRE = ("input_layernorm", "post_attention_layernorm")
"""Norms before attention and before the FFN: Llama's, whose second name says what it comes after."""
POST = ("post_attention_layernorm", "post_feedforward_layernorm")
"""Norms after both, none before."""
SANDWICH = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
"""Before and after both."""


@dataclass(frozen=True)
class Family:
    """Where a family keeps what can be cut.

    Attributes:
        model_type: `model_type` of config.json.
        cuts: The tensors of a layer that hold its neurons; left out: the rows of gate and up, with their biases, and
            the columns of down. One that a model lacks (a bias) is simply not there.
        per_layer_keys: Config lists with one entry a layer; sliced by the kept layers, never regenerated.
        layer_count_keys: Config numbers n that mean "the first n layers"; become the number of kept ones below n.
        layer_index_keys: Config lists of layers' indices; those of the kept ones, renumbered.
        aliases: Config keys that its class takes for another where they stand: {theirs: ours}.
        silent: What its config class fills in where config.json says nothing, of the keys that decide the cost.
        layer_map_keys: Config mappings from a layer's index to what is its own; those of the kept ones, renumbered.
        refused: Config keys that, where they are set, make it a model that is not served, with the reason.
        served: What is served beside those, for the message.

        layers: Where the decoder layers are in the model.
        embedding: The embedding.
        final_norm: The norm before the head.
        head: The head.
        down: The projection whose input is the neurons, inside a layer.
        up: The up projection.
        gate: The gate projection. The same as `up`: both in one tensor, gate first. "": an FFN of two matrices.
        o: The projection whose input is the attention heads, side by side.
        qkv: The projections of queries, keys and values; or the one that fuses them, in that order.
        qkv_by_head: The fused one holds them head after head: q, k, v of the first, q, k, v of the second.
        query_gate: The projection of queries holds as many rows again, which gate the heads' outputs.
        mixer: What takes the place of attention in some layers; None: all have attention.
        last: The kind that its class makes the last layer, whatever `layer_types` says: a layer of another kind cannot
            come to stand there. "": any can.
        experts: The FFN is a mixture of experts, kept there; `down`, `up` and `gate` then say nothing. None: it is not.
        sinks: One number a query head that takes part in its softmax, inside a layer; "": there are none.
        norms: Norms of width d in a layer; where one follows the FFN, it is the last.
        qk_norm: Norms on queries and keys.
        extra: Parameters of a layer that nothing cuts: {suffix: elements} ([elements]).
        stored: What transformers calls otherwise in files: {its name there: in the model}.
        buffers: Tensors of a layer in checkpoints that are no parameters; a file may lack them.
        unread: How the names of tensors begin that checkpoints hold and transformers neither reads nor writes: they do
            not go with a cut model.
        unread_count: Config key that says how many layers of those there are: 0 of a cut model.

        qkv_bias: Biases on queries, keys and values.
        o_bias: A bias on `o`.
        mlp_bias: Biases on the FFN's projections.
        head_bias: A bias on the head.
        norm_bias: Norms have biases (LayerNorm).
        norm_weight: Norms have weights.

        parallel: Attention and FFN read the same input, and both outputs are added to it. Eq. 2, Eq. 5 and least
            squares hold as they are: the FFN's output is a term of the layer's.
        parallel_lacks: Norms that a parallel block does not have.
        post_ffn_norm: A norm follows the FFN, and one the attention, so that Eq. 2 holds before it (method, section 2).
        embedding_scale: Config key of a number that multiplies the embeddings outside the embedding module.
        residual_scale: Config key of a number that multiplies what attention and FFN add to the stream.
        logit_scale: Config key of a number that multiplies the logits.
        logit_divisor: Config key of a number that divides them.

        grouped: It has `num_key_value_heads`; else every head has its own keys and values.
        own_head_dim: A head's width may be another than hidden size / heads, by `head_dim`.
        even_heads: Its config class refuses a hidden size that is no multiple of the attention heads.
        rope_by_hidden: Its config class expects as many LongRoPE factors as hidden size / heads asks for.
        images_both_ways: The value of `use_bidirectional_attention` that is about images alone.
        full_every: Without `layer_types` in config.json every n-th layer sees all tokens, the others a sliding window
            if there is one; 0: all see the window; None: only the class knows.
        period: Engines hard-code that every n-th layer (the n-th, the 2n-th, …) is the special one: it sees all tokens,
            or has no rotary embedding. 0: they read each layer's kind, or all are alike. A model keeps its meaning
            there only if layers go in whole periods (method, section 9). Sources: the config classes of transformers
            5.23 (which tests/models/test_families.py asks) and `set_swa_pattern` in llama.cpp, 4 for olmo3, exaone4 and
            cohere2.
        special: The config list that says which layers those are, and its value for them.
        special_means: What makes them special, in words.
    """

    model_type: str
    cuts: tuple[Cut, ...] = ()
    per_layer_keys: tuple[str, ...] = ("layer_types",)
    layer_count_keys: tuple[str, ...] = ()
    layer_index_keys: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    silent: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layer_map_keys: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)
    served: str = ""

    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    down: str = "mlp.down_proj"
    up: str = "mlp.up_proj"
    gate: str = "mlp.gate_proj"
    o: str = "self_attn.o_proj"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_by_head: bool = False
    query_gate: bool = False
    mixer: Mixer | None = None
    last: str = ""
    experts: Experts | None = None
    sinks: str = ""
    norms: tuple[str, ...] = PRE
    qk_norm: QkNorm | None = None
    extra: Mapping[str, int] = field(default_factory=dict, hash=False)
    buffers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    unread_count: str = ""
    stored: Mapping[str, str] = field(default_factory=dict, hash=False)

    qkv_bias: Flag = "attention_bias"
    o_bias: Flag = "attention_bias"
    mlp_bias: Flag = False
    head_bias: bool = False
    norm_bias: bool = False
    norm_weight: bool = True

    parallel: Flag = False
    parallel_lacks: tuple[str, ...] = ()
    post_ffn_norm: bool = False
    embedding_scale: str = ""
    residual_scale: str = ""
    logit_scale: str = ""
    logit_divisor: str = ""

    grouped: bool = True
    own_head_dim: bool = True
    even_heads: bool = False
    rope_by_hidden: bool = False
    images_both_ways: str = ""
    full_every: int | None = None
    period: int = 0
    special: tuple[str, Any] = ("layer_types", "full_attention")
    special_means: str = "it sees all tokens, the others a window"

    @property
    def base(self) -> str:
        """The model without its head."""
        return self.layers.rpartition(".")[0]

    @property
    def heads_stay(self) -> str | None:
        """Why no attention heads can go; None: they can."""
        if self.mixer and self.mixer.attends:
            return f"its layers have heads of two shapes ({self.mixer.called}), which no one number counts"
        if self.mixer:
            return f"layers of it have {self.mixer.called} in place of attention, and none of these heads"
        if self.qk_norm and self.qk_norm.per == "all":
            return (
                "a norm runs over the queries of all heads together, so that no head goes without changing the others"
            )
        if not self.own_head_dim:
            return "its class takes a head's width from hidden size / heads"
        return None

    @property
    def fused(self) -> bool:
        """Gate and up are one tensor, gate first."""
        return self.gate == self.up

    def __post_init__(self) -> None:
        """Fill in `cuts`; neurons inside experts are of the axis `neurons` itself."""
        if self.experts is not None:
            return
        rows = (self.up,) if self.fused or not self.gate else (self.gate, self.up)
        copies = 2 if self.fused else 1
        halves = tuple(Cut(f"{name}.{kind}", 0, copies) for name in rows for kind in ("weight", "bias"))
        object.__setattr__(self, "cuts", self.cuts or (*halves, Cut(f"{self.down}.weight", 1)))

    def flag(self, value: Flag, config: Any) -> bool:
        """What a flag says of a config (an object or a dict); a key that the config lacks is as `silent` has it."""
        return bool(self._under(value, config)) if isinstance(value, str) else value

    def number(self, key: str, config: Any) -> float:
        """The number under a config key; 1 where there is no key or nothing under it. UnsupportedModel: no number."""
        found = self._under(key, config)
        if found is None:
            return 1.0
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise UnsupportedModel(
                f"config.json has no number under {key}", value=str(found)[:80], fix="mend that key in config.json"
            )
        return float(found)

    def _under(self, key: str, config: Any) -> Any:
        """What a config says under a key, or its class where the config is silent."""
        values = config if isinstance(config, Mapping) else vars(config)
        return values.get(key, self.silent.get(key)) if key else None
