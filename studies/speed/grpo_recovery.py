"""GRPO alone on the embedded model after a cut that knocked it down: accuracy before and after, several seeds.

    python studies/speed/grpo_recovery.py --neurons 512 --seeds 0,1,2          # one thread

The cut: so many neurons of each of the four layers at once, lowest contribution first, no other recovery. Accuracy is on
300 test problems that are no training problems. Prints one JSON line a seed and writes the curve beside.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

from bars import verdict

from prunetune.data.stream import DemoData, load_stream
from prunetune.evaluation.evaluate import evaluate
from prunetune.models.folders import load_model, load_tokenizer, model_sha, resolve_model
from prunetune.models.prompt import PromptFormat, encode_example
from prunetune.pruning.apply import apply_on_disk
from prunetune.pruning.plan import make_plan
from prunetune.pruning.scores import make_batches, score
from prunetune.tasks.registry import TaskConfig, build_task
from prunetune.tune.job import TuneJob
from prunetune.tune.methods import Grpo
from prunetune.tune.stage import run_job


def cut(out: Path, neurons: int) -> Path:
    """The embedded model without so many neurons a layer."""
    source = resolve_model("demo")
    tokenizer = load_tokenizer(source)
    examples = load_stream([DemoData(size=256, seed=5)], 0).take(0, 128)
    rows = [encode_example(tokenizer, e.question, e.answer, PromptFormat(), 128).input_ids for e in examples]
    batches = make_batches(rows, tokenizer.pad_token_id or 0, 4096)
    scores = score(load_model(source), batches, model_sha=model_sha(source), data_sha="demo")
    plan = make_plan(scores.neurons.tolist(), scores.layers.tolist(), scores.model_sha, n_neurons=neurons)
    apply_on_disk(source, plan, out)
    return out


def accuracy(folder: Path, seed: int, n: int) -> float:
    """Share of n test problems solved."""
    task = build_task(TaskConfig(name="demo", n=n, seed=seed))
    return evaluate(load_model(folder), load_tokenizer(folder), task, fmt=PromptFormat(), out=None).value


def main() -> None:
    """Cut once, recover with several seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=512)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--curve", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = cut(place / "cut", arguments.neurons)
        before = accuracy(model, 99, arguments.problems)
        verdict("accuracy of the cut model, per cent", 100 * before, at_least=20, at_most=65)
        gains, times = [], []
        for seed in (int(s) for s in arguments.seeds.split(",")):
            method = Grpo(
                learning_rate=arguments.rate,
                batch_size=arguments.batch,
                precision=arguments.precision,
                max_new_tokens=64,
            )
            job = TuneJob(
                model=model,
                out=place / f"out{seed}",
                work=place / f"work{seed}",
                method=method,
                sources=(DemoData(size=4000, seed=seed),),
                data_seed=seed,
                end=arguments.steps * arguments.batch,
                seed=seed,
                task=TaskConfig(name="demo"),
                device="cpu",
            )
            begin, cpu = time.perf_counter(), time.process_time()
            result = run_job(job)
            line = {
                "seed": seed,
                "before": before,
                "after": accuracy(job.out, 99, arguments.problems),
                "steps": result.steps,
                "train_s": round(result.seconds, 1),
                "stage_s": round(time.perf_counter() - begin, 1),
                "cpu_s": round(time.process_time() - cpu, 1),
                "tokens": result.tokens,
                "notes": result.notes,
            }
            print(json.dumps(line), flush=True)
            gains.append(100 * (float(str(line["after"])) - before))
            times.append(float(str(line["stage_s"])))
            if arguments.curve:
                arguments.curve.with_suffix(f".{seed}.json").write_text(json.dumps(result.log))
        verdict(f"points gained, least of {len(gains)} seeds", min(gains), at_least=25)
        verdict(f"seconds of a stage, most of {len(times)} seeds", max(times), at_most=180)


if __name__ == "__main__":
    main()
