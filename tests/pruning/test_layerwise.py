"""Walking layer by layer equals the whole model's forward pass, from memory and from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_folder, tiny_model

from prunetune.errors import BadCheckpoint
from prunetune.models.families import FAMILIES
from prunetune.models.folders import load_model
from prunetune.pruning.layerwise import LayerSource, embed, forward, one_layer, open_source


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, -4:] = 0
    return ids, mask


def walked(source: LayerSource) -> torch.Tensor:
    ids, mask = padded_batch()
    [hidden] = embed(source, [ids])
    for layer in range(source.depth):
        hidden = forward(one_layer(source, layer), hidden, mask)
    return hidden


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_whole_model_bit_for_bit(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", family)
    model = load_model(folder)
    ids, mask = padded_batch()
    with torch.no_grad():
        whole = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    real = mask.bool()
    with torch.no_grad():
        from_memory, from_disk = (
            model.get_submodule(FAMILIES[family].final_norm)(walked(open_source(x))) for x in (model, folder)
        )
    assert torch.equal(from_memory[real], whole[real])
    assert torch.equal(from_disk[real], whole[real])


def test_bf16_runs_in_fp32_on_the_cpu_unless_told(tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    assert open_source(model).dtype == torch.float32
    source = open_source(model, dtype=torch.bfloat16)
    ids, mask = padded_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden = walked(open_source(model))
        whole = model.float().model(ids, attention_mask=mask, use_cache=False)
    assert hidden.dtype == torch.float32  # autocast is off inside
    assert whole.last_hidden_state.shape == hidden.shape
    assert walked(source).dtype == torch.bfloat16


def test_the_source_is_not_changed() -> None:
    model = tiny_model("gemma2")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    walked(open_source(model))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_without_its_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_folder(tmp_path / "m", "llama")
    state = load_file(folder / "model.safetensors")
    state.pop("model.layers.2.input_layernorm.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"layers\.2\.input_layernorm"):
        one_layer(open_source(folder), 2)
    save_file({k: v for k, v in state.items() if ".layers.1." not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match="lack layer 1"):
        open_source(folder)
