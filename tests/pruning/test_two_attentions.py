"""Gemma 4: layers that see all tokens have heads of another shape, and the class makes the last layer one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.test_apply import logits, make_plan, oracle
from tests.pruning.test_wrappers import logits as whole_logits
from tests.pruning.test_wrappers import oracle as whole_oracle
from tests.pruning.test_wrappers import plan_of
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer
from tests.wrapped import with_image, wrapped_folder, wrapped_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import prunetune
from prunetune.common.files import read_json, write_json
from prunetune.errors import OutOfReach, UnsupportedModel
from prunetune.evaluation.fitting import guess_batch
from prunetune.models.cost import cost_of
from prunetune.models.folders import load_model, model_sha
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.scores import Scores

WIDE = {"head_dim": 16, "num_key_value_heads": 1}
BY_KEYS = {"global_head_dim": 16, "num_global_key_value_heads": 1}
ROWS = [{"question": f"{i}+{i % 7}", "answer": f"{i}+{i % 7}={i + i % 7}"} for i in range(40, 56)]


def as_on_the_hub(folder: Path) -> Path:
    """The same model with a config.json of before transformers wrote what each layer has of its own."""
    config = read_json(folder / "config.json")
    inner = config.get("text_config", config)
    del inner["per_layer_config"]
    inner |= BY_KEYS
    write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("drop_layers", [(2,), (0, 1), ()])
@pytest.mark.parametrize("hub", [False, True])
def test_what_layers_have_of_their_own_goes_with_them(hub: bool, drop_layers: tuple[int, ...], tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", "gemma4_text")
    if hub:
        as_on_the_hub(folder)
    plan = make_plan(model_sha(folder), drop_layers=drop_layers)
    apply_on_disk(folder, plan, tmp_path / "out")
    cut = read_json(tmp_path / "out" / "config.json")
    kinds = ["sliding_attention", "full_attention"] * 2
    assert cut["layer_types"] == [kinds[i] for i in plan.kept_layers]
    wide = {str(new): WIDE for new, layer in enumerate(plan.kept_layers) if layer % 2}
    assert (BY_KEYS.items() <= cut.items(), cut.get("per_layer_config")) == (hub, None if hub else wide)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(model), logits(oracle(load_model(folder), plan)), atol=1e-5, rtol=1e-5)
    assert cost_of(cut).params == sum(p.numel() for p in model.parameters())


def test_a_list_of_kinds_that_the_class_overrules_is_cut_as_the_class_has_it(tmp_path: Path) -> None:
    folder = as_on_the_hub(tiny_folder(tmp_path / "m", "gemma4_text"))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "layer_types": [*config["layer_types"][:3], "sliding_attention"]})
    plan, model = make_plan(model_sha(folder)), load_model(folder)
    apply_on_disk(folder, plan, tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["layer_types"][-1] == "full_attention"
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(oracle(model, plan)), atol=1e-5, rtol=1e-5)


def test_keys_of_ten_layers_sort_as_numbers(tmp_path: Path) -> None:
    """As transformers writes them, so that its own reading and ours agree."""
    kinds = ["sliding_attention", "full_attention"] * 6
    folder = tiny_folder(tmp_path / "m", "gemma4_text", num_hidden_layers=12, layer_types=kinds)
    assert list(read_json(folder / "config.json")["per_layer_config"])[:2] == ["01", "03"]
    apply_on_disk(folder, make_plan(model_sha(folder), drop_layers=(0,), depth=12), tmp_path / "eleven")
    apply_on_disk(folder, make_plan(model_sha(folder), drop_layers=(0, 2, 4), depth=12), tmp_path / "nine")
    eleven, nine = (read_json(tmp_path / n / "config.json")["per_layer_config"] for n in ("eleven", "nine"))
    assert list(eleven) == ["00", "02", "04", "06", "08", "10"] and list(nine) == ["0", "1", "2", "4", "6", "8"]
    for name, keys in (("eleven", eleven), ("nine", nine)):
        AutoModelForCausalLM.from_pretrained(tmp_path / name).save_pretrained(tmp_path / "again")
        assert read_json(tmp_path / "again" / "config.json")["per_layer_config"] == keys


# ------------------------------------------------------------------------------------------------------ the last layer


@pytest.mark.parametrize("drop_layers", [(3,), (1, 3)])
def test_no_other_kind_of_layer_comes_to_stand_last(drop_layers: tuple[int, ...], tmp_path: Path) -> None:
    model, plan = tiny_model("gemma4_text"), make_plan(drop_layers=drop_layers)
    with pytest.raises(UnsupportedModel, match="its last layer one of full_attention") as e:
        apply_in_memory(model, plan)
    assert "layer 2, once layers 3 are gone" in str(e.value.value) and "let layer 3 stay" in str(e.value.fix)
    folder = wrapped_folder(tmp_path / "m", "gemma4")
    for text_only in (False, True):
        with pytest.raises(UnsupportedModel, match="its last layer one of full_attention"):
            apply_on_disk(folder, plan_of(folder, drop_layers), tmp_path / "out", text_only=text_only)
        assert not (tmp_path / "out").exists()
    both = make_plan(drop_layers=(2, 3))  # then layer 1 is the last one, which sees all tokens as well
    torch.testing.assert_close(logits(apply_in_memory(model, both)), logits(oracle(model, both)), atol=1e-5, rtol=1e-5)


def test_the_last_layer_is_never_chosen_however_low_its_score(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gemma4_text"), tiny_tokenizer()
    made = prunetune.score(model, prunetune.batches(tokenizer, ROWS))
    assert made.stays == (3,) and prunetune.score(tiny_model("llama"), prunetune.batches(tokenizer, ROWS)).stays == ()
    made.layers[3] = -1.0
    made.write(tmp_path / "scores.safetensors")
    found = Scores.read(tmp_path / "scores.safetensors")
    assert found.stays == (3,) and found.may_go() == [0, 1, 2] and found.may_go([1, 3]) == [1]
    for n in (1, 2, 3):
        plan = prunetune.plan(found, neurons=8, layers=n)
        assert len(plan.drop_layers) == n and 3 in plan.kept_layers
        apply_in_memory(model, plan)
    with pytest.raises(OutOfReach, match="layers cannot go"):
        prunetune.plan(found, layers=1, which_layers=[3])


# --------------------------------------------------------------------------------------------------- with vision tower


def test_the_hubs_wrapper_is_cut_as_it_is_written(tmp_path: Path) -> None:
    folder = as_on_the_hub(wrapped_folder(tmp_path / "m", "gemma4"))
    plan, inputs = plan_of(folder, (0,)), with_image("gemma4")
    apply_on_disk(folder, plan, tmp_path / "out")
    old, new = (read_json(f / "config.json")["text_config"] for f in (folder, tmp_path / "out"))
    assert list(new) == list(old) and BY_KEYS.items() <= new.items()
    assert {k for k in new if new[k] != old[k]} == {"intermediate_size", "num_hidden_layers", "layer_types"}
    cut = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    wanted = whole_logits(whole_oracle(wrapped_model("gemma4"), plan), inputs)
    torch.testing.assert_close(whole_logits(cut, inputs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hub", [False, True])
def test_text_alone_names_the_wide_heads_for_everybody(hub: bool, tmp_path: Path) -> None:
    """llama.cpp's converter reads `global_head_dim`, transformers of today a mapping of layers."""
    folder = wrapped_folder(tmp_path / "m", "gemma4")
    if hub:
        as_on_the_hub(folder)
    apply_on_disk(folder, plan_of(folder, (2,)), tmp_path / "out", text_only=True)
    config = read_json(tmp_path / "out" / "config.json")
    assert BY_KEYS.items() <= config.items() and config["per_layer_config"] == {"1": WIDE, "2": WIDE}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.to_dict()
    assert again["per_layer_config"] == config["per_layer_config"] and again["head_dim"] == 8


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_of_it_is_fitted_to_the_cache_that_it_has(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a size that is not cut here: whatever can be evaluated."""
    changes: dict[str, Any] = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 4} if shared else {}
    model = tiny_model("gemma4_text", vocab_size_per_layer_input=104, **changes)
    tokens, rest = 100, 16 * (104 + 100 * 32)
    row = 2 * (2 * 2 * 8 + 2 * 1 * 16) * 4 * tokens + rest
    for rows in (1, 5):
        free = {"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": 2 * rows * row + 2}  # a batch takes half of it
        monkeypatch.setattr("os.sysconf", free.__getitem__)
        assert guess_batch(model, tokens) == rows
