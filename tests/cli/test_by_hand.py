"""A round by hand, stage by stage: `score`, `plan`, `compensate`, `apply` give the tensors that `run` gives."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from tests.cli.test_app import call
from tests.tiny import tiny_folder
from tests.tiny_run import rows, tiny_recipe
from transformers import AutoModelForCausalLM

from prunetune.common.files import read_json
from prunetune.common.progress import Watch
from prunetune.data.stream import FileData, load_stream
from prunetune.loop.loop import prune_tune_loop
from prunetune.models.cost import cost_of


def test_stage_by_stage_gives_what_one_round_of_run_gives(tmp_path, capsys):
    recipe = tiny_recipe(
        tmp_path,
        prune={"target": {"width": 32, "depth": 3}, "rounds": 1, "order": "together", "align": 4},
        score={"samples": 16, "held_out": 4, "max_length": 64, "criterion": "greedy"},
        compensate="least-squares",
        recover=[],
        evaluate={"tasks": [], "latency_repeats": 0},
    )
    prune_tune_loop(recipe, tmp_path / "run", Watch(quiet=True))
    (stage,) = (p.parent for p in (tmp_path / "run").glob("0*/stage.json"))

    model, data = tmp_path / "model", ["--data", tmp_path / "rows.jsonl", "--samples", 16, "--max-length", 64]
    scores, plan, patch, out = (tmp_path / n for n in ("s.safetensors", "plan.json", "patch.safetensors", "out"))
    assert call(capsys, "score", model, *data, "--criterion", "greedy", "--out", scores, "--json")[0] == 0
    assert call(capsys, "plan", scores, "--neurons", 16, "--layers", 1, "--out", plan)[0] == 0
    code, said, _ = call(capsys, "compensate", plan, model, *data, "--out", patch, "--json")
    assert code == 0 and {f["layer"] for f in json.loads(said)["fits"]} == set(range(4)) - set(
        json.loads(plan.read_text())["drop_layers"]
    )
    assert call(capsys, "apply", plan, model, out, "--patch", patch)[0] == 0

    assert plan.read_text() == (stage / "plan.json").read_text()
    by_hand, by_run = load_file(out / "model.safetensors"), load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert by_hand.keys() == by_run.keys() and all(torch.equal(by_hand[k], by_run[k]) for k in by_hand)
    bare = tmp_path / "bare"
    assert call(capsys, "apply", plan, model, bare)[0] == 0
    assert not torch.equal(load_file(bare / "model.safetensors")["model.layers.0.mlp.down_proj.weight"],
                           by_hand["model.layers.0.mlp.down_proj.weight"])  # fmt: skip

    other = tmp_path / "other.json"
    assert call(capsys, "plan", scores, "--neurons", 16, "--layers", 0, "--out", other)[0] == 0
    code, _, said = call(capsys, "apply", other, model, tmp_path / "no", "--patch", patch)
    assert code == 2 and "made for another plan" in said and "prunetune compensate" in said
    assert not (tmp_path / "no").exists()


def test_local_recovery_by_hand_is_what_the_loop_does(tmp_path, capsys):
    """A layer and neurons go; the loop's rows are the first of the stream behind those that are scored."""
    local = {"type": "local", "samples": 24, "tokens": None, "steps": 12, "batch_size": 8, "max_length": 64}
    recipe = tiny_recipe(
        tmp_path,
        prune={"target": {"width": 32, "depth": 3}, "rounds": 1, "order": "together", "align": 4},
        score={"samples": 16, "held_out": 4, "max_length": 64, "criterion": "greedy"},
        compensate="least-squares",
        recover=[local],
        evaluate={"tasks": [], "latency_repeats": 0},
        do_no_harm=False,
        keep="all",
    )
    prune_tune_loop(recipe, tmp_path / "run", Watch(quiet=True))
    (stage,) = (p.parent for p in (tmp_path / "run").glob("0*/stage.json"))
    record = json.loads((stage / "stage.json").read_text())
    (tuned,) = record["tune"]
    assert tuned["method"] == "local" and [e["layer"] for e in tuned["log"]] == [0, 1, 2]
    assert all(e["after"] <= e["before"] for e in tuned["log"]) and tuned["tokens"] > tuned["data_tokens"] > 0
    assert record["samples"] == [20, 44] and "blocks came nearer to the original" in (
        (tmp_path / "run" / "report.md").read_text()
    )

    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    order = [e.question for e in load_stream([FileData(path=str(tmp_path / "rows.jsonl"))], 0).examples]
    by_question = {json.loads(line)["question"]: line for line in lines}
    rows = tmp_path / "part.jsonl"
    rows.write_text("".join(by_question[q] + "\n" for q in order[20:44]))
    config = tmp_path / "local.yaml"
    config.write_text("tokens: null\nsteps: 12\nbatch_size: 8\nmax_length: 64\n")
    given = ["--original", tmp_path / "model", "--data", rows, "--config", config]
    code, _, said = call(capsys, "tune", "local", stage / "pruned", tmp_path / "no", *given)
    assert code == 2 and "which layers of the original are left" in said and "--plan" in said
    code, _, said = call(
        capsys, "tune", "local", stage / "pruned", tmp_path / "out", *given, "--plan", stage / "plan.json"
    )
    assert code == 0, said
    cut, out = (load_file(f / "model.safetensors") for f in (stage / "pruned", tmp_path / "out"))
    changed = {n for n in cut if not torch.equal(cut[n], out[n])}
    assert changed and all(".layers." in n for n in changed)


