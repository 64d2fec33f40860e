"""The command line as a person meets it: quick help, one message and exit 2 on a user's error, JSON for machines."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.tiny import brief_folder, tiny_folder
from tests.tiny_run import rows, tiny_recipe

from prunetune.cli import app as cli
from prunetune.common import units as human
from prunetune.recipe.said import parse_data
from prunetune.tasks.sandbox.program import why_not


def call(capsys, *args):
    """Run a command in this process; (exit code, stdout, stderr)."""
    argv, sys.argv = sys.argv, ["prunetune", *map(str, args)]
    try:
        cli.main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.argv = argv
    seen = capsys.readouterr()
    return code, seen.out, seen.err


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    recipe = tiny_recipe(folder)
    recipe.write(folder / "recipe.yaml")
    return folder


def cpu_seconds(*args):
    """CPU time (not wall time, which a busy machine stretches) of a command in a process of its own, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "prunetune", *map(str, args)], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_answers_in_a_second():
    seconds, out = cpu_seconds("--help")
    assert "compact" in out.lower()
    assert seconds < 1
    code = "import sys, prunetune.cli.app; print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_command_has_help(capsys):
    names = list(cli.COMMANDS)
    assert {"run", "inspect", "score", "plan", "apply", "tune", "generate", "eval", "report", "compare"} <= set(names)
    for name in names:
        code, out, _ = call(capsys, name, "--help")
        assert code == 0
        assert len(out) > 100


def test_dry_run_prints_the_steps_and_touches_nothing(capsys, at):
    code, out, _ = call(capsys, "run", at / "recipe.yaml", "--out", at / "none", "--dry-run", "--json")
    assert code == 0
    steps = json.loads(out)["steps"]
    assert steps[0]["params_ratio"] == 1.0
    assert steps[-1]["params_ratio"] <= 0.75
    assert not (at / "none").exists()
    code, out, _ = call(capsys, "run", at / "recipe.yaml", "--dry-run")
    assert "01-neurons" in out


def test_dry_run_with_thresholds_says_unknown(capsys, at):
    value = yaml.safe_load((at / "recipe.yaml").read_text())
    value["prune"] = {"sigma_neuron": 0.1, "max_rounds": 4}
    (at / "sigma.yaml").write_text(yaml.safe_dump(value))
    _, out, _ = call(capsys, "run", at / "sigma.yaml", "--dry-run")
    assert "rounds: unknown, at most 4; the thresholds decide" in out


