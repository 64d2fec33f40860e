"""Every option of every command, given what it cannot be: one message, exit code 2, at once, and nothing written.

The tables are complete: an option that is not in them fails `test_every_option_is_tried`.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.fake_run import fake_run
from tests.fuzz.test_readers import PLAN
from tests.tiny import tiny_folder

from prunetune.cli import app

COUNT = ["x", "", "1.5", "nan", "-1", "0", "9" * 30]
FROM_ZERO = ["x", "", "1.5", "nan", "-1", "9" * 30]
SEED = ["x", "1.5", "-1", str(2**32), "9" * 30]
SHARE = ["x", "nan", "inf", "-0.1", "1.1"]
POSITIVE = ["x", "nan", "inf", "-1", "0"]
SIZE = ["x", "nan", "inf", "-1", "0", "0%", "-5%", "1x", "0GB", "%"]
AMOUNT = ["x", "nan", "inf", "-1", "0", "0%", "-5%", "3X", "%"]
WORD = ["nonsense", "\x1b[2J", "x" * 3000, "é\u202e"]
FILE = ["missing", "a folder", "empty", "junk"]
MODEL = ["missing", "junk.json", "empty folder", "junk.gguf"]
DATA = ["missing.jsonl", "empty.jsonl", "junk.jsonl", "preset:none", "generator:none"]
RUN = ["missing", "empty folder", "junk"]
FREE = [
    "out",
    "as_json",
    "as_markdown",
    "dry_run",
    "yes",
    "chat",
    "allow_code_execution",
    "upload",
    "private",
    "word",
    "figure",
    "file",
]
"""Flags, free text, and outputs, which `test_outputs` tries."""

COLUMNS = ["nonsense", "=", "question=nope,answer=nope", "x=question"]
BAD: dict[str, dict[str, list[str]]] = {
    "run": {
        "recipe": ["missing.yaml", "junk", "a folder", "no-such-recipe"], "model": MODEL, "data": DATA, "target": SIZE, "step": POSITIVE,
        "tokens": AMOUNT, "keep": ["x", "nan", "-1", "0", "101%"], "budget": ["x", "-1", "0", "0h"], "vocabulary": COUNT, "ladder": ["x", "", "0.8,0.9", "nan,0.5", "1.2,0.5", "0.8,0.8", "-0.5"], "rival": ["junk.json", "junk.gguf", "empty folder"], "task": ["nonsense", "nonsense=rows.jsonl", "squad=missing"], "verifier": WORD, "n": COUNT, "seed": SEED,
        "device": WORD, "launcher": ["nonsense", "--config_file missing", "'"], "sets": ["nonsense", "no.such=1", "seed=[", "seed=x", "=1", "prune.target=-1"],
    },
    "init": {
        "model": [""], "data": ["preset:none", "generator:none"], "target": SIZE, "tokens": AMOUNT, "keep": ["x", "0", "101%"], "budget": ["x", "0", "0h"], "vocabulary": COUNT, "ladder": ["x", "0.8,0.9", "1.2,0.5"], "rival": [""], "task": ["nonsense"],
        "verifier": WORD, "n": COUNT, "seed": SEED, "device": WORD, "launcher": ["nonsense", "'"], "sets": ["nonsense", "no.such=1", "seed=x"],
    },
    "keys": {}, "family": {"model": MODEL},
    "inspect": {"model": MODEL, "target": POSITIVE, "step": [*POSITIVE, "1.5"], "gpu": WORD, "tokens": COUNT},
    "score": {
        "model": MODEL, "data": DATA, "criterion": WORD, "reduce": [*WORD, "q101", "qx"], "layer_criterion": WORD, "samples": COUNT,
        "max_length": [*COUNT, "1"], "seed": SEED, "device": [*WORD, "cuda"], "axis": WORD, "launcher": ["nonsense", "--config_file missing", "'"],
    },
    "plan": {"scores": FILE, "neurons": [*FROM_ZERO, "48", "99"], "layers": [*FROM_ZERO, "4"], "protect": FILE, "protect_share": SHARE, "cut": WORD},
    "vocabulary": {"model": MODEL, "data": DATA, "guard": DATA, "measure": DATA, "keep": COUNT, "align": COUNT},
    "watch": {"run": ["missing", "junk"]},
    "runs": {"folder": ["missing", "junk"]},
    "compensate": {"plan": FILE, "model": MODEL, "data": DATA, "target": WORD, "samples": [*COUNT, "1"], "max_length": COUNT, "seed": SEED, "device": WORD, "launcher": ["nonsense", "--config_file missing", "'"]},
    "apply": {"plan": FILE, "model": MODEL, "patch": FILE},
    "tune": {
        "method": WORD, "model": MODEL, "data": DATA, "config": ["missing", "a folder", "junk", "list.yaml", "bad.yaml"], "tokens": COUNT, "samples": COUNT,
        "task": WORD, "verifier": WORD, "teacher": MODEL, "launcher": ["nonsense", "'"], "seed": SEED, "device": WORD, "plan": FILE,
    },
    "generate": {
        "model": MODEL, "data": DATA, "task": WORD, "verifier": WORD, "samples_per_question": COUNT, "keep": COUNT, "n": COUNT,
        "temperature": POSITIVE, "max_new_tokens": COUNT, "batch_size": COUNT, "seed": SEED, "device": WORD,
    },
    "eval": {
        "model": MODEL, "task": [*WORD, "lm-eval:", "reasoning-gym:none"], "n": COUNT, "data": ["nonsense", "=x", "gsm8k=missing"], "path": ["missing", "empty.jsonl", "junk.jsonl"],
        "verifier": WORD, "batch_size": COUNT, "shots": FROM_ZERO, "backend": WORD, "seed": SEED, "device": WORD, "launcher": ["nonsense", "--config_file missing", "'"],
    },
    "report": {"run": RUN},
    "compare": {"runs": RUN, "form": WORD},
    "check": {"run": RUN},
    "export": {"run": RUN, "to": WORD, "quantize": WORD, "text": ["missing", "a folder", "empty"], "converter": ["missing", "a folder"]},
    "push": {"run": RUN, "repo": ["", "no slash", "a/b/c", "../x", "\x1b[2J/x"]},
}  # fmt: skip
ARGUMENTS = {
    "vocabulary": ["model", "out"], "watch": ["run"], "runs": ["folder"],
    "inspect": ["model"], "family": ["model"], "score": ["model"], "plan": ["scores"], "compensate": ["plan", "model"], "apply": ["plan", "model", "out"],
    "tune": ["method", "model", "out"], "generate": ["model", "out"], "eval": ["model"], "report": ["run"], "compare": ["runs"], "check": ["run"], "export": ["run"],
    "push": ["run", "repo"], "run": ["recipe"], "init": ["file"], "keys": ["word"],
}  # fmt: skip
NAMES = {"sets": "set", "form": "format"}
GOOD: dict[str, dict[str, str]] = {
    "run": {"model": "model", "data": "rows.jsonl", "target": "0.8", "dry_run": "", "out": "out"},
    "init": {"file": "out.yaml", "model": "demo", "data": "demo", "target": "0.8"},
    "inspect": {"model": "model", "target": "0.8"},
    "score": {"model": "model", "data": "rows.jsonl", "out": "out", "samples": "4"},
    "plan": {"scores": "scores.safetensors", "out": "out", "neurons": "2"},
    "compensate": {"plan": "plan.json", "model": "model", "data": "rows.jsonl", "out": "out"},
    "apply": {"plan": "plan.json", "model": "model", "out": "out"},
    "vocabulary": {"model": "model", "data": "rows.jsonl", "out": "out"}, "watch": {"once": ""}, "runs": {},
    "tune": {"method": "cpt", "model": "model", "out": "out", "data": "rows.jsonl", "samples": "8"},
    "generate": {"model": "model", "out": "out", "data": "rows.jsonl", "verifier": "number"},
    "eval": {"model": "model", "task": "own", "path": "rows.jsonl", "verifier": "number", "n": "1"},
    "report": {}, "check": {}, "export": {"run": "model", "out": "out"}, "compare": {"runs": "run"}, "push": {"run": "run", "repo": "me/x"}, "keys": {}, "family": {"model": "model"},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs, and files that are not what they should be."""
    import torch

    from prunetune.models.folders import model_sha
    from prunetune.pruning.scores import Scores

    at = tmp_path_factory.mktemp("options")
    tiny_folder(at / "model")
    fake_run(at / "run", tasks={"demo": 8}, control=False)
    sha = model_sha(at / "model")
    rows = [{"question": f"What is {i} + 2?", "answer": f"#### {i + 2}"} for i in range(400)]
    (at / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (at / "plan.json").write_text(json.dumps({**PLAN, "model_sha": sha, "depth": 4, "width": 48}))
    Scores(torch.rand(4, 48), torch.rand(4), torch.rand(4), "contribution-mean", "l2", sha, "x", 9).write(
        at / "scores.safetensors"
    )
    for name in ("a folder", "empty folder"):
        (at / name).mkdir()
    for name in ("empty", "empty.jsonl"):
        (at / name).write_text("")
    for name in ("junk", "junk.jsonl", "junk.json", "junk.gguf"):
        (at / name).write_bytes(b"\x80\x00junk\xff" * 50)
    (at / "list.yaml").write_text("- 1")
    (at / "bad.yaml").write_text("learning_rate: fast")
    return at


def words(command: str, values: dict[str, str]) -> list[str]:
    """Argv of a command; options before its arguments."""
    before = [w for k, v in values.items() if k not in ARGUMENTS[command] for w in option(k, v)]
    return [command, *before, "--", *(values[k] for k in ARGUMENTS[command] if k in values)]


def option(name: str, value: str) -> list[str]:
    flag = f"--{NAMES.get(name, name).replace('_', '-')}"
    return [flag] if name in ("dry_run",) else [f"{flag}={value}"]


for _command, _function in app.COMMANDS.items():
    if "columns" in inspect.signature(_function).parameters:
        BAD[_command]["columns"] = COLUMNS


def cases() -> list[Any]:
    return [pytest.param(command, name, id=f"{command} {name}") for command, options in BAD.items() for name in options]


@pytest.mark.parametrize(("command", "name"), cases())
def test_a_bad_value_is_one_message(
    command: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before, wrong = {p for p in place.rglob("*")}, []
    for bad in BAD[command][name]:
        values = {**GOOD[command], name: bad}
        if command == "run" and name == "recipe":
            values = {"recipe": bad, "out": "out"}
        if (command, name) == ("eval", "data"):
            values = {"model": "model", "task": "gsm8k", "data": bad}
        if (command, name) == ("eval", "task"):
            values = {"model": "model", "task": bad}
        if command in ("generate", "run", "init") and name == "task":
            values.pop("verifier", None)
        monkeypatch.setattr(sys, "argv", ["prunetune", *words(command, values)])
        start = time.process_time()
        with pytest.raises(SystemExit) as left:
            app.main()
        seconds = time.process_time() - start
        out, said = capsys.readouterr()
        if left.value.code != 2 or "Traceback" in said or out.strip() or seconds > 8 or "\x1b[2J" in said:
            wrong.append((bad[:40], left.value.code, round(seconds, 1), said[-300:]))
        made = {p for p in place.rglob("*")} - before
        if made:
            wrong.append((bad[:40], "made", sorted(made)))
            before |= made
    assert not wrong, "\n".join(map(str, wrong))


def test_every_option_is_tried() -> None:
    for command, function in app.COMMANDS.items():
        options = inspect.signature(function).parameters
        flags = {name for name, option in options.items() if isinstance(option.default, bool)}
        unknown = set(options) - flags - set(FREE) - set(BAD[command])
        assert not unknown, f"{command}: {sorted(unknown)}"
