"""Scores, choice and least squares of heads and query heads, against the formula done directly on whole models."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import DENSE, tiny_folder, tiny_model
from transformers import PreTrainedModel

from prunetune.cli import app
from prunetune.errors import OutOfReach, RecipeError
from prunetune.models.families import FAMILIES
from prunetune.models.folders import load_model
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.blocks.choose import Others
from prunetune.pruning.compensate import compensate
from prunetune.pruning.in_memory import plan
from prunetune.pruning.patch import Patch
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Scores, make_batches, score

UNITS = {"heads": 4, "query_heads": 8}
MORE = tuple(UNITS)
ROWS = torch.randint(3, 100, (12, 24), generator=torch.Generator().manual_seed(0)).tolist()
BATCHES = make_batches([row[: 10 + i] for i, row in enumerate(ROWS)], 0, max_tokens=100)
HELD_OUT = make_batches([row[::-1] for row in ROWS[:5]], 0, max_tokens=100)


def model_of(family: str = "llama", **changes: Any) -> PreTrainedModel:
    return tiny_model(family, num_attention_heads=8, num_key_value_heads=4, **changes)


def inputs(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """[tokens, columns]: what `o_proj` sees of the real tokens."""
    seen = []
    module = model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in BATCHES:
            model(**batch)
    handle.remove()
    return torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, BATCHES, strict=True)])


def blocks(x: torch.Tensor, units: int) -> torch.Tensor:
    return x.unflatten(-1, (units, -1))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_contribution_and_activation_are_the_norms_of_eq_2_for_a_block(family: str, reduce: str) -> None:
    model = model_of(family)
    found = score(model, BATCHES, neuron_criterion="contribution", reduce=reduce, more=MORE)
    norms = score(model, BATCHES, neuron_criterion="activation", more=MORE)
    alone = score(model, BATCHES, neuron_criterion="contribution", reduce=reduce)
    assert torch.equal(found.neurons, alone.neurons) and torch.equal(found.layers, alone.layers)
    for name, units in UNITS.items():
        assert found.blocks[name].shape == (4, units)
        for layer in range(4):
            x, weight = inputs(model, layer), model.model.layers[layer].self_attn.o_proj.weight
            for unit in range(units):
                part = blocks(x, units)[:, unit] @ blocks(weight, units)[:, unit].T
                lacks = part.norm(dim=-1)
                expected = lacks.mean() if reduce == "mean" else lacks.max()
                torch.testing.assert_close(found.blocks[name][layer, unit], expected, rtol=1e-4, atol=1e-6)
            top = blocks(x, units).norm(dim=-1).amax(0)
            torch.testing.assert_close(norms.blocks[name][layer], top, rtol=1e-4, atol=1e-6)


def test_taylor_is_the_first_order_change_of_the_loss() -> None:
    """|sum of x_B * dL/dx_B| a token, by autograd through the whole model."""
    model = model_of()
    found, batch = score(model, BATCHES[:1], neuron_criterion="taylor", more=MORE), BATCHES[0]
    seen = []
    module = model.model.layers[1].self_attn.o_proj
    handle = module.register_forward_pre_hook(lambda m, args: (args[0].retain_grad(), seen.append(args[0]))[1])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(**batch).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    handle.remove()
    product = (seen[0] * seen[0].grad)[batch["attention_mask"].bool()]
    for name, units in UNITS.items():
        expected = blocks(product, units).sum(-1).abs().mean(0)
        torch.testing.assert_close(found.blocks[name][1], expected, rtol=1e-3, atol=1e-7)


def left_over(x: torch.Tensor, weight: torch.Tensor, gone: list[int], units: int, ridge: float = 1e-3) -> float:
    """The mean squared error after least squares with the ridge of the score, solved directly."""
    second = x.T.double() @ x.double() / len(x)
    regular = second + ridge * second.diagonal().mean() * torch.eye(len(second))
    columns = [c for unit in gone for c in range(unit * len(second) // units, (unit + 1) * len(second) // units)]
    stay = [c for c in range(len(second)) if c not in columns]
    w = weight.detach().double()[:, columns]
    schur = regular[columns][:, columns]
    if stay:
        cross = regular[columns][:, stay]
        schur = schur - cross @ torch.linalg.solve(regular[stay][:, stay], cross.T)
    return float((w @ schur * w).sum())


def test_leverage_and_greedy_are_the_error_after_least_squares() -> None:
    model = model_of()
    one = score(model, BATCHES, neuron_criterion="leverage", more=MORE)
    order = score(model, BATCHES, neuron_criterion="greedy", more=MORE)
    assert torch.equal(order.neurons, score(model, BATCHES, neuron_criterion="greedy").neurons)
    for layer in (0, 2):
        x, weight = inputs(model, layer), model.model.layers[layer].self_attn.o_proj.weight
        for name, units in UNITS.items():
            expected = [left_over(x, weight, [unit], units) for unit in range(units)]
            torch.testing.assert_close(one.blocks[name][layer], torch.tensor(expected), rtol=2e-3, atol=1e-7)
        row, gone = order.blocks["heads"][layer], list[int]()
        for unit in row.argsort().tolist()[:-1]:
            others = [left_over(x, weight, [*gone, u], 4) for u in range(4) if u not in gone]
            gone.append(unit)
            assert left_over(x, weight, gone, 4) == pytest.approx(min(others), rel=1e-3)
            assert float(row[unit]) == pytest.approx(min(others), rel=2e-3)
        pairs = order.blocks["query_heads"][layer].unflatten(0, (4, 2))
        assert (pairs.amin(1).max() < pairs.amax(1).min()).item(), "each group loses one before any loses a second"


def test_magnitude_counts_every_tensor_of_a_unit() -> None:
    model = model_of("qwen2")
    found = score(model, BATCHES[:1], neuron_criterion="magnitude", more=MORE).blocks
    attn = model.model.layers[3].self_attn
    squares = blocks(attn.o_proj.weight.square().sum(0), 4).sum(-1)
    for p in (attn.q_proj, attn.k_proj, attn.v_proj):
        squares = squares + blocks(p.weight.square().sum(1), 4).sum(-1) + blocks(p.bias.square(), 4).sum(-1)
    torch.testing.assert_close(found["heads"][3], squares.sqrt())
    queries = attn.q_proj.weight.square().sum(1) + attn.q_proj.bias.square() + attn.o_proj.weight.square().sum(0)
    torch.testing.assert_close(found["query_heads"][3], blocks(queries, 8).sum(-1).sqrt())


def test_a_criterion_of_neurons_alone_is_refused_for_heads() -> None:
    with pytest.raises(RecipeError, match="says nothing of heads") as e:
        score(model_of(), BATCHES, neuron_criterion="ptl_vote", more=["heads"])
    assert "greedy" in str(e.value)


def test_scores_with_heads_round_trip_and_those_without_are_as_before(tmp_path: Path) -> None:
    found = score(model_of(), BATCHES, neuron_criterion="magnitude", more=MORE)
    found.write(tmp_path / "s.safetensors")
    again = Scores.read(tmp_path / "s.safetensors")
    assert again.sizes == {"heads": 4, "query_heads": 2}
    assert all(torch.equal(again.blocks[name], found.blocks[name]) for name in MORE)


# ------------------------------------------------------------------------------------------------------- choice, folding


def others_of(found: Scores, **amounts: int) -> Others:
    return Others(amounts, {name: rows.tolist() for name, rows in found.blocks.items()}, found.sizes)


def plan_of(model: PreTrainedModel, neurons: int = 8, layers: int = 0, **amounts: int) -> PrunePlan:
    found = score(model, BATCHES, neuron_criterion="greedy", more=MORE)
    return make_plan(
        found.neurons.tolist(), found.layers.tolist(), "", n_neurons=neurons, n_layers=layers,
        others=others_of(found, **amounts),
    )  # fmt: skip


def test_the_lowest_units_go_as_many_in_every_group() -> None:
    rows = [[3.0, 1.0, 2.0, 4.0, 8.0, 7.0, 5.0, 6.0]] * 2
    whole = [[9.0, 1.0, 5.0, 7.0]] * 2
    sizes = {"heads": 4, "query_heads": 2}
    asked = Others({"heads": 1, "query_heads": 1}, {"heads": whole, "query_heads": rows}, sizes)
    plan = make_plan([[0.0, 1.0]] * 2, [0.0, 1.0], "", others=asked)
    assert plan.drop == {"heads": {0: (1,), 1: (1,)}, "query_heads": {0: (1, 5, 6), 1: (1, 5, 6)}}
    assert plan.new_shape == {"layers": 2, "neurons": 2, "heads": 3, "query_heads": 1}
    for wrong in ({"heads": 4}, {"query_heads": 2}, {"heads": -1}):
        with pytest.raises(OutOfReach, match="cannot go"):
            make_plan([[0.0, 1.0]] * 2, [0.0, 1.0], "", others=Others(wrong, asked.scores, sizes))
    with pytest.raises(OutOfReach, match="no scores of heads"):
        make_plan([[0.0, 1.0]] * 2, [0.0, 1.0], "", others=Others({"heads": 1}))


@pytest.mark.parametrize("family", [f for f in DENSE if not FAMILIES[f].heads_stay])
def test_least_squares_never_raises_the_error_and_helps(family: str, tmp_path: Path) -> None:
    model = model_of(family, **({"attention_bias": True} if family == "llama" else {}))
    plan = plan_of(model, heads=1, query_heads=1) if not FAMILIES[family].even_heads else plan_of(model, heads=2)
    patch = compensate(model, plan, BATCHES, held_out=HELD_OUT)
    of_o = [f for f in patch.fits if f.readout]
    assert [f.layer for f in of_o] == [0, 1, 2, 3] and len(patch.fits) == 8
    assert all(f.after <= f.before for f in patch.fits) and any(f.after < 0.95 * f.before for f in of_o)
    patch.write(tmp_path / "p.safetensors")
    assert Patch.read(tmp_path / "p.safetensors").fits == patch.fits
    cut = apply_in_memory(model, plan, patch.tensors)
    assert all(torch.isfinite(p).all() for p in cut.parameters())


def test_the_error_told_is_that_of_the_cut_layer() -> None:
    """Of layer 0 the input is the same in both models, so that its attention's output can be compared directly."""
    model = model_of()
    plan = plan_of(model, neurons=0, heads=2)
    patch = compensate(model, plan, BATCHES, held_out=HELD_OUT)
    cut, plain = apply_in_memory(model, plan, patch.tensors), apply_in_memory(model, plan)
    given = [_attention(m) for m in (model, cut, plain)]
    energy = given[0].square().sum()
    fit = next(f for f in patch.fits if f.layer == 0)
    assert float((given[1] - given[0]).square().sum() / energy) == pytest.approx(fit.after, rel=1e-3)
    assert float((given[2] - given[0]).square().sum() / energy) == pytest.approx(fit.before, rel=1e-3)


