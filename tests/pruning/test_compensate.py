"""Compensation on tiny models: exact where it can be, never worse on held-out tokens, the same from memory and disk."""

from __future__ import annotations

import copy
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import DENSE, down_of, layers_of, tiny_folder, tiny_model
from transformers import PreTrainedModel

from prunetune.errors import DataError, PlanError, UnknownName, UnsupportedModel
from prunetune.models.families import FAMILIES
from prunetune.models.folders import load_model, model_sha
from prunetune.models.shards import ShardReader
from prunetune.pruning.apply import apply_in_memory, apply_on_disk
from prunetune.pruning.compensate import Patch, compensate
from prunetune.pruning.layerwise import Shelf, one_layer
from prunetune.pruning.least_squares import leverage
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import score

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f: (f, {}) for f in DENSE},
    "llama-biases": ("llama", {"mlp_bias": True, "attention_bias": True}),
}


def batch(seed: int, rows: int = 12, length: int = 24) -> dict[str, torch.Tensor]:
    """Padded on the left in one row and on the right in another."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, :7] = 0
    mask[1, -9:] = 0
    return {"input_ids": torch.randint(3, 100, (rows, length), generator=g), "attention_mask": mask}


CALIBRATION, HELD_OUT = [batch(1), batch(2)], [batch(3)]


def make_plan(sha: str = "", drop_layers: tuple[int, ...] = (1,), count: int = 20) -> PrunePlan:
    g = torch.Generator().manual_seed(3)
    kept = [layer for layer in range(4) if layer not in drop_layers]
    drop = {layer: tuple(sorted(torch.randperm(48, generator=g)[:count].tolist())) for layer in kept}
    return PrunePlan(model_sha=sha, depth=4, width=48, drop_layers=drop_layers, drop_neurons=drop if count else {})


def masked(model: PreTrainedModel, plan: PrunePlan, patch: Patch) -> PreTrainedModel:
    """The whole-width model that computes what the compensated one computes."""
    model = copy.deepcopy(model)
    for layer in plan.kept_layers:
        down, family = down_of(model, layer), FAMILIES[model.config.model_type]
        name = f"{family.layers}.{layer}.{family.down}"
        with torch.no_grad():
            down.weight[:, list(plan.drop_neurons.get(layer, ()))] = 0
            if f"{name}.weight" in patch.tensors:
                down.weight[:, list(plan.kept("neurons", layer))] = patch.tensors[f"{name}.weight"]
            if f"{name}.bias" in patch.tensors:
                down.bias.copy_(patch.tensors[f"{name}.bias"])
    for layer in plan.drop_layers:
        layers_of(model)[layer].register_forward_hook(lambda _module, args, _out: args[0])
    return model


def activations(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The input of every layer's down_proj over real tokens."""
    seen: list[list[torch.Tensor]] = [[] for _ in layers_of(model)]
    hooks = []
    for i, layer in enumerate(layers_of(model)):
        hook = lambda _m, args, i=i: seen[i].append(args[0].detach())  # noqa: E731
        hooks.append(layer.get_submodule(FAMILIES[model.config.model_type].down).register_forward_pre_hook(hook))
    with torch.no_grad():
        for b in batches:
            model.base_model(**b, use_cache=False)
    for h in hooks:
        h.remove()
    real = [b["attention_mask"].bool() for b in batches]
    return [torch.cat([a[m] for a, m in zip(some, real, strict=True)]) for some in seen]


