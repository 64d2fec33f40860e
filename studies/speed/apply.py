"""What `apply` costs against `cp` of what it writes, in the same minute.

    .venv/bin/python studies/speed/apply.py [--layers 6] [--repeats 3] [--at FOLDER]

A random checkpoint of Llama-3-8B's layers (bf16, 0.44 GB each; two shards) with a small vocabulary; a tenth of each layer's neurons goes.
`apply` is the function behind the command, in a process of its own whose imports are not counted: source and output hashed, the
output flushed to the disk. `cp` is timed twice: as it is, and with a `sync` of what it wrote, which `apply` does too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch

from prunetune.models.shards import ShardWriter, TensorInfo, shard_name, write_index

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32_000, "hidden_size": 4096,
    "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def make(folder: Path, layers: int, vocabulary: int = 32_000, shards: int = 2) -> None:
    """Write the checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers, "vocab_size": vocabulary}))
    hidden, wide, kv = 4096, 14_336, 1024
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    infos = {name: TensorInfo(torch.bfloat16, shape) for name, shape in shapes.items()}
    block, written = (0.02 * torch.randn(1 << 24)).to(torch.bfloat16), []
    per = -(-len(infos) // shards)
    for n in range(shards):
        some = dict(list(infos.items())[n * per : (n + 1) * per])
        with ShardWriter(folder / shard_name(n, shards), some) as writer:
            for at, (name, info) in enumerate(some.items()):
                size = torch.Size(info.shape).numel()
                numbers = torch.ones(size, dtype=torch.bfloat16) if "norm" in name else block.roll(7919 * (at + n))
                writer.write(name, numbers.repeat(size // len(numbers) + 1)[:size].reshape(info.shape))
        written.append((shard_name(n, shards), some))
    write_index(folder, written)


def apply(source: Path, out: Path) -> None:
    """Cut, as the command does, and print the seconds."""
    import random

    from prunetune.cli.made import apply_plan
    from prunetune.common.progress import Watch
    from prunetune.models.folders import model_sha, resolve_model
    from prunetune.pruning.plan import make_plan

    for name in ("apply", "patch"):  # which the command imports as it needs them
        import_module(f"prunetune.pruning.{name}")

    layers, draw = json.loads((source / "config.json").read_text())["num_hidden_layers"], random.Random(0)
    scores = [[draw.random() for _ in range(CONFIG["intermediate_size"])] for _ in range(layers)]
    note = source.parent / "sha"
    if not note.is_file():
        note.write_text(model_sha(source))
        return
    plan = make_plan(scores, [0.0] * layers, note.read_text(), n_neurons=1408, n_layers=0)
    resolve_model(str(source))
    begin = time.perf_counter()
    apply_plan(plan, str(source), out, None, Watch(quiet=True))
    print(time.perf_counter() - begin)


def main() -> None:
    """Make the checkpoint, then time in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at", type=Path)
    parser.add_argument("--apply", nargs=2, type=Path)
    args = parser.parse_args()
    if args.apply:
        return apply(*args.apply)
    with tempfile.TemporaryDirectory(dir=args.at) as folder:
        at = Path(folder)
        make(at / "model", args.layers)
        command = [sys.executable, __file__, "--apply", str(at / "model")]
        subprocess.run([*command, "none"], check=True)
        pairs = []
        for i in range(args.repeats):
            subprocess.run(["sync"], check=True)
            said = subprocess.run(
                [*command, str(at / f"out-{i}")], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            times = [float(said)]
            for flush in (False, True):
                begin = time.perf_counter()
                copy = at / f"copy-{i}-{flush}"
                subprocess.run(["cp", "-r", str(at / f"out-{i}"), str(copy)], check=True)
                if flush:
                    subprocess.run(["sync", *map(str, copy.iterdir())], check=True)
                times.append(time.perf_counter() - begin)
                subprocess.run(["rm", "-r", str(copy)], check=True)
            size = sum(p.stat().st_size for p in (at / f"out-{i}").iterdir())
            subprocess.run(["rm", "-r", str(at / f"out-{i}")], check=True)
            pairs.append((times[0] / times[1], times[0] / times[2]))
            print(f"{size / 1e9:.2f} GB: apply {times[0]:.1f} s, cp {times[1]:.1f} s, cp and sync {times[2]:.1f} s")
    print(
        f"median of {args.repeats}: {median(p[0] for p in pairs):.2f} of cp, {median(p[1] for p in pairs):.2f} of cp and sync"
    )
    return None


if __name__ == "__main__":
    main()
