"""The paper's benchmarks through lm-eval (extra `eval`), with its own prompts, filters and metrics, offline if need be.

    evaluate_with_harness(folder, ["gsm8k"], data={"gsm8k": "$PRUNETUNE_DATA/gsm8k"}, limit=50, out=stage / "eval")

From a recipe or the command line it is the task `lm-eval:gsm8k`, which `evaluate` hands to `evaluate_task`.

Local files are put in the place of a task's hub data set by a small YAML file that includes lm-eval's own; nothing else
of the task changes. Finished answers are kept as they come, so a killed evaluation goes on where it was.
`mbpp` runs what the model wrote in our sandbox (lm-eval's own would fetch a scorer at import and run it unconfined).
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from prunetune.common.files import replacing
from prunetune.common.strict_json import to_json_text
from prunetune.errors import NotFinite, TaskError
from prunetune.evaluation.fitting import guess_batch
from prunetune.evaluation.result import EvalResult
from prunetune.evaluation.samples import Kept, Sample, append_samples, open_samples
from prunetune.models.finite import numbers_only
from prunetune.models.folders import load_model, load_tokenizer, model_sha
from prunetune.models.prompt import check_chat
from prunetune.tasks.lm_eval import Unconfined, check_installed, check_needs, open_tasks

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prunetune.tasks.registry import Task

FEWSHOT_SEED = 1234  # lm-eval's default
QUESTION = ("question", "problem", "text")  # what lm-eval's tasks call it; the prompt stands for any other
PREFERRED = (
    "exact_match,strict-match",
    "exact_match,none",
    "pass_at_1,none",
    "prompt_level_strict_acc,none",
    "acc,none",
)

Progress = Callable[[int, int], None]
Backend = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class Loaded:
    """A model that is in memory already. `sha` stands for it in the key of the answers kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sha: object


def evaluate_task(
    model: Path | Loaded,
    task: Task,
    *,
    chat: bool,
    out: Path | None,
    batch_size: int | None = None,
    backend: Backend = "transformers",
    device: str = "cpu",
    progress: Progress | None = None,
) -> EvalResult:
    """Measure a model on a task that `build_task` made of an lm-eval name; the arguments are those below."""
    job = task.harness
    if job is None:
        raise TaskError("only lm-eval's tasks run here", value=task.name, fix="lm-eval:NAME, or another backend")
    (result,) = evaluate_with_harness(
        model,
        [job.name],
        data={job.name: job.path} if job.path else None,
        limit=job.limit,
        shots=job.shots,
        seed=job.seed,
        batch_size=batch_size,
        device=device,
        backend=backend,
        chat=chat,
        allow_code_execution=job.allow_code_execution,
        out=out,
        progress=progress,
    )
    return result


