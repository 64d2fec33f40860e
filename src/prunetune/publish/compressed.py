"""A finished model with 8- or 4-bit matrices, in the compressed-tensors format that vLLM, SGLang and transformers load.

    print(compress(Path("runs/demo"), Path("demo-fp8"), to="fp8").text())

Weights are rounded to the nearest value of a scale: of a row (`fp8`, `int8`), or of a group of columns (`int4`).
Nothing is calibrated, and no data are needed: with fp8 and int8 activations are rounded as they come, token by token.
Format, scales and packing are the compressed-tensors package's own (https://github.com/vllm-project/compressed-tensors).
The result is read again by plain transformers, and its perplexity and greedy answers stand beside the model's.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from prunetune.common import units as human
from prunetune.common.files import once
from prunetune.common.outputs import output_new
from prunetune.common.reading import read_text
from prunetune.errors import DataError, MissingExtra, UnknownName, UnsupportedModel
from prunetune.models.axes import shape_of
from prunetune.models.families import family_of
from prunetune.models.folders import load_model, load_tokenizer, model_sha
from prunetune.publish.child import ChildError
from prunetune.publish.exported import NO_TEXT, Exported, bytes_of, own_text, perplexity_of, row
from prunetune.publish.greedy import parting, prompts_of, reference
from prunetune.publish.inputs import final_of
from prunetune.runs.reading import RunRecord

SCHEMES = {"fp8": "FP8_DYNAMIC", "int8": "W8A8", "int4": "W4A16"}
"""Format -> scheme of compressed-tensors: weights and activations in 8 bits, or weights alone in 4."""
GROUPS = (128, 64, 32)
"""Columns that share a scale of `int4`: the most that divide every matrix, of those that engines have kernels for."""


def compress(source: Path, out: Path, *, to: str, text: Path | None = None) -> Exported:
    """Write a model with fewer bits, read it again, and measure it.

    Args:
        source: A finished run folder, or a model folder.
        out: The folder to write.
        to: One of `SCHEMES`.
        text: A text to measure the perplexity on. None: a run's questions with the original's right answers.

    Raises:
        UnknownName: No such format. MissingExtra: compressed-tensors is not installed. MissingPath: No model or text.
            UnsupportedModel: A mixture of experts, or a width that no group divides. NotWritable: `out` is not ours.
    """
    if to not in SCHEMES:
        raise UnknownName("format", to, SCHEMES)
    if importlib.util.find_spec("compressed_tensors") is None:
        raise MissingExtra("compressed-tensors", "quantize", f"writing {to}")
    final, record = final_of(source)
    final = final.resolve()
    words = read_text(text, "text") if text is not None else own_text(record)
    key = {"export": model_sha(final), "to": to}
    with output_new(out, key):
        once(out, key, lambda tmp: _write(final, tmp, to))
    return _measured(final, record, out, to, words)


def _write(final: Path, out: Path, to: str) -> None:
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, is_module_quantized

    model = load_model(final)
    if "experts" in shape_of(model.config.to_dict()):
        raise UnsupportedModel(
            f"{to} of a mixture of experts is not written: its experts lie in one tensor a layer",
            value=str(final),
            fix="export it as GGUF, or quantise it with llm-compressor",
        )
    layers = f"{family_of(model.config).layers}."
    matrices = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    inside = {name: m for name, m in matrices.items() if name.startswith(layers)}
    scheme = preset_name_to_scheme(SCHEMES[to], ["Linear"])
    if to == "int4":
        scheme.weights = scheme.weights.model_copy(update={"group_size": _group(final, inside)})
    config = QuantizationConfig(config_groups={"matrices": scheme}, ignore=[n for n in matrices if n not in inside])
    apply_quantization_config(model, config, show_progress=False)
    for module in filter(is_module_quantized, model.modules()):
        weights: Any = module.quantization_scheme.weights
        parts = module.weight.detach().float()
        parts = parts.unflatten(1, (-1, weights.group_size)) if weights.group_size else parts.unsqueeze(1)
        scale, zero = calculate_qparams(*torch.aminmax(parts, dim=-1), weights)
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(str(out))
    for path in sorted(final.iterdir()):  # the tokenizer and what else there is; the card is of another model
        other = path.name.startswith((".", "README", "model.safetensors")) or path.suffix == ".safetensors"
        if path.is_file() and not other and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def _group(final: Path, matrices: dict[str, Any]) -> int:
    widths = {m.in_features for m in matrices.values()}
    fits = [g for g in GROUPS if all(w % g == 0 for w in widths)]
    if not fits:
        raise UnsupportedModel(
            f"int4 needs widths that are multiples of {GROUPS[-1]}",
            value=f"{final}: {', '.join(map(str, sorted(widths)))}",
            fix="take int8 or fp8, or cut with prune.align: 64",
        )
    return fits[0]


def _measured(final: Path, record: RunRecord | None, out: Path, to: str, text: str | None) -> Exported:
    import torch
    from transformers import AutoModelForCausalLM

    faults: list[str] = []
    notes = [] if text is not None else [NO_TEXT]
    before = after = None
    try:
        if text is not None:
            tokenizer = load_tokenizer(final)
            after = perplexity_of(AutoModelForCausalLM.from_pretrained(out), tokenizer, text)
            before = perplexity_of(load_model(final, torch.float32), tokenizer, text)
        greedy = reference(final, prompts_of(record))
        parted = parting(greedy, reference(out, greedy.prompts).tokens)
        answers = f"the same on {sum(at is None for at in parted)} of {len(parted)}"
    except DataError:
        raise
    except ChildError as e:
        answers = human.DASH
        faults.append(f"plain transformers cannot answer with it: {e}")
    except Exception as e:  # whatever a reader of a folder raises is a fault of the folder
        answers = human.DASH
        faults.append(f"transformers cannot read it again: {e}")
    whole = row("the model", bytes_of(final), before, human.DASH)
    rows = (whole, row(to, bytes_of(out), after, answers))
    return Exported(str(out), "compressed-tensors", rows, tuple(faults), tuple(notes), "transformers")
