"""What a model costs, from its config alone: parameters, bytes, FLOPs per question, memory and hours to train.

    cost = cost_of(config, shape={"neurons": 8944})     # as if it were cut to this width
    cost.params, cost.weight_bytes, cost.kv_bytes(2048), cost.flops(prompt_tokens=180, new_tokens=140).total

Conventions. One multiply-add is two FLOPs; matrix products alone are counted (norms, activations, rotary embeddings and
the embedding look-up are not). Attention is counted as PyTorch's dense kernels do it: each new token against every key
there is, without halving for causality, and a sliding window saves nothing in prefill; in decode a sliding layer's
cache holds the window at most. Of layers with linear attention or a convolution the projections alone are counted, not
what they do between (some hundredths of it). In prefill the head runs on the last position only, as generation does it
(`logits_to_keep=1`). The prefill yields the first new token, so n new tokens take n - 1 decode steps.
tests/test_cost.py holds all of this against torch.utils.flop_counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunetune.common.device import WIDE
from prunetune.models.gpus import gpu_of
from prunetune.models.shape import Shape


def neuron_params(config: Any) -> int:
    """Parameters that a layer holds for one neuron: its rows and its column, and biases where the family has them; in
    each expert, where there are experts, since all lose as many.
    """
    shape = _shape(config)
    biases = shape.ffn_matrices - 1 if shape.mlp_bias or shape.expert_bias else 0
    return shape.ffns * (shape.ffn_matrices * shape.hidden + biases)


def ffn_elements(config: Any) -> int:
    """Elements of one matrix of an FFN (of one expert, where there are experts)."""
    shape = _shape(config)
    return shape.hidden * shape.width


def layer_params(config: Any, width: int | None = None) -> int:
    """Parameters of one layer at an FFN width (the config's if None); of layers of two kinds their mean, rounded."""
    shape = _shape(config)
    own = shape.attentions * attention_params(shape) + shape.mixers * shape.mixer_params
    return _alike(shape, width) + round(own / max(1, shape.depth))


def attention_params(config: Any) -> int:
    """Parameters of a layer's attention: projections, their biases, norms of queries and keys, sinks."""
    s = _shape(config)
    biases = ((1 + s.query_gate) * s.heads + 2 * s.kv_heads) * s.head_dim if s.qkv_bias else 0
    biases += s.hidden if s.o_bias else 0
    return s.attention_weights + biases + s.qk_norm_weights + (s.heads if s.sinks else 0)


def _alike(shape: Shape, width: int | None) -> int:
    """Parameters that every layer has, whatever its kind: norms, router, FFN."""
    ffn = neuron_params(shape) * (shape.width if width is None else width) + (shape.hidden if shape.mlp_bias else 0)
    router = shape.router_weights + (shape.experts * (1 + shape.hidden) if shape.expert_bias else 0)
    return shape.layer_extra + router + ffn


def params(config: Any, depth: int | None = None, width: int | None = None) -> int:
    """Parameters of the whole model, tied embeddings counted once: affine in depth, and in width at a fixed depth.

    Where layers are of two kinds, a smaller depth keeps the share of each, rounded.
    """
    shape = _shape(config)
    depth = shape.depth if depth is None else depth
    mixers = round(shape.mixers * depth / max(1, shape.depth))
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2) + (shape.vocab if shape.head_bias else 0)
    own = (depth - mixers) * attention_params(shape) + mixers * shape.mixer_params
    return embeddings + shape.model_extra + depth * _alike(shape, width) + own


def active_params(config: Any) -> int:
    """Parameters that one token passes: all but those of the experts that it is not routed to."""
    s = _shape(config)
    one = s.width * s.ffn_matrices * s.hidden + (s.width * (s.ffn_matrices - 1) + s.hidden if s.expert_bias else 0)
    return params(s) - s.depth * max(0, s.experts - s.active) * one


def _shape(config: Any) -> Shape:
    return config if isinstance(config, Shape) else Shape.of(config)


@dataclass(frozen=True)
class Flops:
    """FLOPs of one question."""

    prefill: int
    decode: int

    @property
    def total(self) -> int:
        """Prefill and decode together."""
        return self.prefill + self.decode


