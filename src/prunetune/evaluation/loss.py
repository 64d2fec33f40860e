"""Loss of a model on held-out text: worked solutions (the quick measure of reasoning) and plain-text perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunetune.common.device import ALONE, Processes
from prunetune.common.progress import bar
from prunetune.data.stream import Example
from prunetune.errors import DataError, NotFinite
from prunetune.evaluation.spread import Scored, Spread
from prunetune.models.batches import mask_of, padded
from prunetune.models.finite import overflow
from prunetune.models.folders import check_tokens
from prunetune.models.prompt import PromptFormat, encode

MOST_NATS = 700  # exp of more is no double
LOGIT_ELEMENTS = 1 << 26  # logits held at once: 256 MB in fp32


def reasoning_loss(
    model: PreTrainedModel | Spread,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    fmt: PromptFormat,
    max_length: int,
) -> tuple[float, float]:
    """Mean cross-entropy (nats) over the answers' tokens, end token included, and its standard error over examples.

    DataError if no answer is within `max_length` tokens.
    """
    rows = [encode(tokenizer, e, fmt, max_length) for e in examples]
    spans = [[(max(1, start), end) for start, end in r.answers if end > max(1, start)] for r in rows]
    scored = [(r.input_ids, found) for r, found in zip(rows, spans, strict=True) if found]
    if not scored:
        raise DataError("no example has an answer within the length limit", value=max_length, fix="raise max_length")
    return _ratio(losses_of(model, scored, "held-out loss"))


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean loss per token; compares only models with one tokenizer.
        stderr: Of `perplexity`, over windows.
        bits_per_byte: Of the text in UTF-8; compares any models.
        tokens: Tokens predicted.
        window: Tokens that a prediction can look back at, at most.
    """

    perplexity: float
    stderr: float
    bits_per_byte: float
    tokens: int
    window: int


def perplexity(
    model: PreTrainedModel | Spread,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int = 1024,
    limit: int | None = None,
) -> Perplexity:
    """Perplexity of running text, in windows side by side, each opened by BOS if the tokenizer has one.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        text: The whole text.
        window: Tokens in a window.
        limit: Use at most so many windows.
    """
    ids = check_tokens(tokenizer, tokenizer.encode(text, add_special_tokens=False, verbose=False))
    start = tokenizer.bos_token_id
    head = [start] if start is not None else []
    step = window - len(head)
    windows = [head + ids[i : i + step] for i in range(0, len(ids), step)][:limit]
    windows = [w for w in windows if len(w) > 1]
    if not windows:
        raise DataError("this text is too short for a perplexity", value=text[:80], fix="use a longer text")
    losses = losses_of(model, [(w, [(1, len(w))]) for w in windows], "perplexity")
    mean, stderr = _ratio(losses)
    covered = tokenizer.decode([i for w in windows for i in w[len(head) :]], clean_up_tokenization_spaces=False)
    nats = sum(total for total, _ in losses)
    if mean > MOST_NATS:
        raise NotFinite(
            "the perplexity of this model has no finite value",
            value=f"{mean:.4g} nats a token",
            valid=f"<= {MOST_NATS}",
        )
    value = math.exp(mean)
    size = len(str(covered).encode())
    return Perplexity(value, value * stderr, nats / math.log(2) / size, sum(n for _, n in losses), window)


def _ratio(losses: list[tuple[float, int]]) -> tuple[float, float]:
    """Sum over count, and the standard error of that ratio with rows as the unit of sampling."""
    count = sum(n for _, n in losses)
    mean = sum(total for total, _ in losses) / count
    spread = sum((total - mean * n) ** 2 for total, n in losses)
    rows = len(losses)
    return mean, math.sqrt(spread * rows / max(rows - 1, 1)) / count


@torch.inference_mode()
def losses_of(
    model: PreTrainedModel | Spread, rows: Sequence[Scored], name: str, processes: Processes = ALONE
) -> list[tuple[float, int]]:
    """For each row: summed loss and count. Batches of similar length, padded on the right.

    Args:
        model: Here, or elsewhere.
        rows: What is predicted of each.
        name: Of the bar.
        processes: Who measures; each is given all rows, takes every so many batches, and has all losses in the end.
    """
    if isinstance(model, Spread):
        return model.losses(rows)
    training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    found: dict[int, tuple[float, int]] = {}
    per_row = len(rows[order[0]][0]) * int(model.config.get_text_config().vocab_size)
    size = max(1, LOGIT_ELEMENTS // per_row)
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    with bar(name, len(order)) as progress:
        for batch in processes.share(batches):
            losses = _batch_losses(model, [rows[i] for i in batch])
            found.update(zip(batch, losses, strict=True))
            progress(len(found), len(order))
    model.train(training)
    whole = {i: loss for part in processes.gather(found) for i, loss in part.items()}
    return [whole[i] for i in range(len(rows))]


def _batch_losses(model: PreTrainedModel, rows: list[Scored]) -> list[tuple[float, int]]:
    ids, mask = padded([row for row, _ in rows], 0), mask_of([row for row, _ in rows])
    labels = torch.full_like(ids, -100)
    for i, (_, spans) in enumerate(rows):
        for start, end in spans:
            labels[i, start:end] = ids[i, start:end]
    device = model.device
    first = min(start for _, spans in rows for start, _ in spans) - 1  # no logits before the first that is asked
    given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    logits: Tensor = model(**given, use_cache=False, logits_to_keep=ids.shape[1] - first).logits
    asked = labels[:, first + 1 :].to(device)
    losses = torch.nn.functional.cross_entropy(
        logits[:, -asked.shape[1] - 1 : -1].flatten(0, 1).float(), asked.flatten(), ignore_index=-100, reduction="none"
    ).view(len(rows), -1)
    totals = losses.sum(1).tolist()
    if not all(map(math.isfinite, totals)):
        raise overflow(model, {"input_ids": ids, "attention_mask": mask}, "the held-out loss")
    return list(zip(totals, (labels[:, 1:] != -100).sum(1).tolist(), strict=True))
