"""Small trained tokenizers of each kind that is cut, and texts that they have never seen."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from prunetune.data.demo.problems import problems
from prunetune.pruning.vocabulary.keep import Kept, choose
from prunetune.pruning.vocabulary.tokenizer import BYTES, TokenizerFile

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
OTHERS = (
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n        print(f'{i}: {add(i, i)}')\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ",
    "Съешь же ещё этих мягких французских булок. 敏捷的棕色狐狸跳过了懒狗。 いろはにほへと 🙂🙃👩‍👩‍👧‍👦 é é \u200b ",
    "the then there these other another mother bother  together    everything          nothing\t\t\n\n\n",
)
KINDS = ("byte-level", "whole-words", "byte-fallback", "metaspace")


def task() -> list[str]:
    """Texts whose tokens are kept."""
    return [f"{q}\n{a}" for q, a in problems(40, 0, "train")] + [OTHERS[0], OTHERS[3][:40]]


@cache
def toy(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a few hundred lines; its `<eos>` is outside the model's vocabulary, as in Llama 3."""
    fallback = kind in ("byte-fallback", "metaspace")
    core = Tokenizer(models.BPE(byte_fallback=fallback, unk_token="<unk>" if fallback else None, fuse_unk=fallback))
    if fallback:
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        if kind == "metaspace":
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            core.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        else:
            core.normalizer = normalizers.Replace(" ", "▁")
            core.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁*[^▁]+"), "isolated")  # of its training; Gemma has none
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [*[f"{q}\n{a}" for q, a in problems(300, 1, "train")], *OTHERS * 5],
        trainers.BpeTrainer(
            vocab_size=900 if fallback else 800,
            special_tokens=[*SPECIAL[:2], SPECIAL[3], *(BYTES if fallback else ())],
            initial_alphabet=[] if fallback else pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if kind == "byte-fallback":
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # never splits: there are no spaces left
    return _finished(core, kind)


def _finished(core: Tokenizer, kind: str) -> PreTrainedTokenizerFast:
    values = json.loads(core.to_str())
    values["model"]["ignore_merges"] = kind == "whole-words"
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] in SPECIAL]
    core = Tokenizer.from_str(json.dumps(values))
    core.add_special_tokens(["<eos>"])
    core.add_tokens(["<think>", "other"])
    core.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def file_of(tokenizer: PreTrainedTokenizerFast) -> TokenizerFile:
    """Its tokenizer.json."""
    return TokenizerFile.of(json.loads(tokenizer.backend_tokenizer.to_str()))


def counts_of(tokenizer: Tokenizer, texts: list[str]) -> Counter[int]:
    return Counter(i for e in tokenizer.encode_batch(texts) for i in e.ids)


def cut_of(tokenizer: Tokenizer, file: TokenizerFile, texts: list[str], **more: int) -> tuple[Kept, Tokenizer]:
    """The tokens that the texts need, and the tokenizer of these."""
    kept = choose(file, counts_of(tokenizer, texts), rows=max(file.tokens.values()) + 1, **more)
    return kept, Tokenizer.from_str(json.dumps(file.cut(kept.rows[: kept.tokens])))


WORDS = st.sampled_from(
    [w for text in OTHERS for w in text.split(" ")]
    + ["\n", "\t", "  ", " " * 17, "\r\n", "x" * 30, "<think>", "<eos>", "<0x41>", "▁", "▁▁", "Ġ", "0", "007", "\x00"]
)
TEXTS = st.lists(
    st.one_of(
        WORDS,
        st.text(max_size=8),
        st.text(st.characters(max_codepoint=0x7F), max_size=12),
        st.text(st.sampled_from("the rnoabdi \n"), max_size=24),
        st.text(st.characters(min_codepoint=0x300, max_codepoint=0x30FF, exclude_categories=("Cs",)), max_size=8),
        st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF), max_size=4),
    ),
    max_size=8,
).flatmap(lambda parts: st.sampled_from(["", " "]).map(lambda sep: sep.join(parts)))
"""Code, words, emoji, long spaces, control characters, other scripts."""