@dataclass(frozen=True)
class Cost:
    """What a model of a shape costs. All byte figures use `dtype_bytes` for an element (2: bf16)."""

    shape: Shape
    dtype_bytes: int = 2

    @property
    def params(self) -> int:
        """Parameters, tied ones once."""
        return params(self.shape)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.params * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token adds to the cache, in a context shorter than the sliding window."""
        return self.shape.attentions * self._kv_bytes_per_layer + self._kv_bytes_of_mixers

    @property
    def _kv_bytes_per_layer(self) -> int:
        return 2 * self.shape.kv_heads * self.shape.head_dim * self.dtype_bytes

    @property
    def _kv_bytes_of_mixers(self) -> int:
        return 2 * self.shape.mixers * self.shape.mixer_keys * self.dtype_bytes

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the cache of a context; sliding layers hold their window at most, layers without attention a state
        of one size.
        """
        s = self.shape
        held = min(tokens, s.window or tokens)
        states = s.mixers * (s.mixer_state * self.dtype_bytes + s.mixer_state_fp32 * 4)
        states += self._kv_bytes_of_mixers * tokens
        return states + self._kv_bytes_per_layer * ((s.attentions - s.sliding) * tokens + s.sliding * held)

    @property
    def train_bytes(self) -> int:
        """Bytes of full fine-tuning in one process, activations apart."""
        return round(state_bytes() * self.params)

    def activation_bytes(self, tokens: int, *, item: int = 2, checkpointing: bool = True, logits: bool = True) -> int:
        """Bytes that the backward pass of `tokens` in one micro-batch keeps: from the shape, on the safe side.

        A layer keeps the inputs of its norms (fp32), of its linear layers and of the gated product, `item` bytes an
        element; with checkpointing only its own input, and one layer is recomputed at a time. Logits, where they are
        held as a whole, are fp32 and have a gradient.
        """
        s = self.shape
        wide = s.width * max(1, s.active)
        layer = s.hidden * (16 + 4 * item) + wide * 5 * item + 3 * sum(_widest_heads(s)) * item
        layers = s.depth * 4 * s.hidden + layer if checkpointing else s.depth * layer
        return tokens * (layers + (8 * s.vocab if logits else 0))

    def scoring_bytes(self, tokens: int, *, gradients: bool = False) -> int:
        """Rough bytes of scoring with batches of `tokens` places: weights and one layer's activations.

        With gradients (`taylor`) also every layer's input, that layer's activations once more, and three chunks of
        fp32 logits (`head_loss.CHUNK_BYTES`; a GPU's are four times as large). No batch's logits are ever held.
        """
        s = self.shape
        wide = s.width * max(1, s.active)
        queries, keys = _widest_heads(s)
        one_layer = self.dtype_bytes * tokens * (8 * s.hidden + 4 * wide + 2 * (queries + 2 * keys))
        if not gradients:
            return self.weight_bytes + one_layer
        chunk = min(128 << 20, 4 * s.vocab * tokens)
        return self.weight_bytes + 2 * one_layer + self.dtype_bytes * s.depth * s.hidden * tokens + 3 * chunk

    def forward_flops(self, tokens: int, past: int = 0, head_tokens: int | None = None) -> int:
        """FLOPs of a forward pass of `tokens` after `past` cached ones; the head runs on `head_tokens` (all)."""
        s = self.shape
        head = s.hidden * s.vocab * (tokens if head_tokens is None else head_tokens)
        sliding_keys = tokens + (min(past, s.window - 1) if s.window else past)
        keys = (s.attentions - s.sliding) * (past + tokens) + s.sliding * sliding_keys
        pairs = s.heads * s.head_dim * keys + s.mixers * s.mixer_queries * (past + tokens)
        return 2 * (tokens * s.passed_weights + head) + 4 * tokens * pairs

    def flops(self, prompt_tokens: int, new_tokens: int) -> Flops:
        """FLOPs of answering one question of `prompt_tokens` with `new_tokens` (see the conventions above)."""
        prefill = self.forward_flops(prompt_tokens, head_tokens=1)
        decode = sum(self.forward_flops(1, past=prompt_tokens + i) for i in range(max(0, new_tokens - 1)))
        return Flops(prefill, decode)

    def train_flops(self, tokens: int, length: int = 1024, passes: int = 3) -> int:
        """FLOPs of training in sequences of `length`: see `training_flops`."""
        s = self.shape
        products = s.passed_weights + s.hidden * s.vocab
        return round(training_flops(tokens, length, products, attention_products(s), passes))

    def train_hours(self, tokens: int, gpu: str, gpus: int = 1, utilisation: float = 0.35) -> float:
        """A rough estimate of the hours to train on `tokens` at this share of the GPUs' peak. UnknownName for a GPU."""
        return self.train_flops(tokens) / (gpu_of(gpu)[1] * 1e12 * utilisation * gpus) / 3600

    def to_json(self) -> dict[str, int]:
        """The figures that a stage's record keeps."""
        return {
            "params": self.params,
            **({"active_params": active_params(self.shape)} if self.shape.experts else {}),
            "weight_bytes": self.weight_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "train_bytes": self.train_bytes,
        }


