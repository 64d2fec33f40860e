"""Question -> token ids, one way for scoring, tuning, evaluation and RL: plain template or the model's chat template.

    fmt = PromptFormat()
    ids = prompt_ids(tokenizer, "What is 2 + 3?", fmt)                  # what generation starts from
    row = encode_example(tokenizer, "What is 2 + 3?", "5", fmt, 1024)   # the same ids, then the answer, then the end

A training row starts with exactly the ids that generation starts from: no token spans the border of prompt and answer.
The answer stands in the row whole. Chat templates of reasoning models delete what precedes `</think>` in a finished
turn; such a row is the prompt, the answer as it was written, and the end that the template gives a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prunetune.data.example import Example, Turn
from prunetune.errors import RecipeError
from prunetune.models.chat import PLAIN, find_template, where_of
from prunetune.models.folders import check_tokens
from prunetune.models.turns import chat_text, pieces_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptFormat(BaseModel):
    """How a question is put to the model, and where its answer goes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    template: Literal["plain", "chat"] = "plain"
    """`plain`: the two texts below. `chat`: the tokenizer's own chat template (the two texts are not used)."""
    question: str = "Question: {question}\nAnswer:"
    """The prompt of `plain`; `{question}` stands for the question."""
    answer: str = " {answer}"
    """What follows the prompt of `plain` in a training row; `{answer}` stands for the answer."""
    system: str | None = None
    """System message, for `chat` only. A row's own system message goes before it."""
    name: str | None = Field(default=None, exclude_if=lambda v: v is None)
    """`chat`: which of a tokenizer's named templates. None: its only one, or `default`."""
    variables: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda v: not v)
    """`chat`: further variables of the template, such as `{enable_thinking: true}`."""

    @field_validator("question")
    @classmethod
    def _holds_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("the template of the question must contain {question}")
        return value

    @field_validator("answer")
    @classmethod
    def _holds_answer(cls, value: str) -> str:
        if "{answer}" not in value:
            raise ValueError("the template of the answer must contain {answer}")
        return value


@dataclass(frozen=True)
class Encoded:
    """One training row.

    Attributes:
        input_ids: Prompt, answer, end token; at most `max_length`.
        prompt_length: How many of them come before the (first) answer: they never count in a completion-only loss.
        truncated: Whether the row was cut by the length limit (it then has no end token).
        answers: [start, end) of each answer with its end of turn; running text is one answer.
    """

    input_ids: list[int]
    prompt_length: int
    truncated: bool
    answers: tuple[tuple[int, int], ...] = ()


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, question: str, fmt: PromptFormat, before: Sequence[Turn] = ()
) -> str:
    """The prompt as text. In `plain` it lacks the tokenizer's own BOS, which `prompt_ids` adds."""
    return "".join(pieces_of(tokenizer, question, None, fmt, before))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, fmt: PromptFormat, before: Sequence[Turn] = ()
) -> list[int]:
    """The prompt's token ids, with BOS exactly as the tokenizer itself adds it, once, and never an end token."""
    return _joined(tokenizer, pieces_of(tokenizer, question, None, fmt, before), fmt)[0]


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, fmt: PromptFormat, max_length: int | None) -> Encoded:
    """An example of the data as one training row. RecipeError names its row if the template cannot take it."""
    try:
        return encode_example(tokenizer, example.question, example.answer, fmt, max_length, example.before)
    except RecipeError as e:
        raise at_row(e, example) from None