def test_the_stages_one_at_a_time(capsys, at, tmp_path):
    model, data = at / "model", at / "rows.jsonl"
    for args in (
        ["score", model, "--data", data, "--out", tmp_path / "s.safetensors", "--samples", 8],
        ["plan", tmp_path / "s.safetensors", "--out", tmp_path / "p.json", "--neurons", 8, "--layers", 1],
        ["apply", tmp_path / "p.json", model, tmp_path / "pruned"],
        ["tune", "cpt", tmp_path / "pruned", tmp_path / "tuned", "--data", data, "--samples", 32],
        ["inspect", tmp_path / "tuned"],
    ):
        code, out, err = call(capsys, *args, "--json")
        assert code == 0, err
        seen = json.loads(out)
    assert (seen["depth"], seen["width"]) == (3, 40)
    code, out, err = call(capsys, "eval", tmp_path / "tuned", "--task", "sums", "--path", data, "--verifier", "number", "--n", 3,
                          "--out", tmp_path / "answers", "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)[0]["n"] == 3
    assert len((tmp_path / "answers" / "sums.jsonl").read_text().splitlines()) == 3
    again = [
        "eval",
        model,
        "--task",
        "sums",
        "--path",
        data,
        "--verifier",
        "number",
        "--n",
        3,
        "--out",
        tmp_path / "answers",
    ]
    code, _, err = call(capsys, *again)
    assert (code, "another model's answers" in err) == (2, True)


@pytest.mark.slow
def test_eval_of_lm_evals_tasks_and_of_controls(capsys, tmp_path):
    """Offline, from local files: lm-eval's GSM8K, SQuAD, a perplexity and (in the sandbox) MBPP, in one call."""
    pytest.importorskip("lm_eval")
    model = brief_folder(tmp_path / "model")
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        rows(tmp_path / "gsm8k" / f"{split}.jsonl", 8)
    paragraph = {"context": "It rained.", "qas": [{"id": "a", "question": "What?", "answers": [{"text": "rain"}]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (tmp_path / "text.txt").write_text("The quick brown fox. " * 20)
    tests = {
        "test_list": ["assert f(1) == 1"] * 3,
        "test_setup_code": "",
        "text": "Write f.",
        "code": "def f(x): return x",
    }
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps({"task_id": i, **tests}) + "\n" for i in (2, 3, 4, 11)))
    data = {"gsm8k": tmp_path / "gsm8k", "squad": tmp_path / "squad.json", "perplexity": tmp_path / "text.txt"}
    tasks = ["lm-eval:gsm8k", "squad", "perplexity"]
    if why_not() is None:
        tasks, data = [*tasks, "mbpp"], {**data, "mbpp": tmp_path / "mbpp.jsonl"}
    args = [*(x for t in tasks for x in ("--task", t)), *(x for n, p in data.items() for x in ("--data", f"{n}={p}"))]
    args += [
        "--limit",
        1,
        "--shots",
        1,
        "--seed",
        3,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
        "--allow-code-execution",
    ]
    code, out, err = call(capsys, "eval", model, *args, "--json")
    assert code == 0, err
    found = {r["task"]: r for r in json.loads(out)}
    assert list(found) == tasks
    first = found["lm-eval:gsm8k"]
    assert (first["n"], first["shots"], first["seed"], first["limit"]) == (1, 1, 3, 1)
    assert "f1" in found["squad"]["scores"] and found["perplexity"]["value"] > 1
    assert {p.stem for p in (tmp_path / "out").glob("*.jsonl")} - {".answers"} == set(tasks) - {"perplexity"}
    code, out, err = call(capsys, "eval", model, *args)
    assert code == 0, err
    shown = {line.split()[0]: line for line in out.splitlines()}
    assert "exact match 0.0 % (0.0 to 79.3)   n = 1, seed 3, 1 shots" in shown["lm-eval:gsm8k"]
    assert "; f1 0.0 %" in shown["squad"]
    value = found["perplexity"]["value"]
    assert (
        f"perplexity {human.measured(value, found['perplexity']['stderr'], 'perplexity')}   n = " in shown["perplexity"]
    )
    assert "%" not in shown["perplexity"]


def test_run_without_yaml_writes_the_recipe_it_used(capsys, at, tmp_path):
    rows(tmp_path / "many.jsonl", 400)
    code, out, err = call(
        capsys,
        "run",
        "--model",
        at / "model",
        "--data",
        tmp_path / "many.jsonl",
        "--target",
        0.9,
        "--out",
        tmp_path / "r",
        "--dry-run",
    )
    assert code == 0, err
    assert "original" in out
    code, out, err = call(
        capsys,
        "run",
        "--model",
        at / "model",
        "--data",
        tmp_path / "many.jsonl",
        "--target",
        0.9,
        "--out",
        tmp_path / "r",
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["params_ratio"] <= 0.9
    assert yaml.safe_load((tmp_path / "r" / "recipe.yaml").read_text())["prune"]["target"] == 0.9
    code, out, err = call(capsys, "report", tmp_path / "r")
    assert code == 0, err
    assert "report.html" in out


def test_generate_writes_rows_that_tune_and_a_recipe_take(capsys, tmp_path):
    out = tmp_path / "traces.jsonl"
    args = [
        "generate",
        "demo",
        out,
        "--data",
        "demo",
        "--n",
        12,
        "--samples-per-question",
        2,
        "--seed",
        3,
        "--device",
        "cpu",
    ]
    code, text, err = call(capsys, *args, "--json")
    assert code == 0, err
    made, rows = json.loads(text), [json.loads(line) for line in out.read_text().splitlines()]
    assert made["questions"] == 12 and made["kept"] == made["solved"] == len(rows) > 8
    assert all("####" in r["answer"] for r in rows)
    code, _, err = call(capsys, *args)
    assert code == 0 and "made already" in err
    code, _, err = call(capsys, *args, "--keep", 2)
    assert code == 2 and "there already, made with other arguments" in err
    small = tmp_path / "small.yaml"
    small.write_text("{batch_size: 4, precision: fp32}")
    code, text, err = call(
        capsys, "tune", "cpt", "demo", tmp_path / "tuned", "--data", out, "--samples", 8, "--config", small, "--json"
    )
    assert code == 0, err
    assert json.loads(text)["samples"] == 8
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": "demo",
                "data": [{"type": "file", "path": str(out)}],
                "prune": {"target": 0.8},
                "score": {"samples": 4, "held_out": 2},
            }
        )
    )
    code, text, err = call(capsys, "run", recipe, "--dry-run", "--json")
    assert code == 0, err
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"question": "when?", "answer": "3:30"}) + "\n")
    bad = {
        "no judge": ([at_file(tmp_path)], "--task"),
        "no such task": (["demo", "--task", "gsm9k"], "gsm8k"),
        "a task without a verifier": (["demo", "--task", "perplexity"], "judge"),
        "a verifier that is not there": (["demo", "--verifier", "no.py:f"], "no such file of code"),
        "an answer that is no number": ([odd, "--verifier", "number"], "no single number"),
        "a verifier that is none": ([at_file(tmp_path), "--verifier", "numbr"], "number"),
        "no questions": (["demo", "--n", "0"], "--n"),
        "a file that is not there": (["/no/such.jsonl", "--verifier", "number"], "/no/such.jsonl"),
        "cold": (["demo", "--temperature", "0"], "temperature"),
        "settings that are a list": (None, "no mapping"),
    }
    (tmp_path / "list.yaml").write_text("- 1")
    for name, (more, word) in bad.items():
        given = ["generate", "demo", tmp_path / "no.jsonl", "--data", *more] if more else [
            "tune", "cpt", "demo", tmp_path / "no", "--data", out, "--config", tmp_path / "list.yaml"]  # fmt: skip
        code, _, err = call(capsys, *given)
        assert (code, word in err, "Traceback" in err) == (2, True, False), (name, err)
    assert not (tmp_path / "no.jsonl").exists()


