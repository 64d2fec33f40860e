"""Greedy generation: equal in any batch, stops where it should, says how long the answer was."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunetune.models.generation import generate


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    return model


def alone(model: PreTrainedModel, prompt: list[int], steps: int) -> list[int]:
    """The oracle: argmax, one token at a time, without cache or padding."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def ids(text: str) -> list[int]:
    return list(tiny_tokenizer().encode(text))


PROMPTS = ["a", "some longer question?", "abc def", "12+34="]


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32])
def test_every_batch_gives_the_answers_of_no_batch(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token_id = None
    model.generation_config.eos_token_id = None
    together = generate(model, tokenizer, [ids(p) for p in PROMPTS], 20)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        wanted = alone(model, ids(prompt), 20)
        assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)
        assert (answer.new_tokens, answer.ended) == (20, "length")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "qwen3", "qwen3_5_text", "gemma4_text", "lfm2"])
def test_rows_leave_the_batch_and_the_others_go_on_as_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third token counts as an end, so that rows end at different steps, some within a span and some never."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    steps = {p: alone(model, ids(p), 40) for p in PROMPTS}
    end = steps[PROMPTS[1]][9]
    tokenizer.eos_token_id = end
    widths: list[int] = []
    monkeypatch.setattr("prunetune.models.generation.SPAN", 7)
    real = type(model).generate

    def spy(self: PreTrainedModel, **values: torch.Tensor) -> object:
        widths.append(len(values["input_ids"]))
        return real(self, **values)

    monkeypatch.setattr(type(model), "generate", spy)
    for prompt, answer in zip(PROMPTS, generate(model, tokenizer, [ids(p) for p in PROMPTS], 40), strict=True):
        wanted = steps[prompt]
        at = wanted.index(end) if end in wanted else None
        assert answer.text == tokenizer.decode(wanted[:at], skip_special_tokens=True)
        assert (answer.new_tokens, answer.ended) == ((40, "length") if at is None else (at + 1, "end"))
    assert widths[0] == len(PROMPTS) and widths == sorted(widths, reverse=True)
    assert widths[-1] < len(PROMPTS), "no row has left: the test shows nothing"


def test_a_stop_text_across_spans_is_seen(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token_id = None
    prompts = [ids(p) for p in PROMPTS]
    whole = generate(model, tokenizer, prompts, 30)
    stops = {a.text[i : i + 3] for a in whole for i in range(4, 12)}
    for stop in sorted(s for s in stops if len(s) == 3 and s.isascii() and s.isprintable()):
        before = generate(model, tokenizer, prompts, 30, (stop,))
        with monkeypatch.context() as patch:
            patch.setattr("prunetune.models.generation.SPAN", 2)
            assert generate(model, tokenizer, prompts, 30, (stop,)) == before


def test_an_end_token_ends_the_answer_and_is_counted(model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    wanted = alone(model, ids("12+34="), 12)
    end = wanted[5]
    first = wanted.index(end)
    tokenizer.eos_token_id = end
    answer = generate(model, tokenizer, [ids("12+34="), ids("a")], 12)[0]
    assert (answer.new_tokens, answer.ended) == (first + 1, "end")
    assert answer.text == tokenizer.decode(wanted[:first], skip_special_tokens=True)


def test_the_generation_configs_end_token_counts_too() -> None:
    model = tiny_model("llama")
    wanted = alone(model, ids("abc"), 12)
    model.generation_config.eos_token_id = [wanted[3]]
    assert generate(model, tiny_tokenizer(), [ids("abc")], 12)[0].new_tokens == wanted.index(wanted[3]) + 1


def echo(text: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model that says `text` over and over: token i is followed by its successor in `text`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.model.norm.weight.fill_(1)
        tokens = ids(text)
        for place, token in enumerate(tokens):
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[tokens[(place + 1) % len(tokens)], place] = 1.0
    model.generation_config.eos_token_id = None
    return model, tokenizer


def test_a_stop_text_ends_its_row_alone_and_is_cut_off() -> None:
    model, tokenizer = echo("abcd Q:ef")
    first, second = generate(model, tokenizer, [ids("a"), ids(":")], 30, stop=(" Q:",))
    assert (first.text, first.new_tokens, first.ended) == ("bcd", 6, "stop")
    assert (second.text, second.new_tokens, second.ended) == ("efabcd", 9, "stop")


def test_a_stop_text_in_the_prompt_does_not_count() -> None:
    model, tokenizer = echo("abcd Q:ef")
    assert generate(model, tokenizer, [ids("d Q:")], 4, stop=("Q:",))[0].text == "efab"


def test_a_stop_text_that_begins_in_the_prompt_does_not_count() -> None:
    model, tokenizer = echo("abcd Q:ef")
    assert generate(model, tokenizer, [ids("d Q")], 4, stop=("Q:",))[0].text == ":efa"


@pytest.mark.parametrize("stop", ["d\nx", "cd\n", "x"])
def test_stops_with_newlines_and_stops_that_never_come(stop: str) -> None:
    model, tokenizer = echo("abcd\n")
    answer = generate(model, tokenizer, [ids("a")], 12, stop=(stop,))[0]
    whole = "bcd\nabcd\nabc"
    assert answer.text == whole.partition(stop)[0]
    assert answer.ended == ("stop" if stop in whole else "length")


def test_the_models_own_sampling_settings_and_penalties_do_not_apply(model: PreTrainedModel) -> None:
    plain = generate(model, tiny_tokenizer(), [ids("abc")], 10)[0]
    config = model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty, config.min_new_tokens = True, 5.0, 9.0, 10
    try:
        assert generate(model, tiny_tokenizer(), [ids("abc")], 10)[0] == plain
        assert model.generation_config is config
    finally:
        config.do_sample, config.temperature, config.repetition_penalty, config.min_new_tokens = False, 1.0, 1.0, None


def test_training_mode_is_restored(model: PreTrainedModel) -> None:
    model.train()
    generate(model, tiny_tokenizer(), [ids("abc")], 2)
    assert model.training
    model.eval()


def test_bf16_generates(model: PreTrainedModel) -> None:
    half = tiny_model("llama").to(torch.bfloat16)
    assert generate(half, tiny_tokenizer(), [ids("abc")], 5)[0].new_tokens <= 5