@pytest.mark.parametrize("case", CASES)
def test_held_out_errors_are_what_they_claim_and_never_rise(case: str) -> None:
    """Recomputed for every layer from the model that the patch makes, on the held-out tokens."""
    family, changes = CASES[case]
    model, plan = tiny_model(family, **changes), make_plan()
    patch = compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target="layer")
    assert [f.layer for f in patch.fits] == [0, 2, 3]
    assert patch.tokens == int(sum(b["attention_mask"].sum() for b in CALIBRATION))
    assert patch.held_out_tokens == 12 * 24 - 16
    new = masked(model, plan, patch)
    for fit, a in zip(patch.fits, [x for i, x in enumerate(activations(new, HELD_OUT)) if i != 1], strict=True):
        old_down, new_down = (down_of(m, fit.layer) for m in (model, new))
        cut = a.clone()
        cut[:, list(plan.drop_neurons[fit.layer])] = 0
        with torch.no_grad():
            whole, plain, mended = old_down(a), old_down(cut), new_down(a)
        weight = torch.ones(len(a), 1)
        if FAMILIES[family].post_ffn_norm:
            weight = whole.square().mean(1, keepdim=True).rsqrt()
        before, after = (float(((whole - x) * weight).square().sum()) for x in (plain, mended))
        energy = float((whole * weight).square().sum())
        assert fit.before == pytest.approx(before / energy, rel=1e-3)
        assert fit.after == pytest.approx(after / energy, rel=1e-3)
        assert fit.after < fit.before  # here there is always something to gain
        assert fit.ridge is not None


