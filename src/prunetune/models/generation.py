"""Batched greedy generation with plain `model.generate`: left padding, end tokens, stop texts, real lengths.

Outputs do not depend on the batch they were made in (up to rounding), and every answer says how long it really was.
Rows that have ended leave the batch every `SPAN` steps; the others go on with their part of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prunetune.errors import UnsupportedModel
from prunetune.models.batches import mask_of, padded
from prunetune.models.finite import is_finite, overflow
from prunetune.models.folders import pad_id
from prunetune.models.prompt import end_ids

SPAN = 128
"""Steps after which rows that have ended leave the batch: one endless answer must not keep all others computing."""


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: Without end token, cut at the first stop text.
        new_tokens: Generated tokens, the end token included.
        ended: What ended it: the end token, a stop text, or the length limit.
    """

    text: str
    new_tokens: int
    ended: Literal["end", "stop", "length"]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
) -> list[Answer]:
    """Greedy answers to prompts (token ids), all in one batch.

    Sampling settings and penalties of the model's own generation config do not apply; its end tokens do. NotFinite
    where a token would be chosen from logits that are NaN.
    """
    ends = end_ids(tokenizer, model.generation_config)
    pad = pad_id(tokenizer)
    ids, mask = padded(prompts, pad, left=True).to(model.device), mask_of(prompts, left=True).to(model.device)
    width = ids.shape[1]
    greedy = GenerationConfig(
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
        return_dict_in_generate=True,
    )
    going, stopped = list(range(len(prompts))), dict[int, int]()
    new: list[list[int]] = [[] for _ in prompts]
    generator: Any = model  # the type of a pretrained model leaves `generate` out
    cache: dict[str, Any] = {}
    with _own_config(model, greedy):
        while going and (made := ids.shape[1] - width) < max_new_tokens:
            greedy.max_new_tokens = min(SPAN, max_new_tokens - made)
            criterion = _StopTexts(tokenizer, stop, width, model) if stop else None
            criteria = StoppingCriteriaList([criterion] if criterion else [])
            result = generator.generate(
                **without_router(model),
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=criteria,
                logits_processor=LogitsProcessorList([Numbers(model, mask)]),
                **cache,
            )
            ids, halted = result.sequences, criterion.length if criterion else {}
            for i, tokens in enumerate(ids[:, width + made :].tolist()):
                new[going[i]] += tokens
                if i in halted:
                    stopped[going[i]] = halted[i]
            keep = [i for i, row in enumerate(going) if i not in halted and not set(new[row]) & set(ends)]
            at = torch.tensor(keep, dtype=torch.long, device=ids.device)
            going, ids = [going[i] for i in keep], ids[at]
            mask = torch.nn.functional.pad(mask[at], (0, ids.shape[1] - mask.shape[1]), value=1)
            cache = {"past_key_values": result.past_key_values}
            if going and len(going) < len(result.sequences):
                result.past_key_values.reorder_cache(at)  # layers without attention have no other way to lose rows
    return [_answer(tokenizer, row, ends, stop, stopped.get(i)) for i, row in enumerate(new)]


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    ends: tuple[int, ...],
    stop: tuple[str, ...],
    stopped: int | None,
) -> Answer:
    end = next((i for i, token in enumerate(ids[:stopped]) if token in ends), None)
    length = stopped if stopped is not None else len(ids)
    text = str(tokenizer.decode(ids[: length if end is None else end], skip_special_tokens=True))
    at = min((i for i in (text.find(s) for s in stop) if i >= 0), default=None)
    if end is not None and at is None:
        return Answer(text, end + 1, "end")
    return Answer(
        text if at is None else text[:at], length if end is None else end + 1, "length" if at is None else "stop"
    )


class Numbers(LogitsProcessor):
    """Changes no logits, and stops where a row's largest is NaN or infinite: argmax would make a token of it.

    Args:
        model: Who made them.
        mask: Attention mask of the prompts [batch, places]; what is generated after them counts.
    """

    def __init__(self, model: PreTrainedModel, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Ids [batch, places] and logits [batch, vocabulary] of the next token -> those logits."""
        if not is_finite(scores.amax(-1)):
            more = input_ids.shape[1] - self.mask.shape[1]
            mask = torch.nn.functional.pad(self.mask, (0, more), value=1)
            raise overflow(self.model, {"input_ids": input_ids, "attention_mask": mask}, "the next token")
        return scores


class _StopTexts(StoppingCriteria):
    """Ends a row once its text holds a stop text, and notes how many tokens it had then."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], start: int, model: PreTrainedModel
    ) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.span = max(len(s.encode()) for s in stop) + 4  # a token holds a byte or more; some hold none
        self.length: dict[int, int] = {}
        self.suspects = _may_complete(tokenizer, stop, int(model.config.get_text_config().vocab_size)).to(model.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        rows = [i for i in self.suspects[input_ids[:, -1]].nonzero().flatten().tolist() if i not in self.length]
        if rows:
            tails = input_ids[rows, max(self.start, input_ids.shape[1] - self.span) :].tolist()
            for row, text in zip(rows, self.tokenizer.batch_decode(tails, skip_special_tokens=True), strict=True):
                if any(s in text for s in self.stop):
                    self.length[row] = input_ids.shape[1] - self.start
        if self.length:
            done[list(self.length)] = True
        return done  # type: ignore[return-value]  # torch's own type for a tensor of booleans is Tensor


def _may_complete(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], vocabulary: int) -> torch.Tensor:
    """Which tokens can be the last one of a stop text. Decoding at every step would cost more than a small model."""
    last = {s[-1] for s in stop}
    if not all(c.isascii() and c.isprintable() and c != " " for c in last):
        return torch.ones(vocabulary, dtype=torch.bool)  # such characters look different inside a vocabulary
    names = tokenizer.convert_ids_to_tokens(list(range(min(vocabulary, len(tokenizer)))))
    hits = [i for i, name in enumerate(names) if name is not None and any(c in name for c in last)]
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    mask[hits] = True
    return mask


def check_router(config: Any) -> None:
    """UnsupportedModel for a mixture whose config asks for its router's loss: for what samples answers and trains."""
    if getattr(config, "output_router_logits", False):
        raise UnsupportedModel(
            "grpo does not train with the router's auxiliary loss, and config.json asks for it",
            value="output_router_logits: true",
            valid="cpt, sft and distill with it; grpo without",
            fix="set output_router_logits: false in config.json, or take another method",
        )


def without_router(model: PreTrainedModel) -> dict[str, bool]:
    """What `generate` is to be told of a mixture whose config asks for its router's loss (`output_router_logits`):
    with a cache transformers compares the router's new tokens with a mask of all.
    """
    return {"output_router_logits": False} if getattr(model.config, "output_router_logits", False) else {}


@contextmanager
def _own_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Generate with `config` alone: `generate` would fill its unset fields from the model's (penalties, sampling)."""
    before, training = model.generation_config, model.training
    model.generation_config = config
    model.eval()
    try:
        yield
    finally:
        model.generation_config = before
        model.train(training)