def check_rows(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    fmt: PromptFormat,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Raise RecipeError, naming the row, unless each example can be written whole. No row is turned into tokens.

    Args:
        tokenizer: The model's.
        examples: The rows.
        fmt: Prompt format; nothing can go wrong with `plain`.
        progress: Called with (rows done, rows in all).

    Returns:
        A line on the rows whose question the chat template shortens or changes; empty if there are none.
    """
    if fmt.template == "plain":
        return ""
    check_chat(tokenizer, fmt)
    changed = list[Example]()
    for number, example in enumerate(examples, start=1):
        if example.question:
            try:
                *_, prompt, _ = pieces_of(tokenizer, example.question, example.answer, fmt, example.before)
            except RecipeError as e:
                raise at_row(e, example) from None
            if not _holds(prompt, example.question):
                changed.append(example)
        if progress is not None and number % 256 == 0:
            progress(number, len(examples))
    where = (changed[0].where or changed[0].source) if changed else ""
    return _changes(len(changed), len(examples), where)


def questions_note(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], fmt: PromptFormat, of: str) -> str:
    """A line on the questions of a task that the chat template shortens or changes; empty if there are none."""
    if fmt.template == "plain":
        return ""
    changed = [q for q in questions if not _holds(prompt_text(tokenizer, q, fmt), q)]
    return _changes(len(changed), len(questions), of)


def _holds(prompt: str, question: str) -> bool:
    """Whether a question stands in its prompt whole; space and line ends may be others."""
    return "".join(question.split()) in "".join(prompt.split())


def _changes(changed: int, of: int, where: str) -> str:
    said = f"the chat template shortens or changes the question of {changed:,} of {of:,} rows ({where})"
    return f"warning: {said}: the model does not read them whole" if changed else ""


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str,
    fmt: PromptFormat,
    max_length: int | None,
    before: Sequence[Turn] = (),
) -> Encoded:
    """A question and its worked answer as one training row.

    An empty question means running text (a general corpus): BOS, the text, the end token, with no template.

    Args:
        tokenizer: The model's.
        question: The (last) question.
        answer: Its answer.
        fmt: Prompt format.
        max_length: Longest row. None: no limit.
        before: The turns before the question, from the first.
    """
    if question:
        ids, spans = _joined(tokenizer, pieces_of(tokenizer, question, answer, fmt, before), fmt)
    else:
        start = _ids(tokenizer, "", fmt)
        whole = _ids(tokenizer, answer, fmt)
        ids, spans = [*start, *whole[len(start) :]], [(len(start), len(whole))]
    ends = end_ids(tokenizer)
    if ends and (len(ids) == spans[-1][0] or ids[-1] not in ends):
        ids = [*ids, ends[0]]
    spans[-1] = (spans[-1][0], len(ids))
    limit = len(ids) if max_length is None else min(max_length, len(ids))
    kept = tuple((start, min(end, limit)) for start, end in spans if start < limit)
    return Encoded(ids[:limit], min(spans[0][0], limit), limit < len(ids), kept)


def end_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's end token first, then those of the generation config."""
    named = getattr(generation_config, "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return tuple(dict.fromkeys(int(i) for i in [tokenizer.eos_token_id, *several] if i is not None))


def check_chat(tokenizer: PreTrainedTokenizerBase, fmt: PromptFormat | None = None) -> None:
    """Raise RecipeError unless the tokenizer's chat template writes a question: it is tried on one."""
    fmt = fmt or PromptFormat(template="chat")
    find_template(tokenizer, fmt.name)
    probe = "What is 2 + 3?"
    text = chat_text(tokenizer, [("user", probe)], fmt, opened=True)
    if probe not in text:
        lost = "leaves the question out of the prompt" if text.strip() else "writes nothing"
        raise RecipeError(f"this chat template {lost}", value=where_of(tokenizer), fix=f"mend the template; {PLAIN}")


def plain_hint(tokenizer: PreTrainedTokenizerBase, fmt: PromptFormat, how: str = "prompt: {template: chat}") -> str:
    """One line for a model that has a chat template and is asked plainly; else an empty text."""
    if fmt.template == "chat" or not tokenizer.chat_template:
        return ""
    return f"note: this model has a chat template, and the prompt is plain; if it was trained with it: {how}"


def bos_note(tokenizer: PreTrainedTokenizerBase, fmt: PromptFormat) -> str:
    """One line for a chat template without the token that the tokenizer puts before every other text; else empty."""
    own = _ids(tokenizer, "", PromptFormat())
    if fmt.template == "plain" or not own or prompt_ids(tokenizer, "2 + 3?", fmt)[: len(own)] == own:
        return ""
    return f"note: this chat template does not begin with {tokenizer.bos_token}, as the tokenizer's other texts do"


def at_row(error: RecipeError, example: Example) -> RecipeError:
    """The same error with the row that it happened at."""
    place = example.where or example.source
    row = f"{place}: {(example.question or example.answer)[:80]!r}; {error.value}"
    return RecipeError(error.what, value=row, valid=error.valid, fix=error.fix)


# ----------------------------------------------------------------------------------------------------- text -> tokens


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, fmt: PromptFormat) -> list[int]:
    if fmt.template == "chat" and text:  # a chat template writes its own BOS
        return check_tokens(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    ids = check_tokens(tokenizer, tokenizer.encode(text))
    bare = list(tokenizer.encode(text, add_special_tokens=False))
    if ids and ids[-1] == tokenizer.eos_token_id and ids[-len(bare) :] != bare:  # some tokenizers close every text
        ids.pop()
    return ids


def _joined(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], fmt: PromptFormat
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of prompt, answer, prompt, answer … and [start, end) of each answer.

    A piece is tokenised together with what is before it where that keeps the border (SentencePiece would put a second
    space before a text of its own).
    """
    ids, text, spans = _ids(tokenizer, pieces[0], fmt), pieces[0], list[tuple[int, int]]()
    for number, piece in enumerate(pieces[1:], start=1):
        start, whole = len(ids), _ids(tokenizer, text + piece, fmt)
        kept = whole[:start] == ids
        own = () if kept else check_tokens(tokenizer, tokenizer.encode(piece, add_special_tokens=False))
        ids = whole if kept else [*ids, *own]
        text += piece
        if number % 2:
            spans.append((start, len(ids)))
    return ids, spans
