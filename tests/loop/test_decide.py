"""Steering on tiny models: evidence in the run folder, budgets, halving, promises, resuming."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import pytest
import torch
from tests.tiny_run import rows, tiny_recipe

from prunetune.common.progress import Watch
from prunetune.common.stats import kept_share
from prunetune.errors import OutOfReach, RecipeError
from prunetune.loop import probe
from prunetune.loop import round as rounds
from prunetune.loop.context import prepare
from prunetune.loop.decide import Case, Decision, decide
from prunetune.loop.loop import prune_tune_loop
from prunetune.loop.probe import losses, make_patch
from prunetune.loop.seek import seek
from prunetune.loop.verdict import hardly_provable, needed, promised, provable, validation
from prunetune.models.folders import load_config, load_model, resolve_model
from prunetune.pruning.patch import Patch
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.scores import Scores, score
from prunetune.recipe.schema import Recipe, StopConfig
from prunetune.runs.folder import RunFolder
from prunetune.runs.records import EvalRecord, StageRecord, Verdict
from prunetune.schedule.damage import Probe
from prunetune.schedule.sizes import Sizes
from prunetune.tasks.registry import build_task

QUIET = Watch(quiet=True)
NEURONS = {"target": 0.8, "align": 4}


def stages(out):
    found = [json.loads(p.read_text()) for p in out.glob("[0-9]*-*/stage.json")]
    return sorted(found, key=lambda s: (s["index"], s["attempt"]))


def decisions(out):
    return [json.loads(p.read_text()) for p in sorted((out / "decisions").glob("*.json"))]


@pytest.fixture(scope="module")
def by_damage(tmp_path_factory):
    at = tmp_path_factory.mktemp("damage")
    recipe = tiny_recipe(at, prune={**NEURONS, "rounds": 2}, budget="damage", compensate="least-squares")
    return at, recipe, prune_tune_loop(recipe, at / "out", QUIET)


def test_damage_decides_steps_and_shares_and_leaves_its_evidence(by_damage):
    at, recipe, summary = by_damage
    found, done = decisions(at / "out"), stages(at / "out")
    sizes = Sizes.of(load_config(at / "model"))
    assert len(found) == len(done) <= 2
    assert summary["params_ratio"] <= 0.8
    curve = [p["damage"] for p in found[0]["path"]]
    assert curve == sorted(curve)
    assert [p["params"] for p in found[0]["probes"]] == [
        sizes.params(p["depth"], p["width"]) for p in found[0]["probes"]
    ]
    for decision, stage in zip(found, done, strict=True):
        assert decision["step"] == stage["step"]
        assert decision["why"]
    assert found[0]["seconds"] > 0
    assert found[-1]["share"] == 1.0  # nothing is left over
    budget = recipe.recover[0].samples
    assert sum(s["tune"][0]["samples"] for s in done) == budget


def test_the_last_of_a_fixed_number_of_rounds_is_not_probed(tmp_path):
    """It takes what is left, whatever it costs: the same model as without a budget by damage."""
    recipe = tiny_recipe(tmp_path, prune={**NEURONS, "rounds": 1}, budget="damage")
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    (decision,) = decisions(tmp_path / "out")
    assert (decision["probes"], decision["share"], decision["rounds"]) == ([], 1.0, 1)
    plain = prune_tune_loop(recipe.changed(budget="equal"), tmp_path / "plain", QUIET)
    assert summary["final"]["model_sha"] == plain["final"]["model_sha"]


def test_the_probe_predicts_what_the_round_then_measures(tmp_path):
    """The same plan, patch and held-out data: where the step lies on a probe, the losses are equal."""
    recipe = tiny_recipe(
        tmp_path, prune={**NEURONS, "rounds": "auto"}, budget="damage", compensate="least-squares", damage_per_round=1e3
    )
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    (decision,), (stage,) = decisions(tmp_path / "out"), stages(tmp_path / "out")
    end = decision["probes"][-1]
    assert (end["depth"], end["width"]) == (stage["depth"], stage["width"])
    assert stage["pruned_loss"] == pytest.approx(end["loss"], abs=2e-3)  # on disk the patch has the model's dtype
    ours, theirs = tmp_path / "out" / stage["name"] / "patch.safetensors", tmp_path / "plain"
    assert ours.samefile(tmp_path / "out/decisions/01/patch.safetensors")  # made once, for the probe
    plain = prune_tune_loop(
        recipe.changed(budget="equal", prune=recipe.prune.model_copy(update={"rounds": 1})), theirs, QUIET
    )
    found, wanted = Patch.read(ours).tensors, Patch.read(theirs / stage["name"] / "patch.safetensors").tensors
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in found)
    assert plain["params_ratio"] == stage["cost"]["params"] / plain["original"]["cost"]["params"]


def test_a_finished_run_decides_nothing_again(by_damage):
    at, recipe, summary = by_damage
    times = {p: p.stat().st_mtime_ns for p in (at / "out").rglob("*.safetensors")}
    again = prune_tune_loop(recipe, at / "out", QUIET)
    assert again["final"] == summary["final"]
    assert {p: p.stat().st_mtime_ns for p in (at / "out").rglob("*.safetensors")} == times


def test_rounds_auto_is_one_where_the_budget_serves_no_more(tmp_path):
    recipe = tiny_recipe(tmp_path, prune={**NEURONS, "rounds": "auto"}, budget="damage", damage_per_round=1e-6)
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    (decision,) = decisions(tmp_path / "out")
    assert decision["rounds"] == 1  # 48 samples are six steps: far from twenty a round


def test_a_try_that_fails_is_undone_and_the_next_removes_less(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, prune={"target": 0.8, "align": 4}, keep=0.9)
    assert recipe.stop_at == StopConfig(accuracy=0.9)
    small = lambda width: Verdict(accepted=width >= 40, why=f"{width} neurons")  # noqa: E731
    monkeypatch.setattr(rounds, "judge", lambda context, run, model, sha, at: small(model.config.intermediate_size))
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    done = stages(tmp_path / "out")
    rejected = [s for s in done if not s["verdict"]["accepted"]]
    assert rejected
    for a, b in itertools.pairwise(done):
        if not a["verdict"]["accepted"]:
            assert b["attempt"] == a["attempt"] + 1
            assert b["step"]["neurons"] < a["step"]["neurons"]
        assert b["samples"][0] >= a["samples"][1]  # no data twice
    kept = [s for s in done if s["verdict"]["accepted"]]
    wanted = kept[-1] if kept else json.loads((tmp_path / "out/original/stage.json").read_text())
    assert summary["final"]["model_sha"] == wanted["model_sha"]
    assert not list((tmp_path / "out").glob(f"{rejected[0]['name']}/tuned/*"))


def test_recovery_that_does_harm_is_not_kept(tmp_path):
    prune = {"target": 0.8, "align": 4, "rounds": 1}
    value = tiny_recipe(tmp_path, prune=prune, do_no_harm=True).model_dump(mode="json")
    value["recover"][0]["learning_rate"] = 1.0
    prune_tune_loop(Recipe.parse(value), tmp_path / "harmed", QUIET)
    (stage,) = stages(tmp_path / "harmed")
    assert stage["held_out_loss"] <= stage["pruned_loss"]
    assert "of the way to its weights was gone" in stage["tune"][0]["notes"][-1]
    assert stage["tokens"] > 0  # they were spent
    value["recover"][0]["learning_rate"] = 1e-3
    prune_tune_loop(Recipe.parse(value), tmp_path / "healed", QUIET)
    (stage,) = stages(tmp_path / "healed")
    assert stage["held_out_loss"] < stage["pruned_loss"]


def test_stop_at_says_so_when_no_smaller_model_keeps_the_promise(tmp_path):
    """An untrained model answers nothing: no interval's lower end reaches 98 % of nothing."""
    recipe = tiny_recipe(tmp_path, prune={"target": 0.8, "align": 4, "step": 0.3}, stop_at={"accuracy": 0.98, "n": 6})
    summary = prune_tune_loop(recipe, tmp_path / "out", QUIET)
    done = stages(tmp_path / "out")
    assert done
    assert not any(s["verdict"]["accepted"] for s in done)
    assert summary["params_ratio"] == 1.0
    assert summary["promise"]["kept"] is False
    assert "no smaller model" in summary["promise"]["why"]
    assert done[0]["verdict"]["validation"]["n"] == 6


