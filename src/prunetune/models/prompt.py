"""Question -> token ids, one way for scoring, tuning, evaluation and RL: plain template or the model's chat template.

    fmt = PromptFormat()
    ids = prompt_ids(tokenizer, "What is 2 + 3?", fmt)                  # what generation starts from
    row = encode_example(tokenizer, "What is 2 + 3?", "5", fmt, 1024)   # the same ids, then the answer, then the end

A training row starts with exactly the ids that generation starts from: no token spans the border of prompt and answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from prunetune.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """System message, for `chat` only."""

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
        prompt_length: How many of them are the prompt (not counted in a completion-only loss).
        truncated: Whether the row was cut by the length limit (it then has no end token).
    """

    input_ids: list[int]
    prompt_length: int
    truncated: bool


def prompt_text(tokenizer: PreTrainedTokenizerBase, question: str, fmt: PromptFormat) -> str:
    """The prompt as text. In `plain` it lacks the tokenizer's own BOS, which `prompt_ids` adds."""
    if fmt.template == "plain":
        return fmt.question.replace("{question}", question)
    return _chat(tokenizer, question, None, fmt)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str, fmt: PromptFormat) -> list[int]:
    """The prompt's token ids, with BOS exactly as the tokenizer itself adds it, once, and never an end token."""
    return _ids(tokenizer, prompt_text(tokenizer, question, fmt), fmt)


def encode_example(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str, fmt: PromptFormat, max_length: int | None
) -> Encoded:
    """A question and its worked answer as one training row.

    An empty question means running text (a general corpus): BOS, the text, the end token, with no template.
    """
    if question:
        prompt = prompt_text(tokenizer, question, fmt)
        rest = _answer_text(tokenizer, prompt, question, answer, fmt)
        start = _ids(tokenizer, prompt, fmt)
    else:
        prompt, rest = "", answer
        start = _ids(tokenizer, "", fmt)
    whole = _ids(tokenizer, prompt + rest, fmt)
    # Tokenised jointly where that keeps the border (SentencePiece would put a second space before a text of its own).
    kept = bool(prompt) and whole[: len(start)] == start
    tail = whole[len(start) :] if kept or not question else tokenizer.encode(rest, add_special_tokens=False)
    ends = end_ids(tokenizer)
    if ends and (not tail or tail[-1] not in ends):
        tail = [*tail, ends[0]]
    ids = [*start, *tail]
    cut = max_length is not None and len(ids) > max_length
    return Encoded(ids[:max_length] if cut else ids, min(len(start), max_length or len(start)), cut)


def end_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's end token first, then those of the generation config."""
    named = getattr(generation_config, "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return tuple(dict.fromkeys(int(i) for i in [tokenizer.eos_token_id, *several] if i is not None))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, fmt: PromptFormat) -> list[int]:
    if fmt.template == "chat" and text:  # a chat template writes its own BOS
        return list(tokenizer.encode(text, add_special_tokens=False))
    ids = list(tokenizer.encode(text))
    bare = list(tokenizer.encode(text, add_special_tokens=False))
    if ids and ids[-1] == tokenizer.eos_token_id and ids[-len(bare) :] != bare:  # some tokenizers close every text
        ids.pop()
    return ids


def _answer_text(tokenizer: PreTrainedTokenizerBase, prompt: str, question: str, answer: str, fmt: PromptFormat) -> str:
    if fmt.template == "plain":
        return fmt.answer.replace("{answer}", answer)
    whole = _chat(tokenizer, question, answer, fmt)
    if not whole.startswith(prompt):
        raise RecipeError(
            "this chat template writes a finished turn unlike the prompt of an open one, so no training row can be cut",
            value=whole[:200],
            fix="use template: plain",
        )
    return whole[len(prompt) :].rstrip()  # templates put a newline behind the end-of-turn token


def check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError if a tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise RecipeError(
            "this tokenizer has no chat template", value="template: chat", fix="use template: plain, or a chat model"
        )


def _chat(tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None, fmt: PromptFormat) -> str:
    check_chat(tokenizer)
    turns = [{"role": "system", "content": fmt.system}] if fmt.system is not None else []
    turns.append({"role": "user", "content": question})
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))
