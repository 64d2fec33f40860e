"""A tokenizer.json as GGUF has it: the pieces with their kinds, merges or scores, special tokens, chat template.

Two kinds are known. Byte-level BPE (`gpt2`): llama.cpp has the ways to split text before the merges in its code and
picks one by a name, so the splitting is looked up here by what it is, not by who made it. BPE on text with bytes as a
fallback (`llama`, SentencePiece's): llama.cpp joins the pair whose piece has the highest score, which is the pair of
the earliest merge where a piece's score is minus the rank of the first merge that makes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunetune.common.files import read_json
from prunetune.errors import UnsupportedModel

if TYPE_CHECKING:
    from gguf import GGUFWriter, TokenType

FILE = "tokenizer.json"

SPLITS: dict[str, str] = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "qwen2"
    ),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen35",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
}
"""Regular expression of a tokenizer.json -> llama.cpp's name of it (its src/llama-vocab.cpp)."""

NUL = "\u0100"
"""The byte 0 in the byte-level alphabet."""


def add_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Write a folder's tokenizer into a GGUF file.

    Args:
        writer: Of the file.
        folder: A model folder.
        rows: Of the embedding; more than tokens are filled up with unused ones.

    Raises:
        UnsupportedModel: There is no tokenizer.json, or llama.cpp could not split text as it does.
    """
    from gguf import SpecialVocab

    if not (folder / FILE).is_file():
        raise UnsupportedModel("a GGUF file needs a tokenizer", value=str(folder), valid=f"a {FILE} in the folder")
    values = read_json(folder / FILE)
    byte_level = _has(values.get("decoder"), "ByteLevel")
    special = SpecialVocab(folder, load_merges=byte_level, n_vocab=rows)
    pieces = _pieces(values, rows)
    if byte_level:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_name(values))
        if not special.merges:
            pieces, special.merges = _with_a_merge(pieces)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(values, [text for text, _ in pieces]))
        writer.add_add_space_prefix(_prefixed(values))
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_types([kind for _, kind in pieces])
    special.add_special_token = _added(folder)
    special.add_to_gguf(writer, quiet=True)


def _has(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json is of a kind, or a sequence that holds one."""
    if not isinstance(part, Mapping):
        return False
    inner = [x for key in ("decoders", "pretokenizers", "normalizers") for x in part.get(key) or []]
    return part.get("type") == kind or any(_has(x, kind) for x in inner)


def _refused(what: str, value: object) -> UnsupportedModel:
    return UnsupportedModel(
        f"llama.cpp has no name for how this tokenizer {what}",
        value=value,
        valid="byte-level BPE that splits as GPT-2, SmolLM, Llama 3 or Qwen; or BPE with a fallback to bytes (Gemma)",
        fix="use llama.cpp's convert_hf_to_gguf.py: on PATH, in $LLAMA_CPP, or by --converter",
    )


def split_name(values: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a byte-level tokenizer.json splits text; UnsupportedModel if it has none."""
    part = values.get("pre_tokenizer") or {}
    steps = part.get("pretokenizers") or [part]
    kinds = [str(step.get("type")) for step in steps]
    alone = bool(steps[-1].get("use_regex", True)) and kinds[-1] == "ByteLevel"
    if kinds == ["ByteLevel"] and (alone or not values["model"]["merges"]):  # without merges nothing is to be split
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and alone:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated" and not alone:
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        if pattern in SPLITS:
            return SPLITS[pattern]
    raise _refused("splits text", part)


def _pieces(values: Mapping[str, Any], rows: int) -> list[tuple[str, TokenType]]:
    """(text, kind) of every row of the embedding."""
    from gguf import TokenType

    model = values["model"]
    if model.get("type") != "BPE" or not (model.get("byte_fallback") or _has(values.get("decoder"), "ByteLevel")):
        raise _refused("makes tokens", {k: model.get(k) for k in ("type", "byte_fallback")})
    found = {i: (f"[PAD{i}]", TokenType.UNUSED) for i in range(rows)}
    for text, i in model["vocab"].items():
        kind = TokenType.NORMAL
        if model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = TokenType.BYTE
        elif text == model.get("unk_token"):
            kind = TokenType.UNKNOWN
        found[i] = (text, kind)
    for token in values.get("added_tokens") or []:
        text, i = token["content"], token["id"]
        if found.get(i, ("", None))[1] is TokenType.UNKNOWN:
            continue
        kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        if kind is TokenType.USER_DEFINED and model.get("byte_fallback"):
            text = text.replace("\u2581", " ")  # they are looked for before the text is normalised
        found[i] = (text, kind)
    if len(found) > rows:
        raise UnsupportedModel(
            "this tokenizer has more tokens than the embedding has rows", value=len(found), valid=f"at most {rows}"
        )
    return [found[i] for i in range(rows)]


def _with_a_merge(pieces: list[tuple[str, TokenType]]) -> tuple[list[tuple[str, TokenType]], list[str]]:
    """A tokenizer of single bytes gets a merge, of two bytes 0 into an unused token: llama.cpp opens none without."""
    from gguf import TokenType

    spare = next((i for i, (_, kind) in enumerate(pieces) if kind is TokenType.UNUSED), None)
    if spare is None:
        raise _refused("makes tokens", "no merges, and no unused row of the embedding")
    return [*pieces[:spare], (2 * NUL, TokenType.NORMAL), *pieces[spare + 1 :]], [f"{NUL} {NUL}"]


def _scores(values: Mapping[str, Any], texts: list[str]) -> list[float]:
    """A piece's score: minus the rank of the first merge that makes it; 0 for one that no merge makes."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(values["model"]["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    return [-float(ranks.get(text, 0)) for text in texts]


def _prefixed(values: Mapping[str, Any]) -> bool:
    """Whether a blank is put before the text."""
    metaspace = values.get("pre_tokenizer") or {}
    return _has(values.get("normalizer"), "Prepend") or metaspace.get("prepend_scheme") in ("always", "first")


def _added(folder: Path) -> dict[str, bool]:
    """Which special tokens the tokenizer puts around a text, as it does."""
    from prunetune.models.folders import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = tokenizer("a")["input_ids"]
    return {
        "bos": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    }
