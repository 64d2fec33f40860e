"""tokenizer.json of a BPE tokenizer, read and written anew for fewer tokens.

Format: https://huggingface.co/docs/tokenizers/api/tokenizer, as the `tokenizers` library writes it. What is not about
ids (normalizer, pre-tokenizer, decoder, templates' texts) stays as it is.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunetune.common.reading import read_json
from prunetune.errors import BadCheckpoint, UnsupportedModel
from prunetune.models.folders import load_tokenizer
from prunetune.pruning.vocabulary.merges import Merges

FILE = "tokenizer.json"
RECORD = "kept_tokens.json"
"""Beside it in a folder whose vocabulary is cut: the old id of every new one."""
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
"""The byte-fallback tokens of SentencePiece-style tokenizers."""


@dataclass(frozen=True)
class TokenizerFile:
    """What tokenizer.json says.

    Attributes:
        values: The file.
        tokens: Token -> id, of the model's vocabulary and of the added tokens.
        added: The added tokens (special ones among them).
        merges: The table of merges.
    """

    values: Mapping[str, Any]
    tokens: Mapping[str, int]
    added: frozenset[str]
    merges: Merges

    @staticmethod
    def read(folder: Path) -> TokenizerFile:
        """Of a model folder. One without the file has it made from its older files, by transformers.

        Raises:
            UnsupportedModel: It is no BPE. BadCheckpoint: The file cannot be read, or contradicts itself.
        """
        if (folder / FILE).is_file():
            return TokenizerFile.of(read_json(folder / FILE, "tokenizer"), folder)
        with tempfile.TemporaryDirectory(prefix="prunetune-") as made:
            load_tokenizer(folder).save_pretrained(made)
            if not (Path(made) / FILE).is_file():
                raise _not_bpe("a slow tokenizer, which has no tokenizer.json", folder)
            return TokenizerFile.of(read_json(Path(made) / FILE, "tokenizer"), folder)

    @staticmethod
    def of(values: Any, where: Path | str = FILE) -> TokenizerFile:
        """From the file's values."""
        model = values.get("model") if isinstance(values, dict) else None
        if not isinstance(model, dict):
            raise BadCheckpoint("this tokenizer.json has no model", value=str(where), fix="copy the file again")
        if why := _refused(model):
            raise _not_bpe(why, where)
        try:
            vocab = {str(t): int(i) for t, i in model["vocab"].items()}
            pairs = [_pair(m) for m in model["merges"]]
            added = {str(t["content"]): int(t["id"]) for t in values.get("added_tokens") or []}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadCheckpoint(
                f"the vocabulary, merges or added tokens of this tokenizer.json cannot be read ({e})",
                value=str(where),
                fix="copy the file again",
            ) from None
        tokens = {**vocab, **added}
        if len(set(tokens.values())) != len(tokens):
            raise BadCheckpoint("two tokens of this tokenizer have one id", value=str(where), fix="copy the file again")
        ranks = {pair: rank for rank, pair in enumerate(pairs)}  # of a pair that is there twice the last one counts
        return TokenizerFile(values, tokens, frozenset(added), Merges(ranks, vocab))

    @property
    def kind(self) -> str:
        """`byte-level`, `byte-fallback`, or `characters`: how a text goes in for which there are no tokens."""
        if _has(self.values.get("pre_tokenizer"), "ByteLevel") or _has(self.values.get("decoder"), "ByteLevel"):
            return "byte-level"
        falls = self.values["model"].get("byte_fallback") and _has(self.values.get("decoder"), "ByteFallback")
        return "byte-fallback" if falls and all(b in self.tokens for b in BYTES) else "characters"

    @property
    def marks(self) -> frozenset[str]:
        """Characters that the tokenizer itself writes into a text, such as the `▁` of a space."""
        parts = [self.values.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")]
        return frozenset(c for text in _texts(parts) for c in text)

    def cut(self, kept: Sequence[int]) -> dict[str, Any]:
        """The file's values for the kept tokens alone.

        Args:
            kept: The ids of the tokens that stay, in the order of their new ids, which are 0, 1, ...
        """
        new = {old: i for i, old in enumerate(kept)}
        out: dict[str, Any] = {k: copy.deepcopy(v) for k, v in self.values.items() if k != "model"}
        vocab = {t: new[i] for t, i in self.merges.symbols.items() if i in new}
        pairs = self.merges.within(vocab)
        joined = all(isinstance(m, str) for m in self.values["model"]["merges"])  # the older way of writing them
        merges: list[Any] = [" ".join(p) if joined else list(p) for p in pairs]
        out["model"] = {
            **self.values["model"],
            "vocab": dict(sorted(vocab.items(), key=lambda x: x[1])),
            "merges": merges,
        }
        out["added_tokens"] = sorted(
            ({**t, "id": new[t["id"]]} for t in out.get("added_tokens") or []), key=lambda t: int(t["id"])
        )
        if isinstance(out.get("padding"), dict):
            out["padding"]["pad_id"] = new[out["padding"]["pad_id"]]
        _renumber(out.get("post_processor"), new)
        return out


def _refused(model: Mapping[str, Any]) -> str | None:
    """Why a tokenizer's model is not cut; None where it is."""
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        return f"a {kind} tokenizer"
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            return f"a BPE tokenizer with {key}"
    return None


def _not_bpe(what: str, where: Path | str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the vocabulary of this model cannot be cut: it has {what}",
        value=str(where),
        valid="byte-pair encoding: byte-level (Llama 3, Qwen, SmolLM) or with byte fallback (Gemma, Mistral, Llama 2)",
        fix="leave the vocabulary as it is",
    )


def _pair(merge: Any) -> tuple[str, str]:
    a, b = merge.split(" ") if isinstance(merge, str) else merge
    return str(a), str(b)


def _has(part: Any, kind: str) -> bool:
    """Whether a component, or one of a sequence of them, is of a type."""
    if isinstance(part, list):
        return any(_has(p, kind) for p in part)
    return isinstance(part, dict) and (part.get("type") == kind or any(_has(v, kind) for v in part.values()))


def _texts(part: Any, key: str = "") -> list[str]:
    """What components write: replacements, prefixes."""
    if isinstance(part, list):
        return [t for p in part for t in _texts(p, key)]
    if isinstance(part, dict):
        return [t for k, v in part.items() for t in _texts(v, k)]
    return [part] if isinstance(part, str) and re.fullmatch("content|replacement|str_rep|prepend|String", key) else []


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """Put new ids into a post-processor: those of templates, and the pairs of the BERT and RoBERTa ones."""
    if isinstance(processor, list):
        for one in processor:
            _renumber(one, new)
    if not isinstance(processor, dict):
        return
    _renumber(processor.get("processors"), new)
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[i] for i in special["ids"]]
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            processor[key] = [processor[key][0], new[processor[key][1]]]
