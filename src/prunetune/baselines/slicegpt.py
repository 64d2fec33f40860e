"""SliceGPT (arXiv 2401.15024): rotate the residual stream into its principal axes, then cut the smallest of them.

    RMSNorm commutes with a rotation once its weights are folded into the matrices behind it. So between every two
    blocks the stream x may be written in a basis Q of its own, x Q, if the blocks read W Q and write Q^T W, and the
    residual path takes one basis to the next, Q_l^T Q_{l+1}. Q is the eigenbasis of the second moments of the
    normalised stream; slicing keeps its first columns.

A sliced model computes what the stock model would compute if x were projected onto the kept axes, x Q Q^T, before every
block. That is how the bases are found here: layer by layer, each seeing the projections before it.

    rotated = rotate(model, batches)                          # nothing cut: the same logits in another basis
    small = slice_model(model, batches, target_share=0.6)     # at most 60 % of the parameters
    save_sliced(small, source_folder, out);  load_sliced(out)

Choices that the paper leaves open, or that differ from the authors' program: one width everywhere, the head's too
(their program leaves the head whole by default); all parameters count, embeddings, head and residual matrices among
them; a tied head is untied, because the folded norm makes it another matrix. What comes out is a research artefact (see
`sliced.py`): it is trained and measured like any model, but no other program loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunetune.baselines.sliced import ARTEFACT, MODEL_TYPE, Norm, SlicedConfig, SlicedForCausalLM
from prunetune.baselines.sliced_cost import ALIGN, check_family, kept_for
from prunetune.common.files import read_json, replacing
from prunetune.errors import BadCheckpoint, NotWritable, OutOfReach
from prunetune.models.folders import copy_files, load_model
from prunetune.pruning.layerwise import LayerSource, OneLayer, embed, forward, one_layer, open_source
from prunetune.pruning.least_squares import Gram
from prunetune.pruning.scores import Batch

Progress = Callable[[int, int], None]


# --------------------------------------------------------------------------------------------------------------- bases


@dataclass(frozen=True)
class Bases:
    """An orthonormal basis of the residual stream before every block: columns, the largest axis first.

    Attributes:
        attention: Before each layer's attention, and one more before the head: layers + 1 of [hidden, kept], fp64.
        ffn: Before each layer's FFN: layers of [hidden, kept], fp64.
    """

    attention: tuple[Float[Tensor, "hidden kept"], ...]
    ffn: tuple[Float[Tensor, "hidden kept"], ...]

    @property
    def kept(self) -> int:
        """Width that is left."""
        return int(self.ffn[0].shape[1])


def find_bases(
    model: PreTrainedModel | Path, batches: Sequence[Batch], kept: int, progress: Progress | None = None
) -> Bases:
    """The principal axes of the normalised residual stream on these sequences, layer by layer.

    Args:
        model: The model, or its folder (then one layer is in memory at a time).
        batches: {input_ids, attention_mask}; padded places do not count.
        kept: Axes to keep.
        progress: Called with (layers done, layers in all).
    """
    source = open_source(model)
    check_family(source.config)
    normalised = Norm(source.config.hidden_size, source.config.rms_norm_eps)
    masks = [b["attention_mask"] for b in batches]
    real = [m.bool().to(source.device) for m in masks]

    def project(hidden: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        basis = principal_axes((normalised(h)[r] for h, r in zip(hidden, real, strict=True)), kept)
        if kept == len(basis):
            return basis.cpu(), hidden
        onto = (basis @ basis.T).to(hidden[0].dtype)
        return basis.cpu(), [h @ onto for h in hidden]

    basis, hidden = project(embed(source, [b["input_ids"] for b in batches]))
    attention, ffn = [basis], []
    for i in range(source.depth):
        layer = _Halves(source, i)
        basis, hidden = project([layer.attend(h, m) for h, m in zip(hidden, masks, strict=True)])
        ffn.append(basis)
        basis, hidden = project([layer.feed(h) for h in hidden])
        attention.append(basis)
        if progress:
            progress(i + 1, source.depth)
    return Bases(tuple(attention), tuple(ffn))


def principal_axes(tokens: Any, kept: int) -> Float[Tensor, "hidden kept"]:
    """The first `kept` eigenvectors of E[x x^T], fp64, by falling eigenvalue.

    Args:
        tokens: Tensors [tokens, hidden], one a batch.
        kept: How many.
    """
    gram: Gram | None = None
    for x in tokens:
        gram = gram or Gram(x.shape[1], x.device)
        gram.update(x)
    if gram is None:
        raise OutOfReach("there is no sequence to find the axes with", fix="give at least one batch")
    _, vectors = torch.linalg.eigh(gram.finish().double())
    basis: Tensor = vectors.flip(1)[:, :kept].contiguous()
    return basis


class _Halves:
    """A stock layer in two halves: attention with its residual path, and the FFN with its own."""

    def __init__(self, source: LayerSource, layer: int) -> None:
        self.one: OneLayer = one_layer(source, layer)
        block: Any = self.one.block
        self.norm, self.mlp = block.post_attention_layernorm, block.mlp
        block.mlp = _Nothing()

    @torch.no_grad()
    def attend(self, hidden: Float[Tensor, "batch places hidden"], mask: Tensor) -> Tensor:
        """The residual stream behind attention: hidden + Attn(norm(hidden))."""
        return forward(self.one, hidden, mask)

    @torch.no_grad()
    def feed(self, hidden: Float[Tensor, "batch places hidden"]) -> Tensor:
        """The residual stream behind the FFN: hidden + FFN(norm(hidden))."""
        with torch.autocast(hidden.device.type, enabled=False):
            out: Tensor = hidden + self.mlp(self.norm(hidden))
        return out


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


# -------------------------------------------------------------------------------------------------------------- models


def rotate(model: PreTrainedModel, batches: Sequence[Batch], progress: Progress | None = None) -> SlicedForCausalLM:
    """The same function in the principal axes of its residual stream; nothing is cut.

    Args:
        model: A causal language model of `sliced_cost.FAMILIES`; it is left as it is.
        batches: Sequences that the axes are found with.
        progress: Called with (layers done, layers in all).

    Returns:
        A model whose logits equal the original's up to rounding.
    """
    return sliced_model(model, find_bases(model, batches, model.config.hidden_size, progress))


def slice_model(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    target_share: float,
    *,
    align: int = ALIGN,
    progress: Progress | None = None,
) -> SlicedForCausalLM:
    """Cut the residual stream until the model holds at most this share of its parameters.

    Args:
        model: A causal language model of `sliced_cost.FAMILIES`; it is left as it is.
        batches: Sequences that the axes are found with (the ones that the other methods score).
        target_share: Share of the parameters, tied embeddings of the source counted once.
        align: The kept width is a multiple of this.
        progress: Called with (layers done, layers in all).

    Raises:
        UnsupportedModel: Another family.
        OutOfReach: No width is small enough.
    """
    check_family(model.config)
    kept = kept_for(model.config, target_share, align)
    return sliced_model(model, find_bases(model, batches, kept, progress))


def sliced_model(model: PreTrainedModel, bases: Bases) -> SlicedForCausalLM:
    """The model written in these bases, in the original's dtype and on its device, in eval mode."""
    made = SlicedForCausalLM(SlicedConfig.of(model.config, bases.kept))
    made.load_state_dict(sliced_tensors(model.state_dict(), bases, model.config.num_hidden_layers))
    made.generation_config = model.generation_config
    moved: SlicedForCausalLM = made.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]  # as in store.py
    moved.train(False)
    return moved


