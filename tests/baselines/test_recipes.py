"""The baselines' and the paper's recipes: each plans without a hub, and each choice is that of a direct computation."""

from __future__ import annotations

import pytest
import torch
from tests.models.test_cost import GEMMA2_9B, LLAMA3_8B, QWEN25_7B
from tests.tiny import tiny_model
from tests.tiny_run import tiny_recipe

from prunetune.cli.about_model import model_config
from prunetune.cli.preview import preview
from prunetune.common.progress import Watch
from prunetune.loop.loop import prune_tune_loop
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import make_batches, score
from prunetune.recipe.schema import Recipe, shipped

NAMES = [n for n in shipped() if n.startswith(("baselines/", "paper/"))]
SEQUENCES = [
    [int(i) for i in torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(n))]
    for n in (21, 17, 19, 9, 5)
]
BATCHES = make_batches(SEQUENCES, 0, max_tokens=60)


def test_all_are_shipped():
    baselines = {"prune-once", "shortgpt", "shortgpt-llama3-8b", "ptl-vote", "llm-pruner"}
    paper = {"llama3-8b", "gemma2-9b", "qwen2.5-7b-rl", "qwen2.5-7b-ct-rl", "llama3-8b-code"}
    assert {f"baselines/{n}" for n in baselines} | {f"paper/{n}" for n in paper} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_plans_without_hub_and_weights(name):
    recipe = Recipe.read(name)
    steps = preview(recipe)[0]["steps"]
    assert steps[-1]["params_ratio"] < 0.8
    once = name.startswith("baselines/") and name != "baselines/ptl-vote"
    assert (len(steps) == 2) == once
    assert recipe.compensate == "none"  # as published


@pytest.mark.parametrize(
    ("name", "depth", "width", "rounds"),
    [
        ("paper/llama3-8b", 30, 14336 - 7000, 9),
        ("paper/llama3-8b-code", 30, 14336 - 5000, 7),
        ("paper/gemma2-9b", 42, 14336 - 8000, 8),
        ("paper/qwen2.5-7b-rl", 28, 8944, 10),
        ("paper/qwen2.5-7b-ct-rl", 28, 8944, 10),
        ("baselines/shortgpt-llama3-8b", 21, 14336, 1),
    ],
)
def test_the_papers_shapes(name, depth, width, rounds):
    steps = preview(Recipe.read(name))[0]["steps"]
    assert (steps[-1]["depth"], steps[-1]["width"], len(steps) - 1) == (depth, width, rounds)
    assert Recipe.read(name).prune.align == 1


@pytest.mark.parametrize(
    ("model", "shape"),
    [("meta-llama/Meta-Llama-3-8B", LLAMA3_8B), ("google/gemma-2-9b", GEMMA2_9B), ("Qwen/Qwen2.5-7B", QWEN25_7B)],
)
def test_shipped_shapes_are_the_published_ones(model, shape):
    values = model_config(model)
    assert {k: values[k] for k in shape} == shape


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_shortgpt_drops_the_layers_of_least_block_influence(family):
    """Block Influence by hand: one unpadded sequence at a time, cosines of each layer's own input and output."""
    model = tiny_model(family, num_hidden_layers=6)
    recipe = Recipe.read("baselines/shortgpt")
    found = score(model, BATCHES, neuron_criterion=recipe.score.criterion, layers_by=recipe.score.layer_criterion)
    plan = make_plan(found.neurons.tolist(), found.layers.tolist(), "", n_layers=3)
    cosines: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for i, layer in enumerate(model.model.layers):

        def note(module, args, kwargs, output, i=i):
            before, after = (args[0] if args else kwargs["hidden_states"])[0].double(), output[0].double()
            after = after if after.dim() == 2 else after[0]
            dots = (before * after).sum(1)
            cosines[i].append(dots / before.pow(2).sum(1).sqrt() / after.pow(2).sum(1).sqrt())

        layer.register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        for s in SEQUENCES:
            model(torch.tensor([s]))
    influence = [1 - float(torch.cat(c).mean()) for c in cosines]
    assert len(set(influence)) == 6
    assert found.layers.tolist() == pytest.approx(influence, rel=1e-4, abs=1e-6)
    assert list(plan.drop_layers) == sorted(sorted(range(6), key=influence.__getitem__)[:3])


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_ptl_vote_deletes_what_the_published_rule_deletes(family):
    """The rule with sets: k smallest signed values of each sample's last token, intersected, united, lowest indices."""
    model, share = tiny_model(family), Recipe.read("baselines/ptl-vote").score.vote_share
    sequences = SEQUENCES[:3]
    width, k = 48, int(48 * share)
    found = score(model, make_batches(sequences, 0, max_tokens=60), neuron_criterion="ptl_vote", vote_share=share)
    votes: list[dict[str, list[set[int]]]] = [{"gate": [], "up": []} for _ in model.model.layers]
    for i, layer in enumerate(model.model.layers):

        def note(module, args, i=i):
            last = args[0][0, -1]
            if hasattr(module, "gate_up_proj"):
                both = module.gate_up_proj.weight @ last
                values = {"gate": both[:width], "up": both[width:]}
            else:
                values = {"gate": module.gate_proj.weight @ last, "up": module.up_proj.weight @ last}
            for name, v in values.items():
                votes[i][name].append(set(sorted(range(width), key=lambda j, v=v: float(v[j]))[:k]))

        layer.mlp.register_forward_pre_hook(note)
    with torch.no_grad():
        for s in sequences:
            model(torch.tensor([s]))
    candidates = [sorted(set.intersection(*v["gate"]) | set.intersection(*v["up"])) for v in votes]
    n = min(map(len, candidates))
    assert n >= 3  # else this test shows nothing
    plan = make_plan(found.neurons.tolist(), found.layers.tolist(), "", n_neurons=n)
    assert {i: list(d) for i, d in plan.drop_neurons.items()} == {i: c[:n] for i, c in enumerate(candidates)}


def test_an_explicit_list_of_layers_goes_and_adapters_recover(tmp_path):
    """The shapes of the two other recipes, end to end on a tiny model: layers by name; taylor, one round, LoRA."""
    cpt = {"type": "cpt", "samples": 8, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    quiet = {"evaluate": {"tasks": [], "latency_repeats": 0}}
    recipe = tiny_recipe(
        tmp_path, prune={"target": {"width": 48}, "layers": [1, 3], "step": 1.0, "align": 1}, recover=[cpt], **quiet
    )
    summary = prune_tune_loop(recipe, tmp_path / "list", Watch(quiet=True))
    assert [s["removed"] for s in summary["stages"]] == [{"neurons": 0, "layers": [1, 3]}]
    recipe = tiny_recipe(
        tmp_path,
        prune={"target": 0.8, "step": 1.0, "align": 4},
        score={"samples": 8, "held_out": 4, "max_length": 64, "criterion": "taylor"},
        recover=[{**cpt, "lora": {"rank": 8, "alpha": 16}}],
        **quiet,
    )
    summary = prune_tune_loop(recipe, tmp_path / "taylor", Watch(quiet=True))
    assert len(summary["stages"]) == 1
    assert PrunePlan.read(tmp_path / "taylor" / summary["final"]["name"] / "plan.json").new_width % 4 == 0
    assert summary["recovery_tokens"] > 0
