"""Rows of every usual form -> samples: question and answer columns, conversations, Alpaca's, running text.

    columns = find_columns(first_row, None, "rows.csv")     # by well-known names; or as the user maps them
    columns.said()                                          # "question = problem, answer = solution"
    sample_of(row, columns, "rows.csv, row 7")              # -> Sample(question, answer, before), or DataError

To add a name: one entry in the tuples below, the more telling ones first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from prunetune.data.example import Turn
from prunetune.data.fields import Row, one_of, text_of, unknown_column
from prunetune.errors import DataError

QUESTIONS = ("question", "problem", "instruction", "query", "prompt", "input")
ANSWERS = ("answer", "solution", "output", "response", "completion", "generated_solution", "target")
REFERENCES = ("answer", "expected_answer", "final_answer", "reference", "target", *ANSWERS[1:-1])
TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue")
TEXTS = ("text", "content")
SYSTEMS = ("system", "system_prompt")
KEYS = ("question", "answer", "text", "messages", "input", "system")
"""What `columns` may map."""

ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "model": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
TOOLS = ("tools", "functions")
"""Columns that belong to a conversation and cannot be written into its turns."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which some interfaces keep a turn's reasoning, apart from its content."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row a sample is made of."""

    question: str | None = None
    answer: str | None = None
    text: str | None = None
    messages: str | None = None
    input: str | None = None
    system: str | None = None

    def said(self) -> str:
        """As one reads it: `question = problem, answer = solution`."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(name if name == column else f"{name} = {column}" for name, column in named if column)


@dataclass(frozen=True)
class Sample:
    """Question, answer and the turns before; of running text the answer alone."""

    question: str
    answer: str
    before: tuple[Turn, ...] = ()


def is_row(row: Row) -> bool:
    """Whether an object has the columns of a sample by well-known names."""
    return _by_name(row, ANSWERS) is not None


def find_columns(
    row: Row, given: Mapping[str, str] | None, where: str, *, answers: tuple[str, ...] = ANSWERS
) -> Columns:
    """The columns of a data set, from its first row.

    Args:
        row: The first row.
        given: What the user maps, whole or in part; the rest is found by name.
        where: For messages.
        answers: Well-known names of the answer, the most telling first.

    Raises:
        DataError: No known names, names that are not there, or a mapping of what is no part of a sample.
    """
    given = dict(given or {})
    unknown = [key for key in given if key not in KEYS]
    if unknown or ("text" in given and len(given) > 1) or ("messages" in given and {"question", "answer"} & set(given)):
        raise _bad_columns(given, row)
    for column in given.values():
        if column not in row:
            raise unknown_column(column, row, where)
    if {"text", "messages"} & set(given):
        return Columns(**given)
    found = None if given else _by_name(row, answers)
    if found is not None:
        return found
    names = {_plain(name): name for name in row if name not in given.values()}
    question, answer = given.get("question") or _first(names, QUESTIONS), given.get("answer") or _first(names, answers)
    if given and question and answer:
        return Columns(**{**given, "question": question, "answer": answer})
    if question and not answer and set(given) == {"question"} and is_turns(row.get(question)):
        return Columns(messages=question)
    if given:
        raise _bad_columns(given, row)
    raise DataError(
        f"{where}: no column of a well-known name holds question and answer, a conversation, or text",
        value=sorted(map(str, row))[:20],
        valid="question, answer (problem, solution, instruction, output, prompt, completion, …), messages, text",
        fix="say which: columns: {question: …, answer: …} (--columns question=…,answer=…), or {text: …}",
    )


def sample_of(row: Row, columns: Columns, where: str, *, reference: bool = False) -> Sample | None:
    """One row as a sample; None for a blank row of running text. DataError names the row and what is wrong with it.

    Args:
        row: As the file has it.
        columns: Where question and answer are.
        where: File and row.
        reference: The answer is one to judge by: a list of one is that one.
    """
    for name in (columns.question, columns.answer, columns.text, columns.messages):
        if name is not None and name not in row:
            raise unknown_column(name, row, where)
    if columns.text is not None:
        text = text_of(row[columns.text], "text", where, blank=True)
        return Sample("", text) if text.strip() else None
    turns = _system(row, columns, where)
    if columns.messages is not None:
        if tools := next((name for name in TOOLS if row.get(name)), None):
            raise DataError(f"{where}: {tools} of a conversation are not read", fix="leave such rows out")
        return _conversation([*turns, *turns_of(row[columns.messages], columns.messages, where)], where)
    question, answer = row[columns.question or ""], row[columns.answer or ""]
    turns += _history(row, where) if columns.input is not None else []
    if is_turns(question):
        turns += turns_of(question, "question", where)
    else:
        text = text_of(question, "question", where)
        more = row.get(columns.input) if columns.input is not None else None
        more = "" if more is None else text_of(more, str(columns.input), where, blank=True)
        turns.append(("user", f"{text}\n{more}" if more.strip() else text))
    answer = one_of(answer) if reference and not is_turns(answer) else answer
    if is_turns(answer):
        turns += turns_of(answer, "answer", where)
    else:
        turns.append(("assistant", text_of(answer, "answer", where)))
    return _conversation(turns, where)


# ------------------------------------------------------------------------------------------------------ conversations