def test_experts_go_by_hand(tmp_path, capsys):
    """One tensor an expert on disk; neurons inside them go along, and are folded; what is not there is one message."""
    model = tiny_folder(tmp_path / "m", "qwen3_moe")
    data = ["--data", rows(tmp_path / "rows.jsonl"), "--samples", 8, "--max-length", 64]
    scores, plan, out = (tmp_path / n for n in ("s.safetensors", "plan.json", "out"))
    assert call(capsys, "score", model, *data, "--axis", "experts", "--out", scores)[0] == 0
    code, said, _ = call(capsys, "plan", scores, "--cut", "experts=2", "--neurons", 8, "--layers", 1, "--out", plan)
    assert code == 0 and "experts 6 -> 4" in said and "width 48 -> 40" in said
    assert call(capsys, "apply", plan, model, out)[0] == 0
    small = AutoModelForCausalLM.from_pretrained(out)
    assert small.config.num_experts == 4 and small.config.moe_intermediate_size == 40
    assert cost_of(read_json(out / "config.json")).params == small.num_parameters()
    code, said, _ = call(capsys, "inspect", out, "--target", 0.8)
    assert code == 0 and "4 experts, 3 of them a token" in said
    patch, mended = tmp_path / "patch.safetensors", tmp_path / "mended"
    code, said, _ = call(capsys, "compensate", plan, model, *data, "--out", patch, "--json")
    fits = json.loads(said)["fits"]
    assert code == 0 and len(fits) == 3 and all(0 < f["experts"] <= 4 and f["after"] < f["before"] for f in fits)
    assert call(capsys, "apply", plan, model, mended, "--patch", patch)[0] == 0
    plain, changed = (load_file(folder / "model.safetensors") for folder in (out, mended))
    different = {name for name in plain if not torch.equal(plain[name], changed[name])}
    assert plain.keys() == changed.keys() and different and all("down_proj" in name for name in different)
    code, _, said = call(capsys, "compensate", plan, model, *data, "--target", "stream", "--out", tmp_path / "no")
    assert code == 2 and "which of a token's experts" in said
    dense = tiny_folder(tmp_path / "dense")
    code, _, said = call(capsys, "score", dense, *data, "--axis", "experts", "--out", tmp_path / "no")
    assert code == 2 and "no experts" in said
    code, _, said = call(capsys, "plan", scores, "--cut", "experts=6", "--out", tmp_path / "no")
    assert code == 2 and "0 to 5" in said
