"""How often texts use each token, in every way in which they are put to the model; and how long they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunetune.data.example import Example
from prunetune.errors import RecipeError
from prunetune.models.prompt import PromptFormat, check_chat, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def formats_of(tokenizer: PreTrainedTokenizerBase, given: Iterable[PromptFormat] = ()) -> list[PromptFormat]:
    """The prompt formats whose tokens stay: those given, the plain one, and the chat template where there is one."""
    formats = [PromptFormat(), *given]
    if tokenizer.chat_template:
        try:
            check_chat(tokenizer)
            formats.append(PromptFormat(template="chat"))
        except RecipeError:
            pass
    return [f for i, f in enumerate(formats) if f not in formats[:i]]


def rows_of(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], formats: Sequence[PromptFormat]
) -> Iterator[list[int]]:
    """The token ids of every example, in every format, and of question and answer each alone."""
    for example in examples:
        for fmt in formats:
            yield encode(tokenizer, example, fmt, None).input_ids
        for text in (example.question, example.answer):
            yield tokenizer.encode(text, add_special_tokens=False)


def count(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], formats: Sequence[PromptFormat]
) -> Counter[int]:
    """Token id -> how often the examples use it."""
    return Counter(i for ids in rows_of(tokenizer, examples, formats) for i in ids)


@dataclass(frozen=True)
class Length:
    """How long a text is in tokens, under the original's vocabulary and under the new one.

    Attributes:
        before, after: Tokens.
        alike, texts: Of so many texts, so many are cut as before.
    """

    before: int
    after: int
    alike: int
    texts: int

    @property
    def ratio(self) -> float:
        """Tokens of the new vocabulary for one of the old."""
        return self.after / self.before if self.before else 1.0


def length(
    old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, examples: Sequence[Example], rows: Sequence[int]
) -> Length:
    """What becomes of texts: question and answer of each example.

    Args:
        old: The original's tokenizer.
        new: That of the kept tokens.
        examples: The texts.
        rows: The old id of every new one.
    """
    before = after = alike = 0
    for example in examples:
        text = f"{example.question}\n{example.answer}" if example.question else example.answer
        a, b = (t.encode(text, add_special_tokens=False) for t in (old, new))
        before, after, alike = before + len(a), after + len(b), alike + (a == [rows[i] for i in b])
    return Length(before, after, alike, len(examples))