def sliced_tensors(state: Mapping[str, Tensor], bases: Bases, depth: int) -> dict[str, Tensor]:
    """Every tensor of the sliced model, fp64: pure.

    Reading matrices become W diag(norm) Q, writing ones Q^T W, residual matrices Q_next^T Q (as `nn.Linear` has them).
    """

    def of(name: str) -> Tensor:
        return state[name].double().cpu()

    head = "lm_head.weight" if "lm_head.weight" in state else "model.embed_tokens.weight"
    out = {
        "model.embed_tokens.weight": of("model.embed_tokens.weight") @ bases.attention[0],
        "lm_head.weight": of(head) * of("model.norm.weight") @ bases.attention[-1],
    }
    for i in range(depth):
        at, first, second, after = f"model.layers.{i}.", bases.attention[i], bases.ffn[i], bases.attention[i + 1]
        for block, norm, readers, writer, short, q, q_next in (
            ("self_attn.", "input_layernorm", ("q_proj", "k_proj", "v_proj"), "o_proj", "attn", first, second),
            ("mlp.", "post_attention_layernorm", ("gate_proj", "up_proj"), "down_proj", "mlp", second, after),
        ):
            prefix = at + block
            for name in readers:
                out[f"{prefix}{name}.weight"] = of(f"{prefix}{name}.weight") * of(f"{at}{norm}.weight") @ q
            for name in (f"{prefix}{writer}.weight", f"{prefix}{writer}.bias"):
                if name in state:
                    out[name] = q_next.T @ of(name)
            out[f"{at}{short}_shortcut.weight"] = q_next.T @ q
            same = [n for n in state if n.startswith(prefix) and n not in out]  # biases of readers, norms of heads
            out |= {n: of(n) for n in same}
    return out


def save_sliced(model: SlicedForCausalLM, source: Path, out: Path) -> None:
    """Write the artefact: safetensors, config.json that says what it is, the source's tokenizer, a README.

    Raises:
        NotWritable: `out` is there already, or cannot be written.
    """
    if out.exists():
        raise NotWritable("the output folder is there already", value=str(out), fix="choose another one, or remove it")
    with replacing(out) as tmp:
        tmp.mkdir()
        write_sliced(model, source, tmp)


def write_sliced(model: SlicedForCausalLM, source: Path, folder: Path) -> None:
    """`save_sliced` into a folder that the caller has made."""
    model.save_pretrained(folder)
    copy_files(source, folder)
    text = f"# Sliced model\n\nThis is {ARTEFACT}.\n\n    from prunetune.baselines.slicegpt import load_sliced\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def load_sliced(folder: Path, dtype: torch.dtype | str = "auto", device: str = "cpu") -> SlicedForCausalLM:
    """Load what `save_sliced` or a recovery of it wrote, in eval mode.

    Raises:
        BadCheckpoint: The folder holds another kind of model, or truncated weights.
        MissingPath: There is no such folder.
    """
    found = read_json(folder / "config.json").get("model_type")
    if found != MODEL_TYPE:
        raise BadCheckpoint(
            "this folder holds no sliced model", value=found, valid=MODEL_TYPE, fix="load it with plain transformers"
        )
    model = load_model(folder, dtype, device)
    assert isinstance(model, SlicedForCausalLM)
    return model
