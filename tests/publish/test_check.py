from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from tests.fake_run import fake_run
from tests.tiny import tiny_folder

from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.publish import check as module
from prunetune.publish.check import Line, check


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = fake_run(tmp_path_factory.mktemp("run"), tasks={"demo": 4}, control=False)
    tiny_folder(at / "final")
    return at


@pytest.fixture(scope="module")
def lines(folder) -> dict[str, Line]:
    return {line.name: line for line in check(folder)}


def test_every_place_has_a_line(lines) -> None:
    assert list(lines) == ["plain transformers", "vLLM", "GGUF and llama.cpp", "dynamic int8"]


def test_plain_transformers_without_prunetune(lines) -> None:
    line = lines["plain transformers"]
    assert line.ok, line.reason
    assert "generates the same" in line.reason


def test_int8(lines) -> None:
    line = lines["dynamic int8"]
    assert line.ok, line.reason
    assert "% of next tokens" in line.reason


def test_other_tokens_are_a_no(folder, monkeypatch) -> None:
    monkeypatch.setattr(module, "_child", lambda script, **_: {"tokens": [1, 2, 3], "prunetune": False})
    line = module._transformers(folder / "final", "Question: 1 + 1?\nAnswer:")
    assert line.ok is False
    assert "other tokens" in line.reason


def test_a_child_cannot_import_prunetune() -> None:
    script = module._ISOLATED.partition("warnings.simplefilter")[0]
    assert module._child(script + "done('prunetune' in sys.modules)") is False
    with pytest.raises(module._ChildError, match="not importable here"):
        module._child(script + "import prunetune.models.folders")


def test_a_child_that_fails_or_hangs_is_a_reason(monkeypatch) -> None:
    with pytest.raises(module._ChildError, match="ValueError: what went wrong"):
        module._child("raise ValueError('what went wrong')")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    with pytest.raises(module._ChildError, match=r"no answer within 0\.5 s"):
        module._child("import time; time.sleep(60)")


@pytest.mark.parametrize("name", ["_transformers", "_int8"])
def test_a_failed_child_is_a_no(folder, monkeypatch, name) -> None:
    def fail(script: str, **_: object) -> None:
        raise module._ChildError("OSError: no tokenizer")

    monkeypatch.setattr(module, "_child", fail)
    line = getattr(module, name)(folder / "final", "1 + 1")
    assert (line.ok, line.reason) == (False, "OSError: no tokenizer")


def _tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(body)
    (folder / name).chmod(stat.S_IRWXU)


CONVERT = "import sys, pathlib\npathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_bytes(b'GGUF' * 9)\n"


def test_llama_cpp_is_used_where_it_is(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setenv("PATH", os.defpath)
    line = module._gguf(folder / "final", "1 + 1")
    assert (line.ok, "convert_hf_to_gguf.py" in line.reason) == (None, True)

    _tool(tmp_path, "convert_hf_to_gguf.py", CONVERT)
    line = module._gguf(folder / "final", "1 + 1")
    assert (line.ok, "llama-completion" in line.reason) == (None, True)

    _tool(tmp_path / "build/bin", "llama-completion", f"#!{sys.executable}\nprint(' 2')\n")
    line = module._gguf(folder / "final", "1 + 1")
    assert line.ok, line.reason
    assert "answered: '2'" in line.reason

    _tool(tmp_path / "build/bin", "llama-completion", f"#!{sys.executable}\nprint()\n")
    assert module._gguf(folder / "final", "1 + 1").ok is False

    _tool(tmp_path, "convert_hf_to_gguf.py", "raise SystemExit('unknown architecture')\n")
    line = module._gguf(folder / "final", "1 + 1")
    assert (line.ok, line.reason) == (False, "unknown architecture")


def test_a_llama_cpp_binding_will_do(folder, tmp_path, monkeypatch) -> None:
    _tool(tmp_path / "llama", "convert_hf_to_gguf.py", CONVERT)
    (tmp_path / "xllamacpp.py").write_text(
        "from types import SimpleNamespace\n"
        "def CommonParams():\n    return SimpleNamespace(model=SimpleNamespace())\n"
        "class Server:\n"
        "    def __init__(self, params):\n        open(params.model.path).close()\n"
        "    def handle_completions(self, ask):\n"
        "        print('noise')\n        return {'choices': [{'text': ask['prompt'] + ' is 2'}]}\n"
    )
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama"))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    line = module._gguf(folder / "final", "1 + 1")
    assert line.ok, line.reason
    assert "'1 + 1 is 2'" in line.reason


def test_vllm_is_asked_where_it_is(folder, tmp_path, monkeypatch) -> None:
    assert module._vllm(folder / "final", "").ok is None
    package = tmp_path / "vllm" / "engine"
    package.mkdir(parents=True)
    (tmp_path / "vllm/__init__.py").touch()
    (package / "__init__.py").touch()
    answer = "class EngineArgs:\n    def __init__(self, **k): pass\n    def create_model_config(self):\n        {}\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (package / "arg_utils.py").write_text(
        answer.format("return type('C', (), {'architectures': ['LlamaForCausalLM']})")
    )
    line = module._vllm(folder / "final", "")
    assert (line.ok, "LlamaForCausalLM" in line.reason) == (True, True)
    (package / "arg_utils.py").write_text(answer.format("raise ValueError('not supported')"))
    line = module._vllm(folder / "final", "")
    assert (line.ok, line.reason) == (False, "ValueError: not supported")


def test_lines_read_well() -> None:
    assert str(Line("a", True, "b")) == "yes           a: b"
    assert str(Line("a", None, "b")) == "not installed a: b"
    assert Line("a", False, "b").to_json() == {"name": "a", "ok": False, "reason": "b"}


def test_nothing_to_check(tmp_path) -> None:
    with pytest.raises(MissingPath, match="no final model yet"):
        check(fake_run(tmp_path / "half", finished=False))
    at = fake_run(tmp_path / "run", tasks={"demo": 4}, control=False)
    (at / "final/pytorch_model.bin").touch()
    with pytest.raises(BadCheckpoint, match="pickles"):
        check(at)
