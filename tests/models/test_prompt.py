"""Prompts: the border of prompt and answer, BOS once, chat templates."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prunetune.errors import RecipeError
from prunetune.models.prompt import PromptFormat, encode_example, end_ids, prompt_ids, prompt_text

CHAT = (
    "{% for m in messages %}<bos>{{ m.role }}:{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
)
PLAIN = PromptFormat()


def opening_tokenizer(close: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that opens (and closes) every text itself, as Llama's does."""
    tokenizer = tiny_tokenizer()
    ends = [("<bos>", 1), ("<eos>", 2)]
    template = "<bos> $A <eos>" if close else "<bos> $A"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=ends)
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Puts a space mark before every text of its own."""
    letters = [chr(c) for c in range(33, 127)]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "▁", *letters])}
    core = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_plain_text_keeps_braces_of_the_question() -> None:
    assert prompt_text(tiny_tokenizer(), "what is {x}?", PLAIN) == "Question: what is {x}?\nAnswer:"


def test_bos_is_there_once_and_only_if_the_tokenizer_adds_it() -> None:
    assert prompt_ids(opening_tokenizer(), "1+1", PLAIN).count(1) == 1
    assert prompt_ids(tiny_tokenizer(), "1+1", PLAIN).count(1) == 0


def test_a_closing_tokenizer_does_not_close_the_prompt() -> None:
    ids = prompt_ids(opening_tokenizer(close=True), "1+1", PLAIN)
    assert ids == prompt_ids(opening_tokenizer(), "1+1", PLAIN)


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), opening_tokenizer(), opening_tokenizer(close=True)])
def test_a_training_row_is_the_prompt_then_the_answer_then_one_end(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_ids(tokenizer, "1+1", PLAIN)
    row = encode_example(tokenizer, "1+1", "2", PLAIN, None)
    assert row.input_ids[: row.prompt_length] == prompt
    assert tokenizer.decode(row.input_ids[row.prompt_length : -1]) == " 2"
    assert row.input_ids[-1] == 2 and row.input_ids.count(2) == 1
    assert not row.truncated


def test_no_second_space_before_the_answer() -> None:
    tokenizer = sentencepiece_like()
    row = encode_example(tokenizer, "a", "b", PLAIN, None)
    assert tokenizer.convert_ids_to_tokens(row.input_ids[row.prompt_length :]) == ["▁", "b", "</s>"]
    assert row.input_ids[: row.prompt_length] == prompt_ids(tokenizer, "a", PLAIN)


def test_truncation_is_reported_and_drops_the_end() -> None:
    whole = encode_example(tiny_tokenizer(), "1+1", "2", PLAIN, None)
    fits = encode_example(tiny_tokenizer(), "1+1", "2", PLAIN, len(whole.input_ids))
    cut = encode_example(tiny_tokenizer(), "1+1", "2", PLAIN, len(whole.input_ids) - 1)
    assert fits == whole
    assert cut.truncated and cut.input_ids == whole.input_ids[:-1]
    assert encode_example(tiny_tokenizer(), "1+1", "2", PLAIN, 5).prompt_length == 5


def test_running_text_has_no_template() -> None:
    row = encode_example(opening_tokenizer(), "", "some text", PLAIN, None)
    assert row.prompt_length == 1
    assert opening_tokenizer().decode(row.input_ids, skip_special_tokens=True) == "some text"
    assert row.input_ids[-1] == 2


def test_chat_uses_the_tokenizers_template() -> None:
    tokenizer = opening_tokenizer()
    tokenizer.chat_template = CHAT
    fmt = PromptFormat(template="chat", system="be brief")
    assert prompt_text(tokenizer, "hi", fmt) == "<bos>system:be brief<eos>\n<bos>user:hi<eos>\n<bos>assistant:"
    ids = prompt_ids(tokenizer, "hi", fmt)
    assert ids.count(1) == 3  # the template's own, and none from the tokenizer
    row = encode_example(tokenizer, "hi", "yo", fmt, None)
    assert row.input_ids[: row.prompt_length] == ids
    assert tokenizer.decode(row.input_ids[row.prompt_length :]) == "yo<eos>"


def test_chat_without_a_template_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no chat template"):
        prompt_text(tiny_tokenizer(), "hi", PromptFormat(template="chat"))


def test_a_template_without_its_field_is_an_error() -> None:
    with pytest.raises(ValidationError, match="must contain"):
        PromptFormat(question="Q:")
    with pytest.raises(ValidationError, match="must contain"):
        PromptFormat(answer="A")


def test_end_ids_joins_tokenizer_and_generation_config() -> None:
    class Config:
        eos_token_id = (2, 7)

    assert end_ids(tiny_tokenizer()) == (2,)
    assert end_ids(tiny_tokenizer(), Config()) == (2, 7)