def test_what_is_told_as_kept_is_the_plain_ratio():
    """8 of 10, then 6 of 10; the bound comes of `kept_share`, which counts half a question more."""
    before, after = ({str(i): i < right for i in range(10)} for right in (8, 6))
    told = promised(StopConfig(accuracy=0.7, fresh=1000), before, after)
    assert told.validation.kept == pytest.approx(0.75)
    assert "75.0% kept" in told.why
    lower = kept_share([(before[i], after[i]) for i in before], 0.7, fresh=1000)[1]
    assert told.validation.lower == lower and told.accepted == (lower >= 0.7)


def walk(at, stands, losses=None, **changes):
    """The tries of a search when every model of some shapes stands and no other: nothing is read or trained.

    `losses` measures shapes; what was decided so is the last result.
    """
    recipe = tiny_recipe(at, **{"stop_at": {"accuracy": 0.9}, **changes})
    part = recipe.recover[0].samples
    sizes, sequences = Sizes.of(load_config(at / "model")), 2000
    first = StageRecord(index=0, name="original", depth=sizes.depth, width=sizes.width, held_out_loss=1.0)
    case, evidence = Case(recipe, sizes, first, (), sequences), []

    def probed(index, attempt):
        found = seek(case, index, losses, [p for d in evidence if d.index == index for p in d.probes])
        step = found.step and dataclasses.replace(found.step, attempt=attempt)
        evidence.append(found.model_copy(update={"step": step}))
        return evidence[-1]

    while isinstance(decision := decide(case, probed), Decision):
        step, (depth, width) = decision.step, case.now
        depth, width = depth - step.layers, width - step.neurons
        assert (depth, width) != case.now
        after = losses([(depth, width)])[0].loss if losses else None
        stage = {
            "index": step.index, "attempt": step.attempt, "name": step.name, "step": step,
            "depth": depth, "width": width, "held_out_loss": 1.0, "pruned_loss": after,
            "samples": (case.cursor, case.cursor + part), "rounds": decision.rounds, "share": decision.share,
            "removed": {"neurons": step.neurons, "layers": [0] * step.layers}, "last": decision.last,
            "decision": decision.why, "verdict": {"accepted": stands(depth, width), "why": "-"},
        }  # fmt: skip
        case = dataclasses.replace(case, stages=(*case.stages, StageRecord.model_validate(stage)))
    return sizes, [s.to_json() for s in case.stages], decision.why, evidence