def _attention(model: PreTrainedModel) -> torch.Tensor:
    seen = []
    handle = model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        for batch in HELD_OUT:
            model(**batch)
    handle.remove()
    return torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, HELD_OUT, strict=True)])


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text"])
def test_the_walk_goes_on_with_what_the_cut_model_computes(family: str) -> None:
    """Copies of heads that stay go: compensated, nothing changes, in the last layer neither."""
    model = model_of(family)
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
                if hasattr(layer.self_attn, name):
                    weight = getattr(layer.self_attn, name).weight
                    parts = weight.split([weight.shape[0] // 2, weight.shape[0] // 4, weight.shape[0] // 4])
                    for part in parts if name == "qkv_proj" else (weight,):
                        half = len(part) // 2
                        part[half:] = part[:half]
    drop = {"heads": {i: (2, 3) for i in range(4)}}
    plan = PrunePlan(model_sha="", depth=4, width=48, sizes={"heads": 4, "query_heads": 2}, drop=drop)
    patch = compensate(copy.deepcopy(model), plan, BATCHES, held_out=HELD_OUT, ridges=(1e-9,))
    cut = apply_in_memory(model, plan, patch.tensors)
    with torch.no_grad():
        for batch in HELD_OUT:
            mask = batch["attention_mask"].bool()
            a, b = (m(**batch).logits[mask] for m in (model, cut))
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


def main(words: list[str]) -> int:
    before, sys.argv = sys.argv, ["prunetune", *words]
    try:
        app.main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.argv = before
    return 0


def test_by_hand_and_in_python_the_same_plan_and_patch(tmp_path: Path) -> None:
    """`score --axis`, `plan --cut`, `compensate`, `apply`: the folder is what the calls in Python give, bit for bit."""
    folder = tiny_folder(tmp_path / "model", num_attention_heads=8, num_key_value_heads=4)
    rows = [{"question": f"{i} + {i}?", "answer": f"it is {2 * i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = {name: str(tmp_path / name) for name in ("s.safetensors", "p.json", "patch.safetensors", "out")}
    data = ["--data", str(tmp_path / "rows.jsonl"), "--samples", "12"]
    for call in (
        ["score", str(folder), *data, "-o", at["s.safetensors"], "--axis", "heads", "--axis", "query_heads"],
        ["plan", at["s.safetensors"], "-o", at["p.json"], "--neurons", "8", "--cut", "heads=2"],
        ["compensate", at["p.json"], str(folder), *data, "-o", at["patch.safetensors"]],
        ["apply", at["p.json"], str(folder), at["out"], "--patch", at["patch.safetensors"]],
    ):
        assert main(call) == 0, call
    found = Scores.read(Path(at["s.safetensors"]))
    made = plan(found, neurons=8, more={"heads": 2})
    assert PrunePlan.read(Path(at["p.json"])) == made
    patch = Patch.read(Path(at["patch.safetensors"]))
    small, cut = load_model(Path(at["out"])), apply_in_memory(load_model(folder), made, patch.tensors)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), cut.state_dict().values(), strict=True))
    assert small.config.num_key_value_heads == 2
    for wrong in (["--cut", "heads=x"], ["--cut", "wings=1"], ["--cut", "heads=4"], ["--cut", "heads=0"]):
        assert main(["plan", at["s.safetensors"], "-o", str(tmp_path / "no.json"), *wrong]) == 2
