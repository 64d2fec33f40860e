"""Scores of experts and of the neurons inside them, against direct computations token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import MIXTURES, layers_of, tiny_folder, tiny_model
from transformers import PreTrainedModel

from prunetune.errors import OutOfReach, UnsupportedModel
from prunetune.models.families import FAMILIES
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.criteria import CRITERIA
from prunetune.pruning.experts.walk import activations, expert_of
from prunetune.pruning.in_memory import plan, score
from prunetune.pruning.least_squares import greedy
from prunetune.pruning.ranking import rank
from prunetune.pruning.scores import Scores

E, WIDTH = 6, 48


def batches() -> list[dict[str, torch.Tensor]]:
    """Two rows, padded on either side."""
    ids = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, -4:] = 0, 0
    return [{"input_ids": ids, "attention_mask": mask}]


class Seen:
    """Of every layer the inputs of its experts at real tokens, which are chosen, and the gates."""

    def __init__(self, model: PreTrainedModel) -> None:
        found = FAMILIES[model.config.model_type].experts
        assert found is not None
        self.found, self.layers = found, layers_of(model)
        self.modules = [layer.get_submodule(found.module) for layer in self.layers]
        self.calls: list[tuple[torch.Tensor, ...]] = []
        hooks = [m.register_forward_pre_hook(lambda _, args: self.calls.append(args)) for m in self.modules]
        [batch] = batches()
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
        self.real = batch["attention_mask"].flatten().nonzero().squeeze(1).tolist()

    def of(self, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, gates) of the real tokens that go to an expert, one after another."""
        x, chosen, gates = self.calls[layer]
        at = [(t, s) for t in self.real for s in range(chosen.shape[1]) if int(chosen[t, s]) == expert]
        if not at:
            return x[:0], gates[:0, 0]
        return torch.stack([x[t] for t, _ in at]), torch.stack([gates[t, s] for t, s in at])

    def output(self, layer: int, expert: int, x: torch.Tensor) -> torch.Tensor:
        """An expert's own output, by the model's own code: routed to it alone, with a gate of 1."""
        one = torch.full((len(x), 1), expert)
        found: torch.Tensor = self.modules[layer](x, one, torch.ones(len(x), 1))
        return found