def told(done):
    return [(s["name"], s["verdict"]["accepted"]) for s in done]


def no_layer(depth, width):
    return depth == 4


@pytest.mark.parametrize("order", ["neurons-then-layers", "layers-then-neurons"])
@pytest.mark.parametrize("budget", ["equal", "damage"])
def test_a_layer_that_fails_leaves_the_rest_to_the_neurons(tmp_path, order, budget):
    def losses(shapes):  # 0.001 nats a neuron, 0.2 a layer: both may be tried
        size = Sizes.of(load_config(tmp_path / "model")).params
        return [Probe(d, w, size(d, w), 1 + (48 - w) * 0.001 + (4 - d) * 0.2) for d, w in shapes]

    prune = {"target": 0.5, "align": 4, "layers": 1, "order": order, "rounds": None}
    measured = losses if budget == "damage" else None
    sizes, done, end, evidence = walk(tmp_path, no_layer, measured, prune=prune, budget=budget)
    rejected = [s for s in done if not s["verdict"]["accepted"]]
    assert [s["step"]["layers"] for s in rejected] == [1]
    fitting = [w for w in range(4, 48, 4) if sizes.params(4, w) >= 0.5 * sizes.original and w >= 12]
    kept = [s for s in done if s["verdict"]["accepted"]]
    assert kept[-1]["depth"] == 4
    grain = 0.03 * sizes.original
    assert sizes.params(4, kept[-1]["width"]) - sizes.params(4, min(fitting)) < grain
    assert end.startswith("the search is over: ")
    assert evidence[-1].kind == "over"
    if budget == "damage":  # what one try may add is added by the neurons, or by the layer
        assert sorted({d.kind for d in evidence}) == ["further", "guess", "over"]


def test_a_narrow_limit_is_found_in_few_tries_each_called_what_it_is(tmp_path):
    """The largest width that fails is 20 of 48: halving from the top would go past it many times."""

    def losses(shapes):
        size = Sizes.of(load_config(tmp_path / "model")).params
        return [Probe(d, w, size(d, w), 1 + 0.001 * 2 ** ((48 - w) / 4) + (4 - d) * 9) for d, w in shapes]

    _, done, end, evidence = walk(
        tmp_path, lambda depth, width: width > 20, losses, prune={"align": 4}, budget="damage"
    )
    assert len(done) <= 5
    assert [s["width"] for s in done if s["verdict"]["accepted"]][-1] == 24
    assert "last of" not in " ".join(s["decision"] for s in done)
    for number, (stage, decision) in enumerate(zip(done, evidence, strict=False), start=1):
        assert stage["decision"] == decision.why
        assert decision.why.startswith(f"try {number}, ")
    assert "layers: the least that can go would add" in end


