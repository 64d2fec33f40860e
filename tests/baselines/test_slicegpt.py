"""SliceGPT: the rotation changes nothing, slicing is projecting the stock model's stream, sizes and folders are true."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from tests.tiny import FAMILIES, tiny_folder, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from prunetune.baselines.sliced import SlicedForCausalLM
from prunetune.baselines.sliced_cost import kept_for, sliced_cost
from prunetune.baselines.slicegpt import (
    Bases,
    find_bases,
    load_sliced,
    principal_axes,
    rotate,
    save_sliced,
    slice_model,
    sliced_model,
)
from prunetune.errors import BadCheckpoint, MissingPath, NotWritable, OutOfReach, UnsupportedModel
from prunetune.models.cost import params
from prunetune.pruning.scores import make_batches

SEQUENCES = [
    [int(i) for i in torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n))]
    for n in (21, 17, 17, 9, 5, 30, 26)
]
BATCHES = make_batches(SEQUENCES, 0, max_tokens=60)
CASES = {
    "llama": {},
    "llama-untied-biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"attention_bias": True},
}


def model_of(case: str):
    return tiny_model(case.split("-", maxsplit=1)[0], **CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_the_rotated_model_has_the_originals_logits(case):
    """Norm weights and biases are random (`tiny_model`), so folding them wrongly would show."""
    model = model_of(case)
    rotated = rotate(model, BATCHES)
    for batch in BATCHES:
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            difference = (rotated(**batch).logits - model(**batch).logits)[real]
        print("ROT", difference.abs().max().item())
        assert difference.abs().max() < 1e-4
    table = rotated.get_input_embeddings().weight
    assert not torch.allclose(table, model.get_input_embeddings().weight, atol=1e-2)  # it is another basis


def axes_by_svd(rows: list[torch.Tensor], eps: float, kept: int) -> torch.Tensor:
    """Principal axes without second moments: the right singular vectors of the normalised tokens."""
    x = torch.cat(rows).double()
    x = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
    return torch.linalg.svd(x, full_matrices=False).Vh[:kept].T


@pytest.mark.parametrize("case", CASES)
def test_slicing_is_projecting_the_stream_of_the_stock_model(case):
    """One unpadded sequence at a time through the stock layers, the stream projected by a projector found with an SVD."""
    kept = 16
    model = model_of(case).double()
    sliced = sliced_model(model, find_bases(model, BATCHES, kept))
    base, eps = model.model, model.config.rms_norm_eps
    with torch.no_grad():
        stream = [base.embed_tokens(torch.tensor([s])) for s in SEQUENCES]

        def project(stream):
            q = axes_by_svd([x[0] for x in stream], eps, kept)
            return [x @ q @ q.T for x in stream]

        stream = project(stream)
        for layer in base.layers:
            captured: list[torch.Tensor] = []
            hook = layer.post_attention_layernorm.register_forward_pre_hook(lambda m, a, c=captured: c.append(a[0]))
            for x in stream:
                run_layer(model, layer, x)
            hook.remove()
            stream = project(captured)
            stream = project([x + layer.mlp(layer.post_attention_layernorm(x)) for x in stream])
        for s, x in zip(SEQUENCES, stream, strict=True):
            expected = model.lm_head(base.norm(x))
            found = sliced(torch.tensor([s])).logits
            # The walk that finds the bases runs in fp32, this one in fp64.
            print(
                "DIFF",
                (found - expected).abs().max().item(),
                (model(torch.tensor([s])).logits - expected).abs().max().item(),
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def run_layer(model, layer, x):
    """A stock layer with a mask written out here: causal, and within the window where the layer has one."""
    n = x.shape[1]
    places = torch.arange(n)
    seen = places[None] <= places[:, None]
    window = getattr(layer.self_attn, "sliding_window", None)
    if model.config.model_type == "mistral":
        window = model.config.sliding_window
    if window:
        seen &= places[None] > places[:, None] - window
    mask = torch.zeros(n, n, dtype=x.dtype).masked_fill(~seen, torch.finfo(x.dtype).min)[None, None]
    positions = model.model.rotary_emb(x, places[None])
    return layer(x, attention_mask=mask, position_embeddings=positions)


def test_axes_are_orthonormal_and_ordered():
    x = torch.randn(200, 6) * torch.tensor([1.0, 5.0, 0.1, 2.0, 9.0, 0.5])
    axes = principal_axes(iter(x.split(70)), 4)
    torch.testing.assert_close(axes.T @ axes, torch.eye(4, dtype=torch.float64))
    spread = (x.double() @ axes).square().mean(0)
    assert spread.tolist() == sorted(spread.tolist(), reverse=True)
    assert axes[:, 0].abs().argmax() == 4
    with pytest.raises(OutOfReach, match="no sequence"):
        principal_axes(iter([]), 2)


def test_padding_has_no_say():
    model = tiny_model("llama")
    alone = find_bases(model, make_batches(SEQUENCES, 0, max_tokens=1), 32)
    together = find_bases(model, make_batches(SEQUENCES, 0, max_tokens=10_000), 32)
    for a, b in zip(alone.attention + alone.ffn, together.attention + together.ffn, strict=True):
        first = slice(0, 3)  # eigenvectors of near-equal eigenvalues may mix; the largest ones stand apart
        torch.testing.assert_close((a[:, first].T @ b[:, first]).abs(), torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cost_is_what_the_model_holds_and_pytorch_counts(case):
    model = model_of(case)
    sliced = slice_model(model, BATCHES, 0.7, align=4)
    kept = sliced.config.hidden_size
    cost = sliced_cost(model.config, kept, dtype_bytes=4)
    assert cost.params == sum(p.numel() for p in sliced.parameters())
    assert cost.params <= 0.7 * params(model.config) < sliced_cost(model.config, kept + 4).params
    ids = torch.randint(3, 100, (1, 6))
    sliced.set_attn_implementation("eager")
    sliced.model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        sliced(ids, logits_to_keep=1)
    # The counter also sees the rotary embedding's products: a few hundred FLOPs in a model of this size.
    assert counter.get_total_flops() == pytest.approx(cost.flops(6, 1).prefill, rel=0.02)


def test_targets():
    config = tiny_model("llama").config
    assert kept_for(config, 1.0, align=1) < 32  # the residual matrices have to fit too
    for wrong in (0.0, 1.5, -1.0):
        with pytest.raises(OutOfReach, match="between 0 and 1"):
            kept_for(config, wrong)
    with pytest.raises(OutOfReach, match="at least"):
        kept_for(config, 0.05)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("llama", "mistral", "qwen2", "qwen3")])
def test_other_families_are_refused(family):
    with pytest.raises(UnsupportedModel, match="llama, mistral, qwen2, qwen3"):
        slice_model(tiny_model(family), BATCHES, 0.7)
    with pytest.raises(UnsupportedModel, match="before attention and FFN"):
        rotate(tiny_model(family), BATCHES)


def test_from_a_folder_as_from_memory(tmp_path):
    folder = tiny_folder(tmp_path / "m", "qwen3")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for a, b in zip(find_bases(model, BATCHES, 24).attention, find_bases(folder, BATCHES, 24).attention, strict=True):
        assert torch.equal(a, b)


def test_folder_round_trip_says_what_it_is(tmp_path):
    folder = tiny_folder(tmp_path / "m", "qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    sliced = slice_model(model, BATCHES, 0.8)
    assert sliced.dtype == torch.bfloat16
    save_sliced(sliced, folder, tmp_path / "s")
    back = load_sliced(tmp_path / "s")
    assert isinstance(back, SlicedForCausalLM)
    assert back.dtype == torch.bfloat16
    assert back.state_dict().keys() == sliced.state_dict().keys()
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in sliced.state_dict().items())
    assert back.generation_config.eos_token_id == model.generation_config.eos_token_id
    files = {p.name for p in (tmp_path / "s").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= files
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert "not a stock architecture" in config["note"]
    assert config["model_type"] == "prunetune-slicegpt"
    assert "research artefact" in (tmp_path / "s" / "README.md").read_text()
    with pytest.raises(NotWritable, match="there already"):
        save_sliced(sliced, folder, tmp_path / "s")
    with pytest.raises(BadCheckpoint, match="no sliced model"):
        load_sliced(folder)


def test_plain_transformers_refuses_it(tmp_path):
    """In a process that has not imported prunetune.baselines."""
    folder = tiny_folder(tmp_path / "m")
    save_sliced(slice_model(tiny_model(), BATCHES, 0.9), folder, tmp_path / "s")
    code = f"from prunetune.models.folders import load_model; from pathlib import Path; load_model(Path({str(tmp_path / 's')!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "UnsupportedModel" in done.stderr


@pytest.mark.parametrize("case", CASES)
def test_it_generates_with_a_cache_as_without(case):
    """Steps past the sliding window too."""
    sliced = slice_model(model_of(case), BATCHES, 0.8)
    ids = torch.tensor([SEQUENCES[3]])
    cached = sliced.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, sliced(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, ids)


def test_every_parameter_learns():
    sliced = slice_model(tiny_model("qwen3"), BATCHES, 0.8).train()
    ids = torch.tensor([SEQUENCES[0]])
    sliced(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sliced.parameters())


def test_identity_bases_only_fold_the_norms():
    model = tiny_model("llama")
    eye = torch.eye(32, dtype=torch.float64)
    folded = sliced_model(model, Bases((eye,) * 5, (eye,) * 4))
    assert torch.equal(folded.model.embed_tokens.weight, model.model.embed_tokens.weight)
    expected = model.lm_head.weight * model.model.norm.weight
    torch.testing.assert_close(folded.lm_head.weight, expected)
    assert torch.equal(folded.model.layers[1].attn_shortcut.weight, torch.eye(32))


def test_no_such_folder(tmp_path):
    with pytest.raises(MissingPath):
        load_sliced(tmp_path / "none")