def turns_of(value: Any, name: str, where: str) -> list[Turn]:
    """A conversation in OpenAI's form (role, content) or ShareGPT's (from, value), or JSON text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(
                f"{where}: {name} is text that looks like a list of turns, but is no JSON", value=value[:80],
                fix="write the rows as JSONL, with the turns as a list",
            ) from None  # fmt: skip
    if not isinstance(value, list | tuple) or not value:
        kind = "an empty list" if value == [] else "null" if value is None else type(value).__name__
        raise DataError(f"{where}: {name} is {kind}, not a list of turns", value=repr(value)[:80], fix="mend the row")
    return [_turn(turn, f"{name}, turn {i}", where) for i, turn in enumerate(value, start=1)]


def _turn(turn: Any, name: str, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: {name} is no {{role, content}}", value=repr(turn)[:80], fix="mend the row")
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(str(said).strip().casefold())
    if role is None or turn.get("tool_calls") or turn.get("function_call"):
        what = f"has the role {said!r}" if role is None else "calls a tool"
        raise DataError(
            f"{where}: {name} {what}, which is not read", value=repr(turn)[:80], valid=sorted(ROLES),
            fix="leave such rows out, or write the turns as text",
        )  # fmt: skip
    content = next((turn[key] for key in ("content", "value", "text") if key in turn), None)
    if isinstance(content, list):
        content = _parts(content, name, where)
    thought = next((turn[key] for key in REASONING if turn.get(key)), None)
    text = text_of(content, name, where, blank=role == "system")
    if thought is None or role != "assistant":
        return role, text
    return role, f"<think>\n{text_of(thought, f'{name}, reasoning', where)}\n</think>\n\n{text}"


def _parts(parts: list[Any], name: str, where: str) -> str:
    """Content in parts, of which each must be text."""
    texts = [p if isinstance(p, str) else p.get("text") if isinstance(p, dict) else None for p in parts]
    if not parts or any(not isinstance(text, str) for text in texts):
        raise DataError(
            f"{where}: {name} has a part that is no text", value=repr(parts)[:80], valid="text",
            fix="leave rows with images or sound out",
        )  # fmt: skip
    return "".join(str(text) for text in texts)


def _conversation(turns: list[Turn], where: str) -> Sample:
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"]:
        what = "ends with a turn that nobody answers" if roles[-1:] != ["assistant"] else "ends with two answers"
        what = "has no question" if "user" not in roles else what
        raise DataError(
            f"{where}: this conversation {what}", value=" / ".join(roles)[:120], valid="… user / assistant",
            fix="mend the row, or leave it out",
        )  # fmt: skip
    before = tuple(turns[:-2])
    if next((role for role in roles if role != "system"), None) == "assistant":
        raise DataError(
            f"{where}: this conversation begins with an answer", value=" / ".join(roles)[:120],
            valid="(system) / user / assistant / …", fix="leave the first turn out",
        )  # fmt: skip
    return Sample(turns[-2][1], turns[-1][1], before)


def _system(row: Row, columns: Columns, where: str) -> list[Turn]:
    value = row.get(columns.system) if columns.system is not None else None
    text = "" if value is None else text_of(value, str(columns.system), where, blank=True)
    return [("system", text)] if text.strip() else []


def _history(row: Row, where: str) -> list[Turn]:
    """Alpaca's `history`: pairs of question and answer."""
    turns: list[Turn] = []
    for number, pair in enumerate(row.get("history") or [], start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"{where}: history, turn {number} is no pair", value=repr(pair)[:80], fix="mend the row")
        turns += [("user", text_of(pair[0], "history", where)), ("assistant", text_of(pair[1], "history", where))]
    return turns


def is_turns(value: Any) -> bool:
    """Whether a value is a conversation, or text that was one."""
    if isinstance(value, str):
        head = value.lstrip()[:80].replace(" ", "").replace("'", '"')
        return head.startswith(('[{"role":', '[{"from":', '[{"content":', '[{"value":'))
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and {"role", "from"} & set(value[0]) != set()
    )


# ------------------------------------------------------------------------------------------------------------- names


def _plain(name: Any) -> str:
    return str(name).strip().casefold()


def _first(names: Mapping[str, str], known: tuple[str, ...]) -> str | None:
    return next((names[name] for name in known if name in names), None)


def _by_name(row: Row, answers: tuple[str, ...]) -> Columns | None:
    names = {_plain(name): name for name in reversed(list(row))}
    question, answer = _first(names, QUESTIONS), _first(names, answers)
    system, turns, text = _first(names, SYSTEMS), _first(names, TURNS), _first(names, TEXTS)
    if question is not None and answer is not None and question != answer:
        more = names.get("input") if _plain(question) == "instruction" else None
        return Columns(question=question, answer=answer, input=more, system=system)
    if turns is not None:
        return Columns(messages=turns, system=system)
    return Columns(text=text) if text is not None else None


def _bad_columns(given: Mapping[str, str], row: Row) -> DataError:
    return DataError(
        "`columns` must name a column for question and answer, or one for text, or one for messages",
        value=dict(given),
        valid=f"{{question: …, answer: …}}, {{text: …}} or {{messages: …}}; columns here: {', '.join(map(str, row))}",
        fix="mend `columns` of this data source",
    )