def test_nothing_that_stands_ends_the_search(tmp_path):
    _, done, end, _ = walk(tmp_path, lambda depth, width: False, prune={"target": 0.75, "align": 4, "layers": 0})
    assert done and not any(accepted for _, accepted in told(done))
    assert len(done) <= 4
    assert end.startswith("the search is over: neurons: less than 3% of the parameters")


def test_a_width_that_the_recipe_names_is_the_end(tmp_path):
    prune = {"target": {"width": 40, "depth": 4}, "align": 4}
    _, done, *_ = walk(tmp_path, no_layer, prune=prune)
    assert done[-1]["width"] == 40
    assert all(accepted for _, accepted in told(done))


def test_data_used_up_by_failed_tries_are_an_end_and_no_error(tmp_path):
    method = {"type": "cpt", "samples": 1984, "per": "round", "batch_size": 8}  # of the 1,988 that there are
    _, done, end, _ = walk(tmp_path, lambda depth, width: False, prune={"target": 0.75, "align": 4}, recover=[method])
    assert len(done) == 1
    assert "too few data are left" in end


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["equal", "damage"])
def test_killed_before_every_verdict_it_ends_with_the_same_rounds(tmp_path, monkeypatch, budget):
    prune = {"target": 0.75, "align": 4, "rounds": 2, "layers": 1, "order": "layers-then-neurons"}
    method = {"type": "cpt", "samples": 8, "per": "round", "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}
    recipe = tiny_recipe(tmp_path, prune=prune, budget=budget, recover=[method])

    class Killed(Exception):
        pass

    seen = set()

    def judge(context, run, model, sha, at):
        if at.name not in seen:  # trained and measured, but not judged yet
            seen.add(at.name)
            raise Killed
        depth = model.config.num_hidden_layers
        return Verdict(accepted=depth == 4, why=f"{depth} layers")

    monkeypatch.setattr(rounds, "judge", judge)
    recipe = recipe.changed(stop_at=StopConfig(accuracy=0.9))
    kills = 0
    while True:
        try:
            prune_tune_loop(recipe, tmp_path / "killed", QUIET)
            break
        except Killed:
            kills += 1
    summary = prune_tune_loop(recipe, tmp_path / "straight", QUIET)  # every name has been seen
    one, other = (stages(tmp_path / p) for p in ("straight", "killed"))
    keys = ("name", "step", "model_sha", "verdict", "decision", "share", "samples", "tokens")
    assert [[s[k] for k in keys] for s in one] == [[s[k] for k in keys] for s in other]
    assert kills == len(one)
    assert not one[0]["verdict"]["accepted"]
    assert summary["params_ratio"] <= 0.78
    assert summary["final"]["depth"] == 4
    assert one[-1]["decision"] in (tmp_path / "straight/report.md").read_text()
    timeless = [[{**d, "seconds": 0} for d in decisions(tmp_path / p)] for p in ("straight", "killed")]
    assert timeless[0] == timeless[1]
    assert [d["kind"] for d in timeless[0]][-1] == "over"
    assert any(d["probes"] for d in timeless[0]) == (budget == "damage")


def test_validation_problems_are_not_the_reported_ones(tmp_path):
    recipe = tiny_recipe(tmp_path)
    tasks = tuple(build_task(t) for t in recipe.evaluate.tasks)
    found = validation(recipe, StopConfig(accuracy=0.9, n=50), tasks)
    reported = {p.question for t in tasks for p in t.problems}
    assert len(found.problems) == 50
    assert not reported & {p.question for p in found.problems}


def test_where_no_problems_are_left_to_decide_that_is_told_before_any_work(tmp_path):
    recipe = tiny_recipe(tmp_path, stop_at={"accuracy": 0.9})
    (task,) = recipe.evaluate.tasks
    recipe = recipe.changed(
        evaluate=recipe.evaluate.model_copy(update={"tasks": [task.model_copy(update={"n": None})]})
    )
    with pytest.raises(OutOfReach, match="no problems are left to decide with") as e:
        prune_tune_loop(recipe, tmp_path / "run")
    assert "200 rows of sums: 200 are reported (--n), 0 decide" in str(e.value.value)
    n = int(re.search(r"--n (\d+), so that (\d+) decide", str(e.value.fix))[1])
    assert provable(200 - n, 2000) >= 0.9 and n > 100  # what is named does it, and reports as many as may be
    assert not (tmp_path / "run/original/stage.json").exists()


def test_what_so_many_problems_can_prove_at_all():
    """By `kept_share` itself: a model that gives the original's answers proves that share, and no per mille more."""
    for n in (100, 1000):
        most, same = provable(n, 2000), [(True, True)] * n
        assert kept_share(same, most, fresh=2000, confidence=0.96)[1] >= most
        assert kept_share(same, most + 0.001, fresh=2000, confidence=0.96)[1] < most + 0.001
    assert provable(100, 2000) < provable(1000, 2000) < 1.0


def test_a_share_that_cannot_be_proved_is_told_before_any_try(tmp_path):
    recipe = tiny_recipe(tmp_path, stop_at={"accuracy": 1.0})
    context = prepare(recipe, resolve_model(recipe.model), QUIET)
    told = hardly_provable(context)
    assert told is not None and "cannot show that 100.0 % of the accuracy are kept" in told
    perfect = {"task": "sums", "value": 1.0, "metric": "accuracy", "n": 4}
    with pytest.raises(OutOfReach, match="cannot show") as e:
        hardly_provable(context, [EvalRecord.model_validate(perfect)])
    assert f"--keep {int(100 * provable(196, 2000))}%" in str(e.value.fix)  # the rows that are not reported
    easy = dataclasses.replace(context, recipe=tiny_recipe(tmp_path, stop_at={"accuracy": 0.5}))
    assert hardly_provable(easy, [EvalRecord.model_validate(perfect)]) is None


def test_a_split_that_decides_too_little_is_told_before_the_original_is_asked(tmp_path):
    """The table of the reader: 80 rows, 50 of them reported, so that 30 decide; all is known from these counts."""
    recipe = tiny_recipe(tmp_path, stop_at={"accuracy": 0.95})
    rows(tmp_path / "eighty.jsonl", 80)
    (task,) = recipe.evaluate.tasks

    def asked(n, **stop):
        tasks = [task.model_copy(update={"path": str(tmp_path / "eighty.jsonl"), "n": n})]
        evaluate = recipe.evaluate.model_copy(update={"tasks": tasks})
        return recipe.changed(evaluate=evaluate, stop_at=recipe.stop_at.model_copy(update=stop))

    with pytest.raises(OutOfReach, match=r"30 problems cannot show that 95\.0 %") as e:
        prune_tune_loop(asked(50), tmp_path / "run", QUIET)
    assert str(e.value.value) == "80 rows of sums: 50 are reported (--n), 30 decide"
    assert "--n 20, so that 60 decide; or a longer test file" in str(e.value.fix)
    assert not (tmp_path / "run/original/stage.json").exists()
    assert hardly_provable(prepare(asked(20), resolve_model(recipe.model), QUIET)) is None
    few = hardly_provable(prepare(asked(50, accuracy=0.99), resolve_model(recipe.model), QUIET))
    assert "so that only a better one would stand" in few, "no --n does it: 281 would have to decide"
    assert needed(StopConfig(accuracy=0.99)) > 80


def test_probes_that_share_a_walk_are_near_those_made_one_by_one(tmp_path, by_damage):
    """The gentlest is what it is by itself, up to rounding; a harsher one is near, and the order is kept."""
    at, recipe, _ = by_damage
    context = prepare(recipe, resolve_model(recipe.model), QUIET)
    with RunFolder.open(at / "out", recipe, context.source) as run:
        scores = Scores.read(at / "out/decisions/01/scores.safetensors")
        found = {}
        for name, groups in {"shared": [[(4, 44), (4, 24)]], "alone": [[(4, 44)], [(4, 24)]]}.items():
            scratch = run.folder("decisions") / name
            scratch.mkdir()
            found[name] = [
                p.loss for shapes in groups for p in losses(context, run, scratch, context.source, scores, shapes)
            ]
    assert found["shared"][0] == pytest.approx(found["alone"][0], abs=2e-3)
    assert found["shared"][1] == pytest.approx(found["alone"][1], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prune": {**NEURONS, "rounds": "auto"}}, "budget: damage"),
        ({"prune": {**NEURONS, "order": "alternating"}, "budget": "damage"}, "alternating"),
        ({"prune": {"sigma_neuron": 0.1, "max_rounds": 2}, "budget": "damage"}, "thresholds"),
        ({"prune": {"sigma_neuron": 0.1, "max_rounds": 2, "rounds": 2}}, "thresholds"),
        ({"recover": [{"type": "grpo", "samples": 8}], "do_no_harm": True}, "do_no_harm"),
        ({"evaluate": {"tasks": []}, "stop_at": {"accuracy": 0.9}}, "stop_at"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tmp_path, **changes)


def test_the_report_tells_why_each_round_went_so_far(by_damage):
    at, _, _ = by_damage
    text = (at / "out/report.md").read_text()
    for decision in decisions(at / "out"):
        assert decision["why"] in text


def test_a_criterion_may_rank_by_the_error_left_after_compensation(tmp_path):
    recipe = tiny_recipe(
        tmp_path, prune={**NEURONS, "rounds": 1}, compensate="least-squares",
        score={"samples": 8, "held_out": 4, "max_length": 64, "criterion": "greedy"},
    )  # fmt: skip
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    (stage,) = stages(tmp_path / "out")
    found = Scores.read(tmp_path / "out" / stage["name"] / "scores.safetensors")
    context = prepare(recipe, resolve_model(recipe.model), QUIET)
    direct = score(load_model(tmp_path / "model"), context.scoring, neuron_criterion="greedy").neurons
    torch.testing.assert_close(found.neurons, direct)
    assert found.criterion == "greedy"


def test_probes_that_ended_before_a_kill_are_not_made_again(tmp_path, monkeypatch):
    """Killed in the second of three: its loss and those after it are measured, the first's is read; the same decision."""
    recipe = tiny_recipe(tmp_path, prune={**NEURONS, "rounds": 2}, budget="damage", compensate="least-squares")
    real, calls, kill = probe.held_out_loss, [], False

    def measured(context, model):
        calls.append(model.config.intermediate_size)
        if kill and len(calls) == 2:
            raise KeyboardInterrupt
        return real(context, model) + 1.0  # a cut that hurts, so that the way there is probed too

    monkeypatch.setattr(probe, "held_out_loss", measured)
    prune_tune_loop(recipe, tmp_path / "straight", QUIET)
    calls.clear()
    kill = True
    with pytest.raises(KeyboardInterrupt):
        prune_tune_loop(recipe, tmp_path / "out", QUIET)
    before = calls[0]
    prune_tune_loop(recipe, tmp_path / "out", QUIET)
    assert before not in calls[1:]
    assert calls[1] == calls[2], "only the one that was under way"
    wanted, found = (json.loads((tmp_path / n / "decisions" / "01.json").read_text()) for n in ("straight", "out"))
    assert {**wanted, "seconds": 0} == {**found, "seconds": 0}
    assert not list((tmp_path / "out").rglob(".*.half"))


def test_removed_layers_are_folded_only_by_the_value_that_says_so(tmp_path):
    layer = PrunePlan(model_sha="", depth=4, width=48, drop_layers=(1,))
    folded = {}
    for value in ("least-squares", "least-squares-neurons"):
        recipe = tiny_recipe(tmp_path, prune={**NEURONS, "rounds": 1}, compensate=value)
        context = prepare(recipe, resolve_model(recipe.model), QUIET)
        folded[value] = make_patch(context, load_model(tmp_path / "model"), layer).tensors
    assert folded["least-squares"] and not folded["least-squares-neurons"]


def test_too_few_calibration_tokens_are_told(tmp_path, capsys):
    scored = {"samples": 8, "held_out": 4, "max_length": 64}
    recipe = tiny_recipe(tmp_path, prune={**NEURONS, "rounds": 1}, compensate="least-squares", score=scored)
    prune_tune_loop(recipe, tmp_path / "out", Watch())
    said = next(line for line in capsys.readouterr().err.splitlines() if "few calibration tokens" in line)
    (stage,) = stages(tmp_path / "out")
    patch = Patch.read(tmp_path / "out" / stage["name"] / "patch.safetensors")
    assert f"{patch.tokens:,} for {stage['width']} kept neurons" in said
    assert patch.tokens < 10 * stage["width"]
    more = {**scored, "samples": 40}
    prune_tune_loop(recipe.changed(score=type(recipe.score)(**more)), tmp_path / "more", Watch())
    (stage,) = stages(tmp_path / "more")
    enough = Patch.read(tmp_path / "more" / stage["name"] / "patch.safetensors").tokens >= 10 * stage["width"]
    assert enough and "few calibration tokens" not in capsys.readouterr().err
