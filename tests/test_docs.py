"""The pages say what is so: commands parse, recipes too, examples run, tables name what there is."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
from typing import Any

import pytest
import typer
import yaml
from tests.pages import PAGES, ROOT, blocks, builder, commands, parse
from tests.tiny import tiny_folder

import prunetune
from prunetune import errors
from prunetune.cli.app import COMMANDS, app
from prunetune.common import plugins
from prunetune.data.demo.problems import problems
from prunetune.models.axes import AXES
from prunetune.models.families import FAMILIES
from prunetune.recipe.schema import Recipe

OFFLINE = (
    "prunetune inspect demo --target 0.5",
    "prunetune init recipe.yaml --model demo --data demo --target 0.5",
    "prunetune run recipe.yaml --out runs/mine --dry-run",
    "prunetune run paper/llama3-8b --dry-run",
    "prunetune run paper/llama3-8b-code --dry-run",
    "prunetune run paper/qwen2.5-7b-ct-rl --dry-run",
    "prunetune score demo --data demo --criterion magnitude --samples 64 --out scores.safetensors",
    "prunetune plan scores.safetensors --neurons 256 --out plan.json",
    "prunetune family demo",
)
"""Commands of the pages that need nothing but the package, in an order in which they run."""


def test_every_command_of_the_pages_is_one():
    found = commands()
    assert len(found) > 50
    for _, line in found:
        parse(line)


@pytest.mark.parametrize(
    "line",
    ["prunetune run r.yaml --no-such", "prunetune prun x", "make toast", "pip install -e '.[nothing]'", "frobnicate"],
)
def test_a_command_that_is_none_is_seen(line):
    with pytest.raises(BaseException):  # noqa: B017
        parse(line)


def unknown(text: str, said: str) -> list[str]:
    """What a command in a line of text names that is not there; `said` are the words around it, a comment's too."""
    program, *words = (w for w in text.split() if w not in ("--verbose", "--quiet"))
    if program == "make":
        return [w for w in words[:1] if f"\n{w}:" not in (ROOT / "Makefile").read_text()]
    if program.endswith("python"):
        script = next((w for w in words if w.endswith(".py") and "/" in w), None)
        if script is None:
            return []
        source = (ROOT / script).read_text() if (ROOT / script).is_file() else ""
        return [o for o in re.findall(r"(?<!\S)--[a-z][a-z-]+", said) if f'"{o}"' not in source] if source else [script]
    if words[0] in ("…", "...", "--help", "--version"):
        return []
    if words[0] not in COMMANDS:
        return [words[0]]
    params = typer.main.get_command(app).commands[words[0]].params
    known = {"--help", *(o for p in params for o in (*p.opts, *p.secondary_opts))}
    return [o for o in re.findall(r"(?<![\S'])--[a-z][a-z-]+", said) if o not in known]


def test_commands_between_the_lines_are_commands_too():
    """Their options, scripts and targets as well; and the options that a comment beside a command names."""
    inline = re.compile(r"`(?:[A-Z_]+=\S+ )*(?:\S*/)?((?:prunetune|python|make) [^`]+)`")
    seen = 0
    for page in [*PAGES, ROOT / "SECURITY.md"]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for code in inline.findall(text):
            seen += 1
            assert unknown(code, re.sub(r"--(launcher|set) \S+|'[^']*'", "", code)) == [], f"{page.name}: {code}"
    for name, line in commands():
        command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
        if command.startswith(("prunetune", "python")):
            assert unknown(command, re.sub(r"'[^']*'", "", command).replace(";", " ")) == [], f"{name}: {line}"
    assert seen > 60


@pytest.mark.parametrize(
    "line",
    [
        "prunetune push RUN OWNER/NAME --uploadx",
        "prunetune prun RUN",
        "make toast",
        "python studies/speed/gone.py",
        "python studies/speed/exports.py --modelx cut",
        "prunetune push runs/mine OWNER/NAME  # --uploadx sends it",
    ],
)
def test_a_wrong_word_between_the_lines_is_seen(line):
    assert unknown(line, line) != []


def test_what_needs_a_hub_or_a_gpu_says_so():
    for page, line in commands():
        command, _, comment = line.partition("#")
        if not command.startswith("prunetune"):
            continue
        if re.search(r"preset:|(?<!\$)\b[A-Z]\w*/[\w.-]+|lm-eval:", command):
            assert "hub" in comment or "docs/evaluation.md" in comment, f"{page}: {line}"
        if re.search(r"vllm|--launcher '(?!--cpu)", command):
            assert "GPU" in comment, f"{page}: {line}"


@pytest.mark.slow
def test_the_pages_commands_run(tmp_path, monkeypatch, capsys):
    shown = {" ".join(shlex.split(line, comments=True)) for _, line in commands()}
    monkeypatch.chdir(tmp_path)
    for line in OFFLINE:
        words = shlex.split(line)
        assert " ".join(words) in shown, f"no page shows this any more: {line}"
        with pytest.raises(SystemExit) as ended:
            app(args=words[1:])
        assert ended.value.code in (0, None), (line, capsys.readouterr())
    assert json.loads((tmp_path / "plan.json").read_text())