def at_file(folder):
    (folder / "own.jsonl").write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n")
    return folder / "own.jsonl"


def test_inspect_without_weights(capsys, tmp_path):
    """An 8B config: no weights on the disk at all, and no import of torch (a fresh process is timed)."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
              "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, _ = call(capsys, "inspect", tmp_path, "--target", 0.6, "--json")
    assert code == 0
    seen = json.loads(out)
    assert seen["params"] == 8_030_261_248
    assert seen["steps"][-1]["params"] <= 0.6 * seen["params"]
    assert seen["gpus_to_train"] >= 2
    assert json.loads(call(capsys, "inspect", tmp_path, "--target", "60%", "--json")[1])["steps"] == seen["steps"]
    code, _, err = call(capsys, "inspect", tmp_path, "--target", "4GB")
    assert code == 2 and "--dry-run" in err
    seconds, _ = cpu_seconds("inspect", tmp_path)
    assert seconds < 1  # the bar is 5 s of wall time
    (tmp_path / "config.json").write_text("[]")
    code, _, err = call(capsys, "inspect", tmp_path)
    assert code == 2 and "no mapping" in err
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    code, _, err = call(capsys, "inspect", tmp_path)
    assert code == 2 and "hidden_size of this config" in err


def test_a_user_s_mistake_is_one_message_and_exit_2(capsys, at, tmp_path):
    """Every mistake of issue 2's list: one message that names value and cure, exit 2, no traceback."""
    recipe = yaml.safe_load((at / "recipe.yaml").read_text())

    def with_(**changes):
        path = tmp_path / f"r{len(list(tmp_path.glob('r*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}))
        return path

    moe = tmp_path / "moe"
    moe.mkdir()
    (moe / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", "n_routed_experts": 8}))
    (moe / "model.safetensors").write_bytes(b"")
    other = tmp_path / "gpt2"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (other / "model.safetensors").write_bytes(b"")
    broken = tiny_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-500])
    (tmp_path / "file").write_text("")
    data = [{"type": "file", "path": str(at / "rows.jsonl")}]
    prune = recipe["prune"]
    mistakes = {
        "family": (["inspect", other], "families: "),
        "mixture of experts": (["inspect", moe], "mixture of experts"),
        "criterion": (["run", with_(score={"criterion": "contributon"})], "contribution"),
        "criterion of score": (["score", at / "model", "--data", at / "rows.jsonl", "--out", tmp_path / "s", "--criterion", "x"], "contribution"),
        "recipe key": (["run", with_(modle=1)], "model"),
        "recipe": (["run", "dmo"], "demo"),
        "recipe with a folder": (["run", "papr/llama3-8b"], "did you mean 'paper/llama3-8b'"),
        "a recipe is no model": (["inspect", "paper/llama3-8b"], "prunetune run paper/llama3-8b --dry-run"),
        "data column": (["run", with_(data=[{**data[0], "columns": {"question": "quest", "answer": "answer"}}])], "quest"),
        "target above 1": (["run", with_(prune={**prune, "target": 1.5})], "between 0 and 1"),
        "the whole model": (["run", with_(prune={**prune, "target": "100%", "layers": 0})], "nothing would be removed"),
        "the whole model, dry": (["run", with_(prune={**prune, "target": 1.0, "layers": 0}), "--dry-run"], "such as 0.6"),
        "target below what is possible": (["run", with_(prune={**prune, "target": 0.01})], "at least"),
        "missing data file": (["run", with_(data=[{"type": "file", "path": "/no/such.jsonl"}])], "/no/such.jsonl"),
        "missing model": (["run", with_(model="/no/such/model")], "/no/such/model"),
        "missing plan": (["apply", tmp_path / "none.json", at / "model", tmp_path / "o"], "none.json"),
        "missing run": (["report", tmp_path / "none"], "none"),
        "truncated shard": (["run", with_(model=str(broken))], "truncated"),
        "unwritable folder": (["run", at / "recipe.yaml", "--out", tmp_path / "file" / "run"], "written"),
        "method": (["tune", "cptt", at / "model", tmp_path / "o", "--data", at / "rows.jsonl"], "cpt"),
        "task": (["eval", at / "model", "--task", "gsm9k"], "gsm8k"),
        "neither recipe nor model": (["run"], "--model"),
        "task of a recipe": (["run", with_(evaluate={"tasks": [{"name": "gms8k"}]}), "--dry-run"], "gsm8k"),
        "data of a dry run": (["run", with_(data=[{"type": "file", "path": "/no/such.jsonl"}]), "--dry-run"], "/no/such.jsonl"),
        "too little data": (["run", with_(score={"samples": 500}), "--dry-run"], "score.samples"),
        "preset": (["run", "--model", "demo", "--data", "preset:gsm9k", "--target", "0.6", "--dry-run"], "gsm8k"),
        "per cent": (["run", with_(prune={**prune, "target": 60}), "--dry-run"], "0.6"),
        "an option out of range": (["inspect", at / "model", "--target", "-0.5"], "above 0"),
        "no problems": (["eval", at / "model", "--task", "demo", "--n", "0"], "greater than 0"),
        "device": (["score", at / "model", "--data", at / "rows.jsonl", "--out", tmp_path / "s", "--device", "tpu"], "cuda"),
        "a plan that is none": (["apply", at / "model" / "model.safetensors", at / "model", tmp_path / "o"], "JSON"),
        "an empty plan": (["plan", tmp_path / "none.safetensors", "--out", tmp_path / "p"], "none.safetensors"),
        "gpu": (["inspect", at / "model", "--gpu", "H1000"], "H100"),
        "unknown option": (["run", "--spede", "1"], "--spede"),
        "data without a name": (["eval", at / "model", "--task", "gsm8k", "--data", "/some/folder"], "NAME=PATH"),
        "data of no task": (["eval", at / "model", "--task", "sums", "--path", at / "rows.jsonl", "--verifier", "number", "--data", "gsm8k=x"], "gsm8k"),
        "lm-eval without a name": (["eval", at / "model", "--task", "lm-eval:"], "lm-eval:NAME"),
        "lm-eval's data": (["eval", at / "model", "--task", "lm-eval:gsm8k", "--data", "gsm8k=/no/such"], "/no/such"),
        "code without permission": (["eval", at / "model", "--task", "lm-eval:mbpp", "--data", "mbpp=x"], "--allow-code-execution"),
        "code without permission, ours": (["eval", at / "model", "--task", "mbpp", "--path", "x"], "--allow-code-execution"),
        "perplexity of nothing": (["eval", at / "model", "--task", "perplexity"], "text file"),
        "backend": (["eval", at / "model", "--task", "demo", "--backend", "vlm"], "vllm"),
        "backend for lm-eval alone": (["eval", at / "model", "--task", "demo", "--backend", "vllm"], "lm-eval:NAME"),
        "chat without a template": (["eval", at / "model", "--task", "demo", "--n", 1, "--chat"], "no chat template"),
    }  # fmt: skip
    for number, (name, (args, says)) in enumerate(mistakes.items()):
        extra = (
            ["--out", tmp_path / f"out{number}"]
            if args[0] == "run" and "--out" not in args and "--spede" not in args
            else []
        )
        code, _, err = call(capsys, *args, *extra)
        assert code == 2, (name, err)
        assert says in err, (name, err)
        assert "Traceback" not in err, name


