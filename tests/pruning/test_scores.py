"""Scores against independent computations: the contribution identity, direct layer norms, batch and padding independence."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.tiny import DENSE, down_of, layers_of, tiny_model

from prunetune.errors import BadCheckpoint, DataError, MissingPath
from prunetune.models.families import family_of
from prunetune.pruning.criteria import CRITERIA
from prunetune.pruning.scores import Scores, make_batches, score
from prunetune.pruning.statistics import BLOCK, neurons_of

SEQUENCES = [
    [int(i) for i in torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n))]
    for n in (21, 17, 17, 9, 5)
]


def one_by_one(model, sequences=SEQUENCES):
    """Inputs and outputs of every FFN and layer, one unpadded sequence at a time, by plain hooks."""
    family = family_of(model.config)
    layers = model.get_submodule(family.layers)
    acts = [[] for _ in layers]
    blocks = [[] for _ in layers]
    handles = []
    for i, layer in enumerate(layers):
        handles.append(
            layer.get_submodule(family.down).register_forward_pre_hook(lambda m, a, i=i: acts[i].append(a[0][0]))
        )
        handles.append(
            layer.register_forward_hook(lambda m, a, kw, o, i=i: blocks[i].append(((a[0] if a else kw["hidden_states"])[0], (o[0] if isinstance(o, tuple) else o)[0])), with_kwargs=True)
        )  # fmt: skip
    with torch.no_grad():
        for s in sequences:
            model(torch.tensor([s]))
    for h in handles:
        h.remove()
    return [torch.cat(a) for a in acts], [
        (torch.cat([x for x, _ in b]), torch.cat([y.reshape(x.shape) for x, y in b])) for b in blocks
    ]


@pytest.mark.parametrize("family", DENSE)
def test_contribution_identity(family):
    """||FFN(x) - FFN without j (x)|| = |a_j| ||W_down[:, j]|| (method, section 2), and its mean is the score."""
    model = tiny_model(family)
    found = score(model, make_batches(SEQUENCES, 0)).neurons
    acts, _ = one_by_one(model)
    layer, j = 1, 7
    down = down_of(model, layer)
    a = acts[layer]
    with torch.no_grad():
        without = a.clone()
        without[:, j] = 0
        change = (down(a) - down(without)).norm(dim=1)
    torch.testing.assert_close(change, a[:, j].abs() * down.weight[:, j].norm(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[layer, j], change.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", ["contribution", "leverage"])  # by hooks, and layer by layer
@pytest.mark.parametrize("family", DENSE)
def test_layer_scores_equal_a_direct_computation_for_the_last_layer_too(family, criterion):
    model = tiny_model(family)
    scores = score(model, make_batches(SEQUENCES, 0), neuron_criterion=criterion)
    _, blocks = one_by_one(model)
    for i, (before, after) in enumerate(blocks):
        change = (after - before).norm(dim=1)
        torch.testing.assert_close(scores.layers[i], change.mean(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scores.layers_max[i], change.max(), rtol=1e-5, atol=1e-6)


def test_sequences_share_a_batch_with_those_nearly_as_long():
    batches = make_batches([[1] * n for n in (50, 100, 84, 85, 20, 90)], 0)
    assert [b["attention_mask"].sum(1).tolist() for b in batches] == [[100, 90, 85], [84], [50], [20]]
    assert [len(b["input_ids"]) for b in make_batches([[1] * 90, [1] * 100], 0, max_tokens=199)] == [1, 1]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_do_not_depend_on_batch_size_or_padding_side(criterion):
    model = tiny_model("llama")
    alone = make_batches(SEQUENCES, 0, max_tokens=1)
    assert [len(b["input_ids"]) for b in alone] == [1] * len(SEQUENCES)
    together = make_batches(SEQUENCES, 0, max_tokens=10_000, close=0.0)
    assert len(together) == 1
    left = []
    for batch in together:
        mask = batch["attention_mask"].flip(1)
        ids = torch.zeros_like(batch["input_ids"])
        ids[mask.bool()] = batch["input_ids"][batch["attention_mask"].bool()]
        left.append({"input_ids": ids, "attention_mask": mask})
    loose = 1e-3 if CRITERIA[criterion].needs == "moments" else 1e-5  # an inverse magnifies rounding
    reference = score(model, alone, neuron_criterion=criterion)
    assert reference.tokens == sum(map(len, SEQUENCES))
    for batches in (together, left):
        other = score(model, batches, neuron_criterion=criterion)
        assert other.tokens == reference.tokens
        torch.testing.assert_close(other.neurons, reference.neurons, rtol=loose, atol=1e-7)
        torch.testing.assert_close(other.layers, reference.layers, rtol=1e-5, atol=1e-7)


def test_a_batch_of_several_blocks_scores_as_one_of_one_block():
    """Long batches are added up in blocks (`criteria.BLOCK`); padding lies inside them and across their borders."""
    model = tiny_model("llama", num_hidden_layers=2)
    rows = [[int(t) for t in torch.randint(3, 100, (n,))] for n in range(200, 250)]
    (long,) = make_batches(rows, 0, max_tokens=10**6, close=0.0)
    assert long["input_ids"].numel() > BLOCK // 48
    short = make_batches(rows, 0, max_tokens=2000)
    for reduce in ("mean", "max"):
        whole, parts = (score(model, batches, reduce=reduce) for batches in ([long], short))
        assert whole.tokens == parts.tokens == sum(map(len, rows))
        torch.testing.assert_close(whole.neurons, parts.neurons, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(whole.layers, parts.layers, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(whole.layers_max, parts.layers_max, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", DENSE)
def test_taylor_equals_autograd_through_the_whole_model(family):
    """The direct formula, all logits at once and one graph: |a dL/da|, sequence by sequence without padding."""
    model = tiny_model(family)
    found = score(model, make_batches(SEQUENCES, 0), neuron_criterion="taylor")
    down = family_of(model.config).down
    kept = [[] for _ in layers_of(model)]
    handles = [
        layer.get_submodule(down).register_forward_pre_hook(lambda m, a, k=k: (a[0].retain_grad(), k.append(a[0]))[0])
        for layer, k in zip(layers_of(model), kept, strict=True)
    ]
    for row in SEQUENCES:
        ids = torch.tensor([row])
        logits = model(ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    direct = torch.stack([torch.cat([(a * a.grad)[0] for a in k]).abs().mean(0) for k in kept])
    torch.testing.assert_close(found.neurons, direct.detach(), rtol=1e-4, atol=1e-7)
    assert found.tokens == sum(map(len, SEQUENCES)), "a layer that runs twice is counted once"
    torch.testing.assert_close(found.layers, score(model, make_batches(SEQUENCES, 0)).layers)


def test_taylor_keeps_no_logits_and_one_layer_at_a_time():
    """19 GB for a model of 135 M: the logits of a batch, several times over, and the graph of all layers."""
    model, saved = tiny_model("llama", vocab_size=1000, num_hidden_layers=4), []

    def pack(x):
        saved.append(tuple(x.shape))
        return x

    (batch,) = make_batches([[int(t) for t in torch.randint(3, 999, (90,))] for _ in range(8)], 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        score(model, [batch], neuron_criterion="taylor")
    assert saved and not any(1000 in shape and 32 not in shape for shape in saved), "logits stayed for the backward"
    seen, alive = [], []

    def watch(m, a):
        if torch.is_grad_enabled():
            alive.append(sum(r() is not None for r in seen))
            seen.append(weakref.ref(a[0]))

    handles = [layer.mlp.down_proj.register_forward_pre_hook(watch) for layer in model.model.layers]
    gc.disable()  # a circle of references would keep every layer's graph until the next collection
    try:
        score(model, [batch], neuron_criterion="taylor")
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()
    assert len(alive) >= 4 and not any(alive), "a layer's graph is gone before the next one's is made"


def test_taylor_leaves_no_gradient_behind():
    model = tiny_model("llama")
    score(model, make_batches(SEQUENCES, 0), neuron_criterion="taylor")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_fused_gate_and_up_are_told_apart():
    model = tiny_model("phi3")
    layer = model.model.layers[0]
    w = neurons_of(layer, family_of(model.config))
    x = torch.randn(3, model.config.hidden_size)
    by_hand = torch.nn.functional.silu(x @ w.gate.T) * (x @ w.up.T)
    torch.testing.assert_close(by_hand @ w.down.T, layer.mlp(x))


def test_products_inside_autocast_stay_fp32():
    model = tiny_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        inside = score(model, make_batches(SEQUENCES, 0))
    assert inside.neurons.dtype == torch.float32
    # bf16 activations summed in fp32: far closer to the fp32 scores than sums in bf16 (8 bits) would be
    torch.testing.assert_close(
        inside.neurons.mean(), score(model, make_batches(SEQUENCES, 0)).neurons.mean(), rtol=5e-3, atol=0
    )


def test_hooks_are_removed_even_after_an_error():
    model = tiny_model("llama")
    bad = [{"input_ids": torch.full((1, 4), 10_000), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}]
    with pytest.raises(IndexError):
        score(model, bad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_batches_are_sorted_by_length_and_bounded():
    batches = make_batches(SEQUENCES, 0, max_tokens=40)
    lengths = [int(n) for b in batches for n in b["attention_mask"].sum(1)]
    assert lengths == sorted(map(len, SEQUENCES), reverse=True)
    assert all(b["input_ids"].numel() <= 40 for b in batches)


def test_no_sequence_is_an_error():
    with pytest.raises(DataError, match="no sequence"):
        make_batches([[]], 0)


def test_write_and_read_back(tmp_path):
    scores = score(tiny_model("llama"), make_batches(SEQUENCES, 0), model_sha="m", data_sha="d")
    scores.write(tmp_path / "s.safetensors")
    back = Scores.read(tmp_path / "s.safetensors")
    assert torch.equal(back.neurons, scores.neurons)
    assert torch.equal(back.layers_max, scores.layers_max)
    assert (back.criterion, back.model_sha, back.data_sha, back.tokens) == (
        "contribution:mean",
        "m",
        "d",
        scores.tokens,
    )
    (tmp_path / "t.safetensors").write_bytes((tmp_path / "s.safetensors").read_bytes()[:100])
    with pytest.raises(BadCheckpoint):
        Scores.read(tmp_path / "t.safetensors")
    with pytest.raises(MissingPath):
        Scores.read(tmp_path / "none")