@pytest.mark.slow
@pytest.mark.thorough
def test_the_guide_s_round_by_hand_runs(tmp_path, monkeypatch, capsys):
    """Its commands as they stand, one after another; `MODEL` is the demo's, and the tokens are fewer."""
    (block,) = [b for b in blocks(ROOT / "docs/guide.md", "sh") if "prunetune score MODEL" in b]
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    assert "lm-eval:mbpp" in lines.pop(), "the last one needs a hub"
    monkeypatch.chdir(tmp_path)
    rows = [{"question": q, "answer": a} for q, a in problems(24, 0, "train")]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "other.txt").write_text("12+3-4\n" * 50)
    (tmp_path / "judge.py").write_text(
        "def right(output, reference):\n    return output.split()[-1:] == reference.split()[-1:]\n"
    )
    for line in lines:
        words = shlex.split(line.replace("MODEL", "demo").replace("--tokens 1000000", "--tokens 1500"))
        with pytest.raises(SystemExit) as ended:
            app(args=words[1:])
        assert ended.value.code in (0, None), (line, capsys.readouterr())
    assert len(lines) >= 8 and (tmp_path / "best/config.json").is_file()


def test_the_recipes_of_the_pages_are_valid(tmp_path):
    least = {"model": "demo", "data": [{"type": "demo", "size": 100}], "prune": {"target": 0.6}}
    checked = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            texts = block.splitlines() if len(re.findall(r"^launcher:", block, re.M)) > 1 else [block]
            for text in texts:
                Recipe.parse({**least, **yaml.safe_load(text)}, page.name)
                checked += 1
    assert checked >= 8


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    """The three lines as they stand, on a tiny model; and the README fits a screen."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    (block,) = blocks(ROOT / "README.md", "python")
    assert sum(map(bool, block.splitlines())) == 3
    tiny_folder(tmp_path / "my-model", max_position_embeddings=256)
    rows = [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}"} for i in range(400)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), space)  # our own README
    written = json.loads((tmp_path / "runs/mine/final/config.json").read_text())
    assert (tmp_path / "runs/mine/final/tokenizer_config.json").is_file() and (
        tmp_path / "runs/mine/report.html"
    ).is_file()
    assert written["intermediate_size"] == space["small"].config.intermediate_size
    assert (
        written["intermediate_size"] < json.loads((tmp_path / "my-model/config.json").read_text())["intermediate_size"]
    )


def test_the_guide_s_python_runs(tmp_path, monkeypatch):
    """Its ten lines as they stand, on a tiny model; the line that makes a whole run is the README's, run above."""
    (block,) = blocks(ROOT / "docs/guide.md", "python")
    assert sum(map(bool, block.splitlines())) == 10
    asked = inspect.signature(prunetune.compact)
    runs: list[Any] = []
    monkeypatch.setattr(prunetune, "compact", lambda *a, **k: runs.append(asked.bind(*a, **k)), raising=False)
    tiny_folder(tmp_path / "my-model", max_position_embeddings=256)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(block, "guide.md", "exec"), space)  # our own page
    assert [run.arguments["target"] for run in runs] == [0.6]
    whole, small = space["model"], space["small"]
    assert type(small) is type(whole) and small.config.intermediate_size == whole.config.intermediate_size - 16
    assert [p.name for p in tmp_path.iterdir()] == ["my-model"], "no run folder"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Every cell, in order; compensation keeps what a bare cut loses."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for cell in json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are made by `make docs`"
            exec(compile("".join(cell["source"]), "notebook.ipynb", "exec"), space)
    right = space["right"]
    assert right["cut and compensated"] > right["cut, not compensated"]
    assert "parameters" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_examples_of_extending_run(monkeypatch):
    monkeypatch.setattr(plugins, "_REGISTERED", {})
    for block in blocks(ROOT / "docs/extend.md", "python"):
        exec(compile(block, "extend.md", "exec"), {})
    assert "mine" in plugins.names("criterion")
    kinds = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/extend.md").read_text(), re.M)
    assert kinds == list(plugins.KINDS)


def test_every_error_is_told_once():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    classes = [n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.PrunetuneError)]
    classes.remove("PrunetuneError")
    assert (
        sorted(re.findall(r"^## (\w+)$", page, re.M))
        == sorted(re.findall(r"<!-- messages: (\w+) -->", page))
        == sorted(classes)
    )
    found = builder().messages()
    assert all(found[name] for name in classes)
    assert ("unknown device", "") in found["UnknownName"]
    assert sum(map(len, found.values())) > 300


def test_the_page_of_families_is_as_its_command_makes_it():
    spec = importlib.util.spec_from_file_location("families_page", ROOT / "docs/families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/families.md").read_text() == module.page(), "make families"
    assert {*module.HELD, *module.MIXED} >= {"vocabulary", "cpt", "sft", "distill", "grpo", *AXES}, (
        "a new axis: say in docs/families.py what it cuts"
    )
    for _, test in (*module.HELD.values(), *module.MIXED.values(), *module.WRAPPED.values()):
        assert (ROOT / test).is_file()


def test_every_family_is_told():
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", (ROOT / "docs/concepts.md").read_text(), re.M)
    said = {name: note.strip() for name, note in rows if name in FAMILIES}
    assert list(said) == list(FAMILIES)
    words = {0: "", 2: "layers go in pairs", 4: "layers go in fours", 6: "layers go in sixes"}
    assert all(
        words[f.period] in said[name] and (f.period or "layers" not in said[name]) for name, f in FAMILIES.items()
    )