def test_a_recipe_that_would_change_bytes_already_made(capsys, at):
    out = at / "changed"
    value = yaml.safe_load((at / "recipe.yaml").read_text())
    value["prune"]["target"] = 0.9
    value["prune"]["layers"] = 0
    (at / "first.yaml").write_text(yaml.safe_dump(value))
    assert call(capsys, "run", at / "first.yaml", "--out", out, "--json")[0] == 0
    before = {p: p.read_bytes() for p in out.rglob("*.json")}
    (at / "second.yaml").write_text(yaml.safe_dump({**value, "seed": 3}))
    code, _, err = call(capsys, "run", at / "second.yaml", "--out", out)
    assert code == 2
    assert "seed: 0 -> 3" in err
    assert {p: p.read_bytes() for p in out.rglob("*.json")} == before


def test_final_loads_where_prunetune_is_not_importable(at):
    """Plain transformers in a process that cannot import us generates the same tokens."""
    out = at / "changed" / "final"
    if not out.is_dir():
        pytest.fail("the test before did not leave a final model")
    code = (
        "import sys, json\n"
        "class Block:\n    def find_spec(self, name, path=None, target=None):\n        if name.split('.')[0] == 'prunetune': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "t, m = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "try:\n    import prunetune\n    sys.exit('prunetune could be imported')\nexcept ImportError: pass\n"
        "i = t('12+3', return_tensors='pt').input_ids\nprint(json.dumps(m.generate(i, max_new_tokens=12, do_sample=False)[0].tolist()))\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    ids = tokenizer("12+3", return_tensors="pt").input_ids
    assert json.loads(child.stdout) == model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()


def test_an_interrupted_run_says_how_it_goes_on(capsys, at, tmp_path, monkeypatch):
    from prunetune.loop import loop

    monkeypatch.setattr(loop, "prune_tune_loop", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = call(capsys, "run", at / "recipe.yaml", "--out", tmp_path / "out")
    assert code == 130 and "interrupted by Ctrl-C; the same command continues" in err


def test_parse_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").write_text("")
    kinds = {
        "demo": "demo", "generator:gsm_symbolic": "generator", "preset:math-cot": "preset", "rows.jsonl": "file",
        "here": "file", "$X/train.parquet": "file", "openai/gsm8k": "hub",
    }  # fmt: skip
    assert {k: parse_data(k)["type"] for k in kinds} == kinds


def test_console_script_is_installed():
    assert shutil.which("prunetune", path=str(Path(sys.executable).parent))
