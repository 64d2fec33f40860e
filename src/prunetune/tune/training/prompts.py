"""The prompts of a stage that samples: exactly the ids that evaluation starts from, in the text form that TRL takes."""

from __future__ import annotations

from dataclasses import dataclass

from prunetune.errors import TuneError
from prunetune.models.prompt import prompt_ids, prompt_text
from prunetune.tune.training.given import Stage


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: What the tokenizer turns into `ids`.
        ids: Token ids.
        index: Place of its example in the stage.
    """

    text: str
    ids: tuple[int, ...]
    index: int


def make_prompts(stage: Stage, max_length: int) -> tuple[list[Prompt], int]:
    """The prompts of at most `max_length` tokens, and how many examples were left out.

    Raises:
        TuneError: None is left, or the tokenizer adds tokens that evaluation would not see.
    """
    fmt, tokenizer = stage.job.fmt, stage.tokenizer
    bos = tokenizer.bos_token or ""
    out: list[Prompt] = []
    for index, example in enumerate(stage.examples):
        if not example.question:
            continue
        text = prompt_text(tokenizer, example.question, fmt, example.before)
        ids = prompt_ids(tokenizer, example.question, fmt, example.before)
        if len(ids) > max_length:
            continue
        if bos and text.startswith(bos) and tokenizer(text)["input_ids"] != ids:
            text = text.removeprefix(bos)  # a chat template's own BOS; the tokenizer adds it again
        if tokenizer(text)["input_ids"] != ids:
            raise TuneError(
                "this tokenizer adds tokens to a prompt that evaluation does not see",
                value=text[:200],
                fix="use template: plain",
            )
        out.append(Prompt(text, tuple(ids), index))
    if not out:
        raise TuneError(
            "there is no prompt to train on",
            value=f"{len(stage.examples)} examples, max_length {max_length}",
            fix="give questions with answers, or raise max_length",
        )
    return out, len(stage.examples) - len(out)
