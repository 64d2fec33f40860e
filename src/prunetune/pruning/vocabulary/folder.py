"""A model folder with fewer tokens: embedding and head lose rows, and every file that names ids names the new ones.

    fitted = fit(source, examples, guard, align=64)       # which tokens stay, by the texts' use of them
    cut_vocabulary(source, fitted, out)                   # an ordinary model folder

What else could be read in place of tokenizer.json (`LEFT_OUT`) would still hold the old ids and is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunetune.common.files import check_space, fresh, json_sha, read_json
from prunetune.common.strict_json import to_json_text
from prunetune.data.example import Example
from prunetune.errors import UnsupportedModel
from prunetune.models.families import family_of
from prunetune.models.families.wrappers import refuse_wrapper
from prunetune.models.folders import check_weights, config_values, copy_files, load_tokenizer
from prunetune.models.folders.config import file_values
from prunetune.models.prompt import PromptFormat
from prunetune.models.shards import TensorInfo, open_shards, rewrite
from prunetune.models.tensors import token_tensors
from prunetune.pruning.apply import EXTRA_FILES, EXTRA_FOLDERS
from prunetune.pruning.vocabulary.ids import ids_in, renumbered
from prunetune.pruning.vocabulary.keep import Kept, choose
from prunetune.pruning.vocabulary.texts import count, formats_of
from prunetune.pruning.vocabulary.tokenizer import FILE, RECORD, TokenizerFile

LEFT_OUT = (
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "tekken.json",
)
"""Files of the original that hold its ids; nothing needs them beside tokenizer.json."""
ALIGN = 64
"""Rows of embedding and head come in multiples of this."""
PROBES = 256
"""Texts on which the loaded tokenizer is held against the original's before any weight is written."""


@dataclass(frozen=True)
class Fitted:
    """Tokens chosen for a model.

    Attributes:
        kept: Which stay.
        tokenizer: The original's tokenizer file.
        probes: Texts of the task, to try the new tokenizer on.
    """

    kept: Kept
    tokenizer: TokenizerFile
    probes: tuple[str, ...]

    @property
    def new(self) -> dict[int, int]:
        """Old id -> new id."""
        return {old: i for i, old in enumerate(self.kept.rows)}

    @property
    def sha(self) -> str:
        """Hash of what stays."""
        return json_sha(self.kept.rows)


def fit(
    source: Path,
    examples: Sequence[Example],
    guard: Sequence[Example] = (),
    *,
    keep: int | None = None,
    align: int = ALIGN,
    formats: Sequence[PromptFormat] = (),
) -> Fitted:
    """Choose the tokens that stay, by the texts.

    Args:
        source: A model folder.
        examples: The task's texts.
        guard: Texts that shall not become longer either.
        keep: At most so many tokens; None: all that the texts use.
        align: The number of rows becomes a multiple of this.
        formats: Prompt formats in which the texts are put, beside the plain one and the chat template.

    Raises:
        UnsupportedModel: The tokenizer is no BPE, or the family is not known. OutOfReach: see `keep.choose`.
    """
    refuse_wrapper(file_values(source), "the vocabulary command")
    config = config_values(source)
    family_of(config)
    file, tokenizer = TokenizerFile.read(source), load_tokenizer(source)
    formats = formats_of(tokenizer, formats)
    others = [_optional(source / name) for name in ("generation_config.json", "tokenizer_config.json")]
    kept = choose(
        file,
        count(tokenizer, examples, formats),
        count(tokenizer, guard, formats),
        rows=int(config["vocab_size"]),
        align=align,
        keep=keep,
        also=ids_in([config, *others]),
    )
    probes = [t for e in (*examples[:PROBES], *guard[:PROBES]) for t in (e.question, e.answer) if t]
    return Fitted(kept, file, tuple(probes[: 2 * PROBES]))


def cut_vocabulary(source: Path, fitted: Fitted, out: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the model with the kept tokens into the folder `out`, tensor by tensor.

    Args:
        source: The folder that the tokens were chosen for.
        fitted: Which stay.
        out: A folder that does not exist yet, or is empty.
        progress: Called with (tensors done, tensors in all).

    Raises:
        BadCheckpoint: a shard is damaged. NotWritable: the folder is not empty, or the disk is full.
        UnsupportedModel: transformers reads another tokenizer from the new files than they say.
    """
    check_weights(source)
    rows, tables = torch.tensor(fitted.kept.rows), token_tensors(family_of(config_values(source)))
    shards = {
        path: {name: (name, _info(info, len(rows)) if name in tables else info) for name, info in infos.items()}
        for path, infos in open_shards(source).items()
    }
    with fresh(out) as tmp:
        size = sum(info.nbytes for infos in shards.values() for _, info in infos.values())
        check_space(out, size + (64 << 20), "the model with fewer tokens")
        tmp.mkdir()
        _write_files(source, fitted, tmp)
        _check_tokenizer(source, fitted, tmp)
        rewrite(shards, lambda name, t: t.index_select(0, rows) if name in tables else t, tmp, progress)


def left_out(source: Path) -> list[str]:
    """Files of a model folder that `cut_vocabulary` does not carry over, since they hold the old ids."""
    return [name for name in LEFT_OUT if (source / name).is_file()]


def _info(info: TensorInfo, rows: int) -> TensorInfo:
    return TensorInfo(info.dtype, (rows, *info.shape[1:]))


def _write_files(source: Path, fitted: Fitted, out: Path) -> None:
    """All but the weights."""
    new, kept = fitted.new, fitted.kept
    config = renumbered(read_json(source / "config.json"), new) | {"vocab_size": len(kept.rows)}
    _write(out / "config.json", config)
    _write(out / FILE, fitted.tokenizer.cut(kept.rows[: kept.tokens]))
    record = {"original_rows": int(config_values(source)["vocab_size"]), "rows": list(kept.rows)}
    (out / RECORD).write_text(to_json_text(record, indent=None) + "\n", encoding="utf-8")
    if values := _optional(source / "generation_config.json"):
        _write(out / "generation_config.json", renumbered(values, new))
    if values := _optional(source / "tokenizer_config.json"):
        if isinstance(decoder := values.get("added_tokens_decoder"), dict):
            values["added_tokens_decoder"] = {str(new[int(i)]): t for i, t in decoder.items() if int(i) in new}
        _write(out / "tokenizer_config.json", renumbered(values, new))
    texts = ("special_tokens_map.json", "chat_template.jinja", *EXTRA_FILES)
    copy_files(source, out, [name for name in texts if name not in LEFT_OUT])
    for name in EXTRA_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name)


def _check_tokenizer(source: Path, fitted: Fitted, out: Path) -> None:
    """Classes of transformers may put tokens of their own into what a file says: so it is tried, not believed."""
    old, new, rows = load_tokenizer(source), load_tokenizer(out), fitted.kept.rows
    kept = set(rows[: fitted.kept.tokens])
    for text in fitted.probes:
        for special in (False, True):
            before, after = (t.encode(text, add_special_tokens=special) for t in (old, new))
            if kept.issuperset(before) and before != [rows[i] if i < len(rows) else -1 for i in after]:
                raise UnsupportedModel(
                    f"transformers' {type(new).__name__} reads another tokenizer from the cut files than they say",
                    value=text[:80],
                    fix="leave the vocabulary as it is, and report this tokenizer to us",
                )


def _optional(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(path) if path.is_file() else {}
    return values


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(to_json_text(values, ensure_ascii=False) + "\n", encoding="utf-8")
