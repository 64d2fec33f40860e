"""Scripts in processes of their own, so that an engine that crashes or hangs is a "no", not the end of the check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TIMEOUT_S = 900

# Runs first in every child. The result goes through a file, since libraries print what they like.
START = """
import json, sys
args = json.load(open(sys.argv[1], encoding="utf-8"))
def done(value):
    with open(args["result"], "w") as f:
        json.dump(value, f)
"""

# Then, where prunetune must not be importable: the model by plain transformers alone.
ISOLATED = """
import importlib.abc, warnings
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prunetune":
            raise ModuleNotFoundError("prunetune is not importable here", name=name)
sys.meta_path.insert(0, Without())
try:
    import prunetune
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("prunetune could be imported: this check would prove nothing")
warnings.simplefilter("ignore")
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
def load():
    config = AutoConfig.from_pretrained(args["model"])
    text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "vision_config", None)
    kind = AutoModelForCausalLM if text else AutoModelForImageTextToText
    return kind.from_pretrained(args["model"], dtype=torch.float32).eval()
"""


class ChildError(Exception):
    """A child process that did not succeed; the message is its last line."""


def child(script: str, **args: Any) -> Any:
    """Run a script in a fresh interpreter, offline; the value that it called `done` with."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "args.json", Path(folder) / "result.json"
        given.write_text(json.dumps({**args, "result": str(result)}), encoding="utf-8")
        run([sys.executable, "-c", START + script, str(given)])
        return json.loads(result.read_text(encoding="utf-8"))


def run(command: list[str], **environment: str) -> str:
    """Run a command offline; what it printed. ChildError if it fails or takes too long."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **offline, **environment}, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ChildError(f"no answer within {TIMEOUT_S} s") from None
    except OSError as e:
        raise ChildError(str(e)) from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ChildError(lines[-1].strip() if lines else f"exit status {done.returncode}")
    return done.stdout
