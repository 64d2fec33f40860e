"""The numbers of a config that decide a model's cost: all families are one formula over these (models/cost.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from prunetune.errors import UnsupportedModel
from prunetune.models import axes
from prunetune.models.axes.experts import KEYS, experts
from prunetune.models.axes.neurons import neurons
from prunetune.models.families import Family, family_of


@dataclass(frozen=True)
class Shape:
    """The numbers of a config that decide its cost.

    `ffn_matrices` is 3, or 2 without a gate. `qk_norm` is how norms of queries and keys are shaped (`QkNorm.per`; "":
    none). `layer_extra` is what a layer holds besides all that: norms; `model_extra` the same of the model: the final
    norm. The biases tell whether there are some, whose size follows the shape.
    `sliding` is how many layers attend to the last `window` tokens only. `experts` is how many FFNs of `width` a layer
    has, of which a token passes `active`; 0: it has one, without a router. `sinks`: a number more a query head.
    `query_gate`: twice as many rows of queries. `mixers` is how many layers have something else than attention:
    `mixer_params` parameters in each, `mixer_weights` of them in matrices, and in the cache of a sequence `mixer_state`
    elements of the model's dtype and `mixer_state_fp32` of fp32. Where that is attention with heads of another shape,
    `mixer_queries` and `mixer_keys` are its query and its key/value heads times their width.
    """

    depth: int
    width: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    mlp_bias: bool
    qkv_bias: bool
    layer_extra: int
    window: int | None
    sliding: int
    ffn_matrices: int = 3
    qk_norm: str = ""
    o_bias: bool = False
    head_bias: bool = False
    parallel: bool = False
    model_extra: int = 0
    experts: int = 0
    active: int = 0
    expert_bias: bool = False
    sinks: bool = False
    query_gate: bool = False
    mixers: int = 0
    mixer_params: int = 0
    mixer_weights: int = 0
    mixer_state: int = 0
    mixer_state_fp32: int = 0
    mixer_queries: int = 0
    mixer_keys: int = 0

    @staticmethod
    def of(config: Any) -> Shape:
        """From a `PretrainedConfig` or a config.json dict; UnsupportedModel as `family_of`."""
        family = family_of(config)
        config = filled(config, family)
        hidden, heads = config.hidden_size, config.num_attention_heads
        given = getattr(config, "head_dim", None) if family.own_head_dim else None
        o_bias, parallel = family.flag(family.o_bias, config), family.flag(family.parallel, config)
        norm = hidden * (family.norm_weight + family.norm_bias)
        norms = len(family.norms) - (len(family.parallel_lacks) if parallel else 0)
        window = getattr(config, "sliding_window", None)
        types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        sliding = types.count("sliding_attention") if window else 0
        return Shape(
            depth=config.num_hidden_layers,
            width=neurons(vars(config)),
            hidden=hidden,
            vocab=config.vocab_size,
            heads=heads,
            kv_heads=config.num_key_value_heads if family.grouped else heads,
            head_dim=given or hidden // heads,
            tied=bool(config.tie_word_embeddings),
            mlp_bias=family.flag(family.mlp_bias, config),
            qkv_bias=family.flag(family.qkv_bias, config),
            layer_extra=norms * norm + sum(family.extra.values()),
            window=window if sliding else None,
            sliding=sliding,
            ffn_matrices=3 if family.gate else 2,
            qk_norm=family.qk_norm.per if family.qk_norm and family.flag(family.qk_norm.when, config) else "",
            o_bias=o_bias,
            head_bias=family.head_bias,
            parallel=parallel,
            model_extra=norm,
            experts=experts(vars(config)) if family.experts else 0,
            active=config.num_experts_per_tok if family.experts else 0,
            expert_bias=family.experts is not None and family.experts.bias,
            sinks=bool(family.sinks),
            query_gate=family.query_gate,
            **_mixed(family, vars(config), types),
        )

    @staticmethod
    def loose(config: Any) -> Shape:
        """Of any config with these names, of a family of ours or not: enough for the cost of training alone.

        Where layers differ, all are taken for the one with the widest attention.
        """
        if getattr(config, "is_heterogeneous", False):
            config = max(
                config.per_layer_config, key=lambda one: one.num_attention_heads * (getattr(one, "head_dim", None) or 0)
            )
        heads = config.num_attention_heads
        return Shape(
            depth=config.num_hidden_layers,
            width=config.intermediate_size,
            hidden=config.hidden_size,
            vocab=config.vocab_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            tied=True,
            mlp_bias=False,
            qkv_bias=False,
            layer_extra=0,
            window=None,
            sliding=0,
        )

    def resized(self, shape: Mapping[str, int]) -> Shape:
        """The same model cut to so many units of each axis named, or to so many rows of `vocabulary`; the share of
        each kind of layers is kept, rounded.
        """
        changed = axes.resized(self.values(), {k: v for k, v in shape.items() if k != "vocabulary"})
        new = replace(self, **{_KEYS[key]: value for key, value in changed.items()})
        new = replace(new, vocab=shape.get("vocabulary", new.vocab))
        sliding, mixers = (round(n * new.depth / self.depth) for n in (self.sliding, self.mixers))
        return replace(new, sliding=sliding, mixers=mixers)

    def counts(self) -> dict[str, int]:
        """How many there are of what can be cut, by axis; heads are key/value groups."""
        return {**axes.shape_of(self.values()), "vocabulary": self.vocab}

    def values(self) -> dict[str, int]:
        """The keys of a config that axes read and write."""
        return {key: getattr(self, name) for key, name in _KEYS.items()}

    @property
    def ffns(self) -> int:
        """FFNs of a layer: its experts, or one."""
        return self.experts if self.active else 1

    @property
    def router_weights(self) -> int:
        """Elements of a layer's router, its bias apart."""
        return self.experts * self.hidden

    @property
    def attentions(self) -> int:
        """Layers that have attention."""
        return self.depth - self.mixers

    @property
    def passed_weights(self) -> int:
        """Elements of all layers' matrices that one token passes: the attention's or what takes its place, the
        router's, those of its experts.
        """
        ffn = self.router_weights + (self.active or 1) * self.ffn_matrices * self.hidden * self.width
        return self.depth * ffn + self.attentions * self.attention_weights + self.mixers * self.mixer_weights

    @property
    def attention_weights(self) -> int:
        """Elements of a layer's query, key, value and output matrices."""
        return self.hidden * self.head_dim * ((3 if self.query_gate else 2) * self.heads + 2 * self.kv_heads)

    @property
    def qk_norm_weights(self) -> int:
        """Elements of a layer's norms of queries and keys."""
        if self.qk_norm == "head":
            return 2 * self.head_dim
        return (self.heads + self.kv_heads) * self.head_dim if self.qk_norm else 0