@pytest.mark.parametrize("case", CASES)
def test_pruned_model_with_patch_equals_the_masked_one(case: str) -> None:
    family, changes = CASES[case]
    model, plan = tiny_model(family, **changes), make_plan()
    patch = compensate(model, plan, CALIBRATION, held_out=HELD_OUT)
    pruned = apply_in_memory(model, plan, patch.tensors)
    with torch.no_grad():
        a, b = (m(**HELD_OUT[0], use_cache=False).logits for m in (pruned, masked(model, plan, patch)))
    real = HELD_OUT[0]["attention_mask"].bool()
    torch.testing.assert_close(a[real], b[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_redundant_neurons_leave_no_trace(case: str) -> None:
    """The neurons that go are copies of neurons that stay: compensated, the logits do not change."""
    family, changes = CASES[case]
    model = tiny_model(family, **changes)
    plan = PrunePlan(model_sha="", depth=4, width=48, drop_neurons={i: tuple(range(24)) for i in range(4)})
    with torch.no_grad():
        for layer in layers_of(model):
            for cut in FAMILIES[family].cuts:
                if cut.dim == 0 and (parameter := dict(layer.named_parameters()).get(cut.suffix)) is not None:
                    for rows in parameter.view(cut.copies, 48, -1):
                        rows[:24] = rows[24:]
    patch = compensate(model, plan, CALIBRATION, held_out=HELD_OUT, ridges=(1e-6,))
    assert all(fit.after < 1e-5 < fit.before for fit in patch.fits)
    with torch.no_grad():
        expected, plain, mended = (
            m(**HELD_OUT[0], use_cache=False).logits[2:]
            for m in (model, apply_in_memory(model, plan), apply_in_memory(model, plan, patch.tensors))
        )
    error, without = (mended - expected).abs().max(), (plain - expected).abs().max()
    assert error < 2e-2 * without


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folder_and_memory_give_the_same_patch(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model(family).to(dtype).save_pretrained(tmp_path / "m", max_shard_size="30KB")
    model = load_model(tmp_path / "m")
    plan = make_plan(model_sha(tmp_path / "m"))
    a, b = (compensate(m, plan, CALIBRATION, held_out=HELD_OUT) for m in (model, tmp_path / "m"))
    assert a.fits == b.fits
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, b.tensors[name])
    apply_on_disk(tmp_path / "m", plan, tmp_path / "out", a.tensors)
    ours, disk = apply_in_memory(model, plan, a.tensors).state_dict(), load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(ours[k], disk[k]) for k in ours)


def test_a_folder_is_read_one_layer_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor once, in the order of the layers; the dropped layer, head and final norm never."""
    folder, names = tiny_folder(tmp_path / "m", "llama", tie_word_embeddings=False), []
    read = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, name: (names.append(name), read(self, name))[1])
    compensate(folder, make_plan(model_sha(folder)), CALIBRATION, held_out=HELD_OUT, target="layer")
    assert len(names) == len(set(names))
    assert names[0] == "model.embed_tokens.weight"
    layers = [int(name.split(".")[2]) for name in names[1:]]
    assert layers == sorted(layers)
    assert set(layers) == {0, 2, 3}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_padding_does_not_count(family: str) -> None:
    def wider(b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = len(b["input_ids"])
        extra = torch.randint(3, 100, (rows, 11), generator=torch.Generator().manual_seed(7))
        ids = torch.where(b["attention_mask"].bool(), b["input_ids"], 55)
        zeros = torch.zeros(rows, 11, dtype=torch.int64)
        return {"input_ids": torch.cat([ids, extra], 1), "attention_mask": torch.cat([b["attention_mask"], zeros], 1)}

    model, plan = tiny_model(family), make_plan()
    a = compensate(model, plan, CALIBRATION, held_out=HELD_OUT)
    b = compensate(model, plan, [wider(x) for x in CALIBRATION], held_out=[wider(x) for x in HELD_OUT])
    assert (a.tokens, a.held_out_tokens) == (b.tokens, b.held_out_tokens)
    for name, tensor in a.tensors.items():
        torch.testing.assert_close(tensor, b.tensors[name], atol=1e-4, rtol=1e-3)


def test_autocast_is_off_inside() -> None:
    model, plan = tiny_model("llama"), make_plan()
    a = compensate(model, plan, CALIBRATION, held_out=HELD_OUT)
    with torch.autocast("cpu", torch.bfloat16):
        b = compensate(model, plan, CALIBRATION, held_out=HELD_OUT)
    assert a.fits == b.fits
    assert all(torch.equal(t, b.tensors[n]) for n, t in a.tensors.items())


def test_a_layer_that_would_get_worse_is_only_cut() -> None:
    """Fewer calibration tokens than neurons, hardly any ridge: noise is fitted."""
    model, plan = tiny_model("llama"), make_plan()
    few = [{k: v[2:3, :12] for k, v in batch(5).items()}]
    patch = compensate(model, plan, few, held_out=HELD_OUT, ridges=(1e-9,))
    assert any(fit.ridge is None for fit in patch.fits)
    for fit in patch.fits:
        assert (fit.ridge is None) == (f"model.layers.{fit.layer}.mlp.down_proj.weight" not in patch.tensors)
        assert fit.after <= fit.before


def test_bias_is_fitted_along() -> None:
    """Removed neurons that are constant can be made up for by the bias alone."""
    model = tiny_model("llama", mlp_bias=True)
    with torch.no_grad():
        for layer in layers_of(model):
            layer.mlp.gate_proj.weight[:4] = layer.mlp.up_proj.weight[:4] = 0
            layer.mlp.gate_proj.bias[:4] = layer.mlp.up_proj.bias[:4] = 2.0
    plan = PrunePlan(model_sha="", depth=4, width=48, drop_neurons={i: (0, 1, 2, 3) for i in range(4)})
    patch = compensate(model, plan, CALIBRATION, held_out=HELD_OUT, ridges=(1e-7,))
    assert sum(name.endswith("down_proj.bias") for name in patch.tensors) == 4
    assert all(fit.after < 1e-5 * fit.before for fit in patch.fits)


def test_model_is_left_alone_and_progress_is_told() -> None:
    model = tiny_model("qwen2")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    tell = lambda i, n: seen.append((i, n))  # noqa: E731
    compensate(model, make_plan(), CALIBRATION, held_out=HELD_OUT, target="layer", progress=tell)
    score(model, CALIBRATION, neuron_criterion="greedy")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert seen == [(1, 4), (3, 4), (4, 4)]


# ---------------------------------------------------------------------------------------------------- removed layers


def stream_error(model: PreTrainedModel, pruned: PreTrainedModel) -> float:
    """How far the final hidden states are apart on held-out tokens."""
    real = HELD_OUT[0]["attention_mask"].bool()
    with torch.no_grad():
        a, b = (m.base_model(**HELD_OUT[0], use_cache=False).last_hidden_state[real] for m in (model, pruned))
    return float((a - b).square().mean())


@pytest.mark.parametrize("family", [f for f in DENSE if not FAMILIES[f].post_ffn_norm])
def test_stream_target_makes_up_for_a_removed_layer(family: str) -> None:
    model, plan = tiny_model(family), make_plan(count=0)
    patch = compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target="stream")
    assert [f.layer for f in patch.fits] == [2, 3]  # nothing is lost before the removed layer
    assert all(fit.after <= fit.before for fit in patch.fits)
    mended = stream_error(model, apply_in_memory(model, plan, patch.tensors))
    assert mended < stream_error(model, apply_in_memory(model, plan))
    assert compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target="layer").tensors == {}


def test_auto_is_the_stream_where_layers_go_and_it_can() -> None:
    for family, drop_layers, same in (("llama", (1,), "stream"), ("llama", (), "layer"), ("gemma2", (1,), "layer")):
        model, plan = tiny_model(family), make_plan(drop_layers=drop_layers)
        auto, named = (compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target=t) for t in ("auto", same))
        assert auto.fits == named.fits


def test_stream_target_absorbs_what_its_neurons_can_express() -> None:
    """The removed layer is a copy of the next one, their attention silent: the next layer can stand for both."""
    model = tiny_model("llama")
    one, two = layers_of(model)[1], layers_of(model)[2]
    with torch.no_grad():
        for layer in (one, two):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight *= 1e-3  # so that both see nearly the same input
        one.mlp.gate_proj.weight.copy_(two.mlp.gate_proj.weight)
        one.mlp.up_proj.weight.copy_(two.mlp.up_proj.weight)
        one.post_attention_layernorm.weight.copy_(two.post_attention_layernorm.weight)
    plan = PrunePlan(model_sha="", depth=4, width=48, drop_layers=(1,))
    patch = compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target="stream", ridges=(1e-6,))
    fit = patch.fits[0]
    assert fit.after < 1e-3 * fit.before
    expected = one.mlp.down_proj.weight + two.mlp.down_proj.weight
    torch.testing.assert_close(patch.tensors["model.layers.2.mlp.down_proj.weight"], expected, atol=1e-4, rtol=0.05)


def test_stream_target_with_neurons_is_at_least_as_close() -> None:
    model, plan = tiny_model("llama"), make_plan(drop_layers=())
    layer, stream = (compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target=t) for t in ("layer", "stream"))
    errors = [stream_error(model, apply_in_memory(model, plan, p.tensors)) for p in (layer, stream)]
    assert errors[1] < 1.05 * errors[0] < stream_error(model, apply_in_memory(model, plan))


# ----------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("family", DENSE)
def test_ranking_uses_each_layers_own_moments(family: str) -> None:
    model = tiny_model(family)
    scores = score(model, CALIBRATION, neuron_criterion="leverage").neurons
    assert scores.shape == (4, 48)
    for layer, seen in enumerate(activations(model, CALIBRATION)):
        down, a = down_of(model, layer).weight.detach(), seen.double()
        if FAMILIES[family].post_ffn_norm:
            a *= (a @ down.double().T).square().mean(1, keepdim=True).rsqrt()
        torch.testing.assert_close(scores[layer], leverage(a.T @ a / len(a), down), atol=1e-5, rtol=2e-3)


def test_selection_aware_of_compensation_leaves_less_error() -> None:
    model = tiny_model("llama")
    norms = torch.stack([down_of(model, i).weight.norm(dim=0) for i in range(4)])
    plain = torch.stack([a.abs().mean(0) for a in activations(model, CALIBRATION)]) * norms

    def left(scores: torch.Tensor) -> float:
        drop = {i: tuple(sorted(s.argsort()[:24].tolist())) for i, s in enumerate(scores)}
        plan = PrunePlan(model_sha="", depth=4, width=48, drop_neurons=drop)
        return sum(f.after for f in compensate(model, plan, CALIBRATION, held_out=HELD_OUT).fits)

    greedy = left(score(model, CALIBRATION, neuron_criterion="greedy").neurons)
    assert greedy < left(score(model, CALIBRATION, neuron_criterion="leverage").neurons) * 1.05
    assert greedy < left(plain)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_refusals() -> None:
    model, plan = tiny_model("llama"), make_plan()
    with pytest.raises(UnsupportedModel, match="norm after it"):
        compensate(tiny_model("gemma2"), plan, CALIBRATION, held_out=HELD_OUT, target="stream")
    with pytest.raises(DataError, match="held-out"):
        compensate(model, plan, CALIBRATION, held_out=[])
    with pytest.raises(PlanError, match="width"):
        compensate(tiny_model("llama", intermediate_size=64), plan, CALIBRATION, held_out=HELD_OUT)
    with pytest.raises(UnknownName, match="leverage"):
        score(model, CALIBRATION, neuron_criterion="levrage")
    with pytest.raises(UnknownName, match="stream"):
        compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target="streem")
    assert compensate(model, make_plan(drop_layers=(), count=0), CALIBRATION, held_out=HELD_OUT).fits == ()


@pytest.mark.parametrize("place", ["host memory", "disk"])
@pytest.mark.parametrize("target", ["layer", "stream"])
def test_where_hidden_states_lie_changes_no_bit(
    place: Any, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, plan = tiny_model("llama"), make_plan()
    found, wanted = (
        compensate(model, plan, CALIBRATION, held_out=HELD_OUT, target=target, place=p) for p in (place, "device")
    )
    assert found.fits == wanted.fits and found.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(found.tensors[k], wanted.tensors[k]) for k in wanted.tensors)
    assert not list(tmp_path.iterdir()), "nothing of it is left on disk"


@pytest.mark.parametrize(("family", "target"), [("llama", "layer"), ("llama", "stream"), ("mixtral", "layer")])
def test_one_layer_is_held_at_a_time_and_its_patch_goes_to_the_disk(
    family: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches of an 8B model are 3 GB, and the activations of a layer two more."""
    module, held, on_disk = sys.modules[compensate.__module__], list[weakref.ref[Any]](), set[int]()
    layer_of, put = one_layer, Shelf.put

    def watched(source: Any, layer: int, experts: Any) -> Any:
        assert not any(one() for one in held), "the layer before is still there"
        one = layer_of(source, layer, experts)
        held.append(weakref.ref(one.block))
        return one

    def noted(self: Shelf, x: torch.Tensor) -> torch.Tensor:
        kept = put(self, x)
        on_disk.add(kept.data_ptr())
        return kept

    monkeypatch.setattr(module, "one_layer", watched)
    monkeypatch.setattr(Shelf, "put", noted)
    folder, plan = tiny_folder(tmp_path / "m", family), make_plan()
    if family == "mixtral":  # six experts
        gone = {i: tuple(e * 48 + n for e in range(6) for n in own) for i, own in plan.drop_neurons.items()}
        plan = plan.model_copy(update={"drop_neurons": gone, "sizes": {"experts": 6}})
    found = compensate(folder, plan, CALIBRATION, held_out=HELD_OUT, target=target, place="disk")
    assert len(held) == 3 + (target == "stream") and found.tensors
    assert {tensor.data_ptr() for tensor in found.tensors.values()} <= on_disk


def test_on_disk_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 5, 7).to(torch.bfloat16)
    shelf, files, mapped = Shelf("disk", torch.device("cpu")), list[Path](), torch.from_file

    def from_file(name: str, **how: Any) -> torch.Tensor:
        files.append(Path(name))
        assert how["shared"], "what is written goes into the file"
        return mapped(name, **how)

    monkeypatch.setattr(torch, "from_file", from_file)
    kept = shelf.put(x)
    assert torch.equal(shelf.take(kept), x) and kept.dtype == x.dtype and kept.data_ptr() != x.data_ptr()
    assert len(files) == 1 and not files[0].exists(), "it goes with the tensor"