@pytest.mark.parametrize("family", MIXTURES)
def test_activations_are_what_the_models_own_experts_compute(family: str) -> None:
    model = tiny_model(family)
    seen = Seen(model)
    x = 40 * torch.randn(9, 32)  # far enough to be clamped
    for expert in range(E):
        module, weights = seen.modules[2], expert_of(seen.modules[2], seen.found, expert)
        y = activations(module, seen.found, expert, x) @ weights.down.T
        if seen.found.bias:
            y = y + module.down_proj_bias[expert]
        torch.testing.assert_close(y, seen.output(2, expert, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("by", ["contribution", "greedy"])
@pytest.mark.parametrize("family", MIXTURES)
def test_reaps_score_is_the_mean_of_gate_times_norm_over_routed_tokens(family: str, by: str) -> None:
    model = tiny_model(family)
    found, seen = score(model, batches(), criterion=by, more=["experts"]), Seen(model)
    assert found.sizes == {"experts": E} and found.blocks["experts"].shape == (4, E)
    expected = torch.zeros(4, E)
    for layer in range(4):
        for expert in range(E):
            x, gates = seen.of(layer, expert)
            if len(x):
                norms = torch.stack([seen.output(layer, expert, row[None])[0].norm() for row in x])
                expected[layer, expert] = (gates * norms).mean()
    torch.testing.assert_close(found.blocks["experts"], expected, rtol=1e-4, atol=1e-6)
    assert len({tuple(row.argsort().tolist()) for row in expected}) > 1  # else an order would show nothing


@pytest.mark.parametrize("family", MIXTURES)
def test_a_neurons_contribution_is_what_the_layer_lacks_without_it(family: str) -> None:
    """Eq. 2: the mean, over the tokens routed to its expert, of how much the experts' output changes."""
    model = tiny_model(family)
    found, seen = score(model, batches(), criterion="contribution"), Seen(model)
    layer, module = 1, seen.modules[1]
    x, chosen, gates = seen.calls[layer]
    whole = module(x, chosen, gates)
    for expert, neuron in ((0, 3), (2, 47), (5, 20)):
        down = module.down_proj.data[expert]
        column = (down if seen.found.transposed else down.T)[neuron]
        kept = column.clone()
        column.zero_()
        change = (whole - module(x, chosen, gates)).norm(dim=-1)
        column.copy_(kept)
        here = [t for t in seen.real if expert in chosen[t].tolist()]
        expected = change[here].mean() if here else torch.zeros(())
        torch.testing.assert_close(found.neurons[layer, expert * WIDTH + neuron], expected, rtol=1e-3, atol=1e-6)
    assert found.neurons.shape == (4, E * WIDTH)


def test_taylor_is_activation_times_gradient() -> None:
    """By autograd through scales of one expert's neurons: d loss / d scale, token by token, is a dL/da."""
    model = tiny_model("qwen3_moe").requires_grad_(False)
    found = score(model, batches(), criterion="taylor")
    seen, layer, expert = Seen(model), 2, 3
    module = seen.modules[layer]
    x, chosen, gates = seen.calls[layer]
    here = [t for t in seen.real if expert in chosen[t].tolist()]
    a = activations(module, seen.found, expert, x[here])
    gate = torch.stack([gates[t][chosen[t] == expert][0] for t in here])
    scales = torch.ones(len(here), WIDTH, requires_grad=True)

    def hook(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        more = ((scales - 1) * a * gate[:, None]) @ module.down_proj[expert].T
        return output.index_add(0, torch.tensor(here), more)

    module.register_forward_hook(hook)
    [batch] = batches()
    logits = model(**batch).logits.float()
    mask = batch["attention_mask"].bool()
    counts = mask[:, 1:] & mask[:, :-1]
    log = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    (-log[counts].sum()).backward()
    assert scales.grad is not None
    expected = scales.grad.abs().mean(0)
    got = found.neurons[layer, expert * WIDTH : (expert + 1) * WIDTH]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_greedy_ranks_each_expert_by_its_own_gated_moments(family: str, tmp_path: Path) -> None:
    """From memory, and from a folder with one tensor an expert: one layer after another."""
    model = tiny_model(family)
    found, seen = score(model, batches(), criterion="greedy"), Seen(model)
    folder = tiny_folder(tmp_path / "m", family)
    from_disk = rank(folder, batches(), CRITERIA["greedy"])
    assert torch.equal(from_disk.neurons, found.neurons)
    assert torch.equal(from_disk.blocks["experts"], found.blocks["experts"])
    for layer, expert in ((0, 1), (3, 4)):
        x, gates = seen.of(layer, expert)
        a = activations(seen.modules[layer], seen.found, expert, x) * gates[:, None]
        second = (a.double().T @ a.double() / max(len(a), 1)).float()
        expected = greedy(second, expert_of(seen.modules[layer], seen.found, expert).down)
        got = found.neurons[layer, expert * WIDTH : (expert + 1) * WIDTH]
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("by", sorted(set(CRITERIA) - {"ptl_vote"}))
def test_every_criterion_ranks_and_the_lowest_of_each_expert_go(by: str) -> None:
    model = tiny_model("olmoe")
    found = score(model, batches(), criterion=by)
    made = plan(found, neurons=8, layers=1, more={"experts": 2})
    assert made.new_shape == {"layers": 3, "neurons": 40, "experts": 4}
    for layer in made.kept_layers:
        rows = found.blocks["experts"][layer]
        assert set(made.drop["experts"][layer]) == set(rows.argsort()[:2].tolist())
        for expert in made.kept("experts", layer):
            own = found.neurons[layer, expert * WIDTH : (expert + 1) * WIDTH]
            gone = [n % WIDTH for n in made.drop_neurons[layer] if n // WIDTH == expert]
            assert own[gone].max() <= own[[j for j in range(WIDTH) if j not in gone]].min()
    small = apply_in_memory(model, made)
    assert small.config.num_experts == 4 and small.config.intermediate_size == 40
    with pytest.raises(OutOfReach, match="this many experts"):
        plan(found, more={"experts": 6})


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(UnsupportedModel, match="says nothing of neurons inside experts"):
        score(tiny_model("olmoe"), batches(), criterion="ptl_vote")
    with pytest.raises(UnsupportedModel, match="no experts to score"):
        score(tiny_model("llama"), batches(), criterion="contribution", more=["experts"])


def test_scores_round_trip(tmp_path: Path) -> None:
    found = score(tiny_model("gpt_oss"), batches(), criterion="contribution", more=["heads", "experts"])
    found.write(tmp_path / "scores.safetensors")
    again = Scores.read(tmp_path / "scores.safetensors")
    assert again.sizes == found.sizes == {"heads": 2, "query_heads": 2, "experts": E} and again.experts == E
    assert torch.equal(again.neurons, found.neurons) and torch.equal(again.blocks["experts"], found.blocks["experts"])
