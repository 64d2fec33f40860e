"""A conversation -> its pieces of text: prompt, answer, prompt, answer, …, plainly or by the model's chat template.

    pieces_of(tokenizer, "2 + 3?", "5", PromptFormat(template="chat"), ())    # -> ["[user]2 + 3?[assistant]", "5[end]"]

The pieces put together are the row, and all but the last answer the prompt that generation starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunetune.data.example import Turn
from prunetune.errors import RecipeError
from prunetune.models.chat import PLAIN, Message, render, where_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prunetune.models.prompt import PromptFormat

THINK = "<think>"
BETWEEN = "\n\n"
"""What `plain` writes between two turns, and behind a system turn."""


def pieces_of(
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
    prompt = chat_text(tokenizer, turns, fmt, opened=True)
    return [prompt] if answer is None else [prompt, _one_answer(tokenizer, turns, prompt, answer, fmt)]


def whole_answer(prompt: str, answer: str) -> str:
    """A sampled answer as a row of data has it: with the `<think>` that its prompt had opened."""
    opened = prompt.rstrip()
    if not opened.endswith(THINK) or answer.lstrip().startswith(THINK):
        return answer
    return THINK + (prompt[len(opened) :] or "") + answer


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
    whole = chat_text(tokenizer, [*turns, ("assistant", answer)], fmt, opened=False)
    if whole.startswith(prompt) and _behind(prompt, answer).strip() in whole[len(prompt) :]:
        return whole[len(prompt) :].rstrip()  # templates put a newline behind the end-of-turn token
    mark = _mark([*turns, ("assistant", answer)])
    marked = chat_text(tokenizer, [*turns, ("assistant", mark)], fmt, opened=False)
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
    rest, parts = chat_text(tokenizer, marked, fmt, opened=True), list[str]()
    for i in range(len(answers)):
        head, found, rest = rest.partition(f"{mark}{i}X")
        if not found:
            raise _loses(tokenizer, "earlier turns")
        parts.append(head)
    first = turns[: [role for role, _ in turns].index("assistant")]
    opening = chat_text(tokenizer, first, fmt, opened=True)
    thinks = opening[len(parts[0]) :] if opening.startswith(parts[0]) else ""
    pieces: list[str] = []
    for i, text in enumerate(answers):
        opens = thinks if text.lstrip().startswith(THINK) else ""
        pieces += [parts[i] + opens, _behind(parts[i] + opens, text)]
    closed = chat_text(tokenizer, [*marked, ("assistant", mark + "END")], fmt, opened=False)
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


def chat_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], fmt: PromptFormat, *, opened: bool) -> str:
    """The turns as the chat template writes them, the recipe's system turn in front if they have none of their own."""
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    if fmt.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": fmt.system})
    return render(tokenizer, messages, opened=opened, name=fmt.name, variables=fmt.variables)