def attention_products(shape: Shape) -> int:
    """Query heads times their width, of all layers: what each pair of tokens costs."""
    return shape.attentions * shape.heads * shape.head_dim + shape.mixers * shape.mixer_queries


def _widest_heads(shape: Shape) -> tuple[int, int]:
    """(query heads, key/value heads) times their width, of the layers where these are most."""
    own = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return max(own, (shape.mixer_queries, shape.mixer_keys) if shape.mixers else own, key=sum)


def training_flops(tokens: int, length: float, products: int, attention: int, passes: int = 3) -> float:
    """FLOPs of training on `tokens` tokens in sequences of `length`.

    Args:
        tokens: Trained tokens.
        length: Tokens of a sequence, each of which attends to all.
        products: Elements of the matrices that a token passes, the head's among them.
        attention: Layers x heads x size of a head.
        passes: 1: forward alone (a teacher). 2: adapters (no gradients of the weights). 3: backward is twice forward.
            Recomputing activations is no work of the model, and not counted.
    """
    return passes * tokens * (2.0 * products + 4.0 * attention * length)


def moments_bytes(shape: Shape, sets: int) -> int:
    """Bytes of a layer's second moments, over so many sets of tokens; of a mixture those of every expert."""
    return sets * shape.ffns * shape.width**2 * (4 if shape.width > WIDE else 8)


def block_bytes(cost: Cost, layers: int, tokens: int) -> int:
    """Bytes of training so many of a model's layers on their own in fp32, on batches of `tokens` places."""
    one = Cost(cost.shape.resized({"layers": layers}))
    held = round(state_bytes()) * layers * layer_params(cost.shape)
    return held + one.activation_bytes(tokens, item=4, checkpointing=False, logits=False)


def state_bytes(
    kind: str = "", devices: int = 1, *, lora: bool = False, reference: bool = False, average: bool = False
) -> float:
    """Bytes that training holds on one device for each parameter, activations apart.

    Args:
        kind: How weights are spread: `zero2`, `zero3`, `fsdp2`; any other: not at all.
        devices: How many.
        lora: Adapters alone are trained: fp32 weights; else also gradients and AdamW's two moments.
        reference: A second copy of the weights, for a KL.
        average: A mean of the weights beside them.
    """
    spread = devices if kind in ("zero3", "fsdp2") else 1
    more = 4 / spread * (reference + (average and not lora))
    if lora:
        return 4 / spread + more
    return (2 + 14 / devices if kind == "zero2" else 16 / spread) + more


def cost_of(config: Any, *, shape: Mapping[str, int] | None = None, dtype_bytes: int = 2) -> Cost:
    """The cost of a model.

    Args:
        config: A `PretrainedConfig`, a config.json dict, or a `Shape`.
        shape: How many of each axis to assume instead of the config's: {"neurons": 8944}; None: as it is.
        dtype_bytes: Bytes of one element of weights and cache.
    """
    return Cost(_shape(config).resized(shape or {}), dtype_bytes)
