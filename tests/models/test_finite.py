"""What is no number stops: in scores, plans, patches, losses, answers and trained weights, with the place it began."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer

from prunetune.data.stream import Example
from prunetune.errors import NotFinite
from prunetune.evaluation.loss import perplexity, reasoning_loss
from prunetune.models.finite import numbers_only, overflow
from prunetune.models.generation import generate
from prunetune.models.prompt import PromptFormat
from prunetune.pruning import least_squares
from prunetune.pruning.compensate import compensate
from prunetune.pruning.criteria import CRITERIA
from prunetune.pruning.patch import LayerFit, Patch
from prunetune.pruning.plan import PrunePlan, make_plan, threshold_counts
from prunetune.pruning.scores import Scores, make_batches, score
from prunetune.tune.stage import write_model

ROWS = [[5, 6, 7, 8, 9], [10, 11, 12]]
BATCHES = make_batches(ROWS, 0)


def hot(layer: int = 1, factor: float = 1e4, dtype: torch.dtype = torch.float16):
    """A model whose FFN in one layer is beyond what fp16 holds; as numbers its weights are fine."""
    model = tiny_model("llama")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if f"layers.{layer}.mlp" in name:
                p.mul_(factor)
    return model.to(dtype)


def broken(name: str = "model.layers.2.mlp.up_proj.weight", value: float = math.nan):
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = value
    return model


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_stop_with_layer_type_and_fix(criterion: str) -> None:
    if CRITERIA[criterion].needs == "moments":  # run in fp32 on a CPU, where nothing overflows
        assert score(hot(), BATCHES, neuron_criterion=criterion).not_finite() is None
    else:
        with pytest.raises(NotFinite, match=r"activations of layer 1 overflow in float16") as e:
            score(hot(), BATCHES, neuron_criterion=criterion)
        assert "65504" in str(e.value.valid).replace("6.55e+04", "65504") and "bfloat16" in str(e.value.fix)
    for value in (math.nan, math.inf):
        with pytest.raises(NotFinite, match="weights of layer 2 are no numbers: 1 of") as e:
            score(broken(value=value), BATCHES, neuron_criterion=criterion)
        assert e.value.value == "mlp.up_proj.weight"


def test_a_wider_type_scores_the_same_weights() -> None:
    assert score(hot(dtype=torch.bfloat16), BATCHES).not_finite() is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_losses_perplexities_answers_and_ranks_stop(family: str) -> None:
    tokenizer, fmt = tiny_tokenizer(), PromptFormat()
    model = tiny_model(family)
    with torch.no_grad():
        for p in model.model.layers[1].mlp.parameters():
            p.fill_(math.nan)
    says = "weights of layer 1 are no numbers"
    with pytest.raises(NotFinite, match=says):
        reasoning_loss(model, tokenizer, [Example("1+1?", "2", "t")], fmt, 64)
    with pytest.raises(NotFinite, match=says):
        perplexity(model, tokenizer, "some text of a few words")
    with pytest.raises(NotFinite, match=says):
        generate(model, tokenizer, [[5, 6, 7], [8]], 4)
    with pytest.raises(NotFinite, match=says):
        score(model, BATCHES, neuron_criterion="greedy")
    plan = make_plan([list(map(float, range(48)))] * 4, [1.0] * 4, "m", n_neurons=8)
    with pytest.raises(NotFinite, match=says):
        compensate(model, plan, BATCHES, held_out=BATCHES)
    with numbers_only(model), pytest.raises(NotFinite, match="logits of this model are NaN"):
        model(input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(AssertionError), numbers_only(object()):
        raise AssertionError("whatever is no model is let be")


def test_the_place_of_an_overflow() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert "layer 1" in overflow(hot(), inputs, "x").what
    assert "the embedding" in overflow(broken("model.embed_tokens.weight", math.inf), {**inputs, "input_ids": torch.tensor([[3, 6, 0]])}, "x").what  # fmt: skip
    untied = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        untied.lm_head.weight[7] = math.nan
    assert "the head" in overflow(untied, inputs, "x").what
    assert "all activations are" in overflow(tiny_model("llama"), inputs, "x").what


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_plan_from_what_is_no_score(bad: float, tmp_path) -> None:
    good = [[1.0, 2.0, 3.0]] * 2
    rows = [[1.0, 2.0, 3.0], [1.0, bad, 3.0]]
    with pytest.raises(NotFinite, match="neuron scores of layer 1"):
        make_plan(rows, [1.0, 2.0], "m", n_neurons=1)
    with pytest.raises(NotFinite, match="layer score of layer 0"):
        make_plan(good, [bad, 2.0], "m", n_layers=1)
    with pytest.raises(NotFinite, match="protected scores of layer 1"):
        make_plan(good, [1.0, 2.0], "m", n_neurons=1, protected=rows, protect_share=0.1)
    with pytest.raises(NotFinite, match="layer score of layer 1"):
        threshold_counts(good, [1.0, bad], sigma_neuron=1.5, sigma_layer=None, align=1)
    scores = Scores(torch.tensor(rows), torch.ones(2), torch.ones(2), "c", "l2", "m", "d", 8)
    for found in (scores, dataclasses.replace(scores, neurons=torch.ones(2, 3), layers=torch.tensor([1.0, bad]))):
        found.write(tmp_path / "s")
        with pytest.raises(NotFinite, match="scores of layer 1"):
            Scores.read(tmp_path / "s")


def test_no_patch_and_no_model_with_weights_that_are_no_numbers(tmp_path) -> None:
    patch = Patch({"w": torch.tensor([1.0, math.inf])}, (), 1, 1)
    with pytest.raises(NotFinite, match="weights of the patch"):
        patch.write(tmp_path / "p")
    with pytest.raises(NotFinite, match="fit of layer 3"):
        Patch({}, (LayerFit(3, None, math.nan, 1.0),), 1, 1).write(tmp_path / "p")
    source = tiny_folder(tmp_path / "m")
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] = 1e30  # fine in fp32, none in the fp16 that the source has
    types = dict.fromkeys(model.state_dict(), torch.float16)
    with pytest.raises(NotFinite, match="weights of the recovered model"):
        write_model(model, source, tmp_path / "out", types)
    assert not (tmp_path / "out").exists()


def test_a_patch_that_overflows_in_the_stored_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least-squares change is computed in fp32; a checkpoint in fp16 may not hold it."""
    plan: PrunePlan = make_plan([list(map(float, range(48)))] * 4, [1.0] * 4, "m", n_neurons=24)
    half = tiny_model("llama").half()
    assert compensate(half, plan, BATCHES, held_out=BATCHES).tensors
    fold = least_squares.fold

    def large(*args, **kwargs):
        found = fold(*args, **kwargs)
        return dataclasses.replace(found, change=torch.full_like(found.change, 1e5))

    monkeypatch.setattr("prunetune.pruning.compensate.fold", large)
    with pytest.raises(NotFinite, match=r"weights of layer 0's patch .* in float16"):
        compensate(half, plan, BATCHES, held_out=BATCHES)
