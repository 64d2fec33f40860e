"""How fast a model samples its own traces."""

from __future__ import annotations

import time

from transformers import PreTrainedModel

from prunetune.data.stream import TracesData, load_stream
from prunetune.loop.context import Context
from prunetune.recipe.traces import judge_of
from prunetune.tasks.registry import build_judge
from prunetune.tune.traces import TraceJob, sample_answers


def sampling_pace(context: Context, model: PreTrainedModel, traces: TracesData, asked: int) -> float:
    """Seconds a question of own traces, from the answers to the first `asked` of them."""
    stream = load_stream([traces.source], context.recipe.seed)
    few = list(stream.take(0, min(len(stream), asked)))
    job = TraceJob(
        model=context.source,
        out=context.source,
        sources=(traces.source,),
        task=judge_of(context.recipe, traces),
        fmt=context.recipe.prompt,
        **traces.model_dump(include={"per_question", "temperature", "top_p", "max_new_tokens"}),
    )
    task, begin = build_judge(job.task), time.perf_counter()
    sample_answers(model, context.tokenizer, few, job, task)
    return (time.perf_counter() - begin) / len(few)
