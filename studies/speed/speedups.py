"""Measure how fast a shape is when cut: prefill and decode times over widths and depths, with random weights (issue 6).

    python studies/speed/speedups.py studies/10-cut-against-cost                    # SmolLM2-135M's shape on this machine's CPU
    python studies/speed/speedups.py studies/10-cut-against-cost --device cuda
    python studies/speed/speedups.py DIR --config config.json --repeats 1 --prompt 16 --new 4

Speed depends on shapes, not on what the weights are. One repetition is `prunetune.evaluation.latency.measure` of all shapes in
turns, and one line of DIR/records.jsonl: run it again and it goes on with the repetitions that are missing. Tables and
figure come from this file alone (`speedup_tables.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from records import Records

from prunetune.models.cost import Cost, cost_of
from prunetune.models.shape import Shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SMOLLM2_135M = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
WIDTHS, DEPTHS = (1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Name -> (width, depth), the whole model first."""
    whole = config["intermediate_size"], config["num_hidden_layers"]
    cut = [(round(whole[0] * w), round(whole[1] * d)) for d in DEPTHS for w in WIDTHS]
    return {f"{w}x{d}": (w, d) for w, d in cut}


def promised(config: dict[str, Any], width: int, depth: int, prompt: int, new: int, batch: int) -> dict[str, int]:
    """FLOPs of the prefill, and bytes that a decode step reads: all weights but a look-up table, the cache half grown."""
    cost = cost_of(config, shape={"layers": depth, "neurons": width})
    return {
        "params": cost.params,
        "prefill_flops": batch * cost.flops(prompt, new).prefill,
        "decode_bytes": cost.weight_bytes - _table(cost) + batch * cost.kv_bytes(prompt + new // 2),
    }


def _table(cost: Cost) -> int:
    shape: Shape = cost.shape
    return 0 if shape.tied else shape.vocab * shape.hidden * cost.dtype_bytes


def build(config: dict[str, Any], width: int, depth: int, device: torch.device) -> PreTrainedModel:
    """A random bf16 model of the shape."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = {**config, "intermediate_size": width, "num_hidden_layers": depth}
    made = CONFIG_MAPPING[values.pop("model_type")](**values)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    found: PreTrainedModel = model.to(device).eval()
    return found


def device_name(device: torch.device) -> str:
    """What the figures belong to."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def main(arguments: list[str] | None = None) -> int:
    """Measure the repetitions that have no record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="repetitions: each takes all shapes in turns")
    parser.add_argument(
        "--timings", type=int, default=5, help="generations a shape in a repetition, after an untimed one"
    )
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", type=Path, help="config.json of another shape (default: SmolLM2-135M's)")
    args = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = SMOLLM2_135M if args.config is None else json.loads(args.config.read_text(encoding="utf-8"))
    setting = {k: getattr(args, k) for k in ("timings", "prompt", "new", "batch")}
    setting |= {"device": device_name(device), "config": config}
    records, name = (
        Records(args.study / "records.jsonl"),
        f"cpu-{args.threads}" if device.type == "cpu" else device.type,
    )
    models: dict[str, PreTrainedModel] = {}
    for repetition in range(args.repeats):
        place = f"{name}/{repetition}"
        if (there := records.get(place)) is not None:
            if there["setting"] != setting:
                raise SystemExit(f"{place} of {records.file} was measured with another setting: undo the change")
            print(f"{place}: there", flush=True)
            continue
        load = os.getloadavg()[0]
        models = models or {name: build(config, *shape, device) for name, shape in shapes(config).items()}
        record = {"setting": setting, "repetition": repetition, "load_before": round(load, 2)}
        record |= measure_all(config, models, setting, repetition)
        args.study.mkdir(parents=True, exist_ok=True)
        records.put(place, record)
        print(f"{place}: {record['seconds']:.0f} s", flush=True)
    return 0


def measure_all(
    config: dict[str, Any], models: dict[str, PreTrainedModel], setting: dict[str, Any], seed: int
) -> dict[str, Any]:
    """One repetition: every shape in turns."""
    import torch
    import transformers

    from prunetune.evaluation.latency import measure

    start = time.monotonic()
    prompt, new, batch, timings = (setting[k] for k in ("prompt", "new", "batch", "timings"))
    found = measure(models, prompt_tokens=prompt, new_tokens=new, batch=batch, repeats=timings, seed=seed)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shapes": {
            name: {"width": w, "depth": d, **promised(config, w, d, prompt, new, batch), **found[name].to_json()}
            for name, (w, d) in shapes(config).items()
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
