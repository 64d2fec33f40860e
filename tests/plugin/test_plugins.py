"""Entries from outside the package: an installed package's entry points, from a recipe and from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tests.tiny import BASE, tiny_tokenizer
from tests.tiny_run import rows

import prunetune
from prunetune.common import plugins
from prunetune.errors import RecipeError, UnknownName
from prunetune.pruning.criteria import CRITERIA, Criterion, criterion
from prunetune.recipe.schema import Recipe

ENTRIES = """[prunetune.plugins]
criterion.toy-last = toy_plugin:LAST
criterion.toy-moment = toy_plugin:MOMENT
verifier.toy-always = toy_plugin:always
task.toy-sums = toy_plugin:sums
source.toy-rows = toy_plugin:ToyRows
method.toy-cpt = toy_plugin:Still
runner.toy-cpt = toy_plugin:STILL
family.toy = toy_plugin:TOY
axis.toy_groups = toy_plugin:GROUPS
layer_criterion.toy-opposite = toy_plugin:opposite
callback.toy-hears = toy_plugin:Hears
"""
SAVE = """
import torch, sys
from toy_plugin import ToyConfig, ToyForCausalLM
torch.manual_seed(0)
ToyForCausalLM(ToyConfig(**{base}, tie_word_embeddings=False)).save_pretrained(sys.argv[1])
"""
COMMANDS = """
import json, sys
from prunetune.cli.app import app
for words in json.loads(sys.argv[1]):
    try:
        app(words)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{words}: {ended.code}")
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """An installed package, as pip leaves it, and a model of its family."""
    at = tmp_path_factory.mktemp("outside")
    site = at / "site"
    (site / "toy_plugin-1.0.dist-info").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("toy_plugin.py"), site)
    (site / "toy_plugin-1.0.dist-info" / "entry_points.txt").write_text(ENTRIES)
    (site / "toy_plugin-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n"
    )
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

    told = {"PYTHONPATH": paths, "TOY_HEARD": str(at / "heard")}

    def call(*args: object, code: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *(["-c", code] if code else ["-m", "prunetune"]), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **told}, check=False)

    made = call(at / "model", code=SAVE.replace("{base}", repr(BASE)))
    assert made.returncode == 0, made.stderr[-2000:]
    tiny_tokenizer().save_pretrained(at / "model")
    rows(at / "rows.jsonl", 20)
    return at, call


def test_the_toy_has_an_entry_of_each_kind():
    assert {line.partition(".")[0] for line in ENTRIES.splitlines()[1:]} == set(plugins.KINDS)


