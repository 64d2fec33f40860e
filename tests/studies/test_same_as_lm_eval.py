"""The comparison with the bare `lm_eval` command, end to end on a tiny model: it agrees, and it sees what differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import brief_folder
from tests.tiny_run import rows

pytest.importorskip("lm_eval")
STUDY = Path(__file__).parents[2] / "studies" / "lib" / "same_as_lm_eval.py"


@pytest.mark.thorough
@pytest.mark.slow
def test_it_agrees_and_sees_what_differs(tmp_path: Path) -> None:
    model = brief_folder(tmp_path / "model")
    for split in ("train", "test"):
        rows(tmp_path / f"{split}.jsonl", 8)
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(STUDY),
        "--model",
        str(model),
        "--data",
        str(tmp_path),
        "--limit",
        "2",
        "--batch",
        "1",
    ]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    same = "2 questions: 2 equal prompts, 2 equal outputs, 2 equal answers, 2 equal verdicts; 0 right"
    assert same in done.stdout
    (log,) = out.rglob("samples_gsm8k_*.jsonl")
    assert list(out.rglob("cache*")), "lm-eval keeps its answers too"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    changed = next(s for s in lines if s["filter"] == "strict-match" and s["doc_id"] == 1)
    changed["exact_match"] = 1.0
    log.write_text("".join(json.dumps(s) + "\n" for s in lines))
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "verdicts differ on gsm8k/1" in done.stdout, "reused, and compared anew"
