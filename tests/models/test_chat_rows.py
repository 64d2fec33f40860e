"""Rows of chat models: the answer stands in them whole, whatever the template deletes; prompts are their prefix."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from prunetune.data.example import Example, Turn
from prunetune.errors import RecipeError
from prunetune.models.head_loss import IGNORED
from prunetune.models.prompt import (
    PromptFormat,
    bos_note,
    check_chat,
    check_rows,
    encode_example,
    end_ids,
    plain_hint,
    prompt_ids,
    prompt_text,
    questions_note,
)
from prunetune.models.turns import whole_answer
from prunetune.tune.training.batches import make_rows

CHAT = PromptFormat(template="chat")
LOOP = "{% for m in messages %}"
OPEN = "{% if add_generation_prompt %}"
STRIP = "{% set c = m.content.split('</think>')[-1] %}"


def template(turn: str, opening: str, head: str = "<bos>") -> str:
    return f"{head}{LOOP}{turn}{{% endfor %}}{OPEN}{opening}{{% endif %}}"


def by_role(assistant: str, other: str = "[{{ m.role }}]{{ m.content }}\n") -> str:
    return f"{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{other}{{% endif %}}"


USUAL = {
    "chatml": template("[{{ m.role }}]\n{{ m.content }}<eos>\n", "[assistant]\n"),
    "trims": template("[{{ m.role }}]\n{{ m.content | trim }}<eos>\n", "[assistant]\n"),
    "no opening": template("{{ m.role }}: {{ m.content }}\n", "", head=""),
    "space before the answer": template(by_role(" {{ m.content }} <eos>", "[INST] {{ m.content }} [/INST]"), ""),
    "no end of turn": template(by_role("[A]{{ m.content }}", "[U]{{ m.content }}"), "[A]"),
}
"""Templates that keep the answer whole, and whose finished turn begins with the prompt."""

DROPPING = {
    "drops the reasoning": template(by_role(f"{STRIP}[A]{{{{ c }}}}<eos>"), "[A]"),
    "drops it, and opens the next": template(by_role(f"{STRIP}[A]{{{{ c }}}}<eos>"), "[A]<think>\n"),
    "drops it, and closes the prompt's": template(by_role(f"{STRIP}[A]</think>{{{{ c }}}}<eos>"), "[A]</think>"),
    "reformats the last, drops the others": template(
        by_role(
            "[assistant]\n{% if loop.last %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}\n"
            "</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip() }}<eos>\n",
            "[{{ m.role }}]\n{{ m.content }}<eos>\n",
        ),
        "[assistant]\n",
    ),
    "space before the answer": template(by_role(f"{STRIP} {{{{ c }}}} <eos>", "[INST] {{ m.content }} [/INST]"), ""),
}
"""Templates of reasoning models, reduced to what they do."""

ANSWERS = [
    "5",
    "a\n\nb",
    "<think>2, 3</think>5",
    "<think>\n2, 3\n</think>\n\n5",
    "2, 3\n</think>\n\n5",
    " <think>\nx</think>y<think>z</think>5 ",
]


def speaking(source: str | dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    return tokenizer


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("answer", ANSWERS)
def test_usual_templates_write_the_row_as_ever(name: str, answer: str) -> None:
    """The oracle is the rendered conversation: what transformers itself makes of question and answer."""
    tokenizer = speaking(USUAL[name])
    turns = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip()
    ids = tokenizer.encode(whole, add_special_tokens=False)
    row = encode_example(tokenizer, "2 + 3?", answer, CHAT, None)
    assert row.input_ids == (ids if ids[-1] == 2 else [*ids, 2])
    assert row.input_ids[: row.prompt_length] == prompt_ids(tokenizer, "2 + 3?", CHAT)


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("answer", ANSWERS)
def test_no_template_deletes_a_part_of_the_answer(name: str, answer: str) -> None:
    tokenizer = speaking(DROPPING[name])
    row = encode_example(tokenizer, "2 + 3?", answer, CHAT, None)
    prompt = prompt_ids(tokenizer, "2 + 3?", CHAT)
    assert row.input_ids[: row.prompt_length] == prompt
    assert row.answers == ((len(prompt), len(row.input_ids)),)
    text, opened = tokenizer.decode(row.input_ids), prompt_text(tokenizer, "2 + 3?", CHAT).endswith("<think>\n")
    tail = tokenizer.decode(row.input_ids[len(prompt) :])
    if opened and answer.lstrip().startswith("<think>"):
        rest = answer.lstrip().removeprefix("<think>").removeprefix("\n")
        assert tail.removesuffix("<eos>") == rest, "the prompt has opened <think> already"
        assert text.count("<think>") == answer.count("<think>")
    else:
        assert answer.strip() in tail
    assert row.input_ids[-1] == 2 and row.input_ids[len(prompt) :].count(2) == 1


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "x", "5", "[A]", "ANSWERHERE"]), min_size=1, max_size=8),
    name=st.sampled_from([*USUAL, *DROPPING]),
)  # fmt: skip
def test_any_answer_is_whole_in_its_row(parts: list[str], name: str) -> None:
    answer = "".join(parts)
    if not answer.strip():
        return
    tokenizer = speaking({**USUAL, **DROPPING}[name])
    row = encode_example(tokenizer, "q", answer, CHAT, None)
    assert row.input_ids[: row.prompt_length] == prompt_ids(tokenizer, "q", CHAT)
    squeezed = "".join(answer.split())
    assert squeezed in "".join(tokenizer.decode(row.input_ids).split())


SYSTEM: Turn = ("system", "Be brief.")
BEFORE: tuple[Turn, ...] = (("user", "1 + 1?"), ("assistant", "<think>\none\n</think>\n\n2"))


@pytest.mark.parametrize("name", ["plain", *USUAL, *DROPPING])
@pytest.mark.parametrize(
    "before", [BEFORE, (SYSTEM, *BEFORE), (SYSTEM,), (*BEFORE, ("user", "0?"), ("assistant", "0"))]
)
def test_the_loss_of_a_conversation_is_on_the_assistants_turns(name: str, before: Sequence[Turn]) -> None:
    tokenizer = speaking({**USUAL, **DROPPING}.get(name, ""))
    fmt = PromptFormat() if name == "plain" else CHAT
    example = Example("2 + 3?", "<think>\ntwo\n</think>\n\n5", "s", tuple(before))
    (row,) = make_rows(tokenizer, [example], fmt, 512, completion_only=True).rows
    prompt = prompt_ids(tokenizer, example.question, fmt, before)
    assert list(row.ids[: len(prompt)]) == prompt, "generation starts from a prefix of the row"
    learnt = "".join(tokenizer.decode([label]) if label != IGNORED else "|" for label in row.labels)
    parts = [part for part in learnt.split("|") if part]
    answers = [text for role, text in before if role == "assistant"] + [example.answer]
    assert len(parts) == len(answers)
    for part, answer in zip(parts, answers, strict=True):
        assert answer.removeprefix("<think>\n") in part and "?" not in part and "[user]" not in part
    text = tokenizer.decode(row.ids)
    assert all(words in text for _, words in before)


def test_a_cut_conversation_keeps_the_mask_of_what_is_left() -> None:
    tokenizer = speaking(USUAL["chatml"])
    whole = encode_example(tokenizer, "2 + 3?", "5", CHAT, None, BEFORE)
    cut = encode_example(tokenizer, "2 + 3?", "5", CHAT, whole.answers[0][1] - 2, BEFORE)
    assert cut.truncated and cut.answers == ((whole.answers[0][0], whole.answers[0][1] - 2),)


def test_a_rows_system_turn_goes_before_the_recipes() -> None:
    tokenizer = speaking(USUAL["chatml"])
    fmt = PromptFormat(template="chat", system="recipe")
    assert "[system]\nrecipe" in prompt_text(tokenizer, "q", fmt)
    assert "recipe" not in prompt_text(tokenizer, "q", fmt, [SYSTEM])


REFUSED: list[tuple[str, str | dict[str, str], PromptFormat, str]] = [
    ("no system", "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}x",
     PromptFormat(template="chat", system="s"), r"refuses: no system turn, please[\s\S]*leave out prompt\.system"),
    ("needs system", "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn comes first') }}{% endif %}x",
     CHAT, r"refuses: a system turn comes first[\s\S]*set prompt\.system"),
    ("named", {"rag": "R", "tool_use": "T"}, CHAT, r"none is the default[\s\S]*rag, tool_use[\s\S]*name: rag"),
    ("another name", {"rag": "R"}, PromptFormat(template="chat", name="gar"), r"no chat template of this name[\s\S]*rag"),
    ("undefined", "{{ who.name }}", CHAT, r"needs a variable[\s\S]*'who' is undefined[\s\S]*variables"),
    ("no bos", "{{ cls_token + 'x' }}", CHAT, r"'cls_token' is undefined[\s\S]*tokenizer_config"),
    ("no jinja", "{% if x", CHAT, "no valid Jinja"),
    ("wrong types", "{{ 'a' + 1 }}", CHAT, r"fails on these turns \(TypeError"),
    ("unsafe", "{{ ''.__class__.__mro__ }}", CHAT, "chat template"),
    ("silent", "{# nothing #}", CHAT, "writes nothing"),
    ("deaf", "[assistant]", CHAT, "leaves the question out"),
    ("doubles", "{% set n = namespace(s='ab') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
     CHAT, "takes more than 512 MB"),
    ("multiplies", "{{ 'ab' * 10000000000 }}", CHAT, "takes more than 512 MB|chat template fails"),
    ("long", "{{ 'ab' * 5000000 }}", CHAT, "writes 10,000,000 characters"),
    ("endless", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", CHAT, "not ended after"),
    ("power", "{{ (10 ** 10 ** 9) > 1 }}", CHAT, "raises a number to a power"),
    ("power of a variable", "{% set n = 9 %}{% if n**n**n %}{% endif %}", CHAT, "raises a number to a power"),
    ("recursive", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", CHAT, "RecursionError"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "fmt", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_templates_that_refuse_fail_or_never_end(
    name: str, source: str | dict[str, str], fmt: PromptFormat, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunetune.models.chat.SECONDS", 0.3)
    with pytest.raises(RecipeError, match=message) as told:
        check_chat(speaking(source), fmt)
    assert told.value.fix


def test_rows_are_refused_by_name_before_any_work() -> None:
    strict = USUAL["chatml"].replace(
        "<bos>", "<bos>{% if '7' in messages[0].content %}{{ raise_exception('no sevens') }}{% endif %}"
    )
    rows = [Example(f"{i}?", "x", "d", where=f"d.jsonl, row {i}") for i in range(10)]
    with pytest.raises(RecipeError, match=r"no sevens[\s\S]*d\.jsonl, row 7"):
        check_rows(speaking(strict), rows, CHAT)
    check_rows(speaking(strict), rows, PromptFormat())
    mute = template(by_role("[A]<eos>"), "[A]")
    with pytest.raises(RecipeError, match=r"leaves the answer out[\s\S]*row 0"):
        check_rows(speaking(mute), rows, CHAT)
    forgetful = "{{ messages[-1].content }}" + OPEN + "[A]{% endif %}"
    with pytest.raises(RecipeError, match="earlier turns"):
        check_rows(speaking(forgetful), [Example("q", "a", "d", BEFORE)], CHAT)


def test_a_question_that_the_template_shortens_is_told() -> None:
    cut = speaking(USUAL["chatml"].replace("m.content", "m.content[:40]"))
    assert "[:40]" in str(cut.chat_template)
    long = "How many apples are in nine baskets of twelve apples each?"
    rows = [Example("2 + 2?", "4", "d"), Example(long, "108", "d", where="d.jsonl, row 2")]
    told = check_rows(cut, rows, CHAT)
    assert "1 of 2 rows (d.jsonl, row 2)" in told and told.startswith("warning: the chat template shortens")
    assert "1 of 2 rows (mine)" in questions_note(cut, ["2 + 2?", long], CHAT, "mine")
    for source in USUAL.values():
        whole = speaking(source)
        assert check_rows(whole, rows, CHAT) == questions_note(whole, [long], CHAT, "mine") == ""
    assert questions_note(cut, [long], PromptFormat(), "mine") == ""


def test_names_that_a_template_unpacks_are_no_power() -> None:
    source = "{% set n = namespace(**{'x': 1}) %}{{ messages[-1].content ~ n.x }} 2 ** 3"
    assert prompt_text(speaking(source), "q", CHAT) == "q1 2 ** 3"


def test_a_named_template_and_its_variables() -> None:
    tokenizer = speaking({"rag": "R{{ messages[-1].content }}", "default": "D{{ messages[-1].content }}{{ mood }}"})
    assert prompt_text(tokenizer, "q", CHAT) == "Dq"
    assert prompt_text(tokenizer, "q", PromptFormat(template="chat", name="rag")) == "Rq"
    assert prompt_text(tokenizer, "q", PromptFormat(template="chat", variables={"mood": "!"})) == "Dq!"
    assert set(PromptFormat().model_dump()) == {"template", "question", "answer", "system"}, "earlier runs go on"


def test_the_hint() -> None:
    assert "chat template" in plain_hint(speaking(USUAL["chatml"]), PromptFormat())
    silent = speaking(USUAL["no opening"])
    post = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    assert bos_note(silent, CHAT) == "", "neither has one"
    silent.backend_tokenizer.post_processor = post
    assert "does not begin with <bos>" in bos_note(silent, CHAT) and bos_note(silent, PromptFormat()) == ""
    assert plain_hint(speaking(USUAL["chatml"]), CHAT) == plain_hint(tiny_tokenizer(), PromptFormat()) == ""


def test_no_end_token_adds_none() -> None:
    tokenizer = speaking(USUAL["no end of turn"])
    tokenizer.eos_token = None
    assert end_ids(tokenizer) == ()
    row = encode_example(tokenizer, "q", "a", CHAT, None)
    assert tokenizer.decode(row.input_ids) == "<bos>[U]q[A]a"


def test_a_sampled_answer_gets_back_what_its_prompt_opened() -> None:
    """Written as data and read again under the same template, it is the row that was sampled."""
    tokenizer = speaking(DROPPING["drops it, and opens the next"])
    prompt = prompt_text(tokenizer, "q", CHAT)
    written = whole_answer(prompt, "because\n</think>5")
    assert written == "<think>\nbecause\n</think>5" == whole_answer(prompt, written)
    row = encode_example(tokenizer, "q", written, CHAT, None)
    assert tokenizer.decode(row.input_ids) == prompt + "because\n</think>5<eos>"
    assert whole_answer("[A]", "5") == "5"