_KEYS = {  # of a config, as axes read and write them -> fields of a `Shape`
    "num_hidden_layers": "depth",
    "intermediate_size": "width",
    "hidden_size": "hidden",
    "vocab_size": "vocab",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "num_local_experts": "experts",
    "num_experts_per_tok": "active",
}
_OPTIONAL = ("head_dim", "num_key_value_heads", "num_local_experts", "num_experts_per_tok")
_COUNTS = [key for key in _KEYS if key not in _OPTIONAL]


def filled(config: Any, family: Family) -> Any:
    """A config (an object, or a config.json dict) as an object with its class's defaults, of what decides the cost."""
    if not isinstance(config, dict):
        if not getattr(config, "is_heterogeneous", False):
            return config
        config = config.to_dict()  # the object does not give what differs between layers
    return _spelled_out(config, family) or _by_its_class(config, family)


def _mixed(family: Family, values: Mapping[str, Any], kinds: list[str]) -> dict[str, int]:
    """What a shape says of the layers without attention."""
    if family.mixer is None:
        return {}
    sizes = family.mixer.sizes(values).values()
    state, state_fp32 = family.mixer.state(values)
    queries, keys = family.mixer.attends(values) if family.mixer.attends else (0, 0)
    return {
        "mixers": kinds.count(family.mixer.kind),
        "mixer_params": sum(map(math.prod, sizes)),
        "mixer_weights": sum(math.prod(size) for size in sizes if len(size) == 2),
        "mixer_state": state,
        "mixer_state_fp32": state_fp32,
        "mixer_queries": queries,
        "mixer_keys": keys,
    }


def _spelled_out(config: dict[str, Any], family: Family) -> SimpleNamespace | None:
    """What `Shape.of` reads, without the config's class, whose import takes seconds; None: only the class can tell.

    tests/test_cost.py holds this against the classes.
    """
    silent = {k: v for k, v in family.silent.items() if k not in KEYS or not experts(config)}
    given = {"tie_word_embeddings": False, **silent, **config}
    given |= {ours: config[theirs] for theirs, ours in family.aliases.items() if theirs in config}
    if not family.grouped:
        given["num_key_value_heads"] = given.get("num_attention_heads")
    wanted = (*_COUNTS, "num_key_value_heads", *(("num_experts_per_tok",) if family.experts else ()))
    wanted += family.mixer.counts if family.mixer else ()
    if not all(type(given.get(key)) is int and given[key] > 0 for key in wanted):
        return None
    odd = given["hidden_size"] % given["num_attention_heads"]
    if odd and (family.even_heads or not family.own_head_dim or given.get("head_dim") is None):
        return None
    both_ways = given.get("use_bidirectional_attention")
    if (both_ways and both_ways != family.images_both_ways) or (
        given.get("head_dim") is None and "head_dim" in family.silent
    ):
        return None
    if "use_sliding_window" in family.silent and not given["use_sliding_window"]:
        if "sliding_attention" in (given.get("layer_types") or ()):
            return None
        given["sliding_window"] = None
    if family.mixer and given.get("layer_types") is None:
        given["layer_types"] = family.mixer.kinds(given)
    if family.last and given["layer_types"][-1:] != [family.last]:
        return None
    if given.get("sliding_window") and given.get("layer_types") is None:
        if (n := _full_every(family, given)) is None:
            return None
        full = [n > 0 and (i + 1) % n == 0 for i in range(given["num_hidden_layers"])]
        given["layer_types"] = ["full_attention" if f else "sliding_attention" for f in full]
    return SimpleNamespace(**given)


def _full_every(family: Family, given: Mapping[str, Any]) -> int | None:
    """Which layers see all tokens where `layer_types` is not given: every n-th; 0: none; None: only the class knows."""
    if family.full_every is None and family.period and family.special[0] == "layer_types":
        n = given.get("sliding_window_pattern", family.period)
        return n if type(n) is int and n > 0 else None
    return family.full_every


def _by_its_class(config: dict[str, Any], family: Family) -> Any:
    from transformers import CONFIG_MAPPING

    try:
        made = CONFIG_MAPPING[family.model_type](**config)
        return SimpleNamespace(**made.to_dict()) if getattr(made, "is_heterogeneous", False) else made
    except MemoryError:
        raise
    except Exception as e:  # config classes compute with whatever a file says: any error of theirs is one of the file
        said = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UnsupportedModel(
            f"transformers cannot read this config ({said[:300]})",
            value=family.model_type,
            fix="mend the key that it names in config.json",
        ) from e