@pytest.mark.slow
def test_a_recipe_uses_them_all(outside):
    at, call = outside
    recipe = {
        "model": str(at / "model"),
        "data": [{"type": "toy-rows", "n": 40}],
        "prune": {
            "target": {"width": 40, "depth": 3},
            "cut": {"toy_groups": 1},
            "rounds": 1,
            "order": "together",
            "align": 4,
        },
        "score": {
            "criterion": "toy-last",
            "layer_criterion": "toy-opposite",
            "samples": 8,
            "held_out": 4,
            "max_length": 32,
        },
        "recover": [{"type": "toy-cpt", "samples": 8, "batch_size": 4, "max_length": 32}],
        "evaluate": {
            "tasks": [{"name": "toy-sums", "path": str(at / "rows.jsonl"), "n": 2, "max_new_tokens": 2}],
            "latency_repeats": 0,
        },
        "log": ["toy-hears"],
        "device": "cpu",
    }
    (at / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = call("run", at / "recipe.yaml", "--out", at / "run", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["final"]["evals"][0]["value"] == 1.0, "the plugin's verifier says so"
    (stage,) = summary["stages"]
    assert (stage["width"], stage["depth"], stage["tune"][0]["method"]) == (40, 3, "toy-cpt")
    plan = json.loads((at / "run" / stage["name"] / "plan.json").read_text())
    assert set(map(tuple, plan["drop_neurons"].values())) == {tuple(range(40, 48))}, "the plugin's criterion chose"
    assert set(map(tuple, plan["drop"]["toy_groups"].values())) == {(1,)}, "of the plugin's axis, too"
    scores = load_file(at / "run" / stage["name"] / "scores.safetensors")["layers"]
    assert (scores < 0).all() and plan["drop_layers"] == [int(scores.argmin())], "the plugin's layer criterion chose"
    assert (at / "heard").read_text().split() == ["1", "2"], "the plugin's callback heard each step"


@pytest.mark.slow
@pytest.mark.thorough
def test_the_commands_use_them_all(outside):
    at, call = outside
    data, rows, answers = ("--data", "toy-rows", "--samples", 8), at / "rows.jsonl", ("--n", 2, "--out", at / "answers")
    toys = ("--criterion", "toy-last", "--layer-criterion", "toy-opposite", "--axis", "toy_groups")
    commands = [
        ("score", at / "model", *data, "--criterion", "toy-moment", "--out", at / "moments.st"),
        ("score", at / "model", *data, *toys, "--out", at / "s.st"),
        ("plan", at / "s.st", "--neurons", 8, "--layers", 1, "--cut", "toy_groups=1", "--out", at / "p.json"),
        ("apply", at / "p.json", at / "model", at / "small"),
        ("tune", "toy-cpt", at / "small", at / "tuned", *data),
        ("eval", at / "tuned", "--task", "toy-sums", "--path", rows, *answers),
        ("eval", at / "tuned", "--task", f"mine={rows}", "--verifier", "toy-always", *answers),
    ]
    done = call(json.dumps([[str(word) for word in words] for words in commands]), code=COMMANDS)
    assert done.returncode == 0, done.stderr[-3000:]
    config = json.loads((at / "tuned" / "config.json").read_text())
    shape = ("model_type", "intermediate_size", "num_hidden_layers", "num_key_value_heads")
    assert [config[key] for key in shape] == ["toy", 40, 3, 1]
    for task in ("toy-sums", "mine"):
        lines = (at / "answers" / f"{task}.jsonl").read_text().splitlines()
        assert [json.loads(line)["correct"] for line in lines] == [True, True], "the plugin's verifier says so"

    wrong = call("score", at / "model", "--data", "toy-rows", "--criterion", "toy-lest", "--out", at / "t.st")
    assert wrong.returncode == 2 and "did you mean" in wrong.stderr and "toy-last" in wrong.stderr


def test_a_registered_criterion_serves_recipes_and_calls(monkeypatch):
    monkeypatch.setattr(plugins, "_REGISTERED", {})
    with pytest.raises(UnknownName, match="halves"):
        criterion("halves")
    mine = Criterion("weights", lambda stat, weights, layer, seed: weights.down_norm())
    prunetune.register("criterion", "halves", mine)
    assert criterion("halves") is mine
    value = {"model": "demo", "data": [{"type": "demo", "size": 9}], "prune": {"target": 0.5}}
    assert Recipe.parse({**value, "score": {"criterion": "halves"}}).score.criterion == "halves"
    with pytest.raises(RecipeError, match="did you mean 'halves'"):
        Recipe.parse({**value, "score": {"criterion": "halvs"}})
    prunetune.register("criterion", "greedy", mine)
    assert criterion("greedy") is CRITERIA["greedy"], "a built-in name stays ours"


def test_what_is_no_plugin_is_told(monkeypatch):
    monkeypatch.setattr(plugins, "_REGISTERED", {})
    with pytest.raises(UnknownName, match="criterion"):
        prunetune.register("criterium", "x", None)
    with pytest.raises(RecipeError, match="one word"):
        prunetune.register("criterion", "a b", None)
    from importlib.metadata import EntryPoint

    lost = {("criterion", "lost"): EntryPoint("criterion.lost", "no_such_module:X", plugins.GROUP)}
    monkeypatch.setattr(plugins, "_installed", lambda: lost)
    with pytest.raises(RecipeError, match=r"criterion\.lost cannot be loaded"):
        criterion("lost")