def evaluate_with_harness(
    model: Path | Loaded,
    names: Sequence[str],
    *,
    data: Mapping[str, str] | None = None,
    limit: int | None = None,
    shots: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    backend: Backend = "transformers",
    chat: bool = False,
    allow_code_execution: bool = False,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[EvalResult]:
    """Measure a model folder on lm-eval tasks.

    Args:
        model: Folder of the model, or a model in memory (transformers only; `dtype` and `device` are then its own).
        names: Tasks or groups, such as `gsm8k`, `minerva_math`, `mbpp`, `ifeval`.
        data: Task (or group) -> file or folder with its data in the source's own format.
        limit: First questions of each task only.
        shots: Worked examples in the prompt. None: the task's own number.
        seed: As lm-eval's `--seed`. None: its defaults.
        batch_size: None: found from the memory there is, and halved whenever that runs out.
        dtype: Of the weights; `auto` as stored.
        device: Where to run.
        backend: `transformers`, or `vllm` where it is installed.
        chat: Put the prompts through the chat template.
        allow_code_execution: Run model-written code, in the sandbox (mbpp).
        out: Folder for the samples, one JSONL a task, and for answers not yet judged.
        progress: Called with (answers done, answers asked for).

    Raises:
        MissingExtra: lm-eval (or vLLM) is not installed.
        UnknownName, TaskError: No such task, or one that needs permission, data or a resource it does not have.
    """
    check_installed("lm_eval", "eval", "lm-eval's benchmarks")
    if backend == "vllm":
        check_installed("vllm", "vllm", "the vLLM backend")
    if isinstance(model, Loaded):
        tokenizer, settings = model.tokenizer, [model.sha, str(model.model.dtype).removeprefix("torch."), backend]
    else:
        tokenizer, settings = load_tokenizer(model), [model_sha(model), dtype, backend]
    if chat:
        check_chat(tokenizer)
    answers = out / ".answers.jsonl" if out else None
    kept = open_samples(answers, settings, Kept) if answers else {}
    asked = {"num_fewshot": shots, "limit": limit, "apply_chat_template": chat, **_seeds(seed)}

    def load(size: int | None) -> tuple[LM, int]:
        lm, size = _load(model, tokenizer, backend, dtype, device, size)
        return _keeping(lm, kept, answers, progress), size

    with tempfile.TemporaryDirectory(prefix="prunetune-lm-eval-") as folder:
        check_needs(names, allow_code_execution)
        found = _simple_evaluate(load, names, open_tasks(names, data or {}, Path(folder)), asked, batch_size)
    return [_figure_of(found, name, tokenizer, FEWSHOT_SEED if seed is None else seed, limit, out) for name in names]


def _figure_of(found: Any, name: str, tokenizer: Any, seed: int, limit: int | None, out: Path | None) -> EvalResult:
    """A task's figure; its samples go into the folder `out`."""
    samples = _samples(found, name, tokenizer)
    result = _result(found, name, samples, seed, limit)
    if out:
        with replacing(out / f"lm-eval:{name.replace('/', '_')}.jsonl") as tmp:
            tmp.write_text("".join(to_json_text(s.to_json(), indent=None) + "\n" for s in samples), encoding="utf-8")
    return result


def _simple_evaluate(
    load: Callable[[int | None], tuple[LM, int]],
    names: Sequence[str],
    manager: Any,
    asked: dict[str, Any],
    size: int | None,
) -> Any:
    """lm-eval's own results; with half the batch whenever memory runs out (what was answered is kept)."""
    import lm_eval

    while True:
        lm, size = load(size)
        try:
            return lm_eval.simple_evaluate(model=lm, tasks=list(names), task_manager=manager, log_samples=True, **asked)
        except ValueError as e:
            if "marked as unsafe" not in str(e):  # below a group, where names told nothing
                raise
            raise Unconfined(", ".join(names)) from None
        except AssertionError as e:
            if "maximum sequence length" not in str(e):
                raise
            raise TaskError(
                "the answers that this task asks for are longer than the model's context",
                value=", ".join(names),
                fix="another task, or a model with a longer context",
            ) from None
        except (MemoryError, RuntimeError) as e:  # torch.OutOfMemoryError is a RuntimeError
            if "memory" not in str(e) or size == 1:
                raise
            size = max(1, size // 2)


def _seeds(seed: int | None) -> dict[str, int]:
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {} if seed is None else dict.fromkeys(names, seed)


def _load(
    given: Path | Loaded, tokenizer: Any, backend: Backend, dtype: str, device: str, batch_size: int | None
) -> tuple[LM, int]:
    if backend == "vllm" and isinstance(given, Path):
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(pretrained=str(given), dtype=dtype, batch_size=batch_size or "auto"), batch_size or 1
    from lm_eval.models.huggingface import HFLM

    model = given.model if isinstance(given, Loaded) else load_model(given, dtype=dtype, device=device)
    tokens = min(2048, getattr(model.config, "max_position_embeddings", 2048))
    size = batch_size or guess_batch(model, tokens)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size), size


def _keeping(lm: LM, kept: dict[str, Kept], path: Path | None, progress: Progress | None) -> LM:
    """`lm`, except that every answer goes to disk as it comes and none is asked for twice."""
    from lm_eval.api import model as api

    def key(kind: str, request: Any) -> str:
        return hashlib.sha256(json.dumps([kind, request], sort_keys=True, default=str).encode()).hexdigest()[:24]

    class Hook:
        """What lm-eval's models call with each finished answer."""

        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            record = Kept(id=key(kind, request), answer=answer)
            kept[record.id] = record
            if path is not None:
                append_samples(path, [record])
            if progress is not None:
                done[0] += 1
                progress(done[0], max(done[1], done[0]))

    class Keeping(api.LM):  # type: ignore[misc]  # lm-eval has no types
        """Asks the model only for what is not kept yet."""

        tokenizer_name = property(lambda _: getattr(lm, "tokenizer_name", ""))

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(a[0], a[1]) for a in self._ask("loglikelihood", requests)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [str(a) for a in self._ask("generate_until", requests)]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [float(a) for a in self._ask("loglikelihood_rolling", requests)]

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
            return str(lm.apply_chat_template(*args, **kwargs))

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            found = lm.chat_template(chat_template)
            return None if found is None else str(found)

        def _ask(self, kind: str, requests: list[Any]) -> list[Any]:
            new = [r for r in requests if key(kind, r.args) not in kept]
            done[0], done[1] = len(requests) - len(new), len(requests)
            with numbers_only(getattr(lm, "model", None)):
                answers = dict(zip(map(id, new), getattr(lm, kind)(new) if new else [], strict=True))
            return [answers[id(r)] if id(r) in answers else kept[key(kind, r.args)].answer for r in requests]

    done = [0, 0]
    lm.set_cache_hook(Hook())
    return Keeping()


# ------------------------------------------------------------------------------------------------------------- results


def _leaves(found: Any, name: str) -> list[str]:
    below = found.get("group_subtasks", {}).get(name) or []
    return [leaf for child in below for leaf in _leaves(found, child)] if below else [name]


def _metric(scores: Mapping[str, Any]) -> str:
    """The figure that stands for a task: lm-eval's strictest exact match, or whatever it has."""
    usable = [k for k, v in scores.items() if isinstance(v, float | int) and "," in k and "_stderr" not in k]
    return next((m for m in PREFERRED if m in usable), usable[0])


def _samples(found: Any, name: str, tokenizer: Any) -> list[Sample]:
    """lm-eval's samples in the form of ours, judged by the metric that stands for the task."""
    samples = []
    for task in _leaves(found, name):
        metric, _, wanted = _metric(found["results"][task]).partition(",")
        for raw in found["samples"][task]:
            if raw["filter"] != wanted:
                continue
            first, *_ = raw["arguments"].values() if isinstance(raw["arguments"], dict) else raw["arguments"]
            prompt = str(first["arg_0"] if isinstance(first, dict) else first[0])
            right = bool(raw[metric] == 1)  # an F1 of 0.5 is no right answer, and a perplexity has none
            output, extracted = raw["resps"][0][0], raw["filtered_resps"][0]
            text = isinstance(output, str)
            samples.append(
                Sample(
                    id=f"{task}/{raw['doc_id']}",
                    question=str(next((raw["doc"][k] for k in QUESTION if raw["doc"].get(k)), prompt)),
                    prompt=prompt,
                    reference=str(raw["target"]),
                    output=output if text else json.dumps(output),
                    extracted=extracted if isinstance(extracted, str) else json.dumps(extracted),
                    correct=right,
                    reason="" if right else f"{metric} {raw[metric]}",
                    prompt_tokens=len(tokenizer.encode(prompt)),
                    new_tokens=len(tokenizer.encode(output, add_special_tokens=False)) if text else 0,
                )
            )
    return samples


def _figure(value: object) -> TypeGuard[float]:
    """Whether lm-eval gave a number (it writes "N/A" or NaN where it has none)."""
    return isinstance(value, float | int) and math.isfinite(value)


def _result(found: Any, name: str, samples: list[Sample], seed: int, limit: int | None) -> EvalResult:
    scores: dict[str, Any] = {**found["results"].get(name, {}), **found.get("groups", {}).get(name, {})}
    metric = _metric(scores)
    first = _leaves(found, name)[0]
    n = len(samples)
    if not math.isfinite(float(scores[metric])):
        raise NotFinite(
            f"{metric} of {name} is {scores[metric]}: lm-eval could not make a figure of this model's answers",
            value=f"{n} samples",
            fix="look at the model: its logits are NaN or infinite, or the metric is undefined on so few samples",
        )
    stderr = scores.get(metric.replace(",", "_stderr,"))
    figures = {k.replace("_stderr,", ",") + ("_stderr" if "_stderr" in k else ""): v for k, v in scores.items()}
    return EvalResult(
        task=f"lm-eval:{name}",
        version=str(found["versions"].get(name, found["versions"].get(first))),
        metric=metric,
        value=float(scores[metric]),
        stderr=float(stderr) if _figure(stderr) else 0.0,
        n=n,
        seed=seed,
        prompt_tokens=sum(s.prompt_tokens or 0 for s in samples) / n,
        new_tokens=sum(s.new_tokens or 0 for s in samples) / n,
        seconds=float(found.get("total_evaluation_time_seconds", 0.0)),
        correct=sum(s.correct for s in samples),
        scores={k: float(v) for k, v in figures.items() if _figure(v) and "," in k},
        shots=int(found["n-shot"].get(first, 0)),
        limit=limit,
    )
