"""One prune of a model object, no file anywhere: what `prunetune.score`, `plan`, `compensate` and `apply` are.

batches = prunetune.batches(tokenizer, rows)                  # or any [{input_ids, attention_mask}, ...]
scores = prunetune.score(model, batches)
plan = prunetune.plan(scores, neurons=512, layers=1)
small = prunetune.apply(model, plan, prunetune.compensate(model, plan, batches))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.data.stream import examples_of
from prunetune.models.folders import pad_id
from prunetune.models.prompt import PromptFormat, encode
from prunetune.pruning import compensate as folding
from prunetune.pruning import scores as scoring
from prunetune.pruning.apply import apply_in_memory
from prunetune.pruning.patch import Patch
from prunetune.pruning.plan import PrunePlan, make_plan
from prunetune.pruning.scores import Batch, Scores, make_batches

Progress = Callable[[int, int], None]


def batches(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    fmt: PromptFormat | None = None,
    max_length: int = 1024,
    max_tokens: int = 8192,
) -> list[Batch]:
    """Rows of `question` and `answer` as batches to score and to compensate with.

    Args:
        tokenizer: The model's.
        rows: [{"question": ..., "answer": ...}, ...], or of any form that files may have, such as `messages`.
        fmt: How a question becomes a prompt (default: plain).
        max_length: Longer sequences are cut.
        max_tokens: Places of a batch, padding included.

    Returns:
        [{input_ids: int64 [batch, tokens], attention_mask: int64 [batch, tokens]}, ...]

    Raises:
        DataError: A row lacks a question or an answer, or one is no text.
        RecipeError: The chat template cannot write a row.
    """
    examples, _, _ = examples_of(map(dict, rows))
    encoded = [encode(tokenizer, example, fmt or PromptFormat(), max_length).input_ids for example in examples]
    return make_batches(encoded, pad_id(tokenizer), max_tokens)


def score(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    criterion: str = "greedy",
    layer_criterion: str = "l2",
    reduce: str = "mean",
    more: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """How redundant every neuron and layer of a model is (Eq. 2-6); low = redundant. See `scores.score`.

    Units of other axes are scored where `more` names them: `more=("heads",)`.
    """
    return scoring.score(
        model,
        _plain(batches),
        neuron_criterion=criterion,
        layers_by=layer_criterion,
        reduce=reduce,
        more=more,
        seed=seed,
        progress=progress,
    )


def plan(
    scores: Scores,
    *,
    neurons: int = 0,
    layers: int = 0,
    which_layers: Sequence[int] | None = None,
    more: Mapping[str, int] | None = None,
) -> PrunePlan:
    """What goes: the lowest scores, so many neurons of every layer and so many layers. OutOfReach if they cannot.

    Of other axes that were scored `more` says how many: `{"heads": 1, "query_heads": 1}` takes a key/value group of
    every layer, and a query head of every group that stays.
    """
    return make_plan(
        scores.neurons.tolist(),
        scores.layers.tolist(),
        scores.model_sha,
        n_neurons=neurons,
        n_layers=layers,
        which_layers=scores.may_go(which_layers),
        others=scores.others(more) if more else None,
        experts=scores.experts,
    )


def compensate(
    model: PreTrainedModel,
    plan: PrunePlan,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch] | None = None,
    target: str = "auto",
    progress: Progress | None = None,
) -> Patch:
    """Fold what a plan removes into what stays, by least squares. See `compensate.compensate`.

    Args:
        model: The model that was scored.
        plan: What goes.
        batches: Sequences to fit to.
        held_out: Sequences that choose the ridge; None: every fourth of `batches`, which then is not fitted to.
        target: `auto`, `layer` or `stream`.
        progress: Called with (layers done, layers in all).
    """
    fitted = _plain(batches)
    if held_out is None:
        fitted, held_out = (make_batches(part, 0) for part in folding.calibration_and_held_out(_sequences(fitted)))
    return folding.compensate(model, plan, fitted, held_out=_plain(held_out), target=target, progress=progress)


def apply(model: PreTrainedModel, plan: PrunePlan, patch: Patch | None = None) -> PreTrainedModel:
    """The smaller model: stock, of the same class, dtype and device; the given one stays as it is."""
    if patch is not None:
        patch.check_plan(plan)
    return apply_in_memory(model, plan, patch.tensors if patch is not None else None)


def _plain(batches: Sequence[Batch]) -> list[Batch]:
    """A tokenizer's output has more keys than a walk takes."""
    return [{k: b[k] for k in ("input_ids", "attention_mask")} for b in batches]


def _sequences(batches: Sequence[Batch]) -> list[list[int]]:
    """The sequences of batches, without their padding, longest first as `make_batches` orders them."""
    rows: list[tuple[Tensor, Tensor]] = [
        (ids, mask) for b in batches for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    return [ids[mask.bool()].tolist() for ids, mask in rows]
