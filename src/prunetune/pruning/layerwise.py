"""One decoder layer after another over the same batches: only one layer is in hand, whatever the size of the model.

    source = open_source(model_or_folder)
    hidden = [embed(source, b["input_ids"]) for b in batches]
    for i in range(source.depth):
        one = one_layer(source, i)
        hidden = [forward(one, h, b["attention_mask"]) for h, b in zip(hidden, batches)]

The config is cut to that one layer by the same function that prunes, so masks, sliding windows and rotary embeddings
are transformers' own: the walk equals the whole model's forward pass bit for bit (tests/test_walk.py).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from prunetune.common.device import device_of, walk_dtype
from prunetune.common.files import disk_errors
from prunetune.errors import BadCheckpoint
from prunetune.models.axes import axis_of, resized
from prunetune.models.calibration import Place
from prunetune.models.families import Family, family_of, layer_of
from prunetune.models.families.wrappers import own_name
from prunetune.models.finite import broken_weights, is_finite
from prunetune.models.folders import check_weights, load_config
from prunetune.models.shards import ShardReader, open_shards
from prunetune.pruning.cut import cut_config, cut_tensor
from prunetune.pruning.experts.tensors import merged
from prunetune.pruning.plan import PrunePlan

_BASE_MODELS: Any = MODEL_MAPPING  # config class -> base model class


@dataclass(frozen=True)
class OneLayer:
    """A stock base model whose only layer is `block`, without embedding and final norm: hidden state in and out."""

    model: nn.Module
    block: nn.Module


@dataclass(frozen=True)
class LayerSource:
    """Where a model's tensors come from, be it memory or disk.

    Attributes:
        config: The model's config.
        family: Its family.
        names: Layer -> {suffix inside the layer: name of the tensor in the source}.
        embedding: Name of the embedding matrix.
        read: Name -> tensor. The tensor belongs to the source: do not change it.
        stored: Name -> the dtype that the tensor has in the source.
        device: Where the layers run.
        dtype: In what they run.
    """

    config: PretrainedConfig
    family: Family
    names: Mapping[int, Mapping[str, str]]
    embedding: str
    read: Callable[[str], Tensor]
    stored: Callable[[str], torch.dtype]
    device: torch.device
    dtype: torch.dtype

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.names)

    @property
    def width(self) -> int:
        """FFN width, or that of each expert."""
        return axis_of("neurons").units(self.config.to_dict())

    def layer_tensors(self, layer: int) -> dict[str, Tensor]:
        """{suffix: tensor} of one layer as the model has them, on the device and in the dtype of the walk."""
        found = {s: self.read(n).to(self.device, self.dtype) for s, n in self.names[layer].items()}
        return merged(self.family.experts, found) if self.family.experts else found


def open_source(
    model: PreTrainedModel | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    quick: bool = False,
    as_loaded: bool = False,
) -> LayerSource:
    """A model in memory, or a folder whose layers are read one by one.

    Args:
        model: The model or its folder.
        device: Where to run (default: the model's device; for a folder a GPU if there is one).
        dtype: In what to run (default: fp32 on the CPU, else the model's).
        quick: On a CPU too as the model is stored, where that is several times as fast (`walk_dtype`).
        as_loaded: In the dtype that the model has in memory, on a CPU too.
    """
    if isinstance(model, PreTrainedModel):
        state = model.state_dict()
        family, names, embedding = _names(model.config, state)
        place = torch.device(device or model.device)
        run = dtype or (model.dtype if as_loaded else _dtype(place, model.dtype, model.config, quick))
        return LayerSource(
            model.config, family, names, embedding, state.__getitem__, lambda n: state[n].dtype, place, run
        )
    check_weights(model)
    config = load_config(model)
    shards = open_shards(model)
    where = {name: path for path, infos in shards.items() for name in infos}
    family, names, embedding = _names(config, where)

    def read(name: str) -> Tensor:
        with ShardReader(where[name]) as reader:
            return reader.read(name)

    def stored(name: str) -> torch.dtype:
        return shards[where[name]][name].dtype

    place = torch.device(device or device_of())
    loaded = config.dtype or stored(embedding)  # as transformers' dtype="auto"
    run = dtype or (loaded if as_loaded else _dtype(place, loaded, config, quick))
    return LayerSource(config, family, names, embedding, read, stored, place, run)


def _dtype(device: torch.device, stored: torch.dtype, config: PretrainedConfig, quick: bool) -> torch.dtype:
    elements = config.hidden_size * axis_of("neurons").units(config.to_dict()) if quick else 0
    return walk_dtype(device.type, stored, elements)


def _names(config: PretrainedConfig, found: Iterable[str]) -> tuple[Family, dict[int, dict[str, str]], str]:
    """(family, {layer: {suffix: name}}, name of the embedding) of a checkpoint's tensors."""
    family, names = family_of(config), {i: dict[str, str]() for i in range(config.num_hidden_layers)}
    for name in found:
        if (at := layer_of(family, name)) and at[0] in names:
            names[at[0]][at[1]] = name
    inner = family.embedding.removeprefix(f"{family.base}.")
    embedding = [name for name in found if own_name(name) in (f"{family.embedding}.weight", f"{inner}.weight")]
    if len(embedding) != 1 or not all(names.values()):
        raise BadCheckpoint(
            "this checkpoint lacks layers or the embedding", value=sorted(found)[:3], fix="save it anew"
        )
    return family, names, embedding[0]


def one_layer(source: LayerSource, layer: int, experts: PrunePlan | None = None) -> OneLayer:
    """Layer `layer` as a model of its own; without the experts that a plan of them takes, so that the others are sent
    what they will be.

    Its parameters may be the source's own memory: replace them, do not change them in place.
    """
    config = _one_layer_config(source, layer, experts)
    with torch.device("meta"):
        model = _BASE_MODELS[type(config)](config)
    for name in (source.family.embedding, source.family.final_norm):
        setattr(model, name.removeprefix(f"{source.family.base}."), nn.Identity())
    model.rotary_emb = type(model.rotary_emb)(config).to(source.device)  # its buffers are computed, not loaded
    block: nn.Module = model.layers[0]
    found, wanted = source.layer_tensors(layer), set(block.state_dict())
    if lost := wanted - set(found):
        raise BadCheckpoint(
            f"layer {layer} of this checkpoint lacks tensors", value=sorted(lost)[:3], fix="save it anew"
        )
    if experts:
        start = f"{source.family.layers}.{layer}."
        cut = {k: cut_tensor(experts, {}, source.family, start + k, x) for k, x in found.items()}
        found = {k: x for k, x in cut.items() if x is not None}
    block.load_state_dict({k: found[k] for k in wanted}, assign=True)
    return OneLayer(model.eval().requires_grad_(False), block)


def _one_layer_config(source: LayerSource, layer: int, experts: PrunePlan | None = None) -> PretrainedConfig:
    values = source.config.to_dict()
    others = tuple(i for i in range(source.depth) if i != layer)
    drop = {"experts": {layer: experts.drops("experts")[layer]}} if experts else {}
    sizes = experts.sizes if experts else {}
    plan = PrunePlan(model_sha="", depth=source.depth, width=source.width, drop_layers=others, sizes=sizes, drop=drop)
    config = copy.deepcopy(source.config)
    for key, value in cut_config(plan, source.family, values, values).items():
        if value != values.get(key):
            setattr(config, key, value)
    if source.family.embedding_scale:  # done once, by `embed`
        setattr(config, source.family.embedding_scale, 1.0)
    return config


def embed(source: LayerSource, batches: list[Tensor]) -> list[Tensor]:
    """The input of layer 0 (scaled, where the family scales its embeddings): [batch, places] ids -> [.., hidden]."""
    return list(map(embedding_of(source), batches))


def embedding_of(source: LayerSource) -> Callable[[Tensor], Tensor]:
    """What makes the input of layer 0 of a batch of ids, as `embed` does; it holds the matrix."""
    config = _one_layer_config(source, 0)
    config.vocab_size, config.pad_token_id = 1, None
    for key, value in resized(
        config.to_dict(), {"neurons": 1} | ({"experts": 1} if source.family.experts else {})
    ).items():
        setattr(config, key, value)
    table = _BASE_MODELS[type(config)](config).to(source.device, source.dtype).get_input_embeddings()
    table.weight = nn.Parameter(source.read(source.embedding).to(source.device, source.dtype), requires_grad=False)
    scale = source.family.number(source.family.embedding_scale, source.config)
    return torch.no_grad()(lambda ids: table(ids.to(source.device)) * scale)


def embedded(source: LayerSource, batches: Sequence[Tensor], shelf: Shelf) -> list[Tensor]:
    """The input of layer 0 of each batch of ids, as `embed`, on the shelf. NotFinite: a token's embedding is."""
    embedding, found = embedding_of(source), []
    for ids in batches:
        hidden = embedding(ids)
        if not is_finite(hidden):
            raise broken_weights("the embedding", source.embedding, source.read(source.embedding))
        found.append(shelf.put(hidden))
    return found


@torch.no_grad()
def forward(
    one: OneLayer, hidden: Float[Tensor, "batch places hidden"], mask: Shaped[Tensor, "batch places"]
) -> Float[Tensor, "batch places hidden"]:
    """Run one layer, autocast off, on the output of the layer before."""
    with torch.autocast(hidden.device.type, enabled=False):
        out = one.model(inputs_embeds=hidden, attention_mask=mask.to(hidden.device), use_cache=False)
    after: Tensor = out.last_hidden_state
    return after


class Shelf:
    """Keeps tensors in a place, and gives them on the device. Values stay as they are, bit for bit."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place, self.device = place, device

    def put(self, x: Tensor) -> Tensor:
        """The tensor in its place; a file of the disk goes with the tensor. NotWritable if the disk is full."""
        if self.place == "device":
            return x
        if self.place == "host memory":
            return x.to("cpu")
        at = Path(tempfile.gettempdir())
        with disk_errors(at), tempfile.NamedTemporaryFile(prefix="prunetune-hidden-") as file:
            file.write(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()  # all is written before it is mapped: a full disk is an error here, not a fault in memory
            kept = torch.from_file(file.name, shared=True, size=x.numel(), dtype=x.dtype)
        return kept.view(x.shape)  # the mapping outlives the file's name

    def take(self, x: Tensor) -> Tensor:
        """The tensor on the device."""
        return x.to(self.device)
