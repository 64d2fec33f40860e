"""The edge of a recovery step: read the folder and the data, train, write the folder."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from transformers import PreTrainedModel

from prunetune.common.files import check_space, disk_errors, fresh, remove
from prunetune.common.outputs import work_folder
from prunetune.common.plugins import lookup
from prunetune.data.stream import Example, Stream, load_stream
from prunetune.errors import TuneError
from prunetune.models.finite import broken_weights, is_finite
from prunetune.models.folders import TOKENIZER_FILES, copy_files, load_config, load_model, load_tokenizer
from prunetune.models.headers import read_header
from prunetune.tune.job import Progress, TuneJob, TuneResult
from prunetune.tune.methods.base import Lora
from prunetune.tune.trackers import tracking
from prunetune.tune.training.given import Stage
from prunetune.tune.training.machine import is_sharded, kept_memory, peak_bytes, pick_device, reset_peak
from prunetune.tune.training.trainers import RUNNERS

GENERATION_CONFIG = "generation_config.json"


def run_job(job: TuneJob, progress: Progress | None = None) -> TuneResult:
    """Recover a model in this process.

    Args:
        job: What to do.
        progress: Called with (steps done, steps in all) after every optimiser step.

    Returns:
        What was done. `job.out` then is a plain Hugging Face folder: weights in the input's types, config.json the
        input's bytes, tokenizer and generation config copied.

    Raises:
        TuneError: No data, a budget too small for one step, or a loss that diverged (evidence is in `job.work`).
        MissingPath, BadCheckpoint, DataError: As the model and the data have them.
    """
    load_config(job.model)
    dtypes, runner = tensor_types(job.model), lookup("runner", RUNNERS, job.method.type, "runner of a recovery method")
    own = _own_examples(job)
    runner.check(job, own)
    examples = with_replay(own, job)
    work_folder(job.work)
    weights = sum(p.stat().st_size for p in job.model.glob("*.safetensors"))
    check_space(job.out, weights + (1 << 20), "the tuned model")
    device = pick_device(job.device)
    with own_randomness(), kept_memory(), disk_errors(job.work, denied=False), tracking(job):
        reset_peak(device)
        seed = job.seed if job.method.seed is None else job.method.seed
        stage = Stage(
            job=job,
            load=partial(_trainable, job, device, seed),
            tokenizer=load_tokenizer(job.model),
            examples=examples,
            device=device,
            seed=seed,
            progress=progress,
        )
        trained = runner.train(stage)
        peak = peak_bytes(device)
        if trained.writes:
            write_model(merged(stage.model), job.model, job.out, dtypes, trained.state)
    used, samples = trained.samples, _own_among(trained.samples, len(own), len(examples))
    return TuneResult(
        method=job.method.type,
        samples=samples,
        tokens=trained.tokens,
        seconds=trained.seconds,
        steps=trained.steps,
        log=trained.log,
        truncated=trained.truncated,
        data_tokens=trained.data_tokens,
        tokens_per_s=trained.tokens / max(trained.seconds, 1e-9),
        peak_bytes=peak,
        mfu=trained.mfu,
        notes=[*trained.notes, *(examples.again(used - samples) if isinstance(examples, _Mixed) else ())],
        planned=trained.planned,
    )


def _trainable(job: TuneJob, device: torch.device, seed: int) -> Any:
    """The model as it is trained. What is to be spread over devices is read on the host; the trainer spreads it."""
    model = load_model(job.model, dtype=torch.float32, device="cpu" if is_sharded() else str(device))
    return adapted(model, job.method.lora, seed)


def _own_examples(job: TuneJob) -> Sequence[Example]:
    own = take(load_stream(job.sources, job.data_seed), job)
    if not own:
        raise TuneError(
            "there is no data to train on",
            value=f"samples [{job.start}, {job.end}) of {len(job.sources)} sources",
            fix="give a larger data set, or a budget (samples, tokens) above zero",
        )
    return own


def take(stream: Stream, job: TuneJob) -> Sequence[Example]:
    """The step's own part of the stream, ended by the method's budget in samples if the job names no end."""
    end = len(stream) if job.end is None else job.end
    if job.end is None and job.method.samples is not None:
        end = min(end, job.start + job.method.samples)
    return stream.take(min(job.start, end), end)


def with_replay(own: Sequence[Example], job: TuneJob) -> Sequence[Example]:
    """The step's own examples with general text spread evenly among them; each text once in a run, as far as they go.

    A budget in tokens often ends far before its samples do, so that texts for all of these may never be asked for.
    """
    replay = job.method.replay
    if replay is None:
        return own
    ratio = replay.share / (1 - replay.share)
    first = round(job.start * ratio)
    count = max(1, round(len(own) * ratio))
    stream = load_stream(replay.sources, job.data_seed)
    stream.take(0, 1)  # there is one
    return _Mixed(own, stream.examples, first, count)


class _Mixed(Sequence[Example]):
    """All own examples, and so many general ones from `first` on, spread evenly and read as they are asked for.

    After the last general one comes the first again.
    """

    def __init__(self, own: Sequence[Example], general: Sequence[Example], first: int, many: int) -> None:
        self.own, self.general, self.first, self.many = own, general, first, many

    def __len__(self) -> int:
        return len(self.own) + self.many

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        before, after = (_own_among(i, len(self.own), len(self)) for i in (index, index + 1))
        if after > before:
            return self.own[before]
        return self.general[(self.first + index - before) % len(self.general)]

    def again(self, used: int) -> list[str]:
        """A note, if with so many general examples they were gone through more than once."""
        read, there = self.first + used, len(self.general)
        return [f"the {there:,} replayed texts were gone through {read / there:.1f} times"] if read > there else []


def _own_among(used: int, own: int, whole: int) -> int:
    """How many of the first `used` examples of a mixed list are the step's own."""
    return -(-used * own // whole)


def adapted(model: PreTrainedModel, lora: Lora | None, seed: int) -> Any:
    """The model, or the model with low-rank adapters (peft)."""
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of names that transformers has renamed
        return get_peft_model(model, config)


def merged(model: Any) -> PreTrainedModel:
    """The plain model with its adapters added into the weights."""
    plain: PreTrainedModel = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return plain


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global random states as they were, and be quiet: trainers seed for themselves, and draw bars."""
    from transformers.utils import logging

    python, numpy_state, verbosity = random.getstate(), np.random.get_state(), logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


# -------------------------------------------------------------------------------------------------------- the output

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def tensor_types(folder: Path) -> dict[str, torch.dtype]:
    """Tensor name -> type, from the headers of a folder's safetensors files."""
    out: dict[str, torch.dtype] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= {name: _TYPES.get(stored.dtype, torch.float32) for name, stored in read_header(path).items()}
    return out


def write_model(
    model: PreTrainedModel,
    source: Path,
    out: Path,
    dtypes: dict[str, torch.dtype],
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a plain folder: tensors in the types that they have in `source`; config.json and tokenizer are its own.

    NotFinite where a trained weight is no number, or too large for its type; then nothing is written.
    """
    common = max(set(dtypes.values()), key=list(dtypes.values()).count) if dtypes else torch.float32
    given = model.state_dict() if state is None else state
    state = {name: t.detach().to("cpu", dtypes.get(name, common)) for name, t in given.items()}
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    for name in tied & set(state):
        if name not in dtypes:
            del state[name]
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise broken_weights("the recovered model", name, tensor)
    with fresh(out) as tmp:
        model.save_pretrained(tmp, state_dict=state, safe_serialization=True)
        if not (source / GENERATION_CONFIG).exists():
            remove(tmp / GENERATION_CONFIG)
        shutil.copyfile(source / "config.json", tmp / "config.json")
        copy_files(source, tmp, TOKENIZER_FILES)
