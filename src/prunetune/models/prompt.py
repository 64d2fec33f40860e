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
from prunetune.models.chat import PLAIN, Message, find_template, render, where_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK = "<think>"
BETWEEN = "\n\n"
"""What `plain` writes between two turns, and behind a system turn."""


class PromptFormat(BaseModel):
    """How a question is put to the model, and where its answer goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    return "".join(_pieces(tokenizer, question, None, fmt, before))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, fmt: PromptFormat, before: Sequence[Turn] = ()
) -> list[int]:
    """The prompt's token ids, with BOS exactly as the tokenizer itself adds it, once, and never an end token."""
    return _joined(tokenizer, _pieces(tokenizer, question, None, fmt, before), fmt)[0]


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
) -> None:
    """Raise RecipeError, naming the row, unless each example can be written whole. No row is turned into tokens.

    Args:
        tokenizer: The model's.
        examples: The rows.
        fmt: Prompt format; nothing can go wrong with `plain`.
        progress: Called with (rows done, rows in all).
    """
    if fmt.template == "plain":
        return
    check_chat(tokenizer, fmt)
    for number, example in enumerate(examples, start=1):
        if example.question:
            try:
                _pieces(tokenizer, example.question, example.answer, fmt, example.before)
            except RecipeError as e:
                raise at_row(e, example) from None
        if progress is not None and number % 256 == 0:
            progress(number, len(examples))


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
        ids, spans = _joined(tokenizer, _pieces(tokenizer, question, answer, fmt, before), fmt)
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
    text = _chat(tokenizer, [("user", probe)], fmt, opened=True)
    if probe not in text:
        lost = "leaves the question out of the prompt" if text.strip() else "writes nothing"
        raise RecipeError(f"this chat template {lost}", value=where_of(tokenizer), fix=f"mend the template; {PLAIN}")


def whole_answer(prompt: str, answer: str) -> str:
    """A sampled answer as a row of data has it: with the `<think>` that its prompt had opened."""
    opened = prompt.rstrip()
    if not opened.endswith(THINK) or answer.lstrip().startswith(THINK):
        return answer
    return THINK + (prompt[len(opened) :] or "") + answer


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
        return list(tokenizer.encode(text, add_special_tokens=False))
    ids = list(tokenizer.encode(text))
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
        ids = whole if kept else [*ids, *tokenizer.encode(piece, add_special_tokens=False)]
        text += piece
        if number % 2:
            spans.append((start, len(ids)))
    return ids, spans


# ----------------------------------------------------------------------------------------------------- turns -> text


def _pieces(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str | None,
    fmt: PromptFormat,
    before: Sequence[Turn],
) -> list[str]:
    """Prompt, answer, prompt, answer, … as text; without the last answer if there is none yet."""
    if fmt.template == "plain":
        return _plain_pieces(question, answer, fmt, before)
    if any(role == "assistant" for role, _ in before):
        return _several_turns(tokenizer, question, answer, fmt, before)
    turns = [*before, ("user", question)]
    prompt = _chat(tokenizer, turns, fmt, opened=True)
    return [prompt] if answer is None else [prompt, _one_answer(tokenizer, turns, prompt, answer, fmt)]


def _plain_pieces(question: str, answer: str | None, fmt: PromptFormat, before: Sequence[Turn]) -> list[str]:
    pieces, prompt = list[str](), ""
    turns = [*before, ("user", question), *([("assistant", answer)] if answer is not None else [])]
    for role, text in turns:
        if role == "assistant":
            pieces += [prompt, fmt.answer.replace("{answer}", text)]
            prompt = BETWEEN
        else:
            prompt += text + BETWEEN if role == "system" else fmt.question.replace("{question}", text)
    return pieces if answer is not None else [*pieces, prompt]


def _one_answer(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], prompt: str, answer: str, fmt: PromptFormat
) -> str:
    """What follows the prompt: as the template writes it where the answer is whole, else the answer and its end."""
    whole = _chat(tokenizer, [*turns, ("assistant", answer)], fmt, opened=False)
    if whole.startswith(prompt) and _behind(prompt, answer).strip() in whole[len(prompt) :]:
        return whole[len(prompt) :].rstrip()  # templates put a newline behind the end-of-turn token
    mark = _mark([*turns, ("assistant", answer)])
    marked = _chat(tokenizer, [*turns, ("assistant", mark)], fmt, opened=False)
    head, found, tail = marked.rpartition(mark)
    if not found:
        raise _loses(tokenizer, "the answer")
    space = head[len(prompt) :] if head.startswith(prompt) else ""
    return (space if space.isspace() else "") + _behind(prompt, answer) + tail.rstrip()


def _several_turns(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None, fmt: PromptFormat, before: Sequence[Turn]
) -> list[str]:
    """A conversation: the template writes it around marks, and the answers stand where the marks were."""
    turns = [*before, ("user", question)]
    mark = _mark([*turns, ("assistant", answer or "")])
    answers = [text for role, text in before if role == "assistant"]
    numbers = iter(range(len(answers)))
    marked = [(role, f"{mark}{next(numbers)}X" if role == "assistant" else text) for role, text in turns]
    rest, parts = _chat(tokenizer, marked, fmt, opened=True), list[str]()
    for i in range(len(answers)):
        head, found, rest = rest.partition(f"{mark}{i}X")
        if not found:
            raise _loses(tokenizer, "earlier turns")
        parts.append(head)
    first = turns[: [role for role, _ in turns].index("assistant")]
    opening = _chat(tokenizer, first, fmt, opened=True)
    thinks = opening[len(parts[0]) :] if opening.startswith(parts[0]) else ""
    pieces: list[str] = []
    for i, text in enumerate(answers):
        opens = thinks if text.lstrip().startswith(THINK) else ""
        pieces += [parts[i] + opens, _behind(parts[i] + opens, text)]
    closed = _chat(tokenizer, [*marked, ("assistant", mark + "END")], fmt, opened=False)
    _, found, tail = closed.rpartition(mark + "END")
    if not found:
        raise _loses(tokenizer, "the answer")
    last = [] if answer is None else [_behind(rest, answer) + tail.rstrip()]
    return _with_ends([*pieces, rest, *last], tail.rstrip())


def _with_ends(pieces: list[str], end: str) -> list[str]:
    """The end of a turn belongs to the answer before it, which is to learn it, not to the next prompt."""
    for i in range(2, len(pieces), 2):
        if end and pieces[i].startswith(end):
            pieces[i - 1], pieces[i] = pieces[i - 1] + end, pieces[i][len(end) :]
    return pieces


def _behind(prompt: str, answer: str) -> str:
    """The answer as it follows a prompt: without the `<think>` that the prompt has opened."""
    opened = prompt.rstrip()
    if not opened.endswith(THINK) or not answer.lstrip().startswith(THINK):
        return answer
    space, rest = prompt[len(opened) :], answer.lstrip()[len(THINK) :]
    return rest.removeprefix(space) if space else rest


def _mark(turns: Sequence[Turn]) -> str:
    """A word that is in none of the turns."""
    mark = "ANSWERHERE"
    while any(mark in text for _, text in turns):
        mark += "Q"
    return mark


def _loses(tokenizer: PreTrainedTokenizerBase, part: str) -> RecipeError:
    return RecipeError(
        f"this chat template leaves {part} out, so no row can be made of it",
        value=where_of(tokenizer),
        fix=f"copy the model's chat template again; {PLAIN}",
    )


def _chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], fmt: PromptFormat, *, opened: bool) -> str:
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    if fmt.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": fmt.system})
    return render(tokenizer, messages, opened=opened, name=fmt.name, variables=fmt.variables)
